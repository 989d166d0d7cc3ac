"""Losses, speed and use of the machine of several runs, overlaid; live while they train."""

import time
from collections.abc import Iterable
from dataclasses import fields
from math import isfinite
from pathlib import Path

from gpt2lab.results import finite
from gpt2lab.training.curves import RunCurves, RunHistory, read_curves
from gpt2lab.training.records import Metric
from gpt2lab.training.runs import ALIVE
from gpt2lab.widgets.base import Selection, Widget

COLUMNS = tuple(field.name for field in fields(Metric))
POLL_SECONDS = 1.0


class LiveWidget(Widget):
    """A view of runs; `watch` follows them while they train."""

    def update(self) -> bool:
        """Read the runs again; return whether one of them is still under way."""
        raise NotImplementedError

    def watch(self, seconds: float = POLL_SECONDS) -> None:
        """Keep the view up to date until all runs have ended or the cell is interrupted. The runs are not affected."""
        try:
            while self.update():
                time.sleep(seconds)
        except KeyboardInterrupt:
            pass  # the way to let go; not a fault


class Curves(LiveWidget):
    """What runs have recorded, by step, token or epoch; `watch` follows them while they train.

    runs      ids in `runs_dir`, Paths of run folders, or what `read_curves` returns
    """

    module = "curves"
    _asked: list[str | Path] | None

    def __init__(self, runs: RunCurves | Iterable[str | Path] | str | Path, runs_dir: str | Path = "runs") -> None:
        self._runs_dir = runs_dir
        if isinstance(runs, RunCurves):
            self._asked, found = None, runs
        else:
            self._asked = [runs] if isinstance(runs, str | Path) else list(runs)
            found = read_curves(self._asked, runs_dir)
        super().__init__(found, curves_data(found.runs), title=found.title)

    def update(self) -> bool:
        """Read the runs again; return whether one of them is still under way."""
        if self._asked is None:
            return False  # what was read before does not change
        self.result = read_curves(self._asked, self._runs_dir)
        self.data = finite(curves_data(self.result.runs))
        return any(run.state in ALIVE for run in self.result.runs)

    def _checked(self, selected: Selection) -> Selection:
        return selected  # there is nothing here to select


def curves_data(runs: Iterable[RunHistory]) -> dict:
    """The data of the view: of each run, its records as columns, to seven digits."""
    return {
        "runs": [
            {
                "id": run.id,
                "state": run.state,
                "columns": {name: [_short(getattr(metric, name)) for metric in run.metrics] for name in COLUMNS}
                | {"epoch": [_short(run.epoch(metric)) for metric in run.metrics]},
            }
            for run in runs
        ]
    }


def _short(value):
    return float(f"{value:.7g}") if isinstance(value, float) and isfinite(value) else value

"""The records of several runs, to compare them: losses, speed, use of the machine, and the settings that differ."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from gpt2lab.errors import LabError
from gpt2lab.results import Result, Summary, Table
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.records import Metric, read_metrics
from gpt2lab.training.runs import Run, find_run, read_config, run_summary

MAX_RUNS = 6  # in one picture: more colours are hard to distinguish
SETTINGS = tuple(field.name for field in fields(TrainConfig))
COLUMNS = tuple(field.name for field in fields(Metric))


@dataclass(frozen=True, repr=False)
class RunHistory(Summary):
    """What a run has recorded so far.

    state         as `runs list` shows it
    train_tokens  in the train split; None of runs that did not record it
    settings      of its config.json
    metrics       in order
    """

    id: str
    state: str
    train_tokens: int | None
    settings: dict
    metrics: tuple[Metric, ...]

    def epoch(self, metric: Metric) -> float | None:
        """Passes over the train split by then; None where its size is not known."""
        return metric.tokens / self.train_tokens if self.train_tokens else None


@dataclass(frozen=True, repr=False)
class RunCurves(Result):
    """The records of 1 to MAX_RUNS runs."""

    runs: tuple[RunHistory, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.runs) <= MAX_RUNS:
            raise LabError("{count} runs; choose 1 to {limit}", count=len(self.runs), limit=MAX_RUNS)

    @property
    def title(self) -> str:
        """Title of the exported page."""
        return f"Runs: {', '.join(run.id for run in self.runs)}"

    def table(self) -> Table:
        """A row per record: the run, its epoch, and all that was measured."""
        rows = [(run.id, run.epoch(metric), *asdict(metric).values()) for run in self.runs for metric in run.metrics]
        return Table(["run", "epoch", *COLUMNS], rows)

    def arrays(self) -> dict[str, np.ndarray]:
        """The columns of the table as arrays; what is not known is NaN."""
        head, rows = self.table()
        columns = zip(*rows) if rows else ([] for _ in head)
        words = ("run", "split")
        return {
            name: np.array(column, dtype=str if name in words else float)
            for name, column in zip(head, map(list, columns))
        }

    def differences(self) -> Table:
        """The settings that are not the same in all runs, a row each, a column per run."""
        rows = []
        for name in SETTINGS:
            values = [run.settings.get(name) for run in self.runs]
            if any(value != values[0] for value in values):
                rows.append((name, *values))
        return Table(["setting", *(run.id for run in self.runs)], rows)


def read_curves(runs: Iterable[str | Path] | str | Path, runs_dir: str | Path = "runs") -> RunCurves:
    """Read the records of runs, of runs under way too.

    runs  a run or several: ids in `runs_dir`, or Paths of run folders

    Example: read_curves(["first", "second"]).differences()
    Raises: LabError for no run or more than six, and for one that is not there.
    """
    asked = [runs] if isinstance(runs, str | Path) else list(runs)
    folders = [run if isinstance(run, Path) else find_run(Path(runs_dir), run) for run in asked]
    return RunCurves(tuple(history_of(folder) for folder in folders))


def history_of(folder: Path, summary: Run | None = None) -> RunHistory:
    """Read the records of a run. Raises: LabError for a folder that is no run."""
    summary = summary or run_summary(folder)
    if summary is None:
        raise LabError("{folder} is no run folder", folder=folder)
    try:
        config = read_config(folder)
    except LabError:  # the summary says so
        config = {}
    tokens = config.get("train_tokens")
    settings = {name: config.get(name) for name in SETTINGS}
    return RunHistory(
        summary.id,
        summary.state,
        tokens if isinstance(tokens, int) and tokens > 0 else None,
        settings,
        read_metrics(folder),
    )

"""Notebooks: results shown as figures, and runs watched live from a cell."""

import time
from pathlib import Path

from IPython.display import Image, Pretty, display

from gpt2lab.errors import LabError
from gpt2lab.figures.drawing import figure, figure_bytes
from gpt2lab.figures.training import loss_curve
from gpt2lab.results import Summary
from gpt2lab.training.runs import RunStatus, find_run, read_metrics, read_status


def show_figures(shell) -> None:
    """Register figures of results with an IPython shell, so that a cell ending in a result shows its figure."""
    shell.display_formatter.formatters["image/png"].for_type(Summary, _png)


def _png(result: Summary) -> bytes | None:
    """The figure of a result as a PNG; None if it has none."""
    return None if figure.dispatch(type(result)) is figure.dispatch(object) else figure_bytes(figure(result), "png")


def attach(run: str, runs_dir: str | Path = "runs", *, seconds: float = 2.0) -> RunStatus:
    """Watch a run from a cell until it ends or the cell is interrupted; return its last status. The run is not affected.

    run      the run's id · runs_dir  where it is
    seconds  between looks, above 0

    Raises: LabError for a run that is not there, and outside a notebook.
    """
    folder = find_run(Path(runs_dir), run)
    line, curve, drawn = display(Pretty(""), display_id=True), None, 0
    if line is None:
        raise LabError("attach draws in a notebook's cell, and this is none; use read_status, or `gpt2lab runs show`")
    try:
        while True:
            status, metrics = read_status(folder), read_metrics(folder)
            line.update(
                Pretty(f"{run}: {status.state}, step {status.step:,} of {status.total_steps or '?'} {status.message}")
            )
            if len(metrics) > drawn:
                drawn, picture = len(metrics), Image(figure_bytes(loss_curve(metrics), "png"), width=700)
                curve = curve.update(picture) or curve if curve else display(picture, display_id=True)
            if not status.alive:
                break
            time.sleep(seconds)
    except KeyboardInterrupt:
        pass  # the way to let go of a run; not a fault
    return status

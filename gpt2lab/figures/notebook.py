"""Notebooks: results shown as figures, and runs watched live from a cell.

Knows results, run folders and figures, which are imported when they are first shown.
"""

import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from IPython.display import Image, Pretty, display

from gpt2lab.errors import LabError

if TYPE_CHECKING:
    from gpt2lab.training.runs import RunStatus

# (module, class) of a result: (module of views, function of the result that draws it)
FIGURES = {
    ("inspection.trace", "Trace"): ("attention", lambda views, found: views.attention_grid(found)),
    ("inspection.heads", "Rollout"): ("heads", lambda views, found: views.rollout_heatmap(found)),
    ("inspection.compare", "Comparison"): ("heads", lambda views, found: views.head_map(**found.map()._asdict())),
    ("inspection.ablation", "Sweep"): ("heads", lambda views, found: views.head_map(**found.map()._asdict())),
    ("inspection.lens", "Lens"): ("inside", lambda views, found: views.lens_figure(found)),
    ("inspection.patching", "Patching"): ("inside", lambda views, found: views.patching_figure(found)),
    ("evaluation.evaluate", "Evaluation"): ("evaluation", lambda views, found: views.result_figure(found.results)),
}


def show_figures(shell) -> None:
    """Register figures of results with an IPython shell, so that a cell ending in a result shows its figure."""
    formatter = shell.display_formatter.formatters["image/png"]
    for (module, name), (views, draw) in FIGURES.items():

        def png(found, views=views, draw=draw) -> bytes:
            drawing = import_module("gpt2lab.figures.drawing")
            return drawing.figure_bytes(draw(import_module(f"gpt2lab.figures.{views}"), found), "png")

        formatter.for_type_by_name(f"gpt2lab.{module}", name, png)


def attach(run: str, runs_dir: str | Path = "runs", *, seconds: float = 2.0) -> "RunStatus":
    """Watch a run from a cell until it ends or the cell is interrupted; return its last status. The run is not affected.

    run      the run's id · runs_dir  where it is
    seconds  between looks, above 0

    Raises: LabError for a run that is not there, and outside a notebook.
    """
    from gpt2lab.figures.drawing import figure_bytes
    from gpt2lab.figures.training import loss_curve
    from gpt2lab.training.runs import find_run, read_metrics, read_status

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

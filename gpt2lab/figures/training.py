"""The losses of runs, as a figure and as a table."""

import numpy as np
from matplotlib.figure import Figure

from gpt2lab.figures.drawing import RUN_COLOURS, figure, for_dark_pages
from gpt2lab.results import MAX_EXPONENT, readable
from gpt2lab.training.curves import RunCurves
from gpt2lab.training.runs import Metric

COLOURS = {"train": "#8da0cb", "validation": "#d95f02"}  # distinct for the colour-blind, and in grey


def loss_curve(metrics: tuple[Metric, ...], *, dark: bool = False) -> Figure:
    """Train and validation loss over optimizer steps; the dotted line is the loss before training, the star the best.

    Losses are nats per token; the axis on the right reads them as perplexity.
    """
    return loss_curves({"": metrics}, dark=dark)


@figure.register(RunCurves)
def curves_figure(result: RunCurves, *, dark: bool = False) -> Figure:
    """The losses of runs; those that have measured none yet are left out."""
    return loss_curves({run.id: run.metrics for run in result.runs if run.metrics}, dark=dark)


def loss_curves(runs: dict[str, tuple[Metric, ...]], *, dark: bool = False) -> Figure:
    """The losses of several runs in one figure, by name; a colour per run where there are several.

    Thin lines are training losses, lines with points validation losses, of which a star marks the
    lowest after step 0; the dotted line is the loss before training.
    """
    drawn = Figure(figsize=(7, 3.6), layout="constrained")
    axes = drawn.add_subplot()
    for i, (name, metrics) in enumerate(runs.items()):
        colours = COLOURS if len(runs) == 1 else dict.fromkeys(COLOURS, RUN_COLOURS[i % len(RUN_COLOURS)])
        train, validation = ([m for m in metrics if m.split == split] for split in ("train", "validation"))
        several = f"{name} " if len(runs) > 1 else ""
        axes.plot(*points(train), color=colours["train"], linewidth=1, alpha=0.7, label=f"{several}train")
        axes.plot(*points(validation), "o-", color=colours["validation"], markersize=4, label=f"{several}validation")
        if best := min((m for m in validation if m.step), key=lambda m: m.loss, default=None):
            axes.plot(best.step, best.loss, "*", color=colours["validation"], markersize=13)
        if validation:
            before = "before training" if i == 0 else None
            axes.axhline(validation[0].loss, color=colours["validation"], linestyle=":", linewidth=1, label=before)
    axes.set(xlabel="optimizer steps", ylabel="loss (nats per token)")
    axes.set_xlim(left=0, right=None if any(m.step for found in runs.values() for m in found) else 1)
    right = axes.secondary_yaxis(
        "right", functions=(lambda y: np.exp(np.minimum(y, MAX_EXPONENT)), lambda y: np.log(np.maximum(y, 1e-9)))
    )
    right.set_ylabel("perplexity")
    axes.grid(alpha=0.4)
    if runs:
        drawn.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return for_dark_pages(drawn) if dark else drawn


def validation_rows(metrics: tuple[Metric, ...]) -> list[tuple[str, ...]]:
    """Step, loss and perplexity of every validation: the loss curve for those who read."""
    return [(f"{m.step:,}", f"{m.loss:.4f}", readable(m.perplexity)) for m in metrics if m.split == "validation"]


def points(metrics: list[Metric]) -> tuple[list[int], list[float]]:
    """Steps and losses."""
    return [m.step for m in metrics], [m.loss for m in metrics]

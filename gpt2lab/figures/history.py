"""How the inside of a model changed while it trained, as figures."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from gpt2lab.errors import choice
from gpt2lab.figures.drawing import MAP, MAX_LABELS, RUN_COLOURS, figure, for_dark_pages, label
from gpt2lab.figures.heads import DIVERGING
from gpt2lab.inspection.heads import SCORES
from gpt2lab.inspection.lens import entry_name
from gpt2lab.training.head_changes import HeadChanges
from gpt2lab.training.history import History

VIEWS = ("scores", "lens", "surprisal")
NAMED = 4  # heads with a colour and a name of their own
MAX_TICKS = 12


@figure.register(History)
def history_figure(result: History, *, view: str = "scores", score: str = "induction", dark: bool = False) -> Figure:
    """A model's inside against optimizer steps.

    view   "scores": one score of every head, and the losses; "lens": how well each layer predicts the probe's next tokens,
           as their mean log rank; "surprisal": of each token of the probe
    score  a name in SCORES

    Raises: LabError for another view or score.
    """
    choice("view", view, VIEWS)
    choice("score", score, SCORES)
    views = {"lens": _lens, "surprisal": _surprisal}
    drawn = views[view](result) if view in views else _scores(result, score)
    return for_dark_pages(drawn) if dark else drawn


@figure.register(HeadChanges)
def changes_figure(result: HeadChanges, *, dark: bool = False) -> Figure:
    """Two maps of heads: how far attention moved, and how much more an ablation costs after training."""
    maps = result.maps()
    L, H = result.moved.shape
    drawn = Figure(figsize=(min(12, 4.2 + 0.6 * H), min(10, 1.6 + 0.3 * L)), layout="constrained")
    for axes, found in zip(drawn.subplots(1, 2), maps):
        values = found.values.numpy()
        limit = max(float(np.abs(values).max()), 1e-9)
        colours = {"cmap": DIVERGING, "vmin": -limit} if found.centred else {"cmap": MAP, "vmin": 0}
        image = axes.imshow(values, interpolation="nearest", aspect="auto", vmax=limit, **colours)
        axes.set_title(found.title.split(":")[0], fontsize=10)
        axes.set(xlabel="head", ylabel="layer")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        drawn.colorbar(image, ax=axes, label=found.unit)
    return for_dark_pages(drawn) if dark else drawn


def _scores(result: History, score: str) -> Figure:
    losses = {name: values for name, values in result.losses.items() if np.isfinite(values).any()}
    drawn = Figure(figsize=(7, 5.4 if losses else 3.6), layout="constrained")
    axes = drawn.subplots(2 if losses else 1, sharex=True, squeeze=False)[:, 0]
    values, last = result.head_scores[score], result.head_scores[score][-1]
    named = np.argsort(np.nan_to_num(last, nan=-np.inf).ravel())[::-1][:NAMED].tolist()
    for index in range(last.size):
        layer, head = divmod(index, last.shape[1])
        if index not in named:
            axes[0].plot(result.steps, values[:, layer, head], color="#999999", linewidth=0.6, alpha=0.5)
    for colour, index in zip(RUN_COLOURS, named):
        layer, head = divmod(index, last.shape[1])
        axes[0].plot(result.steps, values[:, layer, head], color=colour, label=f"layer {layer}, head {head}")
    axes[0].set(ylabel=f"{SCORES[score].title}\n({SCORES[score].unit.split(',')[0]})", title=result.title)
    for colour, (name, course) in zip(RUN_COLOURS, losses.items()):
        known = np.isfinite(course)
        axes[-1].plot(result.steps[known], course[known], "o-", markersize=2.5, color=colour, label=name)
    if losses:
        axes[-1].set_ylabel("loss (nats per token)")
    step = result.change_step(score)
    for each in axes:
        if step is not None:
            each.axvline(step, color="#888888", linestyle=":", linewidth=1)
        each.grid(alpha=0.3)
        each.legend(frameon=False, fontsize=8)
    if step is not None:
        axes[0].annotate(
            f"step {step:,} ", (step, 1), xycoords=("data", "axes fraction"), va="top", ha="right", fontsize=8
        )
    _step_axis(axes[-1], result.steps)
    return drawn


def _lens(result: History) -> Figure:
    """Mean log10 rank of the probe's next tokens after each layer: (L+1, S)."""
    course = np.log10(result.lens_rank[:, :, :-1]).mean(-1).T
    names = [str(entry_name(entry)) for entry in range(len(course))]
    return _map(result, course, names, "mean log10 rank of the next token", upward=True)


def _surprisal(result: History) -> Figure:
    tokens = [label(token) if len(result.tokens) <= MAX_LABELS else "" for token in result.tokens]
    return _map(result, result.surprisal.T, tokens, "surprisal (nats)")


def _map(result: History, rows: np.ndarray, names: list[str], unit: str, *, upward: bool = False) -> Figure:
    """Rows (n, S) with a column per observed step, evenly spaced."""
    drawn = Figure(figsize=(7, 1.6 + 0.17 * max(8, len(rows))), layout="constrained")
    axes = drawn.add_subplot()
    image = axes.imshow(rows, aspect="auto", interpolation="nearest", origin="lower" if upward else "upper")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    every = -(-len(result.steps) // MAX_TICKS)
    axes.set_xticks(range(0, len(result.steps), every), [f"{step:,}" for step in result.steps[::every]], fontsize=8)
    axes.set(xlabel="optimizer steps", title=result.title)
    drawn.colorbar(image, label=unit)
    return drawn


def _step_axis(axes: Axes, steps: np.ndarray) -> None:
    """A logarithmic axis that has room for step 0."""
    axes.set_xlabel("optimizer steps")
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(left=0)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:,.0f}"))

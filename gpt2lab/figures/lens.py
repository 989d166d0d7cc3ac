"""Figures of the residual stream, layers by positions: the logit lens, activation patching."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.colors import CenteredNorm, LogNorm, Normalize
from matplotlib.figure import Figure

from gpt2lab.errors import choice
from gpt2lab.figures.drawing import MAP, MAX_LABELS, figure, for_dark_pages, label
from gpt2lab.figures.heads import CROSSOVER, DARK_INK, DIVERGING, LIGHT_INK, luminance, plain
from gpt2lab.inspection.lens import Lens, entry_name
from gpt2lab.inspection.patching import Patching

MAX_WORDS = 26  # tokens of a text whose top predictions are written into the cells
MAX_WORD = 9  # characters of one
CELL, ROW = 0.62, 0.32  # inches: a cell with a word, and a layer's row
NARROW = 0.16  # inches: a cell without
LETTER = 0.085  # inches, of a token's label on its side


class Measure(NamedTuple):
    """What a number per layer and position is called, and measured in; whether its colours go by its logarithm."""

    title: str
    unit: str
    log: bool = False


LENS = {
    "rank": Measure("rank of the followed token", "1 is the top prediction", log=True),
    "probability": Measure("probability of the followed token", "0 to 1"),
    "entropy": Measure("entropy", "nats"),
    "divergence": Measure("divergence of the last layer's prediction from this one", "nats"),
}


@figure.register(Lens)
def lens_figure(lens: Lens, measure: str = "rank", *, dark: bool = False) -> Figure:
    """Layers down, positions across; each cell coloured by a measure, with the layer's top prediction written in short texts.

    measure  a name in LENS

    Raises: LabError for another measure.
    """
    choice("measure", measure, LENS)
    title, unit, log = LENS[measure]
    words = [[lens.names[i] for i in row] for row in lens.top[..., 0].tolist()]
    values = getattr(lens, measure).double().numpy()
    norm = LogNorm(1, max(2, values.max())) if log else Normalize(0, max(1e-9, values.max()))
    colours = f"{MAP}_r" if measure == "rank" else MAP
    title = f"{title}: {lens.trace.name}"
    return _layers(values, lens.trace.tokens, title, unit, norm, colours, words=words, dark=dark)


@figure.register(Patching)
def patching_figure(patching: Patching, *, dark: bool = False) -> Figure:
    """Layers down, positions across: how far the clean run's state at one place makes the corrupted run answer as the clean one."""
    values = patching.recovered.double().numpy()
    title = f"share of the clean answer recovered, {patching.words[0]!r} over {patching.words[1]!r}: {patching.name}"
    norm = CenteredNorm(0, max(1.0, float(np.abs(values).max())))
    pairs = zip(patching.tokens, patching.clean_tokens)
    tokens = [one if one == clean else f"{one}/{clean}" for one, clean in pairs]
    return _layers(values, tokens, title, "0 as corrupted, 1 as clean", norm, DIVERGING, dark=dark)


def _layers(
    values: np.ndarray, tokens: Sequence[str], title: str, unit: str, norm, colours: str, *, words=None, dark: bool
) -> Figure:
    """A coloured cell per entry of the residual stream (L+1) and position (T)."""
    L, T = values.shape
    written = words is not None and T <= MAX_WORDS
    width = min(16.0, 2.2 + T * (CELL if written else NARROW if T > MAX_WORDS else 0.34))
    labels = [label(token) for token in tokens] if T <= MAX_LABELS else []
    below = LETTER * max(map(len, labels), default=0)
    figure = Figure(figsize=(max(5.0, width), 1.5 + L * ROW + below), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap=colours, norm=norm, aspect="auto", interpolation="nearest", origin="lower")
    axes.set_yticks(range(L), [entry_name(entry) for entry in range(L)], fontsize=8)
    if labels:
        axes.set_xticks(range(T), labels, rotation=90, fontsize=8)
    axes.set_xlabel("after token", fontsize=8)
    axes.set_title(plain(title, figure.get_figwidth()), fontsize=9, parse_math=False)
    bar = figure.colorbar(image, ax=axes, shrink=0.9)
    bar.set_label(unit, fontsize=8)
    bar.ax.tick_params(labelsize=8)
    if dark:
        for_dark_pages(figure)
    if written:
        for (row, at), _ in np.ndenumerate(values):
            ink = DARK_INK if luminance(image.to_rgba(values[row, at])) > CROSSOVER else LIGHT_INK
            word = words[row][at]
            short = word if len(word) <= MAX_WORD else f"{word[: MAX_WORD - 1]}…"
            axes.text(at, row, label(short), color=ink, ha="center", va="center", fontsize=6.5)
    return figure

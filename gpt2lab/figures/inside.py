"""Figures and tables of logit lens, attribution, surprisal ranks and activation patching.

Knows result types; never shows anything, and never touches pyplot's global state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from matplotlib.colors import CenteredNorm, LogNorm, Normalize
from matplotlib.figure import Figure

from gpt2lab.errors import LabError, choice
from gpt2lab.figures.drawing import MAP, MAX_LABELS, RUN_COLOURS, for_dark_pages, label
from gpt2lab.figures.heads import CROSSOVER, DARK_INK, DIVERGING, LIGHT_INK, luminance, plain
from gpt2lab.inspection.heads import HeadMap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpt2lab.inspection.lens import Attribution, Lens
    from gpt2lab.inspection.patching import Patching
    from gpt2lab.inspection.surprisal import Surprisal

MAX_WORDS = 26  # tokens of a text whose top predictions are written into the cells
MAX_WORD = 9  # characters of one
CELL, ROW = 0.62, 0.32  # inches: a cell with a word, and a layer's row
NARROW = 0.16  # inches: a cell without
LETTER = 0.085  # inches, of a token's label on its side
BINS, WIDTH = 40, 9.0  # of the histogram; inches of the figure of ranks and costs


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


def entry_name(entry: int) -> str:
    """What has been done to the residual stream at an entry."""
    return "embedding" if entry == 0 else f"layer {entry - 1}"


def patching_rows(patching: Patching) -> tuple[list[str], list[tuple[str, ...]]]:
    """(head, rows): the shares recovered for those who read, a row per entry of the residual stream."""
    rows = patching.recovered.tolist()
    return ["state after", *patching.tokens], [
        (entry_name(i), *(f"{x:.2f}" for x in row)) for i, row in enumerate(rows)
    ]


def lens_rows(lens: Lens, position: int) -> list[tuple[str, ...]]:
    """One position for those who read: a row per layer, its top predictions, and what it makes of the followed token."""
    rows = []
    for entry in range(len(lens.rank)):
        rows.append(
            (
                entry_name(entry),
                ", ".join(f"{name} {p:.3f}" for _, name, p in lens.top_predictions(entry, position)),
                f"{float(lens.probability[entry, position]):.4f}",
                f"{int(lens.rank[entry, position]):,}",
                f"{float(lens.entropy[entry, position]):.3f}",
                f"{float(lens.divergence[entry, position]):.3f}",
            )
        )
    return rows


def lens_head(lens: Lens, position: int) -> list[str]:
    """What the columns of `lens_rows` are. Raises: LabError for a position that does not exist."""
    T = len(lens.targets)
    if not -T <= position < T:
        raise LabError(
            "position {position} is out of range; use a whole number from {value} to {t}",
            position=position,
            value=-T,
            t=T - 1,
        )
    word = lens.names[int(lens.targets[position])]
    return ["after", "top predictions", f"probability of {word}", "its rank", "entropy, nats", "to the last, nats"]


def attribution_map(found: Attribution) -> HeadMap:
    """Return each head's contribution as a HeadMap."""
    word, other = found.words
    return HeadMap(found.heads, f"adds to {word!r} over {other!r}: {found.name}", "logits", centred=True)


def attribution_rows(found: Attribution) -> list[tuple[str, str]]:
    """Return every part's contribution, the largest in size first, and their sum."""
    parts = sorted(found.parts, key=lambda part: -abs(part[1]))
    return [*((name, f"{value:+.4f}") for name, value in parts), ("sum: the logit difference", f"{found.total:+.4f}")]


def rank_figure(surprisals: Sequence[Surprisal], limits: Sequence[int], *, dark: bool = False) -> Figure:
    """Two panels: how many tokens are in each bucket of ranks; how many cost how many nats. A colour per model."""
    figure = Figure(figsize=(WIDTH, 3), layout="constrained")
    ranks, costs = figure.subplots(1, 2)
    width = 0.8 / len(surprisals)
    known = [one.nll[1:].numpy() for one in surprisals]
    top = max([1.0, *(float(nll.max()) for nll in known if len(nll))])
    for i, (one, nll) in enumerate(zip(surprisals, known)):
        names, counts = zip(*one.buckets(limits))
        places = np.arange(len(counts)) + (i - (len(surprisals) - 1) / 2) * width
        ranks.bar(places, counts, width, color=RUN_COLOURS[i], label=f"{i}")
        ranks.set_xticks(range(len(names)), names, fontsize=8)
        costs.hist(nll, BINS, range=(0, top), histtype="step", color=RUN_COLOURS[i])
    ranks.set(xlabel="rank of the token", ylabel="tokens")
    costs.set(xlabel="nats", ylabel="tokens")
    if len(surprisals) > 1:
        handles, _ = ranks.get_legend_handles_labels()
        names = [f" {plain(one.name, WIDTH)}" for one in surprisals]  # with "_" before it, a name would be left out
        legend = figure.legend(handles, names, loc="outside upper center", ncols=2, frameon=False, fontsize=8)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return for_dark_pages(figure) if dark else figure


def surprisal_rows(found: Surprisal, other: Surprisal | None = None) -> list[list]:
    """A row per token: what it cost, its rank, how unsure the model was, what it expected; with a second model, its change."""
    change = None if other is None else found.change(other).tolist()
    rows = []
    for at, (token, nll, bits, rank) in enumerate(
        zip(found.tokens, found.nll.tolist(), found.bits.tolist(), found.rank.tolist())
    ):
        if at == 0:
            row = [at, token, "", "", "", "", ""]
        else:
            expected = ", ".join(f"{name} {p:.3f}" for _, name, p in found.top_predictions(at)[:5])
            row = [at, token, f"{nll:.3f}", f"{bits:.3f}", rank, f"{float(found.entropy[at]):.3f}", expected]
        rows.append(row if change is None else [*row, "" if at == 0 else f"{change[at]:+.3f}"])
    return rows


SURPRISAL_HEAD = ["at", "token", "nats", "bits", "rank", "entropy, nats", "expected"]

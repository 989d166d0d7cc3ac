"""Attention entropy by position, a line per layer."""

import matplotlib
from matplotlib.figure import Figure

from gpt2lab.figures.drawing import LINES, MAP, MAX_LABELS, figure, for_dark_pages, label
from gpt2lab.figures.heads import plain
from gpt2lab.inspection.entropy import EntropyByPosition

WIDTH, HEIGHT = 8.0, 3.6  # inches


@figure.register(EntropyByPosition)
def entropy_figure(result: EntropyByPosition, *, dark: bool = False) -> Figure:
    """Nats over positions: a line per layer, from dark to light, and the limit, dashed."""
    L, T = result.entropy.shape
    drawn = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = drawn.add_subplot()
    for layer, values in enumerate(result.entropy.tolist()):
        colour = matplotlib.colormaps[MAP](0.15 + 0.75 * layer / max(1, L - 1))
        axes.plot(values, marker=".", color=colour, label=f"layer {layer}")
    axes.plot(result.limit.tolist(), "--", color=LINES, label="equal attention")
    if T <= MAX_LABELS:
        axes.set_xticks(range(T), [label(token) for token in result.tokens], rotation=90, fontsize=8)
    axes.set(xlabel="position", ylabel="entropy, nats")
    axes.set_title(plain(result.title, WIDTH), fontsize=10, parse_math=False)
    axes.legend(fontsize=8, frameon=False, loc="upper left", ncols=1 + L // 8)
    return for_dark_pages(drawn) if dark else drawn

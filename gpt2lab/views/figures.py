"""Still pictures, by matplotlib: loss curves, attention of all heads, attention of one.

Knows result types; never shows anything, and never touches pyplot's global state.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.image import AxesImage
from matplotlib.text import Text

from gpt2lab.training.runs import Metric
from gpt2lab.units import MAX_EXPONENT, readable

if TYPE_CHECKING:  # a loss curve needs no torch, which takes seconds to import
    from gpt2lab.inspection.trace import Trace

COLOURS = {"train": "#8da0cb", "validation": "#d95f02"}  # told apart by the colour-blind, and in grey
RUN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito's
MAP = "viridis"  # perceptually uniform
MAX_LABEL = 20  # characters of a token
MAX_DRAWN = 2 * MAX_LABEL  # characters of it where some are drawn as their code points
MAX_LABELS = 48  # tokens that can be labelled legibly on a side
MAX_SIDE = 128  # pixels a thumbnail's side can use; longer texts are averaged down to it
LEAST_SIDE = 64  # of a thumbnail in the mosaic, so that gaps are as thin for short texts
DRAWN_AT_ONCE = 72  # thumbnails that are one image: matplotlib takes 80 bytes of memory a pixel while it draws one
PITCH, LEFT, RIGHT, TOP, BOTTOM = 0.95, 0.75, 0.15, 0.25, 0.3  # inches: a thumbnail with its gap, and the margins
DPI = 144  # twice a screen's pixels, so that pictures stay sharp when enlarged
FORMATS = {"png": "image/png", "svg": "image/svg+xml"}
INK, LINES, PAPER = "#e4e4e7", "#a1a1aa", "#18181b"  # of figures for dark pages


def loss_curve(metrics: tuple[Metric, ...], *, dark: bool = False) -> Figure:
    """Train and validation loss over optimizer steps; the dotted line is the loss before training, the star the best.

    Losses are nats per token; the axis on the right reads them as perplexity.
    """
    return loss_curves({"": metrics}, dark=dark)


def loss_curves(runs: dict[str, tuple[Metric, ...]], *, dark: bool = False) -> Figure:
    """The losses of several runs in one figure, by name; a colour per run where there are several.

    Thin lines are training losses, lines with points validation losses, of which a star marks the
    lowest after step 0; the dotted line is the loss before training.
    """
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
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
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return for_dark_pages(figure) if dark else figure


def validation_rows(metrics: tuple[Metric, ...]) -> list[tuple[str, ...]]:
    """Step, loss and perplexity of every validation: the loss curve for those who read."""
    return [(f"{m.step:,}", f"{m.loss:.4f}", readable(m.perplexity)) for m in metrics if m.split == "validation"]


def points(metrics: list[Metric]) -> tuple[list[int], list[float]]:
    """Steps and losses."""
    return [m.step for m in metrics], [m.loss for m in metrics]


def attention_grid(trace: Trace, *, layer: int | None = None, dark: bool = False) -> Figure:
    """A thumbnail per head, layers down, heads across: each as in `attention_heatmap`, on its own colour scale.

    layer  only this one; None for all
    """
    layers = range(trace.n_layers) if layer is None else [layer]
    L, H = len(layers), trace.n_heads
    width, height = LEFT + H * PITCH + RIGHT, TOP + L * PITCH + BOTTOM
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((LEFT / width, BOTTOM / height, H * PITCH / width, L * PITCH / height))
    at_once = max(1, DRAWN_AT_ONCE // H)
    for begin in range(0, L, at_once):
        part = layers[begin : begin + at_once]
        extent = (0, H, begin + len(part), begin)
        axes.imshow(_mosaic(trace, part), cmap=MAP, vmin=0, vmax=1, interpolation="nearest", extent=extent)
    axes.set(xlim=(0, H), ylim=(L, 0))
    axes.set_xticks([head + 0.5 for head in range(H)], [f"head {head}" for head in range(H)], fontsize=8)
    axes.set_yticks([row + 0.5 for row in range(L)], [f"layer {layer}" for layer in layers], fontsize=8)
    axes.tick_params(length=0, pad=1, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("token attended to →", fontsize=8)
    axes.set_ylabel("← token attending", fontsize=8)
    return for_dark_pages(figure) if dark else figure


def _mosaic(trace: Trace, layers) -> np.ndarray:
    """(L·P, H·P): the weights of every head, divided by their maximum, in the middle of P × P; NaN around them."""
    n = min(len(trace.tokens), MAX_SIDE)
    zoom = -(-LEAST_SIDE // n)
    edge = n * zoom // 32
    pitch = n * zoom + 2 * edge
    mosaic = np.full((len(layers), pitch, trace.n_heads, pitch), np.nan, np.float32)
    for row, layer in enumerate(layers):
        for head, weights in enumerate(trace.attention(layer)):
            small = shrunk(weights.numpy())
            mosaic[row, edge:-edge, head, edge:-edge] = (small / small.max()).repeat(zoom, 0).repeat(zoom, 1)
    return mosaic.reshape(len(layers) * pitch, trace.n_heads * pitch)


def attention_heatmap(trace: Trace, layer: int, head: int, *, dark: bool = False) -> Figure:
    """One head's weights: row i shows with which weight token i reads each token up to itself."""
    side = heatmap_side(len(trace.tokens))
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.add_subplot()
    image = heatmap(axes, trace.attention(layer, head).numpy(), trace.tokens, cmap=MAP, vmin=0)
    axes.set_title(f"layer {layer}, head {head}")
    figure.colorbar(image, ax=axes, label="attention weight", shrink=0.8)
    return for_dark_pages(figure) if dark else figure


def heatmap(axes: Axes, weights: np.ndarray, tokens: Sequence[str], **scale) -> AxesImage:
    """A square matrix, with its tokens on both sides where there is room."""
    image = axes.imshow(weights, interpolation="nearest", **scale)
    if len(tokens) <= MAX_LABELS:
        labels = [label(token) for token in tokens]
        axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=8)
        axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set(xlabel="token attended to", ylabel="token attending")
    return image


def heatmap_side(n: int) -> float:
    """Inches of a heatmap of n tokens."""
    return min(9.0, 3.2 + 0.16 * min(n, MAX_LABELS))


def for_dark_pages(figure: Figure) -> Figure:
    """The figure, just made, with light ink on dark paper. matplotlib's own styles are global, and pages have threads."""
    figure.set_facecolor(PAPER)
    for text in figure.findobj(Text):
        text.set_color(INK)
    for axes in figure.axes:
        axes.set_facecolor(PAPER)
        axes.tick_params(colors=LINES, labelcolor=INK)
        for spine in axes.spines.values():
            spine.set_color(LINES)
    return figure


def label(token: str) -> str:
    """A token as matplotlib can draw it: cut where it is long, code points for characters its font lacks, "$" as itself."""
    font = get_font(findfont("DejaVu Sans"))
    short = token if len(token) <= MAX_LABEL else f"{token[: MAX_LABEL - 1]}…"
    drawn = "".join(c if font.get_char_index(ord(c)) else f"⟨U+{ord(c):04X}⟩" for c in short)
    return (drawn if len(drawn) <= MAX_DRAWN else f"{drawn[: MAX_DRAWN - 1]}…").replace("$", r"\$")


def shrunk(weights: np.ndarray) -> np.ndarray:
    """A square matrix as at most MAX_SIDE × MAX_SIDE means; as it is where it fits."""
    n = len(weights)
    if n <= MAX_SIDE:
        return weights
    edges = np.linspace(0, n, MAX_SIDE + 1).astype(int)
    sums = np.add.reduceat(np.add.reduceat(weights, edges[:-1], axis=0), edges[:-1], axis=1)
    sizes = np.diff(edges)
    return sums / np.outer(sizes, sizes)


def figure_bytes(figure: Figure, format: str) -> bytes:
    """The figure as a "png" or "svg" file."""
    buffer = BytesIO()
    figure.savefig(buffer, format=format, dpi=DPI)
    return buffer.getvalue()


def image(draw: Callable[..., Figure], caption: str) -> str:
    """A figure inside the page, light and dark, with what it shows in words; `draw` takes dark=True or False."""
    light, dark = (base64.b64encode(figure_bytes(draw(dark=dark), "png")).decode() for dark in (False, True))
    text, kind = html.escape(caption), f"data:{FORMATS['png']};base64,"
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{kind}{dark}">'
        f'<img src="{kind}{light}" alt="{text}"></picture><figcaption>{text}</figcaption></figure>'
    )

"""Attention as figures: all heads as thumbnails, one head as a heatmap."""

import numpy as np
from matplotlib.figure import Figure

from gpt2lab.figures.drawing import MAP, figure, for_dark_pages, heatmap, heatmap_side
from gpt2lab.figures.heads import comparison_heatmaps
from gpt2lab.inspection.attention import Attention
from gpt2lab.inspection.trace import Trace

MAX_SIDE = 128  # pixels a thumbnail's side can use; longer texts are averaged down to it
MIN_SIDE = 64  # of a thumbnail in the mosaic, so that gaps are as thin for short texts
DRAWN_AT_ONCE = 72  # thumbnails that are one image: matplotlib takes 80 bytes of memory a pixel while it draws one
PITCH, LEFT, RIGHT, TOP, BOTTOM = 0.95, 0.75, 0.15, 0.25, 0.3  # inches: a thumbnail with its gap, and the margins


@figure.register
def _(result: Attention, *, dark: bool = False) -> Figure:
    of, layer, head = result.of, result.layer, result.head
    if isinstance(of, Trace):
        if layer is None or head is None:
            return attention_grid(of, layer=layer, dark=dark)
        return attention_heatmap(of, layer, head, dark=dark)
    if layer is None or head is None:
        return figure(of.map(layer), dark=dark)
    return comparison_heatmaps(of, layer, head, dark=dark)


@figure.register(Trace)
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
    zoom = -(-MIN_SIDE // n)
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


def shrunk(weights: np.ndarray) -> np.ndarray:
    """A square matrix as at most MAX_SIDE × MAX_SIDE means; as it is where it fits."""
    n = len(weights)
    if n <= MAX_SIDE:
        return weights
    edges = np.linspace(0, n, MAX_SIDE + 1).astype(int)
    sums = np.add.reduceat(np.add.reduceat(weights, edges[:-1], axis=0), edges[:-1], axis=1)
    sizes = np.diff(edges)
    return sums / np.outer(sizes, sizes)

"""Maps of heads, by matplotlib: a number per head, two heads side by side, attention through all layers."""

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from torch import Tensor

from gpt2lab.figures.drawing import LINES, MAP, figure, for_dark_pages, heatmap, heatmap_side, label
from gpt2lab.inspection.ablation import Sweep
from gpt2lab.inspection.attribution import Attribution
from gpt2lab.inspection.compare import DISTANCE, Comparison
from gpt2lab.inspection.heads import ROLLOUT_CAVEAT, HeadMap, HeadScores, Rollout

DIVERGING = "PuOr_r"  # ColorBrewer's, safe for the colour-blind: purple is less, white the same, orange more
MAX_NUMBERED = 12  # layers and heads of a map that has its numbers written in its cells
NUMBERED, PLAIN = 0.6, 0.3  # inches: a cell with its number, and without
LEFT, RIGHT, TOP, BOTTOM = 0.75, 1.3, 0.95, 0.3  # inches around a map: layers; colour bar; title and heads; note
BAR, GAP = 0.15, 0.15  # inches: the colour bar's width, and what is between it and the map
MIN_WIDTH, MIN_HEIGHT = 4.4, 2.8  # inches of a figure, so that title and unit have room
CHARACTER = 0.085  # inches, of a title's type on average
MAX_LINES = 3  # of a title
MISSING = "hatched: no value"
DARK_INK, LIGHT_INK = "black", "white"
CROSSOVER = 0.179  # relative luminance on which black and white have the same contrast (WCAG 2.1), 4.6 : 1


@figure.register
def _(result: HeadMap, *, dark: bool = False) -> Figure:
    return head_map(
        result.values, title=result.title, unit=result.unit, vmin=result.vmin, centred=result.centred, dark=dark
    )


@figure.register
def _(result: Sweep | Attribution | Comparison, *, dark: bool = False) -> Figure:
    return figure(result.map(), dark=dark)


@figure.register
def _(result: HeadScores, *, score: str = "previous_token", dark: bool = False) -> Figure:
    return figure(result.map(score), dark=dark)


def head_map(
    values: Tensor,
    *,
    title: str,
    unit: str,
    vmin: float | None = None,
    vmax: float | None = None,
    centred: bool = False,
    dark: bool = False,
) -> Figure:
    """A coloured cell per head, layers down, heads across; with its number up to 12 × 12 heads.

    values      (L, H); heads without a finite value are hatched, and a note says so
    title       drawn as plain text, in up to 3 lines
    unit        of the values, beside the colour bar
    vmin, vmax  what the ends of the colour scale stand for; the least and largest value where they are None
    centred     orange above 0, purple below, as far each way; instead of vmin and vmax

    Raises: ValueError for values that are not (L, H).
    """
    cells = _cells(values)
    L, H = cells.shape
    pitch, (width, height) = _pitch(L, H), _size(L, H)
    figure = Figure(figsize=(width, height))
    top = 1 - TOP / height
    axes = figure.add_axes((LEFT / width, top - L * pitch / height, H * pitch / width, L * pitch / height))
    if centred:
        vmax = max(float(np.abs(cells.compressed()).max(initial=0)), 1e-9)
        vmin = -vmax
    scale = {"cmap": DIVERGING if centred else MAP, **_limits(cells, vmin, vmax)}
    image = axes.imshow(cells, aspect="auto", interpolation="nearest", **scale)
    every = -(-max(L, H) // (2 * MAX_NUMBERED))  # of layers and heads, that has room for a label
    axes.set_xticks(range(0, H, every), [str(head) for head in range(0, H, every)], fontsize=8)
    axes.set_yticks(range(0, L, every), [f"layer {layer}" for layer in range(0, L, every)], fontsize=8)
    axes.tick_params(length=0, pad=2, labeltop=True, labelbottom=False)
    axes.set_xlabel("head", fontsize=8)
    axes.xaxis.set_label_position("top")
    axes.spines[:].set_visible(False)
    bar_height = max(L * pitch, MIN_HEIGHT - TOP - BOTTOM) / height
    bar = figure.add_axes(((LEFT + H * pitch + GAP) / width, top - bar_height, BAR / width, bar_height))
    figure.colorbar(image, cax=bar).set_label(plain(unit, height), parse_math=False, fontsize=8)
    bar.tick_params(labelsize=8)
    figure.text(0.12 / width, 1 - 0.08 / height, plain(title, width), parse_math=False, va="top", fontsize=10)
    if cells.mask.any():
        figure.text(LEFT / width, 0.08 / height, MISSING, va="bottom", fontsize=8)
    if dark:
        for_dark_pages(figure)
    _mark_cells(axes, image, cells, LINES if dark else "0.4")  # after the paper's colours, which a cell's ink is not
    return figure


def head_map_rows(values: Tensor) -> list[tuple[str, ...]]:
    """The map for those who read: a row per layer, "layer 0" and then the number of each head; "none" for no value."""
    cells = _cells(values)
    numbers = [[_number(value, cells) if np.isfinite(value) else "none" for value in row] for row in cells.data]
    return [(f"layer {layer}", *row) for layer, row in enumerate(numbers)]


def comparison_heatmaps(comparison: Comparison, layer: int, head: int, *, dark: bool = False) -> Figure:
    """One head in both traces, on one colour scale, and what the second has more (orange) or less (purple).

    Raises: LabError for a layer or head that does not exist.
    """
    base, other = comparison.base, comparison.other
    change = comparison.difference(layer, head).numpy()
    ahead = np.triu(np.ones_like(change, dtype=bool), 1)  # has no colour: the scale's middle means "the same"
    weights = [trace.attention(layer, head).numpy() for trace in (base, other)]
    side = heatmap_side(len(base.tokens))
    figure = Figure(figsize=(3 * side + 1.2, side + 0.7), layout="constrained")
    panels = figure.subplots(1, 3)
    for axes, name, trace, part in zip(panels, ("base", "other"), (base, other), weights):
        shared = heatmap(axes, part, trace.tokens, cmap=MAP, vmin=0, vmax=1)  # the first token's weight is 1
        axes.set_title(plain(f"{name}: {trace.name}", side), parse_math=False, fontsize=10)
    tokens = [one if one == two else f"{one} / {two}" for one, two in zip(base.tokens, other.tokens)]
    limit = float(np.abs(change).max()) or 1.0  # a scale needs a width, where nothing changed too
    moved = heatmap(panels[2], np.ma.array(change, mask=ahead), tokens, cmap=DIVERGING, vmin=-limit, vmax=limit)
    panels[2].set_title("other − base", fontsize=10)
    figure.colorbar(shared, ax=panels[:2], label="attention weight", shrink=0.8)
    figure.colorbar(moved, ax=panels[2], label=f"difference: {change.min():+z.3f} to {change.max():+z.3f}", shrink=0.8)
    distance = float(comparison.total_variation[layer, head])
    figure.suptitle(f"layer {layer}, head {head}: {DISTANCE.title} {distance:.3f} ({DISTANCE.unit})", fontsize=10)
    return for_dark_pages(figure) if dark else figure


@figure.register(Rollout)
def rollout_heatmap(rollout: Rollout, *, dark: bool = False) -> Figure:
    """Attention rollout: row i shows how much of token i comes, after all layers, from each token; and the caveat."""
    trace = rollout.trace
    side = heatmap_side(len(trace.tokens))
    figure = Figure(figsize=(side + 0.6, side + 0.6), layout="constrained")
    axes = figure.add_subplot()
    image = heatmap(axes, rollout.weights.numpy(), trace.tokens, cmap=MAP, vmin=0)
    axes.set_title(plain(f"attention rollout: {trace.name}", side), parse_math=False, fontsize=10)
    axes.set(xlabel="token that it comes from", ylabel="token after the last layer")
    figure.colorbar(image, ax=axes, label="share, 0 to 1", shrink=0.8)
    figure.supxlabel("\n".join(textwrap.wrap(ROLLOUT_CAVEAT, int(side / 0.07))), fontsize=8)
    return for_dark_pages(figure) if dark else figure


def plain(text: str, inches: float) -> str:
    """A text of a user's for `parse_math=False`, in up to 3 lines of a width: characters as `label` draws them."""
    drawn = "".join(label(character) for character in text).replace(r"\$", "$")
    return "\n".join(textwrap.wrap(drawn, max(12, int(inches / CHARACTER)), max_lines=MAX_LINES, placeholder="…"))


def _mark_cells(axes: Axes, image: AxesImage, cells: np.ma.MaskedArray, lines: str) -> None:
    """Numbers in ink that can be read on their cells, where there is room, and hatches where there is no number."""
    numbered = max(cells.shape) <= MAX_NUMBERED
    for (layer, head), missing in np.ndenumerate(cells.mask):
        if missing:
            place, style = (head - 0.5, layer - 0.5), {"edgecolor": lines, "linewidth": 0}
            axes.add_patch(Rectangle(place, 1, 1, fill=False, hatch="////", **style))
        elif numbered:
            value = float(cells[layer, head])
            ink = DARK_INK if luminance(image.to_rgba(value)) > CROSSOVER else LIGHT_INK
            axes.text(head, layer, _number(value, cells), color=ink, ha="center", va="center", fontsize=8)


def luminance(colour: tuple[float, ...]) -> float:
    """Relative luminance, 0 black to 1 white. Source: WCAG 2.1, definition of relative luminance."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _cells(values: Tensor) -> np.ma.MaskedArray:
    """(L, H) with what is not finite masked."""
    cells = np.asarray(values, dtype=float)
    if cells.ndim != 2 or not cells.size:
        raise ValueError(f"values of shape {cells.shape}; a map of heads needs (L, H)")
    return np.ma.array(cells, mask=~np.isfinite(cells))


def _number(value: float, cells: np.ma.MaskedArray) -> str:
    """A value to three digits of the map's largest, and never "-0.00"."""
    largest = np.abs(cells).max()
    return f"{value:z.{2 if largest < 9.995 else 1 if largest < 99.95 else 0}f}"


def _limits(cells: np.ma.MaskedArray, vmin: float | None, vmax: float | None) -> dict[str, float]:
    """The ends of the colour scale: what was asked for, else the values' own; never the same, never masked."""
    known = cells.compressed() if cells.count() else np.zeros(1)
    low, high = (known.min() if vmin is None else vmin), (known.max() if vmax is None else vmax)
    return {"vmin": float(low), "vmax": float(high if high > low else low + 1)}


def _pitch(L: int, H: int) -> float:
    """Inches from one cell to the next."""
    return NUMBERED if max(L, H) <= MAX_NUMBERED else PLAIN


def _size(L: int, H: int) -> tuple[float, float]:
    """Inches of a map's figure."""
    width, height = LEFT + H * _pitch(L, H) + RIGHT, TOP + L * _pitch(L, H) + BOTTOM
    return max(MIN_WIDTH, width), max(MIN_HEIGHT, height)

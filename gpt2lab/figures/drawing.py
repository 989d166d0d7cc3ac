"""What all figures share: colours, labels that matplotlib can draw, a square heatmap, figures as files and in pages."""

import base64
import html
from collections.abc import Callable, Sequence
from functools import singledispatch
from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.image import AxesImage
from matplotlib.text import Text

from gpt2lab.errors import LabError

RUN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito's
MAP = "viridis"  # perceptually uniform
MAX_LABEL = 20  # characters of a token
MAX_DRAWN = 2 * MAX_LABEL  # characters of it where some are drawn as their code points
MAX_LABELS = 48  # tokens that can be labelled legibly on a side
DPI = 144  # twice a screen's pixels, so that pictures stay sharp when enlarged
FORMATS = {"png": "image/png", "svg": "image/svg+xml"}
INK, LINES, PAPER = "#e4e4e7", "#a1a1aa", "#18181b"  # of figures for dark pages


@singledispatch
def figure(result, *, dark: bool = False, **options) -> Figure:
    """The figure of a result; some take options of their own. Raises: LabError for a result that has none."""
    raise LabError("a {type} has no picture; use html, csv, npz or json", type=type(result).__name__)


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

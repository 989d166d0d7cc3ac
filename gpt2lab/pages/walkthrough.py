"""The walkthrough of a block as a page: every formula with its numbers, as colours and as text."""

import base64
import html
import io

import matplotlib
import numpy as np
from PIL import Image

from gpt2lab.figures.heads import DIVERGING
from gpt2lab.figures.tables import table
from gpt2lab.inspection.walkthrough import WalkStep, Walkthrough
from gpt2lab.widgets.page import Page, document

MAX_TOKENS = 40  # of the tokens read, that are listed: those read most, and the token itself
WRITTEN = 8  # numbers of a long vector that are written out
STRIP = 26  # pixels: a strip's height
STYLE = """
.step { border-left: 3px solid var(--line); padding: 2px 0 10px 14px; margin: 0; }
.step h3 { margin: 6px 0 0; font-size: 1rem; } .formula { font: 14px ui-monospace, monospace; }
.strip { width: 100%; height: 26px; image-rendering: pixelated; border: 1px solid var(--line); display: block; }
.numbers, .soft { color: var(--soft); font-size: 13px; }
table { border-collapse: collapse; margin-top: 6px; } th, td { border: 1px solid var(--line); padding: 1px 10px; text-align: right; }
th:first-child, td:first-child { text-align: left; } .table { overflow-x: auto; } .bar { color: var(--soft); }
.text .me { outline: 2px solid #d55e00; border-radius: 3px; } .text { white-space: pre-wrap; }
"""
ATTENTION_STEPS = ("products", "scaled", "masked", "weights")


def walk_page(walk: Walkthrough, *, theme: str = "auto") -> Page:
    """Return the walkthrough page, from the embedding to the block's output and the prediction from there."""
    i = walk.position
    title = f"Token {i}, {walk.tokens[i]!r}, in layer {walk.layer}, head {walk.head} of {walk.name}"
    text = "".join(
        f'<span class="{"me" if at == i else ""}">{html.escape(token)}</span>' for at, token in enumerate(walk.tokens)
    )
    parts = [
        f"<h2>{html.escape(title)}</h2>",
        f'<p class="text">{text}</p>',
        '<p class="soft">Strips: one cell per number, purple below 0, orange above, the deepest the largest of the strip.</p>',
    ]
    for step in walk.steps:
        if step.name == ATTENTION_STEPS[0]:
            parts.append(_scores(walk))
        if step.name not in ATTENTION_STEPS:
            parts.append(_vector(walk, step))
    rows = [(token, f"{probability:.4f}") for token, probability in walk.predictions]
    parts.append(
        '<div class="step"><h3>If the model stopped here</h3><div class="formula">softmax(ln_f(x) W_U)</div>'
        f"{table(['next token', 'probability'], rows)}</div>"
    )
    return document(title, "".join(parts), style=STYLE, theme=theme, height=900)


def _vector(walk: Walkthrough, step: WalkStep) -> str:
    values = step.values.numpy()
    extra = f"; mean {walk.mean:.4f}, variance {walk.variance:.4f}" if step.name == "ln_1" else ""
    first = ", ".join(f"{value:.3f}" for value in values[:WRITTEN])
    return (
        f'<div class="step"><h3>{html.escape(step.title)}</h3><div class="formula">{html.escape(step.formula)}</div>'
        f'<img class="strip" alt="{len(values)} numbers" src="{_strip(values)}">'
        f'<div class="numbers">{len(values)} numbers ({step.over}), from {values.min():.3f} to {values.max():.3f}, length '
        f"{np.linalg.norm(values):.3f}{extra}: {first}{', …' if len(values) > WRITTEN else ''}</div></div>"
    )


def _scores(walk: Walkthrough) -> str:
    """The four steps from products to weights, as one table: a row per token that is read."""
    steps = [walk.step(name) for name in ATTENTION_STEPS]
    n = walk.position + 1  # tokens attended to; one masked later token is shown too
    most = steps[-1].values[:n].topk(min(MAX_TOKENS, n)).indices.tolist()
    ahead = {n} if n < len(walk.tokens) else set()
    shown = sorted({*most, walk.position} | ahead)
    rows = [(f"{at} {walk.tokens[at]}", *(_number(float(step.values[at])) for step in steps)) for at in shown]
    left = f'<div class="soft">The {len(most)} read most, of {n} tokens.</div>' if len(most) < n else ""
    head = ["token j", *(step.formula for step in steps)]
    titles = "; ".join(html.escape(step.title) for step in steps)
    return f'<div class="step"><h3>{titles}</h3>{table(head, rows)}{left}</div>'


def _number(value: float) -> str:
    return "−∞" if value == -np.inf else f"{value:.4f}"


def _strip(values: np.ndarray) -> str:
    """A PNG, as data, of one row of cells."""
    top = max(float(np.abs(values).max()), 1e-12)
    colours = matplotlib.colormaps[DIVERGING](values[None] / top / 2 + 0.5, bytes=True)[..., :3]
    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(colours)).save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"

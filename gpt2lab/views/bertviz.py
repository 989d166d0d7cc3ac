"""bertviz' head view of a trace, as an offline page.

bertviz draws; this module feeds it, takes its links to a CDN out and puts the two libraries it
needs in: d3 5 (from the package mpld3) and jQuery (from XStatic-jQuery).
Source: Vig, A Multiscale Visualization of Attention in the Transformer Model (2019).
"""

import json
from functools import cache
from importlib.metadata import distribution

from bertviz import head_view

from gpt2lab.errors import LabError
from gpt2lab.inspection.trace import Trace
from gpt2lab.views.page import Page, document, script_json

MAX_TOKENS = 48  # an SVG line per head and pair of tokens: past this the page takes seconds to draw
DECIMALS = 4  # 1/10,000 is finer than a line's opacity can show
ROW = 22.5  # pixels per token, bertviz' own BOXHEIGHT
REQUIRE = '<script src="https://cdnjs.cloudflare.com/ajax/libs/require.js/2.3.6/require.min.js"></script>'
SHIM = """window.requirejs = window.require = (names, draw) => draw(window.jQuery, window.d3);
window.require.config = () => {};"""


def head_view_page(trace: Trace, *, layer: int = 0, head: int | None = None, theme: str = "auto") -> Page:
    """Lines from token to token, a colour per head; the layer can be changed in the page.

    layer, head  shown first; None for all heads of the layer

    Raises: LabError past 48 tokens, where the drawing would freeze the browser.
    """
    n = len(trace.tokens)
    if n > MAX_TOKENS:
        raise LabError(f"bertviz' head view of {n} tokens would freeze the browser; shorten the text to {MAX_TOKENS}")
    shown = trace.heads(layer, head)
    weights = [
        trace.attention(i).double().round(decimals=DECIMALS)[None] for i in range(trace.n_layers)
    ]  # (1, H, T, T)
    view = head_view(
        weights, list(trace.tokens), layer=layer, heads=shown, prettify_tokens=False, html_action="return"
    ).data
    body = f"{_script(_library('mpld3', 'd3.v5.min.js'))}{_script(_library('XStatic-jQuery', 'jquery.min.js'))}"
    body += _script(SHIM) + _inert(view)
    style = "svg text { fill: var(--ink); } select { font: inherit; }"
    return document("Attention, bertviz head view", body, style=style, theme=theme, height=int(n * ROW) + 110)


def _inert(view: str) -> str:
    """bertviz' markup with the link to its CDN gone, and its data, which stands there twice, once and escaped.

    Raises: RuntimeError where the markup is not the one this was written for.
    """
    before, marker, after = view.partition("const params = ")
    try:
        params, end = json.JSONDecoder().raw_decode(after)
    except ValueError as error:
        raise RuntimeError("bertviz' head view has changed: no data after 'const params = '") from error
    comment, newline, script = after[end:].partition("\n")
    expected = before.count(REQUIRE) == 1 and comment.startswith("; // HACK:") and "params['attention']" in script
    if not (marker and newline and expected) or "const params = " in script:
        raise RuntimeError("bertviz' head view has changed; gpt2lab was written for bertviz 1.4.1")
    return f"{before.replace(REQUIRE, '')}{marker}{script_json(params)};\n{script}"


@cache
def _library(package: str, file: str) -> str:
    """A script that a Python package ships."""
    paths = [path for path in distribution(package).files or () if path.name == file]
    if len(paths) != 1:
        raise RuntimeError(
            f"the package {package} ships {len(paths)} files {file}; install it as requirements.txt says"
        )
    return paths[0].locate().read_text(encoding="utf-8")


def _script(code: str) -> str:
    return f"<script>{code}</script>\n"

"""bertviz' three views of a trace, as offline pages: head, model and neuron view.

bertviz draws; this module says what, leaves out what would freeze a browser, takes the links to a CDN
out and puts the two libraries in that they led to: d3 5 (from the package mpld3) and jQuery (from
XStatic-jQuery). No model is run.
Source: Vig, A Multiscale Visualization of Attention in the Transformer Model (2019).
"""

import html
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import distribution
from types import SimpleNamespace

import torch
from bertviz import head_view, model_view
from bertviz.neuron_view import show as neuron_view

from gpt2lab.errors import LabError, Message, choice
from gpt2lab.inspection.trace import Trace
from gpt2lab.widgets.page import Page, document, script_json

MAX_TOKENS = 48  # past this a layer's lines take seconds to draw, and overlap so that none can be followed
MAX_LINES = 100_000  # SVG lines drawn at once: some 16 µs each, 2 seconds on a slow computer
MAX_NUMBERS = 600_000  # in the data of a page: about 4 MB, which a browser reads without a pause
LEFT_OUT = "; the rest is left out so that the browser does not freeze"
DECIMALS = 4  # 1/10,000 is finer than a line's opacity can show

REQUIRE = '<script src="https://cdnjs.cloudflare.com/ajax/libs/require.js/2.3.6/require.min.js"></script>'
LIBRARIES = {"mpld3": "d3.v5.min.js", "XStatic-jQuery": "jquery.min.js"}
SHIM = """window.requirejs = window.require = (names, draw) => draw(window.jQuery, window.d3);
window.require.config = () => {};"""
# bertviz draws in the colours of one mode: a page for both is redrawn when the reader's system changes
AUTO = """{name}.display_mode = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => location.reload());
"""
# Before the data, and right after it, where its line holds it once more, and not escaped.
CONST, HACK = "const params = ", "; // HACK:"
AROUND = {"head": (CONST, HACK), "model": (CONST, HACK), "neuron": ("window.bertviz_params = ", "\n</script>")}
# What the script after the data must hold once: where it takes the data, and the numbers of layers
# and heads, which the neuron view counts from 0 even where the first ones are left out.
USE = "params['attention']"
OPTION = '{}Select.append($("<option />").val(i).text({}));'
NUMBERED = {OPTION.format(x, "i"): OPTION.format(x, f"params.include_{x}s[i]") for x in ("layer", "head")}
REPLACED = {"head": {USE: USE}, "model": {USE: USE}, "neuron": {USE: USE} | NUMBERED}
# half the strength of what bertviz lays under a token that the mouse is on: its text stays readable
STYLE = """
svg text { fill: var(--ink); } select { font: inherit; } #vis { overflow-x: auto; }
[id^=bertviz] { background: none !important; }
"""
STYLES = {
    "head": ".background { fill: var(--line); } .attentionBoxes { opacity: 0.5; }",
    "model": "",
    "neuron": ".highlight { fill-opacity: 0.5; } #vis svg { min-width: 1010px; }",
}


@dataclass(frozen=True)
class Plan:
    """What the page of a view holds.

    layers, heads      those in the page, ascending
    n_layers, n_heads  of the model
    cut                whether some of what was asked for is left out
    bytes              of the page, to within 2 %: its libraries and data, without what stands between them
    """

    view: str
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    n_layers: int
    n_heads: int
    cut: bool
    bytes: int

    @property
    def note(self) -> Message:
        """In words: "model view of layers 0-3 of 12, heads 0-5 of 12, about 3.1 MB; the rest is left out so …"."""
        size = {"contents": self.contents, "size": self.bytes / 1e6}
        if not self.cut:
            return Message("{contents}, about {size:.1f} MB.", **size)
        return Message(
            "{contents}, about {size:.1f} MB; the rest is left out so that the browser does not freeze.", **size
        )

    @property
    def contents(self) -> Message:
        """The view, its layers and heads. Example: "head view of layers 0-11 of 12, heads 0-11 of 12" """
        layers, heads = _span(self.layers), _span(self.heads)
        return Message(
            "{view} view of {layers} of {n_layers}, {heads} of {n_heads}",
            view=self.view,
            layers=Message("layer {layer}", layer=layers)
            if len(self.layers) == 1
            else Message("layers {layers}", layers=layers),
            heads=Message("head {head}", head=heads) if len(self.heads) == 1 else Message("heads {heads}", heads=heads),
            n_layers=self.n_layers,
            n_heads=self.n_heads,
        )


def plan(trace: Trace, view: str, **options) -> Plan:
    """What the page of a view will hold, and its size, before it is built.

    options  those of the view's function, less its theme

    Raises: LabError for an unknown view, for a layer or head that does not exist, for none at all, and
    past MAX_TOKENS tokens, where no cut helps.
    """
    choice("view", view, VIEWS)
    n = len(trace.tokens)
    if n > MAX_TOKENS:
        raise LabError(
            "bertviz' {view} view of {n} tokens would freeze the browser; shorten the text to {max_tokens}",
            view=view,
            n=n,
            max_tokens=MAX_TOKENS,
        )
    layers, heads, cut = PARTS[view](trace, **options)
    scripts = [*_libraries(), _library("bertviz", f"{view}_view.js"), script_json(_data(trace, view, layers, heads))]
    size = sum(len(script.encode()) for script in scripts)
    return Plan(view, tuple(layers), tuple(heads), trace.n_layers, trace.n_heads, cut, size)


def head_view_page(trace: Trace, *, layer: int = 0, head: int | None = None, theme: str = "auto") -> Page:
    """Lines from token to token, a colour per head; layer and heads can be changed in the page.

    layer, head  shown first; None for all heads of the layer

    Raises: LabError for a layer or head that does not exist, and past 48 tokens.
    """
    shown = plan(trace, "head", layer=layer, head=head)
    on = [i for i, one in enumerate(shown.heads) if head in (None, one)]
    first = {"layer": int(layer), "heads": on, "include_layers": shown.layers}
    return _page(trace, shown, first, theme, height=22.5 * len(trace.tokens) + 110)


def model_view_page(
    trace: Trace, *, layers: Iterable[int] | None = None, heads: Iterable[int] | None = None, theme: str = "auto"
) -> Page:
    """A thumbnail of lines per layer and head; a click shows one large.

    layers, heads  which; None for all. Where they are more than a browser draws, the first ones

    Raises: LabError for a layer or head that does not exist, for none at all, and past 48 tokens.
    """
    shown, n = plan(trace, "model", layers=layers, heads=heads), len(trace.tokens)
    parts = {"include_layers": shown.layers, "include_heads": shown.heads, "total_heads": shown.n_heads}
    thumbnails, large = len(shown.layers) * (84 / shown.n_heads * n + 10) + 38, 18 * n + 55
    return _page(trace, shown, parts | _mode(theme), theme, height=max(thumbnails, large) + 70)


def neuron_view_page(trace: Trace, *, layer: int = 0, head: int = 0, theme: str = "auto") -> Page:
    """How q and k make the weights of one head, neuron by neuron; layer and head can be changed in the page.

    The page divides q·k by √K. Where the model scales otherwise, q is multiplied by the difference, so
    that the softmax of what is shown is the weights of the trace.

    Raises: LabError for a layer or head that does not exist, and past 48 tokens.
    """
    shown = plan(trace, "neuron", layer=layer, head=head)
    first = {"layer": shown.layers.index(layer), "head": shown.heads.index(head), "bidirectional": False}
    parts = {"include_layers": shown.layers, "include_heads": shown.heads}
    return _page(trace, shown, first | parts | _mode(theme), theme, height=26 * len(trace.tokens) + 210)


VIEWS: dict[str, Callable[..., Page]] = {"head": head_view_page, "model": model_view_page, "neuron": neuron_view_page}


def _page(trace: Trace, shown: Plan, parameters: dict, theme: str, *, height: float) -> Page:
    """The page of a view; its height, where nothing is left out, in pixels."""
    view, data = shown.view, _data(trace, shown.view, shown.layers, shown.heads)
    filter, attention = ("all", {"all": data}) if view == "neuron" else ("0", [data])
    parameters = {"attention": attention, "default_filter": filter} | parameters
    note = f"<p>{html.escape(shown.contents.capitalize() + LEFT_OUT)}.</p>\n" if shown.cut else ""
    scripts = "".join(f"<script>{code}</script>\n" for code in [*_libraries(), SHIM])
    body = note + scripts + _filled(_markup(view), view, parameters, auto=theme == "auto")
    title, height = f"Attention, bertviz {view} view", int(height) + (80 if shown.cut else 0)
    return document(title, body, style=STYLE + STYLES[view], theme=theme, height=height)


def _mode(theme: str) -> dict:
    return {"display_mode": "dark" if theme == "dark" else "light"}


def _data(trace: Trace, view: str, layers, heads) -> dict:
    """Tokens and attention as bertviz takes them; lists of layers, heads, tokens, numbers."""
    weights = [trace.attention(one)[list(heads)] for one in layers]
    data = {"left_text": trace.tokens, "right_text": trace.tokens, "attn": _numbers(torch.stack(weights))}
    if view == "model":  # what lies ahead has weight 0: rows that end before it save half of the lines
        data["attn"] = [[[row[: i + 1] for i, row in enumerate(rows)] for rows in layer] for layer in data["attn"]]
    if view == "neuron":
        q, k = (x[list(layers)][:, list(heads)].double() for x in (trace.q, trace.k))  # (layers, heads, T, K)
        scaling = torch.tensor(trace.scaling, dtype=torch.float64)[list(layers), None, None, None]
        data |= {"queries": _numbers(q * scaling * q.shape[-1] ** 0.5), "keys": _numbers(k)}
    return data


def _numbers(tensor: torch.Tensor) -> list:
    return (tensor.double().round(decimals=DECIMALS) + 0.0).tolist()  # + 0.0 makes -0.0 shorter


def _markup(view: str) -> str:
    """What bertviz makes of a text of one token: its markup and script, around data to be replaced."""
    one = torch.ones(1, 1, 1, 1)
    if view != "neuron":
        return {"head": head_view, "model": model_view}[view]([one], ["x"], html_action="return").data
    model = torch.nn.Identity()  # for its eval(); what bertviz reads is the last of its outputs
    model.forward = lambda ids: [[{"attn": one, "queries": one, "keys": one}]]
    tokenizer = SimpleNamespace(tokenize=list, convert_tokens_to_ids=lambda tokens: [0])
    return neuron_view(model, "gpt2", tokenizer, "x", html_action="return").data


def _filled(markup: str, view: str, parameters: dict, *, auto: bool) -> str:
    """bertviz' markup with parameters of ours, which no text in them can leave, and without the link to a CDN.

    Raises: RuntimeError where the markup is not the one this was written for.
    """
    marker, follows = AROUND[view]
    before, _, after = markup.partition(marker)
    try:
        own, end = json.JSONDecoder().raw_decode(after)
    except ValueError as error:
        raise RuntimeError(f"bertviz' {view} view has changed: no data after {marker!r}") from error
    _, newline, script = after[end:].partition("\n")
    known = before.count(REQUIRE) == 1 and after.startswith(follows, end) and newline and marker not in script
    once = all(script.count(old) == 1 for old in REPLACED[view])
    if not known or not once or own.keys() - parameters.keys() != {"root_div_id"}:
        raise RuntimeError(f"bertviz' {view} view has changed; gpt2lab was written for bertviz 1.4.1")
    for old, new in REPLACED[view].items():
        script = script.replace(old, new)
    mode = AUTO.format(name=marker.split()[-2]) if auto and "display_mode" in parameters else ""
    return f"{before.replace(REQUIRE, '')}{marker}{script_json(own | parameters)};\n{mode}{script}"


def _libraries() -> list[str]:
    return [_library(package, file) for package, file in LIBRARIES.items()]


@cache
def _library(package: str, file: str) -> str:
    """A script that a Python package ships."""
    paths = [path for path in distribution(package).files or () if path.name == file]
    if len(paths) != 1:
        raise RuntimeError(
            f"the package {package} ships {len(paths)} files {file}; install it as requirements.txt says"
        )
    return paths[0].read_text(encoding="utf-8")


def _head_parts(trace: Trace, layer: int = 0, head: int | None = None) -> tuple[list[int], list[int], bool]:
    """Layers, heads, and whether they are cut. All heads of one layer are drawn at a time."""
    trace.heads(layer, head)
    pairs = len(trace.tokens) ** 2
    return _windows(trace, layer, head or 0, MAX_NUMBERS // pairs, MAX_LINES // pairs)


def _model_parts(trace: Trace, layers=None, heads=None) -> tuple[list[int], list[int], bool]:
    """Layers, heads, and whether they are cut: to about the same share of both. All are drawn at a time."""
    layers = _chosen("layer", layers, trace.n_layers, trace.heads)
    heads = _chosen("head", heads, trace.n_heads, partial(trace.heads, 0))
    n = len(trace.tokens)
    most = MAX_LINES // (n * (n + 1) // 2)
    share = min(1.0, (most / (len(layers) * len(heads))) ** 0.5)
    fewer = heads[: min(most, max(1, int(len(heads) * share)))]
    kept = layers[: most // len(fewer)]
    return kept, fewer, len(kept) * len(fewer) < len(layers) * len(heads)


def _neuron_parts(trace: Trace, layer: int = 0, head: int = 0) -> tuple[list[int], list[int], bool]:
    """Layers, heads, and whether they are cut. One head is drawn at a time."""
    trace.heads(layer, head)
    if head is None:
        raise LabError("head None is none to show; use a whole number from 0 to {n_heads}", n_heads=trace.n_heads - 1)
    n = len(trace.tokens)
    most = MAX_NUMBERS // (n * n + 2 * n * trace.q.shape[-1])
    return _windows(trace, layer, head, most, most)


PARTS = {"head": _head_parts, "model": _model_parts, "neuron": _neuron_parts}


def _windows(trace: Trace, layer: int, head: int, most: int, most_heads: int) -> tuple[list[int], list[int], bool]:
    """Heads around `head`, then layers around `layer`: at most `most` heads in all, and `most_heads` of a layer."""
    heads = _window(trace.n_heads, min(most, most_heads), head)
    layers = _window(trace.n_layers, most // len(heads), layer)
    return layers, heads, len(layers) * len(heads) < trace.n_layers * trace.n_heads


def _window(total: int, length: int, around: int) -> list[int]:
    """`length` of the numbers below `total`, or one if it is less, with `around` in their middle if possible."""
    length = min(total, max(1, length))
    start = min(max(0, around - length // 2), total - length)
    return list(range(start, start + length))


def _chosen(name: str, numbers: Iterable[int] | None, total: int, check: Callable) -> list[int]:
    """The layers or heads asked for, ascending; None for all. Raises: LabError for none, and what `check` raises."""
    if numbers is None:
        return list(range(total))
    numbers = list(numbers)
    for one in numbers:
        check(one)
    if not numbers:
        raise LabError(
            "no {name} is selected; give whole numbers from 0 to {total}, or None for all",
            name=name,
            total=total - 1,
        )
    return sorted(set(map(int, numbers)))


def _span(numbers: tuple[int, ...]) -> str:
    """Example: (0, 1, 2) -> "0-2" """
    first, last = numbers[0], numbers[-1]
    together = last - first + 1 == len(numbers) > 1
    return f"{first}-{last}" if together else ", ".join(map(str, numbers))

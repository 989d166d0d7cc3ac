"""The attention explorer: every head of a trace, or of two, in one offline page that draws on a canvas.

`explorer.html` is the page; this module packs what it shows. A weight w is one byte, round(255·√w):
small weights, of which there are most, are kept finest; of long texts it is round(127·√w). Only what
is not ahead of a token is kept, and the whole is deflated: 12 × 12 heads at 128 tokens take about a
megabyte, a layer of 12 heads at 1,024 tokens five at most.
"""

import base64
import zlib
from functools import cache
from importlib.resources import files

import matplotlib
import numpy as np

from gpt2lab.errors import LabError
from gpt2lab.figures.drawing import MAP
from gpt2lab.figures.heads import DIVERGING
from gpt2lab.inspection.compare import Comparison
from gpt2lab.inspection.trace import Trace
from gpt2lab.widgets.page import Page, document, script_json

MAX_WEIGHTS = 8_000_000  # in a page: a layer of 12 heads at 1,024 tokens has 6.3 million; one layer is always there
LONG = 512  # tokens from which a weight has 128 levels and not 256: half a megabyte less per layer
PACKED = 1_000_000  # bytes that a page's data may take before q and k of more heads than the first are left out
# Twelve colours that are distinguishable with colour blindness. Source: Martin Krzywinski, Designing for Color Blindness, 12-colour palette
COLOURS = ("#9f0162", "#009f81", "#ff5aaf", "#00fccf", "#8400cd", "#008df9", "#00c2f9", "#ffb2fd", "#a40122", "#e20134", "#ff6e3a", "#ffc33b")  # fmt: skip
CHANGES = ("#8073ac", "#e08214")  # less, more: of the diverging map, as strong on light paper as on dark


def explorer_page(
    seen: Trace | Comparison,
    *,
    layer: int = 0,
    head: int | None = None,
    layers: list[int] | None = None,
    theme: str = "auto",
) -> Page:
    """Thumbnails of all heads, and one or several large: as a heatmap, as lines, as the coloured text.

    seen         of a comparison, both traces and the second less the first
    layer, head  held when the page opens; None for all heads of the layer
    layers       in the page; None for all, or, of long texts, for `layer` and those after it that fit

    Stored weights are within a bound that the page states, the largest error of any in it; for the
    heads whose q and k the page carries, it computes the weight itself in double precision.

    Raises: LabError for layers or heads that do not exist, for more layers than fit, and for weights that
    are not numbers.
    """
    trace, *others = traces = [seen] if isinstance(seen, Trace) else [seen.base, seen.other]
    heads = trace.heads(layer, head)
    layers = shown_layers(trace, layer, layers, sides=len(traces))
    levels = 127 if len(trace.tokens) >= LONG else 255
    codes, error = pack(traces, layers, levels)
    body = codes.tobytes()
    carried = carried_heads(traces, layers, layer, heads[0], room=PACKED - len(zlib.compress(body, 6)))
    vectors = [np.stack([traces[s].q[a, h].numpy(), traces[s].k[a, h].numpy()]).astype("<f4") for s, a, h in carried]
    starts = np.cumsum([codes.size, *(part.nbytes for part in vectors)]).tolist()
    data = {
        "sides": [side_data(one, name, layers) for one, name in zip(traces, side_names(seen))],
        "tokens": len(trace.tokens),
        "layers": layers,
        "all_layers": trace.n_layers,
        "heads": trace.n_heads,
        "layer": layer,
        "chosen": heads,
        "levels": levels,
        "error": error,
        "most_changed": most_changed(seen, layers) if others else 0,
        "vectors": [{"side": s, "layer": a, "head": h, "at": at} for (s, a, h), at in zip(carried, starts)],
        "carried": carried_in_words(carried, len(traces) * len(layers) * trace.n_heads),
        "colours": COLOURS,
        "changes": CHANGES,
        "sequential": colour_table(MAP),
        "diverging": colour_table(DIVERGING),
    }
    packed = zlib.compress(b"".join([body, *(part.tobytes() for part in vectors)]), 6)
    parts = [
        f'<script type="application/json" id="explorer-data">{script_json(data)}</script>',
        f'<script type="text/plain" id="explorer-weights">{base64.b64encode(packed).decode()}</script>',
        files("gpt2lab.pages").joinpath("explorer.html").read_text(encoding="utf-8"),
    ]
    return document("Attention explorer", "\n".join(parts), theme=theme, height=900)


def side_data(trace: Trace, name: str, layers: list[int]) -> dict:
    """What a page knows of a trace: name, tokens and extent; width K of its heads, and what q·k is multiplied by."""
    K = trace.q.shape[-1]
    usual = np.allclose(trace.scaling, K**-0.5)
    return {
        "name": name,
        "tokens": trace.tokens,
        "note": extent(trace),
        "width": K,
        "scaling": [trace.scaling[layer] for layer in layers],
        "rule": f"1/√{K}" if usual else "as the model's configuration says",
    }


def shown_layers(trace: Trace, layer: int, layers: list[int] | None, *, sides: int = 1) -> list[int]:
    """The layers of a page, in order: those asked for, or `layer` and, as far as they fit, the ones around it.

    Raises: LabError for none, for one that does not exist, for such without the `layer` that is shown
    first, and for more than fit.
    """
    n = len(trace.tokens)
    each = sides * trace.n_heads * n * (n + 1) // 2  # weights of a layer
    fitting = max(1, MAX_WEIGHTS // each)
    if layers is None:
        first = max(0, min(layer, trace.n_layers - fitting))
        return list(range(first, min(first + fitting, trace.n_layers)))
    for one in layers:
        trace.heads(one)  # refuses a layer that does not exist
    found = sorted(set(layers))
    if layer not in found:
        raise LabError(
            "layer {layer} is not among layers {found}; name it too, or show one of them first",
            layer=layer,
            found=found,
        )
    if len(found) > fitting:
        raise LabError(
            "{count} layers of {n:,} tokens have {n_weights:,} weights; a page can hold {max_weights:,}: "
            "give at most {fitting} layers, or shorten the text",
            count=len(found),
            n=n,
            n_weights=len(found) * each,
            max_weights=MAX_WEIGHTS,
            fitting=fitting,
        )
    return found


def pack(traces: list[Trace], layers: list[int], levels: int) -> tuple[np.ndarray, float]:
    """One byte per weight, (sides, layers, H, T(T+1)/2), and the largest error of a weight that is read back.

    Raises: LabError for weights that are not numbers.
    """
    T = len(traces[0].tokens)
    rows, columns = np.tril_indices(T)
    starts = np.arange(T) * np.arange(1, T + 1) // 2
    codes = np.empty((len(traces), len(layers), traces[0].n_heads, rows.size), np.uint8)
    error = 0.0
    for side, trace in enumerate(traces):
        for i, layer in enumerate(layers):
            for head in range(trace.n_heads):
                weights = trace.attention(layer, head).numpy()[rows, columns]
                if not np.isfinite(weights).all():
                    raise LabError(
                        "layer {layer}, head {head} of {name} has weights that are not numbers (NaN); its training has "
                        "diverged: use an earlier checkpoint",
                        layer=layer,
                        head=head,
                        name=trace.name,
                    )
                codes[side, i, head] = np.round(levels * np.sqrt(weights))
                read = (codes[side, i, head] / np.float32(levels)) ** 2
                read /= np.add.reduceat(read, starts)[rows]
                error = max(error, float(np.abs(read - weights).max()))
    return codes, error


def carried_heads(traces, layers: list[int], layer: int, head: int, *, room: int) -> list[tuple[int, int, int]]:
    """(side, layer, head) of the heads whose q and k a page carries: the first one shown, and as many as have room."""
    heads = range(traces[0].n_heads)
    order = sorted(
        ((a, h) for a in layers for h in heads), key=lambda place: (place != (layer, head), place[0] != layer, place)
    )
    each = sum(2 * 4 * len(trace.tokens) * trace.q.shape[-1] for trace in traces)  # bytes
    return [(side, a, h) for a, h in order[: max(1, room // each)] for side in range(len(traces))]


def carried_in_words(carried: list[tuple[int, int, int]], total: int) -> str:
    """Which heads have q and k in the page."""
    if len(carried) == total:
        return "all its heads"
    places = list(dict.fromkeys(f"layer {a} head {h}" for _, a, h in carried))
    return ", ".join(places[:6]) + (f" and {len(places) - 6} more" if len(places) > 6 else "")


def side_names(seen: Trace | Comparison) -> list[str]:
    """A name for each side; where both have the same name, by their place."""
    if isinstance(seen, Trace):
        return [seen.name]
    names = [seen.base.name, seen.other.name]
    kind = "model" if seen.same_text else "text"
    return names if names[0] != names[1] else [f"first {kind}", f"second {kind}"]


def extent(trace: Trace) -> str:
    """What part of its text a trace is of, in words; "" for all of it."""
    n = len(trace.tokens)
    return (
        f"the first {n:,} of {n + trace.left_out:,} tokens; the rest does not fit the model" if trace.left_out else ""
    )


def most_changed(comparison, layers: list[int]) -> float:
    """The largest difference of any weight."""
    return max(comparison.difference(layer).abs().max().item() for layer in layers)


@cache
def colour_table(name: str) -> list[list[int]]:
    """256 colours of a matplotlib map as [red, green, blue]."""
    return matplotlib.colormaps[name](np.arange(256), bytes=True)[:, :3].tolist()

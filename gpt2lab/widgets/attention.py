"""Attention weights of one trace or of two: as a heatmap, as lines, as coloured text.

A weight w is packed as one byte, round(255·√w): small weights, of which there are most, are kept finest; of long texts
it is round(127·√w). Only what is not ahead of a token is packed, and the whole is deflated: 12 × 12 heads at 128 tokens
take about a megabyte, a layer of 12 heads at 1,024 tokens five at most.
"""

import base64
import zlib
from collections.abc import Sequence

import numpy as np

from gpt2lab.errors import LabError, Message, choice, whole_number
from gpt2lab.inspection.attention import Attention as Weights
from gpt2lab.inspection.compare import Comparison
from gpt2lab.inspection.trace import Trace
from gpt2lab.model.lab import Lab
from gpt2lab.widgets.base import Answer, Selection, Widget
from gpt2lab.widgets.data import side_of

MAX_WEIGHTS = 8_000_000  # in a page: a layer of 12 heads at 1,024 tokens has 6.3 million; one layer is always there
LONG = 512  # tokens from which a weight has 128 levels and not 256: half a megabyte less per layer
PACKED = 1_000_000  # bytes that the data may take before q and k of more heads than the first are left out


class Attention(Widget):
    """Who attends to whom in the selected head, or in several heads together, with the weight of any pair of tokens.

    seen    of a comparison, both traces and the second less the first
    layers  that are sent at once; None for those around the selected one that fit. A notebook sends the others when
            they are selected
    """

    module = "attention"

    def __init__(
        self, seen: Trace | Comparison, selection: Selection | None = None, *, layers: Sequence[int] | None = None
    ) -> None:
        chosen = selection or Selection()
        super().__init__(
            Weights(seen, chosen.layer, chosen.head),
            attention_data(seen, chosen.layer, chosen.head, layers),
            selection,
            title=Weights(seen).title,
            answer=answer_for(seen),
        )


def traces_of(seen: Trace | Comparison) -> list[Trace]:
    """One, or the two that are compared."""
    return [seen] if isinstance(seen, Trace) else [seen.base, seen.other]


def attention_data(
    seen: Trace | Comparison, layer: int = 0, head: int = 0, layers: Sequence[int] | None = None
) -> dict:
    """The data of a view of attention: a side for each trace, with its weights."""
    traces = traces_of(seen)
    parts = attention_part(traces, layers, layer=layer, head=head)
    sides = [side_of(trace, name=name, attention=part) for trace, name, part in zip(traces, side_names(seen), parts)]
    return {"sides": sides}


def side_names(seen: Trace | Comparison) -> list[str]:
    """A name for each side; where both have the same name, by their place."""
    if isinstance(seen, Trace):
        return [seen.name]
    names = [seen.base.name, seen.other.name]
    kind = "model" if seen.same_text else "text"
    return names if names[0] != names[1] else [f"first {kind}", f"second {kind}"]


def attention_part(
    traces: Sequence[Trace], layers: Sequence[int] | None = None, *, layer: int = 0, head: int = 0, room: int = PACKED
) -> list[dict]:
    """The `attention` part of each side.

    layers       that are packed; None for `layer` and those around it that fit
    layer, head  whose q and k are packed first
    room         bytes; q and k of more heads than the first are packed as far as all weights and they take no more

    returns  {layers, levels, bound, weights, places, vectors, width, scaling, rule} of each trace:
             weights         a byte per weight, (layers, H, T(T+1)/2), deflated, in base64
             levels, bound   what a weight of 1 is stored as; the largest error of a weight that is read back
             places          [layer, head] whose q and k are in vectors: float32 (places, 2, T, K), deflated, in base64
             width, scaling  K, and what q·k is multiplied by in each layer of the model; rule says how that is chosen

    Raises: LabError for layers or heads that do not exist, more layers than fit, and weights that are not numbers.
    """
    traces[0].heads(layer, head)
    sent = [sent_layers(trace, layer, layers, sides=len(traces)) for trace in traces]
    parts = [_packed(trace, these) for trace, these in zip(traces, sent)]
    left = room - sum(len(part["weights"]) * 3 // 4 for part in parts)
    carried = carried_heads(traces, sent[0], layer, head, room=left)
    for part, trace in zip(parts, traces):
        part |= _vectors(trace, [place for place in carried if place[0] < trace.n_layers and place[1] < trace.n_heads])
    return parts


def answer_attention(lab: Lab | None, seen: Trace, options: dict) -> dict:
    """The weights of a layer that was not sent, {layer}, as in `attention_part`. Raises: LabError for no such layer."""
    layer = whole_number("layer", options.get("layer"), 0, seen.n_layers - 1)
    return _packed(seen, [layer])


def answer_qk(lab: Lab | None, seen: Trace, options: dict) -> dict:
    """q and k of a head, {layer, head}: places and vectors as in `attention_part`. Raises: LabError for no such head."""
    layer = whole_number("layer", options.get("layer"), 0, seen.n_layers - 1)
    head = whole_number("head", options.get("head"), 0, seen.n_heads - 1)
    return _vectors(seen, [(layer, head)])


ANSWERS = {"attention": answer_attention, "qk": answer_qk}


def answer_for(seen: Trace | Comparison) -> Answer:
    """What answers the views of a trace or of two: weights of a layer, q and k of a head."""

    def answer(kind: str, options: dict) -> dict:
        of_side = ANSWERS[choice("kind", kind, ANSWERS)]
        return {"sides": [of_side(None, trace, options) for trace in traces_of(seen)]}

    return answer


def sent_layers(trace: Trace, layer: int, layers: Sequence[int] | None, *, sides: int = 1) -> list[int]:
    """The layers that are packed, in order: those asked for, or `layer` and, as far as they fit, the ones around it.

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


def pack(trace: Trace, layers: Sequence[int], levels: int) -> tuple[np.ndarray, float]:
    """One byte per weight, (layers, H, T(T+1)/2), and the largest error of a weight that is read back.

    Raises: LabError for weights that are not numbers.
    """
    T = len(trace.tokens)
    rows, columns = np.tril_indices(T)
    starts = np.arange(T) * np.arange(1, T + 1) // 2
    codes = np.empty((len(layers), trace.n_heads, rows.size), np.uint8)
    error = 0.0
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
            codes[i, head] = np.round(levels * np.sqrt(weights))
            read = (codes[i, head] / np.float32(levels)) ** 2
            read /= np.add.reduceat(read, starts)[rows]
            error = max(error, float(np.abs(read - weights).max()))
    return codes, error


def carried_heads(
    traces: Sequence[Trace], layers: Sequence[int], layer: int, head: int, *, room: int
) -> list[tuple[int, int]]:
    """(layer, head) whose q and k are packed: the first one shown, and as many as have room."""
    heads = range(traces[0].n_heads)
    order = sorted(
        ((a, h) for a in layers for h in heads), key=lambda place: (place != (layer, head), place[0] != layer, place)
    )
    each = sum(2 * 4 * len(trace.tokens) * trace.q.shape[-1] for trace in traces)  # bytes
    return order[: max(1, room // each)]


def _packed(trace: Trace, layers: Sequence[int]) -> dict:
    levels = 127 if len(trace.tokens) >= LONG else 255
    codes, error = pack(trace, layers, levels)
    return {"layers": list(layers), "levels": levels, "bound": error, "weights": _deflated(codes)}


def _vectors(trace: Trace, places: Sequence[tuple[int, int]]) -> dict:
    K = trace.q.shape[-1]
    values = [np.stack([trace.q[place].numpy(), trace.k[place].numpy()]).astype("<f4") for place in places]
    return {
        "places": [list(place) for place in places],
        "vectors": _deflated(np.stack(values)) if values else _deflated(np.empty(0, "<f4")),
        "width": K,
        "scaling": list(trace.scaling),
        "rule": f"1/√{K}" if np.allclose(trace.scaling, K**-0.5) else Message("as the model's configuration says"),
    }


def _deflated(values: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(values.tobytes(), 6)).decode()

"""Attention weights as files: pictures, a page, a table, arrays. One function per format, one table of them."""

import io
from pathlib import Path

import numpy as np
import torch

from gpt2lab.errors import LabError
from gpt2lab.inspection.trace import Trace
from gpt2lab.views.bertviz import head_view_page
from gpt2lab.views.figures import attention_grid, attention_heatmap, figure_bytes
from gpt2lab.views.tables import csv_bytes

MAX_ROWS = 5_000_000  # of a CSV file: 200 MB, and five times what a spreadsheet opens


def attention_file(trace: Trace, format: str, *, layer: int | None = None, head: int | None = None) -> bytes:
    """Attention in one of FORMATS: of all heads, of a layer, or of one head.

    Raises: LabError for an unknown format, for a head without its layer, for parts that do not exist,
    and for a "csv" of more than MAX_ROWS weights.
    """
    if format not in FORMATS:
        raise LabError(f"format {format!r} is unknown; end the file's name in .{', .'.join(FORMATS)}")
    if head is not None and layer is None:
        raise LabError(f"head {head} of which layer? give the layer too, 0 to {trace.n_layers - 1}")
    if layer is not None:
        trace.heads(layer, head)
    return FORMATS[format](trace, layer, head)


def largest_weights(trace: Trace, layer: int, head: int, count: int) -> list[tuple[str, int, str, int, float]]:
    """(token that reads, its position, token that is read, its position, weight), largest weight first."""
    weights = trace.attention(layer, head)
    n = len(weights)
    weights = weights.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -1.0)  # never one that is ahead
    best = weights.flatten().topk(min(count, n * (n + 1) // 2))
    places = [divmod(i, n) for i in best.indices.tolist()]
    return [(trace.tokens[i], i, trace.tokens[j], j, round(w, 4)) for (i, j), w in zip(places, best.values.tolist())]


def _picture(format: str):
    def picture(trace, layer, head) -> bytes:
        figure = attention_grid(trace, layer=layer) if head is None else attention_heatmap(trace, layer, head)
        return figure_bytes(figure, format)

    return picture


def _page(trace, layer, head) -> bytes:
    return head_view_page(trace, layer=layer or 0, head=head).html.encode()


def _csv(trace, layer, head) -> bytes:
    """A line per weight that is not ahead of its token."""
    n, layers, heads = len(trace.tokens), _layers(trace, layer), trace.heads(layer or 0, head)
    rows = len(layers) * len(heads) * n * (n + 1) // 2
    if rows > MAX_ROWS:
        raise LabError(f"a .csv of {rows:,} rows is past {MAX_ROWS:,}; name a layer and a head, or use .npz")
    lines = (
        [one, h, i, trace.tokens[i], j, trace.tokens[j], f"{weight:.6g}"]
        for one in layers
        for h, weights in zip(heads, _weights(trace, one, head))
        for i, row in enumerate(weights.tolist())
        for j, weight in enumerate(row[: i + 1])
    )
    return csv_bytes(["layer", "head", "query", "query_token", "key", "key_token", "weight"], lines)


def _npz(trace, layer, head) -> bytes:
    """weights (layers, heads, T, T) float32; layers, heads: which; tokens (T,), ids (T,)."""
    layers, heads = _layers(trace, layer), trace.heads(layer or 0, head)
    out = io.BytesIO()
    np.savez_compressed(
        out,
        weights=np.stack([_weights(trace, one, head).numpy() for one in layers]),
        layers=np.array(layers),
        heads=np.array(heads),
        tokens=np.array(trace.tokens),
        ids=trace.ids.numpy(),
    )
    return out.getvalue()


def _layers(trace: Trace, layer: int | None) -> list[int]:
    return list(range(trace.n_layers)) if layer is None else [layer]


def _weights(trace: Trace, layer: int, head: int | None) -> torch.Tensor:
    """(heads, T, T): those of a layer, or the one asked for."""
    weights = trace.attention(layer, head)
    return weights if head is None else weights[None]


FORMATS = {"html": _page, "png": _picture("png"), "svg": _picture("svg"), "csv": _csv, "npz": _npz}


def format_of(path: str | Path) -> str:
    """The format that a file's name asks for. Raises: LabError where it is none of FORMATS."""
    format = Path(path).suffix.lstrip(".").lower()
    if format not in FORMATS:
        raise LabError(f"{str(path)!r} ends in no format known here; use .{', .'.join(FORMATS)}")
    return format

"""Export attention, head scores and rollout as png, svg, csv, npz or html."""

import html
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gpt2lab.errors import LabError
from gpt2lab.figures.attention import attention_grid, attention_heatmap
from gpt2lab.figures.drawing import figure_bytes, image
from gpt2lab.figures.heads import comparison_heatmaps, head_map, head_map_rows, rollout_heatmap
from gpt2lab.figures.tables import csv_bytes, table
from gpt2lab.inspection.compare import Comparison
from gpt2lab.inspection.heads import HeadMap, Rollout
from gpt2lab.inspection.trace import Trace
from gpt2lab.pages.explorer import explorer_page
from gpt2lab.pages.page import ARTICLE, document

MOST = 50  # shares that the page of a rollout lists
MAX_ROWS = 5_000_000  # of a CSV file: 200 MB, and five times what a spreadsheet opens


@dataclass(frozen=True, eq=False)
class Part:
    """The content of a file: all heads of a trace or a comparison, one layer, or one head."""

    seen: Trace | Comparison
    layer: int | None
    head: int | None

    @property
    def traces(self) -> list[Trace]:
        """One, or the two that are compared."""
        return [self.seen] if isinstance(self.seen, Trace) else [self.seen.base, self.seen.other]

    @property
    def trace(self) -> Trace:
        """The first, whose shape is that of both."""
        return self.traces[0]

    @property
    def layers(self) -> list[int]:
        """Those in the file."""
        return list(range(self.trace.n_layers)) if self.layer is None else [self.layer]

    @property
    def heads(self) -> list[int]:
        """Those in the file, of each layer."""
        return self.trace.heads(self.layer or 0, self.head)

    def weights(self, trace: Trace, layer: int) -> torch.Tensor:
        """(heads, T, T): those of a layer, or the one asked for."""
        weights = trace.attention(layer, self.head)
        return weights if self.head is None else weights[None]


def attention_file(
    seen: Trace | Comparison, format: str, *, layer: int | None = None, head: int | None = None
) -> bytes:
    """Export attention in one of FORMATS: all heads, a layer, or one head.

    seen  of a comparison, a picture shows how far each head lies apart, or, of one head, both and their
          difference; tables and arrays hold both

    Raises: LabError for an unknown format, for a head without its layer, for parts that do not exist, and
    for a "csv" of more than MAX_ROWS weights.
    """
    part = Part(seen, layer, head)
    check_format(format)
    check_layer_of(head, layer)
    if layer is not None:
        part.trace.heads(layer, head)
    return FORMATS[format](part)


def check_layer_of(head: int | None, layer: int | None) -> None:
    """Raises: LabError for a head without its layer."""
    if head is not None and layer is None:
        raise LabError("head {head} of which layer? give the layer too", head=head)


def bertviz_options(view: str, layer: int | None, head: int | None) -> dict:
    """What a view of bertviz takes for a layer and a head, where None is all of them, or, of one at a time, the first."""
    check_layer_of(head, layer)
    if view == "model":
        return {"layers": None if layer is None else [layer], "heads": None if head is None else [head]}
    return {"layer": layer or 0, "head": (head or 0) if view == "neuron" else head}


def map_file(shown: HeadMap, format: str) -> bytes:
    """A number per head in one of FORMATS; arrays hold the values (L, H). Raises: LabError for another format."""
    values = shown.values
    called = f"{shown.title} ({shown.unit})"
    numbers = table(["", *(f"head {head}" for head in range(values.shape[1]))], head_map_rows(values))
    lines = (
        [layer, head, float(f"{x:.6g}")] for layer, row in enumerate(values.tolist()) for head, x in enumerate(row)
    )
    arrays = {"values": values.numpy(), "title": np.array(shown.title), "unit": np.array(shown.unit)}
    return figure_file(
        format,
        called,
        draw=lambda dark=False: head_map(**shown._asdict(), dark=dark),
        html_of=lambda: numbers,
        lines=(["layer", "head", called], lines),
        arrays=arrays,
    )


def rollout_file(rollout: Rollout, format: str) -> bytes:
    """Attention rollout in one of FORMATS; arrays hold the shares (T, T). Raises: LabError for another format."""
    tokens, shares = rollout.trace.tokens, rollout.weights
    head = ["query", "query_token", "key", "key_token", "share"]
    lines = (
        [i, tokens[i], j, tokens[j], f"{share:.6g}"]
        for i, row in enumerate(shares.tolist())
        for j, share in enumerate(row[: i + 1])
    )
    most = [tuple(map(str, row)) for row in largest(shares, tokens, MOST)]
    return figure_file(
        format,
        f"Attention rollout: {rollout.trace.name}",
        draw=lambda dark=False: rollout_heatmap(rollout, dark=dark),
        html_of=lambda: (
            f"<p>The {len(most)} largest shares:</p>" + table(["token", "at", "comes from", "at", "share"], most)
        ),
        lines=(head, lines),
        arrays={"shares": shares.numpy(), "tokens": np.array(tokens), "ids": rollout.trace.ids.numpy()},
    )


def figure_file(
    format: str,
    title: str,
    *,
    draw: Callable,
    html_of: Callable[[], str],
    lines: tuple[list[str], Iterable[Iterable]],
    arrays: dict[str, np.ndarray],
) -> bytes:
    """A figure and its numbers in one of FORMATS; `html_of` gives them as HTML, `lines` as (head, rows) of a CSV file."""
    check_format(format)
    match format:
        case "csv":
            return csv_bytes(*lines)
        case "npz":
            return _archive(arrays)
        case "html":
            body = f"<h1>{html.escape(title)}</h1>{image(draw, title)}{html_of()}"
            return document(title, body, style=ARTICLE).html.encode()
    return figure_bytes(draw(), format)


def largest_weights(trace: Trace, layer: int, head: int, count: int) -> list[tuple[str, int, str, int, float]]:
    """(token that reads, its position, token that is read, its position, weight), largest weight first."""
    return largest(trace.attention(layer, head), trace.tokens, count)


def largest(weights: torch.Tensor, tokens: Sequence[str], count: int) -> list[tuple[str, int, str, int, float]]:
    """The largest of (T, T) of which none is ahead, as `largest_weights` has them."""
    n = len(weights)
    weights = weights.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -1.0)  # never one that is ahead
    best = weights.flatten().topk(min(count, n * (n + 1) // 2))
    places = [divmod(i, n) for i in best.indices.tolist()]
    return [(tokens[i], i, tokens[j], j, round(w, 4)) for (i, j), w in zip(places, best.values.tolist())]


def _picture(format: str):
    def picture(part: Part) -> bytes:
        match part.seen, part.head:
            case Trace() as trace, None:
                figure = attention_grid(trace, layer=part.layer)
            case Trace() as trace, head:
                figure = attention_heatmap(trace, part.layer, head)
            case comparison, None:
                figure = head_map(**comparison.map(part.layer)._asdict())
            case comparison, head:
                figure = comparison_heatmaps(comparison, part.layer, head)
        return figure_bytes(figure, format)

    return picture


def _page(part: Part) -> bytes:
    layers = None if part.layer is None else [part.layer]
    return explorer_page(part.seen, layer=part.layer or 0, head=part.head, layers=layers).html.encode()


def _csv(part: Part) -> bytes:
    """A line per weight that is not ahead of its token."""
    n = len(part.trace.tokens)
    rows = len(part.layers) * len(part.heads) * n * (n + 1) // 2
    if rows > MAX_ROWS:
        raise LabError(
            "a .csv of {rows:,} rows is past {max_rows:,}; name a layer and a head, or use .npz",
            rows=rows,
            max_rows=MAX_ROWS,
        )
    head = ["layer", "head", "query", "query_token", "key", "key_token", "weight"]
    if len(part.traces) > 1:
        head += ["other_query_token", "other_key_token", "other_weight"]
    return csv_bytes(head, _rows(part))


def _rows(part: Part):
    first, *others = part.traces
    for layer in part.layers:
        weights = [part.weights(trace, layer) for trace in part.traces]
        for at, head in enumerate(part.heads):
            ours, *theirs = [each[at].tolist() for each in weights]
            for i in range(len(first.tokens)):
                for j in range(i + 1):
                    row = [layer, head, i, first.tokens[i], j, first.tokens[j], f"{ours[i][j]:.6g}"]
                    for trace, weight in zip(others, theirs):
                        row += [trace.tokens[i], trace.tokens[j], f"{weight[i][j]:.6g}"]
                    yield row


def _npz(part: Part) -> bytes:
    """weights (layers, heads, T, T) float32; layers, heads: which; tokens (T,), ids (T,); with other_ before them, the second's."""
    arrays = {"layers": np.array(part.layers), "heads": np.array(part.heads)}
    for prefix, trace in zip(("", "other_"), part.traces):
        arrays[f"{prefix}weights"] = np.stack([part.weights(trace, one).numpy() for one in part.layers])
        arrays[f"{prefix}tokens"] = np.array(trace.tokens)
        arrays[f"{prefix}ids"] = trace.ids.numpy()
    return _archive(arrays)


def _archive(arrays: dict[str, np.ndarray]) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


FORMATS = {"html": _page, "png": _picture("png"), "svg": _picture("svg"), "csv": _csv, "npz": _npz}


def check_format(format: str) -> None:
    """Raises: LabError for a format that is none of FORMATS."""
    if not isinstance(format, str) or format not in FORMATS:
        raise LabError(
            "format {format!r} is unknown; end the file's name in .{choices}",
            format=str(format)[:40],
            choices=", .".join(FORMATS),
        )


def format_of(path: str | Path) -> str:
    """The format that a file's name asks for. Raises: LabError where it is none of FORMATS."""
    format = Path(path).suffix.lstrip(".").lower()
    if format not in FORMATS:
        raise LabError(
            "{path!r} ends in no format known here; use .{choices}", path=str(path), choices=", .".join(FORMATS)
        )
    return format

"""Attention weights of a trace or a comparison: all heads, a layer, or one head."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gpt2lab.errors import LabError
from gpt2lab.inspection.compare import Comparison
from gpt2lab.inspection.trace import Trace
from gpt2lab.results import Result, Table

MAX_ROWS = 5_000_000  # of a table: 200 MB as CSV, and five times what a spreadsheet opens


@dataclass(frozen=True, eq=False, repr=False)
class Attention(Result):
    """The weights of all heads, of one layer, or of one head; of one trace, or of two that are compared.

    Raises: LabError for a head without its layer, and for a layer or head that does not exist.
    """

    of: Trace | Comparison
    layer: int | None = None
    head: int | None = None

    def __post_init__(self):
        check_layer_of(self.head, self.layer)
        if self.layer is not None:
            self.trace.heads(self.layer, self.head)

    @property
    def title(self) -> str:
        """Layer, head and names of the models."""
        part = "" if self.layer is None else f", layer {self.layer}"
        part += "" if self.head is None else f", head {self.head}"
        return f"Attention{part}: {' and '.join(trace.name for trace in self.traces)}"

    @property
    def traces(self) -> list[Trace]:
        """One, or the two that are compared."""
        return [self.of] if isinstance(self.of, Trace) else [self.of.base, self.of.other]

    @property
    def trace(self) -> Trace:
        """The first, whose shape is that of both."""
        return self.traces[0]

    @property
    def layers(self) -> list[int]:
        """The layers in this part."""
        return list(range(self.trace.n_layers)) if self.layer is None else [self.layer]

    @property
    def heads(self) -> list[int]:
        """The heads in this part, of each layer."""
        return self.trace.heads(self.layer or 0, self.head)

    def weights(self, trace: Trace, layer: int) -> torch.Tensor:
        """(heads, T, T): the weights of a layer, or of the one head."""
        weights = trace.attention(layer, self.head)
        return weights if self.head is None else weights[None]

    def table(self) -> Table:
        """A row per weight that is not ahead of its token. Raises: LabError past MAX_ROWS."""
        n = len(self.trace.tokens)
        rows = len(self.layers) * len(self.heads) * n * (n + 1) // 2
        if rows > MAX_ROWS:
            raise LabError(
                "a .csv of {rows:,} rows is past {max_rows:,}; name a layer and a head, or use .npz",
                rows=rows,
                max_rows=MAX_ROWS,
            )
        head = ["layer", "head", "query", "query_token", "key", "key_token", "weight"]
        if len(self.traces) > 1:
            head += ["other_query_token", "other_key_token", "other_weight"]
        return Table(head, self._rows())

    def _rows(self) -> Iterator[list]:
        first, *others = self.traces
        for layer in self.layers:
            weights = [self.weights(trace, layer) for trace in self.traces]
            for at, head in enumerate(self.heads):
                ours, *theirs = [each[at].tolist() for each in weights]
                for i in range(len(first.tokens)):
                    for j in range(i + 1):
                        row = [layer, head, i, first.tokens[i], j, first.tokens[j], ours[i][j]]
                        for trace, weight in zip(others, theirs):
                            row += [trace.tokens[i], trace.tokens[j], weight[i][j]]
                        yield row

    def arrays(self) -> dict[str, np.ndarray]:
        """weights (layers, heads, T, T) float32, indices of layers and heads, tokens and ids (T,); `other_…` of the second trace."""
        arrays = {"layers": np.array(self.layers), "heads": np.array(self.heads)}
        for prefix, trace in zip(("", "other_"), self.traces):
            arrays[f"{prefix}weights"] = np.stack([self.weights(trace, layer).numpy() for layer in self.layers])
            arrays[f"{prefix}tokens"] = np.array(trace.tokens)
            arrays[f"{prefix}ids"] = trace.ids.numpy()
        return arrays


def check_layer_of(head: int | None, layer: int | None) -> None:
    """Raises: LabError for a head without its layer."""
    if head is not None and layer is None:
        raise LabError("head {head} needs a layer; give the layer too", head=head)


def largest_weights(trace: Trace, layer: int, head: int, count: int) -> list[tuple[str, int, str, int, float]]:
    """(token that attends, its position, token attended to, its position, weight), largest weight first."""
    return largest(trace.attention(layer, head), trace.tokens, count)


def largest(weights: torch.Tensor, tokens: Sequence[str], count: int) -> list[tuple[str, int, str, int, float]]:
    """The `count` largest weights on or below the diagonal of (T, T), as `largest_weights` returns them."""
    n = len(weights)
    weights = weights.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -1.0)  # never one that is ahead
    best = weights.flatten().topk(min(count, n * (n + 1) // 2))
    places = [divmod(i, n) for i in best.indices.tolist()]
    return [(tokens[i], i, tokens[j], j, round(w, 4)) for (i, j), w in zip(places, best.values.tolist())]

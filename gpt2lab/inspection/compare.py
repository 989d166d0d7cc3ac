"""Compare the attention of two traces: two models on one text, or one model on two texts."""

from dataclasses import dataclass

import torch

from gpt2lab.errors import LabError
from gpt2lab.inspection.heads import HeadMap, Score, highest
from gpt2lab.inspection.trace import Trace
from gpt2lab.results import Summary

DISTANCE = Score(
    "total variation distance",
    "share of attention, 0 to 1",
    "Mean share of its attention that a token gives to other tokens than before.",
)


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Summary):
    """How a second trace's attention differs from a first one's.

    total_variation  (L, H)  distance of two distributions, ½ Σⱼ |pᵢⱼ - qᵢⱼ|, a mean over the tokens i ≥ 1:
                             in [0, 1], 0 for the same attention, 1 where no token is read by both
    """

    base: Trace
    other: Trace
    total_variation: torch.Tensor

    def __post_init__(self):
        shape = (self.base.n_layers, self.base.n_heads)
        if tuple(self.total_variation.shape) != shape:
            raise ValueError(f"distances of shape {tuple(self.total_variation.shape)}; the heads ask for {shape}")

    @property
    def same_text(self) -> bool:
        """Whether both have the same token ids: two models on one text, not one model on two."""
        return torch.equal(self.base.ids, self.other.ids)

    def difference(self, layer: int, head: int | None = None) -> torch.Tensor:
        """other - base: (T, T) of one head, or (H, T, T) of a layer; in [-1, 1], rows sum to 0.

        Raises: LabError for a layer or head that does not exist.
        """
        return self.other.attention(layer, head) - self.base.attention(layer, head)

    def top(self, count: int = 3) -> list[tuple[int, int, float]]:
        """(layer, head, total variation) of the heads that differ most, highest first."""
        return highest(self.total_variation, count)

    def map(self, layer: int | None = None) -> HeadMap:
        """How far each head lies apart, to be drawn; of one layer, where one is given, and NaN elsewhere.

        Raises: LabError for a layer that does not exist.
        """
        values = self.total_variation
        if layer is not None:
            self.base.heads(layer)
            values = torch.full_like(values, torch.nan).index_copy(0, torch.tensor([layer]), values[layer : layer + 1])
        return HeadMap(values, f"{DISTANCE.title}: {self.base.name} and {self.other.name}", DISTANCE.unit, 0)


def compare(base: Trace, other: Trace) -> Comparison:
    """How far the attention of each head lies apart in two traces.

    base, other  of as many tokens, layers and heads; names and ids may differ

    Example: compare(trace(lab, "The moon"), trace(tuned, "The moon")).top(1)
    Raises: LabError where they cannot be compared, and for one token, which can only read itself.
    """
    n, m = len(base.tokens), len(other.tokens)
    if n != m:
        raise LabError(
            "{n:,} tokens in the first text ({name}) and {m:,} in the second ({other}) do not pair up; "
            "lengthen or shorten a text until both have as many",
            n=n,
            name=base.name,
            m=m,
            other=other.name,
        )
    if n < 2:
        raise LabError("a single token attends only to itself; compare texts of at least 2 tokens")
    shapes = [(t.n_layers, t.n_heads) for t in (base, other)]
    if shapes[0] != shapes[1]:
        first, second = (f"{t.name} has {L} layers of {H} heads" for t, (L, H) in zip((base, other), shapes))
        raise LabError("{first} and {second}; compare models of the same shape", first=first, second=second)
    pairs = ((base.attention(layer), other.attention(layer)) for layer in range(base.n_layers))
    moved = [(p - q).abs().sum(-1)[:, 1:].mean(-1) / 2 for p, q in pairs]  # L of (H,); token 0 has no choice
    return Comparison(base, other, torch.stack(moved))

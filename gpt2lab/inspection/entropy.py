"""Attention entropy by position: how widely each layer's heads look, from the first token to the last."""

from dataclasses import dataclass

import numpy as np
import torch

from gpt2lab.inspection.trace import Trace, trace
from gpt2lab.model.lab import Lab
from gpt2lab.results import Result, Table


@dataclass(frozen=True, eq=False, repr=False)
class EntropyByPosition(Result):
    """Entropy of the attention weights at each position, a mean over the heads of a layer.

    tokens   T display strings
    entropy  (L, T)  nats, from 0 to `limit`
    """

    name: str
    tokens: tuple[str, ...]
    entropy: torch.Tensor

    @property
    def title(self) -> str:
        """The model."""
        return f"Attention entropy by position: {self.name}"

    @property
    def limit(self) -> torch.Tensor:
        """(T,): ln(t + 1), the entropy of equal attention to every token that position t can attend to."""
        return torch.arange(1, len(self.tokens) + 1).float().log()

    def table(self) -> Table:
        """A row per position: every layer's entropy, and the limit."""
        rows = zip(range(len(self.tokens)), self.tokens, *self.entropy.tolist(), self.limit.tolist())
        return Table(["at", "token", *(f"layer {layer}, nats" for layer in range(len(self.entropy))), "limit"], rows)

    def arrays(self) -> dict[str, np.ndarray]:
        """Entropies (L, T), their limit (T,) and the tokens."""
        return {"entropy": self.entropy.numpy(), "limit": self.limit.numpy(), "tokens": np.array(self.tokens)}

    def record(self) -> dict:
        """[layer][position] in nats."""
        return {"entropy": self.entropy.tolist()}


def entropy_by_position(lab: Lab, text: str | Trace) -> EntropyByPosition:
    """Mean entropy of each layer's attention at every position of a text.

    text  1 to `lab.context` tokens, or a trace

    Example: entropy_by_position(lab, "The moon is round").entropy[0] -> (0.0, 0.4, 0.9, 1.1)
    Raises: LabError for a text that is empty or does not fit.
    """
    seen = text if isinstance(text, Trace) else trace(lab, text)
    layers = [torch.special.entr(seen.attention(layer)).sum(-1).mean(0) for layer in range(seen.n_layers)]
    return EntropyByPosition(seen.name, seen.tokens, torch.stack(layers))

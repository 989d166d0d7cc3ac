"""Direct logit attribution: what each head and MLP adds to a logit.

From traces with their residual stream, and the model's last norm and unembedding.
"""

from dataclasses import dataclass

import numpy as np
import torch

from gpt2lab.errors import LabError, whole_number
from gpt2lab.inspection.contributions import contributions, part_names
from gpt2lab.inspection.heads import HeadMap
from gpt2lab.inspection.lens import log_probabilities, token_id
from gpt2lab.inspection.trace import Trace, with_residual
from gpt2lab.model.lab import Lab
from gpt2lab.results import Result, Table


@dataclass(frozen=True, eq=False, repr=False)
class Attribution(Result):
    """What each part of the model adds to the logit of a token, less that of another, at one position.

    words      display strings of the two tokens
    embedding  of the token, and of its place
    heads      (L, H)
    biases     (L,)   of the attention's output layers, which belong to no head
    mlps       (L,)
    norm       of the last norm's own bias
    total      logit of `token` less that of `against`: what all of them add up to

    The last norm's scale is held as it is at this position: with another part left out it would be another. Of a model
    in float32, as load_model gives it, they add up to rounding.
    """

    name: str
    position: int
    token: int
    against: int
    words: tuple[str, str]
    embedding: tuple[float, float]
    heads: torch.Tensor
    biases: torch.Tensor
    mlps: torch.Tensor
    norm: float
    total: float

    @property
    def title(self) -> str:
        """The two tokens, the sum and the model."""
        word, other = self.words
        return f"Direct logit attribution of {word!r} over {other!r}, {self.total:+.4f}: {self.name}"

    def table(self) -> Table:
        """A row per part, the largest in size first, and their sum."""
        parts = sorted(self.parts, key=lambda part: -abs(part[1]))
        return Table(["part", "logits"], [*parts, ("sum: the logit difference", self.total)])

    def arrays(self) -> dict[str, np.ndarray]:
        """Heads (L, H), MLPs (L,), and every part by name with its value."""
        names, values = zip(*self.parts)
        by_part = {"parts": np.array(names), "values": np.array(values)}
        return {"heads": self.heads.numpy(), "mlps": self.mlps.numpy(), **by_part}

    def record(self) -> dict:
        """Every part's share of the logit difference."""
        token, against = self.words
        parts = {"token": token, "against": against, "total": self.total, "parts": dict(self.parts)}
        return {"attribution": {"position": self.position, **parts}}

    def map(self) -> HeadMap:
        """Return each head's contribution, to be drawn."""
        word, other = self.words
        return HeadMap(self.heads, f"adds to {word!r} over {other!r}: {self.name}", "logits", centred=True)

    @property
    def parts(self) -> list[tuple[str, float]]:
        """Every part by name, in the model's order; their sum is `total`."""
        layers = torch.cat([self.heads, self.biases[:, None], self.mlps[:, None]], 1)  # (L, H+2)
        values = [*self.embedding, *layers.flatten().tolist(), self.norm]
        return [*zip(part_names(*self.heads.shape), values)]


@torch.no_grad()
def attribution(
    lab: Lab, text: str | Trace, *, position: int = -1, token: int | str | None = None, against: int | str | None = None
) -> Attribution:
    """Direct logit attribution at one position of a text.

    text      or a trace of it with its residual stream
    position  of the token after which is predicted; -1 is the last
    token     as its id or as text of one token; None: the model's top prediction
    against   None: the top prediction among all others

    Example: attribution(lab, "The moon").heads.argmax()
    Raises: LabError as `logit_lens`, for a position that does not exist, and for twice the same token.
    Source: Elhage et al., A Mathematical Framework for Transformer Circuits (2021), "Logit attribution".
    """
    seen = with_residual(lab, text)
    T = len(seen.ids)
    at = whole_number("position", position, -T, T - 1) % T
    here = slice(at, at + 1)
    chosen = (
        log_probabilities(lab, seen.residual[-1, here]).argmax(-1)
        if token is None
        else torch.tensor([token_id(lab, token)])
    )
    other = None if against is None else torch.tensor([token_id(lab, against)])
    if other is not None and int(chosen) == int(other):
        raise LabError("token {token} against itself is 0; give two tokens", token=int(chosen))
    found = contributions(lab, seen, chosen, other, positions=here)
    embedding, layers, norm = found.values[0].split([2, found.values.shape[1] - 3, 1])
    layers = layers.view(seen.n_layers, -1)  # (L, H+2)
    return Attribution(
        name=seen.name,
        position=at,
        token=int(chosen),
        against=int(found.against),
        words=found.words[0],
        embedding=(float(embedding[0]), float(embedding[1])),
        heads=layers[:, :-2],
        biases=layers[:, -2],
        mlps=layers[:, -1],
        norm=float(norm),
        total=float(found.total),
    )

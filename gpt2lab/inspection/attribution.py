"""Direct logit attribution: what each head and MLP adds to a logit.

From traces with their residual stream, and the model's last norm and unembedding.
"""

from dataclasses import dataclass

import numpy as np
import torch

from gpt2lab.data.tokens import display_token
from gpt2lab.errors import LabError, whole_number
from gpt2lab.inspection.heads import HeadMap
from gpt2lab.inspection.lens import log_probabilities, token_id
from gpt2lab.inspection.trace import ResidualTrace, Trace, with_residual
from gpt2lab.model.lab import Lab, eval_mode
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
        found = [("token embedding", self.embedding[0]), ("position embedding", self.embedding[1])]
        for layer, heads in enumerate(self.heads.tolist()):
            found += [(f"layer {layer}, head {head}", value) for head, value in enumerate(heads)]
            found += [(f"layer {layer}, attention's bias", float(self.biases[layer]))]
            found += [(f"layer {layer}, MLP", float(self.mlps[layer]))]
        return [*found, ("last norm's bias", self.norm)]


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
    logits = log_probabilities(lab, seen.residual[-1, at])  # log-probabilities differ as logits do
    order = logits.topk(2).indices.tolist()
    token = order[0] if token is None else token_id(lab, token)
    against = next(i for i in order if i != token) if against is None else token_id(lab, against)
    if token == against:
        raise LabError("token {token} against itself is 0; give two tokens", token=token)
    model, last = lab.model, seen.residual[-1, at].double()
    norm = model.transformer.ln_f
    direction = (model.lm_head.weight[token] - model.lm_head.weight[against]).cpu().double()  # (D,)
    scale = (last.var(unbiased=False) + norm.eps).rsqrt() * norm.weight.cpu().double() * direction  # (D,)

    def adds(x: torch.Tensor) -> torch.Tensor:  # (…, D) -> (…)
        x = x.double()
        return ((x - x.mean(-1, keepdim=True)) * scale).sum(-1)

    wte, wpe = model.transformer.wte.weight[seen.ids[at]].cpu(), model.transformer.wpe.weight[at].cpu()
    layers = [_written(lab, seen, layer, at) for layer in range(seen.n_layers)]
    bias = float((norm.bias.cpu().double() * direction).sum())
    return Attribution(
        name=seen.name,
        position=at,
        token=token,
        against=against,
        words=(display_token(lab.tokenizer, token), display_token(lab.tokenizer, against)),
        embedding=(float(adds(wte)), float(adds(wpe))),
        heads=torch.stack([adds(heads) for heads, _, _ in layers]),
        biases=torch.stack([adds(bias) for _, bias, _ in layers]),
        mlps=torch.stack([adds(mlp) for _, _, mlp in layers]),
        norm=bias,
        total=float(adds(last)) + bias,
    )


def _written(lab: Lab, seen: ResidualTrace, layer: int, at: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a block writes into the residual stream at a position: heads (H, D), the attention's bias (D,), the MLP (D,)."""
    block = lab.model.transformer.h[layer]
    mixed = seen.attention(layer, rows=slice(at, at + 1)) @ seen.v[layer]  # (H, 1, K)
    H, _, K = mixed.shape
    c_proj = block.attn.c_proj  # transformers' Conv1D: weight (in, out)
    heads = (mixed @ c_proj.weight.view(H, K, -1).cpu().float())[:, 0]  # (H, D)
    bias = c_proj.bias.cpu().float()
    entering = (seen.residual[layer, at] + heads.sum(0) + bias).to(lab.model.device, lab.model.dtype)
    with eval_mode(block):
        return heads, bias, block.mlp(block.ln_2(entering)).float().cpu()

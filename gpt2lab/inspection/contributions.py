"""Direct logit attribution at every position of a text at once.

From traces with their residual stream, and the model's last norm and unembedding.
"""

from dataclasses import dataclass

import numpy as np
import torch

from gpt2lab.data.tokens import token_names
from gpt2lab.inspection.lens import log_probabilities
from gpt2lab.inspection.trace import ResidualTrace, Trace
from gpt2lab.model.lab import Lab, eval_mode
from gpt2lab.results import Result, Table


@dataclass(frozen=True, eq=False, repr=False)
class Contributions(Result):
    """What each part of the model adds to the logit of one token over that of another, at every position.

    trace    of the text
    tokens   (P,)    int64: whose logit
    against  (P,)    int64: less whose
    words    (P,)    display strings of both
    parts    names of the N parts, in the model's order
    values   (P, N)  logits; a row adds up to `total`
    total    (P,)    logit of the token less that of the other
    """

    trace: Trace
    tokens: torch.Tensor
    against: torch.Tensor
    words: tuple[tuple[str, str], ...]
    parts: tuple[str, ...]
    values: torch.Tensor
    total: torch.Tensor

    @property
    def title(self) -> str:
        """The model."""
        return f"Direct logit attribution at every position: {self.trace.name}"

    def table(self) -> Table:
        """A row per position and part."""
        rows = (
            [at, token, against, part, value]
            for at, ((token, against), row) in enumerate(zip(self.words, self.values.tolist()))
            for part, value in zip(self.parts, row)
        )
        return Table(["after token", "token", "over", "part", "logits"], rows)

    def arrays(self) -> dict[str, np.ndarray]:
        """Values (P, N), totals (P,), the ids of both tokens, and names of the parts."""
        arrays = {name: getattr(self, name).numpy() for name in ("tokens", "against", "values", "total")}
        return {**arrays, "parts": np.array(self.parts)}


def part_names(L: int, H: int) -> tuple[str, ...]:
    """The parts whose outputs add up to the last residual stream, and the last norm's bias."""
    layers = (
        [
            *(f"layer {layer}, head {head}" for head in range(H)),
            f"layer {layer}, attention's bias",
            f"layer {layer}, MLP",
        ]
        for layer in range(L)
    )
    return ("token embedding", "position embedding", *(part for layer in layers for part in layer), "last norm's bias")


@torch.no_grad()
def contributions(
    lab: Lab,
    seen: ResidualTrace,
    tokens: torch.Tensor | None = None,
    against: torch.Tensor | None = None,
    *,
    positions: slice = slice(None),
) -> Contributions:
    """Direct logit attribution at several positions of a trace.

    positions  P of them, at least one; all by default
    tokens     (P,) ids; None: the token that follows in the text, and after its end the top prediction
    against    (P,) ids; None: the top prediction among all others

    The last norm's scale is held as it is at each position. Of a model in float32, values add up to rounding.
    Source: Elhage et al., A Mathematical Framework for Transformer Circuits (2021), "Logit attribution".
    """
    model, norm = lab.model, lab.model.transformer.ln_f
    last = seen.residual[-1, positions]  # (P, D)
    if tokens is None or against is None:
        best = log_probabilities(lab, last).topk(2).indices  # (P, 2)
    if tokens is None:
        following = torch.cat([seen.ids[1:], seen.ids.new_tensor([-1])])[positions]
        tokens = torch.where(following < 0, best[:, 0], following)
    if against is None:
        against = torch.where(best[:, 0] == tokens, best[:, 1], best[:, 0])
    unembedding = model.lm_head.weight
    direction = (unembedding[tokens.to(lab.device)] - unembedding[against.to(lab.device)]).cpu().double()  # (P, D)
    scale = (last.double().var(-1, unbiased=False, keepdim=True) + norm.eps).rsqrt() * norm.weight.cpu().double()
    reads = scale * direction  # (P, D); x − mean(x) read by it is x read by it less its mean
    reads = reads - reads.mean(-1, keepdim=True)

    def adds(x: torch.Tensor) -> torch.Tensor:  # (P, D) or (D,) -> (P,)
        return (x.double() * reads).sum(-1)

    wte, wpe = (
        model.transformer.wte.weight[seen.ids[positions]].cpu(),
        model.transformer.wpe.weight[: len(seen.ids)][positions].cpu(),
    )
    columns = [adds(wte), adds(wpe)]
    for layer, block in enumerate(model.transformer.h):
        mixed = seen.attention(layer, rows=positions) @ seen.v[layer]  # (H, P, K)
        H, _, K = mixed.shape
        weight = block.attn.c_proj.weight.cpu()  # (H·K, D): transformers' Conv1D is (in, out)
        through = torch.einsum("pd,hkd->hpk", reads, weight.view(H, K, -1).double())
        columns += [*(mixed.double() * through).sum(-1)]  # (P,) of each head
        bias = block.attn.c_proj.bias.cpu()
        columns.append(adds(bias))
        attended = mixed.transpose(0, 1).flatten(1) @ weight.float() + bias.float()  # (P, D)
        entering = (seen.residual[layer, positions] + attended).to(lab.device, model.dtype)
        with eval_mode(block):
            columns.append(adds(block.mlp(block.ln_2(entering)).float().cpu()))
    from_bias = (norm.bias.cpu().double() * direction).sum(-1)
    columns.append(from_bias)
    names = token_names(lab.tokenizer, tokens, against)
    return Contributions(
        trace=seen,
        tokens=tokens,
        against=against,
        words=tuple((names[token], names[other]) for token, other in zip(tokens.tolist(), against.tolist())),
        parts=part_names(seen.n_layers, seen.n_heads),
        values=torch.stack(columns, 1).float(),
        total=(adds(last) + from_bias).float(),
    )

"""Logit lens: the prediction after each layer.

From traces with their residual stream, and the model's last norm and unembedding.
"""

import re
from dataclasses import dataclass

import numpy as np
import torch

from gpt2lab.data.tokens import display_token, token_names
from gpt2lab.errors import LabError, Message, whole_number
from gpt2lab.inspection.trace import Trace, with_residual
from gpt2lab.model.lab import Lab
from gpt2lab.results import Result, Table

LOGITS_AT_ONCE = 1 << 21  # floats of one distribution held at a time: 8 MiB; up to eight are held at once
MAX_TOP = 100


@dataclass(frozen=True, eq=False, repr=False)
class Lens(Result):
    """What the model would predict if it stopped after each layer.

    Entry 0 of L+1 enters the first block, entry L leaves the last: the model's own prediction. Position t holds what
    is predicted to follow token t.

    names        display strings of targets and top predictions, by id
    targets      (T,)         int64, the token that is followed through the layers
    top          (L+1, T, n)  int64, ids of the top predictions, most probable first
    top_probability (L+1, T, n)
    probability  (L+1, T)     of the target
    rank         (L+1, T)     int64, of the target; 1 is the top prediction
    entropy      (L+1, T)     nats
    divergence   (L+1, T)     KL(last ‖ this), nats: what a reader of this layer's prediction loses where the last is right
    """

    trace: Trace
    names: dict[int, str]
    targets: torch.Tensor
    top: torch.Tensor
    top_probability: torch.Tensor
    probability: torch.Tensor
    rank: torch.Tensor
    entropy: torch.Tensor
    divergence: torch.Tensor

    def top_predictions(self, entry: int, position: int) -> list[tuple[int, str, float]]:
        """(id, display string, probability) of what an entry predicts after a position."""
        ids, probabilities = self.top[entry, position].tolist(), self.top_probability[entry, position].tolist()
        return [(i, self.names[i], p) for i, p in zip(ids, probabilities)]

    @property
    def title(self) -> str:
        """The model."""
        return f"Logit lens: {self.trace.name}"

    def table(self, position: int | None = None) -> Table:
        """A row per entry and position, or per entry at one position; -1 is the last.

        Raises: LabError for a position that does not exist.
        """
        T = len(self.targets)
        positions = range(T) if position is None else [whole_number("position", position, -T, T - 1) % T]
        numbers = ("rank", "probability", "entropy", "divergence")
        rows = (
            [
                entry_name(entry),
                t,
                self.trace.tokens[t],
                ", ".join(f"{name} {p:.3f}" for _, name, p in self.top_predictions(entry, t)),
                self.names[int(self.targets[t])],
                *(getattr(self, name)[entry, t].item() for name in numbers),
            ]
            for entry in range(len(self.rank))
            for t in positions
        )
        head = ["after", "at", "token", "top predictions", "followed token", "its rank", "its probability"]
        return Table([*head, "entropy, nats", "KL to the last, nats"], rows)

    def arrays(self) -> dict[str, np.ndarray]:
        """The fields by name."""
        names = ("targets", "top", "top_probability", "rank", "probability", "entropy", "divergence")
        return {"tokens": np.array(self.trace.tokens), **{name: getattr(self, name).numpy() for name in names}}

    def record(self) -> dict:
        """[position] of the embedding, and [layer][position] after each layer; the last is the model's own prediction."""
        T = len(self.targets)
        embedding, *layers = [[self._cell(entry, at) for at in range(T)] for entry in range(len(self.rank))]
        return {"lens_embedding": embedding, "lens": layers}

    def _cell(self, entry: int, at: int) -> dict:
        top = [{"token": name, "id": i, "probability": p} for i, name, p in self.top_predictions(entry, at)]
        names = ("rank", "probability", "entropy", "divergence")
        numbers = {name: getattr(self, name)[entry, at].item() for name in names}
        return {"top": top, "target": int(self.targets[at]), **numbers}

    @property
    def settled(self) -> torch.Tensor:
        """(T,): the first entry from which on the top prediction is the last layer's, 0 to L."""
        agrees = self.top[..., 0] == self.top[-1, :, 0]  # (L+1, T)
        return len(agrees) - agrees.flip(0).int().cumprod(0).sum(0)


def entry_name(entry: int) -> Message:
    """Name an entry of the residual stream by the layer before it."""
    return Message("embedding") if entry == 0 else Message("layer {layer}", layer=entry - 1)


@torch.no_grad()
def logit_lens(
    lab: Lab, text: str | Trace, *, top: int = 5, target: int | str | None = None, next: bool = False, cut: bool = False
) -> Lens:
    """The prediction after every layer, by the model's own last norm, with each layer's own statistics, and unembedding.

    text    or a trace of it with its residual stream
    top     top predictions kept of each prediction
    target  a token to follow through the layers, as its id or as text of one token; None follows the
            model's last top prediction at each position
    next    follow the token that comes next in the text instead; after its end the last top prediction
    cut     as for `trace`

    Example: logit_lens(lab, "The moon").rank[-1] -> (1, 1)
    Raises: LabError as `trace`, and for a target that is not one token of the vocabulary.
    Source: nostalgebraist, interpreting GPT: the logit lens (2020).
    """
    whole_number("top", top, 1, min(MAX_TOP, lab.model.config.vocab_size))
    if next and target is not None:
        raise LabError("follow token {target!r} or the next one, not both", target=target)
    seen = with_residual(lab, text, cut=cut)
    T, at_once = len(seen.ids), max(1, LOGITS_AT_ONCE // lab.model.config.vocab_size)
    wanted = torch.full((T,), -1 if target is None else token_id(lab, target))  # -1: the last top prediction
    if next:
        wanted[:-1] = seen.ids[1:]
    places = [slice(i, i + at_once) for i in range(0, T, at_once)]
    parts = [_lens_of(lab, seen.residual[:, place], top, wanted[place]) for place in places]
    joined = {name: torch.cat([part[name] for part in parts], dim=0 if name == "targets" else 1) for name in parts[0]}
    return Lens(seen, token_names(lab.tokenizer, joined["top"], joined["targets"]), **joined)


def _lens_of(lab: Lab, residual: torch.Tensor, top: int, wanted: torch.Tensor) -> dict[str, torch.Tensor]:
    """The fields of a Lens for some positions: residual (L+1, t, D), tokens to follow (t,), -1 for the last top prediction."""
    last = log_probabilities(lab, residual[-1])  # (t, V)
    p_last = last.exp()
    targets = torch.where(wanted < 0, last.argmax(-1), wanted)
    rows: dict[str, list[torch.Tensor]] = {
        name: [] for name in ("top", "top_probability", "probability", "rank", "entropy", "divergence")
    }
    for entry, entering in enumerate(residual):
        logs = last if entry == len(residual) - 1 else log_probabilities(lab, entering)
        p, mine = p_last if logs is last else logs.exp(), logs.gather(1, targets[:, None])
        best = p.topk(top)
        rows["top"].append(best.indices)
        rows["top_probability"].append(best.values)
        rows["probability"].append(mine.exp()[:, 0])
        rows["rank"].append((logs > mine).sum(-1) + 1)
        rows["entropy"].append(torch.special.entr(p).sum(-1))
        rows["divergence"].append((last - logs).mul_(p_last).sum(-1).clamp_min(0))
    return {"targets": targets, **{name: torch.stack(row) for name, row in rows.items()}}


def log_probabilities(lab: Lab, residual: torch.Tensor) -> torch.Tensor:
    """log softmax(lm_head(ln_f(x))) of a residual stream (…, D) -> (…, V), on the CPU."""
    model = lab.model
    x = residual.to(model.device, model.dtype)
    return model.lm_head(model.transformer.ln_f(x)).float().log_softmax(-1).cpu()


@torch.no_grad()
def token_probabilities(lab: Lab, seen: Trace, position: int, tokens: list[int | str]) -> torch.Tensor:
    """(L+1, n): the probability of each of n tokens after every layer, at one position.

    tokens  as ids or as texts of one token

    Raises: LabError for a position that does not exist, for what is not one token, and for a trace without a residual
    stream.
    """
    whole_number("position", position, 0, len(seen.ids) - 1)
    ids = [token_id(lab, token) for token in tokens]
    return log_probabilities(lab, with_residual(lab, seen).residual[:, position]).exp()[:, ids]


def token_id(lab: Lab, token: int | str) -> int:
    """The id of a token, given as such, as "#262", or as text. Raises: LabError for what is not one token of the vocabulary."""
    if isinstance(token, str) and re.fullmatch("#[0-9]{1,9}", token):
        token = int(token[1:])
    if isinstance(token, str):
        ids = lab.encode(token).tolist()
        if len(ids) != 1:
            parts = " + ".join(repr(display_token(lab.tokenizer, i)) for i in ids[:8]) or "none"
            raise LabError(
                "{token!r} is {count} tokens ({parts}); give text of one, often with a space before, or #id",
                token=token[:40],
                count=len(ids),
                parts=parts,
            )
        return ids[0]
    return whole_number("token", token, 0, lab.model.config.vocab_size - 1)

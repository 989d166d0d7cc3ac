"""Input attribution: how much each token, word or sentence of a text adds to the prediction of a token.

Three methods, and the curves that judge them.
"""

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gpt2lab.data.tokens import DecodeStream, display_token, display_tokens, start_id
from gpt2lab.errors import LabError, choice, whole_number
from gpt2lab.inspection.lens import token_id
from gpt2lab.inspection.trace import Trace
from gpt2lab.model.lab import Lab, eval_mode
from gpt2lab.progress import stepwise
from gpt2lab.results import Result, Table

METHODS = ("integrated-gradients", "gradient-x-input", "leave-one-out")
UNITS = ("token", "word", "sentence")
WORD, SENTENCE = re.compile(r"\S+"), re.compile(r"\S(?:(?!(?<=[.!?])\s).)*", re.DOTALL)
ERROR = 0.01  # of completeness, as a share of what is explained: down to it, points are added to the path
POINTS = (6, 192)  # on the path of integrated gradients: the first number of intervals, doubled up to the last
CURVE = 20  # steps of the curves, at most
TOKENS_AT_ONCE = 4096  # in one forward pass


@dataclass(frozen=True, eq=False, repr=False)
class InputAttribution(Result):
    """What each unit of a text adds to the log-probability of a token, or to its contrast with another.

    tokens      T display strings: the text up to the position
    unit        "token", "word" or "sentence"
    spans       (first token, one past the last) of each of U units
    values      (U,)  nats
    words       display strings of the token that is predicted and of the one it is compared with, or None
    total       of the whole text: log-probability of `token`, less that of `against`
    completeness_error  of integrated gradients: |sum of all tokens' parts − what they should add up to|, as a share of that
    share       (P,)  of the units, 0 to 1; (0,) where no curves were asked for
    deletion    (P,)  the prediction in nats without that share of the units, the most important: the sooner it falls, the
                better the method
    insertion   (P,)  the prediction in nats with that share alone: the sooner it rises, the better
    """

    name: str
    tokens: tuple[str, ...]
    method: str
    unit: str
    spans: tuple[tuple[int, int], ...]
    values: torch.Tensor
    token: int
    against: int | None
    words: tuple[str, str | None]
    total: float
    completeness_error: float | None
    share: torch.Tensor
    deletion: torch.Tensor
    insertion: torch.Tensor

    @property
    def title(self) -> str:
        """The prediction, the method and the model."""
        word, other = self.words
        what = repr(word) if other is None else f"{word!r} over {other!r}"
        return f"Why {what}, {self.total:+.3f} nats, by {self.method}: {self.name}"

    @property
    def units(self) -> tuple[str, ...]:
        """The units as strings to show."""
        return tuple("".join(self.tokens[first:end]) for first, end in self.spans)

    def table(self) -> Table:
        """A row per unit, in the order of the text."""
        rows = zip((first for first, _ in self.spans), self.units, self.values.tolist())
        return Table(["at", self.unit, "adds, nats"], rows)

    def arrays(self) -> dict[str, np.ndarray]:
        """Values (U,), spans (U, 2), the curves (P,) and the tokens."""
        curves = {name: getattr(self, name).numpy() for name in ("share", "deletion", "insertion")}
        spans = np.array(self.spans, dtype=np.int64)
        return {"tokens": np.array(self.tokens), "spans": spans, "values": self.values.numpy(), **curves}

    def record(self) -> dict:
        """Every unit's part, the prediction, and the curves."""
        units = [
            {"text": text, "first": first, "end": end, "nats": value}
            for text, (first, end), value in zip(self.units, self.spans, self.values.tolist())
        ]
        token, against = self.words
        curves = {name: getattr(self, name).tolist() for name in ("share", "deletion", "insertion")}
        found = {"method": self.method, "token": token, "against": against, "total": self.total}
        return {"why": {**found, "completeness_error": self.completeness_error, "units": units, **curves}}


@stepwise
def input_attribution(
    lab: Lab,
    text: str | Trace,
    *,
    position: int = -1,
    token: int | str | None = None,
    against: int | str | None = None,
    method: str = METHODS[0],
    unit: str = "token",
    curves: bool = True,
    points: int = POINTS[1],
) -> Generator[tuple[int, int], None, InputAttribution]:
    """What each token, word or sentence of a text adds to the prediction after a position.

    text      or a trace of it, whose tokens are read
    position  of the token after which is predicted; -1 is the last
    token     that is predicted, as its id or as text of one token; None: the model's top prediction
    against   a token whose log-probability is subtracted; None: none
    method    "integrated-gradients": gradients of the token embeddings, averaged over a straight path from embeddings of
              0, times the embeddings; they add up to the difference that the text makes. "gradient-x-input": the
              gradient at the text alone, times the embeddings. "leave-one-out": the prediction less that of the text
              without the unit; later tokens move up
    unit      "token", "word" or "sentence"
    curves    compute deletion and insertion curves too: up to 42 forward passes
    points    intervals on the path of integrated gradients, at most; from 6 on they are doubled until the parts add up
              to within 1%

    Example: input_attribution(lab, "The capital of France is").values -> (0.1, 0.9, 0.2, 2.3, 0.4)
    Raises: LabError as `trace`, for a position that does not exist, another method or unit, and twice the same token.
    Source: Sundararajan et al., Axiomatic Attribution for Deep Networks (2017); Sarti et al., Inseq (2023); deletion and
    insertion curves: Petsiuk et al., RISE (2018).
    """
    choice("method", method, METHODS)
    choice("unit", unit, UNITS)
    whole_number("points", points, *POINTS)
    ids = text.ids.to(lab.device) if isinstance(text, Trace) else lab.encode_prompt(text)
    at = whole_number("position", position, -len(ids), len(ids) - 1) % len(ids)
    ids = ids[: at + 1]
    if token is None:
        token = int(_log_probabilities(lab, [ids]).argmax())
    target = token_id(lab, token), None if against is None else token_id(lab, against)
    if target[0] == target[1]:
        raise LabError("token {token} against itself is 0; give two tokens", token=token)
    return _attributed(lab, ids, target, method, unit, curves, points)


def _attributed(
    lab: Lab, ids: torch.Tensor, target: tuple[int, int | None], method: str, unit: str, curves: bool, points: int
) -> Generator[tuple[int, int], None, InputAttribution]:
    spans = _spans(lab, ids.tolist(), unit)
    U = len(spans)
    # units that the curves leave out
    counts = torch.linspace(0, U, min(U, CURVE) + 1).round().long().tolist() if curves else []
    singles = [{i} for i in range(U)] if method == "leave-one-out" else []
    steps = len(singles) + 2 * len(counts)
    total, error = float(_contrast(_log_probabilities(lab, [ids]), target)), None
    if method == "leave-one-out":
        values = total - (yield from _without(lab, ids, target, spans, singles, 0, steps))
    else:
        by_token, error = (
            _integrated(lab, ids, target, points)
            if method == METHODS[0]
            else (_gradients(lab, ids, target, torch.ones(1))[0][0], None)
        )
        values = torch.stack([by_token[first:end].sum() for first, end in spans])
    order = values.argsort(descending=True).tolist()
    gone = [*(set(order[:count]) for count in counts), *(set(order[count:]) for count in counts)]
    deletion, insertion = (yield from _without(lab, ids, target, spans, gone, len(singles), steps)).chunk(2)
    return InputAttribution(
        name=lab.name,
        tokens=display_tokens(lab.tokenizer, ids.tolist()),
        method=method,
        unit=unit,
        spans=tuple(spans),
        values=values,
        token=target[0],
        against=target[1],
        words=(
            display_token(lab.tokenizer, target[0]),
            None if target[1] is None else display_token(lab.tokenizer, target[1]),
        ),
        total=total,
        completeness_error=error,
        share=torch.tensor(counts) / U,
        deletion=deletion,
        insertion=insertion,
    )


def _spans(lab: Lab, ids: list[int], unit: str) -> list[tuple[int, int]]:
    """(first token, one past the last) of each unit; the space before a word belongs to it."""
    T = len(ids)
    if unit == "token":
        return [(i, i + 1) for i in range(T)]
    stream = DecodeStream(lab.tokenizer)
    added = [stream.add(i) for i in ids]
    text, starts = "".join(added), np.cumsum([0, *map(len, added[:-1])]).tolist()
    words = [start + len(text[start:]) - len(text[start:].lstrip()) for start in starts]
    pattern = WORD if unit == "word" else SENTENCE
    begins = {int(np.searchsorted(words, found.start())) for found in pattern.finditer(text)}
    first = [0, *sorted(i for i in begins if 0 < i < T)]
    return [*zip(first, [*first[1:], T])]


@torch.no_grad()
def _log_probabilities(lab: Lab, batch: Sequence[torch.Tensor]) -> torch.Tensor:
    """What follows each of n sequences of token ids, read in one forward pass: (n, V), on the CPU."""
    lengths = torch.tensor([len(ids) for ids in batch], device=lab.device)
    rows = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)  # no token reads what comes after it
    with eval_mode(lab.model):
        hidden = lab.model.transformer(rows, use_cache=False).last_hidden_state  # (n, T, D)
        last = hidden[torch.arange(len(batch), device=lab.device), lengths - 1]
        return lab.model.lm_head(last).float().log_softmax(-1).cpu()


def _contrast(log_probabilities: torch.Tensor, target: tuple[int, int | None]) -> torch.Tensor:
    """Log-probability of a token, less that of another if there is one: (n, V) -> (n,)."""
    token, against = target
    wanted = log_probabilities[:, token]
    return wanted if against is None else wanted - log_probabilities[:, against]


def _without(
    lab: Lab,
    ids: torch.Tensor,
    target: tuple[int, int | None],
    spans: Sequence[tuple[int, int]],
    gone: Sequence[set[int]],
    done: int,
    steps: int,
) -> Generator[tuple[int, int], None, torch.Tensor]:
    """The prediction without some units, once for each set of them: (n,).

    Without all, it is the prediction after the token that texts begin with, or after the text's first where there is none.
    """
    start = start_id(lab.tokenizer)
    nothing = ids[:1] if start is None else ids.new_tensor([lab.start_id])
    kept = [[ids[first:end] for i, (first, end) in enumerate(spans) if i not in each] for each in gone]
    texts = [torch.cat(parts) if parts else nothing for parts in kept]
    at_once, found = max(1, TOKENS_AT_ONCE // len(ids)), torch.empty(len(texts))
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # texts of one batch are of similar length
    for begin in range(0, len(texts), at_once):
        batch = order[begin : begin + at_once]
        found[batch] = _contrast(_log_probabilities(lab, [texts[i] for i in batch]), target)
        yield done + begin + len(batch), steps
    return found


def _gradients(
    lab: Lab, ids: torch.Tensor, target: tuple[int, int | None], shares: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient × input of each token (n, T), with the gradient at n shares of the embeddings, and the predictions there (n,)."""
    embedded = lab.model.transformer.wte(ids).detach()  # (T, D)
    found, predicted = [], []
    with eval_mode(lab.model), torch.enable_grad():
        for part in shares.to(embedded).split(max(1, TOKENS_AT_ONCE // len(ids))):
            inputs = (part[:, None, None] * embedded).requires_grad_()  # (n, T, D)
            last = lab.model.transformer(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, -1]
            contrast = _contrast(lab.model.lm_head(last).float().log_softmax(-1), target)  # (n,)
            [gradient] = torch.autograd.grad(contrast.sum(), inputs)
            found.append((gradient * embedded).sum(-1).float().cpu())
            predicted.append(contrast.detach().cpu())
    return torch.cat(found), torch.cat(predicted)


def _integrated(lab: Lab, ids: torch.Tensor, target: tuple[int, int | None], points: int) -> tuple[torch.Tensor, float]:
    """Integrated gradients of each token, (T,), and how far they are from adding up, as a share of what they should.

    The nodes of each Clenshaw-Curtis rule, from no embedding to all of it, are among those of the next.
    """
    n = POINTS[0]
    shares, weights = _rule(n)
    gradients, predicted = _gradients(lab, ids, target, shares)
    change = float(predicted[-1] - predicted[0])
    while True:
        values = (weights[:, None] * gradients).sum(0)  # (T,)
        error = abs(float(values.sum()) - change) / max(abs(change), 1e-6)
        if error <= ERROR or 2 * n > points:
            return values.float(), error
        n *= 2
        shares, weights = _rule(n)
        known, gradients = gradients, torch.empty(n + 1, len(ids))
        gradients[::2], gradients[1::2] = known, _gradients(lab, ids, target, shares[1::2])[0]


def _rule(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Nodes and weights (n+1,) of Clenshaw and Curtis on (0, 1), for an even number of intervals."""
    angles, terms = torch.arange(n + 1).double() * torch.pi / n, torch.arange(1, n // 2 + 1).double()
    factors = torch.where(terms == n // 2, 1, 2) / (4 * terms**2 - 1)
    weights = (1 - (factors * torch.cos(2 * angles[:, None] * terms)).sum(1)) / n  # (n+1,)
    weights[[0, n]] /= 2
    return (1 - angles.cos()) / 2, weights

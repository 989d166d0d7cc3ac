"""Surprisal of each token of a text: NLL, rank, entropy, and the top predictions in its place.

Of texts of any length, by a window that moves on.
"""

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from math import log

import numpy as np
import torch

from gpt2lab.data.tokens import display_tokens, token_names
from gpt2lab.errors import LabError, whole_number
from gpt2lab.model.lab import Lab, eval_mode
from gpt2lab.progress import stepwise
from gpt2lab.results import Result, Table

LOGITS_AT_ONCE = 1 << 22  # floats of logits held at a time: 16 MiB
MAX_CHARACTERS = 200_000  # of a text: 50,000 tokens, minutes of GPT-2 small on two cores
RANKS = (10, 100, 1000)  # where buckets of ranks end. Source: Gehrmann et al., GLTR (2019), section 3


@dataclass(frozen=True, eq=False, repr=False)
class Surprisal(Result):
    """How little a model expected each token, given those before it.

    tokens  T display strings, as of a trace
    names   display strings of the top predictions, by id
    ids     (T,)       int64
    nll     (T,)       nats; NaN for the first token, which nothing predicts
    rank    (T,)       int64, over the whole vocabulary; 1 is the top prediction, 0 for the first token
    entropy (T+1,)     nats, of the prediction at each place; the last is of what would follow, NaN for the first
    top     (T+1, n)   int64, the top predictions at each place, most probable first; -1 for the first
    top_probability (T+1, n); NaN for the first
    limits  where buckets of ranks end, rising
    """

    name: str
    tokens: tuple[str, ...]
    names: dict[int, str]
    ids: torch.Tensor
    nll: torch.Tensor
    rank: torch.Tensor
    entropy: torch.Tensor
    top: torch.Tensor
    top_probability: torch.Tensor
    limits: Sequence[int] = RANKS

    @property
    def title(self) -> str:
        """The model and the loss."""
        return f"Surprisal: {self.name}, {self.loss:.4f} nats per token"

    @property
    def bits(self) -> torch.Tensor:
        """(T,): the NLL in bits."""
        return self.nll / log(2)

    @property
    def pieces(self) -> list[tuple[str, float | None]]:
        """(display string, nats) of each token; None for the first."""
        return list(zip(self.tokens, (None, *self.nll[1:].tolist())))

    def top_predictions(self, place: int) -> list[tuple[int, str, float]]:
        """(id, display string, probability) of what was expected at a place; -1 is what would follow the text."""
        ids, probabilities = self.top[place].tolist(), self.top_probability[place].tolist()
        return [(i, self.names[i], p) for i, p in zip(ids, probabilities) if i >= 0]

    @property
    def loss(self) -> float:
        """Mean NLL of the predicted tokens, nats per token; NaN for a text of one token."""
        return float(self.nll.double().nanmean())

    @property
    def buckets(self) -> list[tuple[str, int]]:
        """How many tokens had a rank up to each limit and past the one before; the last bucket is past them all.

        Example: of limits (1, 10): [("1", 31), ("2 to 10", 20), ("past 10", 12)]
        """
        edges = list(self.limits)
        place = torch.bucketize(self.rank[1:], torch.tensor(edges))
        counts = torch.bincount(place, minlength=len(edges) + 1).tolist()
        lows = [1, *(edge + 1 for edge in edges)]
        names = [str(high) if low == high else f"{low:,} to {high:,}" for low, high in zip(lows, edges)]
        return list(zip([*names, f"past {edges[-1]:,}"], counts))

    def rows(self) -> list[list]:
        """A row per token; the last is of what would follow."""
        values = zip(self.nll.tolist(), self.bits.tolist(), self.rank.tolist(), self.entropy.tolist())
        costs = [[*row] if at else [None] * 4 for at, row in enumerate(values)]
        costs.append([None, None, None, float(self.entropy[-1])])
        expected = [
            ", ".join(f"{name} {p:.3f}" for _, name, p in self.top_predictions(at)[:5]) for at in range(len(costs))
        ]
        return [[at, *row] for at, row in enumerate(zip((*self.tokens, ""), *zip(*costs), expected))]

    def table(self) -> Table:
        """A row per token, and one of what would follow."""
        return Table(["at", "token", "nats", "bits", "rank", "entropy, nats", "top predictions"], self.rows())

    def arrays(self) -> dict[str, np.ndarray]:
        """The fields by name."""
        fields = {name: getattr(self, name).numpy() for name in ("ids", "nll", "rank", "entropy", "top")}
        return {"tokens": np.array(self.tokens), **fields}

    def record(self) -> dict:
        """Per token, null for the first; and how many tokens are in which bucket of ranks."""
        names = ("nll", "bits", "rank", "entropy")
        numbers = zip(*(getattr(self, name).tolist() for name in names))
        rows = [dict(zip(names, row)) if at else None for at, row in enumerate(numbers)]
        return {"surprisal": rows, "ranks": dict(self.buckets)}

    def change(self, other: "Surprisal") -> torch.Tensor:
        """(T,): how many nats more a second model's surprisal is; below 0 it expected the token better.

        Raises: LabError where the two are not of the same tokens.
        """
        if not torch.equal(self.ids, other.ids):
            raise LabError(
                "{name} and {other} read other tokens; compare models with one tokenizer and text",
                name=self.name,
                other=other.name,
            )
        return other.nll - self.nll


@dataclass(frozen=True, eq=False, repr=False)
class SurprisalChange(Result):
    """Surprisal of the same tokens in two models, or before and after a change of one.

    Raises: LabError where the two are not of the same tokens.
    """

    before: Surprisal
    after: Surprisal

    def __post_init__(self):
        self.before.change(self.after)

    @property
    def title(self) -> str:
        """Both losses."""
        first, second = self.before, self.after
        return (
            f"Surprisal: {first.name}, {first.loss:.4f} nats per token; {second.name}, {second.loss:.4f} "
            f"({self.change:+.4f})"
        )

    @property
    def change(self) -> float:
        """How much more the second loss is, nats per token."""
        return self.after.loss - self.before.loss

    def table(self) -> Table:
        """A row per token, and one of what would follow, in both."""
        changes = [*self.before.change(self.after).tolist(), None]
        changes[0] = None
        rows = [
            [*first, *second[2:], change]
            for first, second, change in zip(self.before.rows(), self.after.rows(), changes)
        ]
        head, *_ = self.before.table()
        return Table([*head, *(f"{name} after" for name in head[2:]), "change, nats"], rows)

    def arrays(self) -> dict[str, np.ndarray]:
        """The first's fields by name, and the second's with other_ before theirs."""
        return self.before.arrays() | {f"other_{name}": array for name, array in self.after.arrays().items()}


def limits_of(spoken: str) -> list[int]:
    """Limits of buckets from "10, 100, 1000". Raises: LabError for what is no list of numbers."""
    parts = [part.strip() for part in str(spoken).split(",")]
    if not all(re.fullmatch("[0-9]{1,9}", part) for part in parts):
        raise LabError(
            "limits must be numbers separated by commas, such as 10,100,1000; got {spoken!r}", spoken=str(spoken)[:40]
        )
    return rising([int(part) for part in parts])


def rising(limits: Sequence[int]) -> list[int]:
    """Limits of buckets. Raises: LabError where they do not rise, or are none."""
    edges = [whole_number("limit", limit, 1, 10**9) for limit in limits]
    if not edges or edges != sorted(set(edges)):
        raise LabError("limits {limits} do not rise; give whole numbers such as 10, 100, 1000", limits=list(limits))
    return edges


@stepwise
def surprisal(
    lab: Lab, text: str, *, top: int = 10, limits: Sequence[int] = RANKS
) -> Generator[tuple[int, int], None, Surprisal]:
    """How little each token of a text was expected.

    text    of any length up to MAX_CHARACTERS; past the model's context each token sees at least half of it before
    top     top predictions kept at each place
    limits  where buckets of ranks end, rising

    Steps: a window at a time, (tokens done, tokens in all).
    Example: surprisal(lab, "The moon is round").nll -> (nan, 5.1, 2.2, 9.8)
    Raises: LabError for a text that is empty or too long, and for limits that do not rise.
    """
    if isinstance(text, str) and len(text) > MAX_CHARACTERS:
        raise LabError(
            "the text has {count:,} characters; the limit is {max_characters:,}: take a part of it",
            count=len(text),
            max_characters=MAX_CHARACTERS,
        )
    ids = lab.encode(text)
    if not len(ids):
        raise LabError("the text is empty; type at least one character")
    return surprisal_of_ids.steps(lab, ids, top=top, limits=limits)


@stepwise
def surprisal_of_ids(
    lab: Lab, ids: torch.Tensor, *, top: int = 10, limits: Sequence[int] = RANKS
) -> Generator[tuple[int, int], None, Surprisal]:
    """`surprisal` for token ids (T,). Raises: LabError for a `top` out of range, and for limits that do not rise."""
    whole_number("top", top, 1, min(100, lab.model.config.vocab_size))
    return _windows(lab, ids, top, rising(limits))


def _windows(
    lab: Lab, ids: torch.Tensor, top: int, limits: Sequence[int]
) -> Generator[tuple[int, int], None, Surprisal]:
    T = len(ids)
    nothing = {"nll": torch.nan, "rank": 0, "entropy": torch.nan, "top": -1, "top_probability": torch.nan}
    parts = [{name: torch.tensor([value] if "top" not in name else [[value] * top]) for name, value in nothing.items()}]
    done, begin = 0, 0  # tokens whose followers are predicted
    while done < T:
        end = min(T, begin + lab.context)
        with torch.no_grad(), eval_mode(lab.model):
            hidden = lab.model.transformer(ids[None, begin:end], use_cache=False).last_hidden_state[0, done - begin :]
            at_once = max(1, LOGITS_AT_ONCE // lab.model.config.vocab_size)
            for i in range(0, len(hidden), at_once):
                parts.append(_predicted(lab, hidden[i : i + at_once], ids[done + i + 1 :], top))
        done, begin = end, end - lab.context // 2
        yield done, T
    joined = {name: torch.cat([part[name] for part in parts]) for name in nothing}
    shown, names = display_tokens(lab.tokenizer, ids.tolist()), token_names(lab.tokenizer, joined["top"])
    return Surprisal(lab.name, shown, names, ids.cpu(), **joined, limits=limits)


def _predicted(lab: Lab, hidden: torch.Tensor, following: torch.Tensor, top: int) -> dict[str, torch.Tensor]:
    """What is predicted after hidden states (t, D), of which the first have a token that follows: t or t - 1."""
    logs = lab.model.lm_head(hidden).float().log_softmax(-1)  # (t, V)
    targets = following[: len(hidden), None]
    mine = logs[: len(targets)].gather(1, targets)
    best = logs.topk(top)
    return {
        "nll": -mine[:, 0].cpu(),
        "rank": ((logs[: len(targets)] > mine).sum(-1) + 1).cpu(),
        "entropy": torch.special.entr(logs.exp()).sum(-1).cpu(),
        "top": best.indices.cpu(),
        "top_probability": best.values.exp().cpu(),
    }

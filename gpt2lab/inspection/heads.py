"""Head scores (previous token, induction, …), a head described in a sentence, and attention rollout.

From traces, a layer at a time.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import NamedTuple

import numpy as np
import torch

from gpt2lab.errors import LabError, Message, choice, whole_number
from gpt2lab.inspection.trace import Trace, trace_batch, trace_ids
from gpt2lab.model.lab import Lab
from gpt2lab.results import Result, Table

REPEATED_TOKENS = 50  # length of the random sequence that is shown twice
REPEATED_SEQUENCES = 4  # over which induction is averaged
STANDS_OUT = 0.5  # share of attention; uniform attention exceeds it neither for the first token nor for the one before
ROLLOUT_CAVEAT = (
    "Rollout of a causal model over-weights early tokens, which every later token can reach along more paths. "
    "It follows attention weights alone, and is no causal evidence."
)


class Score(NamedTuple):
    """What a number per head is called, what it is measured in, and what it says, in one sentence."""

    title: str
    unit: str
    definition: str


@dataclass(frozen=True, eq=False, repr=False)
class HeadMap(Result):
    """A number per head, (L, H), what it is called and measured in, and what its colours stand for."""

    values: torch.Tensor
    title: str
    unit: str
    vmin: float | None = None  # of the low end; None: the least of the values
    centred: bool = False  # two colours, for above and below 0

    def table(self) -> Table:
        """A row per head."""
        rows = ((layer, head, x) for layer, row in enumerate(self.values.tolist()) for head, x in enumerate(row))
        return Table(["layer", "head", f"{self.title} ({self.unit})"], rows)

    def arrays(self) -> dict[str, np.ndarray]:
        """The values (L, H), their title and unit."""
        return {"values": self.values.numpy(), "title": np.array(self.title), "unit": np.array(self.unit)}


SHARE = Message("share of attention, 0 to 1")
SCORES: dict[str, Score] = {
    "previous_token": Score(Message("previous token"), SHARE, Message("Mean weight on the token just before.")),
    "duplicate_token": Score(
        Message("duplicate token"),
        SHARE,
        Message("Mean weight on the earlier occurrences of the same token, over the tokens that occurred before."),
    ),
    "induction": Score(
        Message("induction"),
        SHARE,
        Message("In random tokens shown twice, mean weight on the token that followed the same token the first time."),
    ),
    "first_token": Score(
        Message("first token"),
        SHARE,
        Message("Mean weight on the first token, the sink; the first token left out."),
    ),
    "entropy": Score(
        Message("entropy"),
        Message("nats, 0 to ln T"),
        Message("Mean entropy of a token's weights: how widely a head looks."),
    ),
    "distance": Score(
        Message("distance"), Message("tokens"), Message("Mean number of tokens that a head looks back, by its weights.")
    ),
}
TEXT_SCORES = tuple(name for name in SCORES if name != "induction")  # those that any text of 2 tokens has
KINDS = {  # of heads, by their score, and what that is a share of
    "previous_token": ("a previous-token head", "of its attention goes to the token before"),
    "duplicate_token": (
        "a duplicate-token head",
        "of the attention of a token that occurred before goes to its earlier occurrences",
    ),
    "induction": (
        "an induction head",
        "of its attention goes to what followed the same token the first time, in random tokens shown twice",
    ),
    "first_token": ("a first-token head", "of its attention goes to the first token"),
}


@dataclass(frozen=True, eq=False, repr=False)
class HeadScores(Result):
    """How much each head behaves in a known way; `SCORES` defines each score.

    previous_token, induction, first_token  (L, H)  in [0, 1]
    duplicate_token                         (L, H)  in [0, 1]; NaN where no text repeats a token
    entropy                                 (L, H)  nats, from 0 to ln T
    distance                                (L, H)  tokens, from 0 to (T - 1) / 2, the mean place of a token
    name                                    of the model
    """

    previous_token: torch.Tensor
    duplicate_token: torch.Tensor
    induction: torch.Tensor
    first_token: torch.Tensor
    entropy: torch.Tensor
    distance: torch.Tensor
    name: str = "every head"

    def __post_init__(self):
        shapes = {name: tuple(getattr(self, name).shape) for name in SCORES}
        if len(set(shapes.values())) > 1 or len(shapes["induction"]) != 2:
            raise ValueError(f"scores of shapes {shapes}; all are (L, H)")

    @property
    def title(self) -> str:
        """The model."""
        return f"Head scores: {self.name}"

    def table(self) -> Table:
        """A row per head."""
        L, H = self.induction.shape
        rows = (
            [layer, head, *(float(getattr(self, name)[layer, head]) for name in SCORES)]
            for layer in range(L)
            for head in range(H)
        )
        return Table(["layer", "head", *SCORES], rows)

    def arrays(self) -> dict[str, np.ndarray]:
        """Every score by name, (L, H)."""
        return {name: getattr(self, name).numpy() for name in SCORES}

    def record(self) -> dict:
        """Every score by name, L×H lists."""
        return {"heads": super().record()}

    def top(self, score: str, count: int = 3) -> list[tuple[int, int, float]]:
        """(layer, head, score) of the highest heads, highest first; heads without a score are left out.

        score  a name in `SCORES`

        Raises: LabError for another name.
        """
        return highest(self.map(score).values, count)

    def map(self, score: str) -> HeadMap:
        """One score of every head, to be drawn.

        score  a name in `SCORES`

        Raises: LabError for another score.
        """
        choice("score", score, SCORES)
        return HeadMap(getattr(self, score), f"{SCORES[score].title}: {self.name}", SCORES[score].unit)


def highest(values: torch.Tensor, count: int) -> list[tuple[int, int, float]]:
    """(layer, head, value) of the `count` largest of (L, H), largest first; NaN is left out."""
    every = ((layer, head, value) for layer, row in enumerate(values.tolist()) for head, value in enumerate(row))
    return nlargest(count, (found for found in every if found[2] == found[2]), key=lambda found: found[2])


def head_scores(lab: Lab, texts: Sequence[str] | None = None, *, seed: int = 0) -> HeadScores:
    """Every score of every head.

    texts  of 2 to `lab.context` tokens each: all scores but induction are means over them, and
           duplicate_token over those that repeat a token. None: seeded random tokens shown twice,
           which keep what a head does apart from what the words invite it to do
    seed   of the random tokens, on which induction is always measured

    Example: head_scores(load_model("builtin"), ["The moon is a moon."]).top("first_token", 1)
    Raises: LabError for one text in place of a list, for no texts, and for one that is too short or does not fit.
    Source: Olsson et al., In-context Learning and Induction Heads (2022), "Defining induction heads".
    """
    encoded = None if texts is None else encoded_texts(lab, texts)
    shown_twice = trace_batch(lab, random_tokens_twice(lab, seed))
    if encoded is None:
        return scores_of_twice(shown_twice, lab.name)
    read = _mean_scores((trace_ids(lab, ids) for ids in encoded), TEXT_SCORES)
    return HeadScores(**read, **_mean_scores(shown_twice, ("induction",)), name=lab.name)


def scores_of_twice(traces: Sequence[Trace], name: str) -> HeadScores:
    """`head_scores` of traces of `random_tokens_twice`. Raises: LabError for traces of other texts."""
    return HeadScores(**_mean_scores(traces, tuple(SCORES)), name=name)


def scores_of(lab: Lab, trace: Trace, *, seed: int = 0, induction: torch.Tensor | None = None) -> HeadScores:
    """`head_scores` for a text that is traced already.

    induction  (L, H), of `induction_scores`, where they are known already: they depend on no text

    Raises: LabError for a trace of one token.
    """
    found = induction_scores(lab, seed=seed) if induction is None else induction
    return HeadScores(**trace_scores(trace), induction=found, name=trace.name)


def induction_scores(lab: Lab, *, seed: int = 0) -> torch.Tensor:
    """(L, H): the induction score of every head, on random tokens shown twice."""
    shown_twice = trace_batch(lab, random_tokens_twice(lab, seed))
    return _mean_scores(shown_twice, ("induction",))["induction"]


def encoded_texts(lab: Lab, texts: Sequence[str]) -> list[torch.Tensor]:
    """The ids (T,) of each text, T ≥ 2. Raises: LabError as `head_scores`."""
    if isinstance(texts, str):
        raise LabError("texts is a single text, {texts!r}; give a list of texts, [text]", texts=texts[:20])
    encoded = [lab.encode_prompt(text) for text in texts]
    if not encoded:
        raise LabError("the list of texts is empty; give at least 1 text, or None for random tokens")
    for text, ids in zip(texts, encoded):
        if len(ids) < 2:
            raise LabError("the text {text!r} has 1 token, and none before it; give at least 2", text=text)
    return encoded


def random_tokens_twice(lab: Lab, seed: int) -> list[torch.Tensor]:
    """Sequences (2n,) of n random tokens, shown twice; n is REPEATED_TOKENS, or half the context if that is less."""
    whole_number("seed", seed, 0, 2**63 - 1)
    n = min(REPEATED_TOKENS, lab.context // 2)
    generator = torch.Generator().manual_seed(seed)
    sequences = torch.randint(lab.model.config.vocab_size, (REPEATED_SEQUENCES, n), generator=generator)
    return list(sequences.repeat(1, 2).to(lab.device))


def trace_scores(trace: Trace, names: Sequence[str] = TEXT_SCORES) -> dict[str, torch.Tensor]:
    """Scores of the heads on one text, by name, each (L, H).

    names  in `SCORES`; "induction" only for a trace of n tokens shown twice

    Raises: LabError for one token, and for induction on a text that is no sequence shown twice.
    """
    if len(trace.tokens) < 2:
        raise LabError("one token has no token before it; give at least 2")
    layers: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for layer in range(trace.n_layers):
        weights = trace.attention(layer)  # (H, T, T)
        for name in names:
            layers[name].append(SCORE_FUNCTIONS[name](weights, trace.ids))
    return {name: torch.stack(rows) for name, rows in layers.items()}


def _mean_scores(traces: Iterable[Trace], names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Means over texts; those without a repeated token do not count for duplicate_token."""
    scores = [trace_scores(trace, names) for trace in traces]
    mean = dict.fromkeys(names, torch.mean) | {"duplicate_token": torch.nanmean}
    return {name: mean[name](torch.stack([each[name] for each in scores]), 0) for name in names}


def _previous_token(weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return weights.diagonal(-1, dim1=1, dim2=2).mean(-1)


def _duplicate_token(weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    earlier = (ids[:, None] == ids).tril(-1)  # (T, T)
    return (weights * earlier).sum(-1)[:, earlier.any(-1)].mean(-1)  # of no rows: NaN


def _induction(weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    n, odd = divmod(len(ids), 2)
    if odd or n < 2 or not torch.equal(ids[:n], ids[n:]):
        raise LabError("{count} tokens are not a sequence shown twice; induction is measured on such", count=len(ids))
    return weights.diagonal(1 - n, dim1=1, dim2=2)[:, 1:].mean(-1)  # entry d is row n - 1 + d, and row n comes first


def _first_token(weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return weights[:, 1:, 0].mean(-1)


def _entropy(weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return torch.special.entr(weights).sum(-1).mean(-1)


def _distance(weights: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    places = torch.arange(len(ids))
    return (weights * (places[:, None] - places)).sum(-1).mean(-1)


# Weights (H, T, T) of a layer and ids (T,) -> (H,)
SCORE_FUNCTIONS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "previous_token": _previous_token,
    "duplicate_token": _duplicate_token,
    "induction": _induction,
    "first_token": _first_token,
    "entropy": _entropy,
    "distance": _distance,
}


def describe_head(scores: HeadScores, layer: int, head: int) -> str:
    """What a head is, in plain sentences: the known kind it is, with the share of attention that says so.

    A kind stands out where its share is above `STANDS_OUT`. Ranks are among all heads of the model, 1 the highest.

    Example: "Layer 1, head 2 is most of all a previous-token head: 0.83 of its attention goes to the token
              before (rank 1 of 8 among all heads). On average it looks 1.4 tokens back (rank 8 of 8), with an
              entropy of 0.61 nats (rank 7 of 8)."
    Raises: LabError for a layer or head that does not exist.
    """
    L, H = scores.induction.shape
    whole_number("layer", layer, 0, L - 1)
    whole_number("head", head, 0, H - 1)
    value = {name: float(getattr(scores, name)[layer, head]) for name in SCORES}
    rank = {name: f"rank {int((getattr(scores, name) > value[name]).sum()) + 1} of {L * H}" for name in SCORES}
    measured = [name for name in KINDS if value[name] == value[name]]
    first, *others = sorted(measured, key=lambda name: value[name], reverse=True)
    share = {name: f"{value[name]:.2f} {KINDS[name][1]} ({rank[name]}" for name in measured}
    if value[first] > STANDS_OUT:
        kind = f"is most of all {KINDS[first][0]}: {share[first]} among all heads)"
        kind += "".join(f"; {share[name]})" for name in others if value[name] > STANDS_OUT)
    else:
        kind = f"follows no known pattern that stands out: at most, {share[first]} among all heads)"
    unknown = "" if "duplicate_token" in measured else " No token was repeated, so that its duplicate score is unknown."
    return (
        f"Layer {layer}, head {head} {kind}. On average it looks {value['distance']:.1f} tokens back "
        f"({rank['distance']}), with an entropy of {value['entropy']:.2f} nats ({rank['entropy']}).{unknown}"
    )


@dataclass(frozen=True, eq=False, repr=False)
class Rollout(Result):
    """Attention followed through all layers of a trace. What it is not, `ROLLOUT_CAVEAT` says.

    weights  (T, T): how much of token i comes, after the last layer, from token j; rows sum to 1, none from ahead
    """

    trace: Trace
    weights: torch.Tensor

    @property
    def title(self) -> str:
        """Attention rollout, and the model's name."""
        return f"Attention rollout: {self.trace.name}"

    def table(self) -> Table:
        """A row per token and token that it may come from."""
        tokens = self.trace.tokens
        rows = (
            [i, tokens[i], j, tokens[j], share]
            for i, row in enumerate(self.weights.tolist())
            for j, share in enumerate(row[: i + 1])
        )
        return Table(["query", "query_token", "key", "key_token", "share"], rows)

    def arrays(self) -> dict[str, np.ndarray]:
        """Shares (T, T), tokens and ids."""
        ids, tokens = self.trace.ids.numpy(), np.array(self.trace.tokens)
        return {"shares": self.weights.numpy(), "tokens": tokens, "ids": ids}


def rollout(trace: Trace) -> Rollout:
    """Attention rollout: per layer the mean over heads, half of it the residual path, multiplied over layers.

    In causal models it over-weights early tokens, which every later token can reach along more paths;
    and it follows attention weights alone, which is no causal evidence.

    Source: Abnar and Zuidema, Quantifying Attention Flow in Transformers (2020), section 3.
    """
    own = torch.eye(len(trace.tokens))
    mixed = own
    for layer in range(trace.n_layers):
        mixed = (trace.attention(layer).mean(0) + own) / 2 @ mixed
    return Rollout(trace, mixed)

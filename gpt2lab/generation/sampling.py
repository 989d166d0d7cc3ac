"""One step of a text: the next token drawn from the model's distribution, and what it was drawn from."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from transformers import LogitsProcessorList
from transformers.generation import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gpt2lab.errors import LabError
from gpt2lab.results import Summary
from gpt2lab.settings import check_settings, setting

MIN_TEMPERATURE = 1e-6  # below it the top prediction has all the probability, to a float's precision: greedy
MAX_TEMPERATURE = 100  # past it every token is as likely as any other to three digits
MAX_SEED = 2**63 - 1  # torch.Generator's own limit
TOP_LOGPROBS = 512  # probabilities that a step keeps: 2 kB


class TopP(TopPLogitsWarper):
    """transformers' top-p filter for one row on the CPU, with the same result in a tenth of the time.

    It sorts values alone, by numpy, which uses vector instructions. torch's sort of 50,257 logits takes 5 ms.
    """

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Set the logits (1, V) of the least probable tokens, which together have at most 1 - top_p, to -inf."""
        ordered = torch.from_numpy(np.sort(scores[0].numpy()))
        removed = int((ordered.softmax(-1).cumsum(-1) <= 1 - self.top_p)[:-1].sum())
        if removed and ordered[removed - 1] == ordered[removed]:  # which of several equal ones stay is for torch's sort
            return super().__call__(input_ids, scores)
        return scores.masked_fill(scores < ordered[removed], self.filter_value)


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    The penalty comes first, then the filters in their order, each on what is left of the whole vocabulary.
    """

    temperature: float = setting(
        1.0,
        "0 is greedy: always the most probable token. 1 is the model's own distribution.",
        low=0,
        high=MAX_TEMPERATURE,
    )
    top_k: int | None = setting(None, "Draw among the k most probable tokens. Default: all.", low=1, high=10**9)
    top_p: float = setting(
        1.0,
        "Draw among the fewest tokens whose probabilities reach p.",
        low=0,
        high=1,
        zero="top_p 0 leaves no token; use more than 0, at most 1 (temperature 0 is greedy)",
    )
    min_p: float = setting(
        0.0, "Draw among tokens with at least this share of the top prediction's probability.", low=0, high=1
    )
    # Source: Keskar et al., CTRL (2019), section 4.1: logits are divided by it, or multiplied where they are negative
    repetition_penalty: float = setting(
        1.0,
        "Above 1 makes tokens that were there before less probable; 1 is none.",
        low=0,
        high=100,
        zero="repetition_penalty 0 divides by zero; use 1 for none, more to avoid repetition",
    )
    seed: int = setting(0, "The same seed gives the same text on the same machine.", low=0, high=MAX_SEED)

    def __post_init__(self):
        check_settings(self)

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature < MIN_TEMPERATURE

    def warpers(self) -> LogitsProcessorList:
        """transformers' processors that come after a penalty, in its order; empty for the model's own distribution."""
        warpers = LogitsProcessorList()
        if not self.greedy and self.temperature != 1:
            warpers.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k is not None:
            warpers.append(TopKLogitsWarper(int(self.top_k)))
        if self.top_p < 1:
            warpers.append(TopP(float(self.top_p)))
        if self.min_p > 0:
            warpers.append(MinPLogitsWarper(float(self.min_p)))
        return warpers

    def penalised(self, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Logits (1, V) after tokens ids (1, T), less the penalty on repetition."""
        if self.repetition_penalty == 1:
            return logits
        return RepetitionPenaltyLogitsProcessor(float(self.repetition_penalty))(ids, logits.clone())


@dataclass(frozen=True)
class Alternative:
    """A token that could have stood at a step.

    probability          the model's own
    sampled_probability  what the sampler would have drawn it with, after temperature and filters
    """

    token: str
    id: int
    probability: float
    sampled_probability: float


@dataclass(frozen=True, repr=False)
class Step(Summary):
    """One token of a generation.

    token                 its own text; its bytes, as "⟨F0 9F⟩", where it is a part of a character
    probability           the model's own, before temperature and filters
    rank                  1 is the model's top prediction
    entropy               of the model's own distribution, nats
    alternatives          the model's top predictions, most probable first
    sampled_probability   what the sampler drew the token with, after temperature and filters
    removed               probability, after temperature, that top-k, top-p and min-p took away
    top_logprobs          log probabilities (M,) of the model's TOP_LOGPROBS top predictions, for `redrawn`
    window_shifted        whether the model read only the last `window` tokens again to get here
    """

    token: str
    id: int
    probability: float
    rank: int
    entropy: float
    alternatives: tuple[Alternative, ...]
    sampled_probability: float
    removed: float
    top_logprobs: np.ndarray = field(repr=False, compare=False)
    window_shifted: bool = False

    def with_token(self, id: int) -> "Step":
        """The step with one of its alternatives in the chosen token's place. Raises: LabError for another id."""
        for other in self.alternatives:
            if other.id == id:
                rank = 1 + sum(each.probability > other.probability for each in self.alternatives)
                chosen = {name: getattr(other, name) for name in ("token", "id", "probability", "sampled_probability")}
                return replace(self, rank=rank, **chosen)
        known = ", ".join(f"{each.id} {each.token!r}" for each in self.alternatives[:5])
        raise LabError("token {id!r} is not among this step's alternatives; choose one of {known}…", id=id, known=known)


class Redrawn(NamedTuple):
    """Bounds (M,) of the probabilities that a sampler would draw a step's top predictions with."""

    low: np.ndarray
    high: np.ndarray


def redrawn(step: Step, sampling: Sampling, V: int) -> Redrawn:
    """What another sampler would draw a step's top predictions with, by the probabilities kept of them: no model runs.

    V  tokens of the vocabulary

    Of the others it is known what they add up to, and that none is larger than the last top prediction: bounds meet where
    that is enough, as at temperature 1, or where the filters keep none of them. It knows no repetition penalty.
    Example: redrawn(step, Sampling(top_k=1), V).low -> (1, 0, 0, …)
    """
    logs = step.top_logprobs.astype(np.float64)
    M = len(logs)
    if sampling.greedy:
        only = np.eye(1, M)[0]
        return Redrawn(only, only)
    w = np.exp((logs - logs[0]) / sampling.temperature)  # weights, the first top prediction's 1
    others = _others(logs, V - M, sampling.temperature)
    if sampling.top_k is not None:
        w = np.where(w >= w[min(sampling.top_k, M) - 1], w, 0)
        left = max(0, min(sampling.top_k, V) - M)
        others = (others[0] * left / max(1, V - M), min(others[1], left * w[-1]))
    reached = w.cumsum()
    least = int((w >= sampling.min_p).sum())  # top predictions that min-p leaves

    def kept(rest: float) -> tuple[int, float, float]:
        """How many top predictions the filters leave, and least and most that all they leave adds up to."""
        enough = sampling.top_p * (reached[-1] + rest)
        n = min(int((reached - w < enough).sum()), least)
        if least < M or reached[-1] >= enough:
            return n, reached[n - 1], reached[n - 1]
        return n, reached[-1] if sampling.min_p else enough, min(reached[-1] + rest, enough + w[-1])

    (fewest, smallest, _), (most, _, largest) = map(kept, others)
    place = np.arange(M)
    return Redrawn(np.where(place < fewest, w / largest, 0), np.where(place < most, np.minimum(w / smallest, 1), 0))


def _others(logs: np.ndarray, n: int, temperature: float) -> tuple[float, float]:
    """Least and most that the weights of n tokens past the top predictions add up to, as each has at most the last one's."""
    if n == 0:
        return 0.0, 0.0
    power, first, last = 1 / temperature, np.exp(logs[0]), logs[-1] - logs[0]
    sums = [max(0.0, 1 - np.exp(logs).sum() + rounding) / first for rounding in (-1e-6, 1e-6)]  # of float32

    def even(total: float) -> float:  # all alike: of powers below 1 the largest sum, of those above the smallest
        return n * (total / n) ** power

    def uneven(total: float) -> float:  # each as large as the last top prediction, or nothing
        return total * np.exp(last * (power - 1)) if total else 0.0

    low, high = (uneven, even) if power < 1 else (even, uneven)
    return low(sums[0]), min(high(sums[1]), n * np.exp(last * power))


def draw(
    sampling: Sampling,
    logits: torch.Tensor,
    ids: torch.Tensor,
    generator: torch.Generator,
    *,
    alternatives: int,
    spell: Callable[[int], str],
) -> Step:
    """The step after tokens ids (1, T), drawn from logits (1, V), all on the CPU."""
    scores = sampling.penalised(ids, logits)
    if sampling.greedy:
        return step_of(logits, int(scores[0].argmax()), alternatives=alternatives, spell=spell)
    warped = sampling.warpers()(ids, scores)
    drawn_from = warped.softmax(-1)[0]
    chosen = int(torch.multinomial(drawn_from, 1, generator=generator))
    tempered = (scores[0] / sampling.temperature).softmax(-1)
    removed = float(tempered[torch.isinf(warped[0])].sum())
    return step_of(logits, chosen, drawn_from, removed, alternatives=alternatives, spell=spell)


def step_of(
    logits: torch.Tensor,
    chosen: int,
    drawn_from: torch.Tensor | None = None,
    removed: float = 0.0,
    *,
    alternatives: int,
    spell: Callable[[int], str],
) -> Step:
    """The step that took a token where the model's logits were (1, V); `drawn_from` (V,), or None where the choice was certain."""
    logs = logits.log_softmax(-1)[0]  # (V,)
    own = logs.exp()
    if drawn_from is None:
        drawn_from = torch.zeros_like(own).index_fill_(0, torch.tensor([chosen]), 1.0)
    top = logs.topk(min(TOP_LOGPROBS, len(logs)))
    best = top.indices[:alternatives]
    rows = zip(best.tolist(), own[best].tolist(), drawn_from[best].tolist())
    return Step(
        token=spell(chosen),
        id=chosen,
        probability=float(own[chosen]),
        rank=int((logs > logs[chosen]).sum()) + 1,
        entropy=float(torch.special.entr(own).sum()),
        alternatives=tuple(Alternative(spell(i), i, p, sampled) for i, p, sampled in rows),
        sampled_probability=float(drawn_from[chosen]),
        removed=removed,
        top_logprobs=top.values.numpy(),
    )

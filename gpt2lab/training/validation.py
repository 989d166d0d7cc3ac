"""Validation on a budget: which blocks are scored how often, their losses, and what changed between two models."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from math import ceil, exp

import numpy as np
import torch

from gpt2lab.data.blocks import IGNORED, Blocks
from gpt2lab.errors import LabError, Message
from gpt2lab.evaluation.bootstrap import expanded_interval, resampled_sums
from gpt2lab.model.lab import Lab, eval_mode, token_nll
from gpt2lab.model.precision import autocast
from gpt2lab.results import percent, perplexity_of, readable

EVALUATIONS = 10  # validations after the one before training, where the budget allows them
BUDGET = 0.1  # of the training time, for all validations together
MIN_TOKENS = 1024  # scored in a validation: fewer say too little, so that there are fewer validations instead
SAMPLE_COST = 2000  # tokens scored in the time in which the sample of a validation is generated, on CPUs
# Training on a token costs this many times scoring it: forward, and a backward pass of two products for each of
# the forward's, or of one where the weights are frozen.
TRAIN_PER_SCORED = {"full": 3, "scratch": 3, "lora": 2}


@dataclass(frozen=True)
class Change:
    """Loss of two models on the same blocks of a validation split.

    before, after  nats per token
    tokens         predicted tokens in these blocks · split_tokens  in the whole split
    low, high      95 % bootstrap interval of `ratio`, drawn over blocks; None below two blocks
    """

    before: float
    after: float
    tokens: int
    split_tokens: int
    low: float | None = None
    high: float | None = None

    @property
    def ratio(self) -> float:
        """Perplexity after divided by perplexity before: below 1 is better."""
        return perplexity_of(self.after - self.before)

    @property
    def is_whole(self) -> bool:
        """Whether every block of the split was scored."""
        return self.tokens == self.split_tokens

    @property
    def part(self) -> Message:
        """Say how much of the split was scored. Example: "2,040 of 279,500 tokens"."""
        if self.is_whole:
            return Message("all {count:,} tokens", count=self.split_tokens)
        return Message("{count:,} of {total:,} tokens", count=self.tokens, total=self.split_tokens)

    @property
    def relative(self) -> Message:
        """Say how the perplexity changed. Example: "-19.0% (95 % interval -20.1% to -17.8%)"."""
        change = percent(self.ratio - 1, "+")
        if self.low is None or self.high is None:
            return Message("{change}", change=change)
        return Message(
            "{change} (95 % interval {low} to {high})",
            change=change,
            low=percent(self.low - 1, "+"),
            high=percent(self.high - 1, "+"),
        )

    @property
    def sentence(self) -> Message:
        """Perplexity before and after, the change with its interval, and how much text it is of."""
        return Message(
            "{before} → {after}, {change}, on {part}",
            before=readable(perplexity_of(self.before)),
            after=readable(perplexity_of(self.after)),
            change=self.relative,
            part=self.part,
        )

    def __str__(self) -> str:
        return str(self.sentence)


def plan_validation(
    method: str, steps: int, train_tokens: int, split_tokens: int, *, eval_every: int | None, eval_tokens: int | None
) -> tuple[int, int]:
    """Choose how often to validate and on how many tokens, for about a tenth of the training time.

    train_tokens  read in the whole run · split_tokens  of the validation split
    eval_every    optimizer steps between validations, where the user has chosen · eval_tokens  likewise

    Returns (optimizer steps between validations, tokens scored each time).
    Example: plan_validation("full", 10, 20_480, 280_000, eval_every=None, eval_tokens=None) -> (10, 1072)
    """
    budget = BUDGET * TRAIN_PER_SCORED[method] * train_tokens  # in scored tokens
    least = eval_tokens or min(MIN_TOKENS, split_tokens)
    is_cheap = split_tokens <= MIN_TOKENS or eval_tokens
    affordable = EVALUATIONS if is_cheap else int(budget // (least + SAMPLE_COST)) - 1
    eval_every = eval_every or ceil(steps / max(1, min(EVALUATIONS, affordable, steps)))
    if eval_tokens:
        return eval_every, min(eval_tokens, split_tokens)
    validations = ceil(steps / eval_every) + 1
    return eval_every, int(min(split_tokens, max(least, budget / validations - SAMPLE_COST)))


def sample_blocks(blocks: Blocks, tokens: int) -> Blocks:
    """Draw whole blocks that hold at least that many tokens; all of them if there are no more.

    The draw is the same in every run, in the order of the text, and a larger sample contains a smaller one.
    """
    n = ceil(tokens / blocks.input_ids.shape[1])
    if n >= len(blocks):
        return blocks
    chosen = torch.from_numpy(np.sort(np.random.default_rng(0).permutation(len(blocks))[:n]))
    labels = blocks.labels[chosen]
    return Blocks(blocks.input_ids[chosen], labels, int((labels != IGNORED).sum()))


def predicted_tokens(blocks: Blocks) -> int:
    """Count the tokens that blocks predict: all but the first of each."""
    return int((blocks.labels[:, 1:] != IGNORED).sum())


def block_sums(nll: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum the NLL of each block over its predicted tokens.

    nll  (B, T - 1) nats · labels  (B, T)
    returns  (B, 2) float64: nats, tokens predicted
    """
    counted = labels[:, 1:] != IGNORED
    return torch.stack([(nll * counted).double().sum(1), counted.sum(1)], dim=1)


def score_blocks(
    labs: Sequence[Lab], blocks: Blocks, batch_size: int, precision: str
) -> Generator[tuple[int, int], None, np.ndarray]:
    """Score blocks under several models, a batch at a time.

    Yields (blocks done, blocks in all); returns (models, N, 2), nats and predicted tokens of each block.
    """
    sums = []
    for i in range(0, len(blocks), batch_size):
        ids, labels = blocks.input_ids[i : i + batch_size], blocks.labels[i : i + batch_size]
        rows = []
        for lab in labs:
            with autocast(precision, lab.device), eval_mode(lab.model):
                rows.append(block_sums(token_nll(lab.model, ids.to(lab.device)).cpu(), labels))
        sums.append(torch.stack(rows))
        yield min(i + batch_size, len(blocks)), len(blocks)
    return torch.cat(sums, dim=1).numpy()


def change_of(before: np.ndarray, after: np.ndarray, split_tokens: int) -> Change:
    """Compare two models by their losses on the same blocks: (N, 2) nats and tokens of each.

    Raises: LabError for losses of different blocks.
    """
    if before.shape != after.shape or (before[:, 1] != after[:, 1]).any():
        raise LabError("The losses before and after are of different blocks; they cannot be compared.")
    tokens, low, high = before[:, 1], None, None
    if len(before) > 1:
        difference, sizes = resampled_sums(np.array([after[:, 0] - before[:, 0], tokens]))
        low, high = map(exp, expanded_interval(difference / sizes, len(before)))
    old, new = (float(rows[:, 0].sum() / tokens.sum()) for rows in (before, after))
    return Change(old, new, int(tokens.sum()), split_tokens, low, high)

"""Activation patching: states of a clean prompt put into a corrupted one, one at a time."""

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch

from gpt2lab.data.tokens import display_token
from gpt2lab.errors import LabError, whole_number
from gpt2lab.inspection.ablation import ROWS_AT_ONCE, above
from gpt2lab.inspection.lens import entry_name, log_probabilities, token_id
from gpt2lab.inspection.trace import ResidualTrace, trace_ids, with_residual
from gpt2lab.model.lab import Lab, eval_mode
from gpt2lab.progress import stepwise
from gpt2lab.results import Result, Summary, Table

MAX_PATCHED = 256  # tokens of prompts whose states are patched: as many forward passes of them per layer
MIN_DIFFERENCE = 1e-4  # of two logit differences, which are float32


@dataclass(frozen=True, eq=False, repr=False)
class Patching(Result):
    """What a corrupted run answers with the clean run's state put in at one place.

    tokens, clean_tokens  T display strings of the corrupted prompt, and of the clean one
    answer, against  ids, and `words` their display strings; the logit of the first less that of the second, after the last token, is measured
    values     (L+1, T)  entry l, place t: the state that enters block l at token t is the clean run's; entry L
               leaves the last block
    clean, corrupted  of the two runs as they are
    """

    name: str
    tokens: tuple[str, ...]
    clean_tokens: tuple[str, ...]
    answer: int
    against: int
    words: tuple[str, str]
    values: torch.Tensor
    clean: float
    corrupted: float

    @property
    def title(self) -> str:
        """The two answers, their logit differences, and the model."""
        word, other = self.words
        return (
            f"Activation patching, logit of {word!r} over {other!r}: clean {self.clean:+.3f}, "
            f"corrupted {self.corrupted:+.3f}: {self.name}"
        )

    def table(self) -> Table:
        """A row per entry of the residual stream: the share recovered at each token."""
        rows = ([entry_name(entry), *shares] for entry, shares in enumerate(self.recovered.tolist()))
        return Table(["state after", *self.tokens], rows)

    def arrays(self) -> dict[str, np.ndarray]:
        """Logit differences and shares recovered, (L+1, T) each, and both prompts' tokens."""
        tokens = {"tokens": np.array(self.tokens), "clean_tokens": np.array(self.clean_tokens)}
        return {"values": self.values.numpy(), "recovered": self.recovered.numpy(), **tokens}

    def record(self) -> dict:
        """Logit differences: clean, corrupted, and with each state patched."""
        words = dict(zip(("answer", "against"), self.words))
        ends = {"clean": self.clean, "corrupted": self.corrupted}
        return {"patch": {**words, **ends, "values": self.values.tolist()}}

    @property
    def recovered(self) -> torch.Tensor:
        """(L+1, T): 0 as corrupted, 1 as clean."""
        return (self.values - self.corrupted) / (self.clean - self.corrupted)


@stepwise
def patching(
    lab: Lab, clean: str, corrupted: str, *, answer: int | str | None = None, against: int | str | None = None
) -> Generator[tuple[int, int], None, Patching]:
    """Where in the model the difference between two prompts lies: states of the clean run, one at a time, in the corrupted one.

    clean, corrupted  of as many tokens each, up to MAX_PATCHED
    answer, against   tokens, as for `logit_lens`; None: what the model expects after the clean prompt, and after the
                      corrupted one

    Steps: a layer at a time, (layers done, layers in all).
    Example: patching(lab, "Marie Curie was born in", "Albert Einstein was born in").recovered
    Raises: LabError for prompts of different length, or the same, for answers that do not differ, and for what is not
    one token.
    Source: Meng et al., Locating and Editing Factual Associations in GPT (2022), section 2.1, without its noise.
    """
    pair = [lab.encode_prompt(text) for text in (clean, corrupted)]
    _check(lab, *pair, answer, against)
    return _patched(lab, pair, answer, against)


@dataclass(frozen=True, eq=False, repr=False)
class PromptPair(Summary):
    """Two traced prompts, and the answers whose logits after the last token are compared: what `patching` runs on.

    clean, corrupted     (L+1, T, D)  residual streams, on the model's device
    first                the first token that differs
    direction            (D,)         unembedding of the answer less that of the other
    ends                 logit differences of the clean run and the corrupted one
    """

    clean: torch.Tensor
    corrupted: torch.Tensor
    first: int
    tokens: tuple[str, ...]
    clean_tokens: tuple[str, ...]
    answer: int
    against: int
    words: tuple[str, str]
    direction: torch.Tensor
    ends: tuple[float, float]


def prompt_pair(
    lab: Lab,
    seen: ResidualTrace,
    corrupted: str,
    *,
    answer: int | str | None = None,
    against: int | str | None = None,
) -> PromptPair:
    """A traced clean prompt and a corrupted one, for `patched_entry`. Raises: LabError as `patching`."""
    ids = lab.encode_prompt(corrupted)
    _check(lab, seen.ids.to(lab.device), ids, answer, against)
    return _pair(lab, seen, with_residual(lab, trace_ids(lab, ids, residual=True)), answer, against)


@torch.no_grad()
def patched_entry(lab: Lab, pair: PromptPair, entry: int) -> torch.Tensor:
    """(T,): a row of `Patching.values`, for one entry of the residual stream, 0 to L. Raises: LabError for another one."""
    whole_number("entry", entry, 0, len(pair.clean) - 1)
    T = pair.clean.shape[1]
    values = torch.full((T,), pair.ends[1])  # before the first token that differs, nothing does
    places = torch.arange(pair.first, T, device=lab.device)
    with eval_mode(lab.model):
        for part in places.split(max(1, ROWS_AT_ONCE // T)):
            each = pair.corrupted[entry].repeat(len(part), 1, 1)  # (t, T, D)
            each[torch.arange(len(part), device=lab.device), part] = pair.clean[entry, part]
            values[part.cpu()] = _difference(lab, above(lab, each, entry)[:, -1], pair.direction)
    return values


def _check(lab: Lab, clean: torch.Tensor, corrupted: torch.Tensor, *answers: int | str | None) -> None:
    """Raises: LabError for ids (T,) that do not pair up, and for answers that are not one token."""
    n = len(clean)
    if n != len(corrupted):
        raise LabError(
            "{lengths} tokens in the clean prompt and {n_corrupted} in the corrupted one do not pair up; "
            "lengthen or shorten one until both have as many",
            lengths=n,
            n_corrupted=len(corrupted),
        )
    if torch.equal(clean, corrupted):
        raise LabError("the two prompts are the same; change a word in one")
    if n > MAX_PATCHED:
        raise LabError(
            "the prompts have {lengths} tokens; the limit is {max_patched}: shorten them",
            lengths=n,
            max_patched=MAX_PATCHED,
        )
    for token in answers:
        if token is not None:
            token_id(lab, token)


@torch.no_grad()
def _pair(
    lab: Lab, clean: ResidualTrace, corrupted: ResidualTrace, answer: int | str | None, against: int | str | None
) -> PromptPair:
    states = [seen.residual.to(lab.device, lab.model.dtype) for seen in (clean, corrupted)]  # (L+1, T, D) each
    predicted = [int(log_probabilities(lab, found[-1, -1]).argmax()) for found in states]
    answer = predicted[0] if answer is None else token_id(lab, answer)
    against = predicted[1] if against is None else token_id(lab, against)
    words = (display_token(lab.tokenizer, answer), display_token(lab.tokenizer, against))
    if answer == against:
        raise LabError("answer and other answer are the same token, {words!r}; name two that differ", words=words[0])
    direction = (lab.model.lm_head.weight[answer] - lab.model.lm_head.weight[against]).float()
    ends = [float(_difference(lab, found[-1, -1], direction)) for found in states]
    if abs(ends[0] - ends[1]) < MIN_DIFFERENCE:
        raise LabError(
            "both prompts give {words!r} over {against!r} the same logits; name other answers",
            words=words[0],
            against=words[1],
        )
    first = int((clean.ids != corrupted.ids).nonzero()[0])
    return PromptPair(
        states[0],
        states[1],
        first,
        corrupted.tokens,
        clean.tokens,
        answer,
        against,
        words,
        direction,
        (ends[0], ends[1]),
    )


def _difference(lab: Lab, x: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """(…, D) that leaves the last layer -> (…): the difference of the answers' logits."""
    return (lab.model.transformer.ln_f(x).float() @ direction).cpu()


def _patched(
    lab: Lab, ids: list[torch.Tensor], answer: int | str | None, against: int | str | None
) -> Generator[tuple[int, int], None, Patching]:
    clean, corrupted = (with_residual(lab, trace_ids(lab, one, residual=True)) for one in ids)
    pair = _pair(lab, clean, corrupted, answer, against)
    rows, n = [], len(pair.clean)
    for entry in range(n):
        rows.append(patched_entry(lab, pair, entry))
        yield entry + 1, n
    return Patching(
        lab.name, pair.tokens, pair.clean_tokens, pair.answer, pair.against, pair.words, torch.stack(rows), *pair.ends
    )

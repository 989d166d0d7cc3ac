"""Activation patching: states of a clean prompt put into a corrupted one, one at a time."""

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch

from gpt2lab.data.tokens import display_token, display_tokens
from gpt2lab.errors import LabError
from gpt2lab.inspection.ablation import ROWS_AT_ONCE, above
from gpt2lab.inspection.lens import entry_name, log_probabilities, token_id
from gpt2lab.inspection.trace import trace_ids, with_residual
from gpt2lab.model.lab import Lab, eval_mode
from gpt2lab.progress import stepwise
from gpt2lab.results import Result, Table

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
    lengths = [len(ids) for ids in pair]
    if lengths[0] != lengths[1]:
        raise LabError(
            "{lengths} tokens in the clean prompt and {n_corrupted} in the corrupted one do not pair up; "
            "lengthen or shorten one until both have as many",
            lengths=lengths[0],
            n_corrupted=lengths[1],
        )
    if torch.equal(*pair):
        raise LabError("the two prompts are the same; change a word in one")
    if lengths[0] > MAX_PATCHED:
        raise LabError(
            "the prompts have {lengths} tokens; the limit is {max_patched}: shorten them",
            lengths=lengths[0],
            max_patched=MAX_PATCHED,
        )
    for token in (answer, against):
        if token is not None:
            token_id(lab, token)  # refuses here and now
    return _patched(lab, pair, answer, against)


def _patched(
    lab: Lab, pair: list[torch.Tensor], answer: int | str | None, against: int | str | None
) -> Generator[tuple[int, int], None, Patching]:
    """Up to the first token that differs, nothing does: what stands there is as in the corrupted run."""
    model, T = lab.model, len(pair[0])
    clean, corrupted = (
        with_residual(lab, trace_ids(lab, ids, residual=True)).residual.to(lab.device, model.dtype) for ids in pair
    )  # (L+1, T, D)
    predicted = [int(log_probabilities(lab, states[-1, -1]).argmax()) for states in (clean, corrupted)]
    answer = predicted[0] if answer is None else token_id(lab, answer)
    against = predicted[1] if against is None else token_id(lab, against)
    words = (display_token(lab.tokenizer, answer), display_token(lab.tokenizer, against))
    if answer == against:
        raise LabError("answer and other answer are the same token, {words!r}; name two that differ", words=words[0])
    direction = (model.lm_head.weight[answer] - model.lm_head.weight[against]).detach().float()

    def difference(x: torch.Tensor) -> torch.Tensor:  # (…, D) that leaves the last layer -> (…)
        return (model.transformer.ln_f(x).float() @ direction).cpu()

    with torch.no_grad():
        ends = [float(difference(states[-1, -1])) for states in (clean, corrupted)]
    if abs(ends[0] - ends[1]) < MIN_DIFFERENCE:
        raise LabError(
            "both prompts give {words!r} over {against!r} the same logits; name other answers",
            words=words[0],
            against=words[1],
        )
    first = int((pair[0] != pair[1]).nonzero()[0])
    values = torch.full((len(clean), T), ends[1])
    places = torch.arange(first, T, device=lab.device)
    for layer in range(len(clean)):
        with torch.no_grad(), eval_mode(model):
            for part in places.split(max(1, ROWS_AT_ONCE // T)):
                each = corrupted[layer].repeat(len(part), 1, 1)  # (t, T, D)
                each[torch.arange(len(part), device=lab.device), part] = clean[layer, part]
                values[layer, part.cpu()] = difference(above(lab, each, layer)[:, -1])
        yield layer + 1, len(clean)
    shown = [display_tokens(lab.tokenizer, ids.tolist()) for ids in pair]
    return Patching(lab.name, shown[1], shown[0], answer, against, words, values, *ends)

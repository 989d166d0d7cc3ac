"""What can be said of a text that was written: how varied it is, what it copies, how probable models find it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gpt2lab.data.blocks import token_ids
from gpt2lab.data.text import load_text
from gpt2lab.data.tokens import text_after
from gpt2lab.errors import whole_number
from gpt2lab.generation.generate import Generation, prompt_ids, text_of
from gpt2lab.model.lab import Lab, token_nll
from gpt2lab.results import perplexity_of

REPEATED_N = 4  # tokens of what is counted as repeated


@dataclass(frozen=True)
class Measures:
    """Of a generation, a stop string and an end token included; None where it has too few tokens, or where there is no
    training text to compare with.

    tokens      how many
    distinct    distinct n-grams over all n-grams, n = 1, 2, 3: in (0, 1], 1 where none comes twice.
                Source: Li et al., A Diversity-Promoting Objective Function (2016), section 5.2
    repeated    share of 4-grams that were there before: in [0, 1)
    copied      tokens of the longest part that stands in the training text word for word
    copy        that part
    perplexity  per token of the text, after its prompt, by model
    """

    tokens: int
    distinct: tuple[float | None, float | None, float | None]
    repeated: float | None
    copied: int | None
    copy: str | None
    perplexity: dict[str, float | None]

    @property
    def named(self) -> dict[str, float | int | str | None]:
        """Each measure under a name for a reader."""
        distinct = {f"distinct-{n}": value for n, value in enumerate(self.distinct, 1)}
        copied = None if self.copied is None else f"{self.copied} tokens: {self.copy!r}"
        under = {f"perplexity under {name}": value for name, value in self.perplexity.items()}
        return {"tokens": self.tokens, **distinct, "repeated": self.repeated, "copied": copied, **under}


def measure(
    writer: Lab, generation: Generation, *, labs: Sequence[Lab] = (), training: np.ndarray | None = None
) -> Measures:
    """Statistics of a generated text: diversity, repetition, copying, perplexity.

    writer    the model that wrote it
    labs      models whose perplexity is computed
    training  ids (N,) of the writer's tokenizer: the text it may have copied from

    Example: measure(lab, generate(lab, "The moon"), labs=[lab]).distinct
    """
    ids = [step.id for step in generation.steps]
    start, length = (0, None) if training is None else longest_copy(ids, training)
    return Measures(
        tokens=len(ids),
        distinct=(distinct(ids, 1), distinct(ids, 2), distinct(ids, 3)),
        repeated=None if (share := distinct(ids, REPEATED_N)) is None else 1 - share,
        copied=length,
        copy=None if length is None else text_after(writer.tokenizer, ids[:start], ids[start : start + length]),
        perplexity={lab.name: perplexity_under(lab, writer, generation) for lab in labs},
    )


def distinct(ids: Sequence[int], n: int) -> float | None:
    """Distinct n-grams over all n-grams; None for fewer than n tokens. Example: distinct([1, 2, 1, 2], 2) -> 2 / 3"""
    whole_number("n", n, 1, 100)
    grams = list(zip(*(ids[i:] for i in range(n))))
    return len(set(grams)) / len(grams) if grams else None


def longest_copy(ids: Sequence[int], training: np.ndarray) -> tuple[int, int]:
    """Return (start, length) of the longest sequence of ids that is also in a training text (N,), the first of several.

    Example: longest_copy([7, 1, 2, 9], np.array([0, 1, 2, 3])) -> (1, 2)
    """
    text, read = ("".join(map(chr, each)) for each in (ids, training.tolist()))  # searching a string is fast
    start, length = 0, 0
    for i in range(len(text)):
        while i + length < len(text) and text[i : i + length + 1] in read:
            start, length = i, length + 1
    return start, length


def perplexity_under(lab: Lab, writer: Lab, generation: Generation) -> float | None:
    """Perplexity per token of what was written, given its prompt; None for no tokens.

    Of a text that is longer than the model reads, tokens past its context see half a context or more.
    A model with another tokenizer reads the text in its own tokens, whose perplexity is another number.
    """
    before = [int(id) for id in prompt_ids(lab, generation.prompt, window=1)]
    if lab.tokenizer.get_vocab() == writer.tokenizer.get_vocab():
        after = [step.id for step in generation.steps]
    else:
        written = prompt_ids(writer, generation.prompt, window=1).tolist() if generation.prompt else []
        after = lab.encode(text_of(writer, generation.steps, before=written)).tolist()
    nll, first, row = [], len(before), torch.tensor([before + after], device=lab.device)
    while first < row.shape[1]:
        begin = 0 if first <= lab.context else first - lab.context // 2
        part = row[:, begin : begin + lab.context + 1]
        nll.append(token_nll(lab.model, part, first=first - begin))
        first = begin + part.shape[1]
    return perplexity_of(float(torch.cat(nll, 1).double().mean())) if nll else None


def training_ids(lab: Lab, data: str, *, column: str | None = None) -> np.ndarray:
    """Ids (N,) of a data set's training split in the model's tokens. Raises: LabError as `load_text`."""
    return token_ids(lab.tokenizer, load_text(data, column=column).split("train"))

"""Texts that branch from one another: each with its number, the tokens that it keeps of another, and how to branch again."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from gpt2lab.data.tokens import display_tokens, token_text, visible
from gpt2lab.errors import LabError, whole_number
from gpt2lab.generation.generate import Generation, TextStream, prompt_hint
from gpt2lab.generation.sampling import Step
from gpt2lab.model.lab import Lab

MAX_ID = 10**9


class Text(NamedTuple):
    """A text among others, under a number that it keeps.

    name    of the model that wrote it
    tokens  its tokens as a reader sees them, spaces as they are
    V       tokens in the model's vocabulary
    kept    tokens that it has of its parent, with the one that was chosen in place of the parent's: the last of them
    parent  number of the text that it branches from; None for a text of its own
    begin   the token that the model begins from without a prompt
    spaced  whether the prompt ends in a space, which is rare in GPT-2's training data
    """

    number: int
    name: str
    generation: Generation
    tokens: tuple[str, ...]
    V: int
    kept: int = 0
    parent: int | None = None
    begin: str = ""
    spaced: bool = False


def text_of_generation(
    lab: Lab, generation: Generation, number: int, *, kept: int = 0, parent: int | None = None
) -> Text:
    """A generation as a Text."""
    begin = "" if generation.prompt else display_tokens(lab.tokenizer, [lab.start_id])[0]
    spaced = prompt_hint(lab, generation.prompt) is not None
    tokens = readable_tokens(lab, [step.id for step in generation.steps])
    return Text(number, lab.name, generation, tokens, lab.model.config.vocab_size, kept, parent, begin, spaced)


def texts_of_stream(stream: TextStream, first: int, parent: int | None = None) -> list[Text]:
    """The texts of a stream so far, finished or not, numbered from `first` on."""
    kept = len(stream.after)
    return [
        text_of_generation(stream.lab, generation, first + i, kept=kept, parent=parent)
        for i, generation in enumerate(stream.generations)
    ]


def readable_tokens(lab: Lab, ids: Sequence[int]) -> tuple[str, ...]:
    """Tokens to be read as a text: as `display_tokens` shows them, but spaces as they are.

    Example: the ids of " moon\\n" -> (" moon", "⏎")
    """
    shown = display_tokens(lab.tokenizer, ids)
    own = [token_text(lab.tokenizer, i) for i in ids]
    return tuple(
        " ".join(map(visible, text.split(" "))) if visible(text) == token else token for text, token in zip(own, shown)
    )


def numbered(texts: Sequence[Text], number: Any) -> Text:
    """The text with a number. Raises: LabError if there is none."""
    whole_number("text", number, 0, MAX_ID)
    for text in texts:
        if text.number == number:
            return text
    raise LabError("text {number} is no longer kept; generate a new one", number=number)


def step_at(text: Text, index: Any) -> Step:
    """A token of a text. Raises: LabError for a place that it does not have."""
    steps = text.generation.steps
    if not steps:
        raise LabError("text {number} has no token", number=text.number)
    return steps[whole_number("token", index, 0, len(steps) - 1)]


def branch_options(text: Text, index: Any, token: Any) -> dict:
    """Options of a `TextStream` that takes another alternative, by its id, at a token of a text.

    It draws with the text's own settings and seed, up to the same number of tokens.
    Raises: LabError for a token that is not among the alternatives.
    """
    step, generation = step_at(text, index), text.generation
    after = (*generation.steps[:index], step.with_token(whole_number("alternative", token, 0, MAX_ID)))
    names = ("prompt", "sampling", "stop", "window", "precision")
    own = {name: getattr(generation, name) for name in names}
    return own | {"after": after, "max_new_tokens": max(0, generation.limit - len(after))}

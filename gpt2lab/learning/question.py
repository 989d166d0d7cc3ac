"""A question about a model and a text, and the check of a reader's answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from gpt2lab.errors import LabError, Message, choice

MAX_ANSWER = 100  # characters of a typed answer; tokens are shorter
MAX_NUMBER = 1e15


@dataclass(frozen=True)
class Question:
    """A question, its answer as computed from a model, and a sentence with the numbers that explain it.

    answer     a value of the choices; or a number; or, without choices, the display string of a token
    choices    (text, value), in an order that does not give the answer away; none for a number or a token
    tolerance  of a number, relative
    """

    line: Message
    answer: str | float
    explanation: Message
    choices: Sequence[tuple[Message, str]] = ()
    tolerance: float = 0.0

    @property
    def kind(self) -> str:
        """What the reader gives: "choice", "number" or "token"."""
        return "choice" if self.choices else "token" if isinstance(self.answer, str) else "number"

    def is_right(self, given: Any) -> bool:
        """Whether an answer is right. Raises: LabError, in one line, for one that is none."""
        if given is None or (isinstance(given, str) and not given):
            raise LabError("there is no answer yet; give one and press Check")
        if self.kind == "number":
            is_number = isinstance(given, Real) and not isinstance(given, bool)
            if not is_number or not -MAX_NUMBER <= given <= MAX_NUMBER:  # NaN is in no range
                raise LabError("the answer is not a number up to {limit:g}; give one", limit=MAX_NUMBER)
            return abs(float(given) - float(self.answer)) <= self.tolerance * abs(float(self.answer))
        if not isinstance(given, str):
            raise LabError("the answer is a {type}; give text", type=type(given).__name__)
        if len(given) > MAX_ANSWER:
            raise LabError(
                "the answer has {count:,} characters; the limit is {limit}: give one token",
                count=len(given),
                limit=MAX_ANSWER,
            )
        if self.kind == "choice":
            return choice("answer", given, [value for _, value in self.choices]) == self.answer
        return _bare(given) == _bare(str(self.answer))


def _bare(token: str) -> str:
    """A token without the spaces around it, which a display string shows as "·"; what is nothing else stays."""
    shown = token.replace(" ", "·").replace("\n", "⏎")
    return shown.strip("·") or shown

"""Sentences for readers: the one error that reaches them, and messages, which the app can translate."""

from collections.abc import Iterable
from numbers import Integral, Real

MAX_SHOWN = 60  # characters of a wrong value


class Message(str):
    """A sentence for readers that remembers its English template and the values in its fields, for translation.

    Example: Message("{n:,} tokens", n=2000) is "2,000 tokens", with template "{n:,} tokens" and values {"n": 2000}
    """

    template: str
    values: dict

    def __new__(cls, template: str, /, **values):
        made = super().__new__(cls, template.format(**values) if values else template)
        made.template, made.values = template, values
        return made

    def record(self) -> dict:
        """The template and its values as JSON has them; `from_record` reads them."""
        values = {name: value.record() if isinstance(value, Message) else value for name, value in self.values.items()}
        return {"template": self.template, "values": values}

    @classmethod
    def from_record(cls, record: dict) -> "Message":
        """Read what `record` returns. Raises: errors of many types for anything else."""
        values = {
            name: cls.from_record(value) if isinstance(value, dict) else value
            for name, value in record["values"].items()
        }
        return cls(record["template"], **values)


class LabError(ValueError):
    """Invalid input, in one line: what is wrong, the limit, what to do.

    `template` is the English sentence with fields as str.format takes them, `values` are what stands in the fields: a
    translation fills its own template with the same values. Half characters (lone surrogates) in them are replaced,
    since no file and no answer can hold them. The command line turns the error into exit status 2, the app into a toast.
    Example: str(LabError("{n:,} tokens; the limit is {high:,}", n=2000, high=1024)) -> "2,000 tokens; the limit is 1,024"
    """

    def __init__(self, template: str, /, **values):
        values = {name: _whole(value) for name, value in values.items()}
        super().__init__(template.format(**values) if values else template)
        self.template, self.values = template, values


def _whole(value):
    if type(value) is not str or value.isascii():
        return value
    return value.encode("utf-8", "replace").decode()


def first_line(error: BaseException) -> str:
    """What an error says, in its first line; its type where it says nothing. Example: ValueError("a\\nb") -> "a" """
    return (str(error).strip() or repr(error)).splitlines()[0]


def choice(name: str, value, choices: Iterable[str]) -> str:
    """The value, if it is one of the choices. Raises: LabError otherwise, which lists them."""
    choices = list(choices)
    if value not in choices:
        known = ", ".join(choices)
        raise LabError("{name} {value} is unknown; use {known}", name=name, value=repr(value)[:80], known=known)
    return value


def whole_number(name: str, value, low: int, high: int) -> int:
    """The value, if it is a whole number in range. Raises: LabError otherwise, for booleans too."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        raise LabError(
            "{name} {value!r} is out of range; use a whole number from {low:,} to {high:,}",
            name=name,
            value=_short(value),
            low=low,
            high=high,
        )
    return int(value)


def number(name: str, value, low: float, high: float) -> float:
    """The value, if it is a finite number in range. Raises: LabError otherwise, for booleans too."""
    if isinstance(value, bool) or not isinstance(value, Real) or not _lies_in(value, low, high):
        raise LabError(
            "{name} {value!r} is out of range; use a number from {low:g} to {high:g}",
            name=name,
            value=_short(value),
            low=low,
            high=high,
        )
    return float(value)


def _lies_in(value, low, high):
    """Whether a number is in a range: NaN is in none, and whole numbers may be larger than floats can."""
    return low <= value <= high


def _short(value):
    """A value for a message: of a long one the beginning of its text."""
    text = value if isinstance(value, str) else repr(value)
    return value if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"

"""What results have in common: a short repr, and their numbers as a table, as arrays and as values that JSON can hold.

Losses are nats per token everywhere, and a perplexity is their exponential; times are seconds.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import Field, fields, is_dataclass
from math import exp, inf, isfinite, isnan
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from gpt2lab.errors import Message

MAX_ENTRIES = 4  # entries of a tuple that are shown
MAX_CHARACTERS = 200  # characters of a text that are shown
MAX_PLAIN = 1e9  # from here on digits are counted rather than read
MAX_EXPONENT = 709.0  # exp of more is past a float


class Summary:
    """A dataclass (with `repr=False`) whose repr is a line: tensors by type and shape, long texts by their beginning.

    Example: Trace(name='builtin', tokens=(3 entries), ids=int64 (3), q=float32 (4, 6, 3, 64), …)
    """

    __dataclass_fields__: ClassVar[dict[str, Field]]

    def __repr__(self) -> str:
        shown = (f"{field.name}={_short(getattr(self, field.name))}" for field in fields(self) if field.repr)
        return f"{type(self).__name__}({', '.join(shown)})"


def _short(value) -> str:
    if hasattr(value, "dtype") and hasattr(value, "shape"):  # a tensor or an array
        return f"{str(value.dtype).removeprefix('torch.')} ({', '.join(map(str, value.shape))})"
    if isinstance(value, str):
        return repr(value if len(value) <= MAX_CHARACTERS else f"{value[:MAX_CHARACTERS]}…")
    if isinstance(value, dict) or (isinstance(value, tuple | list) and _is_long(value)):
        return f"({len(value)} entries)"
    if isinstance(value, tuple):
        return f"({', '.join(map(_short, value))})"
    return repr(value)


def _is_long(values) -> bool:
    return len(values) > MAX_ENTRIES or any(is_dataclass(value) and not isinstance(value, Summary) for value in values)


class Table(NamedTuple):
    """Names of the columns, and rows of text, whole numbers, floats, or None for no value."""

    head: Sequence[str]
    rows: Iterable[Sequence]

    def text(self) -> tuple[list[str], list[list[str]]]:
        """The same as text for people, floats to four digits."""
        return list(self.head), [[cell_text(cell) for cell in row] for row in self.rows]


def cell_text(cell) -> str:
    """A cell of a table as text. Example: cell_text(0.12345) -> "0.1235"; cell_text(None) -> "" """
    if isinstance(cell, float):
        return "none" if isnan(cell) else f"{cell:.4g}"
    return "" if cell is None else f"{cell:,}" if isinstance(cell, int) else str(cell)


class Result(Summary, ABC):
    """A result of an analysis, which can be written to a file; its figure is registered with `figures.figure`."""

    if TYPE_CHECKING:  # when the program runs, a property here would hide a dataclass field of this name

        @property
        def title(self) -> str:
            """Title of the exported page."""

    @abstractmethod
    def table(self) -> Table:
        """Its numbers as a table."""

    @abstractmethod
    def arrays(self) -> dict[str, np.ndarray]:
        """Its numbers as arrays, by name."""

    def record(self) -> dict:
        """Its numbers for JSON; the arrays as lists by default."""
        return {name: array.tolist() for name, array in self.arrays().items()}


def perplexity_of(nats: float) -> float:
    """exp(nats per token), infinite where that is past a float. Example: perplexity_of(0.0) -> 1.0"""
    return exp(nats) if nats <= MAX_EXPONENT else inf


def readable(value: float, digits: int = 2) -> str:
    """A number that people read: thousands apart, one too large for that by its power of ten.

    Example: readable(1234.5) -> "1,234.50"; readable(1.2e195) -> "1.2e+195"
    """
    return f"{value:,.{digits}f}" if abs(value) < MAX_PLAIN or not isfinite(value) else f"{value:.1e}"


def percent(share: float, sign: str = "") -> str:
    """A share or, with sign "+", a change in percent; one too large to read by its power of ten.

    Example: percent(0.123) -> "12.3%"; percent(-0.05, "+") -> "-5.0%"; percent(1.2e17, "+") -> "+1.2e+19%"
    """
    plain = abs(share) < MAX_PLAIN or not isfinite(share)
    return f"{share:{sign},.1%}" if plain else f"{100 * share:{sign}.1e}%"


def duration(seconds: float) -> Message:
    """Seconds in the unit that people would use. Example: duration(5400) -> "1.5 h"."""
    if seconds < 100:
        return Message("{seconds:.0f} s", seconds=seconds)
    if seconds < 5400:
        return Message("{minutes:.0f} min", minutes=seconds / 60)
    return Message("{hours:.1f} h", hours=seconds / 3600)


def finite(value):
    """The value with infinite numbers as null, since JSON has none."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value

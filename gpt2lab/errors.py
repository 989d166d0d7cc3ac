"""The one error that reaches a user: what was wrong, the limit, what to do. Knows nothing else."""

from math import isfinite
from numbers import Integral, Real


class LabError(ValueError):
    """Bad input, reported in one line that a user can act on.

    The command line turns it into exit status 2, the app into a toast.
    """


def first_line(error: BaseException) -> str:
    """What an error says, in its first line; its type where it says nothing. Example: ValueError("a\\nb") -> "a" """
    return (str(error).strip() or repr(error)).splitlines()[0]


def whole_number(name: str, value, low: int, high: int) -> int:
    """The value, if it is a whole number in range. Raises: LabError otherwise, for booleans too."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= value <= high:
        raise LabError(f"{name} {value!r} is out of range; use a whole number from {low:,} to {high:,}")
    return int(value)


def number(name: str, value, low: float, high: float) -> float:
    """The value, if it is a finite number in range. Raises: LabError otherwise, for booleans too."""
    if isinstance(value, bool) or not isinstance(value, Real) or not isfinite(value) or not low <= value <= high:
        raise LabError(f"{name} {value!r} is out of range; use a number from {low:g} to {high:g}")
    return float(value)

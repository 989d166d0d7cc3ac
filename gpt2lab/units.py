"""Units: losses are nats per token everywhere, and a perplexity is their exponential; times are seconds; JSON has no infinity."""

from math import exp, inf, isfinite

LARGE = 1e9  # from here on digits are counted rather than read
MAX_EXPONENT = 709.0  # exp of more is past a float


def perplexity_of(nats: float) -> float:
    """exp(nats per token), infinite where that is past a float. Example: perplexity_of(0.0) -> 1.0"""
    return exp(nats) if nats <= MAX_EXPONENT else inf


def readable(value: float, digits: int = 2) -> str:
    """A number that people read: thousands apart, one too large for that by its power of ten.

    Example: readable(1234.5) -> "1,234.50"; readable(1.2e195) -> "1.2e+195"
    """
    return f"{value:,.{digits}f}" if abs(value) < LARGE or not isfinite(value) else f"{value:.1e}"


def duration(seconds: float) -> str:
    """Seconds in the unit that people would use. Example: duration(5400) -> "1.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def finite(value):
    """The value with infinite numbers as null, since JSON has none."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value

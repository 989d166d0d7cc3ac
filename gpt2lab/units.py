"""Units: losses are nats per token everywhere, and a perplexity is their exponential; times are seconds; JSON has no infinity."""

from math import exp, inf, isfinite

MAX_EXPONENT = 709.0  # exp of more is past a float


def perplexity_of(nats: float) -> float:
    """exp(nats per token), infinite where that is past a float. Example: perplexity_of(0.0) -> 1.0"""
    return exp(nats) if nats <= MAX_EXPONENT else inf


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

"""Units: losses are nats per token everywhere, and a perplexity is their exponential; times are seconds."""

from math import exp, inf

MAX_EXPONENT = 709.0  # exp of more is past a float


def perplexity_of(nats: float) -> float:
    """exp(nats per token), infinite where that is past a float. Example: perplexity_of(0.0) -> 1.0"""
    return exp(nats) if nats <= MAX_EXPONENT else inf


def duration(seconds: float) -> str:
    """Seconds in the unit that people would use. Example: duration(5400) -> "1.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

"""Units: losses are nats per token everywhere, and a perplexity is their exponential."""

from math import exp, inf

MAX_EXPONENT = 709.0  # exp of more is past a float


def perplexity_of(nats: float) -> float:
    """exp(nats per token), infinite where that is past a float. Example: perplexity_of(0.0) -> 1.0"""
    return exp(nats) if nats <= MAX_EXPONENT else inf

"""How certain a figure is: documents drawn again and again with replacement. Knows numbers alone.

Tokens of one document are not independent of each other, documents nearly are.
Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13.
"""

import numpy as np

RESAMPLES = 1000  # for percentile intervals, as they advise
LEAVES_OUT = 0.05  # of a 95 % interval


def resampled_sums(columns: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Sums over documents, of RESAMPLES draws of as many documents as there are.

    columns  (k, documents) totals of each document
    returns  (k, RESAMPLES); the k sums of a draw are over the same documents
    """
    n = columns.shape[1]
    draws = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))
    return np.stack([column[draws].sum(axis=1) for column in columns])


def percentile_interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of resampled values."""
    low, high = np.quantile(values, [LEAVES_OUT / 2, 1 - LEAVES_OUT / 2], method="nearest")  # some may be infinite
    return float(low), float(high)

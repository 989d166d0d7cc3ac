"""How much of a text is memorised: its longest passage that is in the training text word for word.

Knows token ids alone.
"""

from collections.abc import Sequence

import numpy as np


def longest_verbatim(ids: Sequence[int], training: np.ndarray) -> tuple[int, int]:
    """Return the longest sequence of tokens that is also in the training text.

    ids       of the text · training  (n,) of the training text

    returns   (its first position in `ids`, its length); (0, 0) where not one token is shared

    Example: longest_verbatim([7, 1, 2, 9], np.array([0, 1, 2, 3])) -> (1, 2)
    """
    ending = np.zeros(len(training) + 1, dtype=np.int32)  # at j: how long a run ends with training[j - 1]
    start, length = 0, 0
    for i, token in enumerate(ids):
        ending[1:] = np.where(training == token, ending[:-1] + 1, 0)
        longest = int(ending.max())
        if longest > length:
            start, length = i + 1 - longest, longest
    return start, length

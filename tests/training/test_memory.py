import random

import numpy as np
import pytest

from gpt2lab.training.memory import longest_verbatim


def every_stretch(ids, training):
    """The first of the longest stretches of `ids` that stand in `training`, each looked for one by one."""
    best = (0, 0)
    for start in range(len(ids)):
        for end in range(start + 1, len(ids) + 1):
            stretch = list(ids[start:end])
            there = any(list(training[i : i + len(stretch)]) == stretch for i in range(len(training)))
            if there and len(stretch) > best[1]:
                best = (start, len(stretch))
    return best


@pytest.mark.parametrize("seed", range(60))
def test_longest_stretch_is_the_one_that_a_search_of_all_finds(seed):
    draw = random.Random(seed)
    vocabulary = draw.choice([1, 2, 3, 8])
    ids = [draw.randrange(vocabulary) for _ in range(draw.randrange(14))]
    training = [draw.randrange(vocabulary) for _ in range(draw.randrange(20))]
    if seed % 3 == 0 and len(training) > 4:
        ids[3:3] = training[1:5]
    assert longest_verbatim(ids, np.array(training, dtype=np.int32)) == every_stretch(ids, training)


@pytest.mark.parametrize(
    ("ids", "training", "found"),
    [
        ([], [1, 2], (0, 0)),
        ([1, 2], [], (0, 0)),
        ([3, 4], [1, 2], (0, 0)),
        ([7, 1, 2, 9], [0, 1, 2, 3], (1, 2)),
        ([1, 2, 3], [1, 2, 3], (0, 3)),
        ([5, 5, 5, 5], [5, 5], (0, 2)),
        ([2, 1], [1, 2], (0, 1)),
        ([1, 2, 9, 3, 4], [1, 2, 0, 3, 4], (0, 2)),
    ],
)
def test_stretch_is_told_by_its_first_position_and_its_length(ids, training, found):
    assert longest_verbatim(ids, np.array(training, dtype=np.int32)) == found


def test_whole_of_a_long_text_is_found_in_its_middle():
    training = np.random.default_rng(0).integers(0, 50_000, 100_000, dtype=np.int32)
    ids = training[40_000:40_200].tolist()
    assert longest_verbatim(ids, training) == (0, 200)
    ids[120] = -1
    assert longest_verbatim(ids, training) == (0, 120)


def test_what_is_looked_at_stays_as_it_was():
    ids, training = [1, 2, 3], np.array([2, 3, 4], dtype=np.int32)
    longest_verbatim(ids, training)
    assert (ids, training.tolist()) == ([1, 2, 3], [2, 3, 4])

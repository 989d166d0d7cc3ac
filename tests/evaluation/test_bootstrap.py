import math
from statistics import NormalDist

import numpy as np
import pytest

from gpt2lab.evaluation import bootstrap
from gpt2lab.evaluation.bootstrap import FEWEST, RESAMPLES, expanded_interval, resampled_sums


def test_sums_of_a_draw_are_over_the_same_documents():
    values = np.random.default_rng(0).normal(size=12)
    sums = resampled_sums(np.array([values, 3 * values, np.ones(12)]))
    assert sums.shape == (3, RESAMPLES)
    np.testing.assert_allclose(sums[1], 3 * sums[0])
    assert (sums[2] == 12).all()  # as many documents are drawn as there are


def test_documents_are_drawn_with_replacement_and_each_as_often():
    sums = resampled_sums(np.eye(6))  # how often each is in a draw
    assert set(np.unique(sums)) >= {0, 1, 2, 3}
    np.testing.assert_allclose(sums.mean(axis=1), 1, atol=0.15)


def test_sums_of_two_documents_are_the_four_that_can_be_drawn():
    values, times = np.unique(resampled_sums(np.array([[1.0, 10.0]])), return_counts=True)
    assert values.tolist() == [2, 11, 20]
    assert times / RESAMPLES == pytest.approx([0.25, 0.5, 0.25], abs=0.05)


def test_sums_of_one_document_are_its_own():
    assert (resampled_sums(np.array([[7.0], [2.0]])) == [[7], [2]]).all()


def test_draws_follow_from_the_seed_alone():
    columns = np.random.default_rng(0).normal(size=(2, 20))
    before = columns.copy()
    np.random.seed(1)
    first = resampled_sums(columns, seed=3)
    np.random.seed(2)
    assert np.array_equal(first, resampled_sums(columns, seed=3))
    assert not np.array_equal(first, resampled_sums(columns, seed=4))
    assert np.array_equal(columns, before)


def test_memory_is_bounded_and_the_draws_are_the_same_in_parts(monkeypatch):
    columns = np.random.default_rng(0).normal(size=(2, 30))
    whole = resampled_sums(columns)
    monkeypatch.setattr(bootstrap, "DRAWS_AT_ONCE", 100)
    assert np.array_equal(resampled_sums(columns), whole)


@pytest.mark.parametrize(("n", "t"), [(6, 2.5706), (10, 2.2622), (60, 2.0010), (1000, 1.9623)])
def test_interval_leaves_out_as_much_as_students_t_says(n, t):
    values = np.random.default_rng(0).permutation(np.arange(1_000_001.0))
    tail = NormalDist().cdf(
        -t * math.sqrt(n / (n - 1))
    )  # t: the 97.5th percentile with n - 1 degrees of freedom, from tables
    low, high = expanded_interval(values, n)
    assert low / 1e6 == pytest.approx(tail, rel=0.02)
    assert high / 1e6 == pytest.approx(1 - tail, rel=1e-4)
    assert isinstance(low, float) and isinstance(high, float)


def test_interval_of_equal_values_is_their_value():
    assert expanded_interval(np.full(RESAMPLES, 3.5), 20) == (3.5, 3.5)


def test_interval_of_two_documents_is_all_that_was_drawn():
    assert expanded_interval(np.arange(100.0), 2) == (0, 99)


def test_interval_of_a_mean_is_near_the_normal_one():
    values = np.random.default_rng(0).normal(3, 0.5, size=400)
    margin = 1.96 * values.std() / 20
    low, high = expanded_interval(resampled_sums(values[None])[0] / 400, 400)
    assert (low, high) == pytest.approx((values.mean() - margin, values.mean() + margin), abs=0.01)


@pytest.mark.parametrize("n", [FEWEST, 10, 60])
def test_interval_holds_the_true_mean_about_95_times_of_100(n, monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 2000)
    rng, held = np.random.default_rng(0), 0
    for seed in range(500):
        values = rng.normal(3, 1, size=n)
        low, high = expanded_interval(resampled_sums(values[None], seed=seed)[0] / n, n)
        held += low <= 3 <= high
    assert 0.92 <= held / 500 <= 0.98


@pytest.mark.parametrize(("infinite", "interval"), [(0, (1, 1)), (2500, (1, np.inf)), (5000, (np.inf, np.inf))])
def test_interval_of_values_past_floats_ends_there(infinite, interval):
    assert expanded_interval(np.repeat([1.0, np.inf], [RESAMPLES - infinite, infinite]), 50) == interval

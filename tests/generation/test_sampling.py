import math
from itertools import product

import numpy as np
import pytest
import torch
from transformers.generation import TopKLogitsWarper, TopPLogitsWarper

from gpt2lab.generation.sampling import TOP_LOGPROBS, Sampling, TopP, draw, redrawn, step_of

PROBABILITIES = (0.5, 0.2, 0.15, 0.1, 0.05)
DRAWS = 4000
CHI_SQUARE_999 = {1: 10.83, 2: 13.82, 4: 18.47}  # degrees of freedom -> 99.9 % point, from printed tables


def drawn(logits, generator=None, alternatives=0, **sampling):
    """One step from logits (V,), after token 0."""
    generator = generator or torch.Generator().manual_seed(0)
    return draw(
        Sampling(**sampling), logits[None], torch.tensor([[0]]), generator, alternatives=alternatives, spell=str
    )


def test_greedy_choice_is_that_of_the_logits_where_their_probabilities_round_to_one_number():
    logits = torch.full((300,), -5.0)
    logits[5] = 0.25
    logits[9] = torch.nextafter(logits[5], torch.tensor(1.0))
    assert drawn(logits, temperature=0).id == logits.argmax() == 9


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.6])
@pytest.mark.parametrize("top_p", [0.05, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("top_k", [None, 1, 20])
def test_nucleus_equals_brute_force_over_the_vocabulary(temperature, top_p, top_k):
    logits = 3 * torch.randn(1, 300, generator=torch.Generator().manual_seed(7))
    drawn_from = (
        Sampling(temperature=temperature, top_p=top_p, top_k=top_k).warpers()(None, logits.clone()).softmax(-1)[0]
    )
    weights = {i: math.exp(logit / temperature) for i, logit in enumerate(logits[0].tolist())}
    top_predictions = sorted(weights, key=weights.get, reverse=True)[:top_k]
    total, reached, nucleus = sum(weights[i] for i in top_predictions), 0.0, []
    for i in top_predictions:
        if reached >= top_p * total:
            break
        nucleus.append(i)
        reached += weights[i]
    expected = torch.zeros(300)
    for i in nucleus:
        expected[i] = weights[i] / reached
    assert drawn_from.nonzero().flatten().tolist() == sorted(nucleus)
    torch.testing.assert_close(drawn_from, expected)


def test_the_model_s_own_distribution_needs_no_warper():
    assert list(Sampling().warpers()) == list(Sampling(temperature=0).warpers()) == []


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({}, PROBABILITIES),
        ({"temperature": 2}, [math.sqrt(p) for p in PROBABILITIES]),
        ({"top_k": 3}, PROBABILITIES[:3]),
        ({"top_p": 0.6}, PROBABILITIES[:2]),
    ],
)
def test_draws_are_as_frequent_as_the_exact_softmax_says(sampling, expected):
    logits, generator = torch.tensor(PROBABILITIES).log(), torch.Generator().manual_seed(1)
    counts = [0] * len(PROBABILITIES)
    for _ in range(DRAWS):
        counts[drawn(logits, generator, **sampling).id] += 1
    wanted = [DRAWS * p / sum(expected) for p in expected]
    assert sum(counts[len(expected) :]) == 0
    chi_square = sum((n - w) ** 2 / w for n, w in zip(counts, wanted))
    assert 0 < chi_square < CHI_SQUARE_999[len(expected) - 1]


@pytest.mark.parametrize(
    ("sampling", "removed", "kept"),
    [
        ({}, 0, 1),
        ({"top_k": 2}, 0.3, 0.7),
        ({"top_p": 0.6}, 0.3, 0.7),
        ({"top_p": 0.2}, 0.5, 0.5),
        ({"top_k": 4, "top_p": 0.5}, 0.5, 0.5),
        ({"temperature": 0.5, "top_k": 1}, 1 - 0.25 / 0.325, 0.25 / 0.325),
        ({"temperature": 0.5}, 0, 1),
        ({"min_p": 0.3}, 0.15, 0.85),
    ],
)
def test_removed_mass_is_one_less_what_the_sampler_kept(sampling, removed, kept):
    step = drawn(torch.tensor(PROBABILITIES).log(), **sampling)
    power = 1 / sampling.get("temperature", 1)
    tempered = PROBABILITIES[step.id] ** power / sum(p**power for p in PROBABILITIES)
    assert step.removed == pytest.approx(removed, abs=1e-6)
    assert step.sampled_probability == pytest.approx(tempered / kept, rel=1e-5)
    assert step.probability == pytest.approx(PROBABILITIES[step.id], rel=1e-5)


@pytest.mark.parametrize("min_p", [0.01, 0.2, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_min_p_equals_brute_force_over_the_vocabulary(min_p, temperature):
    logits = 3 * torch.randn(1, 300, generator=torch.Generator().manual_seed(7))
    drawn_from = Sampling(temperature=temperature, min_p=min_p).warpers()(None, logits.clone()).softmax(-1)[0]
    weights = [math.exp(logit / temperature) for logit in logits[0].tolist()]
    kept = [weight if weight >= min_p * max(weights) else 0.0 for weight in weights]
    torch.testing.assert_close(drawn_from, torch.tensor(kept) / sum(kept))


@pytest.mark.parametrize("penalty", [0.5, 1.3])
def test_penalty_divides_positive_logits_of_what_was_there_and_multiplies_negative_ones(penalty):
    logits = torch.randn(1, 300, generator=torch.Generator().manual_seed(1))
    kept, expected = logits.clone(), logits.clone()
    for i in (3, 7, 9):
        expected[0, i] = logits[0, i] / penalty if logits[0, i] > 0 else logits[0, i] * penalty
    found = Sampling(repetition_penalty=penalty).penalised(torch.tensor([[3, 7, 9, 7]]), logits)
    torch.testing.assert_close(found, expected)
    assert torch.equal(logits, kept)


# ---- another sampler for the same step ------------------------------------------------------------------------------


def uneven(seed, V=2000, scale=3.0):
    return scale * torch.randn(V, generator=torch.Generator().manual_seed(seed))


def exact(logits, **sampling):
    """(M,) what transformers' processors leave of the top predictions, in float64."""
    warped = Sampling(**sampling).warpers()(None, logits[None].double()).softmax(-1)[0]
    return warped[logits.sort(descending=True).indices[:TOP_LOGPROBS]].numpy()


@pytest.mark.parametrize("scale", [0.3, 3.0, 8.0])
def test_redrawn_probabilities_hold_the_exact_ones_between_them(scale):
    logits = uneven(1, scale=scale)
    step, names = drawn(logits), ("temperature", "top_k", "top_p", "min_p")
    for values in product([0.1, 0.7, 1.0, 1.5, 5.0], [None, 1, 40, 600, 1999], [0.3, 0.9, 0.99, 1.0], [0.0, 0.05]):
        sampling = dict(zip(names, values))
        low, high = redrawn(step, Sampling(**sampling), 2000)
        true = exact(logits, **sampling)
        assert (low <= true * (1 + 1e-4) + 1e-7).all() and (true <= high * (1 + 1e-4) + 1e-7).all(), sampling
        assert (low >= 0).all() and (high <= 1).all(), sampling


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 2.0, "top_k": 500},
        {"temperature": 3.0, "min_p": 0.5},
        {"temperature": 0.7, "top_p": 0.5},
        {"top_p": 0.9},
    ],
)
def test_redrawn_probabilities_are_exact_where_what_is_kept_is_enough(sampling):
    logits = uneven(2)
    low, high = redrawn(drawn(logits), Sampling(**sampling), 2000)
    assert low == pytest.approx(exact(logits, **sampling), abs=1e-5)
    assert high == pytest.approx(low, abs=1e-5)


@pytest.mark.parametrize("sampling", [{"temperature": 3.0}, {"temperature": 2.0, "top_p": 0.95}])
def test_redrawn_probabilities_lie_apart_where_what_is_kept_is_not_enough(sampling):
    low, high = redrawn(drawn(uneven(2)), Sampling(**sampling), 2000)
    assert high[0] > 1.05 * low[0]


@pytest.mark.parametrize("top_k", [2000, 2001, 10**9])
def test_redrawn_with_a_top_k_past_the_vocabulary_is_that_of_all(top_k):
    step = drawn(uneven(2))
    found, expected = (redrawn(step, Sampling(temperature=2, top_k=k), 2000) for k in (top_k, None))
    assert found.low == pytest.approx(expected.low) and found.high == pytest.approx(expected.high)


def test_redrawn_of_a_vocabulary_that_is_kept_whole_is_exact():
    logits = uneven(3, V=300)
    for sampling in ({"temperature": 4.0}, {"temperature": 2.0, "top_p": 0.97}, {"min_p": 0.01, "top_k": 299}):
        low, high = redrawn(drawn(logits), Sampling(**sampling), 300)
        assert low == pytest.approx(exact(logits, **sampling), abs=1e-6)
        assert high == pytest.approx(low, abs=1e-6)


def test_redrawn_greedily_the_top_prediction_is_certain():
    low, high = redrawn(drawn(uneven(4)), Sampling(temperature=0), 2000)
    assert low.tolist() == high.tolist() == [1.0] + [0.0] * (TOP_LOGPROBS - 1)


def test_redrawn_of_a_certain_step_is_certain():
    logits = torch.full((2000,), -1e4)
    logits[7] = 0.0
    for temperature in (0.5, 1.0, 100.0):
        low, high = redrawn(drawn(logits), Sampling(temperature=temperature), 2000)
        assert low[0] == pytest.approx(1, abs=1e-5) and high[0] == 1


def test_redrawn_of_what_is_too_improbable_for_a_float_holds_the_exact_probability():
    logits = torch.full((2000,), -200.0)
    logits[7] = 0.0
    low, high = redrawn(drawn(logits), Sampling(temperature=100.0), 2000)
    true = exact(logits, temperature=100.0)[0]
    assert true == pytest.approx(0.00368, abs=1e-5)
    assert low[0] <= true * (1 + 1e-6) and high[0] >= true


def test_penalty_is_drawn_with_and_its_mass_counts_as_removed():
    logits = torch.tensor(PROBABILITIES).log() + 3  # all above 0
    step = drawn(logits, repetition_penalty=4.0, top_k=2, alternatives=5)  # token 0 was there
    scores = logits.clone()
    scores[0] = logits[0] / 4
    own = scores.softmax(-1)
    kept = own.topk(2).indices.tolist()
    assert 0 not in kept
    assert [each.sampled_probability > 0 for each in step.alternatives] == [
        each.id in kept for each in step.alternatives
    ]
    assert step.removed == pytest.approx(1 - float(own[kept].sum()), abs=1e-6)


def test_top_predictions_are_the_largest_log_probabilities_in_order():
    logits = uneven(5)
    step = step_of(logits[None], 3, alternatives=4, spell=str)
    assert step.top_logprobs == pytest.approx(
        logits.log_softmax(-1).sort(descending=True).values[:TOP_LOGPROBS].numpy()
    )
    assert [each.probability for each in step.alternatives] == pytest.approx(np.exp(step.top_logprobs[:4]), rel=1e-5)


@pytest.mark.parametrize("top_p", [1e-6, 0.1, 0.5, 0.9, 0.95, 0.999999])
@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 10.0, 300.0])
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("top_k", [None, 40])
def test_top_p_keeps_exactly_what_transformers_does(top_p, scale, rounded, top_k):
    logits = scale * torch.randn(1, 5000, generator=torch.Generator().manual_seed(0))
    logits = logits.round(decimals=1) if rounded else logits  # many are equal
    if top_k:
        logits = TopKLogitsWarper(top_k)(None, logits)
    before = logits.clone()
    assert torch.equal(TopP(top_p)(None, logits), TopPLogitsWarper(top_p)(None, logits))
    assert torch.equal(logits, before)

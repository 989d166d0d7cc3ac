from math import exp, log

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gpt2lab.data.blocks import pack
from gpt2lab.errors import LabError
from gpt2lab.progress import finished
from gpt2lab.training.validation import (
    BUDGET,
    MIN_TOKENS,
    SAMPLE_COST,
    TRAIN_PER_SCORED,
    Change,
    change_of,
    plan_validation,
    predicted_tokens,
    sample_blocks,
    score_blocks,
)


def planned(steps, train_tokens, split_tokens, method="full", **given):
    return plan_validation(
        method, steps, train_tokens, split_tokens, **{"eval_every": None, "eval_tokens": None} | given
    )


@pytest.mark.parametrize("method", ["full", "lora", "scratch"])
@pytest.mark.parametrize("steps", [10, 92, 1000, 20_000])
@pytest.mark.parametrize("split_tokens", [6_000, 280_000])
def test_validations_take_a_tenth_of_the_training_time(method, steps, split_tokens):
    train_tokens = steps * 2048
    eval_every, tokens = planned(steps, train_tokens, split_tokens, method)
    validations = -(-steps // eval_every) + 1
    assert 2 <= validations <= 11
    assert MIN_TOKENS <= tokens <= split_tokens
    cost = validations * (tokens + SAMPLE_COST) / (train_tokens * TRAIN_PER_SCORED[method])
    assert cost <= BUDGET or (validations, tokens) == (2, MIN_TOKENS)


def test_ten_steps_no_longer_cost_ten_validations_of_a_whole_split():
    eval_every, tokens = planned(10, 20_480, 280_000)
    assert (eval_every, tokens < 2_000) == (10, True)


def test_short_split_is_scored_whole_ten_times():
    assert planned(100, 200, MIN_TOKENS) == (10, MIN_TOKENS)
    assert planned(57, 200, 80) == (6, 80)


def test_given_values_win():
    assert planned(100, 20_480, 280_000, eval_tokens=280_000) == (10, 280_000)
    assert planned(100, 20_480, 280_000, eval_tokens=5_000, eval_every=1) == (1, 5_000)
    assert planned(100, 20_480, 280_000, eval_every=1) == (1, MIN_TOKENS)


def test_sample_is_of_whole_blocks_in_order_and_a_larger_one_contains_a_smaller():
    blocks = pack(np.arange(1005), 10)  # 101 blocks, the last one of 5 tokens
    few, more = sample_blocks(blocks, 91), sample_blocks(blocks, 300)
    assert (len(few), len(more)) == (10, 30)
    firsts = [set(sample.input_ids[:, 0].tolist()) for sample in (few, more)]
    assert firsts[0] < firsts[1]
    assert few.input_ids[:, 0].tolist() == sorted(firsts[0])
    assert firsts[0] != {10 * i for i in range(10)}  # not just the beginning
    assert more.n_tokens == int((more.labels >= 0).sum())
    assert sample_blocks(blocks, 91).input_ids.equal(few.input_ids)
    assert sample_blocks(blocks, 1005) is sample_blocks(blocks, 10**9) is blocks


def test_blocks_are_scored_under_each_model_as_by_a_plain_cross_entropy(random_lab):
    labs = (random_lab(seed=1), random_lab(seed=2))
    blocks = pack(np.random.default_rng(0).integers(0, 300, 60), 16)  # the last block has 12 tokens
    progress = []
    scored = finished(score_blocks(labs, blocks, 3, "fp32"), lambda *now: progress.append(now))
    assert progress == [(3, 4), (4, 4)]
    assert scored.shape == (2, 4, 2)
    assert scored[:, :, 1].tolist() == [[15, 15, 15, 11]] * 2
    for lab, rows in zip(labs, scored):
        for ids, labels, (nll, _) in zip(blocks.input_ids, blocks.labels, rows):
            with torch.no_grad():
                logits = lab.model(ids[None]).logits[0, :-1].double()
            assert nll == pytest.approx(float(F.cross_entropy(logits, labels[1:], reduction="sum")), rel=1e-5)
    assert predicted_tokens(blocks) == 56


def test_bf16_is_close_to_fp32_and_not_the_same(random_lab):
    labs, blocks = (random_lab(seed=1),), pack(np.random.default_rng(0).integers(0, 300, 64), 16)
    exact, fast = (finished(score_blocks(labs, blocks, 4, precision)) for precision in ("fp32", "bf16"))
    assert fast == pytest.approx(exact, rel=2e-2)
    assert (fast != exact).any()


def test_change_weighs_blocks_by_their_tokens_and_its_interval_is_of_the_pairs():
    rng = np.random.default_rng(0)
    tokens = np.array([255.0] * 19 + [10])
    hard = rng.uniform(2, 6, 20)  # blocks differ far more from each other than before from after
    before = np.stack([hard * tokens, tokens], axis=1)
    after = np.stack([(hard - 0.1 + rng.normal(0, 0.01, 20)) * tokens, tokens], axis=1)
    change = change_of(before, after, split_tokens=10_000)
    assert change.before == pytest.approx(float(before[:, 0].sum() / tokens.sum()))
    assert change.tokens == tokens.sum()
    assert not change.is_whole
    assert change.low < change.ratio < change.high
    assert exp(-0.11) < change.low < change.high < exp(-0.09)
    assert change.ratio == pytest.approx(exp(change.after - change.before))


def test_one_block_has_no_interval():
    change = change_of(np.array([[30.0, 10]]), np.array([[20.0, 10]]), split_tokens=10)
    assert (change.before, change.after, change.low, change.high) == (3.0, 2.0, None, None)
    assert change.is_whole
    assert str(change) == f"{exp(3):,.2f} → {exp(2):,.2f}, {exp(-1) - 1:+.1%}, on all 10 tokens"


def test_losses_of_other_blocks_cannot_be_compared():
    rows = np.array([[30.0, 10], [20.0, 10]])
    for other in (rows[:1], rows * [1, 2]):
        with pytest.raises(LabError, match="different blocks"):
            change_of(rows, other, 20)


def test_change_reads_as_perplexities_with_how_much_text_they_are_of():
    change = Change(before=log(100), after=log(80), tokens=2_000, split_tokens=280_000, low=0.78, high=0.82)
    assert str(change) == "100.00 → 80.00, -20.0% (95 % interval -22.0% to -18.0%), on 2,000 of 280,000 tokens"


def test_change_of_a_diverged_run_is_short_enough_to_read():
    change = Change(before=4.5, after=60.0, tokens=10, split_tokens=10, low=1e20, high=1e30)
    assert str(change) == "90.02 → 1.1e+26, +1.3e+26% (95 % interval +1.0e+22% to +1.0e+32%), on all 10 tokens"

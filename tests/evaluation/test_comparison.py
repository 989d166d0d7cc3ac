import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from gpt2lab.data.text import wikitext_article
from gpt2lab.errors import LabError
from gpt2lab.evaluation.comparison import FEWEST, Comparison, compare, verdict_of
from gpt2lab.evaluation.perplexity import measured, perplexity, read
from gpt2lab.evaluation.protocols import PROTOCOLS, Document
from gpt2lab.evaluation.scorer import score
from gpt2lab.model.lab import Lab

NONE = math.nan
DOCUMENTS, TOKENS = 30, 20


@pytest.fixture
def pair(made_scored):
    """A function: what each of 30 documents of 20 tokens costs more per token → the two ScoredText, of documents unalike."""

    def make(differences):
        rng = np.random.default_rng(0)
        nll = np.repeat(rng.uniform(1, 9, DOCUMENTS), TOKENS) + rng.normal(0, 0.3, DOCUMENTS * TOKENS)
        owner = np.arange(DOCUMENTS * TOKENS) // TOKENS
        return made_scored(nll, owner, model="base"), made_scored(
            nll + np.asarray(differences)[owner], owner, model="tuned"
        )

    return make


def normal(mean, deviation):
    return np.random.default_rng(1).normal(mean, deviation, DOCUMENTS)


# verdicts


def test_model_that_costs_less_in_every_document_is_better(pair):
    differences = normal(-0.2, 0.02)
    found = compare(*pair(differences))
    assert (found.verdict, found.better_in, found.n_documents) == ("better", 30, 30)
    assert (found.before, found.after, found.unit, found.protocol) == ("base", "tuned", "nats per token", "sliding")
    assert found.difference == pytest.approx(differences.mean())
    low, high = found.interval
    assert differences.min() < low < found.difference < high < 0


def test_model_that_costs_more_in_every_document_is_worse(pair):
    found = compare(*pair(normal(0.2, 0.02)))
    assert (found.verdict, found.better_in) == ("worse", 0)
    assert 0 < found.interval[0] < found.difference < found.interval[1]


def test_difference_within_the_chance_of_documents_is_undecided(pair):
    differences = normal(0, 0.2)
    found = compare(*pair(differences - differences.mean() + 0.01))
    assert found.verdict == "cannot tell"
    assert found.difference == pytest.approx(0.01)
    assert found.interval[0] < 0 < found.difference < found.interval[1]


def test_equal_models_are_not_distinguished(pair):
    found = compare(*pair(np.zeros(DOCUMENTS)))
    assert (found.difference, found.interval, found.better_in, found.verdict) == (0, (0, 0), 0, "cannot tell")
    assert found.ratio == 1


def test_one_document_cannot_tell_however_large_the_difference(made_scored):
    found = compare(made_scored([NONE] + [9.0] * 50), made_scored([NONE] + [1.0] * 50))
    assert (found.difference, found.interval, found.verdict, found.n_documents) == (-8, None, "cannot tell", 1)


def test_two_documents_that_disagree_cannot_tell(made_scored):
    owner = np.arange(20) // 10
    found = compare(made_scored([5.0] * 20, owner), made_scored([1.0] * 10 + [6.0] * 10, owner))
    assert (found.verdict, found.better_in, found.interval) == ("cannot tell", 1, (-4, 1))


def test_small_difference_that_all_documents_share_is_found_though_they_are_unalike(pair):
    before, after = pair(np.full(DOCUMENTS, -0.01))
    found = compare(before, after)
    low, high = (math.log(end) for end in measured(before).interval)
    assert high - low > 100 * 0.01  # what the documents alone make uncertain
    assert found.verdict == "better"
    assert found.interval == pytest.approx((-0.01, -0.01))


def test_one_document_that_is_much_better_does_not_decide(pair):
    differences = np.full(DOCUMENTS, 0.001)
    differences[7] = -1
    found = compare(*pair(differences))
    assert found.difference < 0
    assert (found.verdict, found.better_in) == ("cannot tell", 1)


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((-0.2, -0.1), "better"),
        ((-0.2, -1e-9), "better"),
        ((-0.2, 0.0), "cannot tell"),
        ((-0.2, 0.1), "cannot tell"),
        ((0.0, 0.0), "cannot tell"),
        ((0.0, 0.1), "cannot tell"),
        ((1e-9, 0.1), "worse"),
        (None, "cannot tell"),
    ],
)
def test_verdict_is_reported_where_the_interval_is_clear_of_zero(interval, verdict):
    assert verdict_of(interval, FEWEST) == verdict


def test_few_documents_decide_nothing_since_they_agree_by_chance(made_scored):
    def found(n):
        owner = np.arange(n)
        return compare(made_scored([2.0] * n, owner), made_scored(1.9 + 0.01 * owner / n, owner))

    assert [found(n).verdict for n in (1, 2, 5, 6, 20)] == ["cannot tell"] * 3 + ["better"] * 2
    assert str(found(5)).endswith("lower in 5 of 5 documents; fewer than 6 can agree by chance")


def test_models_that_differ_by_chance_alone_are_rarely_distinguished(made_scored):
    rng, options = np.random.default_rng(0), 0
    for seed in range(200):
        losses = rng.normal(3, 0.1, size=(2, FEWEST))
        one, two = (made_scored(nll, np.arange(FEWEST)) for nll in losses)
        options += compare(one, two, seed=seed).verdict != "cannot tell"
    assert options / 200 <= 0.1


# figures


def test_difference_is_per_token_and_not_per_document(made_scored):
    owner = [0] * 30 + [1] * 10
    found = compare(made_scored([2.0] * 40, owner), made_scored([1.0] * 30 + [4.0] * 10, owner))
    assert found.difference == pytest.approx((-30 + 20) / 40)
    assert found.interval == pytest.approx((-1, 2))


@pytest.mark.parametrize("seed", [0, 5])
def test_other_way_round_the_signs_are_the_other_way_round(pair, seed):
    before, after = pair(normal(-0.05, 0.2))
    there, back = compare(before, after, seed=seed), compare(after, before, seed=seed)
    assert back.difference == pytest.approx(-there.difference)
    assert back.interval == pytest.approx((-there.interval[1], -there.interval[0]))
    assert back.ratio == pytest.approx(1 / there.ratio)
    assert (back.before, back.after) == (there.after, there.before)
    assert back.better_in == DOCUMENTS - there.better_in


@pytest.mark.parametrize(("mean", "verdicts"), [(-0.2, ("better", "worse")), (0.2, ("worse", "better"))])
def test_other_way_round_the_verdict_is_the_other(pair, mean, verdicts):
    before, after = pair(normal(mean, 0.02))
    assert (compare(before, after).verdict, compare(after, before).verdict) == verdicts


def test_interval_follows_from_the_seed(pair):
    before, after = pair(normal(-0.05, 0.2))
    assert compare(before, after, seed=1) == compare(before, after, seed=1)
    assert compare(before, after, seed=1).interval != compare(before, after, seed=2).interval


def test_ratio_is_that_of_the_perplexities(pair):
    before, after = pair(normal(-0.3, 0.1))
    assert compare(before, after).ratio == pytest.approx(measured(after).perplexity / measured(before).perplexity)


def test_tokens_that_either_did_not_predict_are_left_out(made_scored):
    owner = [0, 0, 0, 1, 1, 1]
    before = made_scored([NONE, 5, 5, 5, NONE, 5], owner)
    after = made_scored([1, 2, NONE, 3, 1, 1], owner)
    found = compare(before, after)
    assert found.difference == pytest.approx((-3 - 2 - 4) / 3)
    assert found.interval == pytest.approx((-3, -3))  # documents: -3 of 1 token, -6 of 2


def test_document_that_only_one_predicted_is_left_out(made_scored):
    owner = [0, 0, 1, 1, 2, 2]
    found = compare(made_scored([NONE, 5, 5, 5, NONE, NONE], owner), made_scored([1, 2, 3, 1, 1, 1], owner))
    assert (found.n_documents, found.difference) == (2, pytest.approx(-3))


def test_windows_may_differ_where_the_tokens_are_the_same(tiny_lab, articles):
    wide, narrow = (score(tiny_lab, read(tiny_lab, articles, context=context)) for context in (64, 16))
    both = wide.predicted & narrow.predicted
    assert both.sum() == narrow.predicted.sum() < wide.predicted.sum()
    assert compare(wide, narrow).difference == pytest.approx((narrow.nll - wide.nll)[both].mean())


# tokenizers that differ


def other_tokens(made_scored, nll, owner, **changes):
    """The same text in half as many tokens, of another model."""
    return made_scored(nll, owner, ids=np.arange(len(nll)) + 500, starts=2 * np.arange(len(nll)), **changes)


def test_models_of_different_tokenizers_are_compared_in_bits_per_byte(made_scored):
    common = {"documents": (Document("a", 4, 10), Document("b", 4, 30)), "text": "x" * 8}
    before = made_scored([0, 4, 4, 4, 1, 1, 1, 1], [0] * 4 + [1] * 4, windows=[[0, 0, 8]], **common)
    after = other_tokens(made_scored, [1, 5, 1, 6], [0, 0, 1, 1], model="other", windows=[[0, 0, 4]], **common)
    found = compare(before, after)
    assert found.unit == "bits per byte"
    assert found.difference == pytest.approx((6 + 7 - 12 - 4) / 40 / math.log(2))
    assert found.interval == pytest.approx((-6 / 10 / math.log(2), 3 / 30 / math.log(2)))
    assert (found.better_in, found.n_documents, found.verdict) == (1, 2, "cannot tell")
    assert found.difference == pytest.approx(measured(after).bits_per_byte - measured(before).bits_per_byte)
    assert found.ratio == pytest.approx(measured(after).byte_perplexity / measured(before).byte_perplexity)
    assert compare(after, before).difference == pytest.approx(-found.difference)


@pytest.mark.slow
def test_real_tokenizers_that_differ_are_compared_by_sliding_and_lm_eval_and_refused_by_blocks(
    tiny_lab, gpt2_tokenizer, random_gpt2
):
    texts = [f"The moon goes around the earth in {i} days , and the sea follows it ." for i in range(100)]
    articles = tuple(wikitext_article(f"Day {i}", [(1, "", [text])]) for i, text in enumerate(texts))
    other = Lab(random_gpt2(1, vocab_size=50_257, initializer_range=0.02), gpt2_tokenizer, "other")
    for protocol, options in (("sliding", {"stride": 16}), ("lm-eval", {})):
        one, two = (score(lab, read(lab, articles, protocol, context=32, **options)) for lab in (tiny_lab, other))
        found = compare(one, two)
        assert found.unit == "bits per byte"
        assert found.difference == pytest.approx(measured(two).bits_per_byte - measured(one).bits_per_byte)
    for protocol, why in (
        ("blocks", "it keeps other parts of the text for each"),
        ("sliding", "the tokens without a prediction"),
    ):
        one, two = (score(lab, read(lab, articles, protocol, context=32)) for lab in (tiny_lab, other))
        with pytest.raises(
            LabError, match=f"and other cannot be compared by {protocol}: their tokenizers differ.*{why}"
        ):
            compare(one, two)


# what is not comparable


def test_different_texts_are_refused(made_scored):
    with pytest.raises(
        LabError, match=r"m and t cannot .* not scored on the same text .*\(sliding, 3 characters; sliding, 4\)"
    ):
        compare(made_scored([NONE, 1, 1]), made_scored([NONE, 1, 1, 1], model="t"))
    with pytest.raises(LabError, match="not scored on the same text"):
        compare(made_scored([NONE, 1, 1], text="abc"), made_scored([NONE, 1, 1], text="abd"))


def test_different_protocols_are_refused(made_scored):
    with pytest.raises(LabError, match=r"by the same protocol \(sliding, 3 characters; blocks, 3\)"):
        compare(made_scored([NONE, 1, 1]), made_scored([NONE, 1, 1], protocol="blocks"))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_samples_that_differ_are_refused(tiny_lab, articles, protocol):
    one, two = (score(tiny_lab, read(tiny_lab, articles, protocol, context=16, quick=1, seed=seed)) for seed in (0, 1))
    assert one.tokenized.text != two.tokenized.text
    with pytest.raises(LabError, match="same text"):
        compare(one, two)


# in words


def comparison(**changes):
    values = {"before": "base", "after": "tuned", "difference": -0.25, "unit": "nats per token", "protocol": "sliding"}
    values |= {"interval": (-0.3, -0.2), "n_documents": 1500, "better_in": 1400, "verdict": "better"}
    return Comparison(**values | changes)


def test_verdict_in_a_sentence():
    assert str(comparison()) == (
        "tuned is better than base: -0.2500 nats per token (95 % interval -0.3000 to -0.2000), -22.1% perplexity, "
        "lower in 1,400 of 1,500 documents"
    )
    assert str(comparison(difference=0.25, interval=(0.2, 0.3), verdict="worse")).startswith(
        "tuned is worse than base: +0.2500 nats per token (95 % interval +0.2000 to +0.3000), +28.4% perplexity"
    )
    assert str(comparison(interval=None, verdict="cannot tell", n_documents=1, better_in=1)) == (
        "whether tuned is better than base is undecided: -0.2500 nats per token, -22.1% perplexity, "
        "lower in 1 of 1 documents; fewer than 6 can agree by chance"
    )


def test_ratio_of_bits_per_byte_is_a_power_of_two():
    assert comparison(difference=-1.0, unit="bits per byte").ratio == pytest.approx(0.5)
    assert comparison(difference=-1.0).ratio == pytest.approx(math.exp(-1))


# models


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_random_model_is_worse_than_one_that_guesses(random_lab, protocol):
    articles = tuple(wikitext_article(f"Day {i}", [(1, "", [f"the sea and {i} moons ."])]) for i in range(12))
    guessing, wild = random_lab(), random_lab(1, initializer_range=0.6)
    with torch.no_grad():
        guessing.model.transformer.ln_f.weight.zero_()
    one, two = (score(lab, read(lab, articles, protocol, context=16)) for lab in (guessing, wild))
    found = compare(one, two)
    assert found.verdict == "worse"
    expected = perplexity(wild, articles, protocol=protocol, context=16).perplexity / 300
    assert found.ratio == pytest.approx(expected, rel=1e-4)


def test_models_scored_in_different_precisions_are_not_compared(pair):
    one, two = pair(np.zeros(DOCUMENTS))
    two = replace(two, precision="bf16")
    with pytest.raises(LabError, match="base was scored in fp32 and tuned in bf16; score both in the same precision"):
        compare(one, two)

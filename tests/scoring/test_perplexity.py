import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gpt2lab import scoring
from gpt2lab.errors import LabError
from gpt2lab.model import Lab
from gpt2lab.scoring import Perplexity, article_of, bootstrap_interval, perplexity, score_sliding
from gpt2lab.text import Article, joined_rows, read_articles

MOON = Article("Moon", ("", " = Moon = \n", "", " The moon goes around the earth .\n"))
SEA = Article("Sea", ("", " = Sea = \n", "", " The sea follows it — twice a day .\n"))
WINDOWS = [
    (10, 64, 64),
    (64, 64, 64),
    (65, 64, 64),
    (128, 64, 64),
    (129, 64, 32),
    (96, 64, 32),
    (97, 64, 32),
    (200, 16, 15),
    (100, 16, 1),
    (150, 16, 7),
    (3, 2, 1),
    (9, 2, 2),
    (2, 64, 1),
]


@pytest.fixture(scope="module")
def exact(tiny_lab):
    """The tiny model in float64."""
    return copy.deepcopy(tiny_lab.model).double()


@pytest.fixture(scope="module")
def raw_test(shared_data):
    return read_articles(shared_data / "wikitext-2-raw" / "wiki.test.raw")


@pytest.fixture
def gpt2_size_lab(gpt2_tokenizer, monkeypatch):
    """GPT-2's tokenizer and context, and a model that finds every token certain."""

    def no_loss(model, ids, *, first=1):
        return torch.zeros(len(ids), ids.shape[1] - first)

    monkeypatch.setattr(scoring, "token_nll", no_loss)
    model = SimpleNamespace(config=SimpleNamespace(n_positions=1024), device=torch.device("cpu"))
    return Lab(model, gpt2_tokenizer, "certain")


def random_ids(n):
    return torch.randint(300, (n,), generator=torch.Generator().manual_seed(n))


def guide_loop(model, ids, context, stride):
    """NLL, predicted tokens and windows of the Hugging Face guide's loop, one window at a time."""
    nll, scored, windows, end = 0.0, 0, 0, 0
    while end < len(ids):
        begin, previous_end = windows * stride, end
        end = min(begin + context, len(ids))
        targets = ids[begin:end].clone()
        targets[: previous_end - begin] = -100
        with torch.no_grad():
            logits = model(ids[None, begin:end]).logits[0]
        nll += F.cross_entropy(logits[:-1], targets[1:], ignore_index=-100, reduction="sum").item()
        scored += int((targets[1:] != -100).sum())
        windows += 1
    return nll, scored, windows


@pytest.mark.parametrize(("n", "context", "stride"), WINDOWS)
@pytest.mark.parametrize("at_once", [1, 200, 4096])
def test_sliding_windows_equal_the_guide_loop(tiny_lab, exact, monkeypatch, n, context, stride, at_once):
    monkeypatch.setattr(scoring, "TOKENS_AT_ONCE", at_once)
    ids = random_ids(n)
    nll, scored, windows = guide_loop(exact, ids, context, stride)
    ours = score_sliding(tiny_lab, ids, context, stride)
    assert (int((~np.isnan(ours.nll)).sum()), ours.windows) == (scored, windows)
    assert np.nansum(ours.nll) == pytest.approx(nll, rel=1e-6)


@pytest.mark.parametrize(("n", "context", "stride"), WINDOWS)
def test_tokens_without_a_prediction_are_the_first_of_the_text_and_of_disjoint_windows(tiny_lab, n, context, stride):
    unscored = np.flatnonzero(np.isnan(score_sliding(tiny_lab, random_ids(n), context, stride).nll))
    assert unscored.tolist() == (list(range(0, n, context)) if stride == context else [0])


def test_each_token_is_predicted_from_the_context_its_window_gives(tiny_lab, exact):
    ids = random_ids(30)
    nll = score_sliding(tiny_lab, ids, 16, 4).nll
    for t in range(1, 30):
        begin = 0 if t < 16 else 4 * math.ceil((t - 15) / 4)
        with torch.no_grad():
            expected = -exact(ids[None, begin:t]).logits[0, -1].log_softmax(-1)[ids[t]].item()
        assert nll[t] == pytest.approx(expected, rel=1e-5), t


@pytest.mark.parametrize(("context", "stride"), [(64, 64), (32, 8), (None, None)])
def test_perplexity_of_articles_is_the_guide_loop_over_their_joined_rows(tiny_lab, exact, context, stride):
    articles = (MOON, SEA, MOON)
    ids = tiny_lab.encode(joined_rows(articles))
    nll, scored, windows = guide_loop(exact, ids, context or 64, stride or 64)
    ours = perplexity(tiny_lab, articles, context=context, stride=stride)
    assert (ours.protocol, ours.context, ours.stride) == ("sliding", context or 64, stride or 64)
    assert (ours.n_scored, ours.windows) == (scored, windows)
    assert ours.perplexity == pytest.approx(math.exp(nll / scored), rel=1e-6)


@pytest.mark.parametrize(("stride", "windows", "n_scored"), [(1024, 281, 287_363), (512, 561, 287_643)])
def test_raw_test_file_has_the_windows_of_gpt2(gpt2_size_lab, raw_test, stride, windows, n_scored):
    result = perplexity(gpt2_size_lab, raw_test, context=1024, stride=stride)
    assert (result.windows, result.n_scored) == (windows, n_scored)
    assert (result.n_words, result.n_bytes) == (241_211, 1_290_590)
    assert (result.perplexity, result.bits_per_byte) == (1.0, 0.0)


def test_words_and_bytes_are_those_of_the_original_text(tiny_lab):
    original = " \n = Sea = \n \n The sea follows it — twice a day .\n"
    result = perplexity(tiny_lab, (SEA,))
    assert (result.n_words, result.n_bytes) == (12, len(original.encode()))


def test_normalisations_by_hand():
    result = Perplexity("sliding", 8, 4, n_scored=10, n_words=5, n_bytes=40, windows=3, nll=20 * math.log(2))
    assert result.perplexity == pytest.approx(4)
    assert result.word_perplexity == pytest.approx(16)
    assert result.byte_perplexity == pytest.approx(math.sqrt(2))
    assert result.bits_per_byte == pytest.approx(0.5)


def test_words_longer_than_floats_can_tell_have_infinite_perplexity(tiny_lab):
    result = perplexity(tiny_lab, (Article("", ("x" * 300,)),))
    assert result.n_words == 1
    assert result.word_perplexity == math.inf


@pytest.mark.parametrize(("context", "stride"), [(64, 64), (16, 5)])
def test_model_of_zeros_is_as_perplexed_as_its_vocabulary_is_large(random_lab, context, stride):
    lab = random_lab()
    torch.nn.init.zeros_(lab.model.transformer.ln_f.weight)
    torch.nn.init.zeros_(lab.model.transformer.ln_f.bias)
    assert perplexity(lab, (MOON, SEA), context=context, stride=stride).perplexity == pytest.approx(300)


def test_progress_counts_windows_up_to_all_of_them(tiny_lab):
    seen = []
    result = score_sliding(tiny_lab, random_ids(300), 16, 5, lambda done, total: seen.append((done, total)))
    assert [total for _, total in seen] == [result.windows] * len(seen)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (result.windows, result.windows)


def test_scoring_leaves_the_ids_and_the_gradients_alone(tiny_lab):
    ids = random_ids(40)
    scored = score_sliding(tiny_lab, ids, 16, 8)
    assert torch.equal(scored.ids, random_ids(40)) and torch.equal(ids, random_ids(40))
    assert torch.is_grad_enabled()


def test_interval_holds_the_perplexity_and_is_the_same_each_time(tiny_lab):
    articles = (MOON, SEA, MOON, SEA)
    first, second = perplexity(tiny_lab, articles), perplexity(tiny_lab, articles)
    low, high = first.interval
    assert 1 < low < first.perplexity < high
    assert first == second


def test_one_article_has_no_interval(tiny_lab):
    assert perplexity(tiny_lab, (MOON,)).interval is None


def test_interval_of_equal_articles_is_their_perplexity():
    interval = bootstrap_interval(np.full(30, math.log(7)), np.repeat([0, 1, 2], 10))
    assert interval == pytest.approx((7, 7))


def test_interval_of_two_articles_ends_at_their_own_perplexities():
    nll = np.array([math.log(2)] * 10 + [math.log(8)] * 10)
    assert bootstrap_interval(nll, np.repeat([0, 1], 10)) == pytest.approx((2, 8))


def test_interval_weighs_articles_by_their_tokens_and_skips_those_without():
    nll = np.array([math.log(2)] * 30 + [math.log(8)] * 10)
    articles = np.array([1] * 30 + [3] * 10)
    assert bootstrap_interval(nll, articles) == pytest.approx((2, 8))
    assert bootstrap_interval(nll, np.ones(40, dtype=int)) is None


def test_interval_is_the_same_for_the_same_seed_and_another_for_another():
    nll = np.random.default_rng(0).normal(3, 1, size=200)
    first, again, other = (bootstrap_interval(nll, np.arange(200) // 10, **seed) for seed in ({}, {}, {"seed": 1}))
    assert first == again != other


def test_interval_of_many_articles_is_near_the_normal_one():
    means = np.random.default_rng(0).normal(3, 0.5, size=400)
    low, high = bootstrap_interval(np.repeat(means, 10), np.repeat(np.arange(400), 10))
    margin = 1.96 * means.std() / math.sqrt(400)
    assert (math.log(low), math.log(high)) == pytest.approx((means.mean() - margin, means.mean() + margin), abs=0.01)


def test_article_of_by_hand():
    articles = (Article("a", ("", "ab")), Article("b", ("c",)), Article("c", ("", "d")))
    assert joined_rows(articles) == "\n\nab\n\nc\n\n\n\nd"
    assert article_of(np.arange(12), articles).tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"context": 0}, r"context 0 is out of range; .* from 2 to 64"),
        ({"context": 1}, r"context 1 "),
        ({"context": 65}, r"context 65 .* 2 to 64"),
        ({"context": -5}, r"context -5 "),
        ({"stride": 0}, r"stride 0 is out of range; .* from 1 to 64"),
        ({"stride": 65}, r"stride 65 .* 64"),
        ({"context": 32, "stride": 33}, r"stride 33 .* 32"),
        ({"stride": -1}, r"stride -1 "),
        ({"context": 32.5}, r"context .*32\.5"),
        ({"stride": "8"}, r"stride .*8"),
        ({"stride": True}, r"stride .*True"),
    ],
)
def test_window_out_of_range_is_refused_with_value_and_limit(tiny_lab, values, message):
    with pytest.raises(LabError, match=message):
        perplexity(tiny_lab, (MOON,), **values)


@pytest.mark.parametrize(("text", "count"), [("", 0), ("x", 1)])
def test_text_below_two_tokens_is_refused_with_its_count(tiny_lab, text, count):
    with pytest.raises(LabError, match=rf"only {count} of the 2 tokens that perplexity needs"):
        perplexity(tiny_lab, (Article("", (text,)),))

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from gpt2lab.data.text import Article, TextSplits, wikitext_article
from gpt2lab.errors import LabError
from gpt2lab.evaluation.perplexity import Perplexity, drawn_articles, measured, perplexity, protocol_names, read
from gpt2lab.evaluation.protocols import PROTOCOLS, Document
from gpt2lab.evaluation.scorer import checked_windows, score


@pytest.fixture(scope="module")
def twelve():
    """A dozen articles of a few words each, no two alike."""
    words = "The moon is a small world that goes around the earth and the sea follows it".split()
    return tuple(
        wikitext_article(f"Moon {i}", [(1, "", [" ".join(words[i % 5 :: 1 + i % 3]) + f" in {1900 + i} ."])])
        for i in range(12)
    )


@pytest.fixture
def lab_of_zeros(random_lab):
    """A model whose logits are all 0."""
    lab = random_lab()
    torch.nn.init.zeros_(lab.model.transformer.ln_f.weight)
    torch.nn.init.zeros_(lab.model.transformer.ln_f.bias)
    return lab


# the figures


@pytest.mark.parametrize(
    ("protocol", "context", "stride"),
    [("sliding", 64, None), ("sliding", 32, 8), ("sliding", None, None), ("lm-eval", 16, None), ("blocks", 16, None)],
)
def test_perplexity_is_that_of_the_published_loop(
    tiny_lab, articles, published_windows, exact_nll, protocol, context, stride
):
    length = context or 64
    windows = published_windows(protocol, tiny_lab.tokenizer, articles, length, stride or length)
    nll = exact_nll(tiny_lab.model, windows)
    ours = perplexity(tiny_lab, articles, protocol=protocol, context=context, stride=stride)
    assert (ours.protocol, ours.context, ours.stride) == (protocol, length, stride or length)
    assert (ours.n_scored, ours.windows) == (len(nll), len(windows))
    assert ours.nll == pytest.approx(nll.sum(), rel=1e-6)
    assert ours.perplexity == pytest.approx(math.exp(nll.mean()), rel=1e-5)


def test_guide_loop_with_the_models_own_loss_gives_the_perplexity_of_disjoint_windows(tiny_lab, articles):
    ids, total, n = tiny_lab.encode("\n\n".join(row for a in articles for row in a.rows)), 0.0, 0
    for begin in range(0, len(ids), 64):
        window = ids[None, begin : begin + 64]
        with torch.no_grad():
            total += tiny_lab.model(window, labels=window).loss.item() * (window.shape[1] - 1)
        n += window.shape[1] - 1
    assert perplexity(tiny_lab, articles).perplexity == pytest.approx(math.exp(total / n), rel=1e-5)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_normalisation_is_of_the_one_stored_nll(tiny_lab, articles, protocol):
    result = perplexity(tiny_lab, articles, protocol=protocol, context=16)
    assert result.n_scored * math.log(result.perplexity) == pytest.approx(result.nll)
    assert result.n_bytes * math.log(result.byte_perplexity) == pytest.approx(result.nll)
    assert result.n_bytes * result.bits_per_byte * math.log(2) == pytest.approx(result.nll)
    assert math.log(result.word_perplexity) * result.n_words == pytest.approx(result.nll)


def test_words_and_bytes_are_those_of_the_protocol(tiny_lab, articles):
    text = "".join(row or " \n" for article in articles for row in article.rows)
    sliding, lm_eval, blocks = (perplexity(tiny_lab, articles, protocol=name, context=16) for name in PROTOCOLS)
    assert (sliding.n_words, sliding.n_bytes) == (len(text.split()), len(text.encode()))
    # of each page one more word at either end; the blank line before the first page and a newline per page are in none
    assert lm_eval.n_words == sliding.n_words + 2 * 3
    assert lm_eval.n_bytes == sliding.n_bytes - 1 - 3
    assert 0 < blocks.n_words < sliding.n_words and 0 < blocks.n_bytes < sliding.n_bytes


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tokens_and_documents_are_counted(tiny_lab, articles, protocol):
    result = perplexity(tiny_lab, articles, protocol=protocol, context=16)
    tokenized = read(tiny_lab, articles, protocol, context=16)
    assert result.n_documents == 3
    assert result.n_tokens == (tokenized.ids != tiny_lab.tokenizer.eos_token_id).sum()


def test_normalisations_by_hand():
    result = Perplexity("sliding", 8, 4, n_scored=10, n_words=5, n_bytes=40, windows=3, nll=20 * math.log(2))
    assert result.perplexity == pytest.approx(4)
    assert result.word_perplexity == pytest.approx(16)
    assert result.byte_perplexity == pytest.approx(math.sqrt(2))
    assert result.bits_per_byte == pytest.approx(0.5)


def test_measured_by_hand(made_scored):
    nll = [math.nan, 1, 2, 3, math.nan, 4, 5]
    documents = (Document("a", 2, 8), Document("b", 3, 12))
    result = measured(made_scored(nll, [0, 0, 0, 1, 1, 1, 1], documents=documents, windows=[[0, 1, 4], [4, 5, 7]]))
    assert (result.nll, result.n_scored, result.n_tokens, result.windows) == (15, 5, 7, 2)
    assert (result.n_words, result.n_bytes, result.n_documents) == (5, 20, 2)


def test_sum_over_a_million_tokens_loses_nothing(made_scored):
    result = measured(made_scored(np.full(10**6, 0.1), np.arange(10**6) // 10**5))
    assert result.nll == pytest.approx(10**5, rel=1e-12)
    assert result.perplexity == pytest.approx(math.exp(0.1), rel=1e-12)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("context", [64, 16])
def test_model_of_zeros_is_as_perplexed_as_its_vocabulary_is_large(lab_of_zeros, articles, protocol, context):
    result = perplexity(lab_of_zeros, articles, protocol=protocol, context=context)
    assert result.perplexity == pytest.approx(300)
    assert result.interval == pytest.approx((300, 300))


def test_words_too_long_for_floats_have_infinite_perplexity(random_lab):
    lab = random_lab()
    result = perplexity(lab, (Article("", ("x" * 300,)), Article("", ("y" * 300,))))
    assert result.n_words == 2
    assert result.word_perplexity == result.word_interval[1] == math.inf
    assert math.isfinite(result.perplexity) and math.isfinite(result.bits_per_byte)


def test_text_without_words_has_infinite_perplexity_per_word(tiny_lab):
    result = perplexity(tiny_lab, (Article("", ("\n\n\n",)),))
    assert (result.n_words, result.word_perplexity) == (0, math.inf)
    assert math.isfinite(result.perplexity)


def test_figures_and_intervals_past_floats_are_infinite(made_scored):
    result = measured(made_scored([2000.0] * 20, np.arange(20) // 10))
    assert result.perplexity == result.word_perplexity == math.inf
    assert result.interval == result.word_interval == (math.inf, math.inf)
    assert result.bits_interval == pytest.approx((200 / math.log(2),) * 2)


def test_record_is_json_with_every_figure(tiny_lab, articles, made_scored):
    result = perplexity(tiny_lab, articles, context=16)
    record = json.loads(json.dumps(result.record(), allow_nan=False))
    figures = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")
    for name in (*figures, "nll", "n_scored", "n_words", "n_bytes", "windows", "protocol", "context", "stride"):
        assert record[name] == getattr(result, name)
    infinite = measured(made_scored([2000.0] * 20, np.arange(20) // 10)).record()
    assert infinite["perplexity"] is None
    json.dumps(infinite, allow_nan=False)


# intervals


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_intervals_hold_their_figures_and_are_the_same_each_time(tiny_lab, twelve, protocol):
    first, second = (perplexity(tiny_lab, twelve, protocol=protocol, context=16) for _ in range(2))
    for name, interval in (
        ("perplexity", first.interval),
        ("word_perplexity", first.word_interval),
        ("bits_per_byte", first.bits_interval),
    ):
        low, high = interval
        assert 0 < low < getattr(first, name) < high, name
    assert first == second


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_one_article_has_no_interval(tiny_lab, articles, protocol):
    result = perplexity(tiny_lab, articles[:1], protocol=protocol, context=16)
    assert (result.interval, result.word_interval, result.bits_interval) == (None, None, None)


def test_interval_of_equal_articles_is_their_perplexity(made_scored):
    result = measured(made_scored([math.log(7)] * 30, np.arange(30) // 10))
    assert result.interval == pytest.approx((7, 7))
    assert result.word_interval == pytest.approx((7, 7))  # 10 words each
    assert result.bits_interval == pytest.approx((math.log2(7) / 10,) * 2)  # 100 bytes each


def test_intervals_of_two_articles_end_at_their_own_figures(made_scored):
    documents = (Document("a", 5, 40), Document("b", 20, 10))
    result = measured(made_scored([math.log(2)] * 10 + [math.log(8)] * 10, np.arange(20) // 10, documents=documents))
    assert result.interval == pytest.approx((2, 8))
    assert result.word_interval == pytest.approx((8 ** (10 / 20), 2 ** (10 / 5)))
    assert result.bits_interval == pytest.approx((10 / 40, 30 / 10))


def test_interval_weighs_articles_by_their_tokens(made_scored):
    nll = [math.log(2)] * 30 + [math.log(8)] * 10
    low, high = measured(made_scored(nll, [0] * 30 + [1] * 10)).interval
    assert (low, high) == pytest.approx((2, 8))
    many = measured(made_scored(nll * 20, np.repeat(np.arange(40), [30, 10] * 20))).interval
    assert many[0] < 2 ** (3 / 4) * 8 ** (1 / 4) < many[1] < 2 ** (1 / 2) * 8 ** (1 / 2)  # not one article, one vote


def test_articles_without_predictions_are_not_drawn(made_scored):
    nll = [math.nan] * 5 + [math.log(2)] * 30 + [math.nan] * 5 + [math.log(8)] * 10
    result = measured(made_scored(nll, np.repeat([0, 1, 2, 3], [5, 30, 5, 10])))
    assert result.n_documents == 2
    assert result.interval == pytest.approx((2, 8))
    alone = measured(made_scored([math.nan] * 5 + [1.0] * 5, [0] * 5 + [1] * 5))
    assert (alone.n_documents, alone.interval) == (1, None)


# parameters


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("context", "message"),
    [
        (0, r"context 0 is out of range; .* from 2 to 64"),
        (1, r"context 1 "),
        (65, r"context 65 .* 2 to 64"),
        (-5, r"context -5 "),
        (32.5, r"context 32\.5"),
        ("16", r"context '16'"),
        (True, r"context True"),
        (math.nan, r"context nan"),
    ],
)
def test_context_out_of_range_is_refused_with_value_and_limit(tiny_lab, articles, protocol, context, message):
    with pytest.raises(LabError, match=message):
        perplexity(tiny_lab, articles, protocol=protocol, context=context)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stride": 0}, r"stride 0 is out of range; .* from 1 to 64"),
        ({"stride": 65}, r"stride 65 .* 64"),
        ({"context": 32, "stride": 33}, r"stride 33 .* 32"),
        ({"stride": -1}, r"stride -1 "),
        ({"stride": "8"}, r"stride '8'"),
        ({"stride": 1.5}, r"stride 1\.5"),
        ({"stride": True}, r"stride True"),
    ],
)
def test_stride_out_of_range_is_refused_with_value_and_limit(tiny_lab, articles, values, message):
    with pytest.raises(LabError, match=message):
        perplexity(tiny_lab, articles, **values)


@pytest.mark.parametrize("protocol", ["lm-eval", "blocks"])
@pytest.mark.parametrize("stride", [16, 8, 0])
def test_stride_is_refused_where_there_are_no_sliding_windows(tiny_lab, articles, protocol, stride):
    with pytest.raises(
        LabError, match=rf"stride {stride} is of sliding windows, and {protocol} has none; leave it out"
    ):
        perplexity(tiny_lab, articles, protocol=protocol, context=16, stride=stride)


@pytest.mark.parametrize("protocol", ["", "Sliding", "wikitext", "lm_eval", None, 3])
def test_unknown_protocol_is_refused_with_the_known_ones(tiny_lab, articles, protocol):
    with pytest.raises(LabError, match=r"protocol .* is unknown; use sliding, lm-eval, blocks"):
        perplexity(tiny_lab, articles, protocol=protocol)


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "3", math.nan])
def test_sample_below_one_article_is_refused_with_its_size(tiny_lab, articles, count):
    with pytest.raises(LabError, match=r"quick .* is out of range; use a whole number from 1"):
        perplexity(tiny_lab, articles, quick=count)


@pytest.mark.parametrize("seed", [-1, 1.5, True, "0", 2**63])
def test_seed_that_is_none_is_refused(tiny_lab, articles, seed):
    with pytest.raises(LabError, match=r"seed .* is out of range"):
        perplexity(tiny_lab, articles, quick=1, seed=seed)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("quick", [None, 1])
def test_no_articles_are_refused(tiny_lab, protocol, quick):
    with pytest.raises(LabError, match="give more text"):
        perplexity(tiny_lab, (), protocol=protocol, quick=quick)


@pytest.mark.parametrize(("text", "count"), [("", 0), ("x", 1)])
def test_text_below_two_tokens_is_refused_with_its_count(tiny_lab, text, count):
    with pytest.raises(LabError, match=rf"only {count} of the 2 tokens that perplexity needs"):
        perplexity(tiny_lab, (Article("", (text,)),))


def test_half_a_character_is_refused_as_bad_input(tiny_lab):
    with pytest.raises(LabError, match="surrogate"):
        perplexity(tiny_lab, (Article("", ("The \ud83c moon",)),))


def test_protocols_are_named_in_one_string_or_several():
    everything = ["sliding", "lm-eval", "blocks"]
    assert protocol_names("all") == protocol_names(["all"]) == protocol_names("sliding, all") == everything
    assert protocol_names("sliding,lm-eval,blocks") == protocol_names(" sliding,lm-eval ,blocks") == everything
    assert protocol_names(["blocks", "sliding", "blocks"]) == ["blocks", "sliding"]
    for wrong in ("", "sliding,,blocks", [None], ["x" * 100]):
        with pytest.raises(LabError, match=r"is unknown; use sliding, lm-eval, blocks, all") as error:
            protocol_names(wrong)
        assert len(str(error.value)) < 150
    with pytest.raises(LabError, match="no protocol is named"):
        protocol_names([])
    with pytest.raises(LabError, match="are no names; use sliding"):
        protocol_names(None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lab": "builtin"}, "the model is a str; give load_model"),
        ({"articles": "some text"}, r"articles must be a tuple of Article, such as load_text\(name\).test; got str"),
        ({"articles": TextSplits("x", (), (), ())}, "; got TextSplits"),
        ({"articles": Article("", ("moon",))}, "; got Article"),
        ({"articles": None}, "; got NoneType"),
        ({"articles": ["moon"]}, "; got list"),
        ({"protocol": ["sliding"]}, "is unknown; use sliding"),
        ({"seed": -1}, "seed -1 is out of range"),
        ({"seed": 0.5}, r"seed 0\.5 is out of range"),
    ],
)
def test_what_is_no_model_no_articles_or_no_protocol_is_refused(tiny_lab, articles, change, message):
    with pytest.raises(LabError, match=message):
        perplexity(**{"lab": tiny_lab, "articles": articles} | change)


def test_progress_counts_windows_up_to_all_of_them(tiny_lab, articles):
    seen = []
    result = perplexity(tiny_lab, articles, context=16, stride=5, on_progress=lambda *progress: seen.append(progress))
    assert (seen[0], seen[-1]) == ((0, result.windows), (result.windows, result.windows))


# quick: a sample of articles


def test_sample_is_of_whole_articles_in_their_order_each_once(twelve):
    for count in range(1, 12):
        drawn = drawn_articles(twelve, count, seed=count)
        numbers = [twelve.index(article) for article in drawn]
        assert len(drawn) == count
        assert numbers == sorted(set(numbers))


def test_sample_follows_from_its_seed(twelve):
    assert drawn_articles(twelve, 4, seed=5) == drawn_articles(twelve, 4, seed=5)
    assert len({drawn_articles(twelve, 4, seed=seed) for seed in range(10)}) > 5


def test_each_article_is_drawn_as_often(twelve):
    times = np.zeros(12)
    for seed in range(400):
        for article in drawn_articles(twelve, 3, seed=seed):
            times[twelve.index(article)] += 1
    np.testing.assert_allclose(times, 100, atol=35)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_quick_figures_are_those_of_the_articles_drawn(tiny_lab, twelve, protocol):
    quick = perplexity(tiny_lab, twelve, protocol=protocol, context=16, quick=5, seed=2)
    drawn = perplexity(tiny_lab, drawn_articles(twelve, 5, 2), protocol=protocol, context=16)
    assert quick.sample == (5, 12)
    assert dataclasses.replace(quick, sample=None, cautions=drawn.cautions) == drawn
    assert quick != perplexity(tiny_lab, twelve, protocol=protocol, context=16, quick=5, seed=3)


@pytest.mark.parametrize("count", [12, 13, 10**6])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_sample_of_all_articles_is_none(tiny_lab, twelve, protocol, count):
    everything = perplexity(tiny_lab, twelve, protocol=protocol, context=16)
    assert perplexity(tiny_lab, twelve, protocol=protocol, context=16, quick=count) == everything
    assert everything.sample is None


# cautions


def quiet(made_scored, **changes):
    """A result that there is nothing to warn of but what is changed: 10 documents of 500 tokens."""
    options = {"nll": [math.nan] + [1.0] * 4999, "document": np.arange(5000) // 500} | changes
    return measured(made_scored(**options))


def test_good_result_has_no_caution(made_scored):
    assert quiet(made_scored).cautions == ()


def test_sample_is_cautioned_with_both_numbers(made_scored):
    assert quiet(made_scored, sample=(10, 600)).cautions == ("a sample of 10 of 600 articles",)


@pytest.mark.parametrize(("unscored", "share"), [(1, None), (4, None), (6, "0.1%"), (50, "1.0%"), (2500, "50.0%")])
def test_tokens_without_a_prediction_are_cautioned_above_a_thousandth(made_scored, unscored, share):
    nll = np.ones(5000)
    nll[: unscored * 2 : 2] = math.nan
    cautions = quiet(made_scored, nll=nll).cautions
    if share is None:
        assert cautions == ()
    else:
        (caution,) = cautions
        assert caution.startswith(f"{share} of the tokens read have no prediction")


def test_share_without_a_prediction_is_that_of_the_tokens_read(tiny_lab, twelve):
    def caution(**options):
        found = [c for c in perplexity(tiny_lab, twelve, **options).cautions if "no prediction" in c]
        return found[0].split(" ")[0] if found else None

    n = len(read(tiny_lab, twelve).ids)
    assert caution(context=8) == f"{-(-n // 8) / n:.1%}"  # the first of each window
    assert caution(context=8, stride=4) == f"{1 / n:.1%}"  # the first of the text
    assert caution(protocol="blocks", context=8) == "12.5%"  # of the blocks; what is dropped does not count
    assert caution(protocol="lm-eval", context=8) is None


def test_text_with_unk_is_cautioned(made_scored):
    text = "x" * 4990 + " <unk> xxx"
    (caution,) = quiet(made_scored, text=text).cautions
    assert "<unk>" in caution and "raw text" in caution
    assert quiet(made_scored, text=text.replace("<unk>", "<UNK>")).cautions == ()


@pytest.mark.parametrize(("nll", "warned"), [(math.log(300) * 1.001, True), (math.log(300) * 0.999, False)])
def test_perplexity_above_the_vocabulary_is_cautioned(made_scored, nll, warned):
    cautions = quiet(made_scored, nll=[nll] * 5000).cautions
    assert [c.startswith("worse than guessing among all 300 tokens alike") for c in cautions] == [True] * warned


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_model_that_guesses_is_not_called_worse_than_guessing(lab_of_zeros, articles, protocol):
    cautions = perplexity(lab_of_zeros, articles, protocol=protocol, context=16).cautions
    assert not [caution for caution in cautions if "worse than guessing" in caution]


@pytest.mark.parametrize(
    ("documents", "words"),
    [
        (1, "1 document has no interval; 6 or more are needed to trust one"),
        (2, "2 documents are too few for an interval; 6 or more are needed to trust one"),
        (5, "5 documents are too few for an interval; 6 or more are needed to trust one"),
        (6, None),
        (60, None),
    ],
)
def test_few_documents_are_cautioned(made_scored, documents, words):
    cautions = quiet(made_scored, document=np.arange(5000) * documents // 5000).cautions
    assert cautions == (() if words is None else (words,))


def test_cautions_add_up(made_scored):
    cautions = quiet(
        made_scored, nll=[math.nan] * 100 + [9.0] * 4900, document=None, text="<unk>" * 1000, sample=(1, 2)
    ).cautions
    assert len(cautions) == 5


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_result_carries_the_protocol_in_words(tiny_lab, articles, protocol):
    result = perplexity(tiny_lab, articles, protocol=protocol, context=16)
    assert "16 tokens" in result.described
    assert result.published == ()


def test_measuring_leaves_the_scored_as_it_was(tiny_lab, articles):
    scored = score(tiny_lab, read(tiny_lab, articles, context=16))
    before = scored.nll.copy()
    measured(scored)
    assert np.array_equal(scored.nll, before, equal_nan=True)


@pytest.mark.filterwarnings("ignore:bf16 is slow")
def test_bf16_result_states_the_difference_on_tokens_scored_in_both(tiny_lab, twelve):
    exact, near = (perplexity(tiny_lab, twelve, context=16, stride=8, precision=name) for name in ("fp32", "bf16"))
    tokenized = read(tiny_lab, twelve, context=16, stride=8)
    bf16, fp32 = (score(tiny_lab, tokenized, precision=name).nll for name in ("bf16", "fp32"))
    windows = checked_windows(tokenized).windows.tolist()
    chosen = np.concatenate([np.arange(first, end) for _, first, end in windows])
    by_hand = math.exp(bf16[chosen].mean()) / math.exp(fp32[chosen].mean()) - 1
    assert near.n_checked == len(chosen)
    assert near.precision_difference == pytest.approx(by_hand, rel=1e-4, abs=1e-9)
    assert near.cautions[0] == (
        f"scored in bf16; on {len(chosen):,} tokens scored in both, perplexity differs by {by_hand:+.3%} from fp32"
    )
    assert near.perplexity == pytest.approx(exact.perplexity, rel=0.01) and near.perplexity != exact.perplexity
    assert (exact.precision, exact.precision_difference, exact.n_checked) == ("fp32", None, 0)
    assert near.record()["precision_difference"] == near.precision_difference
    assert "bf16" not in " ".join(exact.cautions)

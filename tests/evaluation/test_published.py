import dataclasses

import numpy as np
import pytest

from gpt2lab.evaluation.perplexity import Perplexity, measured, read
from gpt2lab.evaluation.protocols import PROTOCOLS
from gpt2lab.evaluation.published import PUBLISHED, published_for
from gpt2lab.evaluation.scorer import ScoredText
from gpt2lab.model.lab import Lab


class OfGPT2Size:
    """What a text asks of a model: how many positions it has."""

    class config:  # noqa: N801
        n_positions = 1024


@pytest.fixture(scope="module")
def gpt2_size_lab(gpt2_tokenizer):
    return Lab(OfGPT2Size, gpt2_tokenizer, "of GPT-2's size")


def figures(tokenized):
    return {(known.model, known.quantity, known.value) for known in published_for(tokenized)}


@pytest.mark.parametrize(
    ("protocol", "stride", "expected"),
    [
        ("sliding", 1024, {("gpt2", "perplexity", 29.94), ("gpt2-large", "perplexity", 19.44)}),
        ("sliding", 512, {("gpt2-large", "perplexity", 16.44)}),
        ("lm-eval", 1024, {("gpt2", "word_perplexity", 37.37)}),
        ("blocks", 1024, set()),
    ],
)
def test_figures_that_the_raw_test_file_compares_with(gpt2_reading, protocol, stride, expected):
    assert figures(gpt2_reading(protocol, stride)) == expected


@pytest.mark.parametrize(
    ("context", "stride"), [(1024, 256), (1024, 1023), (512, 512), (256, 256), (1023, 512), (512, 1024)]
)
def test_other_windows_compare_with_no_sliding_figure(gpt2_reading, context, stride):
    assert figures(dataclasses.replace(gpt2_reading("sliding"), context=context, stride=stride)) == set()


def test_word_perplexity_of_the_harness_compares_at_every_context(gpt2_reading):
    tokenized = gpt2_reading("lm-eval")
    assert figures(dataclasses.replace(tokenized, context=256, stride=256)) == figures(tokenized) != set()


def test_per_token_figures_do_not_compare_with_another_tokenizers(gpt2_reading):
    for protocol in PROTOCOLS:
        tokenized = gpt2_reading(protocol)
        other = dataclasses.replace(tokenized, ids=tokenized.ids[::-1].copy())  # the same text in other tokens
        assert {quantity for _, quantity, _ in figures(other)} <= {"word_perplexity"}, protocol


def test_protocols_do_not_share_their_figures(gpt2_reading):
    for protocol, other in (("sliding", "lm-eval"), ("lm-eval", "sliding"), ("sliding", "blocks")):
        assert figures(dataclasses.replace(gpt2_reading(protocol), protocol=other)) == set()


@pytest.mark.parametrize("protocol", ["sliding", "lm-eval"])
@pytest.mark.parametrize("at", [0, 1, 100_000, -1])
def test_one_changed_character_compares_with_nothing(gpt2_reading, protocol, at):
    tokenized = gpt2_reading(protocol)
    changed = list(tokenized.text)
    changed[at] = "\t"
    assert figures(dataclasses.replace(tokenized, text="".join(changed))) == set()
    assert figures(dataclasses.replace(tokenized, text=tokenized.text + "\n")) == set()


def test_one_changed_character_of_an_article_compares_with_nothing(gpt2_size_lab, raw_test):
    rows = list(raw_test[30].rows)
    row = max(range(len(rows)), key=lambda i: len(rows[i]))
    rows[row] = rows[row].replace("e", "a", 1)
    changed = (*raw_test[:30], dataclasses.replace(raw_test[30], rows=tuple(rows)), *raw_test[31:])
    for protocol in ("sliding", "lm-eval"):
        assert figures(read(gpt2_size_lab, changed, protocol)) == set()


def test_sample_of_articles_compares_with_nothing(gpt2_size_lab, raw_test):
    for protocol in PROTOCOLS:
        assert figures(read(gpt2_size_lab, raw_test, protocol, quick=5)) == set()


def test_v1_files_compare_with_nothing(gpt2_size_lab, v1_test):
    for protocol in ("sliding", "lm-eval"):
        assert figures(read(gpt2_size_lab, v1_test, protocol)) == set()


def test_small_text_compares_with_nothing(tiny_tokenizer, articles):
    for protocol in PROTOCOLS:
        assert published_for(PROTOCOLS[protocol](tiny_tokenizer, articles, 16, 16)) == ()


@pytest.mark.parametrize(
    ("protocol", "stride", "windows", "n_scored", "words", "size"),
    [
        ("sliding", 1024, 281, 287_363, 241_211, 1_290_590),
        ("sliding", 512, 561, 287_643, 241_211, 1_290_590),
        ("lm-eval", 1024, 297, 272_031, 241_335, 1_290_527),
    ],
)
def test_result_on_the_raw_test_file_has_counts_and_published_figures(
    gpt2_reading, protocol, stride, windows, n_scored, words, size
):
    tokenized = gpt2_reading(protocol, stride)
    nll = np.full(len(tokenized.ids), np.nan)
    for _, first, end in tokenized.windows.tolist():
        nll[first:end] = 1.0
    result = measured(ScoredText(tokenized, nll, "a model", 50_257))
    assert (result.windows, result.n_scored, result.nll) == (windows, n_scored, n_scored)
    assert (result.n_words, result.n_bytes) == (words, size)
    assert result.published == published_for(tokenized) != ()
    assert result.cautions == ()
    assert result.interval == pytest.approx((np.e, np.e))


def test_published_figures_name_a_figure_of_ours_and_where_they_stand():
    for known in PUBLISHED:
        assert known.protocol in PROTOCOLS
        assert isinstance(getattr(Perplexity, known.quantity), property)
        assert "https://" in known.source
        assert known.value > 1

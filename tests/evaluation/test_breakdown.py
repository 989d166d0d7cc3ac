import math

import numpy as np
import pytest

from gpt2lab.data.text import Article, split_articles, wikitext_rows
from gpt2lab.errors import LabError
from gpt2lab.evaluation.breakdown import (
    BREAKDOWNS,
    breakdown,
    by_document,
    by_frequency,
    by_part,
    by_position,
    surprisals,
)
from gpt2lab.evaluation.perplexity import measured
from gpt2lab.evaluation.protocols import PROTOCOLS, Document
from gpt2lab.evaluation.scorer import ScoredText, score

NONE = math.nan
MOON = (
    Article("B", ("", " = B = \n", "", " x = y \n", "", " = = H = = \n", "", " z \n", "", " = = = K L = = = \n")),
    Article("F", ("", " = F G = \n", "", " u \n")),
)


def ones(tokenizer, articles, protocol, context=64):
    """A text of which every token of a window's scored part costs 1 nat."""
    tokenized = PROTOCOLS[protocol](tokenizer, articles, context, context)
    nll = np.full(len(tokenized.ids), NONE)
    for _, first, end in tokenized.windows.tolist():
        nll[first:end] = 1.0
    return ScoredText(tokenized, nll, "m", 300)


def counted(shares):
    return {share.label: share.n_scored for share in shares}


@pytest.fixture(scope="module", params=PROTOCOLS)
def tiny_scored(request, tiny_lab, articles, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT2LAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        return score(tiny_lab, PROTOCOLS[request.param](tiny_lab.tokenizer, articles, 16, 16))


@pytest.mark.parametrize("by", BREAKDOWNS)
def test_shares_add_up_to_the_whole(tiny_scored, by):
    whole, shares = measured(tiny_scored), breakdown(tiny_scored, by)
    assert sum(share.n_scored for share in shares) == whole.n_scored
    assert sum(share.nll for share in shares) == pytest.approx(whole.nll)
    assert len({share.label for share in shares}) == len(shares) > 1
    assert all(share.n_scored > 0 for share in shares)


def test_figures_of_a_share_by_hand(made_scored):
    (share,) = by_document(made_scored([NONE, 1, 2, 6], documents=(Document("a", 3, 12),)))
    assert (share.n_scored, share.nll, share.loss) == (3, 9, 3)
    assert share.perplexity == pytest.approx(math.exp(3))
    assert share.bits_per_byte == pytest.approx(9 / 12 / math.log(2))
    assert all(share.bits_per_byte is None for share in by_part(made_scored([NONE, 1, 2, 6])))


# by document


def test_documents_come_the_hardest_token_for_token_first(made_scored):
    nll, document = [NONE, 1, 5, 5, 4, 4, 4, 4, 4], [0, 0, 1, 1, 2, 2, 2, 2, 2]
    shares = by_document(made_scored(nll, document))
    assert [(share.label, share.n_scored, share.nll) for share in shares] == [
        ("d1", 2, 10),
        ("d2", 5, 20),
        ("d0", 1, 1),
    ]


def test_documents_have_their_titles_and_bytes_and_a_number_without_a_title(made_scored):
    documents = (Document("Moon", 1, 10), Document("", 1, 20), Document("Sea", 1, 30))
    shares = by_document(made_scored([NONE, 3, 2, 1], [0, 0, 1, 2], documents=documents))
    assert [(share.label, share.n_bytes) for share in shares] == [("Moon", 10), ("document 2", 20), ("Sea", 30)]


def test_document_without_predictions_is_left_out(made_scored):
    assert counted(by_document(made_scored([NONE, NONE, 2, 1], [0, 0, 1, 1]))) == {"d1": 2}


def test_pages_of_lm_eval_are_its_documents(tiny_tokenizer):
    # " = B =\n\nx = y\n\n== H ==\n\nz\n\n=== K L ===\n" and " = F G =\n\nu\n", of which each character is a token
    assert counted(by_document(ones(tiny_tokenizer, MOON, "lm-eval"))) == {"B": 39, "F G": 12}


# by position


def test_positions_double(made_scored):
    shares = by_position(made_scored([NONE, *range(1, 12)]))
    assert [(share.label, share.n_scored, share.nll) for share in shares] == [
        ("1", 1, 1),
        ("2 to 3", 2, 5),
        ("4 to 7", 4, 22),
        ("8 to 11", 4, 38),
    ]


@pytest.mark.parametrize(
    ("n", "last"), [(2, "1"), (3, "2"), (4, "2 to 3"), (5, "4"), (8, "4 to 7"), (9, "8"), (1025, "1,024")]
)
def test_last_range_of_positions_ends_at_the_last_there_is(made_scored, n, last):
    shares = by_position(made_scored([NONE] + [1.0] * (n - 1)))
    assert shares[-1].label == last
    assert sum(share.n_scored for share in shares) == n - 1


def test_positions_are_those_in_the_window_that_scores(made_scored):
    overlapping = made_scored([NONE, 1, 2, 4, 8, 16], windows=[[0, 1, 3], [1, 3, 5], [3, 5, 6]])
    assert [(s.label, s.n_scored, s.nll) for s in by_position(overlapping)] == [("1", 1, 1), ("2 to 3", 4, 30)]
    disjoint = made_scored([NONE, 1, 2, NONE, 8, 16], windows=[[0, 1, 3], [3, 4, 6]])
    assert [(s.label, s.n_scored, s.nll) for s in by_position(disjoint)] == [("1", 2, 9), ("2", 2, 18)]


def test_end_of_text_counts_as_a_token_before_in_lm_eval(tiny_tokenizer):
    assert counted(by_position(ones(tiny_tokenizer, (Article("", ("BCD",)),), "lm-eval"))) == {"1": 1, "2 to 3": 2}


# by frequency


def test_frequencies_are_split_at_powers_of_ten(made_scored):
    times = [1, 2, 9, 10, 99, 100, 999, 1000, 1001]
    ids = np.random.default_rng(0).permutation(np.repeat(np.arange(9), times))
    assert counted(by_frequency(made_scored([1.0] * len(ids), ids=ids))) == {
        "once": 1,
        "2 to 9 times": 2 + 9,
        "10 to 99 times": 10 + 99,
        "100 to 999 times": 100 + 999,
        "1,000 times or more": 1000 + 1001,
    }


def test_frequencies_are_counted_in_the_text_with_tokens_that_have_no_prediction(made_scored):
    shares = by_frequency(made_scored([NONE, 1, NONE, 4, 2], ids=[7, 7, 3, 3, 5]))
    assert [(share.label, share.n_scored, share.nll) for share in shares] == [("once", 1, 2), ("2 to 9 times", 2, 5)]


def test_frequencies_that_no_token_has_are_left_out(made_scored):
    assert counted(by_frequency(made_scored([NONE] + [1.0] * 19, ids=[4] * 20))) == {"10 to 99 times": 19}


# by part of the article


@pytest.mark.parametrize(
    ("protocol", "parts"),
    [
        # " = B = ", " = F G = " with the spaces around; " = = H = = ", " = = = K L = = = "; the rest but the first token
        ("sliding", {"prose": 90 - 7 - 9 - 11 - 17 - 1, "title": 7 + 9, "heading": 11 + 17}),
        # " = B =", " = F G ="; "== H ==", "=== K L ==="
        ("lm-eval", {"prose": 39 + 12 - 6 - 8 - 7 - 11, "title": 6 + 8, "heading": 7 + 11}),
        # " x = y \n", " z \n", " u \n" and the newlines of the others; the title's first token is the block's
        ("blocks", {"prose": 8 + 4 + 4 + 4, "title": 7 + 9 - 1, "heading": 11 + 17}),
    ],
)
def test_titles_headings_and_prose_by_hand(tiny_tokenizer, protocol, parts):
    n_tokens = {"sliding": 90, "lm-eval": 1 + 39 + 1 + 12, "blocks": 64}[protocol]
    scored = ones(tiny_tokenizer, MOON, protocol, n_tokens)  # all in one window, or one a page
    assert len(scored.tokenized.ids) == n_tokens
    assert counted(by_part(scored)) == parts


def test_parts_come_with_their_own_loss(tiny_tokenizer):
    tokenized = PROTOCOLS["sliding"](tiny_tokenizer, MOON, 64, 64)
    nll = np.ones(len(tokenized.ids))
    for part, cost in ((" = B = ", 7.0), (" = F G = ", 7.0), (" = = H = = ", 3.0), (" = = = K L = = = ", 3.0)):
        begin = tokenized.text.index(part)
        nll[begin : begin + len(part)] = cost
    shares = by_part(ScoredText(tokenized, nll, "m", 300))
    assert {share.label: share.loss for share in shares} == {"prose": 1, "title": 7, "heading": 3}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_text_is_all_prose(tiny_tokenizer, protocol):
    article = Article("notes", ("BCD == 2\n\nx = y = z\n = half\n# H\n",))
    assert {share.label for share in by_part(ones(tiny_tokenizer, (article,), protocol, 8))} == {"prose"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_formula_between_rows_of_prose_is_no_title(tiny_tokenizer, protocol):
    text = " \n = B = \n \n x of \n = 1 and k = \n 2 y \n"  # as in an article of WikiText-2's test split
    parts = counted(by_part(ones(tiny_tokenizer, split_articles(wikitext_rows(text)), protocol, 8)))
    assert parts["title"] <= len(" = B = ")


def test_real_headings_are_found_in_every_protocol(gpt2_reading):
    for protocol in PROTOCOLS:
        tokenized = gpt2_reading(protocol)
        parts = counted(by_part(ScoredText(tokenized, np.ones(len(tokenized.ids)), "m", 50_257)))
        assert 0.01 < parts["heading"] / len(tokenized.ids) < 0.03
        assert 60 * 3 < parts["title"] < 60 * 15


# by name


@pytest.mark.parametrize("by", ["", "token", "Document", None, 1])
def test_unknown_breakdown_is_refused_with_the_known_ones(made_scored, by):
    with pytest.raises(LabError, match=r"breakdown .* is unknown; use document, position, frequency, part"):
        breakdown(made_scored([NONE, 1]), by)


def test_breakdowns_by_name_are_the_functions(tiny_scored):
    functions = {"document": by_document, "position": by_position, "frequency": by_frequency, "part": by_part}
    assert {by: breakdown(tiny_scored, by) for by in BREAKDOWNS} == {
        by: function(tiny_scored) for by, function in functions.items()
    }


# the text itself


def test_pieces_of_all_documents_are_the_text(tiny_scored):
    tokenized = tiny_scored.tokenized
    pieces = [surprisals(tiny_scored, i) for i in range(len(tokenized.documents))]
    text = "".join(text for document in pieces for text, _ in document)
    assert text == (tokenized.text.removeprefix(" \n") if tokenized.protocol == "blocks" else tokenized.text)
    assert sum(cost or 0 for document in pieces for _, cost in document) == pytest.approx(np.nansum(tiny_scored.nll))
    assert all(text for document in pieces for text, _ in document)


def test_pieces_of_a_document_are_its_own(tiny_tokenizer):
    scored = ones(tiny_tokenizer, MOON, "sliding")
    first, second = ("".join(text for text, _ in surprisals(scored, i)) for i in range(2))
    assert first.startswith("\n\n = B = \n") and first.endswith(" = = = K L = = = \n\n\n")
    assert second == "\n\n = F G = \n\n\n\n\n u \n"


def test_pieces_are_tokens_with_their_nll(made_scored):
    scored = made_scored([NONE, 1, 2, 3], text="abcdefg", starts=[0, 2, 3, 6])
    assert surprisals(scored, 0) == [("ab", None), ("c", 1), ("def", 2), ("g", 3)]


def test_tokens_of_one_character_are_one_piece_with_their_nlls_added(tiny_tokenizer):
    tokenized = PROTOCOLS["sliding"](tiny_tokenizer, (Article("", ("B🌙éC",)),), 64, 64)
    scored = ScoredText(tokenized, np.array([NONE, 1, 2, 3, 4, 5, 6, 7]), "m", 300)
    assert surprisals(scored, 0) == [("B", None), ("🌙", 10), ("é", 11), ("C", 7)]


def test_piece_of_which_some_tokens_have_no_prediction_has_the_others_nll(made_scored):
    scored = made_scored([NONE, NONE, NONE, 3, NONE, 5], text="ab🌙d", starts=[0, 1, 2, 2, 2, 3])
    assert surprisals(scored, 0) == [("a", None), ("b", None), ("🌙", 3), ("d", 5)]


def test_end_of_text_of_lm_eval_is_no_piece(tiny_tokenizer):
    pages = (Article("", (" = B = \n", "", " C \n")), Article("", ("", " = D = \n")))
    scored = ones(tiny_tokenizer, pages, "lm-eval")
    assert surprisals(scored, 0) == [(character, 1) for character in " = B =\n\nC\n"]
    assert surprisals(scored, 1) == [(character, 1) for character in " = D =\n"]


def test_document_without_tokens_has_no_pieces(made_scored):
    documents = (Document("a", 1, 2), Document("empty", 0, 0), Document("c", 1, 2))
    scored = made_scored([NONE, 1, 2, 3], [0, 0, 2, 2], documents=documents, text="wxyz")
    assert surprisals(scored, 1) == []
    assert surprisals(scored, 0) + surprisals(scored, 2) == [("w", None), ("x", 1), ("y", 2), ("z", 3)]


@pytest.mark.parametrize("document", [-1, 2, 10**9, 0.5, "0", None, True])
def test_document_out_of_range_is_refused_with_the_range(made_scored, document):
    with pytest.raises(LabError, match=r"document .* is out of range; use .*0 to 1"):
        surprisals(made_scored([NONE, 1, 2, 3], [0, 0, 1, 1]), document)


@pytest.mark.parametrize("line", ["= " * 100_000 + "x", "=" * 100_000 + " x", "= x " * 50_000])
def test_line_made_to_be_slow_is_distinguished_from_a_heading_in_linear_time(made_scored, line):
    shares = by_part(made_scored([NONE, 1, 1], text=line, starts=[0, 1, 2]))
    assert [share.label for share in shares] == ["prose"]

import copy
import dataclasses
import itertools
import random

import numpy as np
import pytest

from gpt2lab.data import tokens as tokenising
from gpt2lab.data.text import Article, read_articles
from gpt2lab.data.tokens import tokens_and_starts
from gpt2lab.errors import LabError
from gpt2lab.evaluation import protocols
from gpt2lab.evaluation.protocols import PROTOCOLS, Document, TokenizedText, described

# ids of the tiny tokenizer for characters that none of its merges has: as GPT-2's, one for each byte
ID = {"\n": [198], " ": [220], "=": [28], "é": [127, 102]} | {letter: [ord(letter) - 33] for letter in "BCDEFGHIJKL"}
END = 299
B = Article("B", ("", " = B = \n", "", " CD E \n"))
F = Article("F", ("", " = F = \n", "", " é \n"))
TEN = Article("letters", ("BCDEFGHIJK",))


def ids_of(text):
    return [i for character in text for i in ID[character]]


def starts_of(text):
    return [i for i, character in enumerate(text) for _ in ID[character]]


def windows_of(tokenized):
    """(tokens fed, tokens scored) of each window."""
    ids = tokenized.ids.tolist()
    return [(ids[start : end - 1], ids[first:end]) for start, first, end in tokenized.windows.tolist()]


def same(one, two):
    fields = ((getattr(one, f.name), getattr(two, f.name)) for f in dataclasses.fields(TokenizedText))
    return all(np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b for a, b in fields)


@pytest.fixture
def sliding(tiny_tokenizer):
    return lambda articles, context=64, stride=None: PROTOCOLS["sliding"](
        tiny_tokenizer, articles, context, stride or context
    )


@pytest.fixture
def lm_eval(tiny_tokenizer):
    return lambda articles, context=64: PROTOCOLS["lm-eval"](tiny_tokenizer, articles, context, context)


@pytest.fixture
def blocks(tiny_tokenizer):
    return lambda articles, context=64: PROTOCOLS["blocks"](tiny_tokenizer, articles, context, context)


# by hand


def test_sliding_reads_rows_joined_by_blank_lines(sliding):
    tokenized = sliding((B, F))
    assert tokenized.text == "\n\n = B = \n\n\n\n\n CD E \n\n\n\n\n = F = \n\n\n\n\n é \n"
    assert tokenized.ids.tolist() == ids_of(tokenized.text)
    assert tokenized.starts.tolist() == starts_of(tokenized.text)
    assert (tokenized.protocol, tokenized.added) == ("sliding", 0)


def test_sliding_counts_words_and_bytes_of_the_file_that_the_rows_are_of(sliding):
    # " \n = B = \n \n CD E \n" and " \n = F = \n \n é \n"
    tokenized = sliding((B, F))
    assert tokenized.documents == (Document("B", 5, 19), Document("F", 4, 17))
    assert (tokenized.n_words, tokenized.n_bytes) == (9, 36)


def test_blank_line_between_rows_belongs_to_the_article_before(sliding):
    tokenized = sliding((B, F))
    assert tokenized.document.tolist() == [0] * 23 + [1] * 19  # characters 2+8+2 +2+7+2; é has two tokens


@pytest.mark.parametrize(
    ("n", "context", "stride", "windows"),
    [
        (10, 4, 4, [[0, 1, 4], [4, 5, 8], [8, 9, 10]]),
        (10, 4, 3, [[0, 1, 4], [3, 4, 7], [6, 7, 10]]),
        (10, 4, 2, [[0, 1, 4], [2, 4, 6], [4, 6, 8], [6, 8, 10]]),
        (10, 8, 7, [[0, 1, 8], [7, 8, 10]]),
        (10, 9, 1, [[0, 1, 9], [1, 9, 10]]),
        (10, 10, 1, [[0, 1, 10]]),
        (10, 64, 32, [[0, 1, 10]]),
        (9, 4, 4, [[0, 1, 4], [4, 5, 8], [8, 9, 9]]),  # the guide has this window too, in which nothing is scored
        (8, 4, 4, [[0, 1, 4], [4, 5, 8]]),
        (2, 2, 1, [[0, 1, 2]]),
        (3, 2, 1, [[0, 1, 2], [1, 2, 3]]),
    ],
)
def test_sliding_windows_by_hand(sliding, n, context, stride, windows):
    article = Article("", ("BCDEFGHIJK"[:n],))
    assert sliding((article,), context, stride).windows.tolist() == windows


def test_lm_eval_reads_detokenised_pages_with_an_end_of_text_before_each(lm_eval):
    tokenized = lm_eval((B, F))
    first, second = " = B =\n\nCD E\n", " = F =\n\né\n"
    assert tokenized.text == first + second
    assert tokenized.ids.tolist() == [END, *ids_of(first), END, *ids_of(second)]
    assert tokenized.starts.tolist() == [0, *starts_of(first), 13, *(13 + start for start in starts_of(second))]
    assert tokenized.document.tolist() == [0] * 14 + [1] * 12
    assert (tokenized.protocol, tokenized.added) == ("lm-eval", 2)


def test_lm_eval_counts_words_and_bytes_of_the_pages_before_they_are_detokenised(lm_eval):
    # " = B = \n \n CD E \n " has 7 words, with the empty ones at its ends; " = F = \n \n é \n" has 6
    assert lm_eval((B, F)).documents == (Document("B", 7, 18), Document("F", 6, 15))


def test_lm_eval_windows_by_hand(lm_eval):
    # 13 tokens and 11, behind one end of text each; the last window of a page reaches back as far as it can
    assert lm_eval((B, F), 8).windows.tolist() == [[0, 1, 9], [5, 9, 14], [14, 15, 23], [17, 23, 26]]
    assert lm_eval((B, F), 13).windows.tolist() == [[0, 1, 14], [14, 15, 26]]
    assert lm_eval((B, F), 12).windows.tolist() == [[0, 1, 13], [1, 13, 14], [14, 15, 26]]


def test_lm_eval_windows_between_first_and_last_begin_with_the_token_before(lm_eval):
    assert lm_eval((TEN,), 4).windows.tolist() == [[0, 1, 5], [4, 5, 9], [6, 9, 11]]


def test_blocks_reads_each_row_by_itself_and_drops_the_rest(blocks):
    tokenized = blocks((B, F), 6)
    assert tokenized.text == " \n = B = \n \n CD E \n \n = F = \n \n é \n"
    assert tokenized.ids.tolist() == ids_of(" = B = \n CD E \n = F = \n é \n")  # a blank row has no token
    assert tokenized.starts.tolist() == [*range(2, 10), *range(12, 19), *range(21, 29), 31, 32, 32, 33, 34]
    assert tokenized.document.tolist() == [0] * 15 + [1] * 13
    assert tokenized.windows.tolist() == [[0, 1, 6], [6, 7, 12], [12, 13, 18], [18, 19, 24]]  # of 28


def test_blocks_counts_the_words_and_bytes_that_are_in_blocks(blocks):
    # the last 4 tokens are dropped: both bytes of é, a space and the newline
    assert blocks((B, F), 6).documents == (Document("B", 5, 19), Document("F", 3, 13))
    assert blocks((B, F), 7).documents == (Document("B", 5, 19), Document("F", 4, 17))
    # of the second article, only the blank row before its title stands in a token that is kept: the newline before it
    assert blocks((B, F), 15).documents == (Document("B", 5, 19), Document("F", 0, 2))


def test_blank_row_after_the_last_block_is_dropped_with_what_is_before_it(blocks):
    # 15 tokens, of which 14 are in blocks: the newline goes, and the blank row behind it
    tokenized = blocks((Article("B", (*B.rows, "")),), 7)
    assert tokenized.text.endswith(" CD E \n \n")
    assert tokenized.documents == (Document("B", 5, 18),)


def test_blocks_drops_the_rest_of_each_batch_of_rows(blocks, monkeypatch):
    monkeypatch.setattr(protocols, "ROWS_AT_ONCE", 2)
    tokenized = blocks((Article("", ("BCDE\n", "FG\n", "HIJKLB\n", "")),), 3)
    assert tokenized.ids.tolist() == ids_of("BCDE\nFG\nHIJKLB\n")
    assert tokenized.windows.tolist() == [[0, 1, 3], [3, 4, 6], [8, 9, 11], [11, 12, 14]]
    assert tokenized.documents == (Document("", 3, 12),)  # FG begins in a block, its G is not in one


@pytest.mark.parametrize(
    ("protocol", "positions"),
    [
        ("sliding", [-1, 1, 2, 3, -1, 1, 2, 3, -1, 1]),
        ("lm-eval", [-1, 1, 2, 3, 4, 1, 2, 3, 4, 3, 4]),
        ("blocks", [-1, 1, 2, 3, -1, 1, 2, 3, -1, -1]),
    ],
)
def test_position_counts_the_tokens_before_one_in_the_window_that_scores_it(tiny_tokenizer, protocol, positions):
    assert PROTOCOLS[protocol](tiny_tokenizer, (TEN,), 4, 4).position.tolist() == positions


def test_position_in_overlapping_windows_is_that_of_the_one_that_scores(sliding):
    assert sliding((TEN,), 4, 3).position.tolist() == [-1, 1, 2, 3, 1, 2, 3, 1, 2, 3]
    assert sliding((TEN,), 4, 1).position.tolist() == [-1, 1, 2, *[3] * 7]


# against the published algorithms


@pytest.mark.parametrize("context", [2, 3, 4, 5, 8, 11])
def test_sliding_windows_equal_the_guides_for_every_length_and_stride(
    tiny_tokenizer, letters, published_windows, context
):
    for n, stride in itertools.product(range(2, 27), range(1, context + 1)):
        asked = tiny_tokenizer, (letters(n),), context, stride
        assert windows_of(PROTOCOLS["sliding"](*asked)) == published_windows("sliding", *asked), (n, stride)


@pytest.mark.parametrize("context", [2, 3, 4, 5, 8, 11, 64])
def test_lm_eval_windows_equal_the_harness_for_every_length(tiny_tokenizer, letters, published_windows, context):
    for n in range(1, 5 * min(context, 20)):
        asked = tiny_tokenizer, (letters(n),), context, context
        assert windows_of(PROTOCOLS["lm-eval"](*asked)) == published_windows("lm-eval", *asked), n


@pytest.mark.parametrize("context", [2, 3, 7, 64])
@pytest.mark.parametrize("n_rows", [1, 999, 1000, 1001, 2345])
def test_blocks_equal_run_clm_over_batches_of_a_thousand_rows(
    tiny_tokenizer, letters, published_windows, context, n_rows
):
    sizes = np.random.default_rng(n_rows).integers(0, 5, n_rows)
    sizes[0] = 100
    asked = tiny_tokenizer, (Article("", tuple(letters(n, i).text for i, n in enumerate(sizes))),), context, context
    assert windows_of(PROTOCOLS["blocks"](*asked)) == published_windows("blocks", *asked)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("context", [5, 16, 64])
def test_windows_of_articles_equal_the_published_algorithm(
    tiny_tokenizer, articles, published_windows, protocol, context
):
    asked = tiny_tokenizer, articles, context, 5 if protocol == "sliding" else context
    assert windows_of(PROTOCOLS[protocol](*asked)) == published_windows(protocol, *asked)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_windows_of_the_real_file_equal_the_published_algorithm(
    gpt2_reading, gpt2_tokenizer, raw_test, published_windows, protocol
):
    assert windows_of(gpt2_reading(protocol)) == published_windows(protocol, gpt2_tokenizer, raw_test, 1024, 1024)


# whatever the protocol


@pytest.mark.parametrize("context", [2, 7, 64])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_token_is_scored_twice_and_no_window_feeds_more_than_the_context(
    tiny_tokenizer, articles, protocol, context
):
    tokenized = PROTOCOLS[protocol](tiny_tokenizer, articles, context, min(3, context))
    times = np.zeros(len(tokenized.ids), int)
    for start, first, end in tokenized.windows.tolist():
        times[first:end] += 1
        assert 0 <= start < first <= end <= len(tokenized.ids)
        assert end - start - (protocol == "lm-eval") <= context
        assert len(set(tokenized.document[start:end].tolist())) == 1 or protocol != "lm-eval"
    assert times.max() == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tokens_are_those_of_the_text_between_their_starts(tiny_tokenizer, articles, protocol):
    tokenized = PROTOCOLS[protocol](tiny_tokenizer, articles, 16, 16)
    assert (np.diff(tokenized.starts) >= 0).all() and (np.diff(tokenized.document) >= 0).all()
    begins = np.unique(tokenized.starts).tolist()
    for begin, end in itertools.pairwise([*begins, len(tokenized.text)]):
        tokens = tokenized.ids[tokenized.starts == begin].tolist()
        read = tiny_tokenizer.decode(tokens).removeprefix("<|endoftext|>")
        between = tokenized.text[begin:end]
        assert between == read or (protocol == "blocks" and between.rstrip(" \n") == read.rstrip("\n"))  # blank rows


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_crlf_file_is_read_as_the_same_text(tiny_tokenizer, articles, tmp_path, protocol):
    text = "".join(row or " \n" for article in articles for row in article.rows)
    for name, content in (("lf", text), ("crlf", text.replace("\n", "\r\n")), ("plain", "one two\n\nthree\n" * 9)):
        (tmp_path / f"{name}.txt").write_bytes(content.encode())
    (tmp_path / "crlf").mkdir()
    (tmp_path / "crlf" / "plain.txt").write_bytes(b"\xef\xbb\xbf" + b"one two\r\n\r\nthree\r\n" * 9)
    for one, two in (("lf.txt", "crlf.txt"), ("plain.txt", "crlf/plain.txt")):
        first, second = (
            PROTOCOLS[protocol](tiny_tokenizer, read_articles(tmp_path / name), 16, 16) for name in (one, two)
        )
        assert same(first, second)
        assert "\r" not in second.text
    assert same(
        PROTOCOLS[protocol](tiny_tokenizer, articles, 16, 16),
        PROTOCOLS[protocol](tiny_tokenizer, read_articles(tmp_path / "crlf.txt"), 16, 16),
    )


def test_plain_text_is_read_as_it_is(sliding, lm_eval, blocks):
    article = Article("notes", ("BC\n\nDE\nF",))
    assert sliding((article,), 8).text == lm_eval((article,)).text == blocks((article,), 2).text == article.text
    assert sliding((article,), 8).documents == (Document("notes", 3, 8),)
    assert lm_eval((article,)).documents == (Document("", 3, 8),)
    assert blocks((article,), 2).documents == (Document("notes", 3, 8),)


def test_lines_of_plain_text_are_the_rows_of_blocks(gpt2_tokenizer, published_windows, monkeypatch):
    text = "the moon\n\n the sea\n  and\n\n\n the\x0bearth\u2028x"
    lines = ("the moon\n", "\n", " the sea\n", "  and\n", "\n", "\n", " the\x0bearth\u2028x")
    for rows_at_once in (1000, 2):
        monkeypatch.setattr(protocols, "ROWS_AT_ONCE", rows_at_once)
        one, other = (PROTOCOLS["blocks"](gpt2_tokenizer, (Article("", rows),), 2, 2) for rows in ((text,), lines))
        assert same(one, other)
        if rows_at_once == 1000:
            assert windows_of(one) == published_windows("blocks", gpt2_tokenizer, (Article("", lines),), 2, 2)
    assert one.ids.tolist() != gpt2_tokenizer.encode(text)  # two newlines in a row are one token of GPT-2's


def test_tokens_of_one_character_begin_at_it(sliding):
    tokenized = sliding((Article("", ("B🌙éC",)),))
    assert tokenized.starts.tolist() == [0, 1, 1, 1, 1, 2, 2, 3]
    assert tokenized.documents == (Document("", 1, 8),)


# short and empty texts


@pytest.mark.parametrize("article", [Article("", ("",)), Article("", ()), Article("", ("", "", ""))])
def test_text_without_words_is_refused_by_lm_eval(lm_eval, article):
    with pytest.raises(LabError, match="no words to predict; give more text"):
        lm_eval((article,))


@pytest.mark.parametrize(("rows", "count"), [((), 0), (("",), 0), (("B",), 1)])
def test_text_below_two_tokens_is_refused_by_sliding_with_its_count(sliding, rows, count):
    with pytest.raises(LabError, match=rf"only {count} of the 2 tokens that perplexity needs"):
        sliding((Article("", rows),))


def test_rows_that_are_blank_are_two_newlines_each_to_sliding(sliding):
    tokenized = sliding((Article("", ("", "", "")),))
    assert tokenized.ids.tolist() == [198] * 4
    assert tokenized.documents == (Document("", 0, 6),)


@pytest.mark.parametrize(("rows", "count"), [((), 0), (("",), 0), (("B",), 1), (("", "BCD\n", "EFG\n", ""), 8)])
def test_text_below_one_block_is_refused_with_both_numbers(blocks, rows, count):
    with pytest.raises(LabError, match=rf"has {count} tokens, .*1,000 rows.* block of 9; give more text or a smaller"):
        blocks((Article("", rows),), 9)


def test_text_with_no_block_in_any_batch_of_rows_is_refused(blocks, monkeypatch):
    monkeypatch.setattr(protocols, "ROWS_AT_ONCE", 1)
    with pytest.raises(LabError, match=r"has 8 tokens, and no 1 rows of it a block of 5"):
        blocks((Article("", ("BCD\n", "EFG\n")),), 5)


def test_text_of_one_block_is_scored_but_for_its_first_token(blocks):
    assert blocks((TEN,), 10).windows.tolist() == [[0, 1, 10]]


def test_single_token_is_predicted_by_lm_eval_alone(lm_eval):
    tokenized = lm_eval((Article("", ("B",)),))
    assert (tokenized.ids.tolist(), tokenized.windows.tolist()) == ([END, *ID["B"]], [[0, 1, 2]])
    assert tokenized.documents == (Document("", 1, 1),)


def test_text_shorter_than_a_window_is_one(sliding, lm_eval):
    assert sliding((TEN,), 64).windows.tolist() == [[0, 1, 10]]
    assert lm_eval((TEN,), 64).windows.tolist() == [[0, 1, 11]]


@pytest.mark.parametrize(
    ("protocol", "stride", "words"),
    [
        ("sliding", 16, ["windows of 16 tokens, disjoint", "joined by blank lines"]),
        ("sliding", 5, ["windows of 16 tokens, a new one every 5 tokens"]),
        ("lm-eval", 16, ["predict 16 tokens", "detokenised", "<|endoftext|>"]),
        ("blocks", 16, ["blocks of 16 tokens", "1,000 rows is dropped"]),
    ],
)
def test_description_names_the_protocols_choices_and_numbers(tiny_tokenizer, articles, protocol, stride, words):
    text = described(PROTOCOLS[protocol](tiny_tokenizer, articles, 16, stride))
    assert all(word in text for word in words)


def test_reading_whose_parts_disagree_is_refused(sliding):
    tokenized = sliding((TEN,))
    with pytest.raises(ValueError, match="10 ids, 9 starts, 10 documents"):
        dataclasses.replace(tokenized, starts=tokenized.starts[1:])
    with pytest.raises(ValueError, match=r"windows of shape \(1, 2\); \(W, 3\)"):
        dataclasses.replace(tokenized, windows=tokenized.windows[:, :2])


# where tokens begin


@pytest.mark.parametrize("piece", [1, 2, 7, 50, 10_000])
def test_starts_of_text_tokenised_in_pieces_are_those_of_the_whole(tiny_tokenizer, monkeypatch, piece):
    kinds = ["moon", " the", "42", "...", "'s", "é🌙", "海", " ", "  ", "\n", "\n\n ", "\t", "\u2028", "\xa0"]
    text = "".join(random.Random(piece).choices(kinds, k=3000))
    whole = tiny_tokenizer(text, return_offsets_mapping=True)
    monkeypatch.setattr(tokenising, "PIECE", piece)
    ids, starts = tokens_and_starts(tiny_tokenizer, text)
    assert ids.tolist() == whole["input_ids"]
    assert starts.tolist() == [start for start, _ in whole["offset_mapping"]]
    assert ids.dtype == starts.dtype == np.int64


def test_starts_of_real_text_tokenised_in_pieces_are_those_of_the_whole(gpt2_tokenizer, raw_test, monkeypatch):
    text = "".join(article.text for article in raw_test[:8])[:150_000]
    whole = gpt2_tokenizer(text, return_offsets_mapping=True)
    monkeypatch.setattr(tokenising, "PIECE", 1000)
    ids, starts = tokens_and_starts(gpt2_tokenizer, text)
    assert ids.tolist() == whole["input_ids"]
    assert starts.tolist() == [start for start, _ in whole["offset_mapping"]]


def test_empty_text_has_no_tokens(tiny_tokenizer):
    ids, starts = tokens_and_starts(tiny_tokenizer, "")
    assert ids.shape == starts.shape == (0,)


# the check values of WikiText-2's raw test split under GPT-2's tokenizer


def scored(tokenized):
    return int((tokenized.windows[:, 2] - tokenized.windows[:, 1]).sum())


@pytest.mark.parametrize(("stride", "windows", "n_scored"), [(1024, 281, 287_363), (512, 561, 287_643)])
def test_sliding_over_the_raw_test_file_has_the_guides_counts(gpt2_reading, stride, windows, n_scored):
    tokenized = gpt2_reading("sliding", stride)
    assert (len(tokenized.ids), len(tokenized.windows), scored(tokenized)) == (287_644, windows, n_scored)
    assert (len(tokenized.documents), tokenized.n_words, tokenized.n_bytes) == (60, 241_211, 1_290_590)


def test_lm_eval_over_the_raw_test_file_has_the_harness_counts(gpt2_reading):
    tokenized = gpt2_reading("lm-eval")
    assert (len(tokenized.documents), tokenized.n_words, tokenized.n_bytes) == (62, 241_335, 1_290_527)
    assert (len(tokenized.ids) - tokenized.added, tokenized.added, len(tokenized.windows)) == (272_031, 62, 297)
    assert scored(tokenized) == 272_031


def test_blocks_over_the_raw_test_file_have_run_clms_counts(gpt2_reading):
    tokenized = gpt2_reading("blocks")
    assert (len(tokenized.ids), len(tokenized.windows)) == (283_287, 274)
    assert len(tokenized.ids) - 274 * 1024 == 2_711
    assert scored(tokenized) == 274 * 1023


def test_words_and_bytes_of_the_real_blocks_are_less_by_those_of_the_tokens_dropped(gpt2_reading):
    tokenized = gpt2_reading("blocks")
    dropped = np.ones(len(tokenized.ids), bool)
    for start, _, end in tokenized.windows.tolist():
        dropped[start:end] = False
    ends = np.append(tokenized.starts[1:], len(tokenized.text))
    pieces = [tokenized.text[tokenized.starts[i] : ends[i]] for i in np.flatnonzero(dropped).tolist()]
    blank = 1_290_590 - tokenized.n_bytes - len("".join(pieces).encode())
    assert blank in (0, -2, -4)  # a blank row between two thousands of rows is of the second, and no token's
    assert 241_211 - tokenized.n_words == pytest.approx(len("".join(pieces).split()), abs=5)  # a word cut at an edge


def test_every_article_of_the_real_file_has_its_own_text(gpt2_reading, raw_test):
    tokenized = gpt2_reading("sliding")
    assert [document.title for document in tokenized.documents] == [article.title for article in raw_test]
    begins = tokenized.starts[np.flatnonzero(np.diff(tokenized.document, prepend=-1))].tolist()
    for begin, article in zip(begins[1:], raw_test[1:]):
        assert tokenized.text[begin:].lstrip("\n").startswith(f" = {article.title} = \n")


def test_tokenizer_without_an_end_of_text_is_refused_by_lm_eval(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token = tokenizer.bos_token = None
    with pytest.raises(
        LabError, match="has no beginning or end token, which lm-eval puts before each page; use sliding"
    ):
        PROTOCOLS["lm-eval"](tokenizer, (Article("", ("moon",)),), 16, 16)

import random
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Tokenizer

from gpt2lab.data import tokens
from gpt2lab.data.blocks import IGNORED, Blocks, pack, token_ids
from gpt2lab.data.sources import cache_folder
from gpt2lab.data.text import Article
from gpt2lab.errors import LabError

ARTICLES = (Article("a", ("The moon", "", " and the sea\n")), Article("b", ("",)), Article("c", ("é 🌙",)))


@pytest.fixture
def counted(tiny_tokenizer):
    """The tiny tokenizer, counting how often it is asked to tokenise."""
    return Mock(
        side_effect=tiny_tokenizer,
        backend_tokenizer=tiny_tokenizer.backend_tokenizer,
        eos_token_id=tiny_tokenizer.eos_token_id,
    )


def cached_file():
    (path,) = (path for path in cache_folder().rglob("*") if path.is_file())
    return path


def expected_ids(tokenizer, articles):
    return [i for article in articles for i in (*tokenizer.encode(article.text), tokenizer.eos_token_id)]


def test_end_of_text_follows_each_article_and_nothing_else_is_added(tiny_tokenizer):
    ids = token_ids(tiny_tokenizer, ARTICLES)
    assert ids.dtype == np.int32
    assert ids.tolist() == expected_ids(tiny_tokenizer, ARTICLES)
    assert ids.tolist().count(tiny_tokenizer.eos_token_id) == 3


def test_ids_decode_to_the_articles(tiny_tokenizer):
    decoded = tiny_tokenizer.decode(token_ids(tiny_tokenizer, ARTICLES))
    assert decoded == "The moon and the sea\n<|endoftext|><|endoftext|>é 🌙<|endoftext|>"


def tokenizer_that_merges(text, folder):
    """A tokenizer with the merges of a text, so that every place where it must not be cut changes the ids."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([text], vocab_size=600, min_frequency=2, show_progress=False)
    vocab, merges = bpe.save_model(str(folder))
    return GPT2Tokenizer(vocab=vocab, merges=merges)


@pytest.mark.parametrize("piece", [1, 2, 5, 40, 1000])
def test_text_tokenised_in_pieces_has_the_ids_of_the_whole(monkeypatch, tmp_path, piece):
    monkeypatch.setattr(tokens, "PIECE", piece)
    kinds = ["moon", "the", "42", "...", "'s", "é🌙", " ", "  ", "\n", "\n\n ", "\t", "\x1c", "\u2028", "\xa0"]
    text = "".join(random.Random(piece).choices(kinds, k=4000))
    tokenizer = tokenizer_that_merges(text, tmp_path)
    ids = token_ids(tokenizer, [Article("", (text,))])
    assert ids[:-1].tolist() == tokenizer.encode(text)


def test_real_text_tokenised_in_pieces_has_the_ids_of_the_whole(gpt2_tokenizer, shared_data, monkeypatch):
    monkeypatch.setattr(tokens, "PIECE", 1000)
    text = (shared_data / "wikitext-2-raw/wiki.test.raw").read_text(encoding="utf-8")[:300_000]
    assert token_ids(gpt2_tokenizer, [Article("", (text,))])[:-1].tolist() == gpt2_tokenizer.encode(text)


def test_no_more_than_about_a_piece_is_tokenised_at_a_time(counted, monkeypatch):
    monkeypatch.setattr(tokens, "PIECE", 50)
    token_ids(counted, [Article("", ("some words " * 100,))])
    sizes = [len(call.args[0]) for call in counted.call_args_list]
    assert sum(sizes) == 1100
    assert max(sizes) < 60


def test_no_articles_have_no_ids(tiny_tokenizer):
    assert token_ids(tiny_tokenizer, []).shape == (0,)


def test_second_call_reads_the_ids_back_without_tokenising(counted):
    first = token_ids(counted, ARTICLES)
    calls = counted.call_count
    second = token_ids(counted, ARTICLES)
    assert counted.call_count == calls
    assert first.dtype == second.dtype
    assert np.array_equal(first, second)


@pytest.mark.parametrize("damage", [b"", b"not numpy", None], ids=["empty", "garbage", "cut short"])
def test_damaged_cache_file_is_made_again(counted, damage):
    first = token_ids(counted, ARTICLES)
    calls = counted.call_count
    path = cached_file()
    path.write_bytes(path.read_bytes()[:-5] if damage is None else damage)
    assert np.array_equal(token_ids(counted, ARTICLES), first)
    assert np.array_equal(token_ids(counted, ARTICLES), first)
    assert counted.call_count == 2 * calls


def test_cache_that_cannot_be_written_is_done_without(counted, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GPT2LAB_CACHE", str(tmp_path / "file" / "cache"))
    first = token_ids(counted, ARTICLES)
    calls = counted.call_count
    assert token_ids(counted, ARTICLES).tolist() == first.tolist()
    assert counted.call_count == 2 * calls


def test_same_text_cut_into_other_articles_is_another_entry(tiny_tokenizer):
    cuts = [("ab", "c"), ("a", "bc"), ("abc",)]
    for cut in cuts:
        articles = [Article("", (part,)) for part in cut]
        assert token_ids(tiny_tokenizer, articles).tolist() == expected_ids(tiny_tokenizer, articles)


def test_tokenizers_that_differ_in_their_end_of_text_alone_do_not_share_ids(counted, tiny_tokenizer):
    token_ids(counted, ARTICLES)
    counted.eos_token_id = 7
    assert token_ids(counted, ARTICLES)[-1] == 7


@pytest.mark.parametrize(("n", "size"), [(2, 2), (4, 2), (5, 3), (6, 3), (64, 64), (1000, 64)])
def test_every_token_is_in_exactly_one_block_in_order(n, size):
    ids = np.random.default_rng(n).integers(300, size=n).astype(np.int32)
    packed = pack(ids, size)
    assert packed.input_ids.shape == packed.labels.shape == (-(-n // size), size)
    assert packed.input_ids.flatten()[:n].tolist() == ids.tolist()
    assert packed.labels.flatten()[:n].tolist() == ids.tolist()
    assert packed.n_tokens == n


@pytest.mark.parametrize(("n", "size"), [(3, 2), (7, 3), (65, 64)])
def test_single_token_left_over_is_dropped(n, size):
    packed = pack(np.arange(n), size)
    assert packed.labels.flatten().tolist() == list(range(n - 1))
    assert packed.n_tokens == n - 1


@pytest.mark.parametrize("n", range(8, 20))
def test_loss_of_every_block_is_a_number(tiny_lab, n):
    packed = pack(np.arange(n), 8)
    with torch.no_grad():
        losses = [
            tiny_lab.model(input_ids=i[None], labels=y[None]).loss for i, y in zip(packed.input_ids, packed.labels)
        ]
    assert torch.stack(losses).isfinite().all()


@pytest.mark.parametrize(("n", "size"), [(5, 3), (8, 3), (66, 64)])
def test_only_the_tail_is_padded_with_ids_the_model_knows_and_ignored_labels(n, size):
    packed = pack(np.arange(n), size)
    assert packed.labels.flatten()[n:].eq(IGNORED).all()
    assert (packed.labels == IGNORED).sum() == len(packed) * size - n
    assert set(packed.input_ids.flatten().tolist()) == set(range(n))
    assert packed.input_ids.dtype == packed.labels.dtype == torch.int64


def test_ignored_is_the_label_that_cross_entropy_leaves_out():
    logits = torch.tensor([[1.0, 2.0], [3.0, 0.5]])
    whole = torch.nn.functional.cross_entropy(logits, torch.tensor([1, IGNORED]))
    assert whole == torch.nn.functional.cross_entropy(logits[:1], torch.tensor([1]))


def test_padding_changes_no_prediction_of_the_tail(tiny_lab):
    ids = np.arange(10, 20)
    packed = pack(ids, 8)
    with torch.no_grad():
        loss = tiny_lab.model(input_ids=packed.input_ids[1:], labels=packed.labels[1:]).loss
        alone = tiny_lab.model(input_ids=torch.tensor([[18, 19]]), labels=torch.tensor([[18, 19]])).loss
    torch.testing.assert_close(loss, alone)


def test_item_is_one_block_with_its_labels():
    packed = pack(np.arange(5), 3)
    assert len(packed) == 2
    assert {key: value.tolist() for key, value in packed[0].items()} == {"input_ids": [0, 1, 2], "labels": [0, 1, 2]}
    assert packed[1]["labels"].tolist() == [3, 4, IGNORED]


def test_pack_leaves_its_argument_alone():
    ids = np.arange(5)
    pack(ids, 3).input_ids.fill_(9)
    assert ids.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("size", [1, 0, -3])
def test_block_that_predicts_nothing_is_refused_with_its_size(size):
    with pytest.raises(LabError, match=rf"block_size {size} is out of range; use a whole number from 2"):
        pack(np.arange(5), size)


@pytest.mark.parametrize("n", [0, 1, 1023])
def test_text_below_one_block_is_refused_with_both_numbers(n):
    with pytest.raises(LabError, match=rf"has {n:,} tokens, less than one block of 1,024"):
        pack(np.arange(n), 1024)


def test_blocks_whose_shapes_disagree_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\), labels \(2, 4\)"):
        Blocks(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 4, dtype=torch.long), 6)

from unittest.mock import Mock

import numpy as np
import pytest
import torch

from gpt2lab.blocks import IGNORED, Blocks, pack, token_ids
from gpt2lab.errors import LabError
from gpt2lab.sources import cache_folder
from gpt2lab.text import Article

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


def test_second_call_reads_the_ids_back_without_tokenising(counted):
    first, second = token_ids(counted, ARTICLES), token_ids(counted, ARTICLES)
    assert counted.call_count == 1
    assert first.dtype == second.dtype
    assert np.array_equal(first, second)


@pytest.mark.parametrize("damage", [b"", b"not numpy", None], ids=["empty", "garbage", "cut short"])
def test_damaged_cache_file_is_made_again(counted, damage):
    first = token_ids(counted, ARTICLES)
    path = cached_file()
    path.write_bytes(path.read_bytes()[:-5] if damage is None else damage)
    assert np.array_equal(token_ids(counted, ARTICLES), first)
    assert np.array_equal(token_ids(counted, ARTICLES), first)
    assert counted.call_count == 2


def test_cache_that_cannot_be_written_is_done_without(counted, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GPT2LAB_CACHE", str(tmp_path / "file" / "cache"))
    assert token_ids(counted, ARTICLES).tolist() == token_ids(counted, ARTICLES).tolist()
    assert counted.call_count == 2


def test_same_text_cut_into_other_articles_is_another_entry(tiny_tokenizer):
    cuts = [("ab", "c"), ("a", "bc"), ("abc",)]
    for cut in cuts:
        articles = [Article("", (part,)) for part in cut]
        assert token_ids(tiny_tokenizer, articles).tolist() == expected_ids(tiny_tokenizer, articles)


def test_tokenizers_that_differ_in_their_end_of_text_alone_do_not_share_ids(counted, tiny_tokenizer):
    token_ids(counted, ARTICLES)
    counted.eos_token_id = 7
    assert token_ids(counted, ARTICLES)[-1] == 7


@pytest.mark.parametrize(("n", "size"), [(2, 2), (5, 3), (6, 3), (7, 3), (64, 64), (1000, 64)])
def test_every_token_is_in_exactly_one_block_in_order(n, size):
    ids = np.random.default_rng(n).integers(300, size=n).astype(np.int32)
    blocks = pack(ids, size)
    assert blocks.input_ids.shape == blocks.labels.shape == (-(-n // size), size)
    assert blocks.input_ids.flatten()[:n].tolist() == ids.tolist()
    assert blocks.labels.flatten()[:n].tolist() == ids.tolist()
    assert blocks.n_tokens == n


@pytest.mark.parametrize(("n", "size"), [(5, 3), (7, 3), (65, 64)])
def test_only_the_tail_is_padded_with_ids_the_model_knows_and_ignored_labels(n, size):
    blocks = pack(np.arange(n), size)
    assert blocks.labels.flatten()[n:].eq(IGNORED).all()
    assert (blocks.labels == IGNORED).sum() == len(blocks) * size - n
    assert set(blocks.input_ids.flatten().tolist()) == set(range(n))
    assert blocks.input_ids.dtype == blocks.labels.dtype == torch.int64


def test_ignored_is_the_label_that_cross_entropy_leaves_out():
    logits = torch.tensor([[1.0, 2.0], [3.0, 0.5]])
    whole = torch.nn.functional.cross_entropy(logits, torch.tensor([1, IGNORED]))
    assert whole == torch.nn.functional.cross_entropy(logits[:1], torch.tensor([1]))


def test_padding_changes_no_prediction_of_the_tail(tiny_lab):
    ids = np.arange(10, 20)
    blocks = pack(ids, 8)
    with torch.no_grad():
        loss = tiny_lab.model(input_ids=blocks.input_ids[1:], labels=blocks.labels[1:]).loss
        alone = tiny_lab.model(input_ids=torch.tensor([[18, 19]]), labels=torch.tensor([[18, 19]])).loss
    torch.testing.assert_close(loss, alone)


def test_item_is_one_block_with_its_labels():
    blocks = pack(np.arange(5), 3)
    assert len(blocks) == 2
    assert {key: value.tolist() for key, value in blocks[0].items()} == {"input_ids": [0, 1, 2], "labels": [0, 1, 2]}
    assert blocks[1]["labels"].tolist() == [3, 4, IGNORED]


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

"""A preview counts as training reads: the oracle is what a run is prepared with."""

import json

import numpy as np
import pytest
from accelerate import PartialState

from gpt2lab import export, preview
from gpt2lab.data.text import Article, TextSplits
from gpt2lab.errors import LabError
from gpt2lab.model.lab import load_model
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.prepare import prepare


def prepared(model, data, block_size):
    return prepare(
        TrainConfig(model=str(model), data=str(data), block_size=block_size, steps=1), PartialState(cpu=True)
    )


def of(found, name):
    return next(split for split in found.splits if split.name == name)


@pytest.mark.parametrize("block_size", [64, 256])
def test_the_sample_is_counted_as_a_run_is_prepared(block_size):
    lab, job = load_model("builtin", device="cpu"), prepared("builtin", "sample", block_size)
    found = preview(lab, "sample", block_size)
    for split, blocks in (("train", job.train), ("validation", job.split)):
        assert (of(found, split).n_tokens, of(found, split).blocks) == (blocks.n_tokens, len(blocks))
        assert of(found, split).padding == int((blocks.labels < 0).sum())
        assert of(found, split).lengths.sum() == blocks.n_tokens + of(found, split).dropped
    assert found.first_block.tolist() == job.train.input_ids[0].tolist()
    assert found.text == lab.tokenizer.decode(job.train.input_ids[0]) and len(found.tokens) == block_size
    assert [split.articles for split in found.splits] == [48, 6, 6]


def test_files_of_wikitext_are_counted_as_a_run_is_prepared(shared_data, tmp_path, tiny_folder, tiny_lab):
    source = (shared_data / "wikitext-2" / "wiki.valid.tokens").read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    (tmp_path / "wiki.train.tokens").write_text("".join(lines[:900]), encoding="utf-8")
    (tmp_path / "wiki.valid.tokens").write_text("".join(lines[900:1200]), encoding="utf-8")
    job, found = prepared(tiny_folder, tmp_path, 32), preview(tiny_lab, str(tmp_path), 32)
    assert (of(found, "train").n_tokens, of(found, "train").blocks) == (job.train.n_tokens, len(job.train))
    assert (of(found, "validation").n_tokens, of(found, "validation").blocks) == (job.split.n_tokens, len(job.split))
    assert of(found, "train").blank_lines == sum(not line.strip() for line in lines[:900])
    edges, counts = found.histogram()
    assert {name: sum(values) for name, values in counts.items()} == {s.name: s.articles for s in found.splits}
    assert edges == sorted(set(edges)) and len(edges) <= 31


def splits(*texts, validation="It is one."):
    articles = tuple(Article(f"row {i}", (text,)) for i, text in enumerate(texts))
    return TextSplits("mine", articles, (Article("v", (validation,)),), ())


def test_a_single_token_left_over_is_dropped_and_a_short_split_fills_no_block(tiny_lab):
    n = int(preview(tiny_lab, splits("The moon is a small world."), 2).splits[0].lengths[0])
    found = preview(tiny_lab, splits("The moon is a small world."), n - 1)
    assert (found.splits[0].n_tokens, found.splits[0].blocks, found.splits[0].dropped) == (n - 1, 1, 1)
    short = preview(tiny_lab, splits("The moon is a small world."), 60)
    assert [(s.n_tokens, s.blocks) for s in short.splits] == [(0, 0), (0, 0)]
    assert short.splits[0].dropped == n and len(short.tokens) == n


def test_an_end_token_in_a_text_does_not_shift_the_lengths_of_articles(tiny_lab):
    end = tiny_lab.tokenizer.eos_token
    found = preview(tiny_lab, splits("The moon", f"a{end}b", "small"), 2)
    assert found.splits[0].lengths.tolist() == [
        len(tiny_lab.encode(text)) + 1 for text in ("The moon", f"a{end}b", "small")
    ]


def test_a_preview_is_exported_in_every_format(tiny_lab):
    found = preview(tiny_lab, splits("The moon is a small world.", "And </script> the sea."), 4)
    record = json.loads(export(found, "json"))
    assert record["splits"][0]["tokens"] == found.splits[0].n_tokens
    assert record["first_block"]["ids"] == found.first_block.tolist()
    assert export(found, "csv").decode().splitlines()[1].startswith("train,2,")
    assert export(found, "png").startswith(b"\x89PNG") and b"</script> the" not in export(found, "html")
    assert np.array_equal(found.arrays()["train_lengths"], found.splits[0].lengths)


@pytest.mark.parametrize("size", [1, 0, -3, 65, 2.5, True, "8", None])
def test_a_block_that_cannot_be_is_refused(tiny_lab, size):
    with pytest.raises(LabError, match="block_size"):
        preview(tiny_lab, splits("The moon"), size)

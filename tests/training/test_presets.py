"""The preset in which an induction head forms, with its text and its model without weights."""

import json
from dataclasses import replace
from math import cos, sqrt

import pytest

from gpt2lab.builtin.two_layer import SINUSOIDS, build
from gpt2lab.data.blocks import pack, token_ids
from gpt2lab.data.repeated import ARTICLES, BLOCK, CHARACTERS, repeated_words
from gpt2lab.data.sources import SHAPES
from gpt2lab.data.text import SPLITS, load_text
from gpt2lab.errors import LabError
from gpt2lab.model.lab import load_model, random_model
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.finetuning import finetune
from gpt2lab.training.history import read_history
from gpt2lab.training.presets import PRESETS, preset


@pytest.fixture(scope="module")
def two_layer():
    return random_model("two-layer")


@pytest.fixture(scope="module")
def splits():
    return load_text("repeated")


def test_the_text_is_the_same_each_time_and_its_splits_differ(splits):
    again = {split: repeated_words(split) for split in SPLITS}
    assert {split: [article.text for article in splits.split(split)] for split in SPLITS} == again
    assert {split: len(texts) for split, texts in again.items()} == ARTICLES
    assert not set(again["train"]) & {*again["validation"], *again["test"]}


def test_an_article_repeats_what_it_has_shown(splits):
    """Most pairs of neighbours in its second half stand in the first half too; of random characters, hardly any would."""
    texts = [article.text for article in splits.validation]
    pairs = [[text[i : i + 2] for i in range(BLOCK - 2)] for text in texts]
    known = [pair in found[: BLOCK // 2] for found in pairs for pair in found[BLOCK // 2 :]]
    assert 0.5 < sum(known) / len(known) < 0.95
    assert set("".join(texts)) == set(CHARACTERS)


def test_each_block_is_one_article_and_its_end_token(two_layer, splits):
    blocks = pack(token_ids(two_layer.tokenizer, splits.validation), BLOCK)
    ends = blocks.input_ids == two_layer.tokenizer.eos_token_id
    assert (len(blocks), two_layer.context) == (ARTICLES["validation"], BLOCK)
    assert ends[:, -1].all() and not ends[:, :-1].any()
    assert [two_layer.tokenizer.decode(ids[:-1]) for ids in blocks.input_ids] == [a.text for a in splits.validation]


def test_the_files_of_the_model_are_those_that_the_script_writes(tmp_path):
    build(tmp_path)
    written = {path.name: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert written == {path.name: json.loads(path.read_text()) for path in SHAPES["two-layer"].iterdir()}


def test_a_model_without_weights_is_refused_in_one_line():
    with pytest.raises(LabError, match=r"^two-layer is a shape without weights; train it with the method scratch.*$"):
        load_model("two-layer")
    with pytest.raises(LabError, match="shape without weights"):
        finetune(model="two-layer", data="repeated", steps=1)


def test_a_setting_takes_the_place_of_the_presets_own():
    own = PRESETS["induction"].settings
    assert preset("induction") == TrainConfig(**own)
    assert preset("induction", seed=3, learning_rate=1e-4) == replace(TrainConfig(**own), seed=3, learning_rate=1e-4)
    assert (preset("induction", epochs=0.5).steps, preset("induction", epochs=0.5).epochs) == (None, 0.5)


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(LabError, match=r"^preset 'grokking' is unknown; use induction$"):
        preset("grokking")


def test_the_command_takes_a_preset_and_options_in_place_of_its_settings(run_cli, monkeypatch, tmp_path):
    monkeypatch.setattr("gpt2lab.training.jobs.spawn", lambda folder, queue: None)
    options = ["--patience", 3, "--lr", 1e-4, "--detach", "--run", "mine", "--runs", tmp_path]  # 3: the usual default
    status, _, err = run_cli("finetune", "--preset", "induction", *options)
    assert (status, err) == (0, "")
    known = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert PRESETS["induction"].settings | {"patience": 3, "learning_rate": 1e-4} == {
        name: known[name] for name in PRESETS["induction"].settings
    }
    status, out, err = run_cli("finetune", "--preset", "grokking")
    assert (status, out, err) == (2, "", "gpt2lab: preset 'grokking' is unknown; use induction\n")


def test_position_embeddings_of_the_shape_start_as_sinusoids(two_layer):
    positions = two_layer.model.transformer.wpe.weight
    T, D = positions.shape
    assert positions[:, D // 2].tolist() == pytest.approx([SINUSOIDS * cos(t) for t in range(T)], abs=1e-6)
    assert positions.norm(dim=1).tolist() == pytest.approx([SINUSOIDS * sqrt(D / 2)] * T)


@pytest.mark.slow
def test_an_induction_head_forms(tmp_path):
    finetune(preset("induction", steps=600, eval_every=600), run="short", runs_dir=tmp_path)
    history = read_history("short", tmp_path)
    scores, second = history.head_scores["induction"].max((1, 2)), history.losses["second showing"]
    assert scores[0] < 0.1
    assert scores[-1] > 0.5
    assert history.top("induction")[0] == 1
    assert 0 < history.change_step("induction") <= 600
    assert second[-1] < second[0] - 2

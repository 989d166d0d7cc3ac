import itertools
import json
import os
import shutil
from dataclasses import fields
from math import ceil, log
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2LMHeadModel

from gpt2lab.errors import LabError
from gpt2lab.model import load_model
from gpt2lab.sampling import generate
from gpt2lab.text import load_text
from gpt2lab.training import trainer
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.runs import read_lines, read_metrics, read_status
from gpt2lab.training.trainer import finetune, first_words, prepare, training_arguments

BLOCK = 16


def text_ids(tokenizer, data, split):
    """All ids of a split, the end of text after each article."""
    articles = load_text(data).split(split)
    return [i for article in articles for i in (*tokenizer(article.text)["input_ids"], tokenizer.eos_token_id)]


def block_sums(folder, data, split, block=BLOCK):
    """(sum of -log p, predicted tokens) of each block, written out in float64; the last one is shorter, not padded."""
    lab = load_model(str(folder), device="cpu")
    gpt2, ids = lab.model.double(), text_ids(lab.tokenizer, data, split)
    sums = []
    for start in range(0, len(ids), block):
        row = torch.tensor(ids[start : start + block])
        with torch.no_grad():
            log_p = gpt2(row[None]).logits[0].log_softmax(-1)
        sums.append((-sum(float(log_p[t - 1, row[t]]) for t in range(1, len(row))), len(row) - 1))
    return sums


def mean_loss(sums):
    return sum(nll for nll, _ in sums) / sum(count for _, count in sums)


def losses(folder, split):
    return [(metric.step, metric.loss) for metric in read_metrics(folder) if metric.split == split]


def weights(folder):
    return load_model(str(folder), device="cpu").model.state_dict()


def same_weights(one, other):
    one, other = weights(one), weights(other)
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def tune(no_dropout_folder, moon, tmp_path):
    """finetune with small settings, and changes to them."""

    def run(**changes):
        settings = {"model": str(no_dropout_folder), "data": moon, "block_size": BLOCK, "batch_size": 4, "steps": 4}
        return finetune(runs_dir=tmp_path / "runs", **settings | changes)

    return run


@pytest.fixture(scope="module")
def finished(tiny_folder, moon, tmp_path_factory):
    """A run of 6 steps with validations at 0, 4 and 6, of the tiny model with its dropout."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT2LAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        return finetune(
            model=str(tiny_folder),
            data=moon,
            block_size=BLOCK,
            batch_size=4,
            steps=6,
            eval_every=4,
            learning_rate=1e-2,
            runs_dir=tmp_path_factory.mktemp("runs"),
            run="finished",
        )


def test_a_tiny_model_overfits_four_blocks(tune, text_folder, sentences, tiny_tokenizer):
    data = text_folder(
        train=tiny_tokenizer.decode(tiny_tokenizer(sentences[0] * 4)["input_ids"][:63]), validation=sentences[1]
    )
    result = tune(data=data, steps=150, learning_rate=1e-2, eval_every=150)
    steps = losses(result.folder, "train")
    assert len(text_ids(tiny_tokenizer, data, "train")) == 4 * BLOCK
    assert steps[0][1] > log(300)
    assert steps[-1][1] < 0.02
    assert mean_loss(block_sums(result.model_dir, data, "train")) < 0.02


def test_loss_before_equals_a_written_out_cross_entropy_over_tokens(finished, tiny_folder, moon):
    sums = block_sums(tiny_folder, moon, "validation")
    assert sums[-1][1] < BLOCK - 1
    assert finished.val_loss_before == pytest.approx(mean_loss(sums), rel=1e-6)
    over_blocks = sum(nll / count for nll, count in sums) / len(sums)
    assert finished.val_loss_before != pytest.approx(over_blocks, rel=1e-4)


def test_loss_after_is_that_of_the_model_that_was_saved(finished, moon):
    loss = mean_loss(block_sums(finished.model_dir, moon, "validation"))
    assert finished.val_loss_after == pytest.approx(loss, rel=1e-6)
    assert finished.val_loss_after < finished.val_loss_before - 0.1


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_validation_loss_does_not_depend_on_the_batch(tune, no_dropout_folder, moon, batch_size):
    result = tune(batch_size=batch_size, steps=1)
    loss = mean_loss(block_sums(no_dropout_folder, moon, "validation"))
    assert result.val_loss_before == pytest.approx(loss, rel=1e-6)


def test_first_training_loss_is_the_mean_over_the_tokens_of_its_batch(tune, no_dropout_folder, moon):
    sums = block_sums(no_dropout_folder, moon, "train")
    result = tune(batch_size=len(sums), steps=1)
    assert losses(result.folder, "train") == [(1, pytest.approx(mean_loss(sums), rel=1e-5))]


def test_metrics_validate_at_step_0_and_at_the_last_and_agree_with_the_result(finished):
    validation = losses(finished.folder, "validation")
    assert [step for step, _ in validation] == [0, 4, 6]
    assert validation[0][1] == finished.val_loss_before
    assert validation[-1][1] == finished.val_loss_after
    assert [step for step, _ in losses(finished.folder, "train")] == [1, 2, 3, 4, 5, 6]


def test_metrics_run_forward_in_tokens_and_seconds(finished):
    metrics = read_metrics(finished.folder)
    for earlier, later in itertools.pairwise(metrics):
        assert earlier.tokens <= later.tokens
        assert earlier.seconds <= later.seconds
    assert (metrics[0].tokens, metrics[-1].tokens) == (0, finished.tokens)


def test_finished_run_says_so_with_every_step_done(finished):
    status = read_status(finished.folder)
    assert (status.state, status.step, status.total_steps, status.message) == ("finished", 6, 6, "")
    assert (status.pid, status.eta_seconds) == (os.getpid(), 0)
    assert status.tokens_per_second == pytest.approx(finished.tokens_per_second)
    assert not finished.stopped
    assert (finished.run, finished.steps, finished.folder.name) == ("finished", 6, "finished")


def test_run_folder_holds_what_is_documented_and_nothing_else(finished):
    names = {path.name for path in finished.folder.iterdir()}
    assert names == {"config.json", "status.json", "metrics.jsonl", "samples.jsonl", "model"}
    assert finished.model_dir == finished.folder / "model"


def test_config_of_a_run_has_every_default_filled_in(finished, tiny_folder, moon):
    config = json.loads((finished.folder / "config.json").read_text(encoding="utf-8"))
    assert {field.name for field in fields(TrainConfig)} | {"machine"} == set(config)
    assert (config["model"], config["data"], config["seed"]) == (str(tiny_folder), moon, 0)
    assert (config["steps"], config["block_size"], config["eval_every"]) == (6, BLOCK, 4)
    assert config["prompt"] == finished.prompt
    assert config["machine"]["torch"] == torch.__version__
    assert config["machine"]["device"].startswith("cpu")


def test_texts_are_those_of_the_models_before_and_after(finished, tiny_folder):
    options = {"max_new_tokens": 60, "temperature": 0.8, "top_p": 0.95, "seed": 0}
    before = generate(load_model(str(tiny_folder), device="cpu"), finished.prompt, **options).text
    after = generate(load_model(str(finished.model_dir), device="cpu"), finished.prompt, **options).text
    assert (finished.text_before, finished.text_after) == (before, after)
    assert before != after
    assert read_lines(finished.folder / "samples.jsonl") == [
        {"step": 0, "prompt": finished.prompt, "text": before},
        {"step": 6, "prompt": finished.prompt, "text": after},
    ]


def test_saved_model_keeps_its_configuration_and_its_tokenizer(finished, tiny_folder):
    before, after = (load_model(str(folder), device="cpu") for folder in (tiny_folder, finished.model_dir))
    saved = json.loads((finished.model_dir / "config.json").read_text())
    assert (saved["attn_pdrop"], saved["resid_pdrop"], saved["embd_pdrop"]) == (0.1, 0.1, 0.1)
    assert after.shape == before.shape
    text = "The moon, é 🌙"
    assert after.encode(text).tolist() == before.encode(text).tolist()


def test_saved_model_has_its_card(finished):
    card = (finished.model_dir / "README.md").read_text(encoding="utf-8")
    assert f"{finished.val_loss_before:.4f} | {finished.val_loss_after:.4f}" in card
    assert "6 optimizer steps of 4 blocks of 16 tokens" in card


def test_attention_dropout_is_off_in_training_and_the_others_are_on(tune, tiny_folder, monkeypatch):
    attention, others = [], set()
    scaled, dropout = F.scaled_dot_product_attention, F.dropout

    def seen_attention(*args, dropout_p=0.0, **kwargs):
        attention.append((torch.is_grad_enabled(), dropout_p))
        return scaled(*args, dropout_p=dropout_p, **kwargs)

    def seen_dropout(input, p=0.5, training=True, inplace=False):
        others.add(p if training else 0.0)
        return dropout(input, p, training, inplace)

    monkeypatch.setattr(F, "scaled_dot_product_attention", seen_attention)
    monkeypatch.setattr(F, "dropout", seen_dropout)
    tune(model=str(tiny_folder), steps=2)
    assert (True, 0.0) in attention
    assert {p for _, p in attention} == {0.0}
    assert others == {0.0, 0.1}


def test_same_seed_gives_the_same_weights_and_losses_and_another_does_not(tune, tiny_folder):
    first, again, other = (tune(model=str(tiny_folder), seed=seed) for seed in (5, 5, 6))
    curves = [losses(result.folder, "train") + losses(result.folder, "validation") for result in (first, again, other)]
    assert curves[0] == curves[1] != curves[2]
    assert same_weights(first.model_dir, again.model_dir)
    assert not same_weights(first.model_dir, other.model_dir)
    assert first.text_after == again.text_after


def test_run_does_not_change_the_model_it_starts_from(tune, no_dropout_folder):
    before = (no_dropout_folder / "model.safetensors").read_bytes()
    result = tune()
    assert (no_dropout_folder / "model.safetensors").read_bytes() == before
    assert not same_weights(no_dropout_folder, result.model_dir)


def test_even_a_single_step_changes_the_weights(tune, no_dropout_folder):
    assert not same_weights(no_dropout_folder, tune(steps=1).model_dir)


def test_accumulated_small_batches_equal_one_large_batch(tune):
    large, small = tune(batch_size=4, grad_accum=1), tune(batch_size=1, grad_accum=4)
    for split in ("train", "validation"):
        expected = [(step, pytest.approx(loss, rel=1e-4)) for step, loss in losses(large.folder, split)]
        assert losses(small.folder, split) == expected
    assert large.val_loss_after < large.val_loss_before
    assert (small.steps, small.tokens) == (large.steps, large.tokens)


def test_learning_rate_rises_over_the_warm_up_to_its_peak_and_falls(tune):
    result = tune(steps=10, warmup=0.5, learning_rate=3e-3, eval_every=10)
    rates = [metric.lr for metric in read_metrics(result.folder) if metric.split == "train"]
    peak = rates.index(max(rates))
    assert rates[peak] == pytest.approx(3e-3)
    assert 4 <= peak <= 6
    assert rates[: peak + 1] == sorted(set(rates[: peak + 1]))
    assert rates[peak:] == sorted(set(rates[peak:]), reverse=True)
    assert rates[-1] < 1e-3


def test_tokens_read_are_those_of_the_text_and_padding_is_none(tune, moon, tiny_tokenizer):
    n = len(text_ids(tiny_tokenizer, moon, "train"))
    assert n % BLOCK
    result = tune(steps=None, epochs=2)
    assert result.steps == 2 * ceil(ceil(n / BLOCK) / 4)
    assert result.tokens == 2 * n


def test_full_blocks_are_counted_token_by_token(tune, text_folder, tiny_tokenizer, sentences):
    text = tiny_tokenizer.decode(tiny_tokenizer(" ".join(sentences))["input_ids"][: 8 * BLOCK - 1])
    result = tune(data=text_folder(train=text, validation=text), steps=3, grad_accum=2, batch_size=2)
    assert result.tokens == 3 * 4 * BLOCK
    assert read_metrics(result.folder)[-1].tokens == result.tokens


def test_wish_to_stop_ends_the_run_early_and_keeps_its_model(tune, moon):
    answers = iter([False, False, True])
    result = tune(steps=100, learning_rate=1e-2, should_stop=lambda: next(answers))
    assert (result.stopped, result.steps) == (True, 3)
    status = read_status(result.folder)
    assert (status.state, status.step, status.total_steps) == ("stopped", 3, 100)
    assert losses(result.folder, "validation")[-1] == (3, result.val_loss_after)
    assert result.val_loss_after == pytest.approx(mean_loss(block_sums(result.model_dir, moon, "validation")), rel=1e-6)


def test_wish_to_stop_is_asked_for_once_a_step_and_comes_too_late_at_the_last(tune):
    asked = []
    result = tune(steps=3, grad_accum=2, batch_size=2, should_stop=lambda: asked.append(1) or len(asked) == 3)
    assert len(asked) == 3
    assert not result.stopped
    assert read_status(result.folder).state == "finished"


def test_whoever_is_told_of_the_start_can_read_the_run_from_then_on(tune):
    seen = []

    def started(folder):
        seen.append((folder, json.loads((folder / "config.json").read_text())["steps"], read_status(folder).state))

    result = tune(steps=2, on_start=started)
    assert seen == [(result.folder, 2, "running")]


def test_settings_come_as_a_record_or_by_name_to_the_same_end(tune, no_dropout_folder, moon, tmp_path):
    config = TrainConfig(model=str(no_dropout_folder), data=moon, block_size=BLOCK, batch_size=4, steps=4)
    by_record = finetune(config, runs_dir=tmp_path / "runs")
    assert by_record.val_loss_after == tune().val_loss_after


def test_settings_beside_a_record_are_not_passed_over(no_dropout_folder, moon, tmp_path):
    config = TrainConfig(model=str(no_dropout_folder), data=moon, block_size=BLOCK, steps=1)
    with pytest.raises((LabError, TypeError)):
        finetune(config, steps=2, runs_dir=tmp_path / "runs")


def test_setting_that_does_not_exist_is_refused_by_name(tmp_path):
    with pytest.raises(TypeError, match="stepz"):
        finetune(stepz=2, runs_dir=tmp_path / "runs")


REFUSED = {
    "block past the context": ({"block_size": 65}, r"a block of 65 tokens is past the context of .*, 64; use less"),
    "train shorter than a block": ({"data": "short train"}, r"the text has \d+ tokens, less than one block of 16;"),
    "validation shorter than a block": ({"data": "short"}, r"the text has \d+ tokens, less than one block of 16;"),
    "no validation split": ({"data": "train only"}, r"has no validation split; it has train"),
    "no train split": ({"data": "validation only"}, r"has no train split; it has validation"),
    "unknown model": ({"model": "/nowhere/model"}, r"no model '/nowhere/model'"),
    "unknown text": ({"data": "/nowhere/text"}, r"no text '/nowhere/text'"),
    "steps": ({"steps": 0}, "steps 0 is out of range"),
    "run id": ({"run": "../x"}, r"run '../x' is no run id"),
    "prompt past the context": ({"prompt": "x" * 65}, r"the prompt has 65 tokens; .* reads at most 64"),
    "prompt that is no text": ({"prompt": 5}, "of type int; give a string"),
    "prompt with half a character": ({"prompt": "moon \ud83c"}, "lone surrogate"),
}


@pytest.fixture
def texts(text_folder, sentences):
    long = " ".join(sentences)
    return {
        "short train": text_folder(train="Moon.", validation=long),
        "short": text_folder(train=long, validation="Moon."),
        "train only": text_folder(train=long),
        "validation only": text_folder(validation=long),
    }


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_and_leaves_no_run(tune, texts, tmp_path, case):
    changes, message = REFUSED[case]
    changes = changes | ({"data": texts.get(changes["data"], changes["data"])} if "data" in changes else {})
    with pytest.raises(LabError, match=message):
        tune(**changes)
    assert not (tmp_path / "runs").exists()


def test_taken_run_is_refused_and_stays_as_it_was(tune):
    first = tune(run="mine", steps=1)
    before = {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
    with pytest.raises(LabError, match="'mine' is already there"):
        tune(run="mine", steps=2)
    assert {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()} == before


def test_validation_loss_that_is_no_number_fails_the_run_with_the_message(
    tune, random_gpt2, tiny_tokenizer, text_folder, sentences, tmp_path
):
    data = text_folder(train=" ".join(sentences * 2), validation=" ".join(sentences * 2))
    gpt2 = random_gpt2(n_positions=128)
    with torch.no_grad():
        gpt2.transformer.wpe.weight[100:] = torch.nan  # out of the reach of the text written first
    gpt2.save_pretrained(tmp_path / "broken")
    tiny_tokenizer.save_pretrained(tmp_path / "broken")
    with pytest.raises(RuntimeError, match="the validation loss is nan at step 0"):
        tune(model=str(tmp_path / "broken"), data=data, block_size=128, run="broken")
    status = read_status(tmp_path / "runs" / "broken")
    assert (status.state, status.step) == ("failed", 0)
    assert "the validation loss is nan at step 0; lower the learning rate" in status.message
    assert not (tmp_path / "runs" / "broken" / "model").exists()


def test_training_loss_that_is_no_number_fails_the_run_at_that_step(tune, tmp_path, monkeypatch):
    labs, asked = [], []
    load = trainer.load_model
    monkeypatch.setattr(trainer, "load_model", lambda *args: labs.append(load(*args)) or labs[-1])

    def lose_the_weights_after_2_steps():
        asked.append(1)
        if len(asked) == 2:
            torch.nn.init.constant_(labs[0].model.transformer.ln_f.weight, torch.nan)

    with pytest.raises(RuntimeError, match="loss is nan"):
        tune(run="lost", steps=10, eval_every=10, should_stop=lose_the_weights_after_2_steps)
    shown = losses(tmp_path / "runs" / "lost", "train")
    assert [step for step, _ in shown] == [1, 2]
    assert all(loss > 1 for _, loss in shown)
    status = read_status(tmp_path / "runs" / "lost")
    assert (status.state, status.step) == ("failed", 3)
    assert "the train loss is nan at step 3; lower the learning rate" in status.message


def test_model_far_from_its_text_can_be_trained_though_its_perplexity_overflows(tune, no_dropout_folder, tmp_path):
    folder = shutil.copytree(no_dropout_folder, tmp_path / "far")
    gpt2 = GPT2LMHeadModel.from_pretrained(folder)
    torch.nn.init.constant_(gpt2.transformer.ln_f.weight, 1000.0)
    gpt2.save_pretrained(folder)
    result = tune(model=str(folder), steps=2)
    assert 710 < result.val_loss_before < 1e5


def test_interrupted_run_is_marked_as_failed(tune, tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(run="cut", should_stop=interrupt)
    status = read_status(tmp_path / "runs" / "cut")
    assert (status.state, status.step) == ("failed", 1)
    assert "KeyboardInterrupt" in status.message


def test_run_leaves_nothing_outside_its_folder(tune, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "scratch").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    tune(steps=1)
    assert [*Path().iterdir(), *(tmp_path / "scratch").iterdir()] == []


@pytest.mark.parametrize(
    ("settings", "steps", "eval_every"),
    [
        ({"epochs": 1}, 3, 1),
        ({"epochs": 1.5}, 4, 1),
        ({"epochs": 1e-9}, 1, 1),
        ({"epochs": 40}, 120, 12),
        ({}, 3, 1),
        ({"steps": 57}, 57, 5),
        ({"steps": 57, "eval_every": 9}, 57, 9),
        ({"epochs": 1, "grad_accum": 3}, 1, 1),
    ],
)
def test_length_of_a_run_follows_from_its_blocks(
    no_dropout_folder, text_folder, tiny_tokenizer, sentences, settings, steps, eval_every
):
    text = tiny_tokenizer.decode(tiny_tokenizer(" ".join(sentences))["input_ids"][: 5 * BLOCK - 1])
    splits = load_text(text_folder(train=text, validation=text))
    config = TrainConfig(block_size=BLOCK, batch_size=2, **settings)
    train, validation, config = prepare(load_model(str(no_dropout_folder), device="cpu"), splits, config)
    assert (train.input_ids.shape, validation.input_ids.shape) == ((5, BLOCK), (5, BLOCK))
    assert (config.steps, config.eval_every, config.epochs) == (steps, eval_every, None)


@pytest.mark.parametrize(("context", "block"), [(64, 64), (512, 256)])
def test_block_is_256_tokens_or_the_context_where_that_is_less(random_lab, text_folder, sentences, context, block):
    splits = load_text(text_folder(train=" ".join(sentences * 2), validation=" ".join(sentences * 2)))
    assert prepare(random_lab(n_positions=context), splits, TrainConfig())[2].block_size == block


@pytest.mark.parametrize(
    ("validation", "words"),
    [
        ("One two  three\tfour five six seven eight.", "One two three four five six"),
        ("One two.\nThree four five six seven.", "One two."),
        ("\n = Honey bee = \n\n == Life == \n\n A bee lives in a hive of many . \n", "A bee lives in a hive"),
        ("\n = Only a title = \n", "The"),
    ],
)
def test_prompt_is_the_first_words_of_the_validation_text(random_lab, text_folder, validation, words):
    splits = load_text(text_folder(train="Not these words at all.", validation=validation))
    prompt = first_words(random_lab(n_positions=256), splits)
    assert prompt.startswith(words)
    assert len(prompt.split()) <= 6


@pytest.mark.parametrize("words", ["月" * 500, "x" * 500, "🌙" * 500])
def test_prompt_of_long_words_is_cut_to_half_the_context(random_lab, text_folder, words):
    lab = random_lab(n_positions=64)
    prompt = first_words(lab, load_text(text_folder(train="Not these.", validation=words)))
    assert words.startswith(prompt)
    assert 8 < len(lab.encode(prompt)) <= 32


def test_default_prompt_is_used_and_a_given_one_wins(tune, finished, sentences):
    assert finished.prompt == " ".join(sentences[4].split()[:6])
    result = tune(prompt="A small", steps=1)
    assert result.prompt == "A small"
    assert read_lines(result.folder / "samples.jsonl")[0]["prompt"] == "A small"


def test_text_without_spaces_is_trained_on_with_a_prompt_that_fits(tune, text_folder):
    data = text_folder(train="月が地球を回る。" * 20, validation="海は月に従う。" * 20)
    result = tune(data=data, steps=1)
    assert result.prompt.startswith("海")


@pytest.mark.parametrize(
    ("setting", "argument", "value"),
    [
        ("learning_rate", "learning_rate", 0.25),
        ("weight_decay", "weight_decay", 0.125),
        ("max_grad_norm", "max_grad_norm", 7.5),
        ("seed", "seed", 11),
        ("batch_size", "per_device_train_batch_size", 5),
        ("grad_accum", "gradient_accumulation_steps", 6),
        ("steps", "max_steps", 23),
    ],
)
def test_setting_reaches_transformers(random_lab, tmp_path, setting, argument, value):
    config = TrainConfig(**{"steps": 3, "eval_every": 1} | {setting: value})
    assert getattr(training_arguments(config, str(tmp_path), random_lab()), argument) == value

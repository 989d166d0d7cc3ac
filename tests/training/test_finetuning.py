import itertools
import json
import os
import shutil
from dataclasses import fields, replace
from math import ceil, log
from pathlib import Path

import peft
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from accelerate import PartialState
from transformers import GPT2Config, GPT2LMHeadModel

import gpt2lab.model.precision
from gpt2lab.data.text import load_text
from gpt2lab.errors import LabError
from gpt2lab.generation.generate import generate
from gpt2lab.model.lab import load_model, without_peft_warning
from gpt2lab.progress import finished as finish_steps
from gpt2lab.training import finetuning, runs, watch
from gpt2lab.training import prepare as preparing
from gpt2lab.training.checkpoints import roll_back
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.curves import read_curves
from gpt2lab.training.finetuning import finetune, resume
from gpt2lab.training.full_validation import is_affordable, load_scoring
from gpt2lab.training.prepare import first_words, prepare
from gpt2lab.training.result import read_result
from gpt2lab.training.runs import read_lines, read_metrics, read_status

BLOCK, SAMPLE_TOKENS = 16, 8


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


@pytest.fixture(scope="module", autouse=True)
def short_samples():
    """At each validation a run writes so few tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetuning, "SAMPLE_TOKENS", SAMPLE_TOKENS)
        yield


@pytest.fixture
def tune(no_dropout_folder, moon, tmp_path):
    """finetune with small settings, and changes to them."""

    def run(**changes):
        settings = {"model": str(no_dropout_folder), "data": moon, "block_size": BLOCK, "batch_size": 4, "steps": 4}
        return finetune(runs_dir=tmp_path / "runs", **settings | {"precision": "fp32"} | changes)

    return run


@pytest.fixture
def at_validation(monkeypatch):
    """A function: an action on the lab, and the number of the validation after which a run does it, counted from 0.

    What the action returns is the text of that validation; the run writes its own where that is None.
    """
    monkeypatch.setattr(watch, "CONTROL_SECONDS", -1.0)  # a request is seen at the next step
    write, written = finetuning.sample_text, []

    def do(action, number):
        def act_and_write(lab, config):
            written.append(1)
            return (len(written) == number + 1 and action(lab)) or write(lab, config)

        monkeypatch.setattr(finetuning, "sample_text", act_and_write)

    return do


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
            precision="fp32",
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


def test_lines_of_training_record_the_gradient_and_the_use_of_the_machine(finished):
    train = [metric for metric in read_metrics(finished.folder) if metric.split == "train"]
    for metric in train:
        assert metric.grad_norm > 0 and metric.tokens_per_second > 0
        assert 2**20 < metric.memory < 2**40 and 0 <= metric.cpu <= 1
    assert sum(metric.tokens_per_second for metric in train) / len(train) == pytest.approx(
        finished.tokens_per_second, rel=0.9
    )
    config = json.loads((finished.folder / "config.json").read_text(encoding="utf-8"))
    assert [config["train_tokens"]] == [read_curves(finished.folder).runs[0].train_tokens]


def test_metrics_run_forward_in_tokens_and_seconds(finished):
    metrics = read_metrics(finished.folder)
    for earlier, later in itertools.pairwise(metrics):
        assert earlier.tokens <= later.tokens
        assert earlier.seconds <= later.seconds
    assert (metrics[0].tokens, metrics[-1].tokens) == (0, finished.tokens)


def test_finished_run_says_so_with_every_step_done(finished):
    status = read_status(finished.folder)
    assert (status.state, status.step, status.total_steps) == ("finished", 6, 6)
    assert status.message == f"validation perplexity {finished.validation}"
    assert (status.pid, status.eta_seconds) == (os.getpid(), None)
    assert status.tokens_per_second == pytest.approx(finished.tokens_per_second)
    assert not finished.stopped
    assert (finished.run, finished.steps, finished.folder.name) == ("finished", 6, "finished")


def test_run_folder_holds_what_is_documented_and_nothing_else(finished):
    names = {path.name for path in finished.folder.iterdir()}
    files = {"config.json", "status.json", "metrics.jsonl", "samples.jsonl", "validation.jsonl", "result.json"}
    assert names == files | {"model", "checkpoints", "history"}
    assert finished.model_dir == finished.folder / "model"
    assert read_result(finished.folder) == finished


def test_of_the_checkpoints_the_last_and_the_best_are_kept(finished):
    assert finished.best_step == 6
    kept = {path.name for path in (finished.folder / "checkpoints").iterdir()}
    assert "checkpoint-6" in kept
    assert len(kept) <= 2


def test_config_of_a_run_has_every_default_filled_in(finished, tiny_folder, moon):
    config = json.loads((finished.folder / "config.json").read_text(encoding="utf-8"))
    assert {field.name for field in fields(TrainConfig)} | {
        "base",
        "machine",
        "notes",
        "processes",
        "text",
        "train_tokens",
        "created",
    } == set(config)
    assert (config["model"], config["data"], config["seed"]) == (str(tiny_folder), moon, 0)
    assert (config["steps"], config["block_size"], config["eval_every"]) == (6, BLOCK, 4)
    assert config["prompt"] == finished.prompt
    assert config["machine"]["torch"] == torch.__version__
    assert config["machine"]["device"].startswith("cpu")


def test_texts_are_those_of_the_models_before_and_after(finished, tiny_folder):
    options = {"max_new_tokens": SAMPLE_TOKENS, "temperature": 0.8, "top_p": 0.95, "seed": 0}
    before = generate(load_model(str(tiny_folder), device="cpu"), finished.prompt, **options).text
    after = generate(load_model(str(finished.model_dir), device="cpu"), finished.prompt, **options).text
    assert (finished.text_before, finished.text_after) == (before, after)
    assert before != after
    first, between, last = read_lines(finished.folder / "samples.jsonl")
    assert first == {"step": 0, "prompt": finished.prompt, "text": before}
    assert (between["step"], between["prompt"]) == (4, finished.prompt)
    assert last == {"step": 6, "prompt": finished.prompt, "text": after}


def test_saved_model_keeps_its_configuration_and_its_tokenizer(finished, tiny_folder):
    before, after = (load_model(str(folder), device="cpu") for folder in (tiny_folder, finished.model_dir))
    saved = json.loads((finished.model_dir / "config.json").read_text())
    assert (saved["attn_pdrop"], saved["resid_pdrop"], saved["embd_pdrop"]) == (0.1, 0.1, 0.1)
    assert after.shape == before.shape
    text = "The moon, é 🌙"
    assert after.encode(text).tolist() == before.encode(text).tolist()


def test_saved_model_has_its_card(finished):
    card = " ".join((finished.model_dir / "README.md").read_text(encoding="utf-8").split())
    assert f"{finished.val_loss_before:.4f} → {finished.val_loss_after:.4f}" in card
    assert f"| all {finished.validation.tokens} tokens |" in card
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


def test_wish_to_stop_ends_the_run_early_and_keeps_the_model_of_its_best_step(tune, moon, tmp_path, at_validation):
    at_validation(lambda lab: runs.request_action(tmp_path / "runs" / "mine", "stop"), 1)
    result = tune(run="mine", steps=100, eval_every=2, learning_rate=1e-2)
    assert (result.stopped, result.steps) == (True, 3)
    status = read_status(result.folder)
    assert (status.state, status.step, status.total_steps) == ("stopped", 3, 100)
    validation = losses(result.folder, "validation")
    assert [step for step, _ in validation] == [0, 2, 3]
    assert (result.best_step, result.val_loss_after) == validation[-1]
    assert result.val_loss_after == pytest.approx(mean_loss(block_sums(result.model_dir, moon, "validation")), rel=1e-6)


def test_wish_to_pause_ends_the_run_early_with_a_checkpoint_and_no_model(tune, tmp_path, at_validation):
    at_validation(lambda lab: runs.request_action(tmp_path / "runs" / "mine", "pause"), 1)
    result = tune(run="mine", steps=100, eval_every=2, learning_rate=1e-2)
    assert (result.stopped, result.steps, result.model_dir) == (True, 3, None)
    status = read_status(result.folder)
    assert (status.state, status.step, status.message) == (
        "stopped",
        3,
        "paused at step 3; resume continues from there",
    )
    assert [step for step, _ in losses(result.folder, "validation")] == [0, 2]
    assert not (result.folder / "model").exists()
    assert (result.folder / "checkpoints" / "checkpoint-3" / "trainer_state.json").is_file()


def test_wish_to_stop_that_comes_with_the_last_step_comes_too_late(tune, tmp_path, at_validation):
    at_validation(lambda lab: runs.request_action(tmp_path / "runs" / "mine", "stop"), 1)
    result = tune(run="mine", steps=3, eval_every=2)
    assert (result.steps, result.stopped) == (3, False)
    assert read_status(result.folder).state == "finished"
    assert result.model_dir.is_dir()


def test_run_that_is_stopped_at_its_start_has_nothing_to_keep_and_can_go_on(tune, at_validation):
    at_validation(lambda lab: None, 0)
    result = tune(run="mine", on_start=lambda folder: runs.request_action(folder, "stop"))
    assert (result.stopped, result.steps, result.tokens, result.model_dir) == (True, 0, 0, None)
    status = read_status(result.folder)
    assert (status.state, status.message) == ("stopped", "ended at step 0; resume continues from there")
    assert runs.requested_action(result.folder) is None
    assert resume(result.folder).steps == 4


def test_run_that_is_paused_while_it_validates_what_it_would_keep_continues_to_the_same_end(
    tune, tmp_path, at_validation, monkeypatch
):
    settings = {"steps": 6, "eval_every": 2, "learning_rate": 1e-2}
    whole = tune(**settings, run="whole")
    at_validation(lambda lab: runs.request_action(tmp_path / "runs" / "mine", "stop"), 1)
    validate = finetuning.LabTrainer.evaluate

    def pause_then(trainer):
        if read_status(tmp_path / "runs" / "mine").state == "stopping":
            runs.request_action(tmp_path / "runs" / "mine", "pause")
        return validate(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(finetuning.LabTrainer, "evaluate", lambda trainer, *args, **kwargs: pause_then(trainer))
        paused = tune(**settings, run="mine")
    assert (paused.steps, paused.model_dir) == (3, None)
    assert [step for step, _ in losses(paused.folder, "validation")] == [0, 2]
    assert resume(paused.folder).steps == 6
    assert measured(paused.folder) == measured(whole.folder)
    assert same_weights(paused.folder / "model", whole.model_dir)


@pytest.mark.parametrize(
    "settings", [{"steps": 4}, {"steps": 5, "eval_every": 2}, {"steps": 20, "eval_every": 2, "patience": 1}]
)
def test_run_that_was_killed_once_all_was_trained_only_keeps_the_model(tune, tmp_path, monkeypatch, settings):
    whole = tune(**settings, learning_rate=3e-2)
    folder = shutil.copytree(whole.folder, tmp_path / "runs" / "killed")
    for left in ("model", "result.json"):
        shutil.rmtree(folder / left) if (folder / left).is_dir() else (folder / left).unlink()
    runs.write_status(folder, replace(read_status(folder), state="running", pid=2**22 + 1))
    monkeypatch.setattr(finetuning.LabTrainer, "training_step", lambda *args: pytest.fail("trained again"))
    result = resume(folder)
    assert (result.steps, result.best_step) == (whole.steps, whole.best_step)
    assert measured(folder) == measured(whole.folder)
    assert same_weights(result.model_dir, whole.model_dir)
    assert read_status(folder).state == "finished"


OVERFITTING = {"steps": 20, "eval_every": 2, "learning_rate": 3e-2, "patience": 0}


@pytest.fixture(scope="module")
def overfitted(no_dropout_folder, moon, tmp_path_factory):
    """A run whose validation loss falls and rises again; no patience ends it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT2LAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        settings = {"model": str(no_dropout_folder), "data": moon, "block_size": BLOCK, "batch_size": 4}
        runs_dir = tmp_path_factory.mktemp("runs")
        return finetune(**settings, **OVERFITTING, precision="fp32", runs_dir=runs_dir, run="overfitted")


def test_model_that_is_kept_is_that_of_the_lowest_validation_loss(overfitted, moon):
    result = overfitted
    trained = losses(result.folder, "validation")[1:]
    lowest = min(loss for _, loss in trained)
    best = next(step for step, loss in trained if loss == lowest)
    assert 2 <= best < result.steps == 20
    assert (result.best_step, result.val_loss_after) == (best, lowest)
    assert result.val_loss_after == pytest.approx(mean_loss(block_sums(result.model_dir, moon, "validation")), rel=1e-6)
    [text] = [line["text"] for line in read_lines(result.folder / "samples.jsonl") if line["step"] == best]
    assert result.text_after == text
    status = read_status(result.folder)
    assert (status.best_step, status.message) == (
        best,
        f"best checkpoint: step {best}; validation perplexity {result.validation}",
    )
    assert {path.name for path in (result.folder / "checkpoints").iterdir()} == {f"checkpoint-{best}", "checkpoint-20"}


@pytest.mark.parametrize("patience", [1, 3])
def test_run_ends_where_an_independent_reader_of_its_losses_would_end_it(tune, overfitted, moon, patience):
    endless = losses(overfitted.folder, "validation")[1:]
    best, lowest, waited, end = None, float("inf"), 0, None
    for step, loss in endless:
        if loss < lowest:
            best, lowest, waited = step, loss, 0
        else:
            waited += 1
        if waited == patience:
            end = step
            break
    assert end is not None
    assert end < 20
    result = tune(**OVERFITTING | {"patience": patience})
    assert losses(result.folder, "validation")[1:] == [pair for pair in endless if pair[0] <= end]
    assert (result.steps, result.best_step, result.val_loss_after, result.stopped) == (end, best, lowest, False)
    assert result.val_loss_after == pytest.approx(mean_loss(block_sums(result.model_dir, moon, "validation")), rel=1e-6)
    status = read_status(result.folder)
    assert (status.state, status.step, status.total_steps) == ("finished", end, 20)
    assert f"no better validation loss for {patience} validations" in status.message


def test_best_step_of_a_paused_run_is_kept_when_it_continues(overfitted, tmp_path, monkeypatch, at_validation):
    assert overfitted.best_step <= 14
    monkeypatch.chdir(tmp_path)
    settings = json.loads((overfitted.folder / "config.json").read_text())
    at_validation(lambda lab: runs.request_action(Path("others/mine"), "pause"), overfitted.best_step // 2 + 1)
    config = {key: settings[key] for key in ("model", "data", "block_size", "batch_size", "precision")} | OVERFITTING
    assert finetune(**config, runs_dir="others", run="mine").steps == overfitted.best_step + 3
    shutil.copytree(tmp_path / "others", tmp_path / "copied")
    (tmp_path / "others").rename(tmp_path / "moved")
    (tmp_path / "copied").rename(tmp_path / "others")
    for place in ("others", "moved"):
        result = resume(tmp_path / place / "mine")
        assert (result.steps, result.best_step) == (20, overfitted.best_step), place
        assert same_weights(overfitted.model_dir, result.model_dir), place
        assert read_status(tmp_path / place / "mine").state == "finished", place


def test_run_can_be_read_from_the_call_of_on_start_on(tune):
    seen = []

    def started(folder):
        seen.append((folder, json.loads((folder / "config.json").read_text())["steps"], read_status(folder).state))

    result = tune(steps=2, on_start=started)
    assert seen == [(result.folder, 2, "queued")]


def test_second_run_is_refused_while_one_trains_and_leaves_nothing(tune, tmp_path):
    messages = []

    def begin_another(folder):
        with pytest.raises(LabError) as caught:
            finetune(model="builtin", data="sample", steps=1, runs_dir=tmp_path / "others")
        messages.append(str(caught.value))

    result = tune(steps=1, run="first", on_start=begin_another)
    assert read_status(result.folder).state == "finished"
    assert not (tmp_path / "others").exists()
    assert messages == [
        f"run 'first' in {(tmp_path / 'runs').resolve()} is training on this machine; "
        "stop it, wait until it has ended, or queue this run"
    ]


def test_settings_come_as_a_record_or_by_name_to_the_same_end(tune, no_dropout_folder, moon, tmp_path):
    settings = {"block_size": BLOCK, "batch_size": 4, "steps": 4, "precision": "fp32"}
    config = TrainConfig(model=str(no_dropout_folder), data=moon, **settings)
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
    "run id": ({"run": "../x"}, r"'../x' is not a valid run id"),
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


def lose_the_weights(lab):
    torch.nn.init.constant_(lab.model.transformer.ln_f.weight, torch.nan)
    return "a text"


def test_training_loss_that_is_no_number_fails_the_run_at_that_step(tune, tmp_path, at_validation):
    at_validation(lose_the_weights, 1)
    with pytest.raises(RuntimeError, match="loss is nan"):
        tune(run="lost", steps=10, eval_every=2, save_every=10)
    folder = tmp_path / "runs" / "lost"
    assert [step for step, _ in losses(folder, "train")] == [1, 2]
    assert [step for step, _ in losses(folder, "validation")] == [0, 2]
    status = read_status(folder)
    assert (status.state, status.step) == ("failed", 3)
    assert status.message == "RuntimeError: the train loss is nan at step 3; lower the learning rate"


def test_model_far_from_its_text_can_be_trained_though_its_perplexity_overflows(tune, no_dropout_folder, tmp_path):
    folder = shutil.copytree(no_dropout_folder, tmp_path / "far")
    gpt2 = GPT2LMHeadModel.from_pretrained(folder)
    torch.nn.init.constant_(gpt2.transformer.ln_f.weight, 1000.0)
    gpt2.save_pretrained(folder)
    result = tune(model=str(folder), steps=2)
    assert 710 < result.val_loss_before < 1e5


def test_interrupted_run_is_stopped_and_can_go_on(tune, tmp_path, at_validation):
    def interrupt(lab):
        raise KeyboardInterrupt

    at_validation(interrupt, 2)
    with pytest.raises(KeyboardInterrupt):
        tune(run="cut", steps=6, eval_every=2)
    status = read_status(tmp_path / "runs" / "cut")
    assert (status.state, status.step) == ("stopped", 4)
    assert status.message == "interrupted; resume continues from the last checkpoint"
    assert resume(tmp_path / "runs" / "cut").steps == 6
    assert read_status(tmp_path / "runs" / "cut").state == "finished"


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
        ({}, 12, 2),
        ({"steps": 57}, 57, 6),
        ({"steps": 57, "eval_every": 9}, 57, 9),
        ({"steps": 57, "eval_every": 9, "save_every": 4}, 57, 9),
        ({"epochs": 1, "grad_accum": 3}, 1, 1),
    ],
)
def test_length_of_a_run_follows_from_its_blocks(
    no_dropout_folder, text_folder, tiny_tokenizer, sentences, settings, steps, eval_every
):
    text = tiny_tokenizer.decode(tiny_tokenizer(" ".join(sentences))["input_ids"][: 5 * BLOCK - 1])
    data = text_folder(train=text, validation=text)
    config = TrainConfig(model=str(no_dropout_folder), data=data, block_size=BLOCK, batch_size=2, **settings)
    job = prepare(config, PartialState(cpu=True))
    assert (job.train.input_ids.shape, job.validation.input_ids.shape) == ((5, BLOCK), (5, BLOCK))
    assert (job.config.steps, job.config.eval_every, job.config.epochs) == (steps, eval_every, None)
    assert job.config.save_every == settings.get("save_every", eval_every)


@pytest.mark.parametrize(("context", "block"), [(64, 64), (512, 256)])
def test_block_is_256_tokens_or_the_context_where_that_is_less(
    random_gpt2, tiny_tokenizer, text_folder, sentences, tmp_path, context, block
):
    random_gpt2(n_positions=context).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    data = text_folder(train=" ".join(sentences * 2), validation=" ".join(sentences * 2))
    config = TrainConfig(model=str(tmp_path / "model"), data=data)
    assert prepare(config, PartialState(cpu=True)).config.block_size == block


@pytest.fixture
def long_split(text_folder, tiny_tokenizer, sentences):
    """A validation split of 120 blocks of 16 tokens, and a training split of 8."""
    ids = tiny_tokenizer(" ".join(sentences))["input_ids"] * 40
    return text_folder(
        train=tiny_tokenizer.decode(ids[: 8 * BLOCK - 1]), validation=tiny_tokenizer.decode(ids[: 120 * BLOCK - 1])
    )


def test_validations_score_a_sample_and_the_end_scores_the_whole_split(tune, long_split, monkeypatch):
    monkeypatch.setattr(finetuning, "is_affordable", lambda *args: True)
    result = tune(data=long_split, eval_tokens=5 * BLOCK, eval_every=2)
    sample, whole = result.validation, result.whole_validation
    assert (sample.tokens, sample.split_tokens) == (5 * (BLOCK - 1), whole.tokens)
    assert whole.is_whole
    base = json.loads((result.folder / "config.json").read_text())
    assert base["eval_tokens"] == 5 * BLOCK
    for folder, mine in ((base["model"], whole.before), (result.model_dir, whole.after)):
        assert mine == pytest.approx(mean_loss(block_sums(folder, long_split, "validation")), rel=1e-5)
    assert whole.after != pytest.approx(sample.after, rel=1e-4)
    assert [len(rows) for rows in runs.read_block_losses(result.folder).values()] == [5, 5, 5]
    assert (result.val_loss_before, result.val_loss_after) == (
        pytest.approx(sample.before),
        pytest.approx(sample.after),
    )
    assert read_result(result.folder) == result
    card = (result.model_dir / "README.md").read_text(encoding="utf-8")
    assert card.count(f"{sample.part} |") == card.count(f"{whole.part} |") == 1
    assert read_status(result.folder).message.endswith(f"validation perplexity {whole}")


def test_whole_split_that_takes_too_long_is_left_for_later_and_then_gives_the_same(tune, long_split, monkeypatch):
    monkeypatch.setattr(finetuning, "is_affordable", lambda *args: True)
    at_once = tune(run="at-once", data=long_split, eval_tokens=5 * BLOCK).whole_validation
    monkeypatch.setattr(finetuning, "is_affordable", lambda *args: False)
    result = tune(run="later", data=long_split, eval_tokens=5 * BLOCK)
    assert result.whole_validation is None
    scored = finish_steps(load_scoring(result.folder).steps())
    assert scored.whole_validation.before == at_once.before
    assert scored.whole_validation.after == pytest.approx(at_once.after, rel=1e-6)
    assert read_result(result.folder) == scored


def test_scoring_that_is_broken_off_changes_nothing(tune, long_split, monkeypatch):
    monkeypatch.setattr(finetuning, "is_affordable", lambda *args: False)
    folder = tune(data=long_split, eval_tokens=5 * BLOCK).folder
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    steps = load_scoring(folder).steps()
    next(steps)
    steps.close()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_run_that_has_scored_the_whole_split_has_nothing_left_to_score(finished):
    assert finished.validation.is_whole
    assert finished.whole_validation is None
    with pytest.raises(LabError, match="have scored the whole validation split already"):
        load_scoring(finished.folder)


def test_validation_tokens_past_the_split_are_refused_with_its_size(tune, moon, tiny_tokenizer, tmp_path):
    size = len(text_ids(tiny_tokenizer, moon, "validation"))
    with pytest.raises(LabError, match=rf"eval_tokens {size + 1} is past the validation split, which has {size};"):
        tune(eval_tokens=size + 1)
    assert not (tmp_path / "runs").exists()
    assert tune(eval_tokens="all").validation == tune(eval_tokens=size).validation


@pytest.mark.parametrize(
    ("split_tokens", "speed", "seconds", "affordable"), [(300, 10, 210, True), (300, 10, 190, False)]
)
def test_whole_split_is_affordable_below_a_tenth_of_the_run(split_tokens, speed, seconds, affordable):
    assert is_affordable("full", split_tokens, speed, seconds) is affordable  # 2 × 300 tokens at 3 × 10 tokens/s: 20 s


def test_bf16_trains_float32_weights_to_nearly_the_same_loss(tune):
    settings = {"steps": 12, "learning_rate": 1e-2, "eval_every": 12}
    exact, fast = tune(run="exact", **settings), tune(run="fast", precision="bf16", **settings)
    assert {tensor.dtype for tensor in weights(fast.model_dir).values()} == {torch.float32}
    checkpoint = torch.load(fast.folder / "checkpoints" / "checkpoint-12" / "optimizer.pt", weights_only=True)
    moments = {value.dtype for state in checkpoint["state"].values() for value in state.values()}
    assert moments == {torch.float32}
    assert not same_weights(exact.model_dir, fast.model_dir)
    assert fast.val_loss_before == pytest.approx(exact.val_loss_before, rel=5e-3)
    assert fast.val_loss_after == pytest.approx(exact.val_loss_after, rel=5e-2)
    assert (exact.precision, fast.precision) == ("fp32", "bf16")
    assert "matrix products in bf16" in (fast.model_dir / "README.md").read_text(encoding="utf-8").replace("\n", " ")


def test_bf16_without_units_is_allowed_with_a_warning(tune, monkeypatch):
    monkeypatch.setattr(gpt2lab.model.precision, "has_fast_bf16", lambda device: False)
    with pytest.warns(UserWarning, match="bf16 is slow here: the processor has no bf16 units"):
        assert tune(precision="bf16", steps=1).precision == "bf16"


@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16"), (False, "fp32")])
def test_auto_precision_is_bf16_where_the_processor_has_it(tune, monkeypatch, fast, precision):
    monkeypatch.setattr(gpt2lab.model.precision, "has_fast_bf16", lambda device: fast)
    result = tune(precision="auto", steps=1)
    config = json.loads((result.folder / "config.json").read_text())
    assert (config["precision"], config["machine"]["precision"].split()[0]) == (precision, precision)


@pytest.mark.parametrize("report_to", ["tensorboard", "trackio"])
def test_place_for_metrics_that_is_not_installed_is_refused_before_anything_is_written(
    tune, tmp_path, monkeypatch, report_to
):
    monkeypatch.setattr(preparing.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LabError, match=f"report_to '{report_to}' is not installed; pip install {report_to}"):
        tune(report_to=report_to)
    assert not (tmp_path / "runs").exists()


def test_run_that_would_not_find_room_is_refused_before_anything_is_written(tune, tmp_path, monkeypatch):
    monkeypatch.setattr(
        preparing.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6)
    )
    parameters = 300 * 32 + 64 * 32 + 2 * (12 * 32 * 32 + 13 * 32) + 2 * 32
    needed = 3 * 12 * parameters + 4 * parameters
    assert needed > 10**6
    with pytest.raises(LabError, match=f"needs about {needed / 1e6:,.0f} MB in .*, 1 MB are free; make room, or"):
        tune()
    assert not (tmp_path / "runs").exists()


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


def test_wish_for_another_rate_of_checkpoints_is_granted(tune):
    result = tune(steps=5, save_every=3, eval_every=5)
    assert {path.name for path in (result.folder / "checkpoints").iterdir()} == {"checkpoint-3", "checkpoint-5"}


def numbers_of_additions(adapter):
    """The low-rank additions of a run, as safetensors holds them: name → array."""
    return {
        name: tensor.double()
        for name, tensor in safetensors.torch.load_file(adapter / "adapter_model.safetensors").items()
    }


@pytest.fixture(scope="module")
def additions(tiny_folder, moon, tmp_path_factory):
    """A LoRA run of rank 3 and 8 steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT2LAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        return finetune(
            model=str(tiny_folder),
            data=moon,
            method="lora",
            lora_rank=3,
            block_size=BLOCK,
            batch_size=4,
            steps=8,
            eval_every=4,
            learning_rate=3e-2,
            precision="fp32",
            runs_dir=tmp_path_factory.mktemp("runs"),
        )


def test_low_rank_additions_learn_and_the_saved_model_is_the_one_that_was_measured(additions, tiny_folder, moon):
    assert additions.val_loss_before == pytest.approx(mean_loss(block_sums(tiny_folder, moon, "validation")), rel=1e-6)
    loss = mean_loss(block_sums(additions.model_dir, moon, "validation"))
    assert additions.val_loss_after == pytest.approx(loss, rel=1e-5)
    assert additions.val_loss_after < additions.val_loss_before - 0.05


def test_saved_model_of_low_rank_additions_is_the_base_and_their_product_in_one(additions, tiny_folder):
    base, tuned = weights(tiny_folder), weights(additions.model_dir)
    found = numbers_of_additions(additions.folder / "adapter")
    assert set(base) == set(tuned)
    changed = [name for name in base if not torch.equal(base[name], tuned[name])]
    assert sorted(changed) == [f"transformer.h.{layer}.attn.c_attn.weight" for layer in range(2)]
    for name in changed:
        [down] = [value for key, value in found.items() if f"{name.removesuffix('.weight')}.lora_A" in key]  # (r, D)
        [up] = [value for key, value in found.items() if f"{name.removesuffix('.weight')}.lora_B" in key]  # (3D, r)
        assert (down.shape, up.shape) == ((3, 32), (96, 3))
        expected = base[name].double() + 2 * (up @ down).T  # alpha is twice the rank
        torch.testing.assert_close(tuned[name].double(), expected, rtol=0, atol=1e-6)


def test_saved_model_answers_as_the_base_with_the_additions_that_peft_loads(additions, tiny_folder, tiny_lab):
    ids = tiny_lab.encode("The moon is a small world")[None]
    base = GPT2LMHeadModel.from_pretrained(tiny_folder).eval()
    plain = base(ids).logits.detach()
    with without_peft_warning():
        with_additions = peft.PeftModel.from_pretrained(base, additions.folder / "adapter").eval()
    merged = GPT2LMHeadModel.from_pretrained(additions.model_dir).eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, with_additions(ids).logits, rtol=0, atol=1e-4)
        assert (merged(ids).logits - plain).abs().max() > 0.1


def test_checkpoints_of_low_rank_additions_do_not_hold_the_base(additions):
    for checkpoint in (additions.folder / "checkpoints").iterdir():
        assert not (checkpoint / "model.safetensors").exists()
        assert (checkpoint / "adapter_model.safetensors").stat().st_size < 20_000


def test_training_from_scratch_begins_with_random_weights_that_follow_from_the_seed_alone(
    tune, random_gpt2, tiny_tokenizer, tmp_path
):
    models = []
    for seed in (0, 1):
        random_gpt2(seed=seed, initializer_range=0.02).save_pretrained(tmp_path / f"model-{seed}")
        tiny_tokenizer.save_pretrained(tmp_path / f"model-{seed}")
        models.append(str(tmp_path / f"model-{seed}"))
    settings = {"method": "scratch", "steps": 2, "eval_every": 1}
    first, again = tune(model=models[0], **settings), tune(model=models[0], **settings)
    other_base, other_seed = tune(model=models[1], **settings), tune(model=models[0], seed=1, **settings)
    assert same_weights(first.model_dir, again.model_dir)
    assert same_weights(first.model_dir, other_base.model_dir)
    assert not same_weights(first.model_dir, other_seed.model_dir)
    assert first.val_loss_before == other_base.val_loss_before != other_seed.val_loss_before
    assert first.val_loss_before == pytest.approx(log(300), abs=0.1)  # as good as guessing among 300 tokens


def test_training_from_scratch_needs_a_configuration_and_a_tokenizer_alone(tune, tiny_folder, tiny_tokenizer, tmp_path):
    shape = GPT2Config.from_pretrained(tiny_folder)
    shape.n_layer = 3
    shape.save_pretrained(tmp_path / "shape")
    tiny_tokenizer.save_pretrained(tmp_path / "shape")
    result = tune(model=str(tmp_path / "shape"), method="scratch", steps=1)
    assert load_model(str(result.model_dir)).model.config.n_layer == 3
    with pytest.raises(LabError, match=r"shape has no model\.safetensors"):
        tune(model=str(tmp_path / "shape"), steps=1)


def test_random_weights_spread_as_the_configuration_says(tune, random_gpt2, tiny_tokenizer, tmp_path):
    random_gpt2(seed=1, initializer_range=0.02).save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    base = weights(tmp_path / "model")
    result = tune(model=str(tmp_path / "model"), method="scratch", steps=1, learning_rate=1e-9)
    made = weights(result.model_dir)
    assert not torch.allclose(base["transformer.wte.weight"], made["transformer.wte.weight"], atol=1e-3)
    for name, deviation in (("wte", 0.02), ("wpe", 0.02), ("h.0.attn.c_attn", 0.02), ("h.1.mlp.c_proj", 0.01)):
        spread = float(
            made[f"transformer.{name}.weight"].std()
        )  # c_proj: 0.02 / sqrt(2 × layers), as GPT-2's paper has it
        assert spread == pytest.approx(deviation, rel=0.1)
    assert torch.equal(made["lm_head.weight"], made["transformer.wte.weight"])


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_finished_run_is_not_resumed_and_stays_as_it_was(tune):
    folder = tune(steps=1).folder
    before = files_of(folder)
    with pytest.raises(LabError, match=f"run '{folder.name}' is finished; start a new run to train on"):
        resume(folder)
    assert files_of(folder) == before


def test_run_whose_text_has_changed_is_not_resumed(tune, text_folder, sentences, tmp_path, at_validation):
    data = text_folder(train=" ".join(sentences[:4]), validation=" ".join(sentences[4:]))
    at_validation(lambda lab: runs.request_action(tmp_path / "runs" / "mine", "pause"), 1)
    folder = tune(run="mine", data=data, steps=9, eval_every=2).folder
    metrics = (folder / "metrics.jsonl").read_bytes()
    text = (Path(data) / "train.txt").read_text()
    (Path(data) / "train.txt").write_text(text.replace("small", "great"))
    with pytest.raises(LabError, match="the text of run 'mine' has changed since it began; start a new run"):
        resume(folder)
    assert (folder / "metrics.jsonl").read_bytes() == metrics
    assert not read_status(folder).alive
    (Path(data) / "train.txt").write_text(text)
    assert resume(folder).steps == 9


def test_run_whose_validation_text_has_changed_is_not_resumed_as_if_nothing_had(
    tune, text_folder, sentences, tmp_path, at_validation
):
    data = text_folder(train=" ".join(sentences[:4]), validation=" ".join(sentences[4:]))
    at_validation(lambda lab: runs.request_action(tmp_path / "runs" / "mine", "pause"), 1)
    folder = tune(run="mine", data=data, steps=9, eval_every=2).folder
    (Path(data) / "validation.txt").write_text(" ".join(sentences[:3]))
    with pytest.raises(LabError, match="has changed since it began"):
        resume(folder)
    assert not read_status(folder).alive


def test_run_whose_base_has_changed_is_not_resumed_and_stays_as_it_was(
    tune, random_gpt2, tiny_tokenizer, tmp_path, at_validation
):
    base = tmp_path / "base"
    random_gpt2().save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    kept = (base / "model.safetensors").read_bytes()
    at_validation(lambda lab: runs.request_action(tmp_path / "runs" / "mine", "pause"), 1)
    folder = tune(run="mine", model=str(base), method="lora", steps=9, eval_every=2).folder
    before = {path: content for path, content in files_of(folder).items() if path.name != "control.json"}
    random_gpt2(seed=1).save_pretrained(base)
    with pytest.raises(LabError, match=f"the model '{base}' of run 'mine' has changed since it began; start a new run"):
        resume(folder)
    assert files_of(folder) == before
    (base / "model.safetensors").write_bytes(kept)
    assert resume(folder).steps == 9


def test_run_of_several_processes_is_not_resumed_by_another_number_of_them(paused, tmp_path):
    folder = shutil.copytree(paused[1], tmp_path / "run")
    config = runs.read_config(folder)
    assert config["processes"] == 1
    runs.write_json(folder / "config.json", config | {"processes": 2})
    with pytest.raises(LabError, match="the number of processes of run 'run' has changed since it began"):
        resume(folder)
    assert read_status(folder).state == "stopped"


def test_checkpoint_without_the_random_numbers_of_every_process_is_passed_over(paused, tmp_path):
    folder = shutil.copytree(paused[1], tmp_path / "run")
    for checkpoint in (folder / "checkpoints").iterdir():
        (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
        if checkpoint.name == "checkpoint-9":
            shutil.copy(checkpoint / "rng_state_0.pth", checkpoint / "rng_state_1.pth")
    assert roll_back(folder, processes=2) == folder / "checkpoints" / "checkpoint-9"


def test_run_that_would_not_find_room_is_not_resumed_and_stays_as_it_was(paused, tmp_path, monkeypatch):
    folder = shutil.copytree(paused[1], tmp_path / "run")
    before = files_of(folder)
    full = shutil._ntuple_diskusage(10**9, 10**9 - 10**3, 10**3)
    with monkeypatch.context() as patch:
        patch.setattr(preparing.shutil, "disk_usage", lambda path: full)
        with pytest.raises(LabError, match="make room"):
            resume(folder)
    assert files_of(folder) == before
    assert resume(folder).steps == 12


def test_queued_run_that_is_refused_leaves_nothing(tune, tmp_path):
    with pytest.raises(LabError, match="past the context"):
        tune(queue=True, block_size=4096)
    assert list((tmp_path / "runs").iterdir()) == []
    assert tune(queue=True, steps=1).steps == 1


EDITED = {
    "no JSON": ("model: builtin", "has no readable config.json"),
    "a list": ([1, 2], "is not a JSON object"),
    "no model": ({"data": "sample"}, "names no model and data; start a new run"),
    "steps in words": ({"model": "M", "data": "D", "steps": "many"}, "steps 'many' is out of range"),
    "rate in words": ({"model": "M", "data": "D", "learning_rate": "fast"}, "learning_rate 'fast' is out of range"),
    "unknown method": (
        {"model": "M", "data": "D", "method": ["full"]},
        "method .* is unknown; use full, lora, scratch",
    ),
    "model a number": ({"model": 5, "data": "D"}, "no model"),
    "data null": ({"model": "M", "data": None}, "no text"),
    "prompt a number": ({"model": "M", "data": "D", "prompt": 5}, "give a string"),
}


@pytest.mark.parametrize("edit", EDITED)
def test_run_whose_config_was_edited_to_what_it_cannot_be_is_refused_in_one_line(
    no_dropout_folder, moon, tmp_path, edit
):
    content, message = EDITED[edit]
    folder = runs.new_run(tmp_path, {"model": str(no_dropout_folder), "data": moon, "block_size": BLOCK}, "edited")
    if isinstance(content, dict):
        names = {"M": str(no_dropout_folder), "D": moon}
        content = {key: names.get(value, value) if isinstance(value, str) else value for key, value in content.items()}
        content |= {"block_size": BLOCK}
    (folder / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(LabError, match=message) as caught:
        resume(folder)
    assert "\n" not in str(caught.value)
    [listed] = runs.list_runs(tmp_path)
    assert (listed.id, listed.state) == ("edited", "failed")


def test_run_whose_status_was_cut_short_is_listed_as_failed_and_continues(tune, tmp_path, at_validation):
    at_validation(lambda lab: runs.request_action(tmp_path / "runs" / "mine", "pause"), 1)
    folder = tune(run="mine", steps=9, eval_every=2).folder
    status = folder / "status.json"
    status.write_bytes(status.read_bytes()[:40])
    assert [run.state for run in runs.list_runs(folder.parent)] == ["failed"]
    assert resume(folder).steps == 9
    assert [run.state for run in runs.list_runs(folder.parent)] == ["finished"]


@pytest.fixture(scope="module")
def paused(tiny_folder, moon, tmp_path_factory):
    """A run of 12 steps paused after 9, with checkpoints at 6 and 9, and the same run uninterrupted."""
    base = tmp_path_factory.mktemp("paused")
    settings = {"model": str(tiny_folder), "data": moon, "block_size": BLOCK, "batch_size": 4, "prompt": "the moon"}
    settings |= {"steps": 12, "eval_every": 3, "patience": 0, "learning_rate": 1e-2, "runs_dir": base}
    write, written = finetuning.sample_text, []

    def pause_at_the_third(lab, config):
        written.append(1)
        if len(written) == 4:
            runs.request_action(base / "paused", "pause")
        return write(lab, config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT2LAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        whole = finetune(**settings, run="whole")
        patch.setattr(watch, "CONTROL_SECONDS", -1.0)
        patch.setattr(finetuning, "sample_text", pause_at_the_third)
        assert finetune(**settings, run="paused").steps == 10
    assert {path.name for path in (base / "paused" / "checkpoints").iterdir()} == {"checkpoint-9", "checkpoint-10"}
    return whole.folder, base / "paused"


def measured(folder):
    timed = dict.fromkeys(("seconds", "tokens_per_second", "memory", "cpu", "gpu"), 0)
    return [line | timed for line in read_lines(folder / "metrics.jsonl")], read_lines(folder / "samples.jsonl")


def assert_continues_to_the_same_end(folder, whole):
    assert resume(folder).steps == 12
    assert measured(folder) == measured(whole)
    assert (folder / "model" / "model.safetensors").read_bytes() == (whole / "model" / "model.safetensors").read_bytes()


def test_paused_run_continues_to_the_bits_of_one_never_paused(paused, tmp_path):
    whole, folder = paused
    assert_continues_to_the_same_end(shutil.copytree(folder, tmp_path / "run"), whole)


@pytest.mark.parametrize("file", ["metrics.jsonl", "samples.jsonl"])
def test_run_with_a_torn_last_line_continues_to_the_same_numbers(paused, tmp_path, file):
    whole, folder = paused
    folder = shutil.copytree(folder, tmp_path / "run")
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content + content.splitlines()[-1][:23])
    assert_continues_to_the_same_end(folder, whole)


@pytest.mark.parametrize("file", ["metrics.jsonl", "samples.jsonl", "result.json", "log.txt", "control.json"])
def test_run_without_one_of_its_notes_continues_all_the_same(paused, tmp_path, file):
    whole, folder = paused
    folder = shutil.copytree(folder, tmp_path / "run")
    (folder / file).unlink(missing_ok=True)
    result = resume(folder)
    assert (result.steps, result.stopped) == (12, False)
    assert (folder / "model" / "model.safetensors").read_bytes() == (whole / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "file", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
@pytest.mark.parametrize("damage", ["cut short", "missing"])
def test_damaged_checkpoint_is_passed_over_for_the_one_before(paused, tmp_path, file, damage):
    whole, folder = paused
    folder = shutil.copytree(folder, tmp_path / "run")
    path = folder / "checkpoints" / "checkpoint-10" / file
    content = path.read_bytes()
    path.unlink()
    if damage == "cut short":
        path.write_bytes(content[: len(content) // 2])
    assert_continues_to_the_same_end(folder, whole)


def test_run_without_a_checkpoint_that_can_be_read_begins_again(paused, tmp_path):
    whole, folder = paused
    folder = shutil.copytree(folder, tmp_path / "run")
    for weights_file in (folder / "checkpoints").glob("*/model.safetensors"):
        weights_file.write_bytes(weights_file.read_bytes()[:1000])
    assert_continues_to_the_same_end(folder, whole)

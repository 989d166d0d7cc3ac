from types import SimpleNamespace

import pytest
import torch

from gpt2lab.training import runs
from gpt2lab.training import watch as watch_module
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.runs import Metric, read_lines, read_metrics, read_status
from gpt2lab.training.watch import Interrupted, LossMeter, RunWatch, best_step, out_of_patience

CONFIG = TrainConfig(steps=10, save_every=4, patience=2, prompt="The moon")


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A function: changes → a watch over the run in `tmp_path` that looks for wishes at every turn."""
    monkeypatch.setattr(watch_module, "CONTROL_SECONDS", -1.0)

    def watch(**changes):
        settings = {"sample": lambda: " rose é 🌙\n", "is_finite": lambda: True} | changes
        return RunWatch(tmp_path, CONFIG, LossMeter(), **settings)

    return watch


@pytest.fixture
def watch(make):
    return make()


def turn(step=0, resumed=None):
    """What transformers hands to a callback: arguments, state, control."""
    kept = {} if resumed is None else {"RunWatch": {"attributes": resumed}}
    state = SimpleNamespace(global_step=step, best_model_checkpoint=None, stateful_callbacks=kept)
    control = SimpleNamespace(should_training_stop=False, should_save=False)
    return SimpleNamespace(output_dir="checkpoints"), state, control


def validate(watch, step, loss):
    """The watch's answer to a validation loss: (should save, should end)."""
    watch.step = step
    arguments, state, control = turn(step)
    watch.on_evaluate(arguments, state, control, {"eval_loss": loss})
    return control.should_save, control.should_training_stop


def test_run_is_under_way_from_the_start_with_nothing_known_of_its_speed(watch, tmp_path):
    watch.write("running")
    status = read_status(tmp_path)
    assert (status.state, status.step, status.total_steps) == ("running", 0, 10)
    assert (status.tokens_per_second, status.eta_seconds, status.best_step, status.message) == (None, None, None, "")


def test_speed_and_time_left_follow_from_the_steps_done(watch, tmp_path):
    watch.meter.add(torch.tensor(3.0), torch.tensor(800))
    watch.step, watch.training_seconds = 4, 2.0
    watch.started -= 6.0
    watch.write("running")
    status = read_status(tmp_path)
    assert status.tokens_per_second == 400.0
    assert status.eta_seconds == pytest.approx(9.0, rel=0.1)  # validations take their time too
    watch.close("stopped", "enough")
    status = read_status(tmp_path)
    assert (status.tokens_per_second, status.eta_seconds) == (400.0, None)
    assert (status.state, status.step, status.message) == ("stopped", 4, "enough")
    assert status.heartbeat >= status.pid_started > 0


def test_of_several_processes_only_the_first_writes(make, tmp_path):
    watch = make(writes=False)
    watch.write("running")
    watch.record("train", 3.5, 1e-3)
    validate(watch, 1, 3.5)
    watch.close("finished")
    assert [*tmp_path.iterdir()] == []
    assert watch.validation == {1: 3.5}


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_loss_that_is_no_number_is_refused_with_its_step_and_not_written(watch, tmp_path, split, loss):
    watch.record("validation", 3.5, 0.0)
    watch.step = 6
    with pytest.raises(RuntimeError, match=rf"the {split} loss is {loss} at step 6; lower the learning rate"):
        watch.record(split, loss, 1e-3)
    assert [metric.loss for metric in read_metrics(tmp_path)] == [3.5]


def test_checkpoint_with_a_weight_that_is_no_number_is_refused_with_its_step(make):
    watch = make(is_finite=lambda: False)
    watch.validation[0] = 3.5
    watch.meter.add(torch.tensor(3.0), torch.tensor(8))
    for step in (1, 2, 3):
        watch.on_step_begin(*turn(step - 1))
        watch.on_step_end(*turn(step))
    watch.on_step_begin(*turn(3))
    with pytest.raises(RuntimeError, match="a weight is not a finite number at step 4; lower the learning rate"):
        watch.on_step_end(*turn(4))


def test_metric_carries_the_learning_rate_last_used(watch, tmp_path):
    watch.step = 3
    watch.meter.add(torch.tensor(3.0), torch.tensor(300))
    watch.on_log(None, None, None, {"loss": 2.5, "learning_rate": 1e-3})
    validate(watch, 3, 2.25)
    found = [(m.step, m.tokens, m.split, m.loss, m.lr) for m in read_metrics(tmp_path)]
    assert found == [(3, 300, "train", 2.5, 1e-3), (3, 300, "validation", 2.25, 1e-3)]
    assert watch.validation == {3: 2.25}


def test_log_without_a_loss_is_no_metric(watch, tmp_path):
    watch.on_log(None, None, None, {"train_runtime": 2.5})
    assert read_metrics(tmp_path) == ()


def test_text_of_every_validation_is_kept_with_its_step_and_prompt(make, tmp_path):
    texts = iter([" rose é 🌙\n", " set"])
    watch = make(sample=lambda: next(texts))
    validate(watch, 0, 3.5)
    validate(watch, 7, 3.25)
    assert read_lines(tmp_path / "samples.jsonl") == [
        {"step": 0, "prompt": "The moon", "text": " rose é 🌙\n"},
        {"step": 7, "prompt": "The moon", "text": " set"},
    ]


def test_best_validation_is_saved_and_spared_and_worse_ones_are_not(watch):
    watch.step = 2
    arguments, state, control = turn(2)
    watch.on_evaluate(arguments, state, control, {"eval_loss": 3.0})
    assert (control.should_save, state.best_model_checkpoint) == (True, "checkpoints/checkpoint-2")
    watch.step = 4
    arguments, state, control = turn(4)
    state.best_model_checkpoint = "checkpoints/checkpoint-2"
    watch.on_evaluate(arguments, state, control, {"eval_loss": 3.0})
    assert (control.should_save, state.best_model_checkpoint) == (False, "checkpoints/checkpoint-2")
    assert validate(watch, 6, 2.5) == (True, False)


def test_run_ends_after_as_many_validations_without_a_better_one_as_it_has_patience(watch):
    answers = [validate(watch, step, loss) for step, loss in enumerate([3.0, 2.5, 2.75, 2.4, 2.4, 2.6])]
    assert [ends for _, ends in answers] == [False, False, False, False, False, True]


@pytest.mark.parametrize(
    ("validation", "best"),
    [
        ({}, None),
        ({0: 1.0}, None),
        ({0: 1.0, 4: 2.0}, 4),
        ({0: 9.0, 4: 2.0, 8: 1.5, 12: 1.5, 16: 1.75}, 8),
    ],
)
def test_best_step_is_the_first_trained_one_with_the_lowest_loss(validation, best):
    assert best_step(validation) == best


@pytest.mark.parametrize(
    ("losses", "patience", "ends"),
    [
        ([], 1, False),
        ([5.0], 1, False),
        ([5.0, 6.0], 1, False),
        ([5.0, 6.0, 7.0], 1, True),
        ([5.0, 6.0, 7.0], 2, False),
        ([5.0, 4.0, 4.0, 4.0], 2, True),
        ([5.0, 4.0, 4.5, 4.5, 3.9], 2, False),
        ([5.0, 4.0, 4.5, 4.5, 4.5], 0, False),
    ],
)
def test_patience_is_counted_in_validations_since_the_best(losses, patience, ends):
    assert out_of_patience(dict(enumerate(losses)), patience) is ends


@pytest.mark.parametrize("want", ["stop", "pause"])
def test_wish_ends_the_run_with_a_checkpoint_at_the_end_of_a_step(watch, tmp_path, want):
    watch.validation[0] = 3.5
    watch.meter.add(torch.tensor(3.0), torch.tensor(8))
    watch.on_step_begin(*turn(0))
    runs.request_action(tmp_path, want)
    arguments, state, control = turn(1)
    watch.on_step_end(arguments, state, control)
    assert (control.should_training_stop, control.should_save, watch.action) == (True, True, want)


def test_wish_amid_a_step_gives_it_up_and_puts_its_random_numbers_and_its_loss_back(watch, tmp_path):
    watch.meter.add(torch.tensor(3.0), torch.tensor(8))
    watch.step, watch.training_seconds = 5, 1.0
    watch.on_step_begin(*turn(5))
    before = torch.get_rng_state()
    torch.rand(3)
    watch.meter.add(torch.tensor(2.0), torch.tensor(8))
    runs.request_action(tmp_path, "pause")
    arguments, state, control = turn(5)
    watch.on_substep_end(arguments, state, control)
    assert (control.should_training_stop, control.should_save) == (True, True)
    assert torch.equal(torch.get_rng_state(), before)
    assert (float(watch.meter.loss), watch.tokens) == (3.0, 8)


@pytest.mark.parametrize(("step", "want"), [(0, "stop"), (0, "pause"), (3, "pause")])
def test_wish_amid_a_validation_breaks_it_off(watch, tmp_path, step, want):
    watch.step = step
    watch.on_prediction_step(*turn())
    runs.request_action(tmp_path, want)
    with pytest.raises(Interrupted):
        watch.on_prediction_step(*turn())


def test_wish_to_stop_waits_for_the_validation_it_comes_in_and_one_to_pause_does_not_wait_for_that(watch, tmp_path):
    watch.step = 3
    runs.request_action(tmp_path, "stop")
    watch.on_prediction_step(*turn())
    assert watch.action == "stop"
    watch.finishing = True  # the validation of what is kept
    watch.on_prediction_step(*turn())
    runs.request_action(tmp_path, "pause")
    with pytest.raises(Interrupted):
        watch.on_prediction_step(*turn())


def test_wish_that_comes_once_all_is_trained_comes_too_late(watch, tmp_path):
    watch.step, watch.finishing = 3, True
    runs.request_action(tmp_path, "pause")
    watch.on_prediction_step(*turn())
    assert watch.action is None


def test_status_shows_how_far_a_validation_is(watch, tmp_path, monkeypatch):
    monkeypatch.setattr(watch_module, "STATUS_SECONDS", -1)
    for _ in range(3):
        watch.on_prediction_step(*turn(), eval_dataloader=range(12))
    assert read_status(tmp_path).message == "validating, 25%"


def test_status_says_at_once_that_a_validation_is_over(make, tmp_path, monkeypatch):
    seen = []
    watch = make(sample=lambda: seen.append(read_status(tmp_path)) or "a sample")
    watch.on_prediction_step(*turn(), eval_dataloader=range(1))
    assert read_status(tmp_path).message == "validating, 100%"
    validate(watch, 0, 2.5)
    assert [(status.message, status.loss_before) for status in seen] == [("", 2.5)]


def test_wish_is_that_of_the_process_that_writes(make, tmp_path):
    agreed = []
    watch = make(writes=False, broadcast=lambda action: agreed.append(action) or "pause")
    runs.request_action(tmp_path, "stop")
    assert watch.poll_request() == "pause"
    assert agreed == [None]


def test_state_of_a_watch_continues_in_another(make):
    watch = make()
    watch.training_seconds, watch.seconds_before = 2.5, 100.0
    watch.validation = {0: 3.5, 4: 3.0}
    kept = watch.state()["attributes"]
    other = make(writes=False)
    other.on_train_begin(*turn(5, resumed=kept))
    assert (other.step, other.training_seconds, other.validation) == (5, 2.5, {0: 3.5, 4: 3.0})
    assert 100.0 <= other.seconds < 110.0


def test_meter_means_over_the_steps_since_it_was_read():
    meter = LossMeter()
    for loss in (3.0, 2.0, 4.0):
        meter.add(torch.tensor(loss), torch.tensor(5))
    assert meter.take(3) == 3.0
    meter.add(torch.tensor(2.5), torch.tensor(5))
    meter.add(torch.tensor(1.5), torch.tensor(5))
    assert meter.take(5) == 2.0
    assert int(meter.tokens) == 25


def test_state_of_a_meter_continues_in_another_to_the_last_bit():
    meter, other = LossMeter(), LossMeter()
    for loss in (3.1, 2.2):
        meter.add(torch.tensor(loss), torch.tensor(7))
    state = SimpleNamespace(stateful_callbacks={"LossMeter": meter.state()})
    other.on_train_begin(None, state, None)
    for one in (meter, other):
        one.add(torch.tensor(0.3), torch.tensor(7))
    assert torch.equal(meter.loss, other.loss)
    assert (int(other.tokens), meter.take(3)) == (21, other.take(3))


def test_metric_of_a_run_is_what_readers_know(watch, tmp_path):
    watch.record("train", 2.5, 1e-3)
    [metric] = read_metrics(tmp_path)
    assert metric == Metric(0, 0, "train", 2.5, 1e-3, metric.seconds)
    assert 0 <= metric.seconds < 10

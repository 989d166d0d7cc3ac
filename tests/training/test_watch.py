from types import SimpleNamespace

import pytest

from gpt2lab.training.config import TrainConfig
from gpt2lab.training.runs import read_lines, read_metrics, read_status
from gpt2lab.training.watch import RunWatch


@pytest.fixture
def watch(tmp_path):
    return RunWatch(tmp_path, TrainConfig(steps=10, prompt="The moon"))


def test_run_is_under_way_from_the_start_with_nothing_known_of_its_speed(watch, tmp_path):
    status = read_status(tmp_path)
    assert (status.state, status.step, status.total_steps) == ("running", 0, 10)
    assert (status.tokens_per_second, status.eta_seconds, status.message) == (None, None, "")


def test_speed_and_time_left_follow_from_the_steps_done(watch, tmp_path):
    watch.step, watch.tokens, watch.training_seconds = 4, 800, 2.0
    watch.write("stopped", message="enough")
    status = read_status(tmp_path)
    assert (status.tokens_per_second, status.eta_seconds) == (400.0, 3.0)
    assert (status.state, status.step, status.message) == ("stopped", 4, "enough")
    assert status.heartbeat >= status.pid_started > 0


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_loss_that_is_no_number_is_refused_with_its_step_and_not_written(watch, tmp_path, split, loss):
    watch.record("validation", 3.5, 0.0)
    watch.step = 6
    with pytest.raises(RuntimeError, match=rf"the {split} loss is {loss} at step 6; lower the learning rate"):
        watch.record(split, loss, 1e-3)
    assert [metric.loss for metric in read_metrics(tmp_path)] == [3.5]


def test_metric_carries_the_learning_rate_last_used(watch, tmp_path):
    watch.step, watch.tokens = 3, 300
    watch.on_log(None, None, None, {"loss": 2.5, "learning_rate": 1e-3})
    watch.on_evaluate(None, SimpleNamespace(global_step=3), None, {"eval_loss": 2.25})
    found = [(m.step, m.tokens, m.split, m.loss, m.lr) for m in read_metrics(tmp_path)]
    assert found == [(3, 300, "train", 2.5, 1e-3), (3, 300, "validation", 2.25, 1e-3)]
    assert watch.evaluated_at == 3


def test_log_without_a_loss_is_no_metric(watch, tmp_path):
    watch.on_log(None, None, None, {"train_runtime": 2.5})
    assert read_metrics(tmp_path) == ()


def test_texts_are_kept_with_their_step_and_prompt(watch, tmp_path):
    watch.sample(0, " rose é 🌙\n")
    watch.sample(7, " set")
    assert read_lines(tmp_path / "samples.jsonl") == [
        {"step": 0, "prompt": "The moon", "text": " rose é 🌙\n"},
        {"step": 7, "prompt": "The moon", "text": " set"},
    ]

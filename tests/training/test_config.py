import dataclasses
import re

import numpy as np
import pytest

from gpt2lab.errors import LabError
from gpt2lab.training.config import TrainConfig, parse_eval_tokens

NAN, INF = float("nan"), float("inf")
BAD = {
    "steps": [0, -1, 1.5, 2.0, True, "3", 10**7 + 1],
    "epochs": [0, 0.0, -1, NAN, INF, -INF, True, "1", 10_001],
    "block_size": [0, 1, -16, 16.0, True, "16", 10**6 + 1],
    "batch_size": [0, -1, 1.5, True, "8", 4097],
    "grad_accum": [0, -1, 1.5, True, 4097],
    "learning_rate": [0, 0.0, -1e-3, 2, 1.01, NAN, INF, True, "1e-3"],
    "warmup": [1, 1.0, -0.1, NAN, True, "0.1"],
    "weight_decay": [-0.01, 10.5, NAN, INF, True],
    "max_grad_norm": [-1, -1e-9, NAN, INF, 1e7, True],
    "seed": [-1, 2**32, 0.5, True, "0"],
    "eval_every": [0, -1, 1.5, True],
    "eval_tokens": [0, -1, 1.5, True, 10**9 + 1],
    "save_every": [0, -1, 1.5, True, 10**7 + 1],
    "patience": [-1, 0.5, True, 10**6 + 1],
    "lora_rank": [0, -8, 1.5, True, 1025],
}
GOOD = {
    "steps": [1, 10**7, np.int64(3)],
    "epochs": [1e-9, 0.5, 3, 10_000],
    "block_size": [2, 10**6],
    "batch_size": [1, 4096],
    "grad_accum": [1, 4096],
    "learning_rate": [1e-12, 1],
    "warmup": [0, 0.0, 0.99],
    "weight_decay": [0, 10],
    "max_grad_norm": [0, 1e-9, 1e6],
    "seed": [0, 2**32 - 1],
    "eval_every": [1, 10**7],
    "eval_tokens": [1, 10**9, "all"],
    "save_every": [1, 10**7],
    "patience": [0, 10**6],
    "lora_rank": [1, 1024],
    "method": ["full", "lora", "scratch"],
    "precision": ["auto", "fp32", "bf16"],
    "report_to": ["none", "tensorboard", "trackio"],
    "gradient_checkpointing": [False, True],
    "compile": [False, True],
}
CHOICES = {
    "method": "full, lora, scratch",
    "precision": "auto, fp32, bf16",
    "report_to": "none, tensorboard, trackio",
}


def cases(table):
    return [(field, value) for field, values in table.items() for value in values]


@pytest.mark.parametrize(("field", "value"), cases(BAD))
def test_bad_value_is_refused_by_field_and_value(field, value):
    with pytest.raises(
        LabError, match=rf"^{field} ({re.escape(repr(value))} is out of range|0 trains nothing);"
    ) as caught:
        TrainConfig(**{field: value})
    assert "use a " in str(caught.value)


@pytest.mark.parametrize(("field", "value"), cases(GOOD))
def test_value_at_a_limit_is_taken_as_given(field, value):
    assert getattr(TrainConfig(**{field: value}), field) == value


@pytest.mark.parametrize("value", ["", "FULL", "all", None, True, 0, ["full"]])
@pytest.mark.parametrize("field", CHOICES)
def test_unknown_choice_is_refused_with_those_that_there_are(field, value):
    with pytest.raises(LabError) as caught:
        TrainConfig(**{field: value})
    assert str(caught.value) == f"{field} {value!r} is unknown; use {CHOICES[field]}"


@pytest.mark.parametrize("value", [None, 0, 1, "yes", "true"])
@pytest.mark.parametrize("field", ["gradient_checkpointing", "compile"])
def test_switch_is_on_or_off_and_nothing_else(field, value):
    with pytest.raises(LabError, match=rf"^{field} {re.escape(repr(value))} is neither true nor false$"):
        TrainConfig(**{field: value})


@pytest.mark.parametrize(
    "name",
    [
        "warmup",
        "weight_decay",
        "max_grad_norm",
        "seed",
        "patience",
        "lora_rank",
    ],
)
def test_value_without_which_there_is_no_run_cannot_be_none(name):
    with pytest.raises(LabError, match=name):
        TrainConfig(**{name: None})


def test_steps_and_epochs_together_are_refused_with_both_values():
    with pytest.raises(LabError, match=r"steps 7 and epochs 2\.5 are both given; give one of them"):
        TrainConfig(steps=7, epochs=2.5)


def test_settings_cannot_be_changed_once_checked():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().steps = 0


def test_a_changed_copy_is_checked_again():
    with pytest.raises(LabError, match="batch_size 0"):
        dataclasses.replace(TrainConfig(), batch_size=0)


def test_defaults_choose_model_data_and_length_later():
    config = TrainConfig()
    assert (config.model, config.data) == ("auto", "auto")
    assert (config.steps, config.epochs, config.block_size, config.prompt) == (None,) * 4
    assert (config.eval_every, config.save_every) == (None, None)


def test_defaults_train_all_weights_and_end_where_validation_gets_no_better():
    config = TrainConfig()
    assert (config.method, config.precision, config.report_to) == ("full", "auto", "none")
    assert config.patience > 0
    assert not config.gradient_checkpointing
    assert not config.compile


@pytest.mark.parametrize(
    ("typed", "value"),
    [("2048", 2048), ("2,048", 2048), (" all ", "all"), ("", None), (None, None), ("0", 0), ("-3", -3)],
)
def test_validation_tokens_are_read_as_typed(typed, value):
    assert parse_eval_tokens(typed) == value


@pytest.mark.parametrize("typed", ["half", "1e3", "9" * 5000, "-", "٣x"])
def test_validation_tokens_that_are_neither_a_number_nor_all_are_refused(typed):
    with pytest.raises(LabError, match=r"eval_tokens .* is unknown; use a whole number or all"):
        TrainConfig(eval_tokens=parse_eval_tokens(typed))

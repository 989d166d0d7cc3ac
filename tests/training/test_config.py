import dataclasses
import re

import numpy as np
import pytest

from gpt2lab.errors import LabError
from gpt2lab.training.config import TrainConfig

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
    "max_grad_norm": [0, -1, NAN, INF, 1e7, True],
    "seed": [-1, 2**32, 0.5, True, "0"],
    "eval_every": [0, -1, 1.5, True],
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
    "max_grad_norm": [1e-9, 1e6],
    "seed": [0, 2**32 - 1],
    "eval_every": [1, 10**7],
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


@pytest.mark.parametrize("name", ["batch_size", "grad_accum", "learning_rate", "seed"])
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
    assert (config.steps, config.epochs, config.block_size, config.eval_every, config.prompt) == (None,) * 5

import json

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2lab.errors import LabError
from gpt2lab.model.lab import load_model
from gpt2lab.training.config import METHODS
from gpt2lab.training.defaults import SMALL, TABLE, defaults_for, named_parameters, parameters_of

GPT2 = 124_439_808


def test_gpt2_gets_half_of_a_small_models_learning_rate_and_lora_more():
    small, large = ({method: defaults_for(method, n) for method in METHODS} for n in (2_600_000, GPT2))
    assert small["full"].learning_rate == 1e-4
    assert large["full"].learning_rate == 5e-5
    for rows in (small, large):
        assert rows["lora"].learning_rate > rows["full"].learning_rate
    assert {(size, method) for size in ("small", "gpt2") for method in METHODS} == set(TABLE)


def test_size_decides_at_its_limit():
    assert defaults_for("full", SMALL - 1) != defaults_for("full", SMALL)


@pytest.mark.parametrize("method", ["", "FULL", None, 3, "adapter"])
def test_unknown_method_is_refused(method):
    with pytest.raises(LabError, match="use full, lora, scratch"):
        defaults_for(method, GPT2)


@pytest.mark.parametrize(
    "shape",
    [
        {"vocab_size": 300, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4},
        {"vocab_size": 300, "n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_inner": 50},
        {"vocab_size": 300, "n_positions": 64, "n_embd": 32, "n_head": 4, "tie_word_embeddings": False},
    ],
)
def test_parameters_are_counted_from_the_configuration_as_in_the_model(shape):
    config = GPT2Config(**shape)
    assert parameters_of(json.loads(config.to_json_string(use_diff=False))) == GPT2LMHeadModel(config).num_parameters()


def test_parameters_of_a_name_are_those_of_its_model(tiny_folder):
    assert parameters_of({}) == GPT2
    assert named_parameters("builtin") == load_model("builtin").model.num_parameters()
    assert named_parameters(str(tiny_folder)) == load_model(str(tiny_folder)).model.num_parameters()
    assert named_parameters("gpt2") == GPT2  # not in the cache of the tests


def test_configuration_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(LabError, match="cannot be read"):
        named_parameters(str(tmp_path))

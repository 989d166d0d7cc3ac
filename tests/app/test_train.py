"""What the Train tab's handlers accept from a client."""

import json
from dataclasses import replace
from math import exp

import pytest
from gradio.utils import get_upload_folder

from gpt2lab.app.models import ModelStore
from gpt2lab.app.train.actions import base_label, first, labels, possible
from gpt2lab.app.train.presets import form_values
from gpt2lab.app.train.runs import chosen_of, run_line, values_of
from gpt2lab.app.train.settings import SETTINGS, config_of
from gpt2lab.app.train.text import Previews, accept, offered, text_location
from gpt2lab.data.upload import store_text
from gpt2lab.errors import LabError
from gpt2lab.training import runs
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.presets import preset
from gpt2lab.training.result import write_result
from gpt2lab.training.validation import Change
from tests.training.test_result import RESULT

PROSE = "The moon is a small world. The sea follows it twice a day. " * 40
NOT_RUNS = ["../outside", "", "/etc/passwd", None, 7, ["x"], {"a": 1}, "unknown"]


@pytest.fixture
def store(tmp_path):
    return ModelStore(tmp_path / "runs")


def config(store, data="sample", column=None, label="builtin", base="", **given):
    return config_of(
        store, label, base, data, column, *(given.get(name, field.default) for name, field in SETTINGS.items())
    )


def test_the_form_that_a_preset_fills_in_gives_the_settings_of_the_preset(store):
    base, data, *values = form_values(preset("induction"))
    assert config_of(store, "builtin", base, data, None, *values) == preset("induction")


def test_default_blocks_of_a_shape_fit_its_context(store):
    found, chosen = Previews(store).preview("two-layer", "repeated", None, "scratch")
    assert found.block_size == chosen.block_size == 32


@pytest.mark.parametrize("base", ["", None, "gpt2", ["two-layer"], {}])
def test_what_is_no_shape_leaves_the_model_of_the_bar(store, base):
    assert config(store, base=base) == config(store)


def test_empty_fields_are_the_defaults_and_typed_numbers_are_read(store):
    empty = {name: "" for name, field in SETTINGS.items() if field.default is None}
    assert config(store, **empty) == TrainConfig(model="builtin", data="sample")
    typed = config(store, steps="1,000", learning_rate="5e-4", eval_tokens="all", seed=3, compile=True, prompt=" a")
    assert typed == TrainConfig(
        model="builtin",
        data="sample",
        steps=1000,
        learning_rate=5e-4,
        eval_tokens="all",
        seed=3,
        compile=True,
        prompt=" a",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", "many"),
        ("steps", "0"),
        ("steps", "1.5"),
        ("steps", [1]),
        ("learning_rate", "nan"),
        ("learning_rate", "2"),
        ("learning_rate", float("inf")),
        ("seed", -1),
        ("seed", True),
        ("method", "best"),
        ("method", ["full"]),
        ("precision", "fp8"),
        ("eval_tokens", "half"),
        ("compile", "yes"),
        ("patience", 0.5),
    ],
)
def test_settings_that_cannot_be_are_refused(store, name, value):
    with pytest.raises(LabError):
        config(store, **{name: value})


@pytest.mark.parametrize("data", ["/etc/passwd", "../x", "", None, 7, ["sample"], "0" * 16, {"a": 1}])
def test_no_client_names_a_text_by_its_path(store, data):
    with pytest.raises(LabError, match="text"):
        config(store, data=data)
    assert "message" in Previews(store).value("builtin", data, None, "full")[0]["data"]


def test_only_files_of_the_upload_folder_are_accepted(store, tmp_path):
    outside = tmp_path / "secret.txt"
    outside.write_text(PROSE)
    for file in (str(outside), "/etc/passwd", None, 7, f"{get_upload_folder()}/../secret.txt", [str(outside)]):
        with pytest.raises(LabError, match="no file was received"):
            accept(store, file)
    assert not (tmp_path / "runs").exists()


def test_a_stored_text_is_offered_previewed_and_trained_on_by_its_id(store, tmp_path):
    rows = [{"body": f"The moon {i} is a small world.", "title": "x"} for i in range(40)]
    (tmp_path / "posts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    stored = store_text(tmp_path / "posts.jsonl", store.runs_dir)
    assert offered(store)[-1] == ("posts.jsonl", stored.id)
    made = config(ModelStore(store.runs_dir), data=stored.id, column="title")  # after a restart too
    assert (made.data, made.column) == (str(stored.path), "title")
    with pytest.raises(LabError, match="column"):
        text_location(store, stored.id, "other")
    value, chosen = Previews(store).value("builtin", stored.id, None, "full")
    assert value["data"]["name"] == "posts.jsonl" and value["data"]["splits"][0]["articles"] == 32
    assert chosen.learning_rate == 1e-4
    assert str(tmp_path) not in json.dumps(value)


@pytest.mark.parametrize("run", NOT_RUNS)
def test_only_runs_of_the_folder_are_selected(store, run):
    runs.new_run(store.runs_dir, {"model": "builtin", "data": "sample"}, "mine")
    assert chosen_of(store, [run]) == [] and chosen_of(store, run) == []
    with pytest.raises(LabError):
        first(store, [run])


def test_views_of_runs_name_no_place_of_this_machine(store, tmp_path):
    base = runs.new_run(store.runs_dir, {"model": "builtin", "data": "sample"}, "base")
    (base / "model").mkdir()
    (base / "model" / "config.json").write_text("{}")
    made = runs.new_run(
        store.runs_dir, {"model": str(base / "model"), "data": str(tmp_path / "text.txt"), "steps": 8}, "tuned"
    )
    table, curves, details = values_of(store, chosen_of(store, ["tuned", "base"]))
    assert table["data"]["chosen"] == ["tuned", "base"] and table["data"]["rows"][0]["state"] == "starting"
    assert [run["id"] for run in curves["data"]["runs"]] == ["tuned", "base"]
    assert ["Model", "base", "builtin"] in [list(each) for each in details["data"]["settings"]["rows"]]
    assert str(tmp_path) not in json.dumps([table, curves, details])
    assert base_label(store, made) == "base" and base_label(store, base) == "builtin"


@pytest.mark.parametrize(
    ("part", "whole", "enabled"),
    [(900, None, True), (9000, None, False), (900, 9000, False)],
    ids=["a sample", "by the validations", "afterwards"],
)
def test_what_is_scored_already_is_not_offered_again(store, part, whole, enabled):
    run = runs.new_run(store.runs_dir, {"model": "builtin", "data": "sample", "steps": 8}, "mine")
    runs.write_status(run, runs.RunStatus("finished", 8, 8, **runs.this_process()))
    (run / "model").mkdir()
    (run / "model" / "config.json").write_text("{}")
    scored = [None if n is None else Change(before=3.0, after=2.5, tokens=n, split_tokens=9000) for n in (part, whole)]
    write_result(replace(RESULT, folder=run, validation=scored[0], whole_validation=scored[1]))
    [chosen] = chosen_of(store, ["mine"])
    button = dict(zip(labels(), possible(store, [chosen], training_allowed=True)))["score"]
    assert button.interactive is enabled
    assert ("on all 9,000 tokens" in run_line(chosen)) is not enabled


def test_a_perplexity_is_not_said_twice(store):
    run = runs.new_run(store.runs_dir, {"model": "builtin", "data": "sample", "steps": 8}, "mine")
    losses = {"loss_before": 3.0, "loss_best": 2.5, "best_step": 8}
    for message, times in (("asked to stop", 1), (f"validation perplexity {exp(3.0):.2f} → {exp(2.5):.2f}, -39.3%", 1)):
        runs.write_status(run, runs.RunStatus("stopped", 8, 8, **runs.this_process(), **losses, message=message))
        assert run_line(*chosen_of(store, ["mine"])).count(f"{exp(3.0):.2f} → {exp(2.5):.2f}") == times

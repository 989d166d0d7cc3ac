"""The inside of models in the app: whose history is offered, what is sent, what is said where there is none."""

import pytest

from gpt2lab.app.inside import inside_folder, inside_value, observed
from gpt2lab.app.models import ModelStore
from gpt2lab.training import runs
from tests.widgets.test_timeline import BUILTIN, observe, some, write_run


@pytest.fixture
def store(tmp_path):
    return ModelStore(tmp_path / "runs")


def test_history_of_a_model_is_that_of_its_run(store):
    assert inside_folder(store, "builtin") == "builtin"
    for label in ("gpt2", "unknown", None, "../builtin"):
        assert inside_folder(store, label) is None
    made = write_run(store.runs_dir, some(BUILTIN, slice(0, 2)))
    (made / "model").mkdir()
    (made / "model" / "config.json").write_text("{}")
    (made / "model" / "model.safetensors").write_bytes(b"")
    runs.write_status(made, runs.RunStatus("finished", 1, 1, **runs.this_process()))
    assert "run" in store.labels() and inside_folder(store, "run") == made
    assert observed(made) == ["00000000.npz", "00000001.npz"]


def test_runs_without_a_history_are_named_and_others_shown(store):
    with_one = write_run(store.runs_dir, some(BUILTIN, slice(0, 3)))
    without = runs.new_run(store.runs_dir, {"model": "builtin", "data": "sample", "steps": 10}, "blind")
    value = inside_value([with_one, without])
    assert [side["name"] for side in value["data"]["sides"]] == ["run"] and value["selection"]["step"] == 2
    assert value["data"]["notes"] == ["run 'blind' has no history: nothing was recorded yet"]
    assert inside_value([without])["data"]["sides"] == [] and inside_value([])["data"]["notes"] == []


def test_histories_that_do_not_fit_together_leave_the_first(store):
    first = write_run(store.runs_dir, some(BUILTIN, slice(0, 3)), "first")
    other = runs.new_run(store.runs_dir, {"model": "builtin", "data": "sample", "steps": 10}, "other")
    observe(other, some(BUILTIN, slice(0, 1), ids=BUILTIN.ids + 1), 0)
    value = inside_value([first, other], more=True)
    assert [side["name"] for side in value["data"]["sides"]] == ["first"]
    assert value["data"]["notes"] == [
        "The first two selected runs are shown.",
        "first and other were observed on different texts; choose two runs with the same probe",
    ]

"""Runs are renamed and deleted inside their folder alone, and never while a process works on them."""

import json

import pytest

from gpt2lab.errors import LabError
from gpt2lab.training import runs

BAD_IDS = ["../outside", "..", ".", "", "a/b", "/etc", "A", ".texts", "unknown", None, 7, ["x"]]


@pytest.fixture
def make(tmp_path):
    """A function: id, state → the folder of such a run, with a model."""

    def run(name, state="stopped", model="builtin"):
        folder = runs.new_run(tmp_path / "runs", {"model": str(model), "data": "sample", "steps": 8}, name)
        runs.write_status(folder, runs.RunStatus(state, 4, 8, **runs.this_process()))
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text("{}")
        return folder

    return run


def test_a_renamed_run_is_whole_and_found_by_its_new_name_alone(make, tmp_path):
    first = make("first")
    second = make("second", model=first / "model")
    content = {path.name: path.read_bytes() for path in first.iterdir() if path.is_file()}
    renamed = runs.rename_run(tmp_path / "runs", "first", "best.one")
    assert {path.name: path.read_bytes() for path in renamed.iterdir() if path.is_file()} == content
    assert {run.id for run in runs.list_runs(tmp_path / "runs")} == {"best.one", "second"}
    assert runs.read_config(second)["model"] == str(renamed / "model")
    assert runs.finished_models(tmp_path / "runs").keys() == {"best.one", "second"}


def test_a_deleted_run_is_gone_and_nothing_else_is(make, tmp_path):
    make("first"), make("second")
    keep = tmp_path / "keep"
    keep.write_text("mine")
    (tmp_path / "runs" / "first" / "link").symlink_to(tmp_path)
    runs.delete_run(tmp_path / "runs", "first")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["second"] and keep.read_text() == "mine"


@pytest.mark.parametrize("state", runs.ALIVE)
def test_a_run_at_work_is_neither_renamed_nor_deleted(make, tmp_path, state):
    make("first", state)
    for act in (
        lambda: runs.delete_run(tmp_path / "runs", "first"),
        lambda: runs.rename_run(tmp_path / "runs", "first", "x"),
    ):
        with pytest.raises(LabError, match=f"run 'first' is {state}; stop it"):
            act()
    assert (tmp_path / "runs" / "first" / "model").is_dir()


@pytest.mark.parametrize("name", BAD_IDS)
def test_only_runs_of_the_folder_are_touched(make, tmp_path, name):
    make("first")
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "runs" / "no-run").mkdir()
    for act in (runs.delete_run, lambda folder, run: runs.rename_run(folder, run, "x")):
        with pytest.raises(LabError):
            act(tmp_path / "runs", name)
        with pytest.raises(LabError, match="no run folder"):
            act(tmp_path / "runs", "no-run")
    if name != "unknown":
        with pytest.raises(LabError, match="not a valid run id"):
            runs.rename_run(tmp_path / "runs", "first", name)
    assert outside.is_dir() and (tmp_path / "runs" / "first").is_dir() and (tmp_path / "runs" / "no-run").is_dir()


def test_a_linked_folder_is_no_run_and_a_taken_name_stays(make, tmp_path):
    first, second = make("first"), make("second")
    elsewhere = make("elsewhere").rename(tmp_path / "elsewhere")
    (tmp_path / "runs" / "linked").symlink_to(elsewhere)
    with pytest.raises(LabError, match="no run 'linked'"):
        runs.delete_run(tmp_path / "runs", "linked")
    with pytest.raises(LabError, match="'second' is already there"):
        runs.rename_run(tmp_path / "runs", "first", "second")
    assert all((folder / "model").is_dir() for folder in (first, second, elsewhere))


def test_the_commands_ask_and_answer(make, tmp_path, run_cli, monkeypatch):
    make("first"), make("second")
    place = ["--runs", tmp_path / "runs"]
    status, out, _ = run_cli("runs", "rename", "first", "third", *place, "--json")
    assert (status, json.loads(out)["run"]) == (0, "third")
    assert run_cli("runs", "rename", "third", "second", *place)[0] == 2
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: PTH123, SIM115
    status, _, said = run_cli("runs", "delete", "third", *place)
    assert status == 2 and "nothing was deleted" in said
    status, out, _ = run_cli("runs", "delete", "third", "--yes", *place, "--json")
    assert (status, json.loads(out)) == (0, {"run": "third", "deleted": True})
    assert run_cli("runs", "delete", "third", "--yes", *place)[0] == 2
    assert [run.id for run in runs.list_runs(tmp_path / "runs")] == ["second"]

import json
import os
from dataclasses import asdict, replace
from math import exp, inf

import psutil
import pytest

from gpt2lab.errors import LabError
from gpt2lab.training import runs
from gpt2lab.training.runs import Metric, RunStatus

CONFIG = {"model": "builtin", "data": "sample", "seed": 3}
METRIC = Metric(step=4, tokens=512, split="train", loss=2.5, lr=1e-3, seconds=0.75)
STATUS = RunStatus("running", 3, 10, pid=1, pid_started=2.5, heartbeat=4.5, tokens_per_second=100.0, eta_seconds=7.0)
IS_NO_ID = ["", "../x", "..", ".", "A", "a/b", "a b", "-a", ".a", "_a", "a\n", "é", "a\0", "a\\b", "a" * 81]


def contents(folder):
    return sorted(path.name for path in folder.iterdir())


def test_new_run_is_a_folder_with_what_it_was_told(tmp_path):
    folder = runs.new_run(tmp_path / "some" / "runs", CONFIG, "a-run")
    assert folder == tmp_path / "some" / "runs" / "a-run"
    assert contents(folder) == ["config.json"]
    assert json.loads((folder / "config.json").read_text()) == CONFIG


@pytest.mark.parametrize("run", ["a", "0", "a.b_c-d", "a" * 80])
def test_id_of_the_callers_choice_names_the_folder(tmp_path, run):
    assert runs.new_run(tmp_path, CONFIG, run).name == run


@pytest.mark.parametrize("run", IS_NO_ID)
def test_what_is_no_id_is_refused_and_nothing_is_made(tmp_path, run):
    with pytest.raises(LabError, match="is no run id; use 1 to 80") as caught:
        runs.new_run(tmp_path / "runs", CONFIG, run)
    assert repr(run) in str(caught.value)
    assert contents(tmp_path) == []


def test_taken_id_is_refused_and_nothing_is_overwritten(tmp_path):
    folder = runs.new_run(tmp_path, CONFIG, "mine")
    (folder / "metrics.jsonl").write_text("kept\n")
    with pytest.raises(LabError, match=r"'mine' is already there in .*; choose another id"):
        runs.new_run(tmp_path, CONFIG | {"seed": 4}, "mine")
    assert json.loads((folder / "config.json").read_text()) == CONFIG
    assert (folder / "metrics.jsonl").read_text() == "kept\n"


@pytest.mark.parametrize("place", ["file", "file/runs"])
def test_runs_folder_that_cannot_be_written_is_refused_by_name(tmp_path, place):
    (tmp_path / "file").write_text("a file, not a folder")
    with pytest.raises(LabError, match=rf"{place} cannot be written \(Not a directory\); choose another folder"):
        runs.new_run(tmp_path / place, CONFIG, "a-run")


@pytest.mark.parametrize(
    ("model", "data", "names"),
    [
        ("builtin", "sample", "builtin-sample"),
        ("openai/GPT2.v2", "wikitext-2", "gpt2-wikitext-2"),
        ("/tmp/A Model", "/tmp/My Novel.txt", "a-model-my-novel"),
        ("..", "月.txt", "x-x"),
        ("m" * 300, "d" * 300, f"{'m' * 20}-{'d' * 20}"),
    ],
)
def test_made_id_is_valid_and_tells_model_and_data(model, data, names):
    run = runs.run_id(model, data)
    assert runs.RUN_ID.fullmatch(run)
    date, time, rest = run.split("-", 2)
    assert (len(date), len(time)) == (8, 4)
    assert (date + time).isdecimal()
    name, word, digits = rest.rsplit("-", 2)
    assert name == names
    assert word in runs.WORDS
    assert int(digits, 16) < 256


def test_made_ids_are_unlikely_to_be_given_twice():
    assert len({runs.run_id("builtin", "sample") for _ in range(20)}) > 17


def test_id_is_made_where_none_is_chosen(tmp_path):
    first, second = (runs.new_run(tmp_path, CONFIG) for _ in range(2))
    assert first != second
    assert "-builtin-sample-" in first.name


def test_json_is_replaced_whole_and_reads_as_written(tmp_path):
    path = tmp_path / "file.json"
    runs.write_json(path, {"long": "x" * 10_000})
    runs.write_json(path, {"text": 'é 🌙 \u2028 "'})
    assert json.loads(path.read_text(encoding="utf-8")) == {"text": 'é 🌙 \u2028 "'}
    assert contents(tmp_path) == ["file.json"]


@pytest.mark.parametrize("fault", ["content", "disk"])
def test_failed_write_leaves_the_old_file_whole_and_nothing_else(tmp_path, monkeypatch, fault):
    path = tmp_path / "status.json"
    runs.write_json(path, {"step": 1})
    if fault == "disk":
        monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises((TypeError, OSError)):
        runs.write_json(path, {"step": 2, "more": object() if fault == "content" else "x"})
    assert json.loads(path.read_text()) == {"step": 1}
    assert contents(tmp_path) == ["status.json"]


def full_disk(descriptor):
    raise OSError(28, "No space left on device")


def test_files_of_a_run_can_be_read_by_whom_the_umask_allows(tmp_path):
    old = os.umask(0o022)
    try:
        folder = runs.new_run(tmp_path, CONFIG, "a-run")
        runs.append_line(folder / "metrics.jsonl", asdict(METRIC))
    finally:
        os.umask(old)
    assert {oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == {"0o644"}


def test_status_reads_as_written(tmp_path):
    for status in (STATUS, replace(STATUS, state="failed", tokens_per_second=None, message="the é loss is nan")):
        runs.write_status(tmp_path, status)
        assert runs.read_status(tmp_path) == status


@pytest.mark.parametrize("content", [None, "", "{", "[]", "null", '{"state": "running"}', '{"nonsense": 1}', b"\xff"])
def test_status_that_cannot_be_read_is_refused_with_the_folder(tmp_path, content):
    if content is not None:
        (tmp_path / "status.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LabError, match=r"has no readable status.json .*; is it a run folder\?") as caught:
        runs.read_status(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_unknown_state_is_refused(tmp_path):
    runs.write_json(tmp_path / "status.json", asdict(STATUS) | {"state": "asleep"})
    with pytest.raises(LabError, match="state 'asleep' is none of"):
        runs.read_status(tmp_path)


def test_metrics_read_in_the_order_they_were_written(tmp_path):
    metrics = tuple(replace(METRIC, step=step, loss=4 / step) for step in (1, 2, 3))
    for metric in metrics:
        runs.append_line(tmp_path / "metrics.jsonl", asdict(metric))
    assert runs.read_metrics(tmp_path) == metrics
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 3


def test_run_without_metrics_has_none(tmp_path):
    assert runs.read_metrics(tmp_path) == ()


def test_torn_last_line_is_left_for_the_next_time(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = [json.dumps(asdict(replace(METRIC, step=step))) for step in (1, 2)]
    path.write_text(f"{whole[0]}\n{whole[1][:17]}")
    assert [metric.step for metric in runs.read_metrics(tmp_path)] == [1]
    path.write_text("".join(f"{line}\n" for line in whole))
    assert [metric.step for metric in runs.read_metrics(tmp_path)] == [1, 2]


def test_line_torn_within_a_character_is_left_for_the_next_time(tmp_path):
    path = tmp_path / "samples.jsonl"
    runs.append_line(path, {"text": "one"})
    runs.append_line(path, {"text": "🌙"})
    path.write_bytes(path.read_bytes()[: -len('\x00\x00"}\n')])
    assert runs.read_lines(path) == [{"text": "one"}]


@pytest.mark.parametrize("text", ["two\nlines", "\u2028 \x85 \r\n", "é 🌙", '"\\'])
def test_any_text_stands_on_one_line(tmp_path, text):
    for i in range(2):
        runs.append_line(tmp_path / "samples.jsonl", {"step": i, "text": text})
    assert runs.read_lines(tmp_path / "samples.jsonl") == [{"step": i, "text": text} for i in range(2)]


@pytest.mark.parametrize(("loss", "perplexity"), [(0.0, 1.0), (2.5, exp(2.5)), (700.0, exp(700)), (1000.0, inf)])
def test_perplexity_is_the_exponential_of_the_loss(loss, perplexity):
    assert replace(METRIC, loss=loss).perplexity == perplexity


def test_this_process_is_told_apart_by_pid_and_start():
    process = psutil.Process(os.getpid())
    assert runs.this_process() == {"pid": process.pid, "pid_started": process.create_time()}


def leave_model(runs_dir, run, at):
    model = runs_dir / run / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    os.utime(model / "config.json", (at, at))
    return model


def test_finished_models_are_those_that_are_there_newest_first(tmp_path):
    models = {run: leave_model(tmp_path, run, at) for run, at in (("old", 100), ("new", 300), ("middle", 200))}
    runs.new_run(tmp_path, CONFIG, "without-a-model")
    (tmp_path / "half-saved" / "model.partial").mkdir(parents=True)
    (tmp_path / "half-saved" / "model.partial" / "config.json").write_text("{}")
    (tmp_path / "a-file").write_text("")
    found = runs.finished_models(tmp_path)
    assert list(found) == ["new", "middle", "old"]
    assert found == models


def test_runs_folder_that_is_not_there_has_no_models(tmp_path):
    assert runs.finished_models(tmp_path / "nowhere") == {}

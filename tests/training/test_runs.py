import json
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from math import exp, inf

import psutil
import pytest

from gpt2lab.errors import LabError
from gpt2lab.training import runs
from gpt2lab.training.runs import Metric, RunStatus

CONFIG = {"model": "builtin", "data": "sample", "seed": 3}
METRIC = Metric(step=4, tokens=512, split="train", loss=2.5, lr=1e-3, seconds=0.75)
STATUS = RunStatus(
    "stopped", 3, 10, pid=1, pid_started=2.5, heartbeat=4.5, host="here", tokens_per_second=100.0, eta_seconds=7.0
)
IS_NO_ID = ["", "../x", "..", ".", "A", "a/b", "a b", "-a", ".a", "_a", "a\n", "é", "a\0", "a\\b", "a" * 81]


def contents(folder):
    return sorted(path.name for path in folder.iterdir())


def test_new_run_is_a_folder_with_what_it_was_told_and_when(tmp_path):
    before = datetime.now(UTC).replace(microsecond=0)
    folder = runs.new_run(tmp_path / "some" / "runs", CONFIG, "a-run")
    assert folder == tmp_path / "some" / "runs" / "a-run"
    assert contents(folder) == ["config.json", "status.json"]
    config = json.loads((folder / "config.json").read_text())
    created = datetime.fromisoformat(config.pop("created"))
    assert config == CONFIG
    assert before <= created <= datetime.now(UTC)


@pytest.mark.parametrize("steps", [None, 57])
def test_new_run_is_queued_by_this_process_for_the_steps_it_was_told(tmp_path, steps):
    status = runs.read_status(runs.new_run(tmp_path, CONFIG | {"steps": steps}))
    assert (status.state, status.step, status.total_steps, status.message) == ("queued", 0, steps, "")
    assert (status.pid, status.host) == (os.getpid(), platform.node())
    assert (status.tokens_per_second, status.eta_seconds, status.best_step) == (None, None, None)


@pytest.mark.parametrize("run", ["a", "0", "a.b_c-d", "a" * 80])
def test_id_of_the_callers_choice_names_the_folder(tmp_path, run):
    assert runs.new_run(tmp_path, CONFIG, run).name == run


@pytest.mark.parametrize("run", IS_NO_ID)
def test_what_is_no_id_is_refused_and_nothing_is_made(tmp_path, run):
    with pytest.raises(LabError, match="is not a valid run id; use 1 to 80") as caught:
        runs.new_run(tmp_path / "runs", CONFIG, run)
    assert repr(run) in str(caught.value)
    assert contents(tmp_path) == []


def test_taken_id_is_refused_and_nothing_is_overwritten(tmp_path):
    folder = runs.new_run(tmp_path, CONFIG, "mine")
    (folder / "metrics.jsonl").write_text("kept\n")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(LabError, match=r"'mine' is already there in .*; choose another id"):
        runs.new_run(tmp_path, CONFIG | {"seed": 4}, "mine")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("place", ["file", "file/runs"])
def test_runs_folder_that_cannot_be_written_is_refused_by_name(tmp_path, place):
    (tmp_path / "file").write_text("a file, not a folder")
    with pytest.raises(
        LabError,
        match=rf"{place} cannot be written \(Not a directory\); make room, make it writable, or choose another folder",
    ):
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
def test_made_id_is_valid_and_shows_model_and_data(model, data, names):
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
    for status in (STATUS, replace(STATUS, state="failed", best_step=2, eta_seconds=None, message="the é loss is nan")):
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


def test_this_process_is_identified_by_pid_and_start():
    process = psutil.Process(os.getpid())
    before = time.time()
    found = runs.this_process()
    assert before <= found.pop("heartbeat") <= time.time()
    assert found == {"pid": process.pid, "pid_started": process.create_time(), "host": platform.node()}


RUNNING = replace(STATUS, state="running", message="")


@pytest.fixture
def written(tmp_path):
    """A function: changes to the status of a running run → the folder of this process's run with that status."""

    def write(**changes):
        runs.write_status(tmp_path, replace(RUNNING, **runs.this_process() | changes))
        return tmp_path

    return write


@pytest.mark.parametrize("state", ["queued", "running"])
def test_run_of_a_process_that_is_there_is_as_it_says(written, state):
    status = runs.read_status(written(state=state))
    assert (status.state, status.message) == (state, "")
    assert status.alive


@pytest.mark.parametrize("want", ["stop", "pause"])
def test_run_that_was_asked_to_end_is_stopping_while_its_process_is_there(written, want):
    folder = written()
    runs.request_action(folder, want)
    assert runs.requested_action(folder) == want
    assert runs.read_status(folder).state == "stopping"
    assert runs.read_status(written(state="stopped")).state == "stopped"


@pytest.mark.parametrize(
    "gone",
    [
        {"pid": 2**22 + 1},  # past the most that Linux gives out
        {"pid_started": 1000.0},  # the number was given to another process since
    ],
)
@pytest.mark.parametrize("state", ["queued", "running"])
def test_run_whose_process_is_gone_has_crashed_and_its_log_says_why(written, gone, state):
    folder = written(state=state, **gone)
    status = runs.read_status(folder)
    assert (status.state, status.step, status.alive) == ("crashed", 3, False)
    assert status.message == f"process {status.pid} is gone"
    (folder / "log.txt").write_text("step 1\nstep 2\rout of\nmemory\n")
    assert runs.read_status(folder).message == f"process {status.pid} is gone; its log ends: step 1 out of memory"


def test_run_of_an_ended_child_that_nobody_waited_for_has_crashed(written):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        folder = written(pid=child.pid, pid_started=psutil.Process(child.pid).create_time())
        assert runs.read_status(folder).state == "running"
        child.stdin.close()
        deadline = time.monotonic() + 30
        while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert runs.read_status(folder).state == "crashed"
    finally:
        child.wait()


@pytest.mark.parametrize(("silence", "state"), [(0, "running"), (290, "running"), (310, "crashed")])
def test_run_on_another_machine_has_crashed_once_it_was_silent_for_five_minutes(written, silence, state):
    folder = written(host="elsewhere", pid=2**22 + 1, heartbeat=time.time() - silence)
    assert runs.read_status(folder).state == state


@pytest.mark.parametrize("state", ["stopped", "finished", "failed", "crashed"])
def test_run_that_has_ended_stays_as_it_ended_whatever_became_of_its_process(written, state):
    folder = written(state=state, pid=2**22 + 1, message="the last word")
    status = runs.read_status(folder)
    assert (status.state, status.message, status.alive) == (state, "the last word", False)


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": "1"},
        {"pid": -1},
        {"pid": 10**30},
        {"pid": 1.5},
        {"step": "three"},
        {"step": None},
        {"total_steps": [7]},
        {"loss_best": "low"},
        {"eta_seconds": -1},
        {"message": {}},
        {"pid_started": None},
        {"pid_started": "then"},
        {"heartbeat": "now", "host": "elsewhere"},
        {"state": []},
    ],
)
def test_status_edited_to_what_it_cannot_be_is_reported_in_one_line(tmp_path, changes):
    folder = runs.new_run(tmp_path, CONFIG, "edited")
    runs.write_json(folder / "status.json", asdict(RUNNING) | runs.this_process() | changes)
    try:
        assert runs.read_status(folder).state == "crashed"
    except LabError as error:
        assert "\n" not in str(error)
    [run] = runs.list_runs(tmp_path)
    assert run.state in ("failed", "crashed")
    assert re.match(r"\d+/\d+|0/\?", run.progress)


def test_wish_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'kill' is none of"):
        runs.request_action(tmp_path, "kill")
    assert contents(tmp_path) == []


@pytest.mark.parametrize("content", [None, "", "{", "[]", "null", '"stop"', '{"want": "kill"}', '{"want": ["stop"]}'])
def test_control_file_that_says_nothing_known_is_no_wish(tmp_path, content):
    if content is not None:
        (tmp_path / "control.json").write_text(content)
    assert runs.requested_action(tmp_path) is None


def test_known_run_is_found_by_its_id(tmp_path):
    folder = runs.new_run(tmp_path, CONFIG, "mine")
    assert runs.find_run(tmp_path, "mine") == folder


@pytest.mark.parametrize("run", IS_NO_ID)
def test_no_run_is_looked_for_outside_the_runs_folder(tmp_path, run):
    with pytest.raises(LabError, match="is not a valid run id; use 1 to 80") as caught:
        runs.find_run(tmp_path, run)
    assert repr(run) in str(caught.value)


@pytest.mark.parametrize("kind", ["nothing", "file", "link"])
def test_what_is_no_folder_of_its_own_is_no_run(tmp_path, kind):
    if kind == "file":
        (tmp_path / "runs" / "mine").parent.mkdir()
        (tmp_path / "runs" / "mine").write_text("")
    if kind == "link":
        elsewhere = runs.new_run(tmp_path / "elsewhere", CONFIG, "mine")
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs" / "mine").symlink_to(elsewhere)
    with pytest.raises(LabError, match=r"there is no run 'mine' in .*; `runs list` shows those that are"):
        runs.find_run(tmp_path / "runs", "mine")
    assert runs.list_runs(tmp_path / "runs") == []


def test_list_of_runs_shows_each_with_what_it_was_told_newest_first(tmp_path):
    for run, created in (("old", "2026-01-01"), ("new", "2026-03-01"), ("middle", "2026-02-01")):
        folder = runs.new_run(tmp_path, CONFIG | {"steps": 9}, run)
        runs.write_json(folder / "config.json", CONFIG | {"created": created})
    runs.write_status(tmp_path / "new", STATUS)
    (tmp_path / "a-file").write_text("")
    (tmp_path / "no-run-at-all").mkdir()
    (tmp_path / "No id").mkdir()
    first, *others = runs.list_runs(tmp_path)
    assert [run.id for run in others] == ["middle", "old"]
    assert [(run.state, run.step, run.total_steps) for run in others] == [("queued", 0, 9)] * 2
    assert first == runs.Run(
        "new", tmp_path / "new", "stopped", "builtin", "sample", "2026-03-01", STATUS, STATUS.message
    )


def test_runs_folder_that_is_not_there_has_no_runs(tmp_path):
    assert runs.list_runs(tmp_path / "nowhere") == []


HALF = {
    "status cut short": ("status.json", '{"state": "runn', "has no readable status.json"),
    "status missing": ("status.json", None, "has no readable status.json"),
    "config no JSON": ("config.json", "model: builtin", "has no readable config.json"),
    "config missing": ("config.json", None, "has no readable config.json"),
    "config no text": ("config.json", b"\xff\xfe", "has no readable config.json"),
    "config a list": ("config.json", "[1]", "is not a JSON object"),
    "config null": ("config.json", "null", "is not a JSON object"),
}


@pytest.mark.parametrize("half", HALF)
def test_run_of_which_a_file_cannot_be_read_is_listed_as_failed_with_the_reason(tmp_path, half):
    name, content, reason = HALF[half]
    folder = runs.new_run(tmp_path, CONFIG, "half")
    whole = runs.new_run(tmp_path, CONFIG, "whole")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    listed = {run.id: run for run in runs.list_runs(tmp_path)}
    assert (listed["half"].state, listed["whole"].state) == ("failed", "queued")
    assert reason in listed["half"].message
    assert "\n" not in listed["half"].message
    assert listed["whole"].folder == whole


@pytest.mark.parametrize("config", [{}, {"model": 5, "data": None, "created": 7}, {"model": ["a"], "data": {}}])
def test_run_with_a_config_of_wrong_types_is_listed_all_the_same(tmp_path, config):
    folder = runs.new_run(tmp_path, CONFIG, "edited")
    runs.new_run(tmp_path, CONFIG, "whole")
    runs.write_json(folder / "config.json", config)
    listed = {run.id: run for run in runs.list_runs(tmp_path)}
    assert set(listed) == {"edited", "whole"}
    assert (listed["edited"].model, listed["edited"].data) == tuple(
        str(config[key]) if key in config else "?" for key in ("model", "data")
    )


def test_line_after_a_torn_one_stands_on_its_own(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    runs.append_line(path, {"step": 3})
    runs.append_line(path, {"step": 4})
    assert runs.read_lines(path) == [{"step": 1}, {"step": 3}, {"step": 4}]


@pytest.mark.parametrize("line", ["nonsense", "[1]", "5", "null", '"text"', '{"step": 1}', '{"more": 1}', ""])
def test_line_that_is_no_metric_is_passed_over(tmp_path, line):
    whole = json.dumps(asdict(METRIC))
    (tmp_path / "metrics.jsonl").write_text(f"{line}\n{whole}\n{line}\n{whole}\n")
    assert runs.read_metrics(tmp_path) == (METRIC, METRIC)


def record(folder, name, *lines):
    for line in lines:
        runs.append_line(folder / name, line)


def test_run_that_goes_back_forgets_what_came_after_its_checkpoint(tmp_path):
    steps = [("validation", 0), ("train", 1), ("train", 2), ("validation", 2), ("train", 3), ("train", 4)]
    steps += [("validation", 4), ("train", 5)]
    lines = [asdict(replace(METRIC, split=split, step=step)) for split, step in steps]
    record(tmp_path, "metrics.jsonl", *lines)
    record(tmp_path, "samples.jsonl", *({"step": step, "text": "é"} for step in (0, 2, 4)))
    runs.rewind(tmp_path, 4, {0, 2})
    assert [(m.split, m.step) for m in runs.read_metrics(tmp_path)] == [*steps[:6]]
    assert [line["step"] for line in runs.read_lines(tmp_path / "samples.jsonl")] == [0, 2]
    runs.rewind(tmp_path, 0, set())
    assert runs.read_metrics(tmp_path) == ()
    assert runs.read_lines(tmp_path / "samples.jsonl") == []


@pytest.mark.parametrize(
    "line", ["nonsense\n", '{"step": 1}\n', '{"split": "train"}\n', "[]\n", '{"step": 2, "split": "tr']
)
def test_run_with_a_line_that_is_no_metric_can_go_back(tmp_path, line):
    record(tmp_path, "metrics.jsonl", asdict(METRIC))
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (tmp_path / name).open("a") as file:
            file.write(line)
    runs.rewind(tmp_path, 4, {0})
    assert runs.read_metrics(tmp_path) == (METRIC,)


def leave_checkpoint(folder, name, content):
    (folder / "checkpoints" / name).mkdir(parents=True)
    if content is not None:
        (folder / "checkpoints" / name / "trainer_state.json").write_text(content)


def test_whole_checkpoints_are_those_with_their_last_file_newest_first(tmp_path):
    for step in (2, 10, 4):
        leave_checkpoint(tmp_path, f"checkpoint-{step}", json.dumps({"global_step": step}))
    for step, content in ((11, None), (12, ""), (13, '{"global_step": 1'), (14, "[]"), (15, "{}")):
        leave_checkpoint(tmp_path, f"checkpoint-{step}", content)
    leave_checkpoint(tmp_path, "another", json.dumps({"global_step": 16}))
    assert [path.name for path in runs.whole_checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-4", "checkpoint-2"]
    assert runs.whole_checkpoints(tmp_path / "nowhere") == []


def test_log_shows_its_end_and_a_redrawn_line_in_its_last_form(tmp_path):
    assert runs.log_tail(tmp_path) == ""
    (tmp_path / "log.txt").write_bytes(b"x" * 10_000 + b"\nbar: 1%\rbar: 2%\rbar: 3%\nline\r\nlast \xff")
    assert runs.log_tail(tmp_path) == "bar: 3%\nline\nlast \ufffd"  # and of the line that is cut, nothing
    (tmp_path / "log.txt").write_bytes(b"x" * 10_000)
    assert runs.log_tail(tmp_path) == "x" * runs.LOG_TAIL


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
    snapshot = tmp_path / "old/snapshots/step-00000040"
    for folder in (snapshot, snapshot.with_name("partial-step-00000041")):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    os.utime(snapshot / "config.json", (50, 50))
    found = runs.finished_models(tmp_path)
    assert list(found) == ["new", "middle", "old", "old@40"]
    assert found == models | {"old@40": snapshot}


def test_runs_folder_that_is_not_there_has_no_models(tmp_path):
    assert runs.finished_models(tmp_path / "nowhere") == {}

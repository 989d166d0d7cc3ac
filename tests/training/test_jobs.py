import io
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from gpt2lab.data.sources import cache_folder
from gpt2lab.errors import LabError
from gpt2lab.training import jobs, runs, worker
from gpt2lab.training.config import TrainConfig

CONFIG = TrainConfig(model="builtin", data="sample", steps=7)
GONE = 2**22 + 1  # past the process ids that Linux gives out
SOON = 30  # seconds


def become(state, folder, **changes):
    """Write a run's status in this process's name."""
    status = runs.RunStatus(state, 3, 7, **runs.this_process() | changes)
    runs.write_status(folder, status)


@pytest.fixture
def make(tmp_path):
    """A function: id and state → the folder of a run that this process has left in that state."""

    def run(name, state, **changes):
        folder = runs.new_run(tmp_path / "runs", asdict(CONFIG), name)
        become(state, folder, **changes)
        return folder

    return run


@pytest.fixture
def spawned(monkeypatch):
    """The (run, whether it may wait) of every process that would have been started."""
    asked = []
    monkeypatch.setattr(jobs, "spawn", lambda folder, queue: asked.append((folder.name, queue)))
    return asked


def wait_until(condition):
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_machine_is_held_by_one_run_at_a_time_and_the_error_of_another_names_it(tmp_path):
    with jobs.machine_lock(tmp_path / "runs" / "first"):
        with pytest.raises(LabError) as caught, jobs.machine_lock(tmp_path / "others" / "second"):
            pytest.fail("two runs hold the machine")
        assert str(caught.value) == (
            f"run 'first' in {(tmp_path / 'runs').resolve()} is training on this machine; "
            "stop it, wait until it has ended, or queue this run"
        )
    with jobs.machine_lock(tmp_path / "others" / "second"):
        pass


def test_machine_is_free_after_a_run_that_failed(tmp_path):
    with pytest.raises(RuntimeError, match="boom"), jobs.machine_lock(tmp_path / "first"):
        raise RuntimeError("boom")
    with jobs.machine_lock(tmp_path / "second"):
        pass


@pytest.mark.parametrize("note", [None, "", "{", "[]", "{}", '{"run": 5}', '{"run": null}', b"\xff"])
def test_holder_of_which_nothing_is_known_is_not_given_a_name(tmp_path, note):
    with jobs.machine_lock(tmp_path / "first"):
        path = cache_folder() / "training.json"
        path.unlink()
        if note is not None:
            path.write_bytes(note if isinstance(note, bytes) else note.encode())
        with (
            pytest.raises(LabError, match=r"^another run is training on this machine; stop it, wait"),
            jobs.machine_lock(tmp_path / "second"),
        ):
            pytest.fail("two runs hold the machine")


def test_run_that_may_wait_gets_the_machine_when_the_first_has_ended(make):
    folder, entered = make("second", "queued"), threading.Event()

    def wait():
        with jobs.machine_lock(folder, queue=True):
            entered.set()

    with jobs.machine_lock(folder.with_name("first")):
        waiting = threading.Thread(target=wait)
        waiting.start()
        wait_until(lambda: runs.read_status(folder).message)
        status = runs.read_status(folder)
        assert (status.state, status.message) == (
            "queued",
            f"run 'first' in {folder.parent.resolve()} is training on this machine",
        )
        assert not entered.is_set()
    assert entered.wait(SOON)
    waiting.join()


@pytest.mark.parametrize("want", ["stop", "pause"])
def test_wish_ends_the_wait_for_the_machine(make, want):
    folder = make("second", "queued")
    runs.request_action(folder, want)
    with (
        jobs.machine_lock(folder.with_name("first")),
        pytest.raises(LabError, match=r"^run 'second' was stopped while it waited for the machine$"),
        jobs.machine_lock(folder, queue=True),
    ):
        pytest.fail("two runs hold the machine")


def test_started_run_is_a_folder_with_its_settings_and_a_process(tmp_path, spawned):
    folder = jobs.start_run(CONFIG, tmp_path / "runs", run="mine")
    assert folder == tmp_path / "runs" / "mine"
    assert asdict(CONFIG).items() <= runs.read_config(folder).items()
    assert (runs.read_status(folder).state, spawned) == ("queued", [("mine", False)])


def test_second_run_of_a_folder_is_refused_while_one_is_at_work_and_may_wait(tmp_path, make, spawned):
    make("ended", "finished")
    make("busy", "running")
    with pytest.raises(LabError, match=r"^run 'busy' is under way on this machine; stop it, wait, or queue this run$"):
        jobs.start_run(CONFIG, tmp_path / "runs", run="second")
    assert not (tmp_path / "runs" / "second").exists()
    assert jobs.start_run(CONFIG, tmp_path / "runs", run="second", queue=True).name == "second"
    assert spawned == [("second", True)]


@pytest.mark.parametrize("run", ["taken", "../x", ""])
def test_start_under_an_id_that_cannot_be_had_is_refused_and_starts_nothing(tmp_path, make, spawned, run):
    make("taken", "finished")
    with pytest.raises(LabError, match=r"is already there|is not a valid run id"):
        jobs.start_run(CONFIG, tmp_path / "runs", run=run)
    assert spawned == []


@pytest.mark.parametrize("state", ["stopped", "failed", "crashed"])
def test_run_that_has_ended_early_is_resumed_without_the_wish_that_ended_it(make, spawned, state):
    folder = make("mine", state, pid=GONE, message="why it ended")
    runs.request_action(folder, "stop")
    jobs.resume_run(folder)
    status = runs.read_status(folder)
    assert (status.state, status.step, status.message, status.pid) == ("queued", 3, "", os.getpid())
    assert runs.requested_action(folder) is None
    assert spawned == [("mine", False)]


def test_run_whose_process_is_gone_is_resumed(make, spawned):
    folder = make("mine", "running", pid=GONE)
    jobs.resume_run(folder)
    assert spawned == [("mine", False)]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("finished", "run 'mine' is finished; start a new run to train on"),
        ("running", "run 'mine' is running; there is nothing to resume"),
    ],
)
def test_run_that_is_finished_or_at_work_is_not_resumed_and_stays_as_it_is(make, spawned, state, message):
    folder = make("mine", state)
    before = (folder / "status.json").read_bytes()
    with pytest.raises(LabError) as caught:
        jobs.resume_run(folder)
    assert str(caught.value) == message
    assert ((folder / "status.json").read_bytes(), spawned) == (before, [])


def test_run_is_not_resumed_while_another_of_its_folder_is_at_work_and_stays_as_it_is(make, spawned):
    folder = make("mine", "stopped")
    make("busy", "running")
    before = (folder / "status.json").read_bytes()
    with pytest.raises(LabError, match="run 'busy' is under way"):
        jobs.resume_run(folder)
    assert (folder / "status.json").read_bytes() == before
    jobs.resume_run(folder, queue=True)
    assert spawned == [("mine", True)]


def test_start_is_refused_while_a_run_of_another_folder_holds_the_machine(tmp_path, make, spawned):
    elsewhere = make("busy", "running")
    jobs.register_run(elsewhere)
    expected = (
        f"run 'busy' in {elsewhere.parent.resolve()} is training on this machine; stop it, wait until it has ended"
    )
    with pytest.raises(LabError, match=expected):
        jobs.start_run(CONFIG, tmp_path / "others", run="second")
    assert not (tmp_path / "others").exists()
    assert jobs.start_run(CONFIG, tmp_path / "others", run="second", queue=True).name == "second"
    become("finished", elsewhere)  # its note is left over, as after a kill
    assert jobs.start_run(CONFIG, tmp_path / "more", run="third").name == "third"
    assert spawned == [("second", True), ("third", False)]


@pytest.mark.parametrize(
    ("state", "pid", "wish", "after", "message"),
    [
        ("stopped", None, None, "stopped", "why it ended"),
        ("failed", None, None, "failed", "why it ended"),
        ("running", GONE, None, "crashed", f"process {GONE} is gone"),
        ("queued", None, None, "failed", "no room"),  # a run that was to begin, and cannot
        ("stopped", None, "stop", "stopped", "no room"),
    ],
)
def test_run_that_cannot_go_on_after_all_is_what_it_was(make, state, pid, wish, after, message):
    folder = make("mine", state, message="why it ended", **{"pid": pid} if pid else {})
    with pytest.raises(LabError, match="no room"), jobs.requeued(folder):
        status = runs.read_status(folder)
        assert (status.state, status.pid, status.message) == ("queued", os.getpid(), "")
        if wish:
            runs.request_action(folder, wish)
        raise LabError("no room")
    status = runs.read_status(folder)
    assert (status.state, status.step, status.message) == (after, 3, message)


def test_interrupted_run_that_had_not_gone_on_is_what_it_was(make):
    folder = make("mine", "stopped", message="why it ended")
    with pytest.raises(KeyboardInterrupt), jobs.requeued(folder):
        raise KeyboardInterrupt
    assert (runs.read_status(folder).state, runs.read_status(folder).message) == ("stopped", "why it ended")


def test_last_word_of_a_process_that_was_terminated_stays(make, tmp_path):
    program = """if True:
        import signal, sys, time
        from pathlib import Path
        from gpt2lab.training import runs
        def finish(number, frame):
            runs.write_status(Path(sys.argv[1]), runs.RunStatus("finished", 7, 7, **runs.this_process()))
            sys.exit()
        signal.signal(signal.SIGTERM, finish)
        print("ready", flush=True)
        time.sleep(60)"""
    folder = make("mine", "running")
    with subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"ready\n"
        become("running", folder, pid=child.pid, pid_started=psutil.Process(child.pid).create_time())
        status = jobs.stop(folder, seconds=0.3)
    assert (status.state, status.step, status.message) == ("finished", 7, "")


def test_last_word_of_a_run_that_went_on_stays(make):
    folder = make("mine", "stopped")
    with pytest.raises(LabError, match="later"), jobs.requeued(folder):
        become("failed", folder, message="its own word")
        raise LabError("later")
    assert (runs.read_status(folder).state, runs.read_status(folder).message) == ("failed", "its own word")


def test_run_at_work_on_another_machine_keeps_no_run_from_this_one(tmp_path, make, spawned):
    make("busy", "running", host="elsewhere")
    assert jobs.active_run(tmp_path / "runs") is None
    assert jobs.start_run(CONFIG, tmp_path / "runs", run="second").name == "second"


def test_run_waits_while_the_cost_of_another_is_measured(make):
    folder, got = make("mine", "queued"), []

    def train():
        with jobs.machine_lock(folder):
            got.append(jobs.lock_holder())

    with jobs.machine_lock(preview=True):
        waiting = threading.Thread(target=train)
        waiting.start()
        wait_until(lambda: runs.read_status(folder).message)
        assert runs.read_status(folder).message == "the cost of a run is being measured on this machine"
        assert (runs.read_status(folder).state, got) == ("queued", [])
    waiting.join()
    assert got == [folder.resolve()]


def test_run_of_which_the_status_is_lost_counts_as_crashed_and_continues(make, spawned):
    folder = make("mine", "running")
    (folder / "status.json").write_text('{"state": "run')
    jobs.resume_run(folder)
    assert (runs.read_status(folder).state, runs.read_status(folder).total_steps) == ("queued", 7)
    assert spawned == [("mine", False)]


@pytest.fixture
def broken_python(tmp_path, monkeypatch):
    """A Python that says why it cannot begin, and ends."""
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho one >&2\necho 'no room\tin memory' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(jobs.sys, "executable", str(program))


def test_run_whose_process_does_not_begin_has_crashed_with_its_last_words(tmp_path, broken_python):
    with pytest.raises(LabError, match="run 'mine' did not begin: one no room in memory"):
        jobs.start_run(CONFIG, tmp_path / "runs", run="mine")
    status = runs.read_status(tmp_path / "runs" / "mine")
    assert status.state == "crashed"
    assert status.message.endswith("is gone; its log ends: one no room in memory")
    assert (tmp_path / "runs" / "mine" / "log.txt").read_text() == "one\nno room\tin memory\n"


@pytest.mark.parametrize("state", ["stopped", "finished", "failed", "crashed"])
@pytest.mark.parametrize("want", ["stop", "pause"])
def test_run_that_has_ended_is_not_stopped_and_stays_as_it_is(make, state, want):
    folder = make("mine", state)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(LabError) as caught:
        jobs.stop(folder, want=want)
    assert str(caught.value) == f"run 'mine' is {state}; there is nothing to stop"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_run_that_gives_signs_of_life_is_waited_for(make):
    folder, ended = make("mine", "running"), []

    def live_on():
        for _ in range(12):
            time.sleep(0.1)
            become("running", folder)
        ended.append(True)
        become("stopped", folder, message="its last word")

    running = threading.Thread(target=live_on)
    running.start()
    status = jobs.stop(folder, seconds=0.5)
    running.join()
    assert (ended, status.state, status.message) == ([True], "stopped", "its last word")


def test_stop_waits_for_the_last_word_of_the_run(make):
    folder = make("mine", "running")

    def end_when_asked():
        wait_until(lambda: runs.requested_action(folder))
        become("stopped", folder, message="its last word")

    running = threading.Thread(target=end_when_asked)
    running.start()
    status = jobs.stop(folder)
    running.join()
    assert (status.state, status.message) == ("stopped", "its last word")


@pytest.mark.parametrize("stubborn", [False, True])
def test_process_that_does_not_react_is_ended(make, monkeypatch, stubborn):
    monkeypatch.setattr(jobs, "TERM_SECONDS", 0.3)
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " if stubborn else ""
    with subprocess.Popen(
        [sys.executable, "-c", f"{ignore}print('ready', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdout.readline() == b"ready\n"
        process = psutil.Process(child.pid)
        folder = make("mine", "running", pid=child.pid, pid_started=process.create_time())
        status = jobs.stop(folder, seconds=0.5)
        assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    assert (status.state, status.step) == ("stopped", 3)
    expected = "it gave no sign of life for 0.5 s and was terminated; resume begins it again"
    assert status.message == expected
    assert runs.read_status(folder) == status


def test_run_on_another_machine_is_asked_but_not_ended(make):
    folder = make("mine", "running", host="elsewhere", pid=os.getpid())
    with pytest.raises(LabError, match="the run's process is on elsewhere; stop it there"):
        jobs.stop(folder, seconds=0.3)
    assert runs.requested_action(folder) == "stop"
    assert psutil.Process().is_running()


def test_run_at_work_is_found_among_the_others(tmp_path, make):
    assert jobs.active_run(tmp_path / "nowhere") is None
    make("ended", "finished")
    make("gone", "running", pid=GONE)
    assert jobs.active_run(tmp_path / "runs") is None
    make("busy", "running")
    assert jobs.active_run(tmp_path / "runs").id == "busy"


EVERY_SETTING = TrainConfig(
    model="some model",
    data="some text",
    method="lora",
    lora_rank=3,
    steps=57,
    block_size=33,
    batch_size=5,
    grad_accum=6,
    learning_rate=1.5e-4,
    warmup=0.25,
    weight_decay=0.125,
    max_grad_norm=7.5,
    seed=9,
    eval_every=11,
    patience=2,
    save_every=13,
    precision="fp32",
    gradient_checkpointing=True,
    compile=True,
    report_to="tensorboard",
    prompt="-- the moon",
)


@pytest.fixture
def worker_here(monkeypatch, capsys):
    """A function: what takes the place of the measurement → the worker then runs in this process."""

    def use(preview):
        def run(command, *, input, **options):
            assert command[:3] == [sys.executable, "-m", "gpt2lab.training.worker"]
            monkeypatch.setattr(worker, "estimate_cost", preview)
            monkeypatch.setattr(sys, "argv", command[2:])
            monkeypatch.setattr(sys, "stdin", io.StringIO(input))
            status = worker.main()
            return subprocess.CompletedProcess(command, status, *capsys.readouterr())

        monkeypatch.setattr(jobs.subprocess, "run", run)

    return use


@pytest.mark.parametrize("config", [TrainConfig(), CONFIG, TrainConfig(epochs=0.5), EVERY_SETTING])
def test_cost_is_asked_for_with_every_setting(tmp_path, worker_here, config):
    asked = []

    def preview(config, runs_dir):
        asked.append((config, runs_dir))
        print("a library's own words")
        return SimpleNamespace(record=lambda: {"seconds": 1, "in_words": {"time": "1 s"}})

    worker_here(preview)
    assert jobs.cost_in_worker(config, tmp_path / "runs")["in_words"] == {"time": "1 s"}
    assert asked == [(config, tmp_path / "runs")]


def test_error_of_the_process_comes_back_as_it_was_raised(tmp_path, worker_here):
    def preview(config, runs_dir):
        raise LabError("{n:,} tokens in {path}; at most {high:.1f}", n=np.int64(2000), path=tmp_path, high=1.5)

    worker_here(preview)
    with pytest.raises(LabError) as caught:
        jobs.cost_in_worker(CONFIG, tmp_path)
    assert str(caught.value) == f"2,000 tokens in {tmp_path}; at most 1.5"
    assert caught.value.values == {"n": 2000, "path": str(tmp_path), "high": 1.5}


@pytest.mark.parametrize(("said", "reason"), [("a warning\nKilled\n", "Killed"), ("", "no reason given")])
def test_process_that_breaks_down_is_an_error_with_its_last_line(tmp_path, monkeypatch, said, reason):
    done = subprocess.CompletedProcess([], 1, "no JSON\n", said)
    monkeypatch.setattr(jobs.subprocess, "run", lambda *arguments, **options: done)
    with pytest.raises(LabError, match=f"^the cost cannot be estimated: {reason}$"):
        jobs.cost_in_worker(CONFIG, tmp_path)

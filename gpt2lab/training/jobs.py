"""Runs as processes: one at a time on a machine, started detached, stopped from anywhere, resumed.

Knows run folders and processes; loads no model.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from gpt2lab.errors import LabError
from gpt2lab.files import write_bytes
from gpt2lab.sources import cache_folder
from gpt2lab.training import runs
from gpt2lab.training.config import TrainConfig

STOP_SECONDS = 60.0  # that a run has to save and end before it is terminated
TERM_SECONDS = 5.0  # between asking the system to end a process and making it
POLL_SECONDS = 0.2
STARTING = threading.Lock()  # two starts at once in one server: the second sees the first


@contextmanager
def machine_lock(folder: Path | None = None, *, queue: bool = False) -> Iterator[None]:
    """Hold this machine for one run; the system frees it when the process dies, however it dies.

    queue  wait for the run that holds it, as "queued"; a wish to stop ends the wait

    Raises: LabError that names the run which holds the machine, or where the wait was ended.
    """
    lock = FileLock(cache_folder() / "training.lock", thread_local=False)
    with runs.told_if_unwritable(cache_folder()):
        cache_folder().mkdir(parents=True, exist_ok=True)
    while True:
        try:
            lock.acquire(timeout=1 if queue else 0)
            break
        except Timeout as error:
            if not queue:
                raise LabError(f"{held_by()}; stop it, wait until it has ended, or queue this run") from error
            if folder is None:
                continue
            if runs.wish(folder):
                raise LabError(f"run {folder.name!r} was stopped while it waited for the machine") from error
            mark(folder, "queued", held_by())
    try:
        if folder:
            sign(folder)
        yield
    finally:
        (cache_folder() / "training.json").unlink(missing_ok=True)
        lock.release()


def sign(folder: Path) -> None:
    """Say which run holds the machine, for those who are refused."""
    write_bytes(cache_folder() / "training.json", json.dumps({"run": str(folder.resolve())}).encode())


def holder() -> Path | None:
    """The folder of the run that holds the machine; None where none does, or it has not said so."""
    try:
        return Path(json.loads((cache_folder() / "training.json").read_text(encoding="utf-8"))["run"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def held_by() -> str:
    """Which run holds the machine, in words."""
    run = holder()
    return f"{f'run {run.name!r} in {run.parent}' if run else 'another run'} is training on this machine"


def active_run(runs_dir: Path) -> runs.Run | None:
    """The run of a folder that is at work, or about to be; None where none is."""
    return next((run for run in runs.list_runs(runs_dir) if run.state in runs.ALIVE), None)


def start(config: TrainConfig, runs_dir: Path, *, run: str | None = None, queue: bool = False) -> Path:
    """Start a run in a process of its own, which outlives this one; its folder.

    Raises: LabError for a taken id, or while another run of the folder is at work and `queue` is false.
    """
    with STARTING:
        refuse_second(runs_dir, queue)
        folder = runs.new_run(Path(runs_dir), asdict(config), run)
        spawn(folder, queue)
    return folder


def resume(folder: Path, *, queue: bool = False) -> None:
    """Go on with a stopped, failed or crashed run, in a process of its own.

    Raises: LabError for a run that is finished or at work.
    """
    with STARTING:
        check_resumable(folder)
        refuse_second(folder.parent, queue)
        with reopened(folder):
            spawn(folder, queue)


def check_resumable(folder: Path) -> runs.RunStatus:
    """The status of a run that can go on. Raises: LabError for one that is finished, or that a process is at work on."""
    status = runs.read_status(folder)
    ours = status.state == "queued" and status.pid in (os.getpid(), os.getppid())  # handed to this process to begin
    if status.state == "finished":
        raise LabError(f"run {folder.name!r} is finished; start a new run to train on")
    if status.alive and not ours:
        raise LabError(f"run {folder.name!r} is {status.state}; there is nothing to resume")
    return status


@contextmanager
def reopened(folder: Path) -> Iterator[None]:
    """A run "queued" in this process's name, to go on with; what was wished of it before it ended is forgotten.

    Where it cannot go on after all, it is again what it was before.

    Raises: LabError for a run that is finished or at work.
    """
    before = check_resumable(folder)
    with runs.told_if_unwritable(folder):
        if not before.alive:
            (folder / "control.json").unlink(missing_ok=True)
        mark(folder, "queued", "")
    try:
        yield
    except LabError as error:
        if not runs.read_status(folder).alive:
            raise  # it has had its last word
        if runs.wish(folder):
            mark(folder, "stopped", str(error))
        elif before.alive:
            mark(folder, "failed", str(error))
        else:
            runs.write_status(folder, before)
        raise


def mark(folder: Path, state: str, message: str) -> None:
    """Give a run another state, in this process's name."""
    runs.write_status(folder, replace(runs.read_status(folder), state=state, message=message, **runs.this_process()))


def refuse_second(runs_dir: Path, queue: bool) -> None:
    """Raises: LabError while a run is at work, of this folder or another, unless the new one may wait."""
    if queue:
        return
    active, elsewhere = active_run(runs_dir), holder()
    if active:
        raise LabError(f"run {active.id!r} is under way on this machine; stop it, wait, or queue this run")
    if elsewhere and (told := runs.describe(elsewhere)) and told.state in runs.ALIVE:
        raise LabError(f"{held_by()}; stop it, wait until it has ended, or queue this run")


def spawn(folder: Path, queue: bool) -> None:
    """Start the process that trains a run: in a session of its own, its output in the run's log, never a pipe.

    Returns once that process has made the run its own. Raises: LabError where it ends before.
    """
    folder = folder.resolve()
    command = [sys.executable, "-m", "gpt2lab", "finetune", "--resume", folder.name, "--runs", str(folder.parent)]
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            [*command, *(["--queue"] if queue else [])],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    threading.Thread(target=process.wait, daemon=True).start()  # so that it does not stay a zombie
    deadline = time.monotonic() + STOP_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if runs.read_status(folder).pid == process.pid:
            return
        time.sleep(POLL_SECONDS)
    tail = " ".join(runs.log_tail(folder).split())[-300:]
    mark(folder, "failed", f"its process did not begin: {tail}")
    raise LabError(f"run {folder.name!r} did not begin: {tail}")


def stop(folder: Path, *, want: str = "stop", seconds: float = STOP_SECONDS) -> runs.RunStatus:
    """Ask a run to save and end, and wait until it has; its last status.

    want     "stop" keeps a model of what is learned so far; "pause" only a checkpoint, and is quicker
    seconds  after which a process that does not react is terminated; the run goes on from its last checkpoint

    Raises: LabError for a run that is not at work.
    """
    check_alive(folder)
    runs.ask(folder, want)
    deadline = time.monotonic() + seconds
    while (status := runs.read_status(folder)).alive and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    if not status.alive:
        return status
    terminate(status)
    message = f"it did not react within {seconds:g} s and was terminated; resume goes on from its last checkpoint"
    runs.write_status(folder, replace(status, state="stopped", message=message))
    return runs.read_status(folder)


def check_alive(folder: Path) -> None:
    """Raises: LabError for a run that is not at work."""
    state = runs.read_status(folder).state
    if state not in runs.ALIVE:
        raise LabError(f"run {folder.name!r} is {state}; there is nothing to stop")


def terminate(status: runs.RunStatus) -> None:
    """End a run's process, asking first. Raises: LabError where it is on another machine, or another user's."""
    if not runs.is_here(status):
        raise LabError(f"the run's process is on {status.host}; stop it there")
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(status.pid)
        try:
            process.terminate()
            process.wait(TERM_SECONDS)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(TERM_SECONDS)
        except psutil.AccessDenied as error:
            raise LabError(f"process {status.pid} belongs to another user; ask them to stop it") from error


def price(config: TrainConfig, runs_dir: Path) -> dict[str, str]:
    """What a run would cost, in words: a dry run in a process of its own, whose memory is that of a run.

    Raises: LabError with the process's own line where it fails.
    """
    names = {"learning_rate": "lr"}
    told = [
        part
        for name, value in asdict(config).items()
        if value is not None and not isinstance(value, bool)
        for part in (f"--{names.get(name, name).replace('_', '-')}", str(value))
    ]
    flags = [f"--{name.replace('_', '-')}" for name in ("gradient_checkpointing", "compile") if getattr(config, name)]
    command = [sys.executable, "-m", "gpt2lab", "finetune", "--dry-run", "--json", "--runs", str(runs_dir)]
    done = subprocess.run([*command, *told, *flags], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise LabError(f"the cost cannot be told: {last[0].removeprefix('gpt2lab: ')}")
    return json.loads(done.stdout.splitlines()[-1])["in_words"]

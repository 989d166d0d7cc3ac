"""Runs as processes: one at a time on a machine, started detached, stopped from anywhere, resumed."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from gpt2lab.data.sources import cache_folder
from gpt2lab.errors import LabError, Message
from gpt2lab.training import runs
from gpt2lab.training.config import TrainConfig

STOP_SECONDS = 60.0  # without a sign of life, after which a run that was asked to stop is terminated
TERM_SECONDS = 5.0  # between asking the system to end a process and making it
POLL_SECONDS = 0.2
WORKER = "gpt2lab.training.worker"  # the process of a run; it imports what this module must not
WAIT_SECONDS = 1.0  # between checks whether the machine is free
STARTING = threading.Lock()  # two starts at once in one server: the second sees the first


@contextmanager
def machine_lock(folder: Path | None = None, *, queue: bool = False, preview: bool = False) -> Iterator[None]:
    """Hold this machine for one run; the system frees it when the process dies, however it dies.

    queue    wait for the run that holds it, as "queued"; a request to stop ends the wait
    preview  hold it for a minute at most, to estimate the cost of a run; others wait

    Raises: LabError that names the run which holds the machine, or where the wait was ended.
    """
    lock = FileLock(cache_folder() / "training.lock", thread_local=False)
    with runs.writable_or_error(cache_folder()):
        cache_folder().mkdir(parents=True, exist_ok=True)
        while not try_acquire(lock):
            if not queue and not read_lock_note().get("preview"):
                raise LabError(
                    "{holder}; stop it, wait until it has ended, or queue this run", holder=describe_lock_holder()
                )
            if folder and runs.requested_action(folder):
                raise LabError("run {name!r} was stopped while it waited for the machine", name=folder.name)
            if folder:
                mark(folder, "queued", describe_lock_holder())
            time.sleep(WAIT_SECONDS)
    try:
        write_lock_note({"preview": preview})
        if folder:
            register_run(folder)
        yield
    finally:
        (cache_folder() / "training.json").unlink(missing_ok=True)
        lock.release()


def try_acquire(lock: FileLock) -> bool:
    """Acquire a lock without waiting; return whether it is held now."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def register_run(folder: Path) -> None:
    """Record which run holds the machine."""
    write_lock_note({"run": str(folder.resolve())})


def write_lock_note(what: dict) -> None:
    """Write what the machine is held for: a run, or a preview of its cost."""
    with runs.writable_or_error(cache_folder()):
        runs.write_json(cache_folder() / "training.json", what)


def read_lock_note() -> dict:
    """Read what the machine is held for; {} if there is no note or it cannot be read."""
    try:
        found = json.loads((cache_folder() / "training.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def lock_holder() -> Path | None:
    """Return the folder of the run that holds the machine; None if there is none or it is unknown."""
    run = read_lock_note().get("run")
    return Path(run) if isinstance(run, str) else None


def describe_lock_holder() -> Message:
    """Describe what holds the machine."""
    if read_lock_note().get("preview"):
        return Message("the cost of a run is being measured on this machine")
    run = lock_holder()
    if run is None:
        return Message("another run is training on this machine")
    return Message("run {name!r} in {folder} is training on this machine", name=run.name, folder=str(run.parent))


def active_run(runs_dir: Path) -> runs.Run | None:
    """Return the run of a folder that is active on this machine or about to be; None if there is none."""
    listed = (run for run in runs.list_runs(runs_dir) if run.state in runs.ALIVE)
    return next((run for run in listed if run.status and runs.is_here(run.status)), None)


def start_run(
    config: TrainConfig,
    runs_dir: Path,
    *,
    run: str | None = None,
    queue: bool = False,
    on_start: Callable[[Path], None] | None = None,
) -> Path:
    """Start a run in a process of its own that outlives this one; return its folder once it trains or is queued.

    on_start  called with the run's folder as soon as it is there, seconds before that

    Raises: LabError for a taken id, while another run is at work and `queue` is false, or for what that process
    refuses; then no folder is left.
    """
    with STARTING:
        ensure_machine_free(runs_dir, queue)
        folder = runs.new_run(Path(runs_dir), asdict(config), run)
        with remove_if_rejected(folder):
            if on_start:
                on_start(folder)
            spawn(folder, queue)
    return folder


@contextmanager
def remove_if_rejected(folder: Path) -> Iterator[None]:
    """Delete a new run's folder if it is rejected before it starts; keep the log of a crash."""
    try:
        yield
    except LabError:
        if runs.read_status(folder).state in ("queued", "failed") and not (folder / "metrics.jsonl").exists():
            shutil.rmtree(folder)
        raise


def resume_run(folder: Path, *, queue: bool = False) -> None:
    """Resume a stopped, failed or crashed run in a process of its own; return once it trains or is queued.

    Raises: LabError for a run that is finished or at work, or for what that process refuses; the run is then as it was.
    """
    with STARTING:
        check_resumable(folder)
        ensure_machine_free(folder.parent, queue)
        with requeued(folder):
            spawn(folder, queue)


def check_resumable(folder: Path) -> runs.RunStatus:
    """Return the status of a run that can be resumed; one that cannot be read counts as crashed.

    Raises: LabError for a run that is finished, or that a process is at work on.
    """
    try:
        status = runs.read_status(folder)
    except LabError as error:
        total = runs.read_config(folder).get("steps")
        total = total if isinstance(total, int) else None
        status = runs.RunStatus("crashed", step=0, total_steps=total, message=str(error), **runs.this_process())
    ours = status.state in ("queued", "stopping") and status.pid == os.getpid()  # handed to this process to begin
    if status.state == "finished":
        raise LabError("run {name!r} is finished; start a new run to train on", name=folder.name)
    if status.alive and not ours:
        raise LabError("run {name!r} is {state}; there is nothing to resume", name=folder.name, state=status.state)
    return status


@contextmanager
def requeued(folder: Path) -> Iterator[None]:
    """Mark a run as "queued" by this process, to resume it; forget the request that ended it.

    If it cannot resume, its status is restored.

    Raises: LabError for a run that is finished or at work.
    """
    before = check_resumable(folder)
    with runs.writable_or_error(folder):
        if not before.alive:
            (folder / "control.json").unlink(missing_ok=True)
        queued = replace(before, state="queued", tokens_per_second=None, eta_seconds=None, message="")
        runs.write_status(folder, replace(queued, **runs.this_process()))
    try:
        yield
    except BaseException as error:  # an interrupt too
        reason = str(error) or type(error).__name__
        now = runs.read_status(folder)
        if not now.alive and now.pid == os.getpid():
            raise  # it was resumed, and has written its last status
        if now.alive and runs.requested_action(folder):
            mark(folder, "stopped", reason)
        elif before.alive:
            mark(folder, "failed", reason)
        else:
            runs.write_status(folder, before)
        raise


def mark(folder: Path, state: str, message: str) -> None:
    """Set the state of a run, with this process as its owner."""
    runs.write_status(folder, replace(runs.read_status(folder), state=state, message=message, **runs.this_process()))


def ensure_machine_free(runs_dir: Path, queue: bool) -> None:
    """Check that no other run is active on this machine, unless the new one may wait. Raises: LabError."""
    if queue:
        return
    active, elsewhere = active_run(runs_dir), lock_holder()
    if active:
        raise LabError("run {id!r} is under way on this machine; stop it, wait, or queue this run", id=active.id)
    if elsewhere and (status := runs.run_summary(elsewhere)) and status.state in runs.ALIVE:
        raise LabError("{holder}; stop it, wait until it has ended, or queue this run", holder=describe_lock_holder())


def spawn(folder: Path, queue: bool) -> None:
    """Start the process that trains a run, in a session of its own, with its output in the run's log.

    Returns once that process trains, or waits for the machine. Raises: LabError, with its reason, where it ends before.
    """
    folder = folder.resolve()
    command = [sys.executable, "-m", WORKER, str(folder), *(["--queue"] if queue else [])]
    with runs.writable_or_error(folder), (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    with suppress(psutil.NoSuchProcess):  # it has ended already
        started = psutil.Process(process.pid).create_time()
        runs.write_status(folder, replace(runs.read_status(folder), pid=process.pid, pid_started=started))
    threading.Thread(target=process.wait, daemon=True).start()  # so that it does not stay a zombie
    while process.poll() is None:
        status = runs.read_status(folder)
        if status.state in ("running", "stopping") or (status.state == "queued" and status.message):  # or it waits
            return
        time.sleep(POLL_SECONDS)
    status, tail = runs.read_status(folder), " ".join(runs.log_tail(folder).split())[-300:]
    if status.state in ("stopped", "finished"):  # already
        return
    if status.state == "failed":
        raise LabError(status.message)
    raise LabError("run {name!r} did not begin: {tail}", name=folder.name, tail=tail)


def stop(folder: Path, *, want: str = "stop", seconds: float = STOP_SECONDS) -> runs.RunStatus:
    """Ask a run to save and end, wait for it, and return its last status.

    want     "stop" keeps a model of what is learned so far; "pause" only a checkpoint, and is quicker
    seconds  without a heartbeat after which its process is terminated; the run resumes from its last checkpoint

    Raises: LabError for a run that is not active.
    """
    check_alive(folder)
    runs.request_action(folder, want)
    asked = time.time()
    while (status := runs.read_status(folder)).alive and time.time() < max(asked, status.heartbeat) + seconds:
        time.sleep(POLL_SECONDS)
    if not status.alive:
        return status
    terminate(status)
    status = runs.read_status(folder)
    if status.state != "crashed":
        return status  # it wrote its last status in the end
    message = (
        Message(
            "it gave no sign of life for {seconds:g} s and was terminated; resume continues from its last checkpoint",
            seconds=seconds,
        )
        if runs.whole_checkpoints(folder)
        else Message(
            "it gave no sign of life for {seconds:g} s and was terminated; resume begins it again", seconds=seconds
        )
    )
    runs.write_status(folder, replace(status, state="stopped", message=message))
    return runs.read_status(folder)


def check_alive(folder: Path) -> None:
    """Check that a run is active. Raises: LabError."""
    state = runs.read_status(folder).state
    if state not in runs.ALIVE:
        raise LabError("run {name!r} is {state}; there is nothing to stop", name=folder.name, state=Message(state))


def terminate(status: runs.RunStatus) -> None:
    """Terminate a run's process. Raises: LabError if it is on another machine or belongs to another user."""
    if not runs.is_here(status):
        raise LabError("the run's process is on {host}; stop it there", host=status.host)
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(status.pid)
        try:
            process.terminate()
            process.wait(TERM_SECONDS)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(TERM_SECONDS)
        except psutil.AccessDenied as error:
            raise LabError("process {pid} belongs to another user; ask them to stop it", pid=status.pid) from error


def cost_in_worker(config: TrainConfig, runs_dir: Path) -> dict:
    """Estimate the cost of a run, as `Cost.record`: measured in a process of its own, so that memory is measured too.

    Raises: LabError as that process raises it, or with its last line where it breaks down.
    """
    command = [sys.executable, "-m", WORKER, str(runs_dir), "--estimate"]
    done = subprocess.run(command, input=json.dumps(asdict(config)), capture_output=True, text=True)
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        reason = (done.stderr.strip().splitlines() or [Message("no reason given")])[-1]
        raise LabError("the cost cannot be estimated: {reason}", reason=reason) from None
    if "error" in answer:
        raise LabError(answer["error"], **answer["values"])
    return answer

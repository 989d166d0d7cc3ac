"""The status of a run, the process that works on it, its log, and requests to stop or pause it."""

import json
import os
import platform
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from gpt2lab.errors import LabError, Message
from gpt2lab.training.records import check_fields, parse_record, writable_or_error, write_json

ALIVE = ("queued", "running", "stopping")  # a process is running or queued
STATES = (*ALIVE, "stopped", "finished", "failed", "crashed")
ACTIONS = ("stop", "pause")
SILENT_SECONDS = 300  # without a heartbeat, after which a run on another machine counts as crashed
LOG_TAIL = 4_000  # bytes of a log that are shown


@dataclass(frozen=True)
class RunStatus:
    """State and progress of a run.

    state              one of STATES
    pid, pid_started   its process, and when that started (seconds since 1970): a pid alone is reused
    host               the machine that the process runs on
    heartbeat          when this was written, seconds since 1970
    tokens_per_second  of training, evaluations left out · eta_seconds  until the last step; None when unknown
    best_step          the step with the lowest validation loss so far; None before the second validation
    loss_before, loss_best  validation losses at step 0 and at best_step, nats per token; None before they are known
    message            why it ended as it did, or ""
    """

    state: str
    step: int
    total_steps: int | None
    pid: int
    pid_started: float
    heartbeat: float
    host: str = ""
    tokens_per_second: float | None = None
    eta_seconds: float | None = None
    best_step: int | None = None
    loss_before: float | None = None
    loss_best: float | None = None
    message: str = ""

    def __post_init__(self):
        if self.state not in STATES:
            raise ValueError(f"state {self.state!r} is none of {STATES}")
        check_fields(self)

    @property
    def alive(self) -> bool:
        """Whether a process works on the run or is about to."""
        return self.state in ALIVE


def this_process() -> dict:
    """What status.json says of the process that calls: pid, pid_started, host, heartbeat."""
    return {
        "pid": os.getpid(),
        "pid_started": psutil.Process().create_time(),
        "host": platform.node(),
        "heartbeat": time.time(),
    }


def is_here(status: RunStatus) -> bool:
    """Whether a run's process is or was on this machine."""
    return status.host == platform.node()


def is_alive(status: RunStatus) -> bool:
    """Whether the process that wrote a status is still there; on another machine, whether it has been heard of lately."""
    if not is_here(status):
        return time.time() - status.heartbeat < SILENT_SECONDS
    try:
        process = psutil.Process(status.pid)
        return abs(process.create_time() - status.pid_started) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OverflowError, TypeError, ValueError):  # the last three: of a pid that can be none
        return False


def write_status(folder: Path, status: RunStatus) -> None:
    """Replace status.json; a message that is a Message is there as a record too, for translation."""
    said = {"said": status.message.record()} if isinstance(status.message, Message) else {}
    write_json(folder / "status.json", asdict(status) | said)


def read_status(folder: Path) -> RunStatus:
    """Return the run's status: "stopping" if that was requested, "crashed" if its process is gone.

    Raises: LabError where there is none, or it cannot be read.
    """
    try:
        content = json.loads((folder / "status.json").read_text(encoding="utf-8"))
        status = parse_record(RunStatus, content)
    except (OSError, ValueError) as error:
        raise LabError(
            "{folder} has no readable status.json ({error}); is it a run folder?", folder=folder, error=error
        ) from error
    with suppress(KeyError, TypeError, ValueError, AttributeError, IndexError):  # none, or what nobody wrote
        status = replace(status, message=Message.from_record(content["said"]))
    if not status.alive:
        return status
    if not is_alive(status):
        tail = " ".join(log_tail(folder).split())[-300:]
        gone = Message("process {pid} is gone", pid=status.pid)
        ends = Message("process {pid} is gone; its log ends: {tail}", pid=status.pid, tail=tail)
        return replace(status, state="crashed", message=ends if tail else gone)
    return replace(status, state="stopping") if requested_action(folder) else status


def request_action(folder: Path, want: str) -> None:
    """Request that the run's process stops or pauses: "stop" or "pause"."""
    if want not in ACTIONS:
        raise ValueError(f"{want!r} is none of {ACTIONS}")
    with writable_or_error(folder):
        write_json(folder / "control.json", {"want": want})


def requested_action(folder: Path) -> str | None:
    """Return the request to the run, "stop" or "pause"; None if there is none that can be read."""
    try:
        want = json.loads((folder / "control.json").read_text(encoding="utf-8"))["want"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return want if want in ACTIONS else None


def log_tail(folder: Path) -> str:
    """Return the end of a detached run's log; of a line redrawn in place, its last state."""
    try:
        with (folder / "log.txt").open("rb") as file:
            start = file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    if start and "\n" in text:
        text = text.split("\n", 1)[1]  # what the first line is the end of is not shown
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))

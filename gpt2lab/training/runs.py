"""The run folder: everything about a run, on disk.

    <runs>/<id>/config.json    its settings, and the machine it ran on
               status.json     how far it is; written by the run's own process alone once it is under way
               control.json    what others want of it: to stop, or to pause
               metrics.jsonl   a line per loss measured
               validation.jsonl  a line per validation: nats and predicted tokens of every block
               samples.jsonl   a line per text written
               log.txt         what a detached run printed
               checkpoints/    the last and the best, as transformers' Trainer leaves them
               result.json     what it came to
               model/          the fine-tuned model, as save_pretrained leaves it
               report.html     the run as a page

Single files are replaced whole (temporary file, fsync, rename); lines are appended whole.
Knows files and processes; nothing of models.
"""

import json
import os
import platform
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import MISSING, asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import numpy as np
import psutil

from gpt2lab.errors import LabError
from gpt2lab.files import write_bytes
from gpt2lab.results import perplexity_of, readable

RUN_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
ALIVE = ("queued", "running", "stopping")  # a process is at work, or will be
STATES = (*ALIVE, "stopped", "finished", "failed", "crashed")
ACTIONS = ("stop", "pause")
SILENT_SECONDS = 300  # without a heartbeat, after which a run on another machine counts as crashed
LOG_TAIL = 4_000  # bytes of a log that are shown
WORDS = """
amber birch cedar cobalt coral dune ember fern flint frost garnet harbor hazel indigo iris juniper
lark lilac linen maple meadow mint moss ochre olive onyx opal pearl pine plum quartz raven reed river
robin rowan saffron sage slate sorrel sparrow teal thistle topaz umber violet willow wren
""".split()


def parse_record(kind: type, content):
    """Make a dataclass from a dictionary; fields of a later version are ignored.

    Raises: ValueError where it is no JSON object, or a field is missing or is not what it should be.
    """
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    known = {field.name: content[field.name] for field in fields(kind) if field.name in content}
    missing = [field.name for field in fields(kind) if field.default is MISSING and field.name not in known]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing")
    return kind(**known)


def check_fields(record) -> None:
    """Raises: ValueError where a dataclass, as read from a file, holds what its types do not allow; no number is below 0."""
    for field in fields(record):
        value, kinds = getattr(record, field.name), get_args(field.type) or (field.type,)
        if {int, float} & set(kinds) and value is not None:
            fits = isinstance(value, int | float) and value >= 0
        else:
            fits = isinstance(value, kinds)
        if not fits:
            raise ValueError(f"{field.name} cannot be {str(value)[:80]!r}")


@dataclass(frozen=True)
class Metric:
    """One measured loss.

    step     optimizer steps done · tokens  of text trained on by then
    split    "train" (mean since the last line) or "validation" (of the blocks that validations score)
    loss     nats per token · lr  learning rate · seconds  of the run so far, pauses left out
    """

    step: int
    tokens: int
    split: str
    loss: float
    lr: float
    seconds: float

    def __post_init__(self):
        check_fields(self)

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return perplexity_of(self.loss)


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


@dataclass(frozen=True)
class Run:
    """A run as an entry of a list.

    status   as its status.json says; None where that cannot be read
    message  why it ended as it did, or what of its folder cannot be read
    """

    id: str
    folder: Path
    state: str
    model: str
    data: str
    created: str
    status: RunStatus | None
    message: str

    @property
    def step(self) -> int:
        """Optimizer steps done, as far as is known."""
        return self.status.step if self.status else 0

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps to do, where known."""
        return self.status.total_steps if self.status else None

    @property
    def progress(self) -> str:
        """Describe steps done and perplexities before training and at best. Example: "40/80, perplexity 97.03 → 93.10"."""
        losses = (self.status.loss_before, self.status.loss_best) if self.status else ()
        known = [readable(perplexity_of(loss)) for loss in losses if loss is not None]
        steps = f"{self.step:,}/{'?' if self.total_steps is None else f'{self.total_steps:,}'}"
        return f"{steps}, perplexity {' → '.join(known)}" if known else steps


def new_run(runs_dir: Path, config: dict, run: str | None = None) -> Path:
    """Create the folder of a new run, with its config.json and the status "queued".

    run  an id of the caller's choice; made from date, model, data and a word otherwise

    Raises: LabError for an id that is taken or is no id.
    """
    run = run_id(config["model"], config["data"]) if run is None else run
    check_id(run)
    folder = Path(runs_dir) / run
    created = datetime.now(UTC).isoformat(timespec="seconds")
    with writable_or_error(runs_dir):
        try:
            folder.mkdir(parents=True)
        except FileExistsError as error:
            raise LabError(
                "run {run!r} is already there in {runs_dir}; choose another id", run=run, runs_dir=runs_dir
            ) from error
        write_json(folder / "config.json", config | {"created": created})
        write_status(folder, RunStatus("queued", 0, config.get("steps"), **this_process()))
    return folder


@contextmanager
def writable_or_error(folder: Path) -> Iterator[None]:
    """Raises: LabError where the system does not let us write."""
    try:
        yield
    except OSError as error:
        raise LabError(
            "{folder} cannot be written ({value}); make room, make it writable, or choose another folder",
            folder=folder,
            value=error.strerror or error,
        ) from error


def check_id(run: str) -> None:
    """Check a run id. Raises: LabError."""
    if not isinstance(run, str) or not RUN_ID.fullmatch(run):
        raise LabError(
            "run {run!r} is no run id; use 1 to 80 of a-z 0-9 . _ - and begin with a letter or digit",
            run=str(run)[:100],
        )


def find_run(runs_dir: Path, run: str) -> Path:
    """Return the folder of a run. Raises: LabError for an invalid or unknown id."""
    check_id(run)
    folder = Path(runs_dir) / run
    if folder.is_symlink() or not folder.is_dir():
        raise LabError(
            "there is no run {run!r} in {runs_dir}; `runs list` shows those that are", run=run, runs_dir=runs_dir
        )
    return folder


def list_runs(runs_dir: Path) -> list[Run]:
    """Return all runs of a folder, newest first; one that cannot be read is listed as failed, with the reason."""
    folders = [path for path in Path(runs_dir).glob("*") if path.is_dir() and RUN_ID.fullmatch(path.name)]
    runs = [run_summary(folder) for folder in folders if not folder.is_symlink()]
    return sorted((run for run in runs if run), key=lambda run: run.created, reverse=True)


def run_summary(folder: Path) -> Run | None:
    """Describe a run in a line; None for a folder that is not a run."""
    problems, config, status = [], {}, None
    try:
        config = read_config(folder)
    except LabError as error:
        problems.append(str(error))
    try:
        status = read_status(folder)
    except LabError as error:
        problems.append(str(error))
    if len(problems) == 2 and not any((folder / name).exists() for name in ("config.json", "status.json")):
        return None
    return Run(
        id=folder.name,
        folder=folder,
        state="failed" if problems else status.state,
        model=str(config.get("model", "?")),
        data=str(config.get("data", "?")),
        created=str(config.get("created", "")),
        status=status,
        message="; ".join(problems) or status.message,
    )


def run_id(model: str, data: str) -> str:
    """Return a readable id that is unlikely to occur twice. Example: "20260131-0905-builtin-sample-maple-7f"."""
    names = (re.sub(r"[^a-z0-9]+", "-", Path(name).stem.lower()).strip("-")[:20] or "x" for name in (model, data))
    date = datetime.now(UTC).strftime("%Y%m%d-%H%M")
    return "-".join([date, *names, secrets.choice(WORDS), secrets.token_hex(1)])


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


def write_json(path: Path, content: dict) -> None:
    """Write JSON to a file atomically."""
    write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def append_line(path: Path, content: dict) -> None:
    """Append a line of JSON in one write; an incomplete line before it is ended first."""
    line = json.dumps(content, ensure_ascii=False).encode() + b"\n"
    with path.open("a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line
        file.write(line)


def write_status(folder: Path, status: RunStatus) -> None:
    """Replace status.json."""
    write_json(folder / "status.json", asdict(status))


def read_status(folder: Path) -> RunStatus:
    """Return the run's status: "stopping" if that was requested, "crashed" if its process is gone.

    Raises: LabError where there is none, or it cannot be read.
    """
    try:
        status = parse_record(RunStatus, json.loads((folder / "status.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise LabError(
            "{folder} has no readable status.json ({error}); is it a run folder?", folder=folder, error=error
        ) from error
    if not status.alive:
        return status
    if not is_alive(status):
        tail = " ".join(log_tail(folder).split())[-300:]
        said = f"; its log ends: {tail}" if tail else ""
        return replace(status, state="crashed", message=f"process {status.pid} is gone{said}")
    return replace(status, state="stopping") if requested_action(folder) else status


def read_config(folder: Path) -> dict:
    """Return the run's settings. Raises: LabError if they cannot be read."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LabError(
            "{folder} has no readable config.json ({error}); is it a run folder?", folder=folder, error=error
        ) from error
    if not isinstance(config, dict):
        raise LabError("{folder} is not a JSON object; is it a run folder?", folder=folder / "config.json")
    return config


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


def read_lines(path: Path) -> list[dict]:
    """Return the objects of a .jsonl file; damaged lines are skipped."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError:
        return []
    found = []
    for line in lines:
        with suppress(ValueError):
            found.append(json.loads(line))
    return [line for line in found if isinstance(line, dict)]


def read_metrics(folder: Path) -> tuple[Metric, ...]:
    """Return all losses of a run so far, in order; damaged lines are skipped."""
    metrics = []
    for line in read_lines(folder / "metrics.jsonl"):
        with suppress(ValueError):
            metrics.append(parse_record(Metric, line))
    return tuple(metrics)


def read_block_losses(folder: Path) -> dict[int, np.ndarray]:
    """Read the validations of a run: step → (N, 2) nats and predicted tokens of each block; damaged lines are left out."""
    found = {}
    for line in read_lines(folder / "validation.jsonl"):
        with suppress(KeyError, TypeError, ValueError):
            rows = np.array([line["nll"], line["tokens"]], dtype=float).T
            if rows.ndim == 2 and rows[:, 1].sum() > 0:
                found[int(line["step"])] = rows
    return found


def rewind(folder: Path, step: int, validated: set[int]) -> None:
    """Remove the records after a step, to resume from its checkpoint.

    validated  the steps whose validation the checkpoint knows of; others are done again
    """
    for name, keep in (
        (
            "metrics.jsonl",
            lambda line: (
                (line.get("split") == "train" and line.get("step", step + 1) <= step) or line.get("step") in validated
            ),
        ),
        ("validation.jsonl", lambda line: line.get("step") in validated),
        ("samples.jsonl", lambda line: line.get("step") in validated),
    ):
        kept = [json.dumps(line, ensure_ascii=False) for line in read_lines(folder / name) if keep(line)]
        write_bytes(folder / name, "".join(f"{line}\n" for line in kept).encode())


def whole_checkpoints(folder: Path) -> list[Path]:
    """Return a run's complete checkpoints, newest first: trainer_state.json is written last."""
    found = {}
    for path in (folder / "checkpoints").glob("checkpoint-*"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            found[path] = int(checkpoint_state(path)["global_step"])
    return sorted(found, key=found.get, reverse=True)


def checkpoint_state(checkpoint: Path) -> dict:
    """The Trainer's own record in a checkpoint."""
    return json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))


def finished_models(runs_dir: Path) -> dict[str, Path]:
    """Return the models of finished runs by run id, newest first."""
    made = {}
    for config in Path(runs_dir).glob("*/model/config.json"):
        with suppress(FileNotFoundError):  # deleted while we look
            made[config.parent] = config.stat().st_mtime
    return {model.parent.name: model for model in sorted(made, key=made.get, reverse=True)}

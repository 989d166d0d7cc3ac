"""The run folder: everything about a run, on disk.

<runs>/<id>/config.json its settings, and the machine it ran on
status.json how far it is; written by the run's own process alone once it is under way
control.json what others want of it: to stop, or to pause
metrics.jsonl a line per loss measured, with the gradient's norm, speed, memory and use of the machine
validation.jsonl a line per validation: nats and predicted tokens of every block
samples.jsonl a line per text written
history/ what the run observed of itself: a file per observed step
snapshots/ the model at some of these steps, where they were asked for, as save_pretrained leaves it
log.txt what a detached run printed
checkpoints/ the last and the best, as transformers' Trainer leaves them
result.json what it came to
model/ the fine-tuned model, as save_pretrained leaves it
report.html the run as a page

Single files are replaced whole (temporary file, fsync, rename); lines are appended whole.
`records` has the files' records, `status` what the run's process reports; this module offers both to the others.
"""

import json
import re
import secrets
import shutil
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from gpt2lab.errors import LabError
from gpt2lab.results import perplexity_of, readable
from gpt2lab.training.records import Metric as Metric
from gpt2lab.training.records import append_line as append_line
from gpt2lab.training.records import read_block_losses as read_block_losses
from gpt2lab.training.records import read_lines as read_lines
from gpt2lab.training.records import read_metrics as read_metrics
from gpt2lab.training.records import rewind as rewind
from gpt2lab.training.records import writable_or_error, write_json
from gpt2lab.training.status import ALIVE as ALIVE
from gpt2lab.training.status import LOG_TAIL as LOG_TAIL
from gpt2lab.training.status import RunStatus, read_status, this_process, write_status
from gpt2lab.training.status import is_here as is_here
from gpt2lab.training.status import log_tail as log_tail
from gpt2lab.training.status import request_action as request_action
from gpt2lab.training.status import requested_action as requested_action

RUN_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
WORDS = """
amber birch cedar cobalt coral dune ember fern flint frost garnet harbor hazel indigo iris juniper
lark lilac linen maple meadow mint moss ochre olive onyx opal pearl pine plum quartz raven reed river
robin rowan saffron sage slate sorrel sparrow teal thistle topaz umber violet willow wren
""".split()


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


def check_id(run: str) -> None:
    """Check a run id. Raises: LabError."""
    if not isinstance(run, str) or not RUN_ID.fullmatch(run):
        raise LabError(
            "{run!r} is not a valid run id; use 1 to 80 of a-z 0-9 . _ - and begin with a letter or digit",
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


def rename_run(runs_dir: Path, run: str, new: str) -> Path:
    """Give a run another id; return its folder. Runs that began from its model find it by the new one.

    Raises: LabError for a run that is unknown or at work, and for an id that is taken or is no id.
    """
    folder = ended_run(runs_dir, run)
    check_id(new)
    target = folder.with_name(new)
    with writable_or_error(runs_dir):
        try:
            target.mkdir()  # whoever makes it has the id
        except FileExistsError as error:
            raise LabError(
                "run {run!r} is already there in {runs_dir}; choose another id", run=new, runs_dir=runs_dir
            ) from error
        try:
            folder.replace(target)
        except OSError:
            target.rmdir()
            raise
        for other in list_runs(runs_dir):
            with suppress(LabError):
                config = read_config(other.folder)
                if Path(str(config.get("model"))).absolute() == (folder / "model").absolute():
                    write_json(other.folder / "config.json", config | {"model": str(target / "model")})
    return target


def delete_run(runs_dir: Path, run: str) -> None:
    """Delete a run with its model, checkpoints and records. Raises: LabError for one that is unknown or at work."""
    folder = ended_run(runs_dir, run)
    hidden = folder.with_name(f".deleted-{secrets.token_hex(4)}")  # no list shows half of a run
    with writable_or_error(runs_dir):
        folder.rename(hidden)
        shutil.rmtree(hidden)


def ended_run(runs_dir: Path, run: str) -> Path:
    """Return the folder of a run that no process works on. Raises: LabError for one that is unknown or at work."""
    folder = find_run(runs_dir, run)
    summary = run_summary(folder)
    if summary is None:
        raise LabError("{folder} is no run folder; it is left as it is", folder=folder)
    if summary.state in ALIVE:
        raise LabError("run {run!r} is {state}; stop it first", run=run, state=summary.state)
    return folder


def run_bytes(folder: Path) -> int:
    """Return the bytes that a run takes on disk."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


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
        state=status.state if status and not problems else "failed",
        model=str(config.get("model", "?")),
        data=str(config.get("data", "?")),
        created=str(config.get("created", "")),
        status=status,
        message="; ".join(problems) or (status.message if status else ""),
    )


def run_id(model: str, data: str) -> str:
    """Return a readable id that is unlikely to occur twice. Example: "20260131-0905-builtin-sample-maple-7f"."""
    names = (re.sub(r"[^a-z0-9]+", "-", Path(name).stem.lower()).strip("-")[:20] or "x" for name in (model, data))
    date = datetime.now(UTC).strftime("%Y%m%d-%H%M")
    return "-".join([date, *names, secrets.choice(WORDS), secrets.token_hex(1)])


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


def whole_checkpoints(folder: Path) -> list[Path]:
    """Return a run's complete checkpoints, newest first: trainer_state.json is written last."""
    found = {}
    for path in (folder / "checkpoints").glob("checkpoint-*"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            found[path] = int(checkpoint_state(path)["global_step"])
    return sorted(found, key=found.__getitem__, reverse=True)


def checkpoint_state(checkpoint: Path) -> dict:
    """The Trainer's own record in a checkpoint."""
    return json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))


def finished_models(runs_dir: Path) -> dict[str, Path]:
    """Return the models of finished runs by run id, and snapshots as "id@step", newest first."""
    made = {}
    folder = Path(runs_dir)
    for config in [*folder.glob("*/model/config.json"), *folder.glob("*/snapshots/step-[0-9]*/config.json")]:
        with suppress(FileNotFoundError):  # deleted while we look
            made[config.parent] = config.stat().st_mtime
    return {_model_name(model): model for model in sorted(made, key=made.__getitem__, reverse=True)}


def _model_name(folder: Path) -> str:
    if folder.name == "model":
        return folder.parent.name
    return f"{folder.parents[1].name}@{folder.name.removeprefix('step-').lstrip('0')}"

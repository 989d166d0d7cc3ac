"""A run folder: everything about a run, on disk, for whoever wants to read it.

    <runs>/<id>/config.json    what it was told, and the machine it ran on
               status.json     how far it is
               metrics.jsonl   a line per loss measured
               samples.jsonl   a line per text written
               model/          the fine-tuned model, as save_pretrained leaves it

Single files are replaced whole (temporary file, fsync, rename); lines are appended whole.
Knows files; nothing of models.
"""

import json
import os
import re
import secrets
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from gpt2lab.errors import LabError
from gpt2lab.files import write_bytes
from gpt2lab.units import perplexity_of

RUN_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
STATES = ("running", "stopped", "finished", "failed")
WORDS = """
amber birch cedar cobalt coral dune ember fern flint frost garnet harbor hazel indigo iris juniper
lark lilac linen maple meadow mint moss ochre olive onyx opal pearl pine plum quartz raven reed river
robin rowan saffron sage slate sorrel sparrow teal thistle topaz umber violet willow wren
""".split()


@dataclass(frozen=True)
class Metric:
    """One measured loss.

    step     optimizer steps done · tokens  of text trained on by then
    split    "train" (mean since the last line) or "validation" (the whole split)
    loss     nats per token · lr  learning rate · seconds  since the run started
    """

    step: int
    tokens: int
    split: str
    loss: float
    lr: float
    seconds: float

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return perplexity_of(self.loss)


@dataclass(frozen=True)
class RunStatus:
    """How far a run is.

    state              one of STATES
    pid, pid_started   its process, and when that started (seconds since 1970): a pid alone is reused
    heartbeat          when this was written, seconds since 1970
    tokens_per_second  of training, evaluations left out · eta_seconds  until the last step; None when unknown
    message            why it failed, or ""
    """

    state: str
    step: int
    total_steps: int
    pid: int
    pid_started: float
    heartbeat: float
    tokens_per_second: float | None = None
    eta_seconds: float | None = None
    message: str = ""

    def __post_init__(self):
        if self.state not in STATES:
            raise ValueError(f"state {self.state!r} is none of {STATES}")


def new_run(runs_dir: Path, config: dict, run: str | None = None) -> Path:
    """Make the folder of a new run, with its config.json.

    run  an id of the caller's choice; made from date, model, data and a word otherwise

    Raises: LabError for an id that is taken or is no id.
    """
    run = run_id(config["model"], config["data"]) if run is None else run
    if not RUN_ID.fullmatch(run):
        raise LabError(f"run {run!r} is no run id; use 1 to 80 of a-z 0-9 . _ - and begin with a letter or digit")
    folder = Path(runs_dir) / run
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise LabError(f"run {run!r} is already there in {runs_dir}; choose another id") from error
    except OSError as error:
        raise LabError(f"{runs_dir} cannot be written ({error.strerror}); choose another folder for runs") from error
    write_json(folder / "config.json", config)
    return folder


def run_id(model: str, data: str) -> str:
    """A readable id that is unlikely to be given twice. Example: "20260131-0905-builtin-sample-maple-7f"."""
    names = (re.sub(r"[^a-z0-9]+", "-", Path(name).stem.lower()).strip("-")[:20] or "x" for name in (model, data))
    date = datetime.now(UTC).strftime("%Y%m%d-%H%M")
    return "-".join([date, *names, secrets.choice(WORDS), secrets.token_hex(1)])


def this_process() -> dict:
    """pid and pid_started of the process that calls."""
    return {"pid": os.getpid(), "pid_started": psutil.Process().create_time()}


def write_json(path: Path, content: dict) -> None:
    """Replace a file by JSON, whole or not at all."""
    write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def append_line(path: Path, content: dict) -> None:
    """Add a line of JSON, in one write."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(content, ensure_ascii=False) + "\n")


def write_status(folder: Path, status: RunStatus) -> None:
    """Replace status.json."""
    write_json(folder / "status.json", asdict(status))


def read_status(folder: Path) -> RunStatus:
    """The run's status. Raises: LabError where there is none, or it cannot be read."""
    try:
        return RunStatus(**json.loads((folder / "status.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise LabError(f"{folder} has no readable status.json ({error}); is it a run folder?") from error


def read_lines(path: Path) -> list[dict]:
    """The lines of a .jsonl file; a last line that is not whole yet is left for the next time."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1]]


def read_metrics(folder: Path) -> tuple[Metric, ...]:
    """Every loss of a run so far, in order."""
    return tuple(Metric(**line) for line in read_lines(folder / "metrics.jsonl"))


def finished_models(runs_dir: Path) -> dict[str, Path]:
    """The models that runs have left, by run id, newest first."""
    made = {}
    for config in Path(runs_dir).glob("*/model/config.json"):
        with suppress(FileNotFoundError):  # deleted while we look
            made[config.parent] = config.stat().st_mtime
    return {model.parent.name: model for model in sorted(made, key=made.get, reverse=True)}

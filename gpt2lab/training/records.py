"""Records of a run: JSON files and lines of JSON, written atomically, and what they say of losses."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import get_args

import numpy as np

from gpt2lab.errors import LabError
from gpt2lab.files import write_bytes
from gpt2lab.results import perplexity_of


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


@dataclass(frozen=True)
class Metric:
    """One measured loss.

    step     optimizer steps done · tokens  of text trained on by then
    split    "train" (mean since the last line) or "validation" (of the blocks that validations score)
    loss     nats per token · lr  learning rate · seconds  of the run so far, pauses left out

    Of training, None where it is not known:
    grad_norm          norm of the last step's gradient, before it was scaled down to the largest norm allowed
    tokens_per_second  trained on since the last such line, validations left out
    memory             bytes that the process holds, or that it has allocated on the GPU
    cpu, gpu           use since the last such line: of the machine's cores by the process, of the GPU; 0 to 1
    """

    step: int
    tokens: int
    split: str
    loss: float
    lr: float
    seconds: float
    grad_norm: float | None = None
    tokens_per_second: float | None = None
    memory: int | None = None
    cpu: float | None = None
    gpu: float | None = None

    def __post_init__(self):
        check_fields(self)

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return perplexity_of(self.loss)


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

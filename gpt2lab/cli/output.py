"""Options, output and progress bars that all commands share."""

import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from gpt2lab.errors import LabError
from gpt2lab.files import write_bytes
from gpt2lab.results import finite, readable

Model = Annotated[str, typer.Option(help="auto, builtin, a hub id such as gpt2, or a folder from save_pretrained")]
Data = Annotated[
    str, typer.Option(help="auto, sample, repeated, wikitext-2, wikitext-2-v1, a folder of splits, or a file of text")
]
Column = Annotated[
    str | None, typer.Option(help="the text column of a .csv, .tsv, .jsonl or .parquet; its only one by default")
]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")]
Runs = Annotated[Path, typer.Option("--runs", help="the folder that run folders are in")]


def fail(message: str) -> None:
    """Exit with status 2 and a one-line message."""
    if is_first():
        print(f"gpt2lab: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def is_first() -> bool:
    """Whether this is the first, or the only, of the processes that torchrun or accelerate started."""
    return os.environ.get("RANK", "0") == "0"


def report(values: dict, as_json: bool) -> None:
    """Print values as one line of JSON, or as a line each."""
    if as_json:
        print(json.dumps(finite(values), ensure_ascii=False, allow_nan=False))
        return
    known = {name: value for name, value in values.items() if value is not None}
    width = max(map(len, known))
    for name, value in known.items():
        print(f"{name:<{width}}  {readable(value, 4) if isinstance(value, float) else value}")


def print_table(head: list[str], rows: list) -> None:
    """Print a table with numbers aligned to the right."""
    lines = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    for first, *others in lines:
        print("  ".join([f"{first:<{widths[0]}}", *(f"{cell:>{w}}" for cell, w in zip(others, widths[1:]))]).rstrip())


def plain(value):
    """Paths as strings; anything else as it is."""
    return str(value) if isinstance(value, Path) else value


def one_line(text: str) -> str:
    """Replace newlines, for one line in a terminal."""
    return " ".join(text.split())


@contextmanager
def progress(unit: str):
    """Return a callback for (label, done, total) that draws a progress bar on standard error."""
    bars = {}

    def show(what: str, done: int, total: int) -> None:
        if what not in bars:
            bars[what] = tqdm(total=total, initial=done, desc=what[-40:], unit=f" {unit}", file=sys.stderr)
        bars[what].update(done - bars[what].n)

    try:
        yield show
    finally:
        for bar in bars.values():
            bar.close()


def check_out(out: Path | None) -> None:
    """Check an output path before anything is computed. Raises: LabError if its folder does not exist."""
    if out and not (out.parent.is_dir() and os.access(out.parent, os.W_OK)):
        raise LabError(
            "{out} cannot be written: {parent} is not a folder or not writable; choose another",
            out=out,
            parent=out.parent,
        )
    if out and out.is_dir():
        raise LabError("{out} is a folder; name a file in it", out=out)


def write(out: Path, content: bytes) -> None:
    """Write a file whole. Raises: LabError where it cannot be."""
    check_out(out)
    try:
        write_bytes(out, content)
    except OSError as error:
        raise LabError(
            "{out} cannot be written ({strerror}); choose another file", out=out, strerror=error.strerror
        ) from error

"""A reader's own texts, stored where runs find them again: <runs>/.texts/<id>/<name>, beside the runs."""

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from gpt2lab.data.text import load_text
from gpt2lab.data.textfiles import read_bytes, text_columns
from gpt2lab.errors import LabError, choice, first_line
from gpt2lab.files import write_bytes

FOLDER = ".texts"  # in a folder of runs
SUFFIXES = (".txt", ".zip", ".csv", ".jsonl")
MAX_BYTES = 16 << 20  # of an uploaded file
MAX_OPENED = 64 << 20  # of the texts in it
MAX_STORED = 1 << 30  # of all stored texts
NAME = 40  # characters of a file's name that are kept
TEXT_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True)
class StoredText:
    """A stored text; `load_text(str(path), column=…)` reads it and cuts it into splits, each time the same.

    id       16 hexadecimal digits, of its content and name
    columns  the text columns of a table, the longest first; () for a text
    """

    id: str
    path: Path
    columns: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    def column(self, wanted: str | None = None) -> str | None:
        """The column that is read: the one wanted, else the longest; None for a text. Raises: LabError if it is not there."""
        if not self.columns:
            return None
        return choice("column", wanted, self.columns) if wanted else self.columns[0]


def store_text(file: str | Path, runs_dir: str | Path, *, name: str | None = None) -> StoredText:
    """Store a .txt file, a .zip of them, or a .csv or .jsonl table beside the runs, whole or not at all.

    name  the file's name, if it is not that of `file`: only its last part counts

    Raises: LabError for another kind of file, one that is too large, is damaged, is not UTF-8, leads out of its archive,
    or holds too little text for a train and a validation split.
    """
    file = Path(file)
    name = safe_name(name or file.name)
    content = read_content(file, name)
    folder = Path(runs_dir) / FOLDER
    stored = StoredText(hashlib.sha256(name.encode() + b"\0" + content).hexdigest()[:16], Path())
    stored = replace(stored, path=folder / stored.id / name)
    if not (stored.path.parent / "text.json").is_file():
        check_room(folder, len(content))
        try:
            write_bytes(stored.path, content)
        except OSError as error:
            raise LabError("{name} cannot be stored ({reason})", name=name, reason=first_line(error)) from error
    try:
        sizes = text_columns(stored.path, MAX_OPENED)
        stored = replace(stored, columns=tuple(sorted(sizes, key=lambda one: -sizes[one])))
        splits = load_text(str(stored.path), column=stored.column(), limit=MAX_OPENED)
        for split in ("train", "validation"):
            splits.split(split)
    except LabError as error:
        with suppress(OSError):
            stored.path.unlink()
            stored.path.parent.rmdir()
        raise _named(error, stored.path, name) from error
    write_bytes(stored.path.parent / "text.json", json.dumps(asdict(stored) | {"path": name}).encode())
    return stored


def safe_name(name: str) -> str:
    """A file's name that any system takes. Example: "../a b?.TXT" -> "a-b.txt". Raises: LabError for another kind of file."""
    last = Path(name.replace("\\", "/")).name
    stem, suffix = Path(last).stem, Path(last).suffix.lower()
    if suffix not in SUFFIXES:
        raise LabError(
            "{name!r} is no text that can be trained on; give one of {known}", name=last[:80], known=", ".join(SUFFIXES)
        )
    return (re.sub(r"[^\w-]+", "-", stem).strip("-")[:NAME] or "text") + suffix


def read_content(file: Path, name: str) -> bytes:
    """The bytes of an ordinary file. Raises: LabError for a link, or one that is too large or cannot be read."""
    if file.is_symlink() or not file.is_file():
        raise LabError("{name} is not an ordinary file", name=name)
    try:
        return read_bytes(file, MAX_BYTES)
    except LabError as error:
        raise _named(error, file, name) from error


def _named(error: LabError, path: Path, name: str) -> LabError:
    """The error with the file's name in place of its path, which is this machine's own."""
    values = {
        key: str(value).replace(str(path), name) if isinstance(value, str | Path) else value
        for key, value in error.values.items()
    }
    return LabError(error.template, **values)


def check_room(folder: Path, n_bytes: int) -> None:
    """Raises: LabError where the stored texts would take too much."""
    used = sum(path.stat().st_size for path in folder.glob("*/*") if path.is_file())
    if used + n_bytes > MAX_STORED:
        raise LabError(
            "the stored texts take {used:,.0f} MB; the limit is {limit:,.0f} MB: delete some in {folder}",
            used=used / 1e6,
            limit=MAX_STORED / 1e6,
            folder=folder,
        )


def stored_texts(runs_dir: str | Path) -> dict[str, StoredText]:
    """Return the stored texts by id, newest first; what cannot be read is left out."""
    found: dict[StoredText, float] = {}
    for file in (Path(runs_dir) / FOLDER).glob("*/text.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(file.read_text(encoding="utf-8"))
            path = file.parent / Path(known["path"]).name
            if TEXT_ID.fullmatch(file.parent.name) and path.is_file():
                found[StoredText(file.parent.name, path, tuple(map(str, known["columns"])))] = file.stat().st_mtime
    return {text.id: text for text in sorted(found, key=found.__getitem__, reverse=True)}

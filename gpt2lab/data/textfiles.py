"""Read text out of files: plain and compressed texts, and a column of CSV, JSON Lines and Parquet files."""

import gzip
import json
import re
import stat
import zipfile
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from gpt2lab.errors import LabError, Message, first_line

TABLES = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"}
TEXTS = (".txt", ".raw", ".tokens", ".text", ".md")
PACKED = (".gz", ".zip")
STRINGS = ("string", "large_string")  # types of text columns
DELIMITERS = ",;\t|"  # of CSV files
MAX_MEMBERS = 10_000  # of an archive
MARKUP = re.compile(r"\s*(<!doctype html|<html|<\?xml)", re.IGNORECASE)
BINARY = {
    b"%PDF": Message("a PDF; save its text as a .txt file"),
    b"PK\x03\x04": Message("a zip archive or an Office document; name an archive .zip, or save a document as text"),
    b"\x1f\x8b": Message("compressed with gzip; give its name the ending .gz"),
    b"PAR1": Message("a Parquet file; give its name the ending .parquet"),
    b"\xff\xfe": Message("not UTF-8 text but UTF-16; save it as UTF-8"),
    b"\xfe\xff": Message("not UTF-8 text but UTF-16; save it as UTF-8"),
}


@dataclass(frozen=True)
class FileText:
    """The text of a file.

    parts    (title, text): one of a plain file; of an archive one per file in it; of a table one per row, empty ones too
    is_rows  whether the parts are rows of a table
    note     what was read, for a reader; "" for a plain text file, which is read whole
    """

    parts: tuple[tuple[str, str], ...]
    is_rows: bool = False
    note: str = ""


def read_file(path: Path, limit: int, column: str | None = None) -> FileText:
    """Read a file's text: by the ending of its name a table, a .gz or .zip of texts, or plain UTF-8 text.

    limit   the most bytes that are read, uncompressed
    column  of a table: the column with the text; by default the only one that holds text

    Raises: LabError for a missing, empty, binary or too large file, markup, and a column that is not there.
    """
    return _read(str(path), read_bytes(path, limit), limit, column)


def read_bytes(path: Path, limit: int) -> bytes:
    """Return a file's content. Raises: LabError where it cannot be read, or is larger than the limit."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise _too_large(str(path), Message("{size:,} bytes", size=size), limit)
        return path.read_bytes()
    except OSError as error:
        raise LabError(
            "{path} cannot be read ({strerror}); give a readable text file", path=path, strerror=error.strerror
        ) from error


def read_text(path: Path, limit: int) -> str:
    """Read a plain or compressed text file as one text. Raises: LabError as `read_file`, and for a table."""
    if path.suffix.lower() in TABLES:
        raise LabError("{path} is a table; give a text file", path=path)
    return "\n".join(text for _, text in read_file(path, limit).parts)


def _read(name: str, content: bytes, limit: int, column: str | None) -> FileText:
    """Read the content of a file as `read_file` does."""
    path = Path(name)
    suffix = path.suffix.lower()
    if suffix == ".gz":
        inner = _read(str(path.with_suffix("")), _gunzip(name, content, limit), limit, column)
        return FileText(inner.parts, inner.is_rows, inner.note or Message("gzip opened"))
    if suffix in TABLES:
        return _read_table(name, content, limit, column)
    if column is not None:
        raise LabError(
            "{name} is not a table and has no column {column!r}; leave the column out", name=name, column=column
        )
    if suffix == ".zip":
        return _read_archive(name, content, limit)
    return FileText(((path.stem, decoded(name, content)),))


def decoded(name: str, content: bytes) -> str:
    """Bytes of a file as text. Raises: LabError for what is binary, empty, HTML or JSON."""
    text = _utf8(name, content)
    if MARKUP.match(text) or Path(name).suffix.lower() in (".html", ".htm", ".xml"):
        raise LabError(
            "{name} is HTML or XML, whose markup would be learned as text; save its plain text as .txt", name=name
        )
    if is_json := _json_kind(name, text):
        raise LabError("{name} is {is_json}", name=name, is_json=is_json)
    return text


def _json_kind(name: str, text: str) -> Message | None:
    """What a JSON text is and what to do with it; None for any other text."""
    advice = Message("JSON; write one object per line into a .jsonl file, and name the column with the text")
    if Path(name).suffix.lower() == ".json":
        return advice
    start = text.lstrip()
    if start[:1] not in ("{", "["):
        return None
    try:
        json.loads(start.split("\n", 1)[0])
        return Message("JSON Lines; give its name the ending .jsonl") if "\n" in start.strip() else advice
    except ValueError:
        pass
    try:
        json.loads(start)
        return advice
    except (ValueError, RecursionError):
        return None  # prose that begins with a bracket


def _gunzip(name: str, content: bytes, limit: int) -> bytes:
    try:
        with gzip.open(BytesIO(content)) as file:
            opened = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise LabError(
            "{name} is not a complete gzip file ({error}); pack it again", name=name, error=first_line(error)
        ) from error
    if len(opened) > limit:
        raise _too_large(name, Message("more bytes unpacked"), limit)
    return opened


def _read_archive(name: str, content: bytes, limit: int) -> FileText:
    """The texts in a zip archive, by name. Nothing is unpacked to the disk."""
    parts, left = [], limit
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            for member in archive.infolist():
                _check_member(name, member)
            members = sorted(
                (one for one in archive.infolist() if _is_text_member(one.filename)), key=lambda one: one.filename
            )
            if len(members) > MAX_MEMBERS:
                raise LabError(
                    "{name} holds {count:,} files; the limit is {max_members:,}: join them",
                    name=name,
                    count=len(members),
                    max_members=MAX_MEMBERS,
                )
            for member in members:
                with archive.open(member) as file:
                    found = file.read(left + 1)
                if len(found) > left:
                    raise _too_large(name, Message("more bytes unpacked"), limit)
                left -= len(found)
                parts.append((member.filename, decoded(f"{name}/{member.filename}", found)))
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError, EOFError, zlib.error) as error:
        raise LabError(
            "{name} cannot be unpacked ({error}); pack it again, without a password", name=name, error=first_line(error)
        ) from error
    if not parts:
        raise LabError("{name} has no text file in it ({choices}); pack texts", name=name, choices=", ".join(TEXTS))
    one = Message("1 text file of the archive")
    return FileText(
        tuple(parts), note=one if len(parts) == 1 else Message("{n:,} text files of the archive", n=len(parts))
    )


def _is_text_member(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in TEXTS and not any(part.startswith((".", "__MACOSX")) for part in path.parts)


def _check_member(name: str, member: zipfile.ZipInfo) -> None:
    """Refuse what a clean archive does not hold, though nothing is unpacked: names that lead out of it, and links."""
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        raise LabError(
            "{name} holds {member!r}, which leads out of it; pack it again", name=name, member=str(path)[:80]
        )
    if stat.S_ISLNK(member.external_attr >> 16):
        raise LabError("{name} holds a link, {member!r}; pack the file itself", name=name, member=str(path)[:80])


def text_columns(path: Path, limit: int) -> dict[str, int]:
    """Return the text columns of a table with their characters, in its order; {} for a file that is no table.

    Raises: LabError for a table that cannot be read, or has no text.
    """
    suffix = Path(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix
    if suffix.lower() not in TABLES:
        return {}
    name, content = str(path), read_bytes(path, limit)
    if path.suffix.lower() == ".gz":
        name, content = str(path.with_suffix("")), _gunzip(name, content, limit)
    table, kinds = _table_of(name, content)
    sizes = {one: sum(len(text or "") for text in table[one][:]) for one, kind in kinds.items() if kind in STRINGS}
    if not any(sizes.values()):
        raise LabError("{name} has no column with text; it has {known}", name=path.name, known=", ".join(kinds))
    return sizes


def _read_table(name: str, content: bytes, limit: int, column: str | None) -> FileText:
    """A column of a table, row by row, by `datasets`."""
    rows, column, columns = _column_of(name, content, column)
    parts = tuple((f"row {i}", text or "") for i, text in enumerate(rows, 1))
    empty = sum(not text.strip() for _, text in parts)
    if empty == len(parts):
        raise LabError("column {column!r} of {name} is empty; give a column with text", column=column, name=name)
    if (size := sum(len(text.encode(errors="replace")) for _, text in parts)) > limit:
        raise _too_large(name, Message("{size:,} bytes of text", size=size), limit)
    others = ", ".join(repr(one) for one in columns if one != column)
    note = Message(
        "column {column!r}, {count:,} rows{empty}{others}",
        column=column,
        count=len(parts),
        empty=Message(", {n:,} of them empty", n=empty) if empty else "",
        others=Message("; not read: {columns}", columns=others) if others else "",
    )
    return FileText(parts, is_rows=True, note=note)


def _column_of(name: str, content: bytes, column: str | None) -> tuple[list, str, list[str]]:
    """(values, column, all columns) of a table's text column. Raises: LabError where it is not clear which, or not there."""
    table, kinds = _table_of(name, content)
    texts = [one for one, kind in kinds.items() if kind in STRINGS]
    known = ", ".join(f"{one!r}{'' if one in texts else ' (no text)'}" for one in kinds)
    if column is None and len(texts) != 1:
        raise LabError(
            "{name} has {count} text columns; choose one by --column: it has {known}",
            name=name,
            count=len(texts),
            known=known,
        )
    column = texts[0] if column is None else column
    if column not in texts:
        raise LabError("{name} has no text column {column!r}; it has {known}", name=name, column=column, known=known)
    return table[column][:], column, list(kinds)


def _table_of(name: str, content: bytes) -> tuple[Any, dict[str, str]]:
    """A table, and its columns with their types, by `datasets`. Raises: LabError for one that cannot be read."""
    import datasets

    suffix = Path(name).suffix.lower()
    options = {}
    if suffix != ".parquet":
        header = _utf8(name, content).split("\n", 1)[0]
        if TABLES[suffix] == "csv":
            options["sep"] = "\t" if suffix == ".tsv" else max(DELIMITERS, key=header.count)
    shown = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with TemporaryDirectory() as folder:
            file = Path(folder) / f"table{suffix}"
            file.write_bytes(content.removeprefix(b"\xef\xbb\xbf"))
            table = datasets.load_dataset(
                TABLES[suffix], data_files=str(file), split="train", cache_dir=folder, keep_in_memory=True, **options
            )
            return table, {one: getattr(kind, "dtype", type(kind).__name__) for one, kind in table.features.items()}
    except Exception as error:  # what a damaged file makes the libraries raise is of many types
        reason = first_line(error.__cause__ or error)
        raise LabError(
            "{name} cannot be read as {suffix} ({reason}); save it again",
            name=name,
            suffix=suffix[1:],
            reason=reason[:200],
        ) from error
    finally:
        if not shown:
            datasets.enable_progress_bars()


def _utf8(name: str, content: bytes) -> str:
    """Bytes of a file as text. Raises: LabError for what is binary or empty."""
    for start, what in BINARY.items():
        if content.startswith(start):
            raise LabError("{name} is {what}", name=name, what=what)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LabError(
            "{name} is not UTF-8 text (byte {start:,}); save it as UTF-8", name=name, start=error.start
        ) from error
    if "\0" in text:
        raise LabError(
            "{name} is binary (a zero byte at {index:,}); give a text file", name=name, index=text.index(chr(0))
        )
    if not text.strip():
        raise LabError("{name} is empty; give a file with text", name=name)
    return text


def _too_large(name: str, size: Message, limit: int) -> LabError:
    return LabError("{name} has {size}; the limit is {limit:,}: cut it into parts", name=name, size=size, limit=limit)

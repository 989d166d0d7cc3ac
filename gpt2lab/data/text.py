"""Text as articles: WikiText rows, the built-in sample, the hub's WikiText-2, files of any kind that `textfiles` reads."""

import itertools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TypeVar

from gpt2lab.data import hub, sources
from gpt2lab.data.repeated import repeated_words
from gpt2lab.data.textfiles import TABLES, TEXTS, FileText, read_file
from gpt2lab.errors import LabError, choice, first_line
from gpt2lab.results import Summary

TITLE = re.compile(r"^ = (?!= )(?P<title>.+?)(?<! =) = $")
KNOWN = f"{', '.join(sources.DATA)}, a folder or a text file"
T = TypeVar("T")
SPLITS = ("train", "validation", "test")
STEMS = {
    "train": ("train", "wiki.train"),
    "validation": ("validation", "valid", "val", "dev", "wiki.valid"),
    "test": ("test", "wiki.test"),
}
EXTENSIONS = (*TEXTS, *TABLES)
MAX_TEXT_BYTES = 600 << 20  # 7 GiB of memory: a byte of English takes 9 to 12 to be read, tokenised and packed
SHARE_HELD_OUT = 0.1  # of a lone file, for validation and for test each
SHORT = 1000  # characters: a shorter text is not cut within a word
NEAR = 0.04  # share of a text before and after a cut in which the end of a sentence is looked for
MARKS = r"[!?…。！？．｡۔؟।॥։።]+"  # that end a sentence whatever follows
SPACE = re.compile(r"\s+")
SENTENCE_END = re.compile(rf"(?:{MARKS}|\.+(?=[\s\"')\]”’»]))[\"')\]”’»」』】）]*\s*|\n\s*")


@dataclass(frozen=True, repr=False)
class Article(Summary):
    """One document. `"".join(rows)` is its text.

    title  the title, "" before a first one, or the file's name for plain text
    rows   WikiText form: the data set's rows, each ending in a newline, blank ones "" (as on the
           Hugging Face hub); plain text: one row that holds all of it
    """

    title: str
    rows: tuple[str, ...]

    def __post_init__(self):
        if not isinstance(self.rows, tuple):
            raise LabError(
                "the rows of article {title!r} are a {type}; give a tuple of strings",
                title=str(self.title)[:40],
                type=type(self.rows).__name__,
            )

    @property
    def text(self) -> str:
        """The rows' text, one after the other; blank rows add nothing."""
        return "".join(self.rows)


@dataclass(frozen=True, repr=False)
class TextSplits:
    """Articles for training, validation and test; a split may be empty."""

    name: str
    train: tuple[Article, ...] = field(repr=False)
    validation: tuple[Article, ...] = field(repr=False)
    test: tuple[Article, ...] = field(repr=False)
    # of a lone file, before it was cut in three
    whole: tuple[Article, ...] = field(default=(), repr=False, kw_only=True)
    note: str = field(default="", kw_only=True)  # which part of a file was read; "" for all of it

    def __repr__(self):
        counts = ", ".join(f"{name} {len(getattr(self, name)):,}" for name in SPLITS)
        return f"TextSplits({self.name!r}, articles: {counts})"

    def split(self, name: str) -> tuple[Article, ...]:
        """The articles of one split, or of "all".

        Raises: LabError for a name that is no split, or for a split without text.
        """
        if name == "all":
            return self.whole or self.train + self.validation + self.test
        choice("split", name, [*SPLITS, "all"])
        articles = getattr(self, name)
        if not articles:
            have = [split for split in SPLITS if getattr(self, split)]
            raise LabError(
                "{name} has no {name_2} split; it has {choices}: give a longer text, or a folder with all three",
                name=self.name,
                name_2=name,
                choices=", ".join(have),
            )
        return articles

    def extent(self, name: str) -> str:
        """Describe what a split contains; a lone file's splits are parts of it."""
        if not self.whole or name == "all":
            return f"{self.name}, {name} split" if name in SPLITS else f"{self.name}, all of it"
        first, second = self.shares
        part = {
            "train": f"the first {first:.3g} %",
            "validation": f"{first:.3g} to {second:.3g} %",
            "test": f"the last {100 - second:.3g} %",
        }[name]
        return f"{self.name}, {name} split: {part} of the file; 'all' is all of it"

    @cached_property
    def shares(self) -> tuple[float, float]:
        """Where validation and test begin in the text, in percent of its characters."""
        sizes = [sum(len(article.text) for article in getattr(self, name)) for name in SPLITS]
        total = max(1, sum(sizes))
        return 100 * sizes[0] / total, 100 * (sizes[0] + sizes[1]) / total


def wikitext_article(title: str, sections) -> Article:
    """An article in WikiText form from `(level, heading, paragraphs)` sections; level 1 is the lead."""
    rows = ["", f" = {title} = \n", ""]
    for level, heading, paragraphs in sections:
        if heading:
            marks = " ".join("=" * level)
            rows += ["", f" {marks} {heading} {marks} \n", ""]
        rows += [f" {paragraph} \n" for paragraph in paragraphs]
    return Article(title, tuple(rows))


def load_text(name: str, *, column: str | None = None, limit: int = MAX_TEXT_BYTES) -> TextSplits:
    """Load a text by name.

    name    "sample" (built in), "repeated" (random words that recur), "wikitext-2" or "wikitext-2-v1"
            (hub or its cache), a folder with train/validation/test files (or WikiText's wiki.*.raw,
            wiki.*.tokens), a file, or "auto".
            A file is UTF-8 text, a .gz or .zip of texts, or a table: .csv, .tsv, .jsonl, .parquet.
            A lone file is cut into about 80 % train, 10 % validation, 10 % test, in its order: between
            articles or rows of a table; a single text at the end of a sentence, else at white space,
            else at a character.
    column  of a table: the column with the text, a row an article; by default its only text column
    limit   the most bytes of a file that are read, unpacked

    Example: load_text("sample").train[0].title -> "Honey bee"
    Raises: LabError where there is no such text, or a file is empty, binary or too large.
    """
    if name == "auto":
        name = sources.auto_choice().data
    if column is not None and name in sources.DATA:
        raise LabError(
            "{name} is not a table and has no column {column!r}; leave the column out", name=name, column=column
        )
    if name == "sample":
        return _read_folder(sources.BUILTIN / "sample", name)
    if name == "repeated":
        return TextSplits(name, *(_untitled(repeated_words(split)) for split in SPLITS))
    if name in sources.WIKITEXT:
        return _load_wikitext(name)
    path = sources.local_path("text", name, KNOWN)
    if path.is_dir():
        return _read_folder(path, name, column)
    if path.is_file():
        found = read_file(path, limit, column)
        splits = _splits_in_archive(found, name) or _cut_in_three(_articles_in(found), name)
        return replace(splits, note=found.note)
    raise LabError("no text {name!r}: no such file or folder; use {known}", name=name, known=KNOWN)


def wikitext_rows(text: str) -> list[str]:
    """The rows of a WikiText file as the hub's data set has them: blank lines become "".

    Example: " \\n = A = \\n" -> ["", " = A = \\n"]
    """
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [f"{line}\n" if line.strip() else "" for line in lines]


def split_articles(rows) -> tuple[Article, ...]:
    """Rows → articles, cut at titles; joined again they give the rows back.

    A title is ` = Title = ` with a blank row (or the end) on either side: a formula such as
    ` = x + 1 = ` between rows of prose is none. The blank row before a title goes with it. Rows
    before the first title form an article without a title.
    """
    rows = list(rows)
    blank = [True, *(not row.strip() for row in rows), True]  # row i is blank[i + 1]
    starts, titles = [], []
    for i, row in enumerate(rows):
        match = TITLE.match(row.rstrip("\n"))
        if match and blank[i] and blank[i + 2]:
            starts.append(i - 1 if i else 0)
            titles.append(match["title"])
    if not starts or any(row.strip() for row in rows[: starts[0]]):
        starts, titles = [0, *starts], ["", *titles]
    else:
        starts[0] = 0
    ends = [*starts[1:], len(rows)]
    return tuple(Article(title, tuple(rows[a:b])) for title, a, b in zip(titles, starts, ends))


def read_articles(path: Path, column: str | None = None) -> tuple[Article, ...]:
    """A file's articles: at titles in WikiText form, else the whole text as one; a table's rows one each.

    CRLF counts as a newline. Raises: LabError as `read_file`.
    """
    return _articles_in(read_file(path, MAX_TEXT_BYTES, column))


def _articles_in(found: FileText) -> tuple[Article, ...]:
    if found.is_rows:
        articles = split_articles(text for _, text in found.parts)  # of WikiText saved as a table
        if any(article.title for article in articles):
            return articles
        return tuple(Article(title, (_newlines(text),)) for title, text in found.parts if text.strip())
    return tuple(article for title, text in found.parts for article in articles_of(text, title))


def _splits_in_archive(found: FileText, name: str) -> TextSplits | None:
    """The splits of an archive whose files are named as a folder's; None for any other file."""
    names = {f"{stem}{extension}": split for split in SPLITS for stem in STEMS[split] for extension in TEXTS}
    parts: dict[str, tuple[Article, ...]] = dict.fromkeys(SPLITS, ())
    for title, text in found.parts:
        if split := names.get(PurePosixPath(title).name):
            parts[split] += articles_of(text, title)
    return TextSplits(name, *parts.values()) if any(parts.values()) else None


def _newlines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def articles_of(text: str, title: str) -> tuple[Article, ...]:
    """A text's articles: at titles in WikiText form, else all of it as one with the title given. CRLF counts as a newline."""
    text = _newlines(text)
    articles = split_articles(wikitext_rows(text))
    return articles if any(article.title for article in articles) else (Article(title, (text,)),)


def _untitled(texts: Sequence[str]) -> tuple[Article, ...]:
    return tuple(Article("", (text,)) for text in texts)


def joined_rows(articles) -> str:
    """The text of the Hugging Face perplexity guide: every row, blank ones too, joined by a blank line.

    Plain text has one row, so that it comes out as it is.
    Source: https://huggingface.co/docs/transformers/perplexity
    """
    return "\n\n".join(row for article in articles for row in article.rows)


def original_text(articles) -> str:
    """The text of the WikiText file that the rows came from."""
    return "".join(original_row(row) for article in articles for row in article.rows)


def original_row(row: str) -> str:
    """A row as it stands in WikiText's files: a blank one, "" in the hub's data set, has a space and a newline there."""
    return row or " \n"


def _load_wikitext(name: str) -> TextSplits:
    from datasets import load_dataset
    from huggingface_hub import hf_hub_download

    if not hub.is_downloaded(name):
        hub.download(name)
    try:
        local = {
            split: hf_hub_download(sources.WIKITEXT_REPO, file, repo_type="dataset", local_files_only=True)
            for split, file in sources.wikitext_files(name).items()
        }
        parts = load_dataset("parquet", data_files=local)
    except Exception as error:  # damaged files make the libraries raise errors of many types
        raise LabError(
            "{name!r} cannot be loaded: {error}; try again, or use 'sample'", name=name, error=first_line(error)
        ) from error
    return TextSplits(name, *(split_articles(parts[split]["text"]) for split in SPLITS))


def _read_folder(folder: Path, name: str, column: str | None = None) -> TextSplits:
    files = {split: _split_file(folder, split) for split in SPLITS}
    if not any(files.values()):
        raise LabError(
            "{folder} has no train, validation or test file ({choices}, or one of them as .gz); name its files so",
            folder=folder,
            choices=", ".join(EXTENSIONS),
        )
    found = {split: read_file(path, MAX_TEXT_BYTES, column) for split, path in files.items() if path}
    notes = [f"{split}: {one.note}" for split, one in found.items() if one.note]
    parts = (_articles_in(found[split]) if split in found else () for split in SPLITS)
    return TextSplits(name, *parts, note="; ".join(notes))


def _split_file(folder: Path, split: str) -> Path | None:
    names = (
        f"{stem}{extension}{packed}" for packed in ("", ".gz") for stem in STEMS[split] for extension in EXTENSIONS
    )
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _cut_in_three(articles: tuple[Article, ...], name: str) -> TextSplits:
    """A lone file by whole articles; by WikiText rows where they are too few; other texts between sentences."""
    if len(articles) < 10 and not any(article.title and len(article.rows) > 1 for article in articles):
        texts = [Article(article.title, (part,)) for article in articles for part in article.rows]
        return _cut_between_sentences(texts, name)
    if len(articles) >= 10:
        return TextSplits(name, *map(tuple, _three_parts(articles)), whole=articles)
    parts = _three_parts([row for article in articles for row in article.rows])
    return TextSplits(name, *(split_articles(part) if part else () for part in parts), whole=articles)


def _three_parts(units: Sequence[T]) -> list[Sequence[T]]:
    """Most of the units, then two shares of SHARE_HELD_OUT."""
    held_out = round(len(units) * SHARE_HELD_OUT)
    cuts = (0, len(units) - 2 * held_out, len(units) - held_out, len(units))
    return [units[a:b] for a, b in itertools.pairwise(cuts)]


def _cut_between_sentences(articles: list[Article], name: str) -> TextSplits:
    """Articles of one row each, cut where the whole text is at 80 and 90 %; the last splits of a short text are empty."""
    text = "".join(article.text for article in articles)
    first = _cut(text, round(len(text) * (1 - 2 * SHARE_HELD_OUT)))
    cuts = first, _cut(text, round(len(text) * (1 - SHARE_HELD_OUT)), first)
    parts: list[list[Article]] = [[], [], []]
    begin = 0
    for article in articles:
        edges = [min(max(cut - begin, 0), len(article.text)) for cut in cuts]
        for part, (a, b) in zip(parts, itertools.pairwise((0, *edges, len(article.text)))):
            part += [Article(article.title, (article.text[a:b],))] if b > a else []
        begin += len(article.text)
    return TextSplits(name, *map(tuple, parts), whole=tuple(articles))


def _cut(text: str, at: int, before: int = 0) -> int:
    """Where to cut a text near a character, after the cut before: between sentences, else between words, else anywhere.

    A short text is cut between words, however far they are, and not at all if there are none after the character.
    """
    reach = round(len(text) * NEAR)
    for border in (SENTENCE_END, SPACE):
        ends = (found.end() for found in border.finditer(text, max(0, at - reach), at + reach))
        if near := [end for end in ends if before < end < len(text)]:
            return min(near, key=lambda end: abs(end - at))
    at = max(at, before)
    if len(text) < SHORT:
        found = SPACE.search(text, at)
        return found.end() if found else len(text)
    while at < len(text) and unicodedata.category(text[at]) in ("Mn", "Me", "Cf"):  # belongs to the character before
        at += 1
    return at

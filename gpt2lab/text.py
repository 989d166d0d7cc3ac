"""Text as articles: WikiText rows, the built-in sample, the hub's WikiText-2, any .txt file.

Knows nothing of tokens, models or training.
"""

import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path

from gpt2lab import hub, sources
from gpt2lab.errors import LabError, first_line

TITLE = re.compile(r"^ = (?!= )(?P<title>.+?)(?<! =) = $")
KNOWN = f"{', '.join(sources.DATA)}, a folder or a text file"
SPLITS = ("train", "validation", "test")
STEMS = {
    "train": ("train", "wiki.train"),
    "validation": ("validation", "valid", "val", "dev", "wiki.valid"),
    "test": ("test", "wiki.test"),
}
EXTENSIONS = (".txt", ".raw", ".tokens")
MAX_TEXT_BYTES = 600 << 20  # 7 GiB of memory: a byte of English takes 9 to 12 to be read, tokenised and packed
SHARE_HELD_OUT = 0.1  # of a lone .txt file, for validation and for test each


@dataclass(frozen=True)
class Article:
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
                f"the rows of article {str(self.title)[:40]!r} are a {type(self.rows).__name__}; give a tuple of strings"
            )

    @property
    def text(self) -> str:
        """The rows' text, one after the other; blank rows add nothing."""
        return "".join(self.rows)


@dataclass(frozen=True)
class TextSplits:
    """Articles for training, for choosing and for the last word; a split may be empty."""

    name: str
    train: tuple[Article, ...] = field(repr=False)
    validation: tuple[Article, ...] = field(repr=False)
    test: tuple[Article, ...] = field(repr=False)
    whole: tuple[Article, ...] = field(default=(), repr=False)  # of a lone file, before it was cut in three

    def split(self, name: str) -> tuple[Article, ...]:
        """The articles of one split, or of "all".

        Raises: LabError for a name that is no split, or for a split without text.
        """
        if name == "all":
            return self.whole or self.train + self.validation + self.test
        if name not in SPLITS:
            raise LabError(f"split {name!r} is unknown; use one of {', '.join(SPLITS)}, all")
        articles = getattr(self, name)
        if not articles:
            have = [split for split in SPLITS if getattr(self, split)]
            raise LabError(
                f"{self.name} has no {name} split; it has {', '.join(have)}: give a longer text, or a folder with all three"
            )
        return articles

    def extent(self, name: str) -> str:
        """What a split is of, in words: a lone file's are parts of it."""
        if not self.whole or name == "all":
            return f"{self.name}, {name} split" if name in SPLITS else f"{self.name}, all of it"
        part = {"train": "first 80 %", "validation": "80 to 90 %", "test": "last 10 %"}[name]
        return f"{self.name}, {name} split: the {part} of the file; 'all' is all of it"


def wikitext_article(title: str, sections) -> Article:
    """An article in WikiText form from `(level, heading, paragraphs)` sections; level 1 is the lead."""
    rows = ["", f" = {title} = \n", ""]
    for level, heading, paragraphs in sections:
        if heading:
            marks = " ".join("=" * level)
            rows += ["", f" {marks} {heading} {marks} \n", ""]
        rows += [f" {paragraph} \n" for paragraph in paragraphs]
    return Article(title, tuple(rows))


def load_text(name: str) -> TextSplits:
    """Text by name.

    name  "sample" (built in), "wikitext-2" or "wikitext-2-v1" (hub or its cache), a folder with
          train/validation/test files (or WikiText's wiki.*.raw, wiki.*.tokens), a text file, or
          "auto". A lone file is cut into 80 % train, 10 % validation, 10 % test, in its order:
          WikiText between articles, or rows where they are few; plain text at white space.

    Example: load_text("sample").train[0].title -> "Honey bee"
    Raises: LabError where there is no such text, or a file is empty, binary or too large.
    """
    if name == "auto":
        return load_text(sources.auto_choice().data)
    if name == "sample":
        return _read_folder(sources.BUILTIN / "sample", name)
    if name in sources.WIKITEXT:
        return _load_wikitext(name)
    path = sources.local_path("text", name, KNOWN)
    if path.is_dir():
        return _read_folder(path, name)
    if path.is_file():
        return _cut_in_three(read_articles(path), name)
    raise LabError(f"no text {name!r}: no such file or folder; use {KNOWN}")


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


def read_articles(path: Path) -> tuple[Article, ...]:
    """A text file's articles: at titles in WikiText form, else the whole file as one.

    CRLF counts as a newline. Raises: LabError as `read_text`.
    """
    return articles_of(read_text(path, MAX_TEXT_BYTES), path.stem)


def read_text(path: Path, limit: int) -> str:
    """A text file: UTF-8 with or without a byte order mark, of so many bytes at most.

    Raises: LabError for a missing, empty, binary or too large file.
    """
    try:
        size = path.stat().st_size
        if size > limit:
            raise LabError(f"{path} has {size:,} bytes; the limit is {limit:,}: cut it into parts")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise LabError(f"{path} is not UTF-8 text (byte {error.start:,}); save it as UTF-8") from error
    except OSError as error:
        raise LabError(f"{path} cannot be read ({error.strerror}); give a readable text file") from error
    if "\0" in text:
        raise LabError(f"{path} is binary (a zero byte at {text.index(chr(0)):,}); give a text file")
    if not text.strip():
        raise LabError(f"{path} is empty; give a file with text")
    return text


def articles_of(text: str, title: str) -> tuple[Article, ...]:
    """A text's articles: at titles in WikiText form, else all of it as one with the title given. CRLF counts as a newline."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    articles = split_articles(wikitext_rows(text))
    return articles if any(article.title for article in articles) else (Article(title, (text,)),)


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
        raise LabError(f"{name!r} cannot be loaded: {first_line(error)}; try again, or use 'sample'") from error
    return TextSplits(name, **{split: split_articles(parts[split]["text"]) for split in SPLITS})


def _read_folder(folder: Path, name: str) -> TextSplits:
    found = {split: _split_file(folder, split) for split in SPLITS}
    if not any(found.values()):
        raise LabError(f"{folder} has no train, validation or test file (.txt, .raw or .tokens); name its files so")
    return TextSplits(name, **{split: read_articles(path) if path else () for split, path in found.items()})


def _split_file(folder: Path, split: str) -> Path | None:
    paths = (folder / f"{stem}{extension}" for stem in STEMS[split] for extension in EXTENSIONS)
    return next((path for path in paths if path.is_file()), None)


def _cut_in_three(articles: tuple[Article, ...], name: str) -> TextSplits:
    """A lone file by whole articles; by rows where they are too few; plain text at white space."""
    if len(articles) == len(articles[0].rows) == 1:
        parts = _cut_at_white_space(articles[0].text)
        parts = [(Article(articles[0].title, (part,)),) if part else () for part in parts]
        return TextSplits(name, *parts, whole=articles)
    whole = len(articles) >= 10
    units = list(articles) if whole else [row for article in articles for row in article.rows]
    held_out = round(len(units) * SHARE_HELD_OUT)
    cuts = (0, len(units) - 2 * held_out, len(units) - held_out, len(units))
    parts = [units[a:b] for a, b in itertools.pairwise(cuts)]
    parts = [tuple(part) if whole else split_articles(part) if part else () for part in parts]
    return TextSplits(name, *parts, whole=articles)


def _cut_at_white_space(text: str) -> list[str]:
    """A text in three, after the white space that follows 80 % and 90 % of its characters; the last ones may be empty."""
    cuts = [0]
    for share in (1 - 2 * SHARE_HELD_OUT, 1 - SHARE_HELD_OUT):
        space = re.compile(r"\s+").search(text, max(cuts[-1], round(len(text) * share)))
        cuts.append(space.end() if space else len(text))
    return [text[a:b] for a, b in itertools.pairwise([*cuts, len(text)])]

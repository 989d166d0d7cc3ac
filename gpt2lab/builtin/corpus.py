"""Articles for training the built-in checkpoint: Wikipedia's of an excerpt on PyPI, and folders of WikiText-form text.

The PyPI package `gensim` ships an excerpt of a real Wikipedia dump among its test data. This
module fetches that wheel, takes the excerpt out and turns wiki markup into articles of plain
prose. It runs when the checkpoint is built; nothing else imports it.
Needs `pip` on the path of this Python and the package `mwparserfromhell`.
Licence of the excerpt: CC BY-SA 3.0 (Wikipedia's authors).
"""

import bz2
import csv
import gzip
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt2lab.data.text import Article, read_articles, wikitext_article
from gpt2lab.errors import LabError
from gpt2lab.evaluation.wikitext import detokenise

WHEEL = "gensim==4.4.0"
MEMBER = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
SECTIONS_WITHOUT_PROSE = {
    "bibliography", "citations", "discography", "external links", "filmography", "footnotes",
    "further reading", "gallery", "notes", "notes and references", "publications", "references",
    "references and notes", "see also", "selected works", "sources", "works", "works cited",
}  # fmt: skip
HELD_OUT = 16  # one article in so many is kept for evaluation
MIN_WORDS = 5  # shorter paragraphs are captions and leftovers of tables
OVERLAP = 13  # words in a row that a text for measuring shares with no paragraph of training (Brown et al., 2020)
EDIT_LEFTOVERS = re.compile(r"\[\[|\]\]|\{\||\|\}|\{\{|\}\}|<[a-zA-Z/!]|https?://|thumb\||\|")


@dataclass(frozen=True)
class Source:
    """Articles of one origin: what is trained on, and what is held out to measure by."""

    name: str
    train: tuple[Article, ...]
    held_out: tuple[Article, ...]


def fetch_dump(folder: Path) -> bytes:
    """The excerpt's XML, out of the wheel that pip downloads into `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder), WHEEL]
    subprocess.run(command, check=True)
    wheel = next(folder.glob("gensim-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        return bz2.decompress(archive.read(MEMBER))


def pages(xml: bytes):
    """(title, wiki markup) of every article in the dump; redirects and lists are left out."""
    for page in ElementTree.fromstring(xml).findall("{*}page"):
        title = page.findtext("{*}title") or ""
        markup = page.findtext("{*}revision/{*}text") or ""
        if page.findtext("{*}ns") == "0" and not re.match(r"\s*#redirect", markup, re.IGNORECASE):
            yield title, markup


def sections(markup: str):
    """(level, heading, paragraphs) of each section that holds prose; the lead has level 1 and no heading."""
    import mwparserfromhell

    for section in mwparserfromhell.parse(markup).get_sections(flat=True, include_lead=True):
        headings = section.filter_headings()
        heading = headings[0].title.strip_code().strip() if headings else ""
        if heading.lower() in SECTIONS_WITHOUT_PROSE:
            continue
        for node in headings + section.filter_tags(matches=lambda tag: tag.tag in ("ref", "table", "gallery")):
            try:
                section.remove(node)
            except ValueError:  # inside a node removed before
                continue
        for link in section.filter_wikilinks(matches=r"^\[\[\s*(File|Image|Category)\s*:"):
            try:
                section.remove(link)
            except ValueError:
                continue
        paragraphs = tuple(filter(None, map(clean, str(section.strip_code()).split("\n"))))
        yield (headings[0].level if headings else 1), heading, paragraphs


def clean(line: str) -> str:
    """A paragraph of prose, or "" where the line is a list entry, a caption or broken markup."""
    line = re.sub(r"''+", "", line)
    line = re.sub(r"\(\s*[;,]?\s*\)|\[\s*\]", "", line)  # brackets emptied of their templates
    line = re.sub(r"\(\s*[;,]\s*", "(", line)
    line = re.sub(r"\s+", " ", line).strip()
    line = re.sub(r" ([,.;:])(?= |$)", r"\1", line)
    is_prose = line[:1].isalnum() or line[:1] in "\"'("
    if not is_prose or EDIT_LEFTOVERS.search(line) or len(line.split()) < MIN_WORDS or line[-1] not in ".!?\"')":
        return ""
    return line


def wikipedia_articles() -> tuple[Article, ...]:
    """The excerpt's articles, without sections that hold no prose."""
    with tempfile.TemporaryDirectory() as folder:
        xml = fetch_dump(Path(folder))
    articles = []
    for title, markup in pages(xml):
        kept = [(level, heading, paragraphs) for level, heading, paragraphs in sections(markup) if paragraphs]
        if sum(len(paragraph.split()) for *_, paragraphs in kept for paragraph in paragraphs) >= 100:
            articles.append(wikitext_article(title, kept))
    return tuple(articles)


def wikipedia_source() -> Source:
    """The excerpt, with one article in sixteen held out."""
    articles = wikipedia_articles()
    held_out = articles[HELD_OUT // 2 :: HELD_OUT]
    return Source("wikipedia-2016", tuple(article for article in articles if article not in held_out), held_out)


def folder_sources(folder: Path, leave_out: Sequence[str] = ()) -> Iterator[Source]:
    """A folder's articles by source: train*.txt and validation*.txt in WikiText form, plain or .gz.

    Where articles.tsv.gz lists them (columns file, group, source, title; a row an article, in the order of the
    files), each source is one; without it, the folder is.

    leave_out  names of sources, or of groups of them
    Raises: LabError for a folder without such files, a list of other articles, and a name that nothing has.
    """
    files = {
        path.name: read_articles(path)
        for split in ("train", "validation")
        for path in sorted(folder.glob(f"{split}*.txt*"))
    }
    if not files:
        raise LabError(
            "{folder} has no train*.txt or validation*.txt, plain or as .gz; name its files so", folder=folder
        )
    listed = folder / "articles.tsv.gz"
    if listed.is_file():
        with gzip.open(listed, "rt", encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
        if [row["title"] for row in rows] != [
            article.title for row_file in _order(rows) for article in files[row_file]
        ]:
            raise LabError(
                "{listed} does not list the articles of the files beside it; fetch both again", listed=listed
            )
    else:
        rows = [{"file": name, "group": "", "source": folder.name} for name, found in files.items() for _ in found]
    if unknown := set(leave_out) - {row[column] for row in rows for column in ("group", "source")}:
        raise LabError(
            "{folder} has no group or source {choices}; leave those out of --leave-out",
            folder=folder,
            choices=", ".join(sorted(unknown)),
        )
    articles = (article for name in _order(rows) for article in files[name])
    found: dict[str, dict[str, list[Article]]] = {}
    for row, article in zip(rows, articles):
        if not {row["group"], row["source"]} & set(leave_out):
            split = "train" if row["file"].startswith("train") else "held_out"
            found.setdefault(row["source"], {"train": [], "held_out": []})[split].append(article)
    for name, parts in found.items():
        yield Source(name, tuple(parts["train"]), tuple(parts["held_out"]))


def _order(rows) -> list[str]:
    """The files' names as they are listed, once each."""
    return list(dict.fromkeys(row["file"] for row in rows))


def without_overlap(sources: Sequence[Source], measured: Sequence[Article]) -> tuple[list[Source], list[str]]:
    """Sources without what texts for measuring have in them, and what was removed, a line each.

    An article for training goes if one of `measured` has its title, a paragraph if it shares OVERLAP words in a row
    with them. Articles held out stay as they are.
    """
    titles = {article.title.casefold() for article in measured if article.title}
    known = {run for article in measured for row in article.rows for run in _runs(row)}
    kept, removed = [], []
    for source in sources:
        train = []
        for article in source.train:
            if article.title.casefold() in titles:
                removed.append(f"{source.name}: the article {article.title!r}")
                continue
            rows = tuple(row for row in article.rows if known.isdisjoint(_runs(row)))
            if left_out := len(article.rows) - len(rows):
                removed.append(f"{source.name}: {left_out} of {len(article.rows)} rows of {article.title!r}")
            train.append(Article(article.title, rows))
        kept.append(Source(source.name, tuple(train), source.held_out))
    return kept, removed


def _runs(row: str) -> Iterator[int]:
    words = re.findall(r"[^\W_]+", detokenise(row).casefold())
    return (hash(tuple(words[i : i + OVERLAP])) for i in range(len(words) - OVERLAP + 1))


def spaced(text: str) -> str:
    """Running prose with the spaces of WikiText's tokens, which `detokenise` takes out again.

    Example: spaced("It cost 1,000 pounds, he said.") -> "It cost 1 @,@ 000 pounds , he said ."
    """
    text = re.sub(r"(?<=\d)([,.])(?=\d)", r" @\1@ ", text)
    text = re.sub(r"(?<=\w)-(?=\w)", " @-@ ", text)
    text = re.sub(r"([,;:!?)\]])(?=[\s,.;:!?)\]\"']|$)", r" \1", text, flags=re.MULTILINE)
    text = re.sub(r"(?<=\w{2}|[\w)\]\"'][)\]\"'])\.(?=[)\]\"']*\s)|\.(?=[)\]\"']*$)", " .", text, flags=re.MULTILINE)
    text = re.sub(r"([(\[])(?=\S)", r"\1 ", text)
    text = re.sub(r"(?<=\S)\"(?=[\s,.;:!?)\]]|$)", ' "', text, flags=re.MULTILINE)
    text = re.sub(r"\"(?=\S)", '" ', text)
    return re.sub(r"(?<=\w)'s\b", " 's", text)

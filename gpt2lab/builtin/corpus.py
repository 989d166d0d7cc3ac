"""Wikipedia articles in WikiText form, for training the built-in checkpoint.

The PyPI package `gensim` ships an excerpt of a real Wikipedia dump among its test data. This
module fetches that wheel, takes the excerpt out and turns wiki markup into articles of plain
prose. It runs when the checkpoint is built; nothing else imports it.
Needs `pip` on the path of this Python and the package `mwparserfromhell`.
Licence of the text: CC BY-SA 3.0 (Wikipedia's authors).
"""

import bz2
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

from gpt2lab.text import Article, wikitext_article

WHEEL = "gensim==4.4.0"
MEMBER = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
SECTIONS_WITHOUT_PROSE = {
    "bibliography", "citations", "discography", "external links", "filmography", "footnotes",
    "further reading", "gallery", "notes", "notes and references", "publications", "references",
    "references and notes", "see also", "selected works", "sources", "works", "works cited",
}  # fmt: skip
MIN_WORDS = 5  # shorter paragraphs are captions and leftovers of tables
EDIT_LEFTOVERS = re.compile(r"\[\[|\]\]|\{\||\|\}|\{\{|\}\}|<[a-zA-Z/!]|https?://|thumb\||\|")


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

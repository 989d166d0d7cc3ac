"""Fixtures for pictures and pages: traces of the tiny model and traces made to order, a reader of HTML."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch

from gpt2lab.inspection.trace import Trace, trace


@dataclass
class Read:
    """What a browser's parser finds in a document: (tag, attributes), and the text outside scripts and styles."""

    tags: list = field(default_factory=list)
    texts: list = field(default_factory=list)
    scripts: list = field(default_factory=list)

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)

    def attributes(self, *names):
        return [value for _, attributes in self.tags for name, value in attributes.items() if name in names]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="session")
def read_html():
    """A function: HTML → what a parser finds in it."""

    def read(html):
        found, inside = Read(), SimpleNamespace(tag=None)
        parser = HTMLParser(convert_charrefs=True)

        def start(tag, attributes):
            inside.tag = tag
            found.tags.append((tag, dict(attributes)))
            if tag == "script":
                found.scripts.append("")

        def data(text):
            if inside.tag == "script":
                found.scripts[-1] += text
            elif inside.tag != "style":
                found.texts.append(text)

        parser.handle_starttag, parser.handle_data = start, data
        parser.handle_endtag = lambda tag: setattr(inside, "tag", None)
        parser.feed(html)
        parser.close()
        return found

    return read


@pytest.fixture(scope="session")
def tiny_trace(tiny_lab):
    return trace(tiny_lab, "The moon is a small world.")


@pytest.fixture(scope="session")
def made_trace():
    """A function: q and k (L, H, T, K), and tokens → a trace with them, and zeros elsewhere."""

    def make(q, k, tokens=None):
        L, _, T, _ = q.shape
        return Trace(
            name="made",
            tokens=tuple(tokens or (f"t{i}" for i in range(T))),
            ids=torch.arange(T),
            q=q,
            k=k,
            v=torch.zeros_like(q),
            scaling=(1.0,) * L,
        )

    return make


@pytest.fixture(scope="session")
def random_trace(made_trace):
    """A function: L, H, T → a trace with seeded random attention."""

    def make(L, H, T, tokens=None):
        generator = torch.Generator().manual_seed(0)
        q, k = torch.randn(2, L, H, T, 4, generator=generator)
        return made_trace(q, k, tokens)

    return make


# display strings that no view may run, reorder or lose
HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    "<b>",
    "&amp;",
    "\"'`",
    "$x$",
    "\u202eשלום",
    "مرحبا",
    "e\u0301\u0301",
    "🌙⟨F0⟩",
)

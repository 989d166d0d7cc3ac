"""Break the loss of a text down by document, position in the window, token frequency, or part of the article.

Each is a function from a ScoredText to Shares that add up to the whole.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import log

import numpy as np

from gpt2lab.errors import Message, choice, whole_number
from gpt2lab.evaluation.perplexity import document_totals
from gpt2lab.evaluation.scorer import ScoredText
from gpt2lab.results import finite, perplexity_of

TITLE = re.compile(r"^ ?= (?![= ]).*(?<![= ]) = ?$", re.MULTILINE)
HEADING = re.compile(r"^ ?=(?: ?=)++ .*[^=\s] =(?: ?=)++ ?$", re.MULTILINE)  # possessive: linear in the line's length
FREQUENCIES = {
    Message("once"): 1,
    Message("2 to 9 times"): 2,
    Message("10 to 99 times"): 10,
    Message("100 to 999 times"): 100,
    Message("1,000 times or more"): 1000,
}
PARTS = (Message("prose"), Message("title"), Message("heading"))


@dataclass(frozen=True)
class Share:
    """A part of the scored tokens; it has at least one prediction.

    nll      nats of all its tokens
    n_bytes  of its original text, where it is a document
    """

    label: str
    n_scored: int
    nll: float
    n_bytes: int | None = None

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nll / self.n_scored

    @property
    def perplexity(self) -> float:
        """exp of the loss."""
        return perplexity_of(self.loss)

    @property
    def bits_per_byte(self) -> float | None:
        """Of a document's original text; None of other parts."""
        return self.nll / self.n_bytes / log(2) if self.n_bytes else None

    def record(self) -> dict:
        """Every figure, as JSON has them; infinite ones are None."""
        names = ("label", "n_scored", "nll", "loss", "perplexity", "bits_per_byte")
        return finite({name: getattr(self, name) for name in names})


def by_document(scored: ScoredText) -> tuple[Share, ...]:
    """Shares by article (lm-eval: page), the highest loss per token first."""
    nll, counts = document_totals(scored)
    shares = (
        Share(title, n, total, document.n_bytes)
        for title, document, n, total in zip(titles(scored), scored.tokenized.documents, counts.tolist(), nll.tolist())
        if n
    )
    return tuple(sorted(shares, key=lambda share: -share.loss))


def titles(scored: ScoredText) -> list[str]:
    """Return a label for each document: its title, or its number if the title is missing or not unique."""
    given = [document.title for document in scored.tokenized.documents]
    often = Counter(given)
    return [
        title if often[title] == 1 and title else f"{title} {i + 1}" if title else Message("document {n}", n=i + 1)
        for i, title in enumerate(given)
    ]


def by_position(scored: ScoredText) -> tuple[Share, ...]:
    """Shares by how many tokens of its window stood before a token: 1, 2 to 3, 4 to 7, …, doubling."""
    position = scored.tokenized.position
    last = int(position.max())
    doublings = np.frexp(np.maximum(position, 1))[1] - 1  # floor(log2), exactly
    ranges = [(1 << k, min((2 << k) - 1, last)) for k in range(last.bit_length())]
    return _shares(scored, doublings, [_range(low, high) for low, high in ranges])


def _range(low: int, high: int) -> str:
    return Message("{low:,} to {high:,}", low=low, high=high) if low < high else f"{low:,}"


def by_frequency(scored: ScoredText) -> tuple[Share, ...]:
    """Shares by how often a token occurs in the text."""
    ids = scored.tokenized.ids
    times = np.bincount(ids)[ids]  # (n,)
    return _shares(scored, np.searchsorted([*FREQUENCIES.values()], times, side="right") - 1, [*FREQUENCIES])


def by_part(scored: ScoredText) -> tuple[Share, ...]:
    """Shares by part of the article: title, heading or prose. Plain text is all prose."""
    tokenized = scored.tokenized
    text, part = tokenized.text, np.zeros(len(tokenized.text) + 1, dtype=np.int8)
    begins = tokenized.starts[np.unique(tokenized.document, return_index=True)[1]]  # of the documents, in the text
    for found in TITLE.finditer(text):
        begin = begins[np.searchsorted(begins, found.start(), side="right") - 1]
        if not text[begin : found.start()].strip():  # elsewhere it is a formula
            part[found.start() : found.end()] = PARTS.index("title")
    for found in HEADING.finditer(text):
        part[found.start() : found.end()] = PARTS.index("heading")
    return _shares(scored, part[tokenized.starts], PARTS)


BREAKDOWNS: dict[str, Callable[[ScoredText], tuple[Share, ...]]] = {
    "document": by_document,
    "position": by_position,
    "frequency": by_frequency,
    "part": by_part,
}


def breakdown(scored: ScoredText, by: str) -> tuple[Share, ...]:
    """One of BREAKDOWNS by name. Raises: LabError for another."""
    choice("breakdown", by, BREAKDOWNS)
    return BREAKDOWNS[by](scored)


def surprisals(scored: ScoredText, document: int) -> list[tuple[str, float | None]]:
    """Return a document's text in pieces, each with its NLL in nats, None if nothing predicts it.

    Tokens that hold parts of one character are one piece, with their NLLs added.
    """
    tokenized = scored.tokenized
    document = whole_number("document", document, 0, len(tokenized.documents) - 1)
    low, high = np.searchsorted(tokenized.document, [document, document + 1]).tolist()
    if low == high:
        return []
    begins, first = np.unique(tokenized.starts[low:high], return_index=True)
    ends = [*begins[1:].tolist(), int(tokenized.starts[high]) if high < len(tokenized.ids) else len(tokenized.text)]
    losses = scored.nll[low:high]
    nll = np.add.reduceat(np.nan_to_num(losses), first)
    known = np.add.reduceat(~np.isnan(losses), first) > 0
    return [
        (tokenized.text[begin:end], cost if has else None)
        for begin, end, cost, has in zip(begins.tolist(), ends, nll.tolist(), known.tolist())
    ]


def _shares(scored: ScoredText, group: np.ndarray, labels) -> tuple[Share, ...]:
    """The share of each group number, (n,), by its label; those without a prediction are left out."""
    known = scored.predicted
    counts = np.bincount(group[known], minlength=len(labels)).tolist()
    totals = np.bincount(group[known], scored.nll[known], len(labels)).tolist()
    return tuple(Share(label, n, total) for label, n, total in zip(labels, counts, totals) if n)

"""Protocols: what of a text is tokenised how, read in which windows, and divided by which counts.

Each is a function from articles to a Reading, and the scorer asks no more than that. Knows tokenizers; nothing of
models. "Perplexity on WikiText-2" names none of these choices, and each moves the number.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gpt2lab.blocks import tokens_and_starts
from gpt2lab.errors import LabError
from gpt2lab.scoring.wikitext import detokenise, pages
from gpt2lab.text import Article, joined_rows, original_row, original_text

ROWS_AT_ONCE = 1000  # rows that run_clm concatenates at a time: the batch of `datasets.map`, whose rest is dropped
LINE = re.compile(r"[^\n]*\n|[^\n]+")
WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Document:
    """One document of a reading: its title, and the words and bytes of its original text."""

    title: str
    n_words: int
    n_bytes: int


@dataclass(frozen=True, eq=False)
class Reading:
    """A text as a protocol reads it.

    context    tokens that a prediction can build on, at most, and itself (in lm-eval: beside itself)
    stride     tokens from window to window
    text       what was tokenised, documents one after the other
    ids        (n,) int64
    starts     (n,) int64 the character of `text` that each token begins at
    document   (n,) int64 index into documents, never falling
    windows    (W, 3) int64 (start, first, end): tokens from start on are read, those from first to end scored
    documents  what the loss is divided by, and drawn from
    added      tokens of `ids` that are not of the text: an `<|endoftext|>` before each document of lm-eval
    sample     (articles read, articles there are) where not all were
    """

    protocol: str
    context: int
    stride: int
    text: str
    ids: np.ndarray
    starts: np.ndarray
    document: np.ndarray
    windows: np.ndarray
    documents: tuple[Document, ...]
    added: int = 0
    sample: tuple[int, int] | None = None

    def __post_init__(self):
        if not len(self.ids) == len(self.starts) == len(self.document):
            raise ValueError(f"{len(self.ids)} ids, {len(self.starts)} starts, {len(self.document)} documents")
        if self.windows.ndim != 2 or self.windows.shape[1] != 3:
            raise ValueError(f"windows of shape {self.windows.shape}; (W, 3) is needed")

    @property
    def position(self) -> np.ndarray:
        """(n,) int64: tokens before each one in the window that scores it; -1 where none does."""
        position = np.full(len(self.ids), -1)
        for start, first, end in self.windows.tolist():
            position[first:end] = np.arange(first - start, end - start)
        return position

    @property
    def n_words(self) -> int:
        """Of all documents."""
        return sum(document.n_words for document in self.documents)

    @property
    def n_bytes(self) -> int:
        """Of all documents."""
        return sum(document.n_bytes for document in self.documents)


def sliding(tokenizer, articles: tuple[Article, ...], context: int, stride: int) -> Reading:
    """The Hugging Face guide's: all rows joined by blank lines; windows begin at 0, stride, 2·stride, …

    Each window scores the tokens that none before it did, so that the text's first token has no prediction; where
    windows are disjoint (stride = context), nor has the first of each.
    Source: https://huggingface.co/docs/transformers/perplexity
    """
    text = joined_rows(articles)
    ids, starts = tokens_and_starts(tokenizer, text)
    n = len(ids)
    if n < 2:
        raise LabError(f"the text has only {n} of the 2 tokens that perplexity needs at least; give more text")
    begins = np.arange(0, max(1, n - context + stride), stride)
    ends = np.minimum(begins + context, n)
    scored_to = np.concatenate([[0], ends[:-1]])
    windows = np.stack([begins, np.maximum(begins + 1, scored_to), ends], axis=1)
    # a blank line stands between rows, and belongs to the row before it
    edges = np.cumsum([sum(len(row) + 2 for row in article.rows) for article in articles])
    document = np.searchsorted(edges, starts, side="right")
    whole = tuple(_document(article.title, original_text([article])) for article in articles)
    return Reading("sliding", context, stride, text, ids, starts, document, windows, whole)


def lm_eval(tokenizer, articles: tuple[Article, ...], context: int, stride: int) -> Reading:
    """lm-evaluation-harness' task `wikitext`: page by page, detokenised, `<|endoftext|>` first, every token scored.

    Windows predict `context` tokens each, and begin with the token before them; the last one of a page reaches
    back as far as the context does. Words and bytes are those of the page before it was detokenised, and the
    harness counts the empty strings at either end of a page as words. `stride` is the context here.
    """
    originals = pages(original_text(articles))
    ids, starts, document, windows, texts, offset = [], [], [], [], [], 0
    for number, page in enumerate(map(detokenise, originals)):
        begin = sum(map(len, ids))
        page_ids, page_starts = tokens_and_starts(tokenizer, page)
        ids.append(np.concatenate([[tokenizer.eos_token_id], page_ids]))
        starts.append(np.concatenate([[0], page_starts]) + offset)
        document.append(np.full(len(ids[-1]), number))
        end = begin + len(ids[-1])
        for first in range(begin + 1, end, context):
            last = min(first + context, end)
            windows.append((max(begin, last - context - 1) if last == end else first - 1, first, last))
        texts.append(page)
        offset += len(page)
    if not windows:
        raise LabError("the text has no words to predict; give more text")
    documents = tuple(Document(_title(page), len(re.split(r"\s+", page)), len(page.encode())) for page in originals)
    parts = (np.concatenate(part).astype(np.int64) for part in (ids, starts, document))
    text, added = "".join(texts), len(originals)
    return Reading("lm-eval", context, context, text, *parts, np.array(windows, dtype=np.int64), documents, added)


def blocks(tokenizer, articles: tuple[Article, ...], context: int, stride: int) -> Reading:
    """transformers' run_clm: each row tokenised by itself, 1,000 rows at a time concatenated and cut into blocks.

    What is left of each thousand rows is dropped, and a block's first token has no prediction. Words and bytes are
    those of the blocks. `stride` is the context here.
    Source: group_texts in https://github.com/huggingface/transformers/blob/main/examples/pytorch/language-modeling/run_clm.py
    """
    rows = [line for article in articles for row in article.rows for line in LINE.findall(row) or [row]]
    ids, starts, windows, begin, offset = [], [], [], 0, 0
    for batch in (rows[i : i + ROWS_AT_ONCE] for i in range(0, len(rows), ROWS_AT_ONCE)):
        encoded = tokenizer(batch, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for row, row_ids, spans in zip(batch, encoded["input_ids"], encoded["offset_mapping"]):
            ids += row_ids
            starts += [start + offset for start, _ in spans]
            offset += len(original_row(row))
        windows += [(start, start + 1, start + context) for start in range(begin, len(ids) - context + 1, context)]
        begin = len(ids)
    if not windows:
        raise LabError(
            f"the text has {len(ids):,} tokens, and no {ROWS_AT_ONCE:,} rows of it a block of {context:,}; "
            "give more text or a smaller context"
        )
    ids, starts, windows = (np.array(values, dtype=np.int64) for values in (ids, starts, windows))
    text = original_text(articles)
    edges = np.cumsum([len(original_text([article])) for article in articles])
    kept = np.zeros(len(ids), bool)
    for start, _, end in windows.tolist():
        kept[start:end] = True
    documents = _kept_documents(articles, text, edges, starts, kept)
    document = np.searchsorted(edges, starts, side="right")
    return Reading("blocks", context, context, text, ids, starts, document, windows, documents)


PROTOCOLS: dict[str, Callable[..., Reading]] = {"sliding": sliding, "lm-eval": lm_eval, "blocks": blocks}


def described(reading: Reading) -> str:
    """The protocol and its parameters in words."""
    context, stride = f"{reading.context:,}", f"{reading.stride:,}"
    step = "disjoint" if reading.stride == reading.context else f"a new one every {stride} tokens"
    return {
        "sliding": f"rows joined by blank lines; windows of {context} tokens, {step}, each scoring what none before it did",
        "lm-eval": f"page by page, detokenised, <|endoftext|> first; disjoint windows that predict {context} tokens each",
        "blocks": f"each row tokenised by itself, joined without blank lines, in blocks of {context} tokens; the rest of "
        f"every {ROWS_AT_ONCE:,} rows is dropped",
    }[reading.protocol]


def _document(title: str, text: str) -> Document:
    return Document(title, len(text.split()), len(text.encode()))


def _title(page: str) -> str:
    """The first line of a page that is not blank, without its marks."""
    return next(line for line in page.split("\n") if line.strip()).strip().removeprefix("= ").removesuffix(" =")


def _kept_documents(articles, text: str, edges, starts: np.ndarray, kept: np.ndarray) -> tuple[Document, ...]:
    """Each article with the words that begin, and the bytes that lie, in tokens that are kept.

    edges  (articles,) where each article ends in `text` · starts, kept  (n,) of the tokens
    """
    character = np.arange(len(text))
    keeps = kept[np.maximum(np.searchsorted(starts, character, side="right") - 1, 0)]  # by the token it lies in
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    sizes = 1 + sum((codes >= limit).astype(int) for limit in (0x80, 0x800, 0x10000))  # bytes of UTF-8
    begins_word = np.zeros(len(text), bool)
    begins_word[[match.start() for match in WORD.finditer(text)]] = True
    owner = np.searchsorted(edges, character, side="right")
    n_words, n_bytes = (np.bincount(owner, keeps * what, len(articles)).astype(int) for what in (begins_word, sizes))
    return tuple(
        Document(article.title, *counts) for article, *counts in zip(articles, n_words.tolist(), n_bytes.tolist())
    )

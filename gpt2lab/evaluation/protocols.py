"""Protocols: how a text is tokenised and split into windows, and which counts its loss is divided by.

Each is a function from articles to a TokenizedText. "Perplexity on WikiText-2" leaves these choices open, and each changes the number.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gpt2lab.data.text import Article, joined_rows, original_row, original_text
from gpt2lab.data.tokens import start_id, tokens_and_starts
from gpt2lab.errors import LabError, Message
from gpt2lab.evaluation.wikitext import detokenise, pages
from gpt2lab.results import Summary

ROWS_AT_ONCE = 1000  # rows that run_clm concatenates at a time: the batch of `datasets.map`, whose rest is dropped
LINE = re.compile(r"[^\n]*\n|[^\n]+")
WORD = re.compile(r"(?<!\S)\S")  # where one begins


class ProtocolError(LabError):
    """The text is too short for the protocol, or the tokenizer lacks what it needs; another protocol may do."""


@dataclass(frozen=True)
class Document:
    """One document of a tokenised text: its title, and the words and bytes of its original text."""

    title: str
    n_words: int
    n_bytes: int


@dataclass(frozen=True, eq=False, repr=False)
class TokenizedText(Summary):
    """A text, tokenised and split into windows by a protocol.

    context    tokens in a window; lm-eval's have one more, before those that they predict
    stride     tokens from window to window
    text       what was tokenised, documents one after the other
    ids        (n,) int64
    starts     (n,) int64 the character of `text` that each token begins at, never falling
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
    def unpredicted(self) -> float:
        """Share of the tokens in windows that none of them predicts, of those that are of the text."""
        lengths = self.windows[:, 2] - self.windows[:, 0]
        predicted = int((self.windows[:, 2] - self.windows[:, 1]).sum())
        return 1 - predicted / (min(int(lengths.sum()), len(self.ids)) - self.added)

    @property
    def n_words(self) -> int:
        """Words in all documents."""
        return sum(document.n_words for document in self.documents)

    @property
    def n_bytes(self) -> int:
        """Bytes in all documents."""
        return sum(document.n_bytes for document in self.documents)


def sliding(tokenizer, articles: tuple[Article, ...], context: int, stride: int) -> TokenizedText:
    """The Hugging Face guide's: all rows joined by blank lines; windows begin at 0, stride, 2·stride, …

    Each window scores the tokens that none before it did, so that the text's first token has no prediction; where
    windows are disjoint (stride = context), nor has the first of each.
    Source: https://huggingface.co/docs/transformers/perplexity
    """
    text = joined_rows(articles)
    ids, starts = tokens_and_starts(tokenizer, text)
    n = len(ids)
    if n < 2:
        raise ProtocolError("the text has only {n} of the 2 tokens that perplexity needs at least; give more text", n=n)
    begins = np.arange(0, max(1, n - context + stride), stride)
    ends = np.minimum(begins + context, n)
    scored_to = np.concatenate([[0], ends[:-1]])
    windows = np.stack([begins, np.maximum(begins + 1, scored_to), ends], axis=1)
    # a blank line stands between rows, and belongs to the row before it
    edges = np.cumsum([sum(len(row) + 2 for row in article.rows) for article in articles])
    document = np.searchsorted(edges, starts, side="right")
    whole = tuple(_document(article.title, original_text([article])) for article in articles)
    return TokenizedText("sliding", context, stride, text, ids, starts, document, windows, whole)


def lm_eval(tokenizer, articles: tuple[Article, ...], context: int, stride: int) -> TokenizedText:
    """lm-evaluation-harness' task `wikitext`: page by page, detokenised, every token scored, after the tokenizer's
    beginning token, or its end token where it has none (GPT-2's `<|endoftext|>`).

    Windows predict `context` tokens each, and begin with the token before them; the last one of a page reaches
    back as far as the context does. Words and bytes are those of the page before it was detokenised, and the
    harness counts the empty strings at either end of a page as words. `stride` is the context here.
    """
    start = start_id(tokenizer)
    if start is None:
        raise ProtocolError(
            "the tokenizer has no beginning or end token, which lm-eval puts before each page; use sliding or blocks"
        )
    originals = pages(original_text(articles))
    ids, starts, document, windows, texts, begin, offset = [], [], [], [], [], 0, 0
    for number, page in enumerate(map(detokenise, originals)):
        page_ids, page_starts = tokens_and_starts(tokenizer, page)
        ids.append(np.concatenate([[start], page_ids]))
        starts.append(np.concatenate([[0], page_starts]) + offset)
        document.append(np.full(len(ids[-1]), number))
        end = begin + len(ids[-1])
        for first in range(begin + 1, end, context):
            last = min(first + context, end)
            windows.append((max(begin, last - context - 1) if last == end else first - 1, first, last))
        texts.append(page)
        begin, offset = end, offset + len(page)
    if not windows:
        raise ProtocolError("the text has no words to predict; give more text")
    documents = tuple(Document(_title(page), len(re.split(r"\s+", page)), len(page.encode())) for page in originals)
    all_ids, all_starts, all_owners = (np.concatenate(part).astype(np.int64) for part in (ids, starts, document))
    return TokenizedText(
        protocol="lm-eval",
        context=context,
        stride=context,
        text="".join(texts),
        ids=all_ids,
        starts=all_starts,
        document=all_owners,
        windows=np.array(windows, dtype=np.int64),
        documents=documents,
        added=len(originals),
    )


def blocks(tokenizer, articles: tuple[Article, ...], context: int, stride: int) -> TokenizedText:
    """transformers' run_clm: each row tokenised by itself, 1,000 rows at a time concatenated and cut into blocks.

    What is left of each thousand rows is dropped, and a block's first token has no prediction. Words and bytes are
    those of the blocks. `stride` is the context here.
    Source: group_texts in https://github.com/huggingface/transformers/blob/main/examples/pytorch/language-modeling/run_clm.py
    """
    rows = [line for article in articles for row in article.rows for line in LINE.findall(row) or [row]]
    ids: list[int] = []
    starts: list[int] = []
    windows, kept, offset = [], [], 0
    for batch in (rows[i : i + ROWS_AT_ONCE] for i in range(0, len(rows), ROWS_AT_ONCE)):
        begin, batch_offset = len(ids), offset
        encoded = tokenizer(batch, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for row, row_ids, spans in zip(batch, encoded["input_ids"], encoded["offset_mapping"]):
            ids += row_ids
            starts += [start + offset for start, _ in spans]
            offset += len(original_row(row))
        end = begin + (len(ids) - begin) // context * context
        windows += [(start, start + 1, start + context) for start in range(begin, end, context)]
        kept.append(
            (batch_offset, starts[end] if end < len(ids) else offset)
        )  # characters; none where there is no block
    if not windows:
        raise ProtocolError(
            "the text has {n:,} tokens, and no {rows:,} rows of it a block of {context:,}; give more text or a smaller "
            "context",
            n=len(ids),
            rows=ROWS_AT_ONCE,
            context=context,
        )
    text = original_text(articles)
    edges = np.cumsum([len(original_text([article])) for article in articles])
    begins = [0, *edges[:-1].tolist()]
    documents = tuple(
        _document(article.title, text, [(max(lo, begin), min(hi, end)) for lo, hi in kept if lo < end and hi > begin])
        for article, begin, end in zip(articles, begins, edges.tolist())
    )
    document = np.searchsorted(edges, starts, side="right")
    return TokenizedText(
        protocol="blocks",
        context=context,
        stride=context,
        text=text,
        ids=np.array(ids, dtype=np.int64),
        starts=np.array(starts, dtype=np.int64),
        document=document,
        windows=np.array(windows, dtype=np.int64),
        documents=documents,
    )


PROTOCOLS: dict[str, Callable[..., TokenizedText]] = {"sliding": sliding, "lm-eval": lm_eval, "blocks": blocks}


def described(tokenized: TokenizedText) -> Message:
    """The protocol and its parameters in words."""
    context, stride = tokenized.context, tokenized.stride
    if tokenized.protocol == "lm-eval":
        return Message(
            "page by page, detokenised, <|endoftext|> first; disjoint windows that predict {context:,} tokens each",
            context=context,
        )
    if tokenized.protocol == "blocks":
        return Message(
            "each row tokenised by itself, joined without blank lines, in blocks of {context:,} tokens; the rest of every "
            "{rows:,} rows is dropped",
            context=context,
            rows=ROWS_AT_ONCE,
        )
    if stride == context:
        return Message(
            "rows joined by blank lines; windows of {context:,} tokens, disjoint, each scoring what none before it did",
            context=context,
        )
    return Message(
        "rows joined by blank lines; windows of {context:,} tokens, a new one every {stride:,} tokens, each scoring what "
        "none before it did",
        context=context,
        stride=stride,
    )


def _document(title: str, text: str, parts: list[tuple[int, int]] | None = None) -> Document:
    """A document with the words that begin, and the bytes that lie, in some parts of a text; in all of it by default."""
    parts = [(0, len(text))] if parts is None else parts
    n_words = sum(len(WORD.findall(text, begin, end)) for begin, end in parts)
    return Document(title, n_words, sum(len(text[begin:end].encode()) for begin, end in parts))


def _title(page: str) -> str:
    """The title that a page begins with; none where it begins with other text."""
    line = next(line for line in page.split("\n") if line.strip()).strip()
    marked = line.startswith("= ") and line.endswith(" =")
    return line.removeprefix("= ").removesuffix(" =") if marked else ""

"""What a model will be trained on: articles, tokens and blocks of a text's splits, counted as training reads them."""

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from gpt2lab.data.blocks import IGNORED, pack, token_ids
from gpt2lab.data.text import SPLITS, Article, TextSplits, load_text
from gpt2lab.data.tokens import display_tokens, encode
from gpt2lab.errors import LabError, whole_number
from gpt2lab.results import Result, Summary, Table

BINS = 30  # of the histogram, at most
BLOCK_TOKENS = 1024  # of the first block that are shown


@dataclass(frozen=True, eq=False, repr=False)
class SplitPreview(Summary):
    """A split of a text as blocks.

    lengths      (articles,) tokens of each article, its end token included
    characters   of its text
    n_tokens     that blocks hold, end tokens included · blocks  how many
    dropped      tokens that are in no block: 1 where a single one was left over, all where they fill no block
    padding      positions of the last block that hold no text
    blank_lines  lines of WikiText without text, which are left out
    """

    name: str
    lengths: np.ndarray
    characters: int
    n_tokens: int
    blocks: int
    dropped: int
    padding: int
    blank_lines: int

    @property
    def articles(self) -> int:
        """Number of articles."""
        return len(self.lengths)


@dataclass(frozen=True, eq=False, repr=False)
class Preview(Result):
    """A text as a model is trained on it.

    splits       train, validation and test, of those that have text
    block_size   tokens per block
    first_block  ids of the first block of the train split; fewer where the text does not fill it
    tokens       display strings of them
    end_token    display string of the token that ends each article; "" for a tokenizer without one
    note         which part of a file was read; "" for all of it
    """

    name: str
    splits: tuple[SplitPreview, ...]
    block_size: int
    first_block: np.ndarray
    tokens: tuple[str, ...]
    text: str
    end_token: str
    note: str = ""

    @property
    def title(self) -> str:
        """Title of the exported page."""
        return f"{self.name} in blocks of {self.block_size:,} tokens"

    def table(self) -> Table:
        """A row per split."""
        head = [
            "split",
            "articles",
            "characters",
            "tokens",
            "blocks",
            "tokens dropped",
            "padding",
            "blank lines left out",
        ]
        return Table(
            head,
            [
                (s.name, s.articles, s.characters, s.n_tokens, s.blocks, s.dropped, s.padding, s.blank_lines)
                for s in self.splits
            ],
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Tokens of each article by split, and the ids of the first block."""
        return {f"{split.name}_lengths": split.lengths for split in self.splits} | {"first_block": self.first_block}

    def record(self) -> dict:
        """The table, the histogram and the first block."""
        head, rows = self.table()
        edges, counts = self.histogram()
        return {
            "name": self.name,
            "block_size": self.block_size,
            "splits": [dict(zip(head, row)) for row in rows],
            "histogram": {"edges": edges, "counts": counts},
            "first_block": {"ids": self.first_block.tolist(), "tokens": list(self.tokens), "text": self.text},
            "note": self.note,
        }

    def histogram(self) -> tuple[list[int], dict[str, list[int]]]:
        """Articles by their tokens: edges of the bins, which are whole numbers, and counts by split.

        A bin holds lengths from its edge up to the next one, that excluded; bins widen by a constant factor where
        lengths differ much.
        """
        every = np.concatenate([split.lengths for split in self.splits])
        low, high = int(every.min()), int(every.max()) + 1
        n = min(BINS, max(6, int(2 * len(every) ** 0.5)), high - low)
        spread = np.geomspace if high > 20 * max(1, low) else np.linspace
        edges = np.unique(np.round(spread(max(1, low), high, n + 1)).astype(int))
        edges[0] = min(low, edges[0])
        return edges.tolist(), {s.name: np.histogram(s.lengths, edges)[0].tolist() for s in self.splits}


def preview(lab, text: str | TextSplits, block_size: int = 256, *, column: str | None = None) -> Preview:
    """Show a text as training reads it: articles, tokens and blocks per split, and the first block.

    lab         a Lab, or a tokenizer
    text        what `load_text` takes or returns
    block_size  tokens per block, at most the model's context
    column      of a table: the column with the text

    Example: preview(lab, "sample", 256).splits[0].n_tokens
    Raises: LabError as `load_text`, and for a block size out of range.
    """
    tokenizer: PreTrainedTokenizerBase = getattr(lab, "tokenizer", lab)
    block_size = whole_number("block_size", block_size, 2, getattr(lab, "context", 10**6))
    splits = load_text(text, column=column) if isinstance(text, str) else text
    found = {name: token_ids(tokenizer, splits.split(name)) for name in SPLITS if getattr(splits, name)}
    shown = tuple(_split(tokenizer, splits.split(name), name, ids, block_size) for name, ids in found.items())
    if not shown or not any(split.n_tokens + split.dropped for split in shown):
        raise LabError("{name} has no text; give a longer one", name=splits.name)
    first = next(iter(found.values()))[: min(block_size, BLOCK_TOKENS)]
    end = tokenizer.eos_token_id
    return Preview(
        splits.name,
        shown,
        block_size,
        first,
        display_tokens(tokenizer, first.tolist()),
        tokenizer.decode(first.tolist()),
        "" if end is None else display_tokens(tokenizer, [end])[0],
        splits.note,
    )


def _split(
    tokenizer: PreTrainedTokenizerBase, articles: tuple[Article, ...], name: str, ids: np.ndarray, block_size: int
) -> SplitPreview:
    n_tokens = blocks = padding = 0
    if len(ids) >= block_size:
        packed = pack(ids, block_size)
        n_tokens, blocks, padding = packed.n_tokens, len(packed), int((packed.labels == IGNORED).sum())
    return SplitPreview(
        name,
        _lengths(tokenizer, articles, ids),
        sum(len(article.text) for article in articles),
        n_tokens,
        blocks,
        len(ids) - n_tokens,
        padding,
        sum(not row.strip() for article in articles for row in article.rows if len(article.rows) > 1),
    )


def _lengths(tokenizer: PreTrainedTokenizerBase, articles: tuple[Article, ...], ids: np.ndarray) -> np.ndarray:
    """Tokens of each article: from one end token to the next, unless a text holds one itself, or there are none."""
    ends = np.flatnonzero(ids == tokenizer.eos_token_id) if tokenizer.eos_token_id is not None else np.empty(0, int)
    if len(ends) == len(articles):
        return np.diff(ends, prepend=-1)
    own = 0 if tokenizer.eos_token_id is None else 1
    return np.array([len(encode(tokenizer, article.text)) + own for article in articles])

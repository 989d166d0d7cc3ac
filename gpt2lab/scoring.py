"""Perplexity of a text under a model: exact counts, one stored NLL, every normalisation from it.

Knows models and articles; nothing of training or pictures.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, log

import numpy as np
import torch

from gpt2lab.errors import LabError, whole_number
from gpt2lab.model import Lab, token_nll
from gpt2lab.text import Article, joined_rows
from gpt2lab.units import perplexity_of

TOKENS_AT_ONCE = 4096  # tokens in a batch of windows: enough to keep the matrix products busy
RESAMPLES = 1000  # of the bootstrap, as in Efron and Tibshirani's advice for percentile intervals


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a text, under a named protocol.

    context, stride  tokens per window, tokens between the starts of two windows
    n_scored         tokens predicted
    n_words, n_bytes of the original text: white-space separated words, UTF-8 bytes
    windows          forward passes, had they been made one by one
    nll              total negative log-likelihood, nats
    interval         95 % bootstrap interval of `perplexity` over articles; None below two of them
    """

    protocol: str
    context: int
    stride: int
    n_scored: int
    n_words: int
    n_bytes: int
    windows: int
    nll: float
    interval: tuple[float, float] | None = None

    @property
    def perplexity(self) -> float:
        """exp(nats per predicted token), ≥ 1. Depends on the tokenizer: compare like with like."""
        return perplexity_of(self.nll / self.n_scored)

    @property
    def word_perplexity(self) -> float:
        """exp(nats per word of the original text): comparable between tokenizers. Infinite past floats, or without words."""
        return perplexity_of(self.nll / self.n_words) if self.n_words else inf

    @property
    def byte_perplexity(self) -> float:
        """exp(nats per byte of the original text)."""
        return perplexity_of(self.nll / self.n_bytes)

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of the original text."""
        return self.nll / self.n_bytes / log(2)


@dataclass(frozen=True, eq=False)
class ScoredText:
    """A text's ids, and the NLL of each in nats; NaN for the tokens that no window predicts.

    ids  (n,) int64 · nll  (n,) float64 · windows  how many were read
    """

    ids: torch.Tensor
    nll: np.ndarray
    windows: int


def perplexity(
    lab: Lab,
    articles: tuple[Article, ...],
    *,
    context: int | None = None,
    stride: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """Sliding-window perplexity of articles, as in the Hugging Face guide.

    context      tokens a window holds; the model's own context by default
    stride       tokens from window to window; by default the context: disjoint windows
    on_progress  called with (windows done, windows in all)

    The rows are joined by blank lines and read in windows that start at 0, stride, 2·stride, …;
    each scores the tokens that no window before it scored.

    Raises: LabError for a context or stride out of range, or a text below two tokens.
    Source: https://huggingface.co/docs/transformers/perplexity
    """
    context, stride = checked_window(lab, context, stride)
    text = joined_rows(articles)
    encoded = lab.tokenizer(text, return_offsets_mapping=True, verbose=False)
    ids = torch.tensor(encoded["input_ids"], dtype=torch.long)
    if len(ids) < 2:
        raise LabError(f"the text has only {len(ids)} of the 2 tokens that perplexity needs at least; give more text")
    scored = score_sliding(lab, ids, context, stride, on_progress)
    predicted = ~np.isnan(scored.nll)
    starts = np.array(encoded["offset_mapping"])[:, 0]  # (n,) first character of each token
    article = article_of(starts, articles)
    original = "".join(row or " \n" for article in articles for row in article.rows)
    return Perplexity(
        protocol="sliding",
        context=context,
        stride=stride,
        n_scored=int(predicted.sum()),
        n_words=len(original.split()),
        n_bytes=len(original.encode()),
        windows=scored.windows,
        nll=float(scored.nll[predicted].sum()),
        interval=bootstrap_interval(scored.nll[predicted], article[predicted]),
    )


def checked_window(lab: Lab, context: int | None, stride: int | None) -> tuple[int, int]:
    """Context and stride with their defaults filled in. Raises: LabError out of range."""
    context = lab.context if context is None else context
    context = whole_number("context", context, 2, lab.context)
    stride = context if stride is None else stride
    return context, whole_number("stride", stride, 1, context)


def score_sliding(lab: Lab, ids: torch.Tensor, context: int, stride: int, on_progress=None) -> ScoredText:
    """The NLL of every token that a sliding window predicts.

    ids  (n,) int64, n ≥ 2

    Full windows past the first are alike and go in batches; they score their last `stride`
    tokens (at most context - 1: a window's first token has nothing before it).
    """
    n = len(ids)
    starts = list(range(0, max(1, n - context + stride), stride))
    starts = starts[: next(i for i, start in enumerate(starts) if start + context >= n) + 1]
    nll = np.full(n, np.nan)
    batch = max(1, TOKENS_AT_ONCE // context)
    full = [start for start in starts[1:] if start + context <= n]
    groups = [[0], *(full[i : i + batch] for i in range(0, len(full), batch))]
    groups += [[start] for start in starts[1:] if start + context > n]
    done, scored_to = 0, 0
    for group in groups:
        end = min(group[0] + context, n)
        first = max(1, scored_to - group[0])  # the window's first position that is new
        windows = torch.stack([ids[start : min(start + context, n)] for start in group]).to(lab.device)  # (B, T)
        for start, row in zip(group, token_nll(lab.model, windows, first=first).double().cpu().numpy()):
            nll[start + first : start + first + len(row)] = row
        scored_to = end + (len(group) - 1) * stride
        done += len(group)
        if on_progress:
            on_progress(done, len(starts))
    return ScoredText(ids, nll, len(starts))


def article_of(starts: np.ndarray, articles: tuple[Article, ...]) -> np.ndarray:
    """The index of the article that each character offset of `joined_rows(articles)` lies in."""
    lengths = [sum(len(row) + 2 for row in article.rows) for article in articles]  # 2: the blank line after a row
    return np.searchsorted(np.cumsum(lengths), starts, side="right")


def bootstrap_interval(nll: np.ndarray, article: np.ndarray, *, seed: int = 0) -> tuple[float, float] | None:
    """95 % percentile bootstrap of exp(mean NLL), drawing whole articles with replacement.

    nll      (n,) nats · article  (n,) the index of each token's article

    Tokens of one article are not independent, articles nearly are. None below two articles.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13.
    """
    totals, counts = np.bincount(article, weights=nll), np.bincount(article)
    totals, counts = totals[counts > 0], counts[counts > 0]
    if len(counts) < 2:
        return None
    draws = np.random.default_rng(seed).integers(len(counts), size=(RESAMPLES, len(counts)))
    low, high = np.quantile(np.exp(totals[draws].sum(1) / counts[draws].sum(1)), [0.025, 0.975])
    return float(low), float(high)

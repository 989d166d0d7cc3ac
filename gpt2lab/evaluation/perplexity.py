"""Perplexity of a text under a model, by a named protocol, with exact counts and every normalisation."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf, log

import numpy as np

from gpt2lab.data.text import Article
from gpt2lab.data.tokens import utf8
from gpt2lab.errors import LabError, Message, choice, whole_number
from gpt2lab.evaluation.bootstrap import FEWEST, expanded_interval, resampled_sums
from gpt2lab.evaluation.protocols import PROTOCOLS, TokenizedText, described
from gpt2lab.evaluation.published import Published, published_for
from gpt2lab.evaluation.scorer import PRECISIONS, ScoredText, score
from gpt2lab.model.lab import Lab
from gpt2lab.model.precision import check_precision
from gpt2lab.results import Summary, finite, perplexity_of

Interval = tuple[float, float]
GUESSING = 1.001  # times the vocabulary: a perplexity above it is worse than guessing, and no rounding
UNPREDICTED_MATTERS = 0.001  # share of tokens without a prediction that is worth saying


@dataclass(frozen=True, repr=False)
class Perplexity(Summary):
    """How well a model predicts a text, under a named protocol.

    context, stride  tokens per window, tokens between the starts of two windows
    n_scored         tokens predicted
    n_words, n_bytes of the original text, as the protocol counts them; UTF-8 bytes
    windows          forward passes, had they been made one by one
    nll              total negative log-likelihood, nats
    interval         95 % bootstrap interval of `perplexity` over documents; None below two of them
    word_interval, bits_interval  the same of `word_perplexity` and `bits_per_byte`
    n_tokens         tokens of the text, with those that have no prediction
    n_documents      what the intervals draw from: articles, or lm-eval's pages
    sample           (articles scored, articles there are) where not all were
    described        the protocol and its parameters in words
    published        figures of others that were got in the same way from the same text
    cautions         what to know before quoting the figures
    weights          a fingerprint of the model's weights
    precision        "fp32" or "bf16": how the model was computed
    n_checked        tokens scored in both precisions, where it is bf16
    precision_difference  on those, (perplexity in bf16) / (perplexity in fp32) - 1; None for fp32
    """

    protocol: str
    context: int
    stride: int
    n_scored: int
    n_words: int
    n_bytes: int
    windows: int
    nll: float
    interval: Interval | None = None
    word_interval: Interval | None = None
    bits_interval: Interval | None = None
    n_tokens: int = 0
    n_documents: int = 0
    sample: tuple[int, int] | None = None
    described: str = ""
    published: tuple[Published, ...] = ()
    cautions: tuple[str, ...] = ()
    weights: str = ""
    precision: str = "fp32"
    n_checked: int = 0
    precision_difference: float | None = None

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

    def record(self) -> dict:
        """Every field and every figure, as JSON has them; infinite figures are None."""
        figures = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")
        return finite(asdict(self) | {name: getattr(self, name) for name in figures})


def perplexity(
    lab: Lab,
    articles: tuple[Article, ...],
    *,
    protocol: str = "sliding",
    context: int | None = None,
    stride: int | None = None,
    quick: int | None = None,
    seed: int = 0,
    precision: str = "fp32",
    on_progress: Callable[[int, int], None] | None = None,
) -> Perplexity:
    """Perplexity of articles under a protocol.

    protocol     "sliding", "lm-eval" or "blocks": see `evaluation.protocols`
    context      tokens a window holds; the model's own context by default
    stride       tokens from window to window, of "sliding" alone; by default the context: disjoint windows
    quick        score only this number of articles, drawn with `seed`
    precision    "fp32", or "bf16": faster on processors with bf16 units, with the measured difference in the result
    on_progress  called with (windows done, windows in all)

    Raises: LabError for an unknown protocol or precision, a context, stride or sample out of range, and a text too short for it.
    """
    check_precision(precision, PRECISIONS)
    tokenized = read(lab, articles, protocol, context=context, stride=stride, quick=quick, seed=seed)
    return measured(score(lab, tokenized, precision, on_progress=on_progress))


def read(
    lab: Lab,
    articles: tuple[Article, ...],
    protocol: str = "sliding",
    *,
    context: int | None = None,
    stride: int | None = None,
    quick: int | None = None,
    seed: int = 0,
) -> TokenizedText:
    """Articles as a protocol reads them; parameters and errors as of `perplexity`."""
    if not isinstance(lab, Lab):
        raise LabError("the model is a {type}; give load_model(name)", type=type(lab).__name__)
    if not isinstance(articles, Sequence) or not all(isinstance(article, Article) for article in articles):
        raise LabError(
            "articles must be a tuple of Article, such as load_text(name).test; got {type}",
            type=type(articles).__name__,
        )
    choice("protocol", protocol, PROTOCOLS)
    context = whole_number("context", lab.context if context is None else context, 2, lab.context)
    if stride is not None and protocol != "sliding":
        raise LabError(
            "stride {stride!r} is of sliding windows, and {protocol} has none; leave it out, or use sliding",
            stride=stride,
            protocol=protocol,
        )
    stride = whole_number("stride", context if stride is None else stride, 1, context)
    seed = whole_number("seed", seed, 0, 2**63 - 1)
    drawn = tuple(articles) if quick is None else drawn_articles(articles, quick, seed)
    for article in drawn:
        utf8(article.text)  # tokenizers fail on half a character
    tokenized = PROTOCOLS[protocol](lab.tokenizer, drawn, context, stride)
    return tokenized if len(drawn) == len(articles) else replace(tokenized, sample=(len(drawn), len(articles)))


def protocol_names(protocols: str | Sequence[str]) -> list[str]:
    """Names of protocols, each once, from a list or from one string with commas; "all" stands for all of them.

    Raises: LabError for an empty list or an unknown name.
    """
    asked = protocols.split(",") if isinstance(protocols, str) else protocols
    if not isinstance(asked, Sequence):
        raise LabError(
            "protocols {protocols!r} are no names; use {choices} or all",
            protocols=str(protocols)[:40],
            choices=", ".join(PROTOCOLS),
        )
    names = list(dict.fromkeys(str(name).strip() for name in asked))
    names = [*PROTOCOLS] if "all" in names else names
    for name in names:
        choice("protocol", name, [*PROTOCOLS, "all"])
    if not names:
        raise LabError("no protocol is named; use {choices} or all", choices=", ".join(PROTOCOLS))
    return names


def drawn_articles(articles: tuple[Article, ...], count: int, seed: int = 0) -> tuple[Article, ...]:
    """A sample of `count` whole articles without replacement, in their original order; all if there are no more.

    Raises: LabError for a count below 1.
    """
    count = whole_number("quick", count, 1, 10**9)
    chosen = np.random.default_rng(seed).choice(len(articles), min(count, len(articles)), replace=False)
    return tuple(articles[i] for i in sorted(chosen.tolist()))


def measured(scored: ScoredText) -> Perplexity:
    """Compute the Perplexity of a text from its NLLs."""
    tokenized, known = scored.tokenized, scored.predicted
    nll, n_scored = document_totals(scored)
    words, sizes = ([getattr(d, name) for d in tokenized.documents] for name in ("n_words", "n_bytes"))
    result = Perplexity(
        protocol=tokenized.protocol,
        context=tokenized.context,
        stride=tokenized.stride,
        n_scored=int(known.sum()),
        n_words=tokenized.n_words,
        n_bytes=tokenized.n_bytes,
        windows=len(tokenized.windows),
        nll=float(scored.nll[known].sum()),
        n_tokens=len(tokenized.ids) - tokenized.added,
        n_documents=int((n_scored > 0).sum()),
        sample=tokenized.sample,
        described=described(tokenized),
        published=published_for(tokenized),
        weights=scored.weights,
        precision=scored.precision,
        **_precision_check(scored),
        **_intervals(np.array([nll, n_scored, words, sizes])[:, n_scored > 0]),
    )
    return replace(result, cautions=tuple(_cautions(result, scored)))


def _precision_check(scored: ScoredText) -> dict:
    """The difference that bf16 makes, on the tokens scored in both precisions; nothing for fp32."""
    if scored.exact is None:
        return {}
    both = ~np.isnan(scored.exact)
    change = float((scored.nll[both] - scored.exact[both]).mean())
    return {"n_checked": int(both.sum()), "precision_difference": perplexity_of(change) - 1}


def document_totals(scored: ScoredText) -> tuple[np.ndarray, np.ndarray]:
    """(documents,) nats, (documents,) tokens predicted, of each document."""
    owner, n = scored.tokenized.document[scored.predicted], len(scored.tokenized.documents)
    return np.bincount(owner, scored.nll[scored.predicted], n), np.bincount(owner, minlength=n)


def _intervals(totals: np.ndarray) -> dict:
    """Bootstrap intervals from (4, documents): nats, tokens predicted, words, bytes. None below two documents."""
    if totals.shape[1] < 2:
        return {}
    nll, tokens, words, sizes = resampled_sums(totals)
    with np.errstate(divide="ignore", over="ignore"):  # no word in a draw, or a perplexity past floats: infinite
        return {
            "interval": expanded_interval(np.exp(nll / tokens), totals.shape[1]),
            "word_interval": expanded_interval(np.exp(nll / words), totals.shape[1]),
            "bits_interval": expanded_interval(nll / sizes / log(2), totals.shape[1]),
        }


def _cautions(result: Perplexity, scored: ScoredText):
    """Return cautions for quoting a result, a line each."""
    tokenized = scored.tokenized
    if result.precision_difference is not None:
        yield Message(
            "scored in {precision}; on {n:,} tokens scored in both, perplexity differs by {difference:+.3%} from fp32",
            precision=result.precision,
            n=result.n_checked,
            difference=result.precision_difference,
        )
    if result.sample:
        drawn, of = result.sample
        yield Message("a sample of {drawn:,} of {total:,} articles", drawn=drawn, total=of)
    dropped = len(tokenized.ids) - int((tokenized.windows[:, 2] - tokenized.windows[:, 0]).sum())
    if dropped > 0 and tokenized.protocol == "blocks":
        yield Message("{n:,} tokens fill no block, and are left out with their words and bytes", n=dropped)
    if tokenized.unpredicted > UNPREDICTED_MATTERS:
        yield Message(
            "{share:.1%} of the tokens read have no prediction: the loss per word and per byte lacks theirs, per token it is "
            "right",
            share=tokenized.unpredicted,
        )
    if "<unk>" in tokenized.text:
        yield Message(
            "the text has <unk> for rare words (WikiText's v1 files): its figures do not compare with those of raw text"
        )
    if "<|endoftext|>" in tokenized.text:
        yield Message("the text has <|endoftext|>, which is read as one token")
    if result.perplexity > GUESSING * scored.vocabulary:
        yield Message(
            "worse than guessing among all {n:,} tokens alike: odd text, an untrained model, or a tokenizer that is not the "
            "model's own",
            n=scored.vocabulary,
        )
    if result.n_documents < FEWEST:
        if result.n_documents == 1:
            yield Message("1 document has no interval; {fewest} or more are needed to trust one", fewest=FEWEST)
        else:
            yield Message(
                "{n} documents are too few for an interval; {fewest} or more are needed to trust one",
                n=result.n_documents,
                fewest=FEWEST,
            )

"""Compare two models on one text by a paired bootstrap."""

from dataclasses import dataclass
from math import log

import numpy as np

from gpt2lab.errors import LabError, Message
from gpt2lab.evaluation.bootstrap import FEWEST, expanded_interval, resampled_sums
from gpt2lab.evaluation.perplexity import UNPREDICTED_MATTERS, document_totals
from gpt2lab.evaluation.protocols import TokenizedText
from gpt2lab.evaluation.scorer import ScoredText
from gpt2lab.results import percent, perplexity_of


@dataclass(frozen=True)
class Comparison:
    """Difference of two models' losses on the same documents: the second minus the first.

    difference   below 0 where the second is better
    unit         "nats per token" where both read the same tokens, else "bits per byte"
    interval     95 % bootstrap interval of the difference, pairs of documents drawn; None below two
    better_in    documents in which the second is better, of n_documents
    verdict      "better", "worse", or "cannot tell" where the interval holds 0 or documents are too few
    """

    before: str
    after: str
    difference: float
    unit: str
    interval: tuple[float, float] | None
    n_documents: int
    better_in: int
    verdict: str
    protocol: str

    @property
    def ratio(self) -> float:
        """What the second model's perplexity is of the first's: per token or, in bits per byte, per byte."""
        return perplexity_of(self.difference * (log(2) if self.unit == "bits per byte" else 1))

    @property
    def sentence(self) -> Message:
        """The verdict in a sentence."""
        models = {"before": self.before, "after": self.after}
        few = self.n_documents < FEWEST
        return Message(
            "{verdict}: {difference:+.4f} {unit}{within}, {change} perplexity, lower in {better_in:,} of "
            "{n:,} documents{few}",
            verdict={
                "better": Message("{after} is better than {before}", **models),
                "worse": Message("{after} is worse than {before}", **models),
            }.get(self.verdict, Message("whether {after} is better than {before} is undecided", **models)),
            difference=self.difference,
            unit={
                "nats per token": Message("nats per token"),
                "bits per byte": Message("bits per byte"),
            }[self.unit],
            within=""
            if self.interval is None
            else Message(" (95 % interval {low:+.4f} to {high:+.4f})", low=self.interval[0], high=self.interval[1]),
            change=percent(self.ratio - 1, "+"),
            better_in=self.better_in,
            n=self.n_documents,
            few=Message("; fewer than {fewest} can agree by chance", fewest=FEWEST) if few else "",
        )

    def __str__(self) -> str:
        return str(self.sentence)


def compare(before: ScoredText, after: ScoredText, *, seed: int = 0) -> Comparison:
    """Compare two models by a paired bootstrap over documents.

    Where both read the same ids, tokens that either has no prediction for are left out. Where their tokenizers
    differ, all that each scored is divided by the documents' bytes.

    Raises: LabError where precision, protocol or text differ, or tokenizers differ and not all of the text is predicted.
    """
    one, two = before.tokenized, after.tokenized
    if before.precision != after.precision:
        raise LabError(
            "{model} was scored in {precision} and {other} in {other_precision}; score both in the same precision.",
            model=before.model,
            precision=before.precision,
            other=after.model,
            other_precision=after.precision,
        )
    if why := incomparable(one, two):
        raise LabError(
            "{model} and {other} cannot be compared by {protocol}: {why}",
            model=before.model,
            other=after.model,
            protocol=one.protocol,
            why=why,
        )
    if np.array_equal(one.ids, two.ids):
        unit, both = "nats per token", before.predicted & after.predicted
        n, owner = len(one.documents), one.document[both]
        weights = np.bincount(owner, minlength=n).astype(float)
        differences = np.bincount(owner, after.nll[both] - before.nll[both], n)
    else:
        unit, weights = "bits per byte", np.array([document.n_bytes for document in one.documents], dtype=float)
        differences = (document_totals(after)[0] - document_totals(before)[0]) / log(2)
    differences, weights = differences[weights > 0], weights[weights > 0]
    interval = None
    if len(weights) > 1:
        totals, sizes = resampled_sums(np.array([differences, weights]), seed=seed)
        interval = expanded_interval(totals / sizes, len(weights))
    return Comparison(
        before=before.model,
        after=after.model,
        difference=float(differences.sum() / weights.sum()),
        unit=unit,
        interval=interval,
        n_documents=len(weights),
        better_in=int((differences < 0).sum()),
        verdict=verdict_of(interval, len(weights)),
        protocol=one.protocol,
    )


def incomparable(one: TokenizedText, two: TokenizedText) -> Message | None:
    """Return why two results cannot be compared; None if they can."""
    if (one.protocol, one.text) != (two.protocol, two.text):
        return Message(
            "they were not scored on the same text by the same protocol ({protocol}, {length:,} characters; {other}, "
            "{other_length:,})",
            protocol=one.protocol,
            length=len(one.text),
            other=two.protocol,
            other_length=len(two.text),
        )
    if np.array_equal(one.ids, two.ids):
        return None
    if one.documents != two.documents:
        return Message("their tokenizers differ, so that it keeps other parts of the text for each; lm-eval keeps all")
    if max(one.unpredicted, two.unpredicted) > UNPREDICTED_MATTERS:
        return Message(
            "their tokenizers differ, and so do the tokens without a prediction; use lm-eval, or overlapping windows"
        )
    return None


def verdict_of(interval: tuple[float, float] | None, n_documents: int) -> str:
    """Return the verdict of a confidence interval; "cannot tell" for few documents.

    Example: verdict_of((-0.2, -0.1), 60) -> "better"
    """
    if interval is None or n_documents < FEWEST or interval[0] <= 0 <= interval[1]:
        return "cannot tell"
    return "better" if interval[1] < 0 else "worse"

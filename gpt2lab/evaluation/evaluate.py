"""Evaluate one or two models on a text, by any protocols."""

from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial

from gpt2lab.data.text import Article
from gpt2lab.errors import LabError, Message
from gpt2lab.evaluation.breakdown import Share, breakdown, surprisals, titles
from gpt2lab.evaluation.comparison import Comparison, compare, incomparable
from gpt2lab.evaluation.perplexity import Perplexity, measured, protocol_names, read
from gpt2lab.evaluation.protocols import ProtocolError, TokenizedText
from gpt2lab.evaluation.scorer import PRECISIONS, ScoredText, score
from gpt2lab.model.lab import Lab
from gpt2lab.model.precision import check_precision
from gpt2lab.progress import mapped, stepwise
from gpt2lab.results import Summary, readable


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Summary):
    """Results of one or two models by one or more protocols.

    refused  (protocol, why) of those that the text is too short for, or that need a token the tokenizer lacks
    """

    scored: tuple[ScoredText, ...]
    refused: tuple[tuple[str, Message], ...] = ()

    def __repr__(self):
        figures = (f"{model}, {r.protocol}: perplexity {readable(r.perplexity)}" for model, r in self.results)
        return f"Evaluation({'; '.join(figures)})"

    @cached_property
    def results(self) -> tuple[tuple[str, Perplexity], ...]:
        """(model, Perplexity) of each."""
        return tuple((scored.model, measured(scored)) for scored in self.scored)

    @cached_property
    def comparisons(self) -> tuple[Comparison, ...]:
        """The second model against the first, by each protocol that can tell; none of one model."""
        return tuple(compare(*pair) for pair in self._pairs() if not incomparable(pair[0].tokenized, pair[1].tokenized))

    @cached_property
    def verdicts(self) -> list[tuple[str, Message]]:
        """(protocol, sentence) of what the comparisons say, or why there is none; and of protocols that were refused."""
        verdicts_by = {comparison.protocol: comparison.sentence for comparison in self.comparisons}
        pairs = {one.tokenized.protocol: incomparable(one.tokenized, two.tokenized) for one, two in self._pairs()}
        verdicts = [
            (protocol, verdicts_by.get(protocol) or Message("not compared: {why}", why=why))
            for protocol, why in pairs.items()
        ]
        return [*verdicts, *((protocol, Message("not scored: {why}", why=why)) for protocol, why in self.refused)]

    @property
    def models(self) -> list[str]:
        """Names of the models."""
        return list(dict.fromkeys(scored.model for scored in self.scored))

    @property
    def protocols(self) -> list[str]:
        """Names of the protocols that were scored."""
        return list(dict.fromkeys(scored.tokenized.protocol for scored in self.scored))

    def of(self, protocol: str) -> tuple[ScoredText, ...]:
        """What was scored by a protocol, of each model. Raises: LabError for one that was not."""
        mine = tuple(scored for scored in self.scored if scored.tokenized.protocol == protocol)
        if not mine:
            have = ", ".join(self.protocols)
            raise LabError(
                "nothing was scored by protocol {protocol!r}; there is {have}", protocol=str(protocol)[:40], have=have
            )
        return mine

    def pieces(self, protocol: str) -> list[tuple[str, str, list[tuple[str, float | None]]]]:
        """(model, title, surprisals) of every document of every model."""
        return [
            (scored.model, title, surprisals(scored, i))
            for scored in self.of(protocol)
            for i, title in enumerate(titles(scored))
        ]

    def record(self, by: str | None = None) -> dict:
        """All of it as JSON has it: the first model's results; those of a second, and what the comparison says.

        by  a breakdown that each result gets
        """
        first, *second = (
            [
                self._line(scored, result, by)
                for scored, (name, result) in zip(self.scored, self.results)
                if name == model
            ]
            for model in self.models
        )
        record: dict = {"results": first, "verdicts": [f"{protocol}: {said}" for protocol, said in self.verdicts]}
        if not second:
            return record
        comparisons = [asdict(c) | {"ratio": c.ratio} for c in self.comparisons]
        return record | {"compare": self.models[1], "compare_results": second[0], "comparisons": comparisons}

    def _line(self, scored: ScoredText, result: Perplexity, by: str | None) -> dict:
        shares = {"breakdown": {by: [share.record() for share in breakdown(scored, by)]}} if by else {}
        return result.record() | shares

    def _pairs(self) -> list[tuple[ScoredText, ...]]:
        pairs = [self.of(protocol) for protocol in self.protocols]
        return [pair for pair in pairs if len(pair) == 2]

    def shares(self, by: str, protocol: str) -> dict[str, tuple[Share, ...]]:
        """Where the text is hard, by model; `by` as of `breakdown`. Raises: LabError for an unknown one."""
        return {scored.model: breakdown(scored, by) for scored in self.of(protocol)}


@stepwise
def evaluate(
    labs: Lab | Sequence[Lab],
    articles: tuple[Article, ...],
    protocols: str | Sequence[str] = "all",
    *,
    context: int | None = None,
    stride: int | None = None,
    quick: int | None = None,
    seed: int = 0,
    precision: str = "fp32",
) -> Generator[tuple[str, int, int], None, Evaluation]:
    """Evaluate one model, or two of different names, on articles.

    protocols    names, also as one string with commas; "all" for all of them
    context      tokens in a window; by default the model's own, of two models the smaller one
    stride       of "sliding" alone; the context by default
    quick, seed  score only this number of articles, drawn with the seed
    precision    "fp32" or "bf16", of both models, as of `perplexity`

    Steps: a batch of windows at a time, (model and protocol, windows done, windows in all).
    A protocol that cannot read the text (too short, or no beginning token) is left out where another can.
    Raises: LabError as `perplexity`, before anything is scored; and for two models of one name.
    """
    check_precision(precision, PRECISIONS)
    labs = list(labs) if isinstance(labs, Sequence) and not isinstance(labs, str) else [labs]
    named = [getattr(lab, "name", str(lab)) for lab in labs]
    if not 1 <= len(labs) <= 2 or len(set(named)) < len(labs):
        raise LabError("models {value}: give one, or two different ones to compare", value=", ".join(named) or "none")
    if context is None and all(isinstance(lab, Lab) for lab in labs):
        context = min(lab.context for lab in labs)
    names, texts, refused = protocol_names(protocols), [], []
    for name in names:
        strides = stride if name == "sliding" or "sliding" not in names else None
        try:
            texts.append(
                [read(lab, articles, name, context=context, stride=strides, quick=quick, seed=seed) for lab in labs]
            )
        except ProtocolError as error:
            refused.append((name, Message(error.template, **error.values)))
    if not texts:
        raise LabError(refused[0][1])
    return _scored(labs, texts, tuple(refused), precision)


def _scored(
    labs: list[Lab], texts: list[list[TokenizedText]], refused: tuple[tuple[str, Message], ...], precision: str
) -> Generator[tuple[str, int, int], None, Evaluation]:
    scored: list[ScoredText] = []
    for several in texts:
        for lab, tokenized in zip(labs, several):
            name = Message("{model}, {protocol}", model=lab.name, protocol=tokenized.protocol)
            scored.append((yield from mapped(score.steps(lab, tokenized, precision), partial(_named, name))))
    return Evaluation(tuple(scored), refused)


def _named(name: str, done: int, total: int) -> tuple[str, int, int]:
    return name, done, total

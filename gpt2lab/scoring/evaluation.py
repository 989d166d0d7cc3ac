"""One model or two on one text, by any protocols: everything that is measured, in one place.

Knows models, articles and the rest of this room.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import cached_property

from gpt2lab.errors import LabError
from gpt2lab.model import Lab
from gpt2lab.scoring.breakdown import Share, breakdown
from gpt2lab.scoring.comparison import Comparison, compare
from gpt2lab.scoring.perplexity import Perplexity, measured, read_all
from gpt2lab.scoring.scorer import Scored, finished, score_steps
from gpt2lab.text import Article


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was scored: for every protocol, one model after the other."""

    scored: tuple[Scored, ...]

    @cached_property
    def results(self) -> tuple[tuple[str, Perplexity], ...]:
        """(model, Perplexity) of each."""
        return tuple((scored.model, measured(scored)) for scored in self.scored)

    @cached_property
    def comparisons(self) -> tuple[Comparison, ...]:
        """The second model against the first, by protocol; none of one model."""
        pairs = [self.of(protocol) for protocol in self.protocols]
        return tuple(compare(*pair) for pair in pairs if len(pair) == 2)

    @property
    def models(self) -> list[str]:
        """Their names."""
        return list(dict.fromkeys(scored.model for scored in self.scored))

    @property
    def protocols(self) -> list[str]:
        """Those that were scored."""
        return list(dict.fromkeys(scored.reading.protocol for scored in self.scored))

    def of(self, protocol: str) -> tuple[Scored, ...]:
        """What was scored by a protocol, of each model. Raises: LabError for one that was not."""
        mine = tuple(scored for scored in self.scored if scored.reading.protocol == protocol)
        if not mine:
            have = ", ".join(self.protocols)
            raise LabError(f"nothing was scored by protocol {str(protocol)[:40]!r}; there is {have}")
        return mine

    def shares(self, by: str, protocol: str) -> dict[str, tuple[Share, ...]]:
        """Where the text is hard, by model; `by` as of `breakdown`. Raises: LabError for an unknown one."""
        return {scored.model: breakdown(scored, by) for scored in self.of(protocol)}


def evaluate(
    labs: Lab | Sequence[Lab],
    articles: tuple[Article, ...],
    protocols: str | Sequence[str] = "all",
    *,
    on_progress: Callable[[str, int, int], None] | None = None,
    **told,
) -> Evaluation:
    """One model, or two of different names, on articles by protocols.

    protocols    names, also as one string with commas; "all" for all of them
    on_progress  called with (model and protocol, windows done, windows in all)
    told         context, stride, quick, seed: as of `perplexity`

    Raises: LabError as `perplexity`, before anything is scored; and for two models of one name.
    """
    return finished(evaluation_steps(labs, articles, protocols, **told), on_progress)


def evaluation_steps(
    labs: Lab | Sequence[Lab], articles: tuple[Article, ...], protocols: str | Sequence[str] = "all", **told
) -> Generator[tuple[str, int, int], None, Evaluation]:
    """`evaluate`, a batch of windows at a time: yields what it tells of progress, returns the Evaluation."""
    labs = [labs] if isinstance(labs, Lab) else list(labs)
    if not 1 <= len(labs) <= 2 or len({lab.name for lab in labs}) < len(labs):
        named = ", ".join(lab.name for lab in labs)
        raise LabError(f"models {named or 'none'}: give one, or two different ones to compare")
    readings = [read_all(lab, articles, protocols, **told) for lab in labs]
    scored = []
    for several in zip(*readings):
        for lab, reading in zip(labs, several):
            what, steps = f"{lab.name}, {reading.protocol}", score_steps(lab, reading)
            scored.append((yield from (_told(what, steps))))
    return Evaluation(tuple(scored))


def _told(what: str, steps):
    while True:
        try:
            done, total = next(steps)
        except StopIteration as end:
            return end.value
        yield what, done, total

"""The analyses of a model on a text: their names, their options, and how each is computed.

The options of the `inspect` command are made from ANALYSES: a new analysis is a new entry here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from gpt2lab.errors import LabError
from gpt2lab.inspection.ablation import ablate, parts_named, sweep
from gpt2lab.inspection.attribution import attribution
from gpt2lab.inspection.entropy import entropy_by_position
from gpt2lab.inspection.heads import head_scores
from gpt2lab.inspection.input_attribution import METHODS, input_attribution
from gpt2lab.inspection.lens import logit_lens
from gpt2lab.inspection.patching import patching
from gpt2lab.inspection.surprisal import RANKS, surprisal
from gpt2lab.inspection.walkthrough import walk
from gpt2lab.model.lab import Lab
from gpt2lab.results import Result


@dataclass(frozen=True)
class Options:
    """What several analyses take beside model and text."""

    position: int = -1
    token: str | None = None
    against: str | None = None
    mean: bool = False
    limits: Sequence[int] = RANKS
    method: str = METHODS[0]
    unit: str = "token"


class Analysis(NamedTuple):
    """An analysis of a text.

    help      in a line
    compute   (lab, text, argument, options) -> its result; "" for an analysis that takes no argument
    options   names of the Options that it uses
    argument  an example of what it is asked with, such as "0.3"; None: nothing
    table     arguments of its result's `table` for a terminal, made of the Options
    """

    help: str
    compute: Callable[[Lab, str, str, Options], Result]
    options: tuple[str, ...] = ()
    argument: str | None = None
    table: Callable[[Options], dict] = lambda options: {}


def head_of(name: str) -> tuple[int, int]:
    """(layer, head) of "0.3". Raises: LabError for anything else."""
    heads, mlps = parts_named(name.split(","))
    if len(heads) != 1 or mlps:
        raise LabError("{name!r} names no single head; give layer.head, as 0.3", name=name[:40])
    return heads[0]


def _ablate(lab: Lab, text: str, names: str, options: Options) -> Result:
    heads, mlps = parts_named(names.split(","))
    return ablate(lab, text, heads, mlps=mlps, mean=options.mean, limits=options.limits)


ANALYSES: dict[str, Analysis] = {
    "surprisal": Analysis(
        "how little each token was expected; the default; of any length",
        lambda lab, text, _, options: surprisal(lab, text, limits=options.limits),
        options=("limits",),
    ),
    "lens": Analysis(
        "what would be predicted after each layer",
        lambda lab, text, _, options: logit_lens(lab, text, target=options.token),
        options=("position", "token"),
        table=lambda options: {"position": options.position},
    ),
    "heads": Analysis("scores of every head: what kind it is", lambda lab, text, _, options: head_scores(lab, [text])),
    "entropy": Analysis(
        "how widely each layer's heads look at each position",
        lambda lab, text, _, options: entropy_by_position(lab, text),
    ),
    "attribution": Analysis(
        "what each head and MLP adds to the logit of a token over another's",
        lambda lab, text, _, options: attribution(
            lab, text, position=options.position, token=options.token, against=options.against
        ),
        options=("position", "token", "against"),
    ),
    "why": Analysis(
        "what each token, word or sentence of the text adds to the prediction of a token",
        lambda lab, text, _, options: input_attribution(
            lab,
            text,
            position=options.position,
            token=options.token,
            against=options.against,
            method=options.method,
            unit=options.unit,
        ),
        options=("position", "token", "against", "method", "unit"),
    ),
    "sweep": Analysis(
        "the loss with each head ablated alone",
        lambda lab, text, _, options: sweep(lab, text, mean=options.mean),
        options=("mean",),
    ),
    "ablate": Analysis(
        "ablate heads and MLPs together: 0.3,2.1,1.mlp",
        _ablate,
        options=("mean", "limits"),
        argument="0.3,2.1,1.mlp",
    ),
    "patch": Analysis(
        "a corrupted prompt: put the text's states into its run",
        lambda lab, text, corrupted, options: patching(
            lab, text, corrupted, answer=options.token, against=options.against
        ),
        options=("token", "against"),
        argument="a text",
    ),
    "walk": Analysis(
        "a head, 0.3: every formula of its block, with its numbers",
        lambda lab, text, head, options: walk(lab, text, *head_of(head), options.position),
        options=("position",),
        argument="0.3",
        table=lambda options: {"first": 3},
    ),
}

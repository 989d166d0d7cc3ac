"""What the Explore page shows of a model on a text, from one forward pass of it."""

from dataclasses import dataclass

import torch

from gpt2lab.inspection.contributions import Contributions, contributions
from gpt2lab.inspection.heads import HeadScores, scores_of
from gpt2lab.inspection.lens import Lens, logit_lens
from gpt2lab.inspection.trace import ResidualTrace, with_residual
from gpt2lab.model.lab import Lab
from gpt2lab.results import Summary

TOP = 8  # predictions after each position


@dataclass(frozen=True, eq=False, repr=False)
class Exploration(Summary):
    """A model on a text.

    text           as it was given; of one that does not fit, `seen` has the beginning
    seen           the trace with its residual stream
    lens           that follows the next tokens
    scores         of every head on this text; None for a text of one token
    contributions  to the logit of each next token
    """

    text: str
    seen: ResidualTrace
    lens: Lens
    scores: HeadScores | None
    contributions: Contributions


def exploration(lab: Lab, text: str, *, induction: torch.Tensor | None = None) -> Exploration:
    """What a model does with a text, or with its beginning where the text does not fit.

    induction  as for `scores_of`

    Raises: LabError as `trace`.
    """
    seen = with_residual(lab, text, cut=True)
    lens = logit_lens(lab, seen, top=TOP, next=True)
    first, second = lens.top[-1, :, :2].T
    runner_up = torch.where(first == lens.targets, second, first)  # as `contributions` finds it
    return Exploration(
        text=text,
        seen=seen,
        lens=lens,
        scores=scores_of(lab, seen, induction=induction) if len(seen.tokens) > 1 else None,
        contributions=contributions(lab, seen, lens.targets, runner_up),
    )

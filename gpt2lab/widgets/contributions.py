"""What adds to the prediction of a token: parts of the model, and of the text."""

from typing import Any

import torch

from gpt2lab.errors import LabError, choice, whole_number
from gpt2lab.inspection import contributions as results
from gpt2lab.inspection.contributions import contributions
from gpt2lab.inspection.input_attribution import METHODS, POINTS, UNITS, InputAttribution, input_attribution
from gpt2lab.inspection.lens import token_id
from gpt2lab.inspection.trace import ResidualTrace, has_residual
from gpt2lab.model.lab import Lab
from gpt2lab.widgets.base import Selection, Widget
from gpt2lab.widgets.data import contributions_part, side_of

MAX_CHARACTERS = 100  # of a token as text
POINTS_READ = 4096  # tokens times points of integrated gradients: 1 s with the built-in model on two cores


class Contributions(Widget):
    """What heads, MLPs and the text's tokens add to the logit of a token over another; a click on a head selects it.

    contributions  of every position: `contributions(lab, trace(lab, text, residual=True))`
    lab            the model, for other tokens and for the tokens of the text; None: the view shows what it was given
    """

    module = "contributions"

    def __init__(
        self, contributions: results.Contributions, selection: Selection | None = None, *, lab: Lab | None = None
    ) -> None:
        seen = contributions.trace
        if len(contributions.tokens) != len(seen.tokens):
            raise LabError(
                "contributions at {count} of {total} positions; give those at all",
                count=len(contributions.tokens),
                total=len(seen.tokens),
            )

        def answer(kind: str, options: dict) -> dict:
            assert lab is not None and has_residual(seen)
            return {"sides": [ANSWERS[choice("request", kind, ANSWERS)](lab, seen, options)]}

        data = {"sides": [side_of(seen, contributions=contributions_part(contributions))]}
        super().__init__(contributions, data, selection, title=contributions.title, answer=answer if lab else None)


def answer_contributions(lab: Lab, seen: ResidualTrace, options: dict) -> dict:
    """What each part adds to a token's logit at one position.

    options  position; token, against: an id, text of one token or "#id"; without: those of `contributions`
    returns  token, against: display strings; token_id, against_id; total: logits; values: (N,) logits, in the parts' order

    Raises: LabError for options that are not valid, and for twice the same token.
    """
    position, token, against = asked_tokens(lab, seen, options)
    given = None if token is None else torch.tensor([token])
    over = None if against is None else torch.tensor([against])
    found = contributions(lab, seen, given, over, positions=slice(position, position + 1))
    if int(found.tokens) == int(found.against):
        raise LabError("token {token} against itself is 0; give two tokens", token=found.words[0][0])
    return {
        "token": found.words[0][0],
        "against": found.words[0][1],
        "token_id": int(found.tokens),
        "against_id": int(found.against),
        "total": float(found.total),
        "values": found.values[0].tolist(),
    }


def answer_why(lab: Lab, seen: ResidualTrace, options: dict) -> dict:
    """What each token, word or sentence of the text adds to a prediction after one position, in nats.

    options  position, token, against as for `answer_contributions`, but without `against` the log-probability of the token
             is explained; method, unit: see `input_attribution`; curves: compute them too; precise: up to 192 points on
             the path of integrated gradients, however long the text
    returns  token, against: display strings; total, completeness_error; units: [first token, one past the last, nats];
             share, deletion, insertion

    Raises: LabError for options that are not valid.
    """
    position, token, against = asked_tokens(lab, seen, options)
    if token is None and position + 1 < len(seen.ids):
        token = int(seen.ids[position + 1])
    quick = max(2 * POINTS[0], min(POINTS[1], POINTS_READ // (position + 1)))
    found: InputAttribution = input_attribution(
        lab,
        seen,
        position=position,
        token=token,
        against=against,
        method=choice("method", options.get("method", METHODS[0]), METHODS),
        unit=choice("unit", options.get("unit", UNITS[0]), UNITS),
        curves=options.get("curves") is True,
        points=POINTS[1] if options.get("precise") is True else quick,
    )
    return {
        "token": found.words[0],
        "against": found.words[1],
        "total": found.total,
        "completeness_error": found.completeness_error,
        "units": [[*span, value] for span, value in zip(found.spans, found.values.tolist())],
        **{name: getattr(found, name).tolist() for name in ("share", "deletion", "insertion")},
    }


ANSWERS = {"contributions": answer_contributions, "why": answer_why}


def asked_tokens(lab: Lab, seen: ResidualTrace, options: dict) -> tuple[int, int | None, int | None]:
    """Position, token and contrast of a request."""
    position = whole_number("position", options.get("position"), 0, len(seen.ids) - 1)
    return position, _token(lab, options.get("token")), _token(lab, options.get("against"))


def _token(lab: Lab, value: Any) -> int | None:
    if isinstance(value, str) and len(value) > MAX_CHARACTERS:
        raise LabError("a token of {count:,} characters; the limit is {limit}", count=len(value), limit=MAX_CHARACTERS)
    return None if value is None or value == "" else token_id(lab, value)

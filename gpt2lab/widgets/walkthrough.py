"""A block of the model, formula by formula, for the selected token, layer and head."""

from gpt2lab.inspection import walkthrough as inspection
from gpt2lab.inspection.trace import ResidualTrace
from gpt2lab.inspection.walkthrough import walk
from gpt2lab.model.lab import Lab
from gpt2lab.widgets.base import Selection, Widget, one_side
from gpt2lab.widgets.data import floats, side_of


class Walkthrough(Widget):
    """A walkthrough's formulas with their numbers, a step at a time.

    walk        of `walk(lab, text, layer, head, position)`
    lab, trace  the model and `trace(lab, text, residual=True)`: the view can then move to other places
    """

    module = "walkthrough"

    def __init__(
        self, walk: inspection.Walkthrough, *, lab: Lab | None = None, trace: ResidualTrace | None = None
    ) -> None:
        data, selection = walk_state(walk)
        if trace is not None:
            data = {"sides": [side_of(trace, walk=walk_part(walk))]}
        super().__init__(None, data, selection, title=walk.title, answer=one_side(lab, trace, walk=answer_walk))


def walk_state(walk: inspection.Walkthrough) -> tuple[dict, Selection]:
    """The view's data, and the place of the walkthrough as the selection."""
    side = {"name": walk.name, "tokens": list(walk.tokens), "note": "", "walk": walk_part(walk)}
    return {"sides": [side]}, Selection(walk.position, walk.layer, walk.head)


def walk_part(walk: inspection.Walkthrough) -> dict:
    """{layer, head, position, mean, variance, steps: [{name, title, formula, over, values: float32, base64}], predictions}."""
    steps = [
        {"name": step.name, "title": step.title, "formula": step.formula, "over": step.over}
        | {"values": floats(step.values)}
        for step in walk.steps
    ]
    return {
        **{name: getattr(walk, name) for name in ("layer", "head", "position", "mean", "variance")},
        "steps": steps,
        "predictions": [[token, round(probability, 5)] for token, probability in walk.predictions],
    }


def answer_walk(lab: Lab, seen: ResidualTrace, options: dict) -> dict:
    """The walkthrough at {layer, head, position}. Raises: LabError for a place that does not exist."""
    return walk_part(walk(lab, seen, *(options.get(name, 0) for name in ("layer", "head", "position"))))

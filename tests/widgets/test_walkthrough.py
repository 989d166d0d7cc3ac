import base64

import numpy as np
import pytest

from gpt2lab.errors import LabError
from gpt2lab.inspection.trace import trace
from gpt2lab.inspection.walkthrough import walk
from gpt2lab.widgets.walkthrough import Walkthrough, answer_walk, walk_part

TEXT = "The moon is a small world."


@pytest.fixture(scope="module")
def seen(tiny_lab):
    return trace(tiny_lab, TEXT, residual=True)


def numbers(step):
    return np.frombuffer(base64.b64decode(step["values"]), "<f4")


def test_part_holds_every_step_and_prediction(tiny_lab, seen):
    walked = walk(tiny_lab, seen, 1, 2, 6)
    part = walk_part(walked)
    for step, found in zip(walked.steps, part["steps"], strict=True):
        assert (found["name"], found["title"], found["formula"], found["over"]) == (
            step.name,
            step.title,
            step.formula,
            step.over,
        )
        np.testing.assert_array_equal(numbers(found), step.values.numpy())
    assert [token for token, _ in part["predictions"]] == [token for token, _ in walked.predictions]
    assert (part["layer"], part["head"], part["position"]) == (1, 2, 6)


def test_answer_is_the_walkthrough_of_the_place_asked_for(tiny_lab, seen):
    widget = Walkthrough(walk(tiny_lab, seen, 0, 0, 0), lab=tiny_lab, trace=seen)
    [found] = widget._answer("walk", {"layer": 1, "head": 3, "position": 4})["sides"]
    assert found == walk_part(walk(tiny_lab, TEXT, 1, 3, 4))
    assert (widget.layer, widget.head, widget.position) == (0, 0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 2}, "layer 2 is out of range"),
        ({"head": "0"}, "head '0' is out of range"),
        ({"position": None}, "position None is out of range"),
        ({"position": 10**6}, "position 1000000 is out of range"),
    ],
)
def test_places_that_do_not_exist_are_refused(tiny_lab, seen, options, message):
    with pytest.raises(LabError, match=message):
        answer_walk(tiny_lab, seen, options)


def test_a_lab_without_the_trace_is_refused(tiny_lab, seen):
    with pytest.raises(LabError, match="a widget with a lab needs the trace of its text"):
        Walkthrough(walk(tiny_lab, seen, 0, 0), lab=tiny_lab)

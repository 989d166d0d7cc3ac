"""What a grid of heads gets: scores, or attention."""

import pytest
import torch

from gpt2lab.inspection.compare import compare
from gpt2lab.inspection.heads import SCORES, head_scores
from gpt2lab.widgets.base import Selection
from gpt2lab.widgets.headgrid import HeadGrid


def test_scores_are_head_scores(tiny_lab):
    scores = head_scores(tiny_lab)
    [side] = HeadGrid(scores).data["sides"]
    assert (side["layers"], side["heads"]) == (2, 4)
    assert [score["name"] for score in side["scores"]] == list(SCORES)
    for score in side["scores"]:
        torch.testing.assert_close(
            torch.tensor(score["values"]), getattr(scores, score["name"]), atol=6e-5, rtol=0, check_dtype=False
        )
        assert score["unit"] and score["definition"]


def test_traces_have_their_attention(tiny_trace):
    [side] = HeadGrid(tiny_trace).data["sides"]
    assert side["attention"]["layers"] == [0, 1]
    widget = HeadGrid(compare(tiny_trace, tiny_trace), Selection(2, 1, 3))
    assert [side["name"] for side in widget.data["sides"]] == ["first model", "second model"]
    assert widget.title == "Heads: first model and second model"


def test_a_head_that_is_not_there_is_refused(tiny_lab):
    widget = HeadGrid(head_scores(tiny_lab))
    widget.layer, widget.head = 1, 3
    with pytest.raises(ValueError, match="head 4 is out of range"):
        widget.head = 4
    with pytest.raises(ValueError, match="layer 2 is out of range"):
        widget.off = ((2, 0),)

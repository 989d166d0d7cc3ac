"""What the Explore page saves: of the side that is selected, with what the views' own fields say."""

import base64

import pytest

from gpt2lab.errors import LabError
from gpt2lab.inspection.ablation import ablate
from gpt2lab.inspection.exploration import exploration
from gpt2lab.inspection.patching import patching
from gpt2lab.pages.explore import saved
from gpt2lab.pages.export import export

TEXT, CORRUPTED = "The moon is a small world.", "The moon in a small world."


@pytest.fixture(scope="module")
def labs(random_lab):
    return [random_lab(seed=0), random_lab(seed=1)]


@pytest.fixture(scope="module")
def found(labs):
    return [exploration(lab, TEXT) for lab in labs]


def test_saved_ablation_is_the_one_that_is_shown(labs, found):
    asked = {"mlps": [1], "mean": True}
    file = saved(
        labs[:1], found[:1], {"part": "ablation", "format": "csv", "selection": {"off": [[0, 1]]}, "asked": asked}
    )
    expected = export(ablate(labs[0], found[0].seen, [(0, 1)], mlps=[1], mean=True), "csv")
    assert base64.b64decode(file["content"]) == expected


def test_saved_patching_has_the_corrupted_prompt_and_the_answers_of_the_view(labs, found):
    asked = {"corrupted": CORRUPTED, "answer": "#65", "rival": "#66"}
    file = saved(labs[:1], found[:1], {"part": "patching", "format": "csv", "asked": asked})
    expected = export(patching(labs[0], TEXT, CORRUPTED, answer=65, against=66), "csv")
    assert base64.b64decode(file["content"]) == expected


@pytest.mark.parametrize("side", [0, 1])
def test_saved_part_is_of_the_side_that_is_selected(labs, found, side):
    file = saved(labs, found, {"part": "lens", "format": "csv", "selection": {"side": side}})
    assert base64.b64decode(file["content"]) == export(found[side].lens, "csv")


def test_only_attention_has_a_difference_to_save(labs, found):
    with pytest.raises(LabError, match="no difference of lens"):
        saved(labs, found, {"part": "lens", "format": "csv", "selection": {"side": 2}})
    part = {"part": "attention of the head", "format": "csv", "selection": {"side": 2}}
    assert saved(labs, found, part)["name"] == "attention-of-the-head-difference.csv"

"""The Learn tab's functions: a step as the page shows it, answers, progress from a browser, models that are not there."""

from dataclasses import replace
from math import nan

import gradio as gr
import pytest

from gpt2lab.app.events import ALONE
from gpt2lab.app.learn import BEGINNING, Fields, Shown, checked_answer, elsewhere, known, step_values
from gpt2lab.app.models import ModelStore
from gpt2lab.app.results import ResultCache
from gpt2lab.data import hub
from gpt2lab.errors import LabError
from gpt2lab.learning.course import COURSE

TEXT = "The moon goes around the earth, and the moon goes around the sea."


@pytest.fixture
def results(tmp_path, monkeypatch, tiny_lab):
    """A cache over a store that loads the tiny model for every label."""
    monkeypatch.setattr("gpt2lab.app.models.load_model", lambda location: replace(tiny_lab, name=location))
    return ResultCache(ModelStore(tmp_path / "runs"))


def page_of(results, number, label="builtin", compare=ALONE, text=None):
    progress, shown, *fields = step_values(results, label, compare, {"step": number, "done": []}, text)
    assert progress["step"] == number
    return shown, Fields(*fields)


@pytest.mark.parametrize("number", range(12))
def test_step_shows_its_question_its_view_and_one_field_for_the_answer(results, tiny_lab, number):
    step = COURSE[number]
    shown, fields = page_of(results, number, text=TEXT)
    text = step.text if step.fixed else TEXT
    found = results.exploration("builtin", text)
    question = step.question(tiny_lab, found)
    assert shown == Shown(number, text)
    assert f"### {step.title}" in fields.body
    assert [fields.choices.visible, fields.number.visible, fields.token.visible] == [
        question.kind == kind for kind in ("choice", "number", "token")
    ]
    assert fields.choices.choices == [(str(line), value) for line, value in question.choices]
    assert fields.check.visible
    data, selection = fields.view.value["data"], fields.view.value["selection"]
    assert data["view"] == step.view
    assert data["subject"] == {"text": text, "models": ["builtin"]}
    assert {name: selection[name] for name in ("position", "layer", "head")} == {
        name: value for name, value in step.place(found).items() if name != "off"
    }
    assert (fields.drawing.visible, fields.costs.visible) == (step.name == "heads", step.name == "limits")


@pytest.mark.parametrize("number", range(12))
def test_right_answer_is_counted_once_and_a_wrong_one_explained(results, tiny_lab, number):
    step = COURSE[number]
    shown = Shown(number, TEXT)
    question = step.question(tiny_lab, results.exploration("builtin", TEXT))
    given = dict.fromkeys(("choice", "number", "token"))
    right = tuple((given | {question.kind: question.answer}).values())
    progress, line, said = checked_answer(results, "builtin", BEGINNING, shown, right)
    assert progress["done"] == [step.name]
    assert "1 answered" in line
    assert said.startswith("✓")
    assert checked_answer(results, "builtin", progress, shown, right)[0] == progress
    wrong = {
        "choice": next((v for _, v in question.choices if v != question.answer), None),
        "number": -1,
        "token": "?!",
    }
    progress, _, said = checked_answer(results, "builtin", BEGINNING, shown, tuple(wrong.values()))
    assert progress == BEGINNING
    assert said.startswith("✗")


def test_step_of_a_model_that_is_not_downloaded_is_there_and_says_so(results, monkeypatch):
    monkeypatch.setattr(hub, "is_downloaded", lambda name: name == "builtin")
    _, fields = page_of(results, 2, label="gpt2")
    assert "Attention" in fields.body
    assert "gpt2 is not downloaded" in fields.result.replace("\\", "")
    assert "\n" not in fields.result
    hidden = (fields.view, fields.choices, fields.number, fields.token, fields.check, fields.there)
    assert not any(component.visible for component in hidden)


def test_fine_tuning_shows_both_models_and_other_steps_one(results):
    names = [step.name for step in COURSE]
    for number in (names.index("finetuning"), names.index("prediction")):
        _, fields = page_of(results, number, compare="gpt2")
        models = fields.view.value["data"]["subject"]["models"]
        assert models == (["builtin", "gpt2"] if names[number] == "finetuning" else ["builtin"])


@pytest.mark.parametrize("step", COURSE, ids=lambda step: step.name)
def test_button_shows_the_state_of_the_step_elsewhere(results, step):
    number = COURSE.index(step)
    tabs, prompt, text, page = elsewhere(results, "builtin", ALONE, number, TEXT)
    assert tabs.selected == step.tab
    if step.tab == "generate":
        assert prompt == TEXT
        assert page == text == gr.skip()
        return
    assert text == TEXT
    place = step.place(results.exploration("builtin", TEXT))
    assert page["selection"]["off"] == tuple(map(tuple, place["off"]))
    assert {name: page["selection"][name] for name in place if name != "off"} == {
        name: value for name, value in place.items() if name != "off"
    }


def test_text_of_a_visitor_is_no_markdown(results):
    _, fields = page_of(results, 7, text="# <b>one</b> *two* three [four](five)")
    assert "<b>" not in fields.question
    assert "*two*" not in fields.question.strip("*")


def test_text_of_one_token_is_said_in_the_step(results):
    _, fields = page_of(results, 4, text="a")
    assert "single token" in fields.result
    assert not fields.check.visible


@pytest.mark.parametrize(
    ("kept", "step", "done"),
    [
        (None, 0, []),
        ("x", 0, []),
        ([], 0, []),
        ({"step": 3, "done": ["lens", "nonsense", 4, "tokens"]}, 3, ["tokens", "lens"]),
        ({"step": 12, "done": None}, 0, []),
        ({"step": nan, "done": "tokens"}, 0, []),
        ({"step": True, "done": [["tokens"]]}, 0, []),
        ({"step": "3"}, 0, []),
    ],
)
def test_progress_from_a_browser_may_be_anything(kept, step, done):
    assert known(kept) == {"step": step, "done": done}


def test_answer_of_another_kind_is_refused(results):
    with pytest.raises(LabError, match="no answer yet"):
        checked_answer(results, "builtin", BEGINNING, Shown(0, TEXT), ("25", None, "25"))

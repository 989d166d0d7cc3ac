from types import SimpleNamespace

import gradio as gr
import pytest

from gpt2lab.app.models import ModelStore
from gpt2lab.app.tasks import EXAMPLES, QUESTION, TEXTS, build_tasks
from gpt2lab.generation.recipes import TASKS
from gpt2lab.generation.tasks import answer, summarize, translate
from gpt2lab.model.lab import load_model


@pytest.fixture(scope="module")
def lab():
    return load_model("builtin", device="cpu")


@pytest.fixture
def tab(tmp_path, monkeypatch, lab):
    """The tab on a page of its own."""
    monkeypatch.setattr("gpt2lab.app.models.load_model", {"builtin": lab}.get)
    with gr.Blocks(analytics_enabled=False) as demo:
        build_tasks(ModelStore(tmp_path), gr.Dropdown(["builtin"]))
    return SimpleNamespace(**{event.api_name: event.fn for event in demo.fns.values()})


FIELDS = ("text", "question", "examples", "prompt", 5)
VISITOR = SimpleNamespace(session_hash="one")


def done(tab, task, text=None, **changes):
    fields = {
        "question": QUESTION,
        "examples": EXAMPLES.get(task, ""),
        "prompt": TASKS[task].prompt if task in TASKS else "",
        "length": 12,
        "seed": 0,
    }
    *_, last = tab.task(VISITOR, "builtin", task, TEXTS[task] if text is None else text, *(fields | changes).values())
    return last


def test_prompts_and_lengths_offered_are_the_package_s(tab):
    for task, recipe in TASKS.items():
        _, text, question, examples, prompt, length = tab.tasks_chosen(task, ("none", {}), *FIELDS)
        assert (text, prompt, length) == (TEXTS[task], recipe.prompt, recipe.tokens)
        assert (question.visible, examples.visible) == (task == "answer", task != "summarize")


def test_result_is_shown_while_it_is_written(tab, monkeypatch):
    monkeypatch.setattr("gpt2lab.app.tasks.DRAW_SECONDS", 0)
    fields = ["", "", TASKS["summarize"].prompt, 5, 0]
    answers = list(tab.task(VISITOR, "builtin", "summarize", TEXTS["summarize"], *fields))
    assert [note for _, note, _ in answers[:-1]] == ["Reading the text …", *(f"{i} tokens" for i in range(1, 6))]
    assert all(result for result, _, _ in answers[2:])


def test_what_was_typed_is_there_again_after_another_task(tab):
    typed = ("My text.", "My question?", "a = b", "{text} so:", 30)
    drafts, text, *_ = tab.tasks_chosen("answer", ("summarize", {}), *typed)
    assert text == TEXTS["answer"]
    other = ("My document.", "Who?", "q = a", "{document}{examples}{question}", 7)
    drafts, *fields = tab.tasks_chosen("summarize", drafts, *other)
    assert [getattr(field, "value", field) for field in fields] == list(typed)
    _, *fields = tab.tasks_chosen("answer", drafts, *typed)
    assert [getattr(field, "value", field) for field in fields] == list(other)


def test_stop_ends_a_task_with_what_there_is(tab):
    text = " ".join(f"Sentence number {i} is about the moon and of the sea." for i in range(40))
    answers = tab.task(VISITOR, "builtin", "summarize", text, "", "", TASKS["summarize"].prompt, 10, 0)
    next(answers), next(answers)
    tab.task_stop(VISITOR)
    *_, (result, note, whole) = answers
    assert note.startswith("Stopped. ") and whole.startswith("Sentence number 0")
    assert whole.count("TL;DR:") == 1 and len(result) < len(whole)


def test_result_is_the_package_s_with_what_to_expect(tab, lab):
    expected = summarize(lab, TEXTS["summarize"], max_new_tokens=12, seed=4)
    result, note, whole = done(tab, "summarize", seed=4)
    assert (result, whole) == (expected.text, expected.prompts[0] + expected.generations[0].text)
    assert TASKS["summarize"].expect in note and "section 3.6" in note
    pairs = [tuple(line.split(" = ")) for line in EXAMPLES["translate"].splitlines()]
    expected = translate(lab, TEXTS["translate"], examples=pairs, max_new_tokens=12)
    assert done(tab, "translate")[0] == expected.text
    pairs = [tuple(line.split(" = ")) for line in EXAMPLES["answer"].splitlines()]
    expected = answer(lab, TEXTS["answer"], QUESTION, examples=pairs, max_new_tokens=12)
    assert done(tab, "answer")[0] == expected.text


def test_long_text_is_done_part_by_part(tab, lab):
    text = " ".join(f"Sentence number {i} is about the moon and of the sea." for i in range(40))
    fields = ["", "", TASKS["summarize"].prompt, 10, 0]
    _, *notes = [note for _, note, _ in tab.task(VISITOR, "builtin", "summarize", text, *fields)]
    expected = summarize(lab, text, max_new_tokens=10)
    assert notes[0] == f"part 1 of {len(expected.prompts)}, 1 tokens" and len(expected.prompts) > 1
    assert done(tab, "summarize", text, length=10)[0] == expected.text


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"task": "sing", "text": "a"}, "task 'sing' is unknown; use summarize, translate, answer"),
        ({"task": "summarize", "text": " "}, "the text is empty"),
        ({"task": "summarize", "prompt": "TL;DR:"}, "has {text} 0 times"),
        ({"task": "translate", "examples": "a"}, "is no pair; write it as 'one = other'"),
        ({"task": "translate", "examples": ""}, "give at least one"),
        ({"task": "answer", "question": ""}, "the question is empty"),
        ({"task": "answer", "seed": None, "text": ""}, "the document is empty"),
        ({"task": "summarize", "length": 10**6}, "out of range"),
    ],
)
def test_bad_input_is_refused(tab, asked, message):
    with pytest.raises(gr.Error, match=message):
        done(tab, **asked)
    with pytest.raises(gr.Error, match="is unknown"):
        tab.tasks_chosen("sing", ("summarize", {}), *FIELDS)

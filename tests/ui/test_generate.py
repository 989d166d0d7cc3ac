from types import SimpleNamespace

import gradio as gr
import pytest

import gpt2lab.model
from gpt2lab.generation import generate
from gpt2lab.ui.generate import MAX_TEXTS, alternatives, build_generate_tab, coloured, step_rows
from gpt2lab.ui.shelf import Shelf

SETTINGS = {
    "length": 8,
    "temperature": 0.8,
    "top_p": 0.95,
    "top_k": 0,
    "seed": 3,
    "min_p": 0,
    "penalty": 1,
    "window": 0,
}


@pytest.fixture
def tab(tmp_path, monkeypatch, tiny_lab):
    """The tab on a page of its own, with the tiny model for "builtin"."""
    monkeypatch.setattr(gpt2lab.model, "load_model", {"builtin": tiny_lab}.get)
    with gr.Blocks(analytics_enabled=False) as demo:
        build_generate_tab(Shelf(tmp_path), gr.Dropdown(["builtin"]))
    functions = {event.api_name: event.fn for event in demo.fns.values()}
    return SimpleNamespace(demo=demo, lab=tiny_lab, **functions)


def written(tab, prompt="The moon", texts=(), by="probability", **changes):
    """All that the tab shows while a text is written."""
    *_, last = answers = list(tab.generate("builtin", prompt, *(SETTINGS | changes).values(), False, by, texts))
    names = ["text", "note", "tokens", "table", "texts", "which"]
    assert all(len(answer) == len(names) for answer in answers)
    return SimpleNamespace(**dict(zip(names, last, strict=True)))


def click(index):
    return SimpleNamespace(index=index)


def test_text_is_the_package_s_own_in_colours_with_its_steps(tab):
    answer = written(tab)
    expected = generate(tab.lab, "The moon", max_new_tokens=8, temperature=0.8, top_p=0.95, seed=3)
    assert answer.text == f"The moon{expected.text}"
    assert answer.tokens == [(step.token.replace("\n", "⏎"), round(step.probability, 4)) for step in expected.steps]
    assert answer.table == step_rows(expected)
    assert answer.note.startswith("8 tokens, ") and answer.note.endswith("the length asked for is reached.")
    [kept] = answer.texts
    assert kept.generation == expected
    assert (answer.which.value, answer.which.visible) == (0, False)


@pytest.mark.parametrize("by", ["probability", "rank", "entropy"])
def test_colours_lie_between_0_and_1_and_are_what_they_say(tiny_lab, by):
    steps = generate(tiny_lab, "The moon", max_new_tokens=20, seed=1).steps
    found = coloured(steps, by, 300)
    assert [token for token, _ in found] == [step.token.replace("\n", "⏎") for step in steps]
    assert all(0 <= value <= 1 for _, value in found) and len({value for _, value in found}) > 5
    order = sorted(range(20), key=lambda i: getattr(steps[i], by))
    assert [found[i][1] for i in order] == sorted(value for _, value in found)


def test_empty_prompt_is_said(tab):
    answer = written(tab, "")
    assert answer.note.endswith("There was no prompt: the model began from `<|endoftext|>`.")


def test_seam_is_marked(tab):
    answer = written(tab, "x" * 60, length=10, window=20)
    assert [token.startswith("⋮ ") for token, _ in answer.tokens].count(True) == 1


def test_token_shows_what_it_was_chosen_from(tab):
    answer = written(tab)
    step = answer.texts[0].generation.steps[5]
    place, words, bars = tab.generate_token(answer.texts, 0, click(5))
    assert (place, words, bars) == (5, *alternatives(step, 5))
    assert f"probability {step.probability:.4f}, rank {step.rank}" in words
    assert list(bars.values()) == [other.probability for other in step.alternatives]


def test_a_choice_is_gone_on_from_and_both_texts_are_kept(tab):
    first = written(tab, temperature=0)
    step = first.texts[0].generation.steps[2]
    *_, last = tab.generate_branch(first.texts, 0, 2, "rank", click(3))
    after = (*first.texts[0].generation.steps[:2], step.instead(step.alternatives[3].id))
    expected = generate(tab.lab, "The moon", max_new_tokens=5, temperature=0, top_p=0.95, seed=3, after=after)
    text, _, tokens, table, texts, which = last
    assert text == f"The moon{expected.text}"
    assert (tokens, table) == (coloured(expected.steps, "rank", 300), step_rows(expected))
    assert texts[0] == first.texts[0] and texts[1].generation == expected
    assert (which.value, which.visible) == (1, True)
    assert f"{step.alternatives[3].token!r} for token 2 of text 1" in which.choices[1][0]
    shown, note, *_ = tab.generate_show(texts, 0, "rank")
    assert shown == first.text and note == "8 tokens; the length asked for is reached."
    assert tab.generate_colours(texts, 1, "entropy")[2] == coloured(expected.steps, "entropy", 300)


def test_another_text_clears_what_a_token_was_chosen_from(tab):
    cleared = [
        event for event in tab.demo.fns.values() if len(event.outputs) == 3 and isinstance(event.outputs[0], gr.State)
    ]
    cleared = [event for event in cleared if event.api_name not in ("generate_token",)]
    assert [output.elem_id for output in cleared[0].outputs[1:]] == ["generate-token", "generate-choices"]
    assert [event.fn() for event in cleared] == [(None, "", None)] * 3


def test_no_more_texts_are_kept_than_the_limit(tab):
    texts = ()
    for seed in range(MAX_TEXTS + 2):
        texts = written(tab, texts=texts, length=1, seed=seed).texts
    assert [one.generation.seed for one in texts] == list(range(2, MAX_TEXTS + 2))


def test_colours_before_there_is_a_text_change_nothing(tab):
    assert all(one == gr.skip() for one in tab.generate_colours((), None, "rank"))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda tab, texts: tab.generate_token((), None, click(0)), "press Generate first"),
        (lambda tab, texts: tab.generate_show((), 0, "rank"), "press Generate first"),
        (lambda tab, texts: list(tab.generate_branch((), 0, 0, "rank", click(0))), "press Generate first"),
        (lambda tab, texts: tab.generate_token(texts, 0, click(8)), "token 8 is out of range"),
        (lambda tab, texts: tab.generate_token(texts, 1, click(0)), "text 1 is out of range"),
        (lambda tab, texts: list(tab.generate_branch(texts, 0, None, "rank", click(0))), "token None is out of range"),
        (lambda tab, texts: list(tab.generate_branch(texts, 0, 0, "rank", click(10))), "choice 10 is out of range"),
        (lambda tab, texts: tab.generate_show(texts, 0, "__class__"), "colour '__class__' is unknown"),
        (lambda tab, texts: written(tab, temperature=-1), "temperature -1 is out of range"),
        (lambda tab, texts: written(tab, seed=None), "seed None is out of range"),
        (lambda tab, texts: written(tab, window=64), "window 64 is out of range"),
        (lambda tab, texts: written(tab, "\ud800"), "surrogate"),
    ],
)
def test_bad_input_is_told(tab, ask, message):
    texts = written(tab).texts
    with pytest.raises(gr.Error, match=message):
        ask(tab, texts)

import re
from types import SimpleNamespace

import gradio as gr
import pytest

from gpt2lab.app.events import ALONE
from gpt2lab.app.generate import SAMPLING, build_generate_tab
from gpt2lab.app.generate_content import MAX_TEXTS, alternatives, coloured, step_rows
from gpt2lab.app.models import ModelStore
from gpt2lab.data.tokens import display_tokens, visible
from gpt2lab.generation.generate import best_of, generate, generate_batch

SETTINGS = {
    "max_new_tokens": 8,
    "temperature": 0.8,
    "top_p": 0.95,
    "top_k": 0,
    "seed": 3,
    "min_p": 0,
    "repetition_penalty": 1,
    "window": 0,
    "precision": "fp32",
}
OPTIONS = {"max_new_tokens": 8, "temperature": 0.8, "top_p": 0.95, "seed": 3}
VISITOR = SimpleNamespace(session_hash="one")
VIEWS = ["which", "beside", "text", "ending", "tokens", "column", "text2", "ending2", "tokens2", "table", "measures"]


@pytest.fixture
def tab(tmp_path, monkeypatch, tiny_lab, random_lab):
    """The tab on a page of its own, with the tiny model for "builtin" and another for "gpt2"."""
    labs = {"builtin": tiny_lab, "gpt2": random_lab(seed=5)}
    monkeypatch.setattr("gpt2lab.app.models.load_model", labs.get)
    store = ModelStore(tmp_path)
    with gr.Blocks(analytics_enabled=False) as demo:
        build_generate_tab(store, gr.Dropdown(["builtin", "gpt2"]))
    functions = {event.api_name: event.fn for event in demo.fns.values()}
    return SimpleNamespace(demo=demo, lab=tiny_lab, other=labs["gpt2"], store=store, **functions)


def last_of(answers):
    """The last of what the tab shows while it writes, by names."""
    *_, last = answers = list(answers)
    names = ["texts", "note", *VIEWS]
    return SimpleNamespace(**dict(zip(names, last, strict=True)), count=len(answers))


def written(tab, prompt="The moon", texts=(), by="probability", other=ALONE, continuations=1, **changes):
    values = (SETTINGS | changes).values()
    return last_of(tab.generate(VISITOR, "builtin", other, prompt, continuations, by, texts, *values))


def click(index):
    return SimpleNamespace(index=index)


def test_text_is_the_package_s_own_in_colours_with_its_steps(tab):
    answer = written(tab)
    expected = generate(tab.lab, "The moon", **OPTIONS)
    assert answer.text == f"The moon{expected.text}"
    shown = display_tokens(tab.lab.tokenizer, [step.id for step in expected.steps])
    assert answer.tokens == [(token, round(step.probability, 4)) for token, step in zip(shown, expected.steps)]
    assert answer.table == step_rows(answer.texts[0])
    assert [row[0] for row in answer.table] == [*shown]
    assert re.fullmatch(r"8 tokens, [0-9,]+ a second\.", answer.note)
    assert answer.ending == "**builtin**: 8 tokens; the length asked for is reached."
    [kept] = answer.texts
    assert (kept.number, kept.generation) == (1, expected)
    assert (answer.which.value, answer.which.visible, answer.column.visible) == (1, False, False)


def test_two_models_write_beside_each_other_from_the_same_prompt_and_seed(tab):
    answers = list(
        tab.generate(VISITOR, "builtin", "gpt2", "The moon", 1, "rank", (), *(SETTINGS | {"seed": 4}).values())
    )
    answer = last_of(answers)
    texts = [f"The moon{generate(lab, 'The moon', **OPTIONS | {'seed': 4}).text}" for lab in (tab.lab, tab.other)]
    assert [answer.text, answer.text2] == texts and texts[0] != texts[1]
    assert answer.ending2.startswith("**gpt2**: 8 tokens")
    assert (answer.which.value, answer.beside.value, answer.column.visible) == (1, 2, True)
    assert answers[0][1] == "Reading the prompt …"
    first = dict(zip(["texts", "note", *VIEWS], answers[1]))
    assert [len(one.generation.steps) for one in first["texts"]] == [1, 1]  # both stream


def test_of_several_continuations_the_best_is_shown_and_all_are_kept(tab):
    answer = written(tab, continuations=4)
    batch = generate_batch(tab.lab, "The moon", 4, **OPTIONS)
    assert [text.generation.text for text in answer.texts] == [one.text for one in batch]
    best = best_of(batch)
    assert answer.text == f"The moon{best.text}"
    assert answer.which.value == 1 + batch.index(best)
    assert answer.note.startswith("32 tokens")


def test_empty_prompt_is_said(tab):
    assert written(tab, "").ending.endswith("There was no prompt: the model began from `<|endoftext|>`.")


def test_seam_is_marked(tab):
    answer = written(tab, "x" * 60, max_new_tokens=10, window=20)
    assert [token.startswith("⋮ ") for token, _ in answer.tokens].count(True) == 1


def test_token_shows_what_it_was_chosen_from_with_the_text_s_own_settings(tab):
    answer = written(tab, top_k=7)
    step = answer.texts[0].generation.steps[5]
    at, row, words, bars, *drawn = tab.generate_token(answer.texts, 1, click(5))
    assert (at, row.visible, drawn) == ((1, 5), True, [0.8, 0.95, 7, 0])
    assert (words, bars) == alternatives(answer.texts, at, *drawn)
    assert list(bars.values()) == [other.sampled_probability for other in step.alternatives]
    assert "not enough" not in words and "It was drawn with" in words


def test_bars_are_redrawn_without_a_model(tab, monkeypatch):
    answer = written(tab)
    monkeypatch.setattr("gpt2lab.generation.decoding.Decoder.read", None)
    for name in SAMPLING:
        words, bars = tab.__dict__[f"generate_redraw_{name}"](answer.texts, (1, 2), 0, 1, 0, 0)
        assert list(bars.values()) == [1.0] + [0.0] * 9
    assert "with temperature 0, top-p 1, top-k all, min-p 0" in words


def test_a_choice_is_gone_on_from_and_both_texts_are_kept(tab):
    first = written(tab, temperature=0)
    step = first.texts[0].generation.steps[2]
    last = last_of(tab.generate_branch(VISITOR, first.texts, (1, 2), "rank", 0, click(3)))
    after = (*first.texts[0].generation.steps[:2], step.with_token(step.alternatives[3].id))
    expected = generate(tab.lab, "The moon", max_new_tokens=5, temperature=0, top_p=0.95, seed=3, after=after)
    assert last.text == f"The moon{expected.text}"
    assert (last.tokens, last.table) == (coloured(last.texts[1], "rank"), step_rows(last.texts[1]))
    assert last.texts[0] == first.texts[0] and last.texts[1].generation == expected
    assert (last.which.value, last.which.visible, last.beside.value) == (2, True, 0)
    assert f"↳ 2: builtin, {visible(step.alternatives[3].token)} for token 2 of text 1: " in last.which.choices[1][0]
    shown = dict(zip(VIEWS, tab.generate_show(last.texts, 1, 2, "rank"), strict=True))
    assert (shown["text"], shown["text2"]) == (first.text, last.text)
    colours = dict(zip(VIEWS, tab.generate_colours(last.texts, 2, 0, "entropy")))
    assert colours["tokens"] == coloured(last.texts[1], "entropy")


def test_a_branch_leaves_what_stands_beside_it(tab):
    first = written(tab, other="gpt2")
    last = last_of(tab.generate_branch(VISITOR, first.texts, (2, 1), "rank", 2, click(4)))
    assert (last.which.value, last.beside.value) == (3, 2)
    assert last.text2 == first.text2 and last.ending.startswith("**gpt2**")


def test_what_stands_beside_gives_way_where_it_is_kept_no_more(tab):
    texts = ()
    for seed in range(MAX_TEXTS):
        texts = written(tab, texts=texts, max_new_tokens=2, seed=seed).texts
    last = last_of(tab.generate_branch(VISITOR, texts, (2, 0), "rank", 1, click(1)))
    assert (last.which.value, last.beside.value, last.column.visible) == (MAX_TEXTS + 1, 0, False)


def test_the_token_of_a_branch_was_chosen_by_hand(tab):
    first = written(tab)
    last = last_of(tab.generate_branch(VISITOR, first.texts, (1, 2), "rank", 0, click(3)))
    assert "chosen by hand" in tab.generate_token(last.texts, 2, click(2))[2]
    assert "chosen by hand" not in tab.generate_token(last.texts, 2, click(3))[2]


def test_stop_ends_the_writing_with_what_there_is(tab):
    answers = tab.generate(VISITOR, "builtin", ALONE, "The moon", 1, "rank", (), *SETTINGS.values())
    next(answers), next(answers)
    tab.generate_stop(SimpleNamespace(session_hash="another"))
    tab.generate_stop(VISITOR)
    last = last_of(answers)
    assert last.count == 1 and last.note.startswith("Stopped: 1 tokens")
    assert last.ending == "**builtin**: 1 tokens; stopped." and len(last.table) == 1
    assert len(written(tab, texts=last.texts).texts) == 2  # and the next one is not stopped


def test_a_second_text_waits_for_the_first_on_the_same_page_alone(tab):
    answers = tab.generate(VISITOR, "builtin", ALONE, "The moon", 1, "rank", (), *SETTINGS.values())
    next(answers), next(answers)
    with pytest.raises(gr.Error, match="still being written; press Stop first"):
        written(tab)
    other = SimpleNamespace(session_hash="another")
    assert last_of(tab.generate(other, "builtin", ALONE, "x", 1, "rank", (), *SETTINGS.values())).text
    answers.close()  # as when the page is closed
    assert written(tab).text


def test_measures_stand_in_a_table_under_each_model(tab):
    texts = written(tab, other="gpt2").texts
    found = tab.generate_measure(texts, 1, 2, "sample")
    for part in ("1: builtin", "2: gpt2", "distinct-2", "copied", "perplexity under builtin", "perplexity under gpt2"):
        assert part in found
    assert "2: gpt2" not in tab.generate_measure(texts, 1, 0, "sample")


def test_no_more_texts_are_kept_than_the_limit_and_numbers_stay(tab):
    texts = ()
    for seed in range(MAX_TEXTS + 2):
        texts = written(tab, texts=texts, max_new_tokens=1, seed=seed).texts
    assert [(one.number, one.generation.seed) for one in texts] == [(i + 1, i) for i in range(2, MAX_TEXTS + 2)]


def test_colours_before_there_is_a_text_change_nothing(tab):
    assert all(one == gr.skip() for one in tab.generate_colours((), None, 0, "rank"))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda tab, texts: tab.generate_token((), None, click(0)), "press Generate first"),
        (
            lambda tab, texts: list(tab.generate_branch(VISITOR, (), (1, 0), "rank", 0, click(0))),
            "press Generate first",
        ),
        (lambda tab, texts: tab.generate_measure((), None, 0, "sample"), "press Generate first"),
        (lambda tab, texts: tab.generate_token(texts, 1, click(8)), "token 8 is out of range"),
        (lambda tab, texts: tab.generate_token(texts, 7, click(0)), "text 7 is not here; use one of 1"),
        (lambda tab, texts: tab.generate_show(texts, 1, 9, "rank"), "text 9 is not here"),
        (lambda tab, texts: tab.generate_redraw_top_p(texts, None, 1, 1, 0, 0), "click one first"),
        (lambda tab, texts: tab.generate_redraw_top_p(texts, (1, 0), 1, 0, 0, 0), "top_p 0 leaves no token"),
        (lambda tab, texts: list(tab.generate_branch(VISITOR, texts, None, "rank", 0, click(0))), "click one first"),
        (
            lambda tab, texts: list(tab.generate_branch(VISITOR, texts, (1, 0), "rank", 0, click(10))),
            "choice 10 is out of range",
        ),
        (lambda tab, texts: tab.generate_show(texts, 1, 0, "__class__"), "colour '__class__' is unknown"),
        (lambda tab, texts: tab.generate_measure(texts, 1, 0, "/etc/passwd"), "'/etc/passwd' is unknown"),
        (lambda tab, texts: written(tab, temperature=-1), "temperature -1 is out of range"),
        (lambda tab, texts: written(tab, seed=None), "seed None is out of range"),
        (lambda tab, texts: written(tab, window=64), "window 64 is out of range"),
        (lambda tab, texts: written(tab, continuations=9), "continuations 9 is out of range"),
        (lambda tab, texts: written(tab, other="/etc"), "'/etc' is unknown"),
        (lambda tab, texts: written(tab, "\ud800"), "surrogate"),
    ],
)
def test_bad_input_is_refused(tab, ask, message):
    texts = written(tab).texts
    with pytest.raises(gr.Error, match=message):
        ask(tab, texts)

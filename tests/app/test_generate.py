import json
import re
from types import SimpleNamespace

import gradio as gr
import pytest

from gpt2lab.app.events import ALONE
from gpt2lab.app.generate import FIRST, build_generate_tab
from gpt2lab.app.generate_content import MAX_STEPS, MAX_TEXTS, TextCache, newest
from gpt2lab.app.generate_presets import presets
from gpt2lab.app.models import ModelStore
from gpt2lab.generation.branches import text_of_generation
from gpt2lab.generation.generate import best_of, generate, generate_batch
from gpt2lab.generation.recipes import TASKS
from gpt2lab.widgets.generation import text_part

SETTINGS = {
    "max_new_tokens": 8,
    "temperature": 0.8,
    "seed": 3,
    "top_p": 0.95,
    "top_k": 0,
    "min_p": 0,
    "repetition_penalty": 1,
    "window": 0,
    "precision": "fp32",
}
OPTIONS = {"max_new_tokens": 8, "temperature": 0.8, "top_p": 0.95, "seed": 3}
VISITOR = SimpleNamespace(session_hash="one")


@pytest.fixture
def tab(tmp_path, monkeypatch, tiny_lab, random_lab):
    """The tab on a page of its own, with the tiny model for "builtin" and another for "gpt2"."""
    labs = {"builtin": tiny_lab, "gpt2": random_lab(seed=5)}
    monkeypatch.setattr("gpt2lab.app.models.load_model", labs.get)
    store = ModelStore(tmp_path)
    with gr.Blocks(analytics_enabled=False) as demo:
        bar = SimpleNamespace(model=gr.Dropdown(["builtin", "gpt2"]), compare=gr.Dropdown([ALONE, "gpt2"]))
        with gr.Tab("Generate") as tab:
            build_generate_tab(store, bar, tab)
    functions = {event.fn.__name__: event.fn for event in demo.fns.values() if hasattr(event.fn, "__name__")}
    [page] = [block for block in demo.blocks.values() if block.elem_id == "generate-page"]
    choose = [event.fn for event in demo.fns.values() if not hasattr(event.fn, "__name__") and event.fn]
    return SimpleNamespace(
        demo=demo, lab=tiny_lab, other=labs["gpt2"], store=store, answer=page.answer, choose=choose, **functions
    )


def last_of(answers):
    *_, last = answers = list(answers)
    key, status, value = last
    return SimpleNamespace(key=key, status=status, data=value["data"], answers=answers)


def written(tab, prompt="The moon", key="", other=ALONE, count=1, stop_at_line=False, visitor=VISITOR, **changes):
    values = (SETTINGS | changes).values()
    return last_of(tab.generate(visitor, key, "builtin", other, prompt, count, stop_at_line, *values))


def branched(tab, answer, **changes):
    asked = {"text": 1, "index": 2, "token": alternative(answer, 2, 3), "shown": [1], "side": 0} | changes
    return last_of(tab.continue_from(VISITOR, answer.key, SimpleNamespace(_data=asked)))


def alternative(answer, index, place, number=1):
    [text] = [text for text in answer.data["texts"] if text["number"] == number]
    return json.loads(text["steps"].splitlines()[index])[8][place][1]


def test_text_is_the_package_s_own(tab):
    answer = written(tab)
    expected = text_of_generation(tab.lab, generate(tab.lab, "The moon", **OPTIONS), 1)
    assert answer.data["texts"] == [text_part(expected._replace(name="builtin"))]
    assert (answer.data["shown"], answer.data["writing"]) == ([1], False)
    assert answer.status == "Finished: the length of 8 tokens is reached."
    assert answer.answers[0][1] == "Reading the prompt …"


def test_what_is_shown_while_it_is_written_is_true(tab, monkeypatch):
    monkeypatch.setattr("gpt2lab.app.generate_content.DRAW_SECONDS", 0)
    monkeypatch.setattr("gpt2lab.app.generate_content.SHARE", 0)
    answers = written(tab).answers[1:]
    counts = []
    for _, status, value in answers[:-1]:
        [text] = value["data"]["texts"]
        done, total = map(int, re.fullmatch(r"Writing: (\d+) of (\d+) tokens, [\d,]+ tokens/s", status).groups())
        assert (text["steps"].count("\n"), total, value["data"]["writing"]) == (done, 8, True)
        assert text["finish"] == ("writing" if done < 8 else "length")
        counts.append(done)
    assert counts == sorted(counts) and counts[0] == 1
    *_, last = (value["data"]["texts"][0]["steps"] for _, _, value in answers)
    assert all(last.startswith(value["data"]["texts"][0]["steps"]) for _, _, value in answers)


def test_two_models_write_beside_each_other_from_the_same_prompt_and_seed(tab):
    answer = written(tab, other="gpt2")
    texts = [generate(lab, "The moon", **OPTIONS).text for lab in (tab.lab, tab.other)]
    assert [text["text"] for text in answer.data["texts"]] == texts and texts[0] != texts[1]
    assert [text["name"] for text in answer.data["texts"]] == ["builtin", "gpt2"]
    assert answer.data["shown"] == [1, 2]
    assert answer.status.startswith("Finished: 2 texts, 16 tokens, ")


def test_of_several_continuations_the_best_is_shown_and_all_are_kept(tab):
    answer = written(tab, count=4)
    batch = generate_batch(tab.lab, "The moon", 4, **OPTIONS)
    assert [text["text"] for text in answer.data["texts"]] == [one.text for one in batch]
    assert answer.data["shown"] == [1 + batch.index(best_of(batch))]


def test_text_ends_with_its_line_if_asked(tab):
    free = generate(tab.lab, "The moon", **OPTIONS | {"max_new_tokens": 60, "temperature": 1.5})
    answer = written(tab, stop_at_line=True, max_new_tokens=60, temperature=1.5)
    expected = generate(tab.lab, "The moon", **OPTIONS | {"max_new_tokens": 60, "temperature": 1.5}, stop="\n")
    assert answer.data["texts"][0]["text"] == expected.text == free.text.split("\n")[0]
    assert answer.data["texts"][0]["finish"] == expected.finish


def test_a_choice_is_gone_on_from_and_both_texts_are_kept(tab):
    first = written(tab, temperature=0)
    step = generate(tab.lab, "The moon", **OPTIONS | {"temperature": 0}).steps
    last = branched(tab, first)
    after = (*step[:2], step[2].with_token(step[2].alternatives[3].id))
    expected = generate(tab.lab, "The moon", max_new_tokens=5, temperature=0, top_p=0.95, seed=3, after=after)
    old, new = last.data["texts"]
    assert old == first.data["texts"][0] and new["text"] == expected.text
    assert (new["parent"], new["kept"], last.data["shown"], last.key) == (1, 3, [2], first.key)
    assert last.status == "Finished: the length of 8 tokens is reached."


def test_a_branch_leaves_what_stands_beside_it(tab):
    first = written(tab, other="gpt2")
    last = branched(tab, first, text=2, token=alternative(first, 2, 3, number=2), shown=[1, 2], side=1)
    assert last.data["shown"] == [1, 3]
    assert last.data["texts"][2]["name"] == "gpt2"


def test_stop_ends_the_writing_with_what_there_is(tab, monkeypatch):
    monkeypatch.setattr("gpt2lab.app.generate_content.DRAW_SECONDS", 0)
    answers = tab.generate(VISITOR, "", "builtin", ALONE, "The moon", 1, False, *SETTINGS.values())
    next(answers), next(answers)
    tab.stop(SimpleNamespace(session_hash="another"))
    tab.stop(VISITOR)
    last = last_of(answers)
    assert last.status == "Stopped after 1 tokens."
    assert (last.data["texts"][0]["finish"], last.data["writing"]) == ("stopped", False)
    assert len(written(tab, key=last.key).data["texts"]) == 2  # and the next one is not stopped


def test_a_second_text_waits_for_the_first_on_the_same_page_alone(tab):
    answers = tab.generate(VISITOR, "", "builtin", ALONE, "The moon", 1, False, *SETTINGS.values())
    next(answers), next(answers)
    with pytest.raises(gr.Error, match="still being written; press Stop first"):
        written(tab)
    assert written(tab, visitor=SimpleNamespace(session_hash="another")).data
    answers.close()  # as when the page is closed
    assert written(tab).data


def test_the_tab_opens_with_a_text_that_is_written_once_for_all(tab, monkeypatch):
    key, status, value = tab.open_tab("")
    [text] = value["data"]["texts"]
    assert text["text"] == generate(tab.lab, **FIRST).text and "example" in status
    monkeypatch.setattr("gpt2lab.generation.decoding.Decoder.read", None)  # no model runs any more
    other, _, again = tab.open_tab("")
    assert again["data"]["texts"] == [text] and other != key
    assert all(one == gr.skip() for one in tab.open_tab(key))


def test_a_visitor_s_texts_are_answered_for_by_the_key_alone(tab):
    answer = written(tab)
    options = {"text": 1, "index": 2, "temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0}
    asked = {"kind": "redraw", "options": options, "subject": answer.data["subject"]}
    assert tab.answer(asked)["low"] == [1.0] + [0.0] * 9
    measured = tab.answer(asked | {"kind": "measure", "options": {"texts": [1], "data": "sample"}})
    assert measured["columns"][0]["tokens"] == 8
    for subject in (None, {}, {"key": None}, {"key": ["x"]}, {"key": answer.key + "x"}, "x"):
        assert "is no longer kept" in tab.answer(asked | {"subject": subject})["error"]
    for bad in (None, [], 7, {"kind": ["x"]}, {"kind": "branch", "subject": answer.data["subject"]}):
        assert list(tab.answer(bad)) == ["error"]


def test_texts_that_are_gone_leave_room_for_new_ones(tab):
    answer = written(tab, key="unknown")
    assert answer.key != "unknown" and len(answer.data["texts"]) == 1


def test_no_more_texts_are_kept_than_the_limit_and_numbers_stay(tab):
    key = ""
    for seed in range(MAX_TEXTS + 2):
        answer = written(tab, key=key, max_new_tokens=1, seed=seed)
        key = answer.key
    assert [(one["number"], one["seed"]) for one in answer.data["texts"]] == [
        (i + 1, i) for i in range(2, MAX_TEXTS + 2)
    ]


def test_tokens_of_a_visitor_and_of_all_are_bounded_but_the_newest_are_kept(tiny_lab):
    text = text_of_generation(tiny_lab, generate(tiny_lab, "The", max_new_tokens=2), 1)
    long = text._replace(generation=SimpleNamespace(steps=[None] * (MAX_STEPS // 2)))
    assert len(newest((long,) * 5, 1)) == 2 and len(newest((long,) * 5, 4)) == 4
    cache = TextCache(limit=3 * 4096 * 2)
    for key in "abcd":
        cache.put(key, (text,))
    assert [bool(cache.get(key)) for key in "abcd"] == [False, True, True, True]


def test_presets_are_the_paper_s_prompts_and_settings(tab, tiny_lab):
    found = presets()
    for index, one in enumerate(found):
        prompt, length, temperature, top_k, line, note = tab.choose[index]()
        assert (prompt, length, temperature, top_k, line) == (
            one.prompt,
            one.max_new_tokens,
            one.temperature,
            one.top_k,
            one.stop_at_line,
        )
        assert note.visible == bool(one.note)
    for one, (name, recipe) in zip(found[-3:], TASKS.items(), strict=True):
        _start, end = recipe.prompt.rsplit("}", 1)
        assert one.prompt.endswith(end) and "{" not in one.prompt and one.max_new_tokens == recipe.tokens, name
        assert re.search(r"section \d\.\d", recipe.source.replace("sections", "section"))[0] in one.note


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda tab, first: branched(tab, SimpleNamespace(key="x", data=first.data)), "text 1 is no longer kept"),
        (lambda tab, first: branched(tab, first, text=7), "text 7 is no longer kept"),
        (lambda tab, first: branched(tab, first, index=8), "token 8 is out of range"),
        (lambda tab, first: branched(tab, first, token=10**6), "is not among this step's alternatives"),
        (lambda tab, first: branched(tab, first, shown=[1, 9], side=0), "text 9 is no longer kept"),
        (lambda tab, first: branched(tab, first, shown="1"), "a list of one number or two"),
        (lambda tab, first: branched(tab, first, side=1), "side 1 is out of range"),
        (lambda tab, first: list(tab.continue_from(VISITOR, first.key, SimpleNamespace(_data=None))), "out of range"),
        (lambda tab, first: written(tab, temperature=-1), "temperature -1 is out of range"),
        (lambda tab, first: written(tab, temperature=float("nan")), "temperature nan is out of range"),
        (lambda tab, first: written(tab, seed=None), "seed None is out of range"),
        (lambda tab, first: written(tab, max_new_tokens=10**7), "max_new_tokens 10000000 is out of range"),
        (lambda tab, first: written(tab, max_new_tokens=513), "max_new_tokens 513 is out of range"),
        (lambda tab, first: written(tab, window=64), "window 64 is out of range"),
        (lambda tab, first: written(tab, count=9), "continuations 9 is out of range"),
        (lambda tab, first: written(tab, other="/etc"), "'/etc' is unknown"),
        (lambda tab, first: written(tab, precision="int4"), "int4"),
        (lambda tab, first: written(tab, "\ud800"), "surrogate"),
        (lambda tab, first: written(tab, None), "string|text"),
        (lambda tab, first: written(tab, "x" * 5000), "the prompt has"),
    ],
)
def test_bad_input_is_refused(tab, ask, message):
    first = written(tab)
    with pytest.raises(gr.Error, match=message):
        ask(tab, first)

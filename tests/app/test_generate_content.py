from dataclasses import replace
from math import inf

import pytest
import torch

from gpt2lab.app.generate_content import (
    Start,
    alternatives,
    branch,
    cell,
    coloured,
    list_choices,
    newest,
    text_views,
    token_at,
    write,
)
from gpt2lab.app.models import ModelStore
from gpt2lab.data.tokens import visible
from gpt2lab.errors import LabError
from gpt2lab.generation.sampling import step_of


@pytest.fixture
def store(tmp_path, monkeypatch, tiny_lab):
    monkeypatch.setattr("gpt2lab.app.models.load_model", {"builtin": tiny_lab}.get)
    return ModelStore(tmp_path)


def start(**options):
    usual = {"temperature": 1, "top_p": 1, "top_k": None, "min_p": 0, "repetition_penalty": 1}
    return Start("builtin", {"prompt": "The moon", "max_new_tokens": 6, **usual, **options})


def texts_of(store, *starts):
    texts = ()
    for one in starts:
        *_, last = write(store, texts, [one])
        texts = last.texts
    return texts


@pytest.mark.parametrize("by", ["probability", "rank", "entropy"])
def test_colours_lie_between_0_and_1_and_are_what_they_say(store, by):
    [text] = texts_of(store, start(seed=1, max_new_tokens=20))
    steps, found = text.generation.steps, coloured(text, by)
    assert [token for token, _ in found] == [*text.tokens]
    assert all(0 <= value <= 1 for _, value in found) and len({value for _, value in found}) > 5
    order = sorted(range(20), key=lambda i: getattr(steps[i], by))
    assert [found[i][1] for i in order] == sorted(value for _, value in found)


def test_writing_yields_the_text_as_it_grows_and_at_last_all_of_it(store, monkeypatch):
    monkeypatch.setattr("gpt2lab.app.generate_content.DRAW_SECONDS", 0)
    found = list(write(store, (), [start(seed=1)]))
    assert [len(now.texts[0].generation.steps) for now in found] == [1, 2, 3, 4, 5, 6, 6]
    assert [now.done for now in found] == [False] * 6 + [True]
    assert found[2].texts[0].generation.finish == "stopped" and found[-1].texts[0].generation.finish == "length"


def test_branches_are_listed_below_what_they_branched_from(store):
    texts = texts_of(store, start(seed=1), start(seed=2))
    for at, choice in (((1, 2), 1), ((3, 4), 2), ((1, 0), 3)):
        texts = texts_of_branch(store, texts, at, choice)
    assert [number for _, number in list_choices(texts)] == [1, 3, 4, 5, 2]
    lines = {number: line for line, number in list_choices(texts)}
    assert [lines[i].count("↳ ") for i in (1, 3, 4, 5, 2)] == [0, 1, 2, 1, 0]
    assert lines[2].startswith("2: builtin, seed 2: ")
    _, step = token_at(texts, (3, 4))
    assert f"{visible(step.alternatives[2].token)} for token 4" in lines[4]
    assert [number for _, number in list_choices(texts[1:])] == [2, 3, 4, 5]  # what it branched from is kept no more


def texts_of_branch(store, texts, at, choice):
    *_, last = write(store, texts, [branch(texts, at, choice)])
    return last.texts


def test_words_say_where_what_is_kept_is_not_enough(store):
    [text] = texts_of(store, start(seed=1))
    assert "not enough" not in alternatives([text], (1, 2), 2, 1, 0, 0)[0]  # the vocabulary of 300 is kept whole
    logits = torch.randn(1, 50_000, generator=torch.Generator().manual_seed(0))
    wide = step_of(logits, 3, alternatives=4, spell=str)
    texts = [text._replace(V=50_000, tokens=("3",), generation=replace(text.generation, steps=(wide,)))]
    words, bars = alternatives(texts, (1, 0), 1.0, 0.02, 0, 0)
    assert "not enough" not in words and all(value > 0 for value in bars.values())
    words, bars = alternatives(texts, (1, 0), 0.5, 1, 0, 0)
    assert "not enough" in words and "512 top predictions" in words
    exact = (2 * logits[0]).softmax(-1).topk(4).values.tolist()
    for bar, true in zip(bars, exact):
        least, most = (float(number) for number in bar.rsplit(", ", 1)[1].split(" to "))
        assert least - 5e-4 <= true <= most + 5e-4 and most > least


def test_a_kept_text_is_shown_without_its_model(store, monkeypatch):
    [text] = texts_of(store, start(seed=1))
    monkeypatch.setattr(ModelStore, "lab", None)
    assert text_views(text, "rank")[0] == f"The moon{text.generation.text}"
    assert alternatives([text], (1, 0), 1, 1, 0, 0)[1]


def test_nothing_is_redrawn_before_its_time_but_the_end(store, monkeypatch):
    monkeypatch.setattr("gpt2lab.app.generate_content.DRAW_SECONDS", inf)
    assert [now.done for now in write(store, (), [start(seed=1)])] == [True]


def test_penalty_is_said_to_be_left_out(store):
    texts = texts_of(store, start(repetition_penalty=1.5))
    assert alternatives(texts, (1, 0), 1, 0.9, 0, 0)[0].endswith("They leave the repetition penalty out.")
    words, bars = alternatives(texts, (1, 0), 1, 1, 0, 0)  # as it was drawn
    assert "penalty" not in words
    assert list(bars.values()) == [one.sampled_probability for one in texts[0].generation.steps[0].alternatives]


@pytest.mark.parametrize("places", [[2], [5], [1, 4], [4, 5, 5]])
def test_a_branch_of_a_branch_is_as_long_as_was_asked_for(store, places):
    texts = texts_of(store, start(seed=1))
    for number, place in enumerate(places, 1):
        texts = texts_of_branch(store, texts, (number, place), 1)
        found = texts[-1].generation
        assert (len(found.steps), found.finish) == (6, "length")
        assert found.steps[:place] == texts[-2].generation.steps[:place]
        assert found.steps[place].id == texts[-2].generation.steps[place].alternatives[1].id


def test_a_branch_where_the_context_is_full_replaces_the_last_token(store):
    texts = texts_of(store, start(prompt="x" * 62, max_new_tokens=20))
    assert len(texts[0].generation.steps) == 2
    texts = texts_of_branch(store, texts, (1, 1), 2)
    assert (len(texts[1].generation.steps), texts[1].generation.finish) == (2, "context")


def test_a_branch_of_a_continuation_has_its_seed(store):
    *_, last = write(store, (), [start(seed=3)], 3)
    texts = texts_of_branch(store, last.texts, (3, 2), 1)
    assert texts[-1].generation.seed == 5


@pytest.mark.parametrize(("value", "expected"), [(None, "–"), (0.12345, "0.123"), (7, "7"), ("<b>", "<b>")])
def test_a_cell_is_short(value, expected):
    assert cell(value) == expected


@pytest.mark.parametrize("place", [-1, 6, "0", None, 1.0])
def test_token_that_is_not_there_is_refused(store, place):
    with pytest.raises(LabError, match=r"^token .* is out of range"):
        token_at(texts_of(store, start()), (1, place))


def test_oldest_texts_go_when_all_have_too_many_tokens_but_never_the_new_ones(store, monkeypatch):
    monkeypatch.setattr("gpt2lab.app.generate_content.MAX_STEPS", 14)
    texts = texts_of(store, *[start(seed=seed) for seed in range(4)])
    lengths = [len(text.generation.steps) for text in texts]
    assert texts[-1].number == 4
    assert sum(lengths) <= 14
    assert newest(texts[-1:] * 5, 5) == texts[-1:] * 5

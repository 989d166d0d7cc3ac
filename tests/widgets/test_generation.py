"""The data of the generation view, and what it asks for, against the package's own steps, samplers and statistics."""

import json
from dataclasses import replace

import pytest
import torch

from gpt2lab.errors import LabError
from gpt2lab.generation.branches import readable_tokens, text_of_generation
from gpt2lab.generation.generate import generate, generate_batch
from gpt2lab.generation.measures import measure, training_ids
from gpt2lab.generation.sampling import Sampling, redrawn, step_of
from gpt2lab.widgets.generation import GenerationView, answer_generation, answer_redraw

OPTIONS = {"max_new_tokens": 8, "temperature": 0.8, "top_p": 0.9, "seed": 2}


@pytest.fixture
def view(tiny_lab):
    return GenerationView(tiny_lab, generate(tiny_lab, "The moon", **OPTIONS))


def lines(part):
    return [json.loads(line) for line in part["steps"].splitlines()]


def test_data_are_the_steps(view, tiny_lab):
    [part] = view.data["texts"]
    expected = generate(tiny_lab, "The moon", **OPTIONS)
    names = readable_tokens(tiny_lab, [step.id for step in expected.steps])
    for line, step, name in zip(lines(part), expected.steps, names, strict=True):
        token, id, probability, rank, entropy, drawn, removed, shifted, others = line
        assert (token, id, rank, shifted) == (name, step.id, step.rank, 0)
        numbers = (step.probability, step.entropy, step.sampled_probability, step.removed)
        assert (probability, entropy, drawn, removed) == pytest.approx(numbers, rel=1e-5)
        for (_, other, own, sampled), alternative in zip(others, step.alternatives, strict=True):
            assert other == alternative.id
            assert (own, sampled) == pytest.approx((alternative.probability, alternative.sampled_probability), rel=1e-5)
    assert (part["text"], part["prompt"], part["seed"], part["finish"]) == (expected.text, "The moon", 2, "length")
    assert part["sampling"] == {
        "temperature": 0.8,
        "top_p": 0.9,
        "top_k": None,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }


def test_a_text_that_grows_is_the_shorter_one_and_more(tiny_lab):
    short, long = (
        GenerationView(tiny_lab, generate(tiny_lab, "The moon", **OPTIONS | {"max_new_tokens": n})).data["texts"][0]
        for n in (3, 8)
    )
    assert long["steps"].startswith(short["steps"])


def test_an_alternative_branches_and_the_branch_branches_again(view, tiny_lab):
    steps = view.texts[0].generation.steps
    made = view._answer("branch", {"text": 1, "index": 3, "token": steps[3].alternatives[2].id})["text"]
    after = (*steps[:3], steps[3].with_token(steps[3].alternatives[2].id))
    expected = generate(tiny_lab, "The moon", **OPTIONS | {"max_new_tokens": 4}, after=after)
    assert (made["number"], made["parent"], made["kept"], made["text"]) == (2, 1, 4, expected.text)
    token = expected.steps[6].alternatives[1].id
    again = view._answer("branch", {"text": 2, "index": 6, "token": token})["text"]
    assert (again["number"], again["parent"]) == (3, 2) and lines(again)[6][1] == token
    assert [text.number for text in view.texts] == [1, 2, 3]
    view.page()
    assert [part["number"] for part in view.data["texts"]] == [1, 2, 3]  # a file has them all


def test_bars_are_redrawn_by_the_package(view):
    text = view.texts[0]
    for settings in ({"temperature": 2, "top_p": 1, "top_k": 0, "min_p": 0}, {"temperature": 0.5, "top_p": 0.7, "top_k": 4, "min_p": 0.1}):  # fmt: skip
        for index, step in enumerate(text.generation.steps):
            found = view._answer("redraw", {"text": 1, "index": index, **settings})
            low, high = redrawn(step, Sampling(**settings | {"top_k": settings["top_k"] or None}), text.V)
            assert (found["low"], found["high"]) == (low[:10].tolist(), high[:10].tolist())
            assert found["chosen"] == [low[step.rank - 1], high[step.rank - 1]]
            assert found["share"] == pytest.approx(1, abs=1e-5)  # the vocabulary of 300 is kept whole


def test_bounds_of_a_token_past_the_kept_predictions_hold_its_probability(tiny_lab, view):
    logits = torch.randn(1, 50_000, generator=torch.Generator().manual_seed(0))
    rare = int(logits[0].argsort(descending=True)[2000])
    step = step_of(logits, rare, alternatives=4, spell=str)
    text = view.texts[0]._replace(V=50_000, generation=replace(view.texts[0].generation, steps=(step,)))
    found = answer_redraw([text], {"text": 1, "index": 0, "temperature": 1.5, "top_p": 1.0, "top_k": 0, "min_p": 0.0})
    low, high = found["chosen"]
    assert found["M"] == 512 and 0 < found["share"] < 1
    assert low <= float((logits / 1.5).softmax(-1)[0, rare]) <= high


def test_two_models_stand_beside_each_other_with_names_of_their_own(tiny_lab, random_lab):
    other = replace(random_lab(seed=5), name=tiny_lab.name)
    texts = [generate(lab, "The moon", **OPTIONS) for lab in (tiny_lab, other)]
    view = GenerationView(tiny_lab, texts[0], compare=(other, texts[1]))
    assert view.data["shown"] == [1, 2]
    assert [part["name"] for part in view.data["texts"]] == [tiny_lab.name, f"{tiny_lab.name} (2)"]
    step = texts[1].steps[2]
    made = view._answer("branch", {"text": 2, "index": 2, "token": step.alternatives[1].id})["text"]
    after = (*texts[1].steps[:2], step.with_token(step.alternatives[1].id))
    assert made["text"] == generate(other, "The moon", **OPTIONS | {"max_new_tokens": 5}, after=after).text


def test_statistics_are_the_package_s_under_each_model(tiny_lab, random_lab):
    other = random_lab(seed=5)
    batch = generate_batch(tiny_lab, "The moon", 2, **OPTIONS)
    view = GenerationView(tiny_lab, batch, compare=(other, generate(other, "The moon", **OPTIONS)))
    columns = view._answer("measure", {"texts": [2, 3], "data": "sample"})["columns"]
    for column, writer, generation in zip(columns, (tiny_lab, other), (batch[1], view.texts[2].generation)):
        expected = measure(writer, generation, labs=[tiny_lab, other], training=training_ids(writer, "sample"))
        assert {name: column[name] for name in vars(expected)} == vars(expected)
    assert [column["number"] for column in columns] == [2, 3]


def test_a_moved_window_and_an_end_are_in_the_data(tiny_lab):
    text = generate(tiny_lab, "x" * 60, max_new_tokens=10, window=20)
    assert [line[7] for line in lines(GenerationView(tiny_lab, text).data["texts"][0])].count(1) == 1
    begun = text_of_generation(tiny_lab, generate(tiny_lab, "", max_new_tokens=2), 1)
    assert begun.begin == "<|endoftext|>" and not begun.spaced
    assert text_of_generation(tiny_lab, generate(tiny_lab, "The ", max_new_tokens=1), 1).spaced


def test_selected_token_is_read_and_set(view):
    view.position = 3
    assert view.position == 3
    with pytest.raises(LabError, match="position 8 is out of range"):
        view.position = 8


GOOD = {"text": 1, "index": 0, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("guess", {}, "request 'guess' is unknown; use branch, redraw, measure"),
        ("redraw", {}, "text None is out of range"),
        ("redraw", GOOD | {"text": 9}, "text 9 is no longer kept"),
        ("redraw", GOOD | {"index": 8}, "token 8 is out of range"),
        ("redraw", GOOD | {"top_p": 0}, "top_p 0 leaves no token"),
        ("redraw", GOOD | {"temperature": None}, "temperature None is out of range"),
        ("redraw", GOOD | {"temperature": float("nan")}, "temperature nan is out of range"),
        ("redraw", GOOD | {"top_k": "many"}, "top_k"),
        ("branch", {"text": 1, "index": 0}, "alternative None is out of range"),
        ("measure", {"texts": [1], "data": "/etc/passwd"}, "'/etc/passwd' is unknown"),
        ("measure", {"texts": [], "data": "sample"}, "a list of one number or two"),
        ("measure", {"texts": [1, 1, 1], "data": "sample"}, "a list of one number or two"),
        ("measure", {"texts": "11", "data": "sample"}, "a list of one number or two"),
    ],
)
def test_bad_requests_are_refused(view, kind, options, message):
    with pytest.raises(LabError, match=message):
        view._answer(kind, options)


def test_nothing_but_what_the_view_asks_for_is_answered(view):
    with pytest.raises(LabError, match="request 'branch' is unknown"):
        answer_generation(view.texts, "branch", GOOD, view.labs.__getitem__)
    with pytest.raises(LabError, match="no generation to show"):
        GenerationView(next(iter(view.labs.values())), [])


def test_notebook_without_a_kernel_has_the_figure(view, small_pictures):
    content = view._repr_mimebundle_()
    assert (content[0] if isinstance(content, tuple) else content)["image/png"]

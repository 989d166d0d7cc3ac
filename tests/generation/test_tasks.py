import pytest

from gpt2lab.errors import LabError
from gpt2lab.generation.generate import generate
from gpt2lab.generation.tasks import (
    MAX_PARTS,
    PAIRS,
    QUESTIONS,
    TASKS,
    answer,
    filled,
    first_sentences,
    split,
    summarize,
    translate,
)
from gpt2lab.model.lab import load_model

TEXT = "The moon is a small world. It goes around the earth! Does the sea follow it? It does."


@pytest.fixture(scope="module")
def lab():
    return load_model("builtin", device="cpu")


def test_summary_is_the_first_sentences_after_tldr_with_the_paper_s_settings(lab):
    done = summarize(lab, TEXT, seed=3)
    expected = generate(lab, f"{TEXT}\nTL;DR:", max_new_tokens=100, top_k=2, seed=3)
    assert done.prompts == (f"{TEXT}\nTL;DR:",)
    assert done.generations == (expected,)
    assert done.text == first_sentences(expected.text, 3)
    assert {step.rank for step in expected.steps} == {1, 2}


def test_translation_follows_pairs_and_ends_with_its_line(lab):
    done = translate(lab, " The moon is round. ")
    shown = "\n".join(f"{one} = {other}" for one, other in PAIRS)
    [prompt] = done.prompts
    assert prompt == f"{shown}\nThe moon is round. ="
    assert done.generations == (generate(lab, prompt, max_new_tokens=60, temperature=0, stop="\n"),)
    assert done.text == first_sentences(done.generations[0].text, 1)
    assert "\n" not in done.text


def test_answer_follows_the_document_and_questions_with_answers(lab):
    examples = [("Is it old?", "Yes."), ("Is it far?", "No.")]
    done = answer(lab, TEXT, "What does the moon do?", examples=examples)
    [prompt] = done.prompts
    assert prompt == f"{TEXT}\n\nQ: Is it old?\nA: Yes.\nQ: Is it far?\nA: No.\nQ: What does the moon do?\nA:"
    assert done.text == generate(lab, prompt, max_new_tokens=40, temperature=0, stop="\n").text.strip()
    [prompt] = answer(lab, TEXT, "Who?").prompts
    assert f"Q: {QUESTIONS[0][0]}\nA: {QUESTIONS[0][1]}\nQ: Who?\nA:" in prompt


@pytest.mark.parametrize("max_new_tokens", [20, 100])
def test_long_text_is_summarised_in_parts_that_fit_and_lose_nothing(lab, max_new_tokens):
    text = " ".join(f"Sentence number {i} is about the moon and of the sea." for i in range(60))
    done = summarize(lab, text, max_new_tokens=max_new_tokens, sentences=1)
    assert len(done.prompts) == len(done.generations) > 1
    parts = [prompt.removesuffix("\nTL;DR:") for prompt in done.prompts]
    assert " ".join(parts) == text
    assert all(part.endswith(".") for part in parts)
    assert all(len(lab.encode(prompt)) + max_new_tokens <= lab.context for prompt in done.prompts)
    assert done.text == " ".join(first_sentences(one.text, 1) for one in done.generations)


@pytest.mark.parametrize(
    "text", ["word " * 400, "x" * 900, "🌙" * 300, "One. Two. " * 200, "a\n" * 500, f"Short. {'long ' * 300}. End."]
)
def test_split_keeps_every_word_and_every_part_fits(lab, text):
    text = text.strip()
    parts = split(lab, text, 50)
    assert all(part in text for part in parts)
    assert all(0 < len(lab.encode(part)) <= 50 for part in parts)
    assert "".join("".join(parts).split()) == "".join(text.split())


def test_split_leaves_the_text_as_it_is_written_and_cuts_after_sentences(lab):
    text = "\n\n".join(f'He said "number {i}." Then   it ended.' for i in range(30))
    parts = split(lab, text, 50)
    assert len(parts) > 3 and all(part in text for part in parts)
    assert all(part.endswith(('."', "ended.")) for part in parts)


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        ("One. Two. Three.", 2, "One. Two."),
        ("It cost 3.5 million. Then more.", 1, "It cost 3.5 million."),
        ('He said "no!" Then he left.', 1, 'He said "no!"'),
        ("What?! Yes.", 1, "What?!"),
        (" A . B . C .", 2, "A . B ."),
        ("no end", 2, "no end"),
        ("One. no end", 3, "One. no end"),
        ("", 1, ""),
        ("a.b.c. d", 1, "a.b.c."),
    ],
)
def test_first_sentences(text, count, expected):
    assert first_sentences(text, count) == expected


def test_first_sentences_of_a_hostile_text_are_all_of_it():
    assert first_sentences("a.b" * 50_000, 3) == "a.b" * 50_000
    assert first_sentences("." * 100_000, 1) == "." * 100_000


def test_prompt_is_filled_once_and_braces_of_a_text_stay():
    assert filled("{text} {other} {", text="{question}") == "{question} {other} {"
    assert filled("{a}{b}", a="{b}", b="{a}") == "{b}{a}"


@pytest.mark.parametrize(("prompt", "times"), [("TL;DR:", 0), ("{text}{text}", 2), ("", 0), ("{ text }", 0)])
def test_prompt_without_its_place_is_refused(lab, prompt, times):
    with pytest.raises(LabError, match=rf"has \{{text\}} {times} times; write it once"):
        summarize(lab, TEXT, prompt=prompt)


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (lambda lab: summarize(lab, " \n"), "the text is empty"),
        (lambda lab: summarize(lab, None), "the text is empty"),
        (lambda lab: summarize(lab, "x" * 200_001), "200,001 characters; the limit is 200,000"),
        (lambda lab: summarize(lab, "The moon. " * 10_000), f"the limit is {MAX_PARTS}: shorten it"),
        (lambda lab: summarize(lab, TEXT, max_new_tokens=500), "leave 16 at least: ask for fewer new tokens"),
        (lambda lab: summarize(lab, TEXT, max_new_tokens=0), "max_new_tokens 0 is out of range"),
        (lambda lab: summarize(lab, TEXT, sentences=0), "sentences 0 is out of range"),
        (lambda lab: summarize(lab, TEXT, top_k=0), "top_k 0 is out of range"),
        (lambda lab: summarize(lab, TEXT, prompt=3), "the prompt 3 is no text"),
        (lambda lab: translate(lab, ""), "the text is empty"),
        (lambda lab: translate(lab, "a\nb"), "has several lines"),
        (lambda lab: translate(lab, "a", examples=[]), "pairs of two texts; give at least one"),
        (lambda lab: translate(lab, "a", examples=["ab"]), "pairs of two texts"),
        (lambda lab: translate(lab, "a", examples=[("a", "")]), "the example is empty"),
        (lambda lab: translate(lab, "word " * 600), "tokens; .* shorten it"),
        (lambda lab: answer(lab, "", "Who?"), "the document is empty"),
        (lambda lab: answer(lab, TEXT, "Who?\nWhat?"), "the question 'Who.*' has several lines"),
        (lambda lab: answer(lab, "\ud800", "Who?"), "surrogate"),
    ],
)
def test_bad_input_is_refused(lab, do, message):
    with pytest.raises(LabError, match=message):
        do(lab)


def test_every_recipe_names_its_source_and_what_to_expect():
    assert list(TASKS) == ["summarize", "translate", "answer"]
    for task in TASKS.values():
        assert task.source.startswith("section")
        assert any(character.isdigit() for character in task.expect)

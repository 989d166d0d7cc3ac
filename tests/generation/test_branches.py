import pytest

from gpt2lab.data.tokens import display_tokens
from gpt2lab.errors import LabError
from gpt2lab.generation.branches import (
    branch_options,
    numbered,
    readable_tokens,
    text_of_generation,
    texts_of_stream,
)
from gpt2lab.generation.generate import TextStream, generate
from gpt2lab.generation.sampling import Sampling

OPTIONS = {"max_new_tokens": 12, "temperature": 0.8, "top_p": 0.9, "seed": 3, "stop": "\n\n\n"}


@pytest.fixture(scope="module")
def text(tiny_lab):
    return text_of_generation(tiny_lab, generate(tiny_lab, "The moon", **OPTIONS), 1)


def test_a_branch_is_written_as_its_parent_was_up_to_the_same_length(tiny_lab, text):
    step = text.generation.steps[4]
    other = step.alternatives[3].id
    options = branch_options(text, 4, other)
    found = TextStream(tiny_lab, **options).finished().generation
    after = (*text.generation.steps[:4], step.with_token(other))
    expected = generate(tiny_lab, "The moon", **OPTIONS | {"max_new_tokens": 7}, after=after)
    assert found == expected and len(found.steps) == 12 and found.limit == 12
    assert found.sampling == Sampling(temperature=0.8, top_p=0.9, seed=3)
    [branch] = texts_of_stream(TextStream(tiny_lab, **options).finished(), 2, 1)
    assert (branch.number, branch.parent, branch.kept, branch.generation) == (2, 1, 5, expected)


def test_a_branch_at_the_last_token_or_at_an_end_is_only_that_token(tiny_lab, text):
    last = len(text.generation.steps) - 1
    options = branch_options(text, last, text.generation.steps[last].alternatives[1].id)
    assert len(TextStream(tiny_lab, **options).finished().generation.steps) == last + 1


def test_continuations_keep_their_own_seed(tiny_lab):
    texts = texts_of_stream(TextStream(tiny_lab, "The", count=3, seed=5, max_new_tokens=4).finished(), 7)
    assert [(text.number, text.generation.seed, text.generation.sampling.seed) for text in texts] == [
        (7, 5, 5),
        (8, 6, 6),
        (9, 7, 7),
    ]


def test_readable_tokens_are_the_displayed_ones_but_for_spaces(tiny_lab):
    tokenizer = tiny_lab.tokenizer
    everything = range(tiny_lab.model.config.vocab_size)
    assert [token.replace(" ", "·") for token in readable_tokens(tiny_lab, everything)] == [
        token.replace(" ", "·") for token in display_tokens(tokenizer, everything)
    ]
    ids = tokenizer("The moon, 🌙 \x00\n·")["input_ids"]
    found = "".join(readable_tokens(tiny_lab, ids))
    assert (
        found.startswith("The moon, ") and "🌙" in found and "⏎" in found and "\x00" not in found and "\n" not in found
    )


@pytest.mark.parametrize(
    ("index", "token", "message"),
    [
        (12, 3, "token 12 is out of range"),
        (-1, 3, "token -1 is out of range"),
        (None, 3, "token None is out of range"),
        (True, 3, "token True is out of range"),
        (2, "x" * 9, "alternative 'xxxxxxxxx' is out of range"),
        (2, 10**6, "token 1000000 is not among this step's alternatives"),
    ],
)
def test_what_is_not_there_is_refused(text, index, token, message):
    with pytest.raises(LabError, match=message):
        branch_options(text, index, token)


def test_a_number_that_is_not_kept_is_refused(text):
    assert numbered([text], 1) is text
    for number in (2, None, "1", [1]):
        with pytest.raises(LabError, match=r"no longer kept|out of range"):
            numbered([text], number)

import pickle

import pytest

from gpt2lab.errors import LabError, Message, choice, number, whole_number


def test_an_error_holds_its_template_and_values():
    error = LabError("{name!r} has {n:,} tokens; the limit is {high:,}", name="{x}", n=2000, high=1024)
    assert str(error) == "'{x}' has 2,000 tokens; the limit is 1,024"
    assert error.template.format(**error.values | {"n": 3}) == "'{x}' has 3 tokens; the limit is 1,024"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(LabError("a set is {1, 2}")) == "a set is {1, 2}"


@pytest.mark.parametrize("value", ["B", "", None, 1, ["a"], {"a": 1}])
def test_an_unknown_choice_lists_those_there_are(value):
    assert choice("letter", "b", iter("ab")) == "b"
    with pytest.raises(LabError) as caught:
        choice("letter", value, "ab")
    assert str(caught.value) == f"letter {value!r} is unknown; use a, b"
    with pytest.raises(LabError) as caught:
        choice("letter", "b" * 10**6, "ab")
    assert len(str(caught.value)) < 150


def test_an_error_says_the_beginning_of_a_long_value_and_no_half_character():
    for check in (number, whole_number):
        for value in (10**400, "x" * 10**6, [1] * 10**5):
            with pytest.raises(LabError, match="is out of range") as caught:
                check("seed", value, 0, 1)
            assert len(str(caught.value)) < 200
    assert str(LabError("no {name}", name="a\ud800b")) == "no a?b"


def test_a_message_is_its_english_text_and_remembers_how_it_was_made():
    message = Message("{n:,} tokens of {what}", n=2000, what=Message("the text"))
    assert message == "2,000 tokens of the text"
    assert (message.template, message.values) == ("{n:,} tokens of {what}", {"n": 2000, "what": "the text"})
    copied = pickle.loads(pickle.dumps(message))
    assert (copied, copied.template, copied.values) == (message, message.template, message.values)
    assert Message("a set is {1, 2}") == "a set is {1, 2}"

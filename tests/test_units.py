import pytest

from gpt2lab.results import duration


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (99.4, "99 s"), (100, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (36000, "10.0 h")],
)
def test_time_is_reported_in_the_unit_that_people_would_use(seconds, words):
    assert duration(seconds) == words

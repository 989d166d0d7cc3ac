import pytest

from gpt2lab.results import duration, percent


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (99.4, "99 s"), (100, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (36000, "10.0 h")],
)
def test_time_is_reported_in_the_unit_that_people_would_use(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("share", "sign", "words"),
    [
        (0.123, "", "12.3%"),
        (0.123, "+", "+12.3%"),
        (-0.05, "+", "-5.0%"),
        (12345.678, "+", "+1,234,567.8%"),
        (1.2e17, "+", "+1.2e+19%"),
        (float("inf"), "+", "+inf%"),
    ],
)
def test_percentage_is_short_enough_to_read(share, sign, words):
    assert percent(share, sign) == words

import csv
import io
from math import inf, nan

import pytest

from gpt2lab.figures.tables import csv_bytes, safe, table

TEXTS = ["", " ", "a,b", 'say "so"', "two\nlines", "two\r\nlines", "\n", ";", "'", "été 月🌙", "</td>", " =1", "a=1"]
FORMULAS = ["=1+1", "+1", "-1", "@sum", "\t=1", "\r=1", "=", "--", "=cmd|' /C calc'!A0"]
HOSTILE = "</td></table><script>alert(1)</script><img src=x onerror=alert(2)> & \"'"


def parsed(content):
    return list(csv.reader(io.StringIO(content.decode("utf-8"), newline="")))


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_out_of_a_csv_file_as_it_went_in(text):
    assert parsed(csv_bytes(["a", "b"], [(text, "after"), ("next", text)])) == [
        ["a", "b"],
        [text, "after"],
        ["next", text],
    ]


@pytest.mark.parametrize("text", FORMULAS)
def test_text_that_a_spreadsheet_would_run_begins_with_a_quote(text):
    assert safe(text) == f"'{text}"
    assert parsed(csv_bytes(["a"], [(text,)]))[1] == [f"'{text}"]


@pytest.mark.parametrize("value", [-1, -2.5, 0, 3, 1e-300, -inf, None, True])
def test_what_is_no_text_is_never_quoted(value):
    assert safe(value) is value


@pytest.mark.parametrize("value", [0.1 + 0.2, -1 / 3, 1e22, 5e-324, inf, -inf, 12345678901234567890])
def test_number_comes_out_of_a_csv_file_to_its_last_digit(value):
    [_, [cell]] = parsed(csv_bytes(["a"], [(value,)]))
    assert type(value)(cell) == value


def test_number_that_is_none_is_not_taken_for_one():
    [_, [cell, missing, after]] = parsed(csv_bytes(["a", "b", "c"], [(nan, None, "x")]))
    assert (cell, missing, after) == ("nan", "", "x")


def test_head_stands_first_also_where_there_are_no_rows():
    assert csv_bytes(["a", "b c"], []) == b"a,b c\r\n"


def test_rows_may_be_made_one_at_a_time():
    rows = ([i, f"={i}"] for i in range(3))
    assert parsed(csv_bytes(["i", "text"], rows))[1:] == [["0", "'=0"], ["1", "'=1"], ["2", "'=2"]]


def test_rows_that_went_in_are_left_as_they_were():
    row = ["=1", "b"]
    csv_bytes(["a", "b"], [row])
    assert row == ["=1", "b"]


def test_cells_stand_in_their_rows_under_their_heads(read_html):
    read = read_html(table(["a", "b"], [("1", "2"), ("3", "4")]))
    assert read.texts == ["a", "b", "1", "2", "3", "4"]
    cells = [tag for tag, _ in read.tags if tag in ("tr", "th", "td")]
    assert cells == ["tr", "th", "th", "tr", "td", "td", "tr", "td", "td"]


def test_table_without_rows_is_its_head(read_html):
    read = read_html(table(["a"], []))
    assert read.texts == ["a"]
    assert (read.count("th"), read.count("td")) == (1, 0)


@pytest.mark.parametrize("place", ["head", "cell"])
def test_hostile_text_of_a_table_is_shown_and_not_obeyed(read_html, place):
    head, cell = (HOSTILE, "x") if place == "head" else ("x", HOSTILE)
    plain, hostile = read_html(table(["x"], [("x",)])), read_html(table([head], [(cell,)]))
    assert hostile.tags == plain.tags
    assert HOSTILE in hostile.texts

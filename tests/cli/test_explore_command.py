"""`gpt2lab explore`: one offline page or picture, and bad input."""

import json
import re

import pytest

from gpt2lab.inspection.exploration import exploration
from gpt2lab.model.lab import load_model

TEXT = "The moon is round."


def state_of(page):
    return json.loads(re.search(r'<script type="application/json" id="state">(.*?)</script>', page, re.DOTALL)[1])


def test_page_holds_both_models_and_asks_nobody(run_cli, tmp_path):
    out = tmp_path / "page.html"
    status, printed, _ = run_cli("explore", "--model", "builtin", "--compare", "builtin", "--text", TEXT, "--out", out)
    assert (status, printed) == (0, f"{out}  {out.stat().st_size:,} bytes\n")
    page = out.read_text()
    sides = state_of(page)["data"]["sides"]
    lab = load_model("builtin")
    assert [side["tokens"] for side in sides] == [list(exploration(lab, TEXT).seen.tokens)] * 2
    assert "default-src 'none'" in page
    assert not re.search(r"(src|href)=.?https?:", page)


@pytest.mark.parametrize(("name", "start"), [("page.png", b"\x89PNG"), ("page.svg", b"<?xml")])
def test_picture(run_cli, tmp_path, name, start, small_pictures):
    status, *_ = run_cli("explore", "--model", "builtin", "--text", TEXT, "--out", tmp_path / name)
    assert status == 0
    assert (tmp_path / name).read_bytes().startswith(start)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--text", "", "--out", "page.html"), "the text is empty"),
        (("--text", TEXT, "--out", "page.csv"), "a page is no .csv file"),
        (("--text", TEXT, "--out", "page"), "a page is no such file"),
        (("--text", TEXT, "--out", "missing/../.."), "a page is no"),
        (("--text", TEXT), "--out"),
    ],
)
def test_bad_input_is_one_line_and_status_2(run_cli, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, printed, said = run_cli("explore", "--model", "builtin", *options)
    assert (status, printed) == (2, "")
    assert message in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []

"""The attention page: what it holds, its size, and that nothing in it can act."""

import json
from dataclasses import replace

import pytest
import torch

from gpt2lab.errors import LabError
from gpt2lab.inspection.compare import compare
from gpt2lab.inspection.trace import trace
from gpt2lab.pages.explorer import explorer_page
from gpt2lab.widgets.page import POLICY

HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "&amp;&lt;",
    "\"quo'tes`\\",
    "\u2028\u2029",
    "⟨F0 9F⟩",
    "🌙",
    "שלום",
    "مرحبا",
    "${x}",
)


def contents(page, read_html):
    """What a page carries: its data, and what is selected."""
    state = json.loads(read_html(page.html).scripts[0])
    return state["data"], state["selection"]


@pytest.fixture(scope="module")
def gpt2_like(made_trace):
    """A function: L, T → a trace of 12 heads of width 64 with uneven attention, as trained models have."""

    def make(L, T):
        q, k = torch.randn(2, L, 12, T, 64, generator=torch.Generator().manual_seed(0))
        return made_trace(2 * q / 8, k)

    return make


def test_page_has_the_head_and_the_layers_asked_for(tiny_trace, read_html):
    data, selection = contents(explorer_page(tiny_trace, layer=1, head=3), read_html)
    assert (data["sides"][0]["attention"]["layers"], data["chosen"]) == ([0, 1], [3])
    assert (selection["layer"], selection["head"]) == (1, 3)
    data, _ = contents(explorer_page(tiny_trace, layer=1, layers=[1]), read_html)
    assert (data["sides"][0]["attention"]["layers"], data["chosen"]) == ([1], [0, 1, 2, 3])
    with pytest.raises(LabError, match="head 4 is out of range; use a whole number from 0 to 3"):
        explorer_page(tiny_trace, head=4)


def test_traces_of_different_length_are_refused_in_one_line(random_trace):
    with pytest.raises(
        LabError, match=r"^5 tokens in the first text \(made\) and 6 in the second \(made\) do not pair up.*$"
    ):
        explorer_page(compare(random_trace(1, 1, 5), random_trace(1, 1, 6)))


@pytest.mark.parametrize("token", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_token_stays_inside_the_data(random_trace, read_html, token):
    plain = read_html(explorer_page(random_trace(1, 2, 3)).html)
    page = explorer_page(random_trace(1, 2, 3, ("a", token, token)))
    read = read_html(page.html)
    assert [tag for tag, _ in read.tags] == [tag for tag, _ in plain.tags]
    assert read.text == plain.text
    assert read.scripts[1:] == plain.scripts[1:]
    assert contents(page, read_html)[0]["sides"][0]["tokens"] == ["a", token, token]
    assert "\u2028" not in page.html


def test_hostile_name_stays_inside_the_data(random_trace, read_html):
    made = random_trace(1, 1, 3)
    read = read_html(explorer_page(replace(made, name=HOSTILE[0])).html)
    assert [tag for tag, _ in read.tags] == [tag for tag, _ in read_html(explorer_page(made).html).tags]


def test_page_loads_nothing_and_may_not(tiny_trace, read_html):
    read = read_html(explorer_page(tiny_trace).html)
    assert read.attributes("src", "href", "srcset", "data", "action", "poster") == []
    assert not {tag for tag, _ in read.tags} & {"link", "img", "iframe", "object", "embed", "base", "form"}
    assert any(attributes.get("content") == POLICY for _, attributes in read.tags)
    assert not [name for _, attributes in read.tags for name in attributes if name.startswith("on")]


@pytest.mark.parametrize(
    ("theme", "papers"), [("light", ["#ffffff"]), ("dark", ["#18181b"]), ("auto", ["#ffffff", "#18181b"])]
)
def test_page_has_the_theme_asked_for(tiny_trace, theme, papers):
    html = explorer_page(tiny_trace, theme=theme).html
    assert [paper for paper in ("#ffffff", "#18181b") if f"--paper: {paper}" in html] == papers


@pytest.mark.parametrize(("L", "T", "megabytes"), [(12, 128, 1.5), (1, 1024, 5)])
def test_page_of_gpt2_s_heads_is_small(gpt2_like, L, T, megabytes):
    assert len(explorer_page(gpt2_like(L, T)).html.encode()) <= megabytes * 1e6


def test_text_of_one_token_has_a_page(tiny_lab, read_html):
    one = trace(tiny_lab, "a")
    assert len(one.tokens) == 1
    [side] = contents(explorer_page(one), read_html)[0]["sides"]
    assert (side["tokens"], side["attention"]["bound"]) == (["a"], 0)

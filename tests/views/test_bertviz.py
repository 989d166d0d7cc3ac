import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gpt2lab.errors import LabError
from gpt2lab.views import bertviz
from gpt2lab.views.bertviz import MAX_TOKENS, head_view_page
from gpt2lab.views.page import POLICY

HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    "<!--<script>",
    "\u2028\u2029",
    "\"quo'tes`\\",
    "; // HACK: ",
    "const params = ",
    "PYTHON_PARAMS",
    "params['attention']",
    '<script src="https://cdnjs.cloudflare.com/ajax/libs/require.js/2.3.6/require.min.js"></script>',
    "\n\r\0\t",
    "${x}",
    "月🌙é",
)


def data_of(page):
    """What stands after `const params = ` in a page, as JSON."""
    _, marker, after = page.html.partition("const params = ")
    assert marker
    return json.JSONDecoder().raw_decode(after)[0]


def assert_nothing_is_loaded(read):
    assert read.attributes("src", "href", "srcset", "data", "action", "poster") == []
    assert not {tag for tag, _ in read.tags} & {"link", "img", "iframe", "object", "embed", "base", "form"}


def test_page_loads_nothing_and_may_not(tiny_trace, read_html):
    page = head_view_page(tiny_trace)
    read = read_html(page.html)
    assert_nothing_is_loaded(read)
    assert not re.search(r"@import|url\(", page.html.split("<body>")[0])
    assert any(attributes.get("content") == POLICY for _, attributes in read.tags)


def test_page_brings_d3_and_jquery_along_before_they_are_asked_for(tiny_trace, read_html):
    d3, jquery, shim, view = read_html(head_view_page(tiny_trace).html).scripts
    assert "d3js.org v5." in d3[:200]
    assert "jQuery" in jquery[:200]
    assert "window.requirejs" in shim
    assert "requirejs(['jquery', 'd3']" in view


def test_shim_hands_the_libraries_over_in_the_order_that_bertviz_asks_for(tiny_trace, read_html):
    *_, shim, view = read_html(head_view_page(tiny_trace).html).scripts
    assert "draw(window.jQuery, window.d3)" in shim
    assert "requirejs(['jquery', 'd3'], function ($, d3)" in view


def test_data_of_the_page_is_the_attention_to_4_decimals_and_the_tokens(tiny_trace):
    [data] = data_of(head_view_page(tiny_trace))["attention"]
    expected = [
        [np.round(tiny_trace.attention(layer, head).double().numpy(), 4) for head in range(4)] for layer in range(2)
    ]
    np.testing.assert_array_equal(np.array(data["attn"]), np.array(expected))
    assert tuple(data["left_text"]) == tuple(data["right_text"]) == tiny_trace.tokens


def test_data_stands_in_the_page_once(random_trace):
    page = head_view_page(random_trace(1, 1, 3, ("one", "two", "marked-token")))
    assert page.html.count("marked-token") == 2  # left_text and right_text


@pytest.mark.parametrize(
    ("options", "layer", "heads"),
    [({}, 0, [0, 1, 2, 3]), ({"layer": 1}, 1, [0, 1, 2, 3]), ({"layer": 1, "head": 2}, 1, [2])],
)
def test_layer_and_head_asked_for_are_shown_first(tiny_trace, options, layer, heads):
    data = data_of(head_view_page(tiny_trace, **options))
    assert (data["layer"], data["heads"], data["include_layers"]) == (layer, heads, [0, 1])


@pytest.mark.parametrize("options", [{"layer": 2}, {"layer": -1}, {"head": 4}, {"layer": True}])
def test_layer_or_head_that_does_not_exist_is_refused(tiny_trace, options):
    with pytest.raises(LabError, match=r"is out of range; use a whole number from 0 to [13]"):
        head_view_page(tiny_trace, **options)


@pytest.mark.parametrize("token", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_token_stays_inside_the_data(random_trace, read_html, token):
    plain = read_html(head_view_page(random_trace(1, 2, 3)).html)
    page = head_view_page(random_trace(1, 2, 3, ("a", token, token)))
    read = read_html(page.html)
    assert [tag for tag, _ in read.tags] == [tag for tag, _ in plain.tags]
    assert read.text == plain.text
    assert_nothing_is_loaded(read)
    assert data_of(page)["attention"][0]["left_text"] == ["a", token, token]


def without_data(page, tokens):
    """The page's code: all but the data and the id of the drawing."""
    text = re.sub(r"bertviz-[0-9a-f]{32}", "ID", page.html)
    before, marker, after = text.partition("const params = ")
    return before + marker + after[json.JSONDecoder().raw_decode(after)[1] :]


def test_code_of_the_page_does_not_depend_on_the_tokens(random_trace):
    plain, hostile = (head_view_page(random_trace(1, 1, len(HOSTILE), tokens)) for tokens in (None, HOSTILE))
    assert without_data(plain, None) == without_data(hostile, HOSTILE)


def test_48_tokens_are_shown_and_49_refused_with_the_limit(random_trace):
    [data] = data_of(head_view_page(random_trace(1, 1, MAX_TOKENS)))["attention"]
    assert np.array(data["attn"]).shape == (1, 1, 48, 48)
    with pytest.raises(LabError, match=r"49 tokens would freeze the browser; shorten the text to 48"):
        head_view_page(random_trace(1, 1, MAX_TOKENS + 1))


@pytest.mark.parametrize("n", [1, 2])
def test_shortest_texts_have_a_view(random_trace, n):
    [data] = data_of(head_view_page(random_trace(2, 1, n)))["attention"]
    assert data["attn"][1][0][0][0] == 1
    assert np.array(data["attn"]).shape == (2, 1, n, n)


def test_page_is_tall_enough_for_its_tokens(random_trace):
    heights = [head_view_page(random_trace(1, 1, n)).height for n in (1, 48)]
    assert heights[1] - heights[0] >= 47 * 22
    assert heights[0] > 100


@pytest.mark.parametrize(("theme", "dark"), [("light", False), ("dark", True)])
def test_page_has_the_theme_asked_for(tiny_trace, theme, dark):
    html = head_view_page(tiny_trace, theme=theme).html
    assert ("--paper: #18181b" in html, "--paper: #ffffff" in html) == (dark, not dark)
    assert "svg text { fill: var(--ink); }" in html


CHANGES = {
    "no data": lambda view: view.replace("const params = ", "let params = "),
    "data that is no JSON": lambda view: view.replace("const params = {", "const params = atob("),
    "no link": lambda view: view.replace(bertviz.REQUIRE, ""),
    "another link": lambda view: view.replace("require.js/2.3.6", "require.js/2.4.0"),
    "link twice": lambda view: bertviz.REQUIRE + view,
    "no comment": lambda view: view.replace("; // HACK:", ";"),
    "data used otherwise": lambda view: view.replace("params['attention']", "params.attention"),
    "data again": lambda view: view.replace("</script>", "\nconst params = {};</script>").replace(
        'require.min.js">\nconst params = {};</script>', 'require.min.js"></script>'
    ),
    "nothing": lambda view: "",
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_markup_of_bertviz_fails_loudly(tiny_trace, monkeypatch, change):
    head_view = bertviz.head_view
    view = head_view([tiny_trace.attention(i)[None] for i in range(2)], list(tiny_trace.tokens), html_action="return")
    changed = CHANGES[change](view.data)
    assert changed != view.data
    monkeypatch.setattr(bertviz, "head_view", lambda *args, **options: SimpleNamespace(data=changed))
    with pytest.raises(RuntimeError, match="bertviz' head view has changed"):
        head_view_page(tiny_trace)


def test_missing_library_is_named(monkeypatch):
    bertviz._library.cache_clear()
    monkeypatch.setattr(bertviz, "distribution", lambda package: SimpleNamespace(files=[]))
    with pytest.raises(
        RuntimeError, match=r"mpld3 ships 0 files d3\.v5\.min\.js; install it as requirements\.txt says"
    ):
        bertviz._library("mpld3", "d3.v5.min.js")
    bertviz._library.cache_clear()


def test_trace_is_left_as_it_was(tiny_trace):
    before = tiny_trace.q.clone()
    head_view_page(tiny_trace)
    assert torch.equal(tiny_trace.q, before)

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gpt2lab.errors import LabError
from gpt2lab.inspection.trace import trace
from gpt2lab.pages import bertviz
from gpt2lab.pages.bertviz import MAX_TOKENS, VIEWS, Plan, head_view_page, model_view_page, neuron_view_page, plan
from gpt2lab.widgets.page import POLICY

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
    "window.bertviz_params = ",
    "مرحبا &amp; ĠĠ▁",
)
MARKERS = {"head": "const params = ", "model": "const params = ", "neuron": "window.bertviz_params = "}
EACH_VIEW = pytest.mark.parametrize("view", VIEWS)


def parameters_of(page, view="head"):
    """What a page hands to bertviz' script, as JSON."""
    _, marker, after = page.html.partition(MARKERS[view])
    assert marker
    return json.JSONDecoder().raw_decode(after)[0]


def data_of(page, view="head"):
    """The tokens, weights and vectors in a page."""
    attention = parameters_of(page, view)["attention"]
    return attention["all" if view == "neuron" else 0]


def assert_nothing_is_loaded(read):
    assert read.attributes("src", "href", "srcset", "data", "action", "poster") == []
    assert not {tag for tag, _ in read.tags} & {"link", "img", "iframe", "object", "embed", "base", "form"}


@EACH_VIEW
def test_page_loads_nothing_and_may_not(tiny_trace, read_html, view):
    page = VIEWS[view](tiny_trace)
    read = read_html(page.html)
    assert_nothing_is_loaded(read)
    assert not re.search(r"@import|url\(", page.html.split("<body>")[0])
    assert any(attributes.get("content") == POLICY for _, attributes in read.tags)


@EACH_VIEW
def test_page_brings_d3_and_jquery_along_before_they_are_asked_for(tiny_trace, read_html, view):
    d3, jquery, shim, *_, script = read_html(VIEWS[view](tiny_trace).html).scripts
    assert "d3js.org v5." in d3[:200]
    assert "jQuery" in jquery[:200]
    assert "window.requirejs" in shim
    assert "draw(window.jQuery, window.d3)" in shim  # in the order that bertviz asks for
    assert re.search(r"requirejs\(\['jquery', 'd3'\],\s*function ?\(\$, d3\)", script)


@EACH_VIEW
def test_data_of_the_page_is_the_attention_to_4_decimals_and_the_tokens(tiny_trace, view):
    data = data_of(VIEWS[view](tiny_trace), view)
    for layer in range(2):
        for head in range(4):
            expected = np.round(tiny_trace.attention(layer, head).double().numpy(), 4)
            for i, row in enumerate(data["attn"][layer][head]):
                known = i + 1 if view == "model" else len(expected)  # the model view leaves out what lies ahead
                np.testing.assert_array_equal(row, expected[i][:known])
                assert not expected[i][i + 1 :].any()
            assert i + 1 == len(tiny_trace.tokens)
    assert tuple(data["left_text"]) == tuple(data["right_text"]) == tiny_trace.tokens


def test_vectors_of_the_neuron_view_are_q_and_k_to_4_decimals(tiny_trace):
    data = data_of(neuron_view_page(tiny_trace), "neuron")
    np.testing.assert_allclose(data["queries"], tiny_trace.q, atol=5.1e-5)
    np.testing.assert_allclose(data["keys"], tiny_trace.k, atol=5.1e-5)
    assert all(float(f"{x:.4f}") == x for x in np.ravel(data["queries"] + data["keys"]))


@pytest.mark.parametrize(
    "changes",
    [{}, {"scale_attn_by_inverse_layer_idx": True}, {"scale_attn_weights": False}],
    ids=["1/√K", "by layer", "none"],
)
def test_softmax_of_what_the_neuron_view_computes_is_the_attention_of_the_trace(random_lab, changes):
    seen = trace(random_lab(**changes), "The moon is a small world.")
    data = data_of(neuron_view_page(seen, layer=1), "neuron")
    q, k = torch.tensor(data["queries"]), torch.tensor(data["keys"])
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5  # as bertviz' neuron_view.js does
    ahead = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    shown = scores.masked_fill(ahead, -torch.inf).softmax(-1)
    expected = torch.stack([seen.attention(layer) for layer in range(2)])
    assert (expected.amax(-1) < 0.99).any()
    torch.testing.assert_close(shown, expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(torch.tensor(data["attn"]), expected, atol=5.1e-5, rtol=0)


def test_the_script_of_the_neuron_view_divides_by_the_root_of_the_vectors_size(tiny_trace):
    assert neuron_view_page(tiny_trace).html.count("dotProduct / Math.sqrt(config.vectorSize)") == 1


def test_data_stands_in_the_page_once(random_trace):
    page = head_view_page(random_trace(1, 1, 3, ("one", "two", "marked-token")))
    assert page.html.count("marked-token") == 2  # left_text and right_text


@pytest.mark.parametrize(
    ("options", "layer", "heads"),
    [({}, 0, [0, 1, 2, 3]), ({"layer": 1}, 1, [0, 1, 2, 3]), ({"layer": 1, "head": 2}, 1, [2])],
)
def test_layer_and_head_asked_for_are_shown_first(tiny_trace, options, layer, heads):
    parameters = parameters_of(head_view_page(tiny_trace, **options))
    assert (parameters["layer"], parameters["heads"], parameters["include_layers"]) == (layer, heads, [0, 1])


def test_layers_and_heads_may_be_numbers_of_numpy(tiny_trace):
    one = np.int64(1)
    assert parameters_of(head_view_page(tiny_trace, layer=one, head=one))["layer"] == 1
    assert parameters_of(neuron_view_page(tiny_trace, layer=one, head=one), "neuron")["head"] == 1
    page = model_view_page(tiny_trace, layers=np.arange(1, 2), heads=np.arange(2))
    assert parameters_of(page, "model")["include_heads"] == [0, 1]


def test_layer_and_head_asked_for_are_shown_first_in_the_neuron_view(tiny_trace):
    parameters = parameters_of(neuron_view_page(tiny_trace, layer=1, head=2), "neuron")
    assert (parameters["layer"], parameters["head"], parameters["bidirectional"]) == (1, 2, False)


def test_layers_and_heads_of_the_model_view_are_those_asked_for(random_trace):
    seen = random_trace(5, 4, 3)
    page = model_view_page(seen, layers=[4, 1, 4], heads=(2, 0))
    parameters, weights = parameters_of(page, "model"), data_of(page, "model")["attn"]
    assert (parameters["include_layers"], parameters["include_heads"], parameters["total_heads"]) == ([1, 4], [0, 2], 4)
    for i, layer in enumerate([1, 4]):
        for j, head in enumerate([0, 2]):
            np.testing.assert_allclose(weights[i][j][2], seen.attention(layer, head)[2], atol=5.1e-5)
    assert "<p>" not in page.html.split("<body>")[1].split("<script>")[0]  # nothing that was asked for is left out


@pytest.mark.parametrize("options", [{"layer": 2}, {"layer": -1}, {"head": 4}, {"layer": True}])
@pytest.mark.parametrize("view", ["head", "neuron"])
def test_layer_or_head_that_does_not_exist_is_refused(tiny_trace, view, options):
    for asked in (VIEWS[view], lambda *args, **options: plan(*args, view, **options)):
        with pytest.raises(LabError, match=r"is out of range; use a whole number from 0 to [13]$"):
            asked(tiny_trace, **options)


def test_neuron_view_is_of_one_head(tiny_trace):
    with pytest.raises(LabError, match=r"^head None is none to show; use a whole number from 0 to 3$"):
        neuron_view_page(tiny_trace, head=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [99]}, "layer 99 is out of range; use a whole number from 0 to 1"),
        ({"layers": [0, -1]}, "layer -1 is out of range; use a whole number from 0 to 1"),
        ({"heads": [4]}, "head 4 is out of range; use a whole number from 0 to 3"),
        ({"heads": "01"}, "head '0' is out of range; use a whole number from 0 to 3"),
        ({"heads": []}, "no head is selected; give whole numbers from 0 to 3, or None for all"),
        ({"layers": ()}, "no layer is selected; give whole numbers from 0 to 1, or None for all"),
    ],
)
def test_parts_that_do_not_exist_or_none_at_all_are_refused_in_one_line(tiny_trace, options, message):
    for asked in (model_view_page, lambda *args, **options: plan(*args, "model", **options)):
        with pytest.raises(LabError, match=f"^{re.escape(message)}$"):
            asked(tiny_trace, **options)


def test_unknown_view_is_refused_with_those_there_are(tiny_trace):
    with pytest.raises(LabError, match=r"^view 'heads' is unknown; use head, model, neuron$"):
        plan(tiny_trace, "heads")


@pytest.mark.parametrize("token", HOSTILE, ids=range(len(HOSTILE)))
@EACH_VIEW
def test_hostile_token_stays_inside_the_data(random_trace, read_html, view, token):
    plain = read_html(VIEWS[view](random_trace(1, 2, 3)).html)
    page = VIEWS[view](random_trace(1, 2, 3, ("a", token, token)))
    read = read_html(page.html)
    assert [tag for tag, _ in read.tags] == [tag for tag, _ in plain.tags]
    assert read.text == plain.text
    assert_nothing_is_loaded(read)
    assert data_of(page, view)["left_text"] == data_of(page, view)["right_text"] == ["a", token, token]


def without_data(page, view):
    """The page's code: all but the data and the id of the drawing."""
    text = re.sub(r"bertviz-[0-9a-f]{32}", "ID", page.html)
    before, marker, after = text.partition(MARKERS[view])
    return before + marker + after[json.JSONDecoder().raw_decode(after)[1] :]


@EACH_VIEW
def test_code_of_the_page_does_not_depend_on_the_tokens(random_trace, view):
    plain, hostile = (VIEWS[view](random_trace(1, 1, len(HOSTILE), tokens)) for tokens in (None, HOSTILE))
    assert without_data(plain, view) == without_data(hostile, view)


@EACH_VIEW
def test_48_tokens_are_shown_and_49_refused_with_the_limit(random_trace, view):
    weights = data_of(VIEWS[view](random_trace(1, 1, MAX_TOKENS)), view)["attn"]
    assert len(weights[0][0]) == len(weights[0][0][-1]) == 48
    for asked in (VIEWS[view], lambda trace: plan(trace, view)):
        with pytest.raises(
            LabError, match=rf"{view} view of 49 tokens would freeze the browser; shorten the text to 48$"
        ):
            asked(random_trace(1, 1, MAX_TOKENS + 1))


LEFT_OUT = "the rest is left out so that the browser does not freeze"
LARGE = [  # of 48 layers of 25 heads, as GPT-2 XL has, where 3,000 lines and 26,000 numbers are the limits
    ("head", {"layer": 20, "head": 20}, range(15, 25), range(25), True),
    ("head", {"layer": 47}, range(38, 48), range(25), True),
    ("model", {}, range(10), range(5), True),
    ("model", {"layers": [47]}, [47], range(25), False),
    ("model", {"layers": range(40, 48), "heads": range(5, 25)}, range(40, 44), range(5, 16), True),
    ("model", {"layers": range(30, 48), "heads": [24, 3]}, range(30, 48), [3, 24], False),
    ("neuron", {"layer": 20, "head": 3}, range(18, 23), range(25), True),
    ("neuron", {}, range(5), range(25), True),
]


@pytest.fixture
def large_trace(random_trace, monkeypatch):
    monkeypatch.setattr(bertviz, "MAX_LINES", 3_000)
    monkeypatch.setattr(bertviz, "MAX_NUMBERS", 26_000)
    return random_trace(48, 25, 10)


@pytest.mark.parametrize(("view", "options", "layers", "heads", "cut"), LARGE)
def test_of_a_large_model_what_a_browser_draws_is_shown_as_planned(large_trace, view, options, layers, heads, cut):
    planned, page = plan(large_trace, view, **options), VIEWS[view](large_trace, **options)
    assert (planned.layers, planned.heads, planned.cut) == (tuple(layers), tuple(heads), cut)
    weights = data_of(page, view)["attn"]
    assert len(weights) == len(layers)
    for part, layer in ((0, layers[0]), (-1, layers[-1])):
        assert len(weights[part]) == len(heads)
        expected = large_trace.attention(layer)[list(heads)][:, -1]
        np.testing.assert_allclose([head[-1] for head in weights[part]], expected, atol=5.1e-5)
    assert (f"{planned.contents.capitalize()}; {LEFT_OUT}." in page.html) == cut
    assert (LEFT_OUT in page.html) == (LEFT_OUT in planned.note) == cut


@pytest.mark.parametrize(("L", "H", "layers", "heads"), [(1, 100, 1, 85), (100, 1, 85, 1), (2, 100, 1, 65)])
def test_model_view_of_an_uneven_model_is_cut_too(random_trace, L, H, layers, heads):
    planned = plan(random_trace(L, H, MAX_TOKENS), "model")
    assert (len(planned.layers), len(planned.heads)) == (layers, heads)


def test_heads_are_cut_where_one_layer_of_them_is_too_much(random_trace):
    seen = random_trace(2, 100, MAX_TOKENS)
    planned, page = plan(seen, "head", layer=1, head=50), head_view_page(seen, layer=1, head=50)
    assert (planned.layers, planned.heads) == ((0, 1), tuple(range(29, 72)))  # 43 · 48² lines are 99,072
    assert parameters_of(page)["heads"] == [50 - 29]
    assert "Head view of layers 0-1 of 2, heads 29-71 of 100; the rest" in page.html


@pytest.mark.parametrize(
    ("view", "n", "layers", "heads"),
    [("head", 48, 12, 12), ("model", 36, 12, 12), ("model", 48, 9, 9), ("neuron", 26, 12, 12), ("neuron", 48, 5, 12)],
)
def test_what_is_shown_of_a_model_of_the_size_of_gpt2_small(made_trace, view, n, layers, heads):
    planned = plan(made_trace(*torch.zeros(2, 12, 12, n, 64)), view)
    assert (planned.layers, planned.heads) == (tuple(range(layers)), tuple(range(heads)))
    assert planned.cut == (layers < 12)


def test_plan_in_words():
    cut = Plan("model", (0, 1, 2, 3), (0, 1, 2, 3, 4, 5), 12, 12, True, 3_123_456)
    assert cut.note == f"model view of layers 0-3 of 12, heads 0-5 of 12, about 3.1 MB; {LEFT_OUT}."
    whole = Plan("head", (2,), (0, 3), 12, 12, False, 449_999)
    assert whole.note == "head view of layer 2 of 12, heads 0, 3 of 12, about 0.4 MB."


@EACH_VIEW
@pytest.mark.parametrize(("L", "H", "n"), [(1, 1, 1), (12, 12, 16), (12, 12, MAX_TOKENS)])
def test_planned_bytes_are_those_of_the_page_to_within_2_percent(random_trace, view, L, H, n):
    for tokens in (None, ["月" * 20] * n):
        seen = random_trace(L, H, n, tokens)
        assert plan(seen, view).bytes == pytest.approx(len(VIEWS[view](seen).html.encode()), rel=0.02)


def test_planned_bytes_follow_the_numbers(made_trace):
    even = plan(made_trace(torch.zeros(12, 12, 32, 4), torch.zeros(12, 12, 32, 4)), "neuron").bytes
    many = plan(made_trace(torch.full((12, 12, 32, 4), -1234.5678), torch.zeros(12, 12, 32, 4)), "neuron").bytes
    assert many - even == 12 * 12 * 32 * 4 * (len("-1234.5678") - len("0.0")) * 1.0


@pytest.mark.parametrize("n", [1, 2])
@EACH_VIEW
def test_shortest_texts_have_a_view(random_trace, view, n):
    data = data_of(VIEWS[view](random_trace(2, 1, n)), view)
    assert data["attn"][1][0][0][0] == 1
    assert (len(data["attn"]), len(data["attn"][0]), len(data["attn"][0][0])) == (2, 1, n)


@pytest.mark.parametrize(("view", "row"), [("head", 22.5), ("model", 18), ("neuron", 26)])
def test_page_is_tall_enough_for_its_tokens(random_trace, view, row):
    heights = [VIEWS[view](random_trace(1, 12, n)).height for n in (1, 48)]
    assert heights[1] - heights[0] >= 47 * row - 1
    assert heights[0] > 100


@pytest.mark.parametrize(("theme", "dark"), [("light", False), ("dark", True)])
@EACH_VIEW
def test_page_has_the_theme_asked_for(tiny_trace, view, theme, dark):
    page = VIEWS[view](tiny_trace, theme=theme)
    assert ("--paper: #18181b" in page.html, "--paper: #ffffff" in page.html) == (dark, not dark)
    assert "svg text { fill: var(--ink); }" in page.html
    assert view == "head" or parameters_of(page, view)["display_mode"] == theme
    assert "matchMedia" not in page.html.split(MARKERS[view])[1]


@pytest.mark.parametrize(("view", "name"), [("model", "params"), ("neuron", "window.bertviz_params")])
def test_page_of_both_themes_asks_the_browser_for_bertviz_colours(tiny_trace, view, name):
    after = VIEWS[view](tiny_trace, theme="auto").html.partition(MARKERS[view])[2]
    mode = after[json.JSONDecoder().raw_decode(after)[1] :]
    assert mode.startswith(f';\n{name}.display_mode = matchMedia("(prefers-color-scheme: dark)").matches ?')


CHANGES = {
    "no data": lambda view, start: view.replace(start, start.replace("params", "settings")),
    "data that is no JSON": lambda view, start: view.replace(start + "{", start + "atob("),
    "no link": lambda view, start: view.replace(bertviz.REQUIRE, ""),
    "another link": lambda view, start: view.replace("require.js/2.3.6", "require.js/2.4.0"),
    "link twice": lambda view, start: bertviz.REQUIRE + view,
    "something else after the data": lambda view, start: re.sub(r"}(; // HACK:|\n</script>)", r"}, 1\1", view, count=1),
    "nothing after the data": lambda view, start: view[: view.index("}", view.index(start))] + "}",
    "data used otherwise": lambda view, start: view.replace("params['attention']", "params.attention"),
    "data used twice": lambda view, start: view + "params['attention']",
    "data again": lambda view, start: f"{view}\n{start}{{}};",
    "another parameter": lambda view, start: view.replace('"default_filter":', '"precision": 4, "default_filter":'),
    "no id": lambda view, start: view.replace('"root_div_id":', '"default_filter":'),
    "nothing": lambda view, start: "",
}
OPTIONS = 'Select.append($("<option />").val(i).text(i));'


def assert_fails_loudly(view, monkeypatch, trace, change):
    """That a page refuses bertviz' markup once it is changed; unchanged, it does not."""
    VIEWS[view](trace)
    draw, name = getattr(bertviz, f"{view}_view"), f"{view}_view"

    def changed(*args, **options):
        markup = draw(*args, **options).data
        assert change(markup) != markup
        return SimpleNamespace(data=change(markup))

    monkeypatch.setattr(bertviz, name, changed)
    with pytest.raises(RuntimeError, match=f"^bertviz' {view} view has changed"):
        VIEWS[view](trace)


@EACH_VIEW
@pytest.mark.parametrize("change", CHANGES)
def test_changed_markup_of_bertviz_fails_loudly(tiny_trace, monkeypatch, view, change):
    assert_fails_loudly(view, monkeypatch, tiny_trace, lambda markup: CHANGES[change](markup, MARKERS[view]))


@pytest.mark.parametrize("menu", ["layer", "head"])
@pytest.mark.parametrize("new", ["", f"x{OPTIONS} x{OPTIONS}"], ids=["none", "two"])
def test_changed_menus_of_the_neuron_view_fail_loudly(tiny_trace, monkeypatch, menu, new):
    new = new.replace("x", menu)
    assert_fails_loudly("neuron", monkeypatch, tiny_trace, lambda markup: markup.replace(menu + OPTIONS, new))


def test_menus_of_the_neuron_view_name_the_layers_and_heads_in_the_page(tiny_trace):
    html = neuron_view_page(tiny_trace).html
    for menu in ("layer", "head"):
        assert html.count(f'{menu}Select.append($("<option />").val(i).text(params.include_{menu}s[i]));') == 1


def test_missing_library_is_named(monkeypatch):
    bertviz._library.cache_clear()
    monkeypatch.setattr(bertviz, "distribution", lambda package: SimpleNamespace(files=[]))
    with pytest.raises(
        RuntimeError, match=r"mpld3 ships 0 files d3\.v5\.min\.js; install it as requirements\.txt says"
    ):
        bertviz._library("mpld3", "d3.v5.min.js")
    bertviz._library.cache_clear()


@EACH_VIEW
def test_trace_is_left_as_it_was(random_lab, view):
    seen = trace(random_lab(scale_attn_by_inverse_layer_idx=True), "The moon is a small world.")
    before = [tensor.clone() for tensor in (seen.q, seen.k, seen.v)]
    VIEWS[view](seen)
    assert all(torch.equal(now, then) for now, then in zip((seen.q, seen.k, seen.v), before))

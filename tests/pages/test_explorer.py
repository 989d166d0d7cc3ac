import base64
import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from gpt2lab.errors import LabError
from gpt2lab.inspection.compare import compare
from gpt2lab.inspection.trace import trace
from gpt2lab.pages import explorer
from gpt2lab.pages.explorer import MAX_WEIGHTS, explorer_page
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
    """What a page carries: its data, and the bytes of its weights and vectors."""
    data, packed, _ = read_html(page.html).scripts
    return json.loads(data), zlib.decompress(base64.b64decode(packed))


def stored_weights(data, body):
    """(sides, layers, H, T, T): the weights as `explorer.html` reads them back."""
    T, shape = data["tokens"], (len(data["sides"]), len(data["layers"]), data["heads"])
    size = T * (T + 1) // 2
    codes = np.frombuffer(body, np.uint8, int(np.prod(shape)) * size).reshape(*shape, size)
    weights = np.zeros((*shape, T, T))
    weights[..., *np.tril_indices(T)] = (codes / data["levels"]) ** 2
    return weights / weights.sum(-1, keepdims=True)


def stored_vectors(data, body, entry):
    """(2, T, K): q and k of an entry of the data's list."""
    T, K = data["tokens"], data["sides"][entry["side"]]["width"]
    return np.frombuffer(body, "<f4", 2 * T * K, entry["at"]).reshape(2, T, K)


def largest_error(data, body, traces):
    expected = [[one.attention(layer).double().numpy() for layer in data["layers"]] for one in traces]
    return np.abs(stored_weights(data, body) - np.array(expected)).max()


@pytest.fixture(scope="module")
def gpt2_like(made_trace):
    """A function: L, T → a trace of 12 heads of width 64 with uneven attention, as trained models have."""

    def make(L, T):
        q, k = torch.randn(2, L, 12, T, 64, generator=torch.Generator().manual_seed(0))
        return made_trace(2 * q / 8, k)

    return make


@pytest.mark.parametrize(("T", "levels"), [(2, 255), (100, 255), (511, 255), (512, 127)])
def test_stored_weights_are_within_the_bound_and_the_bound_is_reached(random_trace, read_html, T, levels):
    made = random_trace(1, 2, T)
    data, body = contents(explorer_page(made), read_html)
    error = largest_error(data, body, [made])
    assert data["levels"] == levels
    assert error == pytest.approx(data["error"], abs=1e-6)
    assert 0 < data["error"] < 1 / levels  # half a level, at weights near 1, before a row is made to sum to 1 again


def test_equal_weights_come_back_exactly(made_trace, read_html):
    made = made_trace(torch.zeros(1, 1, 64, 4), torch.zeros(1, 1, 64, 4))
    data, body = contents(explorer_page(made), read_html)
    assert largest_error(data, body, [made]) < 1e-7
    assert data["error"] < 1e-7


def test_q_and_k_are_the_trace_s(tiny_trace, read_html):
    data, body = contents(explorer_page(tiny_trace, layer=1, head=2), read_html)
    assert len(data["vectors"]) == tiny_trace.n_layers * tiny_trace.n_heads
    assert (data["vectors"][0]["layer"], data["vectors"][0]["head"]) == (1, 2)
    for entry in data["vectors"]:
        place = entry["layer"], entry["head"]
        np.testing.assert_array_equal(
            stored_vectors(data, body, entry), [tiny_trace.q[place].numpy(), tiny_trace.k[place].numpy()]
        )
    assert data["carried"] == "all its heads"


def test_q_and_k_of_two_models_may_differ_in_width(tiny_trace, random_trace, read_html):
    other = random_trace(2, 4, len(tiny_trace.tokens), tiny_trace.tokens)
    assert other.q.shape[-1] != tiny_trace.q.shape[-1]
    data, body = contents(explorer_page(compare(tiny_trace, other)), read_html)
    assert len(data["vectors"]) == 2 * 2 * 4
    for entry in data["vectors"]:
        one, place = (tiny_trace, other)[entry["side"]], (entry["layer"], entry["head"])
        np.testing.assert_array_equal(stored_vectors(data, body, entry), [one.q[place].numpy(), one.k[place].numpy()])
    assert [side["rule"] for side in data["sides"]] == ["1/√8", "as the model's configuration says"]
    assert largest_error(data, body, [tiny_trace, other]) == pytest.approx(data["error"], abs=1e-6)


def test_where_q_and_k_take_too_much_the_first_head_shown_still_has_them(gpt2_like, read_html):
    data, body = contents(explorer_page(gpt2_like(12, 128), layer=3, head=7), read_html)
    assert 0 < len(data["vectors"]) < 144
    assert (data["vectors"][0]["layer"], data["vectors"][0]["head"]) == (3, 7)
    last = data["vectors"][-1]
    assert len(body) == last["at"] + 2 * 128 * 64 * 4


def test_all_layers_of_a_short_text_are_in_the_page(tiny_trace, read_html):
    data, _ = contents(explorer_page(tiny_trace, layer=1, head=3), read_html)
    assert (data["layers"], data["layer"], data["chosen"], data["all_layers"]) == ([0, 1], 1, [3], 2)
    assert contents(explorer_page(tiny_trace), read_html)[0]["chosen"] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("layer", "sides", "shown"), [(0, 1, [0, 1, 2]), (7, 1, [7, 8, 9]), (9, 1, [7, 8, 9]), (7, 2, [7])]
)
def test_layers_of_a_longer_text_are_those_around_the_one_asked_for(random_trace, monkeypatch, layer, sides, shown):
    made = random_trace(10, 2, 5)  # 30 weights a layer
    monkeypatch.setattr(explorer, "MAX_WEIGHTS", 95)
    assert explorer.shown_layers(made, layer, None, sides=sides) == shown


def test_one_layer_is_always_shown(random_trace, monkeypatch, read_html):
    monkeypatch.setattr(explorer, "MAX_WEIGHTS", 1)
    data, _ = contents(explorer_page(random_trace(3, 2, 5), layer=1), read_html)
    assert (data["layers"], data["all_layers"]) == ([1], 3)
    assert contents(explorer_page(random_trace(3, 2, 5), layers=[0]), read_html)[0]["layers"] == [0]


def test_a_layer_of_gpt2_at_its_context_fits():
    weights = 12 * 1024 * 1025 // 2
    assert weights <= MAX_WEIGHTS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [99]}, "layer 99 is out of range; use a whole number from 0 to 1"),
        ({"layers": [0, -1]}, "layer -1 is out of range"),
        ({"layers": [True]}, "layer True is out of range"),
        ({"layers": []}, r"layer 0 is not among layers \[\]"),
        ({"layers": [1]}, r"layer 0 is not among layers \[1\]; name it too"),
        ({"layer": 2}, "layer 2 is out of range"),
        ({"head": 4}, "head 4 is out of range; use a whole number from 0 to 3"),
        ({"head": -1}, "head -1 is out of range"),
        ({"head": 1.0}, "head 1.0 is out of range"),
    ],
)
def test_layers_and_heads_that_do_not_exist_are_refused_in_one_line(tiny_trace, options, message):
    with pytest.raises(LabError, match=message) as raised:
        explorer_page(tiny_trace, **options)
    assert "\n" not in str(raised.value)


def test_more_layers_than_fit_are_refused_with_the_limit(random_trace, monkeypatch):
    monkeypatch.setattr(explorer, "MAX_WEIGHTS", 95)
    with pytest.raises(
        LabError, match=r"^4 layers of 5 tokens have 120 weights; a page can hold 95: give at most 3 layers,.*$"
    ):
        explorer_page(random_trace(10, 2, 5), layers=[0, 1, 2, 3])


def test_traces_of_different_length_are_refused_in_one_line(random_trace):
    with pytest.raises(
        LabError, match=r"^5 tokens in the first text \(made\) and 6 in the second \(made\) do not pair up.*$"
    ):
        explorer_page(compare(random_trace(1, 1, 5), random_trace(1, 1, 6)))


def test_weights_that_are_not_numbers_are_refused_by_place(random_trace):
    made = random_trace(2, 2, 5)
    k = made.k.clone()
    k[1, 1, 2] = torch.nan
    with pytest.raises(LabError, match=r"^layer 1, head 1 of made has weights that are not numbers.*$"):
        explorer_page(replace(made, k=k))


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
    data, body = contents(explorer_page(one), read_html)
    assert (data["tokens"], data["error"]) == (1, 0)
    np.testing.assert_array_equal(stored_weights(data, body), np.ones((1, 2, 4, 1, 1)))


def test_traces_are_left_as_they_were(tiny_trace):
    other = replace(tiny_trace, q=tiny_trace.q * 2)
    before = [(name, getattr(one, name).clone()) for one in (tiny_trace, other) for name in "qkv"]
    explorer_page(compare(tiny_trace, other))
    now = [(name, getattr(one, name)) for one in (tiny_trace, other) for name in "qkv"]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(before, now))


def test_what_is_left_out_of_a_text_is_reported_for_its_side(tiny_lab, tiny_trace, read_html):
    short = trace(tiny_lab, "the sea " * 100, cut=True)
    data, _ = contents(explorer_page(short), read_html)
    total = 64 + short.left_out
    assert data["sides"][0]["note"] == f"the first 64 of {total:,} tokens; the rest does not fit the model"
    whole = replace(short, left_out=0)
    data, _ = contents(explorer_page(compare(whole, short)), read_html)
    assert [bool(side["note"]) for side in data["sides"]] == [False, True]


def test_sides_have_names_that_differ(tiny_trace, read_html):
    tuned = replace(tiny_trace, name="tuned")
    text = replace(tiny_trace, ids=tiny_trace.ids + 1)
    for other, names in (
        (tuned, [tiny_trace.name, "tuned"]),
        (tiny_trace, ["first model", "second model"]),
        (text, ["first text", "second text"]),
    ):
        data, _ = contents(explorer_page(compare(tiny_trace, other)), read_html)
        assert [side["name"] for side in data["sides"]] == names


def test_largest_change_is_the_difference_s(tiny_trace, read_html):
    other = replace(tiny_trace, q=tiny_trace.q.flip(1))
    data, _ = contents(explorer_page(compare(tiny_trace, other)), read_html)
    expected = max((other.attention(a) - tiny_trace.attention(a)).abs().max().item() for a in range(2))
    assert data["most_changed"] == pytest.approx(expected)
    assert contents(explorer_page(tiny_trace), read_html)[0]["most_changed"] == 0


def test_colours_are_as_many_as_a_byte_counts(tiny_trace, read_html):
    data, _ = contents(explorer_page(tiny_trace), read_html)
    assert np.array(data["sequential"]).shape == np.array(data["diverging"]).shape == (256, 3)
    assert data["sequential"][0] == [68, 1, 84]  # viridis
    assert data["diverging"][127] == pytest.approx([247, 247, 247], abs=3)  # no change is pale

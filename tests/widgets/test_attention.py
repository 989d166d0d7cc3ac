"""Attention weights as the views get them: packed, and what they may ask for later."""

import base64
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from gpt2lab.errors import LabError
from gpt2lab.inspection.compare import compare
from gpt2lab.inspection.trace import trace
from gpt2lab.widgets import attention
from gpt2lab.widgets.attention import (
    MAX_WEIGHTS,
    Attention,
    answer_attention,
    answer_qk,
    attention_data,
    attention_part,
)
from gpt2lab.widgets.base import Selection


def unpacked(text, dtype=np.uint8):
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)


def stored_weights(part, T):
    """(layers, H, T, T): the weights as the views read them back."""
    codes = unpacked(part["weights"]).reshape(len(part["layers"]), -1, T * (T + 1) // 2)
    weights = np.zeros((*codes.shape[:2], T, T))
    weights[..., *np.tril_indices(T)] = (codes / part["levels"]) ** 2
    return weights / weights.sum(-1, keepdims=True)


def stored_vectors(part, T):
    """{(layer, head): (2, T, K)}: q and k."""
    values = unpacked(part["vectors"], "<f4").reshape(-1, 2, T, part["width"])
    return dict(zip(map(tuple, part["places"]), values, strict=True))


def largest_error(part, one):
    expected = np.array([one.attention(layer).double().numpy() for layer in part["layers"]])
    return np.abs(stored_weights(part, len(one.tokens)) - expected).max()


def assert_vectors(part, one):
    for place, values in stored_vectors(part, len(one.tokens)).items():
        np.testing.assert_array_equal(values, [one.q[place].numpy(), one.k[place].numpy()])


@pytest.mark.parametrize(("T", "levels"), [(2, 255), (100, 255), (511, 255), (512, 127)])
def test_stored_weights_are_within_the_bound_and_the_bound_is_reached(random_trace, T, levels):
    made = random_trace(1, 2, T)
    [part] = attention_part([made])
    assert part["levels"] == levels
    assert largest_error(part, made) == pytest.approx(part["bound"], abs=1e-6)
    assert 0 < part["bound"] < 1 / levels  # half a level, at weights near 1, before a row is made to sum to 1 again


def test_equal_weights_come_back_exactly(made_trace):
    made = made_trace(torch.zeros(1, 1, 64, 4), torch.zeros(1, 1, 64, 4))
    [part] = attention_part([made])
    assert largest_error(part, made) < 1e-7
    assert part["bound"] < 1e-7


def test_q_and_k_are_the_trace_s_and_the_selected_head_s_come_first(tiny_trace):
    [part] = attention_part([tiny_trace], layer=1, head=2)
    assert part["layers"] == [0, 1]
    assert len(part["places"]) == tiny_trace.n_layers * tiny_trace.n_heads
    assert part["places"][0] == [1, 2]
    assert_vectors(part, tiny_trace)


def test_q_and_k_of_two_models_may_differ_in_width(tiny_trace, random_trace):
    other = random_trace(2, 4, len(tiny_trace.tokens), tiny_trace.tokens)
    assert other.q.shape[-1] != tiny_trace.q.shape[-1]
    parts = attention_part([tiny_trace, other])
    for part, one in zip(parts, (tiny_trace, other)):
        assert len(part["places"]) == 2 * 4
        assert_vectors(part, one)
        assert largest_error(part, one) == pytest.approx(part["bound"], abs=1e-6)
    assert [part["rule"] for part in parts] == ["1/√8", "as the model's configuration says"]


def test_two_models_may_differ_in_tokens_and_shape(tiny_trace, random_trace):
    other = random_trace(1, 3, 5)
    parts = attention_part([tiny_trace, other], layer=1, head=3)
    assert [part["layers"] for part in parts] == [[0, 1], [0]]
    for part, one in zip(parts, (tiny_trace, other)):
        assert_vectors(part, one)
        assert largest_error(part, one) == pytest.approx(part["bound"], abs=1e-6)


def test_without_room_the_first_head_still_has_q_and_k(tiny_trace):
    each = 2 * tiny_trace.q[0, 0].numel() * 4
    for room, count in ((0, 1), (len(attention_part([tiny_trace])[0]["weights"]) + 4 * each, 4)):
        [part] = attention_part([tiny_trace], layer=1, head=3, room=room)
        assert (part["places"][0], len(part["places"])) == ([1, 3], pytest.approx(count, abs=room > 0))


@pytest.mark.parametrize(
    ("layer", "sides", "shown"), [(0, 1, [0, 1, 2]), (7, 1, [7, 8, 9]), (9, 1, [7, 8, 9]), (7, 2, [7])]
)
def test_layers_of_a_longer_text_are_those_around_the_one_asked_for(random_trace, monkeypatch, layer, sides, shown):
    made = random_trace(10, 2, 5)  # 30 weights a layer
    monkeypatch.setattr(attention, "MAX_WEIGHTS", 95)
    assert [part["layers"] for part in attention_part([made] * sides, layer=layer)] == [shown] * sides


def test_one_layer_is_always_sent(random_trace, monkeypatch):
    monkeypatch.setattr(attention, "MAX_WEIGHTS", 1)
    assert attention_part([random_trace(3, 2, 5)], layer=1)[0]["layers"] == [1]
    assert attention_part([random_trace(3, 2, 5)], [0])[0]["layers"] == [0]
    assert MAX_WEIGHTS >= 12 * 1024 * 1025 // 2  # a layer of GPT-2 at its context


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [99]}, "layer 99 is out of range; use a whole number from 0 to 1"),
        ({"layers": [True]}, "layer True is out of range"),
        ({"layers": []}, r"layer 0 is not among layers \[\]"),
        ({"layers": [1]}, r"layer 0 is not among layers \[1\]; name it too"),
        ({"layer": 2}, "layer 2 is out of range"),
        ({"head": 4}, "head 4 is out of range; use a whole number from 0 to 3"),
        ({"head": 1.0}, "head 1.0 is out of range"),
    ],
)
def test_layers_and_heads_that_do_not_exist_are_refused(tiny_trace, options, message):
    with pytest.raises(LabError, match=message) as raised:
        attention_part([tiny_trace], **options)
    assert "\n" not in str(raised.value)


def test_more_layers_than_fit_are_refused_with_the_limit(random_trace, monkeypatch):
    monkeypatch.setattr(attention, "MAX_WEIGHTS", 95)
    with pytest.raises(
        LabError, match=r"^4 layers of 5 tokens have 120 weights; a page can hold 95: give at most 3 layers,.*$"
    ):
        attention_part([random_trace(10, 2, 5)], [0, 1, 2, 3])


def test_weights_that_are_not_numbers_are_refused_by_place(random_trace):
    made = random_trace(2, 2, 5)
    k = made.k.clone()
    k[1, 1, 2] = torch.nan
    with pytest.raises(LabError, match=r"^layer 1, head 1 of made has weights that are not numbers.*$"):
        attention_part([replace(made, k=k)])


def test_sides_have_names_that_differ_and_say_what_is_left_out(tiny_lab, tiny_trace):
    tuned = replace(tiny_trace, name="tuned")
    text = replace(tiny_trace, ids=tiny_trace.ids + 1)
    for other, names in (
        (tuned, [tiny_trace.name, "tuned"]),
        (tiny_trace, ["first model", "second model"]),
        (text, ["first text", "second text"]),
    ):
        assert [side["name"] for side in attention_data(compare(tiny_trace, other))["sides"]] == names
    short = trace(tiny_lab, "the sea " * 100, cut=True)
    sides = attention_data(compare(replace(short, left_out=0), short))["sides"]
    assert [side["note"] for side in sides] == [
        "",
        f"The first 64 of {64 + short.left_out:,} tokens; the rest does not fit {short.name}.",
    ]


def test_traces_are_left_as_they_were(tiny_trace):
    before = [getattr(tiny_trace, name).clone() for name in "qkv"]
    attention_part([tiny_trace])
    assert all(torch.equal(getattr(tiny_trace, name), values) for name, values in zip("qkv", before))


def test_a_layer_and_a_head_are_answered(tiny_lab, tiny_trace):
    part = answer_attention(tiny_lab, tiny_trace, {"layer": 1})
    assert part["layers"] == [1]
    assert largest_error(part, tiny_trace) == pytest.approx(part["bound"], abs=1e-6)
    assert_vectors(answer_qk(tiny_lab, tiny_trace, {"layer": 1, "head": 3}), tiny_trace)


@pytest.mark.parametrize(
    ("answer", "options"),
    [
        (answer_attention, {}),
        (answer_attention, {"layer": 2}),
        (answer_attention, {"layer": "0"}),
        (answer_qk, {"layer": 0}),
        (answer_qk, {"layer": 0, "head": -1}),
        (answer_qk, {"layer": [0], "head": 1}),
    ],
)
def test_answers_refuse_what_does_not_exist(tiny_lab, tiny_trace, answer, options):
    with pytest.raises(LabError, match="is out of range; use a whole number from 0 to"):
        answer(tiny_lab, tiny_trace, options)


def test_widget_sends_the_layer_that_its_view_asks_for(tiny_trace):
    widget, sent = Attention(compare(tiny_trace, tiny_trace), Selection(3, 1, 2), layers=[1]), []
    widget.send = lambda content: sent.append(content)
    assert [side["attention"]["layers"] for side in widget.data["sides"]] == [[1], [1]]
    for kind, options in (("attention", {"layer": 0}), ("qk", {"layer": 9, "head": 0}), ("rm", {})):
        widget._on_request(widget, {"id": kind, "kind": kind, "options": options}, [])
    weights, missing, unknown = (message["answer"] for message in sent)
    assert [side["layers"] for side in weights["sides"]] == [[0], [0]]
    assert missing["error"].startswith("layer 9 is out of range")
    assert unknown["error"].startswith("kind 'rm' is unknown")
    assert widget._repr_mimebundle_()[0]["image/png"]

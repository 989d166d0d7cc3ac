import dataclasses

import pytest
import torch
from transformers import GPT2LMHeadModel

from gpt2lab.errors import LabError
from gpt2lab.inspection.trace import trace, trace_batch, trace_ids

SHAPES = {
    "plain": {},
    "one head": {"n_head": 1, "n_layer": 1},
    "narrow heads": {"n_head": 8, "n_embd": 16, "n_layer": 3},
    "scaled by layer": {"n_layer": 3, "scale_attn_by_inverse_layer_idx": True},
    "not scaled": {"scale_attn_weights": False},
    "scaled by layer alone": {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
}
TEXT = "The other side of the moon\nwas seen."


@pytest.fixture(params=SHAPES)
def lab(request, random_lab):
    return random_lab(seed=3, **SHAPES[request.param])


def eager_outputs(lab, ids):
    """What transformers' eager implementation gives for the same weights."""
    eager = GPT2LMHeadModel._from_config(lab.model.config, attn_implementation="eager").eval()
    eager.load_state_dict(lab.model.state_dict())
    with torch.no_grad():
        return eager(ids[None], output_attentions=True, output_hidden_states=True)


def hooks(model):
    return [
        (name, len(module._forward_hooks), len(module._forward_pre_hooks)) for name, module in model.named_modules()
    ]


@pytest.mark.parametrize("length", [1, 2, 17, 64])
def test_attention_equals_the_eager_implementation(lab, length):
    ids = torch.randint(300, (length,), generator=torch.Generator().manual_seed(length))
    traced, attentions = trace_ids(lab, ids), eager_outputs(lab, ids).attentions
    assert traced.n_layers == len(attentions)
    for layer, expected in enumerate(attentions):
        torch.testing.assert_close(traced.attention(layer), expected[0], atol=1e-5, rtol=1e-4)


def test_attention_rows_sum_to_one_and_nothing_ahead_is_read(lab):
    traced = trace(lab, TEXT)
    for layer in range(traced.n_layers):
        weights = traced.attention(layer)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))
        assert weights.triu(1).count_nonzero() == 0
        assert (weights >= 0).all()


def test_attention_of_one_head_is_its_slice_of_the_layer(lab):
    traced = trace(lab, TEXT)
    for layer in range(traced.n_layers):
        whole = traced.attention(layer)
        assert whole.shape == (traced.n_heads, len(traced.tokens), len(traced.tokens))
        for head in range(traced.n_heads):
            torch.testing.assert_close(traced.attention(layer, head), whole[head])


def test_logits_and_residual_stream_equal_those_of_transformers(lab):
    ids = lab.encode(TEXT)
    traced, outputs = trace(lab, TEXT, logits=True, residual=True), eager_outputs(lab, ids)
    torch.testing.assert_close(traced.logits, outputs.logits[0], atol=1e-4, rtol=1e-4)
    for layer, hidden in enumerate(outputs.hidden_states[:-1]):
        torch.testing.assert_close(traced.residual[layer], hidden[0], atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        last = lab.model.transformer.ln_f(traced.residual[-1])
    torch.testing.assert_close(last, outputs.hidden_states[-1][0], atol=1e-4, rtol=1e-4)
    assert len(traced.residual) == len(outputs.hidden_states)


def test_weights_times_values_are_what_each_layer_s_attention_puts_out(lab):
    put_out = []
    handles = [
        block.attn.register_forward_hook(lambda m, a, out: put_out.append(out[0][0]))
        for block in lab.model.transformer.h
    ]
    traced = trace(lab, TEXT)
    for handle in handles:
        handle.remove()
    for layer, block in enumerate(lab.model.transformer.h):
        read = (traced.attention(layer) @ traced.v[layer]).transpose(0, 1).flatten(1)  # (T, D)
        with torch.no_grad():
            torch.testing.assert_close(block.attn.c_proj(read), put_out[layer], atol=1e-4, rtol=1e-4)


def test_trace_has_the_shapes_it_states(tiny_lab):
    traced = trace(tiny_lab, TEXT, logits=True, residual=True)
    T = len(tiny_lab.encode(TEXT))
    shapes = {name: tuple(getattr(traced, name).shape) for name in ("ids", "logits", "residual", "q", "k", "v")}
    heads = (2, 4, T, 8)
    assert shapes == {"ids": (T,), "logits": (T, 300), "residual": (3, T, 32), "q": heads, "k": heads, "v": heads}
    assert (len(traced.tokens), len(traced.scaling), traced.name) == (T, 2, tiny_lab.name)


def test_logits_and_residual_stream_are_kept_on_request_alone(tiny_lab):
    traced = trace(tiny_lab, TEXT)
    assert traced.logits is None and traced.residual is None
    whole = trace(tiny_lab, TEXT, logits=True, residual=True)
    assert torch.equal(whole.q, traced.q) and torch.equal(whole.k, traced.k) and torch.equal(whole.v, traced.v)


@pytest.mark.parametrize(
    "rows", [slice(0, 1), slice(3, 7), slice(-2, None), slice(None, None, 4), slice(5, 5)], ids=str
)
@pytest.mark.parametrize("head", [None, 2])
def test_rows_of_attention_are_slices_of_the_whole(tiny_lab, rows, head):
    traced = trace(tiny_lab, TEXT)
    torch.testing.assert_close(traced.attention(1, head, rows=rows), traced.attention(1, head)[..., rows, :])


def test_texts_traced_in_a_batch_are_as_each_alone(lab):
    texts = ["moon", TEXT, "x"]
    batch = trace_batch(lab, [lab.encode(text) for text in texts], logits=True, residual=True)
    for text, traced in zip(texts, batch, strict=True):
        alone = trace(lab, text, logits=True, residual=True)
        assert traced.tokens == alone.tokens
        assert torch.equal(traced.ids, alone.ids)
        for name in ("q", "k", "v", "logits", "residual"):
            torch.testing.assert_close(getattr(traced, name), getattr(alone, name), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(traced.attention(0), alone.attention(0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([5, 300]), "token id 300 is outside the vocabulary; use 0 to 299"),
        (torch.tensor([-1]), "token id -1 is outside"),
        (torch.tensor([1.0]), r"give a tensor \(T,\) of int64"),
        (torch.zeros(1, 2, dtype=torch.long), r"give a tensor \(T,\) of int64"),
        ([1, 2], "token ids are a list"),
        (torch.zeros(0, dtype=torch.long), "0 token ids; .* reads from 1 to 64"),
        (torch.zeros(65, dtype=torch.long), "65 token ids; .* reads from 1 to 64"),
    ],
    ids=str,
)
def test_ids_that_cannot_be_traced_are_refused(tiny_lab, ids, message):
    with pytest.raises(LabError, match=message):
        trace_ids(tiny_lab, ids)


def test_model_whose_weights_are_not_numbers_is_refused(random_lab):
    lab = random_lab()
    lab.model.transformer.h[1].attn.c_attn.weight.data[0, 0] = torch.nan
    with pytest.raises(LabError, match="not numbers; its weights are damaged"):
        trace(lab, TEXT)


@pytest.mark.parametrize("length", [64, 65, 200])
def test_beginning_of_a_text_that_does_not_fit_is_traced_and_the_rest_is_counted(tiny_lab, length):
    traced = trace(tiny_lab, "x" * length, cut=True)
    assert (len(traced.ids), traced.left_out) == (64, length - 64)


def test_bfloat16_model_gives_float32_near_to_its_own_weights(random_lab):
    lab = random_lab()
    expected = trace(lab, TEXT, logits=True, residual=True)
    lab.model.to(torch.bfloat16)
    traced = trace(lab, TEXT, logits=True, residual=True)
    for name in ("q", "k", "v", "logits", "residual"):
        assert getattr(traced, name).dtype == torch.float32
        error = getattr(traced, name) - getattr(expected, name)
        assert 0 < error.norm() < 0.02 * getattr(expected, name).norm()
    weights = traced.attention(1)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2]))


def test_ids_are_those_of_the_text_and_are_not_changed(tiny_lab):
    ids = tiny_lab.encode(TEXT)
    traced = trace_ids(tiny_lab, ids, logits=True)
    assert torch.equal(ids, tiny_lab.encode(TEXT))
    assert torch.equal(traced.ids, ids)
    assert torch.equal(traced.logits, trace(tiny_lab, TEXT, logits=True).logits)


@pytest.mark.parametrize("training", [False, True])
def test_hooks_mode_and_gradients_are_as_before(random_lab, training):
    lab = random_lab(attn_pdrop=0.5, resid_pdrop=0.5)
    expected, before = trace(lab, TEXT, logits=True).logits, hooks(lab.model)
    lab.model.train(training)
    assert torch.equal(trace(lab, TEXT, logits=True).logits, expected)
    assert hooks(lab.model) == before
    assert all(module.training is training for module in lab.model.modules())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("training", [False, True])
def test_hooks_mode_and_gradients_are_as_before_when_the_forward_pass_raises(random_lab, monkeypatch, training):
    lab = random_lab()
    lab.model.train(training)
    before = hooks(lab.model)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="broken"):
        patch.setattr(lab.model.transformer.h[1].mlp, "forward", broken)
        trace(lab, TEXT)
    assert hooks(lab.model) == before
    assert all(module.training is training for module in lab.model.modules())
    assert torch.is_grad_enabled()


def broken(*_):
    raise RuntimeError("broken")


@pytest.mark.parametrize(
    ("layer", "head", "message"),
    [
        (2, None, r"layer 2 is out of range; use a whole number from 0 to 1"),
        (-1, 0, r"layer -1 is out of range"),
        (True, 0, r"layer True is out of range"),
        (None, 0, r"layer None is out of range"),
        (0, 4, r"head 4 is out of range; use a whole number from 0 to 3"),
        (0, -1, r"head -1 is out of range"),
        (0, False, r"head False is out of range"),
        (0, 1.0, r"head 1\.0 is out of range"),
        (0, "1", r"head '1' is out of range"),
    ],
)
def test_layer_or_head_that_does_not_exist_is_refused_with_the_range(tiny_lab, layer, head, message):
    with pytest.raises(LabError, match=message):
        trace(tiny_lab, TEXT).attention(layer, head)


@pytest.mark.parametrize(("text", "message"), [("", "prompt is empty"), ("x" * 65, "65 tokens; .* at most 64")])
def test_text_that_cannot_be_traced_is_refused(tiny_lab, text, message):
    with pytest.raises(LabError, match=message):
        trace(tiny_lab, text)


def test_text_of_the_whole_context_is_traced(tiny_lab):
    assert trace(tiny_lab, "x" * 64).attention(1, 3).shape == (64, 64)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": ("a",)},
        {"logits": torch.zeros(3, 300)},
        {"residual": torch.zeros(2, 2, 32)},
        {"k": torch.zeros(2, 4, 2, 9)},
        {"v": torch.zeros(2, 3, 2, 8)},
        {"scaling": (1.0,)},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_trace_of_shapes_that_disagree_is_refused(tiny_lab, wrong):
    traced = trace(tiny_lab, "xx", logits=True, residual=True)
    assert len(traced.tokens) == 2
    with pytest.raises(ValueError):
        dataclasses.replace(traced, **wrong)

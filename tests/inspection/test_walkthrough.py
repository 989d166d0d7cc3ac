import pytest
import torch

from gpt2lab.errors import LabError
from gpt2lab.inspection.trace import trace
from gpt2lab.inspection.walkthrough import walk

TEXT = "The moon is a small world, and the sea follows it."


@pytest.fixture(params=[{}, {"scale_attn_by_inverse_layer_idx": True}, {"activation_function": "relu"}])
def lab(request, random_lab):
    return random_lab(seed=6, n_layer=3, **request.param)


@pytest.fixture
def hooked(lab):
    """A function: layer → what the model's own modules take and give for the text."""

    def run(layer):
        block, seen, hooks = lab.model.transformer.h[layer], {}, []
        parts = {"block": block, "ln_1": block.ln_1, "c_attn": block.attn.c_attn, "c_proj": block.attn.c_proj}
        parts |= {"ln_2": block.ln_2, "c_fc": block.mlp.c_fc, "act": block.mlp.act, "mlp": block.mlp.c_proj}
        for name, module in parts.items():
            hooks.append(module.register_forward_hook(lambda m, a, out, name=name: seen.update({name: (a[0], out)})))
        with torch.no_grad():
            lab.model(lab.encode(TEXT)[None])
        for hook in hooks:
            hook.remove()
        return {
            name: (taken.view(-1, taken.shape[-1]), given.view(-1, given.shape[-1]))
            for name, (taken, given) in seen.items()
        }

    return run


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("head", [0, 3])
@pytest.mark.parametrize("position", [0, 5, -1])
def test_every_step_is_the_model_s_own_value(lab, hooked, layer, head, position):
    found, seen = walk(lab, TEXT, layer, head, position), hooked(layer)
    K, at, H = 8, slice(8 * head, 8 * head + 8), 4
    q, k, v = (part[position, at] for part in seen["c_attn"][1].chunk(3, -1))
    expected = {
        "resid_pre": seen["block"][0][position],
        "ln_1": seen["ln_1"][1][position],
        "query": q,
        "key": k,
        "value": v,
        "z": seen["c_proj"][0][position, at],
        "attn_out": seen["c_proj"][1][position],
        "ln_2": seen["ln_2"][1][position],
        "resid_mid": seen["ln_2"][0][position],
        "mlp_pre": seen["c_fc"][1][position],
        "mlp_post": seen["act"][1][position],
        "mlp_out": seen["mlp"][1][position],
        "resid_post": seen["block"][1][position],
    }
    for name, values in expected.items():
        torch.testing.assert_close(found.step(name).values, values, atol=2e-5, rtol=1e-4, msg=name)
    keys = seen["c_attn"][1].chunk(3, -1)[1][:, at]
    i, T = found.position, len(found.tokens)
    products = keys @ q
    scale = K**-0.5 / (layer + 1 if lab.model.config.scale_attn_by_inverse_layer_idx else 1)
    torch.testing.assert_close(found.step("products").values, products, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.step("scaled").values, products * scale, atol=1e-5, rtol=1e-4)
    assert bool(found.step("masked").values[i + 1 :].eq(-torch.inf).all())
    weights = found.step("weights").values
    assert float(weights.sum()) == pytest.approx(1, abs=1e-5) and weights[i + 1 :].sum() == 0
    torch.testing.assert_close(weights, trace(lab, TEXT).attention(layer, head)[i], atol=1e-6, rtol=1e-5)
    assert len(found.step("weights").values) == T and lab.model.config.n_head == H
    root = "which is 1/√d_k" in found.step("scaled").title
    assert root == (layer == 0 or not lab.model.config.scale_attn_by_inverse_layer_idx)
    assert ("GELU" in found.step("mlp_post").title) == (lab.model.config.activation_function == "gelu_new")
    wte, wpe = lab.model.transformer.wte.weight, lab.model.transformer.wpe.weight
    ids = lab.encode(TEXT)
    assert torch.equal(found.step("token_embedding").values, wte[ids[i]].detach())
    assert torch.equal(found.step("position_embedding").values, wpe[i].detach())
    x = seen["block"][0][position]
    assert found.mean == pytest.approx(float(x.mean()), abs=1e-5)
    assert found.variance == pytest.approx(float(x.var(unbiased=False)), rel=1e-4)


def test_heads_parts_and_the_bias_add_up_to_the_attention(lab):
    heads = [walk(lab, TEXT, 1, head).step("head_out").values for head in range(4)]
    bias = lab.model.transformer.h[1].attn.c_proj.bias.detach()
    torch.testing.assert_close(sum(heads) + bias, walk(lab, TEXT, 1, 0).step("attn_out").values, atol=1e-5, rtol=1e-4)


def test_after_the_last_layer_the_prediction_is_the_model_s(lab):
    found = walk(lab, TEXT, 2, 0)
    with torch.no_grad():
        own = lab.model(lab.encode(TEXT)[None]).logits[0, -1].softmax(-1)
    assert [p for _, p in found.predictions] == pytest.approx(own.topk(10).values.tolist(), rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", 0, 0), "the prompt is empty"),
        (("x", 3, 0), "layer 3 is out of range"),
        (("x", 0, 4), "head 4 is out of range"),
        (("x", 0, 0, 1), "position 1 is out of range"),
    ],
)
def test_bad_input_is_refused(lab, arguments, message):
    with pytest.raises(LabError, match=message):
        walk(lab, *arguments)

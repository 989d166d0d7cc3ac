import pytest
import torch

from gpt2lab.errors import LabError
from gpt2lab.inspection import ablation as module
from gpt2lab.inspection.ablation import ablate, ablated, sweep, sweep_layer, text_means
from gpt2lab.inspection.trace import trace

TEXT = "The moon is a small world, and the sea follows it."


@pytest.fixture
def lab(random_lab):
    return random_lab(seed=3, n_layer=3)


@torch.no_grad()
def logits_of(lab, text=TEXT):
    return lab.model(lab.encode(text)[None]).logits[0]


@torch.no_grad()
def loss_of(lab, text=TEXT):
    ids = lab.encode(text)[None]
    return float(lab.model(ids, labels=ids).loss)


def every_head(lab):
    c = lab.model.config
    return [(layer, head) for layer in range(c.n_layer) for head in range(c.n_head)]


def hooks_of(lab):
    return [module for module in lab.model.modules() if module._forward_hooks or module._forward_pre_hooks]


def test_ablating_nothing_is_the_identity(lab):
    found = ablate(lab, TEXT)
    assert found.change == 0 and torch.equal(found.before.top, found.after.top)
    assert found.before.loss == pytest.approx(loss_of(lab), rel=1e-5)


def test_ablating_all_heads_equals_a_forward_pass_without_attention(lab):
    with ablated(lab, every_head(lab)):
        found = logits_of(lab)
    transformer, ids = lab.model.transformer, lab.encode(TEXT)
    with torch.no_grad():
        x = transformer.wte(ids) + transformer.wpe(torch.arange(len(ids)))
        for block in transformer.h:
            x = x + block.attn.c_proj.bias
            x = x + block.mlp(block.ln_2(x))
        expected = lab.model.lm_head(transformer.ln_f(x))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found, logits_of(lab), atol=1e-2)


def test_ablating_all_mlps_equals_a_forward_pass_without_them(lab):
    with ablated(lab, mlps=range(3)):
        found = logits_of(lab)
    transformer, ids = lab.model.transformer, lab.encode(TEXT)
    with torch.no_grad():
        x = (transformer.wte(ids) + transformer.wpe(torch.arange(len(ids))))[None]
        for block in transformer.h:
            x = x + block.attn(block.ln_1(x))[0]
        expected = lab.model.lm_head(transformer.ln_f(x))[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_head_ablated_is_its_slice_of_the_output_weights_set_to_zero(lab):
    found = ablate(lab, TEXT, [(1, 2)])
    c_proj = lab.model.transformer.h[1].attn.c_proj
    kept = c_proj.weight.data.clone()
    c_proj.weight.data[2 * 8 : 3 * 8] = 0
    expected = loss_of(lab)
    c_proj.weight.data[:] = kept
    assert found.after.loss == pytest.approx(expected, rel=1e-5)
    assert found.change == pytest.approx(expected - loss_of(lab), abs=1e-5) and found.change != 0


def test_mean_ablation_writes_the_mean_of_the_clean_run(lab):
    ids = lab.encode(TEXT)
    means, seen = text_means(lab, ids), {}
    hooks = [
        lab.model.transformer.h[2].attn.c_proj.register_forward_pre_hook(lambda m, a: seen.update(heads=a[0][0])),
        lab.model.transformer.h[2].mlp.register_forward_hook(lambda m, a, out: seen.update(mlp=out[0])),
    ]
    logits_of(lab)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(means.heads[2], seen["heads"].mean(0).view(4, 8), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(means.mlps[2], seen["mlp"].mean(0), atol=1e-6, rtol=1e-5)
    with ablated(lab, [(2, 0), (2, 3)], [2], means=means):
        lab.model.transformer.h[2].attn.c_proj.register_forward_pre_hook(lambda m, a: seen.update(heads=a[0][0]))
        kept = lab.model.transformer.h[2].mlp.register_forward_hook(lambda m, a, out: seen.update(mlp=out[0]))
        logits_of(lab)
        kept.remove()
        lab.model.transformer.h[2].attn.c_proj._forward_pre_hooks.popitem()
    heads = seen["heads"].view(-1, 4, 8)
    torch.testing.assert_close(heads[:, 3], means.heads[2, 3].expand_as(heads[:, 3]))
    torch.testing.assert_close(heads[:, 0], means.heads[2, 0].expand_as(heads[:, 0]))
    assert not torch.allclose(heads[0, 1], heads[1, 1])
    torch.testing.assert_close(seen["mlp"], means.mlps[2].expand_as(seen["mlp"]))
    assert ablate(lab, TEXT, [(2, 0)], mean=True).after.loss != ablate(lab, TEXT, [(2, 0)]).after.loss


def test_hooks_are_gone_after_an_exception(lab):
    with pytest.raises(ZeroDivisionError), ablated(lab, [(0, 1)], [1]):
        assert len(hooks_of(lab)) == 2
        raise ZeroDivisionError
    assert hooks_of(lab) == []
    with pytest.raises(LabError), ablated(lab, [(0, 1)], [7]):
        pass
    lab.model.transformer.h[1].mlp.forward = None
    with pytest.raises(TypeError):
        sweep(lab, TEXT)
    assert hooks_of(lab) == []


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("text", [TEXT, "xy", "x" * 64])
def test_sweep_equals_separate_forward_passes(lab, mean, text, monkeypatch):
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 70)  # more parts than one
    found = sweep(lab, text, mean=mean)
    assert found.loss == pytest.approx(loss_of(lab, text), abs=1e-5)
    means = text_means(lab, lab.encode(text)) if mean else None
    for layer, head in every_head(lab):
        with ablated(lab, [(layer, head)], means=means):
            assert float(found.losses[layer, head]) == pytest.approx(loss_of(lab, text), abs=1e-5)
    drawn = found.map()
    torch.testing.assert_close(drawn.values, found.losses - found.loss)
    assert ("its mean" in drawn.title) == mean


@pytest.mark.parametrize("mean", [False, True])
def test_layers_swept_one_by_one_equal_the_sweep(lab, mean):
    whole, seen = sweep(lab, TEXT, mean=mean), trace(lab, TEXT, residual=True)
    rows = [sweep_layer(lab, seen, layer, mean=mean) for layer in range(3)]
    torch.testing.assert_close(torch.stack([losses for _, losses in rows]), whole.losses, atol=1e-5, rtol=0)
    assert [loss for loss, _ in rows] == pytest.approx([whole.loss] * 3, abs=1e-5)
    with pytest.raises(LabError, match="layer 3 is out of range"):
        sweep_layer(lab, seen, 3)


def test_a_trace_is_ablated_as_its_text_is(lab):
    found, expected = (ablate(lab, text, [(1, 2)], mlps=[0]) for text in (trace(lab, TEXT), TEXT))
    torch.testing.assert_close(found.after.nll[1:], expected.after.nll[1:])


def test_sweep_shows_how_far_it_is(lab):
    assert list(sweep.steps(lab, TEXT)) == [(1, 3), (2, 3), (3, 3)]


def test_a_model_of_another_attention_is_refused(lab):
    lab.model.set_attn_implementation("eager")
    with pytest.raises(LabError, match="attention is 'eager'; load the model with attn_implementation='sdpa'"):
        sweep(lab, TEXT)


def test_sweep_of_a_bf16_model_runs(random_lab):
    lab = random_lab(seed=3)
    lab.model.bfloat16()
    assert bool(sweep(lab, TEXT).losses.isfinite().all())


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda lab: ablate(lab, TEXT, [(3, 0)]), "layer 3 is out of range"),
        (lambda lab: ablate(lab, TEXT, [(0, 4)]), "head 4 is out of range"),
        (lambda lab: ablate(lab, TEXT, [(0, -1)]), "head -1 is out of range"),
        (lambda lab: ablate(lab, TEXT, mlps=[1.5]), "mlp 1.5 is out of range"),
        (lambda lab: ablate(lab, ""), "the prompt is empty"),
        (lambda lab: ablate(lab, "x" * 65), "the prompt has 65 tokens"),
        (lambda lab: sweep(lab, "x"), "one token has no prediction"),
        (lambda lab: ablate(lab, "x"), "one token has no prediction"),
        (lambda lab: ablate(lab, TEXT, *module.parts_named(["0.3", "x"])), "'x' names no head or MLP; give layer.head"),
        (lambda lab: ablate(lab, TEXT, *module.parts_named(["0.-1"])), "'0.-1' names no head or MLP"),
    ],
)
def test_bad_input_is_refused(lab, ask, message):
    with pytest.raises(LabError, match=message):
        ask(lab)

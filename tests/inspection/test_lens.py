import pytest
import torch

from gpt2lab.errors import LabError
from gpt2lab.inspection import lens as module
from gpt2lab.inspection.attribution import attribution
from gpt2lab.inspection.lens import log_probabilities, logit_lens, token_id, token_probabilities
from gpt2lab.inspection.trace import trace

TEXT = "The moon is a small world, and the sea follows it."
SHAPES = [{}, {"n_layer": 3, "n_head": 2, "seed": 1}, {"scale_attn_by_inverse_layer_idx": True, "n_layer": 3}]
SHAPES += [{"tie_word_embeddings": False, "seed": 2}]


@torch.no_grad()
def logits_of(lab, text=TEXT):
    return lab.model(lab.encode(text)[None]).logits[0]


@pytest.fixture(params=SHAPES)
def lab(request, random_lab):
    made = random_lab(**request.param)
    with torch.no_grad():  # fresh norms have weight 1 and bias 0, which hide mistakes
        for name, weight in made.model.named_parameters():
            if "ln_" in name or name.endswith("bias"):
                weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name)))
    return made


def test_last_entry_is_the_model_s_own_prediction(lab):
    found, own = logit_lens(lab, TEXT, top=7), logits_of(lab).softmax(-1)
    best = own.topk(7)
    assert torch.equal(found.top[-1], best.indices)
    torch.testing.assert_close(found.top_probability[-1], best.values, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.probability[-1], own.max(-1).values, atol=1e-5, rtol=1e-4)
    assert found.rank[-1].tolist() == [1] * len(own)
    torch.testing.assert_close(found.entropy[-1], -(own * own.log()).sum(-1), atol=1e-5, rtol=1e-4)
    assert found.divergence[-1].abs().max() < 1e-6


def test_each_entry_is_normed_by_its_own_statistics(lab):
    seen = trace(lab, TEXT, residual=True)
    found, norm = logit_lens(lab, seen), lab.model.transformer.ln_f
    last = logits_of(lab).double().log_softmax(-1)
    for entry, x in enumerate(seen.residual.double()):
        normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
        logits = (normed * norm.weight.double() + norm.bias.double()) @ lab.model.lm_head.weight.double().T
        logs = logits.detach().log_softmax(-1)
        mine = logs.gather(1, found.targets[:, None])
        torch.testing.assert_close(found.probability[entry].double(), mine[:, 0].exp(), atol=1e-5, rtol=1e-3)
        assert found.rank[entry].tolist() == [int(r) for r in (logs > mine + 1e-9).sum(-1) + 1]
        divergence = (last.exp() * (last - logs)).sum(-1)
        torch.testing.assert_close(found.divergence[entry].double(), divergence, atol=1e-4, rtol=1e-3)
        held = (x - x.mean(-1, keepdim=True)) / seen.residual[-1].double().std(-1, unbiased=False, keepdim=True)
        wrong = ((held * norm.weight.double() + norm.bias.double()) @ lab.model.lm_head.weight.double().T).detach()
        if entry < len(seen.residual) - 1:  # another layer's statistics give something else
            assert (wrong.log_softmax(-1) - logs).abs().max() > 1e-2


def test_parts_of_a_long_text_are_joined(lab, monkeypatch):
    whole = logit_lens(lab, TEXT)
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 900)  # three positions
    parts = logit_lens(lab, TEXT)
    for name in ("targets", "top", "rank"):
        assert torch.equal(getattr(whole, name), getattr(parts, name))
    for name in ("probability", "top_probability", "entropy", "divergence"):
        torch.testing.assert_close(getattr(whole, name), getattr(parts, name), atol=1e-6, rtol=1e-5)


def test_answer_settles_where_the_top_prediction_is_the_last_one_from_there_on(lab):
    found = logit_lens(lab, TEXT)
    for t, settled in enumerate(found.settled.tolist()):
        top_predictions = found.top[:, t, 0].tolist()
        assert all(one == top_predictions[-1] for one in top_predictions[settled:])
        assert settled == 0 or top_predictions[settled - 1] != top_predictions[-1]


def test_a_token_that_is_named_is_followed_at_every_position(lab):
    by_id, by_text = logit_lens(lab, TEXT, target=7), logit_lens(lab, TEXT, target=lab.tokenizer.decode([7]))
    own = logits_of(lab).softmax(-1)[:, 7]
    assert by_id.targets.tolist() == by_text.targets.tolist() == [7] * len(own)
    torch.testing.assert_close(by_id.probability[-1], own, atol=1e-6, rtol=1e-4)
    assert token_id(lab, "#7") == 7
    tracked = token_probabilities(lab, by_id.trace, 3, [7, 9])
    torch.testing.assert_close(tracked[:, 0], by_id.probability[:, 3], atol=1e-6, rtol=1e-4)
    assert tracked.shape == (lab.model.config.n_layer + 1, 2)


def test_the_next_token_is_followed_up_to_the_last_position(lab):
    found, ids = logit_lens(lab, TEXT, next=True), lab.encode(TEXT)
    own = logits_of(lab).log_softmax(-1)
    assert found.targets.tolist() == [*ids[1:].tolist(), int(own[-1].argmax())]
    nll = -own[:-1].gather(1, ids[1:, None])[:, 0]
    torch.testing.assert_close(-found.probability[-1, :-1].log(), nll, atol=1e-4, rtol=1e-4)


def test_names_hold_every_top_prediction_and_target(lab):
    found = logit_lens(lab, TEXT)
    assert set(found.names) == {*found.top.unique().tolist(), *found.targets.tolist()}


@pytest.mark.parametrize("position", [0, 4, -1])
@pytest.mark.parametrize("tokens", [(None, None), (3, 8), (8, None)])
def test_attributions_sum_to_the_logit_difference(lab, position, tokens):
    logits = logits_of(lab)[position]
    found = attribution(lab, TEXT, position=position, token=tokens[0], against=tokens[1])
    if tokens[0] is None:
        assert (found.token, found.against) == tuple(logits.topk(2).indices.tolist())
    assert found.total == pytest.approx(float(logits[found.token] - logits[found.against]), abs=2e-5)
    assert sum(value for _, value in found.parts) == pytest.approx(found.total, abs=2e-5)
    assert len(found.parts) == 3 + lab.model.config.n_layer * (lab.model.config.n_head + 2)


def test_a_head_s_part_is_what_the_logit_loses_without_it_where_the_norm_is_held(lab):
    found = attribution(lab, TEXT, token=3, against=8)
    seen, last = trace(lab, TEXT, residual=True), lab.model.config.n_layer - 1
    x, norm, head = seen.residual[-1, -1].double(), lab.model.transformer.ln_f, 1
    mixed = (seen.attention(last, head) @ seen.v[last, head])[-1]
    K = len(mixed)
    written = (mixed @ lab.model.transformer.h[last].attn.c_proj.weight[head * K : head * K + K]).double().detach()
    scale = (x.var(unbiased=False) + norm.eps).sqrt()

    def difference(state):
        normed = (state - state.mean()) / scale * norm.weight.double() + norm.bias.double()
        weights = lab.model.lm_head.weight.double()
        return float(normed @ (weights[3] - weights[8]))

    assert float(found.heads[last, head]) == pytest.approx(difference(x) - difference(x - written), abs=1e-6)


def test_hooks_and_mode_are_as_before(lab):
    lab.model.train()
    try:
        logit_lens(lab, TEXT), attribution(lab, TEXT)
        assert lab.model.training and lab.model.transformer.h[0].training
    finally:
        lab.model.eval()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lab.model.modules())


def test_log_probabilities_sum_to_one(lab):
    assert float(log_probabilities(lab, torch.randn(3, 32)).exp().sum(-1).sub(1).abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda lab: logit_lens(lab, ""), "the prompt is empty"),
        (lambda lab: logit_lens(lab, "x" * 65), "the prompt has 65 tokens"),
        (lambda lab: logit_lens(lab, trace(lab, "x")), "no residual stream; make it with residual=True"),
        (lambda lab: attribution(lab, trace(lab, "x")), "no residual stream"),
        (lambda lab: logit_lens(lab, "x", top=0), "top 0 is out of range"),
        (lambda lab: logit_lens(lab, "x", target=300), "token 300 is out of range; use a whole number from 0 to 299"),
        (lambda lab: logit_lens(lab, "x", target="xyzq"), r"'xyzq' is 4 tokens \('x' \+ 'y' \+ 'z' \+ 'q'\)"),
        (lambda lab: logit_lens(lab, "x", target=3, next=True), "follow token 3 or the next one, not both"),
        (lambda lab: token_id(lab, ""), r"'' is 0 tokens \(none\)"),
        (lambda lab: attribution(lab, "xy", position=2), "position 2 is out of range"),
        (lambda lab: attribution(lab, "xy", token=3, against=3), "token 3 against itself is 0; give two tokens"),
        (lambda lab: token_probabilities(lab, trace(lab, "x", residual=True), 1, [3]), "position 1 is out of range"),
        (
            lambda lab: token_probabilities(lab, trace(lab, "x"), 0, [3]),
            "no residual stream; make it with residual=True",
        ),
    ],
)
def test_bad_input_is_refused(tiny_lab, ask, message):
    with pytest.raises(LabError, match=message):
        ask(tiny_lab)

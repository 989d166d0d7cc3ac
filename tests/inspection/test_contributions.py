import pytest
import torch

from gpt2lab.inspection.attribution import attribution
from gpt2lab.inspection.contributions import contributions
from gpt2lab.inspection.trace import trace

TEXT = "The moon is a small world, and the sea follows it."
SHAPES = [{}, {"n_layer": 3, "n_head": 2, "seed": 1, "tie_word_embeddings": False}]


@pytest.fixture(params=SHAPES)
def lab(request, random_lab):
    """A model whose biases and norms are not 0 and 1, as GPT-2's are not."""
    made = random_lab(**request.param)
    with torch.no_grad():
        for name, weight in made.model.named_parameters():
            if "ln_" in name or name.endswith("bias"):
                weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name)))
    return made


@pytest.mark.parametrize("given", [False, True])
def test_parts_add_up_to_the_logit_difference_at_every_position(lab, given):
    seen = trace(lab, TEXT, residual=True)
    T = len(seen.ids)
    tokens, against = (torch.arange(T) + 20, torch.full((T,), 7)) if given else (None, None)
    found = contributions(lab, seen, tokens, against)
    with torch.no_grad():
        logits = lab.model(seen.ids[None]).logits[0]
    if not given:
        assert found.tokens.tolist() == [*seen.ids[1:].tolist(), int(logits[-1].argmax())]
        others = logits.scatter(1, found.tokens[:, None], -torch.inf)
        assert found.against.tolist() == others.argmax(1).tolist()
    places = torch.arange(T)
    difference = logits[places, found.tokens] - logits[places, found.against]
    torch.testing.assert_close(found.total, difference, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(found.values.sum(1), difference, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("given", [False, True])
def test_a_slice_and_single_positions_equal_all_positions(lab, given):
    seen = trace(lab, TEXT, residual=True)
    T = len(seen.ids)
    tokens, against = (torch.arange(T) + 20, torch.full((T,), 7)) if given else (None, None)
    found = contributions(lab, seen, tokens, against)
    for place in (slice(3, 6), slice(T - 1, T)):
        given_here = (tokens[place], against[place]) if given else ()
        mine = contributions(lab, seen, *given_here, positions=place)
        assert (mine.tokens.tolist(), mine.words) == (found.tokens[place].tolist(), found.words[place])
        torch.testing.assert_close(mine.values, found.values[place], atol=2e-5, rtol=1e-5)
    for at in (0, 4, T - 1):
        single = attribution(lab, seen, position=at, token=int(found.tokens[at]), against=int(found.against[at]))
        assert [name for name, _ in single.parts] == list(found.parts)
        torch.testing.assert_close(
            torch.tensor([value for _, value in single.parts]), found.values[at], atol=2e-5, rtol=1e-5
        )


@torch.no_grad()
def test_biases_are_read_by_the_direction_of_both_tokens_through_the_norm_as_it_is(lab):
    """Of GPT-2 small, which has them too, they are a large part."""
    seen = trace(lab, TEXT, residual=True)
    found = contributions(lab, seen, positions=slice(4, 5))
    by_name = dict(zip(found.parts, found.values[0].tolist()))
    norm, weights = lab.model.transformer.ln_f, lab.model.lm_head.weight.double()
    direction = weights[found.tokens[0]] - weights[found.against[0]]
    x = seen.residual[-1, 4].double()
    scale = (x.var(unbiased=False) + norm.eps).sqrt()
    for layer, block in enumerate(lab.model.transformer.h):
        bias = block.attn.c_proj.bias.double()
        expected = float((bias - bias.mean()) / scale * norm.weight.double() @ direction)
        assert by_name[f"layer {layer}, attention's bias"] == pytest.approx(expected, abs=1e-5)
    assert by_name["last norm's bias"] == pytest.approx(float(norm.bias.double() @ direction), abs=1e-5)

import pytest
import torch

from gpt2lab.errors import LabError
from gpt2lab.inspection import ablation
from gpt2lab.inspection import patching as module
from gpt2lab.inspection.patching import patched_entry, patching, prompt_pair
from gpt2lab.inspection.trace import trace

TEXT = "The moon is a small world, and the sea follows it."


@pytest.fixture
def lab(random_lab):
    return random_lab(seed=3, n_layer=3)


@torch.no_grad()
def logits_of(lab, text=TEXT):
    return lab.model(lab.encode(text)[None]).logits[0]


def replacing(place, state):
    def hook(module, args):
        changed = args[0].clone()
        changed[0, place] = state
        return (changed,)

    return hook


def test_patching_one_place_equals_a_hook_that_replaces_it(lab):
    clean, corrupted = "the moon", "the seas"
    while len(lab.encode(clean)) != len(lab.encode(corrupted)):
        corrupted = corrupted[:-1]
    found = patching(lab, clean, corrupted, answer=5, against=9)
    states = []
    for text in (clean, corrupted):
        entering = []
        blocks = [*lab.model.transformer.h, lab.model.transformer.ln_f]
        hooks = [b.register_forward_pre_hook(lambda m, a, e=entering: e.append(a[0].clone())) for b in blocks]
        logits = logits_of(lab, text)[-1]
        states.append(entering)
        for hook in hooks:
            hook.remove()
        value = float(logits[5] - logits[9])
        assert value == pytest.approx(found.clean if text == clean else found.corrupted, abs=1e-5)
    for layer, block in enumerate(blocks):
        for place in range(found.values.shape[1]):
            hook = block.register_forward_pre_hook(replacing(place, states[0][layer][0, place]))
            logits = logits_of(lab, corrupted)[-1]
            hook.remove()
            assert float(found.values[layer, place]) == pytest.approx(float(logits[5] - logits[9]), abs=2e-5)
    assert float(found.recovered[-1, -1]) == pytest.approx(1, abs=1e-4)
    assert found.recovered[-1, :-1].abs().max() < 1e-4


def test_patching_everything_that_differs_gives_the_clean_run(lab):
    found = patching(lab, "the moox", "the mooz", answer=5, against=9)  # the last token alone differs
    torch.testing.assert_close(found.recovered[:, -1], torch.ones(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.values[:, -1], torch.full((4,), found.clean), atol=1e-4, rtol=0)
    assert found.recovered[:, :-1].abs().max() == 0


@pytest.mark.parametrize("rows", [1, 7, 4096])
def test_patching_is_the_same_in_parts_and_shows_how_far_it_is(lab, rows, monkeypatch):
    texts = "xxabc", "xxdbe"
    whole = patching(lab, *texts, answer=5, against=9)
    monkeypatch.setattr(module, "ROWS_AT_ONCE", rows)
    monkeypatch.setattr(ablation, "ROWS_AT_ONCE", rows)
    torch.testing.assert_close(patching(lab, *texts, answer=5, against=9).values, whole.values, atol=1e-5, rtol=1e-4)
    assert list(module.patching.steps(lab, *texts, answer=5, against=9)) == [(i, 4) for i in range(1, 5)]
    assert whole.recovered[:, :2].abs().max() == 0  # before the first token that differs


def test_entries_patched_one_by_one_equal_the_patching(lab):
    clean, corrupted = "xxabc", "xxdbe"
    whole = patching(lab, clean, corrupted, answer=5, against=9)
    pair = prompt_pair(lab, trace(lab, clean, residual=True), corrupted, answer=5, against=9)
    rows = torch.stack([patched_entry(lab, pair, entry) for entry in range(4)])
    torch.testing.assert_close(rows, whole.values, atol=1e-5, rtol=1e-4)
    assert pair.ends == pytest.approx((whole.clean, whole.corrupted), abs=1e-5) and pair.words == whole.words
    with pytest.raises(LabError, match="entry 4 is out of range"):
        patched_entry(lab, pair, 4)
    with pytest.raises(LabError, match="5 tokens in the clean prompt and 4 in the corrupted one"):
        prompt_pair(lab, trace(lab, clean, residual=True), "xxdb")


def test_patching_of_a_bf16_model_runs(random_lab):
    lab = random_lab(seed=3)
    lab.model.bfloat16()
    assert bool(patching(lab, "xy", "xz", answer=5, against=9).values.isfinite().all())


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda lab: patching(lab, "xy", "xyz"), "2 tokens in the clean prompt and 3 in the corrupted one"),
        (lambda lab: patching(lab, "xy", "xy", answer=5, against=9), "the two prompts are the same; change a word"),
        (lambda lab: patching(lab, "xy", "xz", answer=300), "token 300 is out of range"),
        (lambda lab: patching(lab, "xy", "xz", answer=4, against=4), "are the same token"),
        (lambda lab: patching(lab, "x" * 65, "x" * 65), "the prompt has 65 tokens"),
    ],
)
def test_bad_input_is_refused(lab, ask, message):
    with pytest.raises(LabError, match=message):
        ask(lab)

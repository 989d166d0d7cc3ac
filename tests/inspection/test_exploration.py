"""An exploration is one forward pass, and its parts are the package's own results."""

import pytest
import torch

from gpt2lab.errors import LabError
from gpt2lab.inspection.contributions import contributions
from gpt2lab.inspection.exploration import exploration
from gpt2lab.inspection.heads import head_scores
from gpt2lab.inspection.lens import logit_lens
from gpt2lab.inspection.surprisal import surprisal
from gpt2lab.inspection.trace import with_residual

TEXT = "The moon is round and the moon is old."


def test_parts_are_the_package_s_results(tiny_lab):
    found = exploration(tiny_lab, TEXT)
    lens, scores = logit_lens(tiny_lab, TEXT, next=True), head_scores(tiny_lab, [TEXT])
    for name in ("rank", "targets"):
        assert torch.equal(getattr(found.lens, name), getattr(lens, name))
    for name in ("induction", "previous_token", "entropy"):
        torch.testing.assert_close(getattr(found.scores, name), getattr(scores, name))
    added = contributions(tiny_lab, with_residual(tiny_lab, TEXT))
    torch.testing.assert_close(found.contributions.values, added.values)
    torch.testing.assert_close(
        -found.lens.probability[-1, :-1].log(), surprisal(tiny_lab, TEXT).nll[1:], atol=1e-4, rtol=1e-4
    )


def test_text_runs_through_the_model_once(tiny_lab):
    runs = []
    hook = tiny_lab.model.transformer.register_forward_pre_hook(lambda module, args: runs.append(1))
    try:
        exploration(tiny_lab, TEXT, induction=torch.zeros(tiny_lab.model.config.n_layer, tiny_lab.model.config.n_head))
    finally:
        hook.remove()
    assert len(runs) == 1


def test_beginning_of_a_long_text_and_a_single_token(tiny_lab):
    found = exploration(tiny_lab, "word " * tiny_lab.context)
    assert len(found.seen.tokens) == tiny_lab.context
    assert found.seen.left_out > 0
    single = exploration(tiny_lab, "a")
    assert single.scores is None
    assert len(single.contributions.total) == 1
    with pytest.raises(LabError, match="is empty"):
        exploration(tiny_lab, "")

"""Peak memory of a trace and a lens, by counted allocations."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.side_by_side import allocated_peak_mb
from gpt2lab.inspection.lens import LOGITS_AT_ONCE, logit_lens
from gpt2lab.inspection.trace import trace_ids
from gpt2lab.model.lab import Lab, all_finite, with_fused_gelu

T, L, D = 512, 4, 128
CONFIG = {"n_positions": T, "n_embd": D, "n_layer": L, "n_head": 8}


@pytest.fixture(scope="module")
def lab(tiny_tokenizer):
    torch.manual_seed(0)
    return Lab(with_fused_gelu(GPT2LMHeadModel(GPT2Config(**CONFIG)).eval()), tiny_tokenizer, "random")


def test_trace_takes_its_result_and_little_more(lab):
    ids = torch.arange(T)
    result = 3 * L * T * D * 4 / 1e6  # q, k and v
    weights = L * 8 * T * T * 4 / 1e6  # what attention weights would take
    peak = allocated_peak_mb(lambda: trace_ids(lab, ids))
    assert result < peak < 2.5 * result < weights


@pytest.mark.slow
def test_lens_takes_as_much_for_many_positions_as_for_some(lab):
    few, many = (
        allocated_peak_mb(lambda n=n: logit_lens(lab, trace_ids(lab, torch.arange(n), residual=True))) for n in (128, T)
    )
    grown = (4 * L + 1 + 10) * (T - 128) * D * 4 / 1e6  # q, k, v, the residual stream, activations of a layer
    assert many < few + grown
    assert many < 9 * LOGITS_AT_ONCE * 4 / 1e6 + grown
    assert many < 0.5 * (L + 1) * T * 50257 * 4 / 1e6  # all logits at once


def test_numbers_are_checked_without_a_copy():
    tensor = torch.randn(1 << 20)
    assert allocated_peak_mb(lambda: all_finite(tensor)) < 0.1
    for bad in (float("nan"), float("inf"), -float("inf")):
        assert not all_finite(torch.cat([tensor, torch.tensor([bad])]))
    assert all_finite(tensor)
    assert all_finite(torch.empty(0))

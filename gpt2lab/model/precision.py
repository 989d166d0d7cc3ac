"""fp32 or bf16: the faster precision of a device, autocast, and bf16 copies of models."""

import copy
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface, GPT2LMHeadModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.pytorch_utils import Conv1D

from gpt2lab.errors import Message, choice

R = TypeVar("R")

PRECISIONS = ("auto", "fp32", "bf16")
SHORT = 512  # tokens of a row, below which attention in float32 trains faster than in bf16 on a CPU


def has_fast_bf16(device: torch.device) -> bool:
    """Whether a device multiplies matrices in bfloat16 in hardware: a GPU since 2020, a CPU with AVX512-BF16 or AMX.

    Both torch's build and the processor must have it.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    units = torch.cpu.get_capabilities()
    has_units = any(units.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return has_units and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return "fp32" or "bf16": the one that is named, or, for "auto", bf16 where the device is fast in it.

    Raises: LabError for an unknown name.
    """
    check_precision(precision)
    if precision == "auto":
        return "bf16" if has_fast_bf16(device) else "fp32"
    return precision


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """A context in which matrix products run in bf16 and weights stay as they are; for fp32, one that changes nothing."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def train_attention_in_fp32(model: GPT2LMHeadModel) -> None:
    """Compute attention over short rows in float32, also within autocast, until the model is loaded again.

    On a CPU with bf16 units: the backward pass of PyTorch's fused attention is up to five times as slow in bf16.
    """
    model.set_attn_implementation("sdpa_fp32")


def attention_in_fp32(module, query, key, value, attention_mask, **options) -> tuple[torch.Tensor, None]:
    """transformers' "sdpa" attention, in float32 where rows are short: query (B, H, T, K) -> (B, T, H, K)."""
    if query.shape[2] >= SHORT:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    with torch.autocast(query.device.type, enabled=False):
        return sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **options)


AttentionInterface.register("sdpa_fp32", attention_in_fp32)
AttentionMaskInterface.register("sdpa_fp32", sdpa_mask)


def precision_note(precision: str, device: torch.device) -> Message:
    """Say in which precision a device computes, and whether that is slow there. Example: "bf16 (in hardware)"."""
    if precision == "fp32":
        return Message("fp32")
    return Message("bf16 (in hardware)") if has_fast_bf16(device) else Message("bf16 (slow here: no bf16 units)")


def check_precision(precision: str, known: Sequence[str] = PRECISIONS) -> None:
    """Refuse an unknown precision. Raises: LabError."""
    choice("precision", precision, known)


def warn_if_slow(precision: str, device: torch.device) -> None:
    """Warn where bf16 is slower than fp32."""
    if precision == "bf16" and not has_fast_bf16(device):
        warnings.warn("bf16 is slow here: the processor has no bf16 units. Use fp32.", stacklevel=3)


def per_weights(make: Callable[[GPT2LMHeadModel], R]) -> Callable[[GPT2LMHeadModel], R]:
    """Decorator: keep what a function makes of a model until the model's weights change. It is freed with the model."""
    made: WeakKeyDictionary[torch.nn.Module, tuple[tuple, R]] = WeakKeyDictionary()
    lock = threading.Lock()

    @wraps(make)
    def cached(model: GPT2LMHeadModel) -> R:
        state = tuple((weight.data_ptr(), weight._version) for weight in model.parameters())
        with lock:
            if made.get(model, (None,))[0] != state:
                made.pop(model, None)  # frees the stale result first
                made[model] = (state, make(model))
            return made[model][1]

    return cached


@per_weights
def bf16_copy(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """Return a copy of a GPT-2 for inference whose linear layers multiply in bf16.

    Linear layers hold bf16 weights, read bf16 and sum in float32; attention runs in bf16. Embeddings and LayerNorms are
    shared with the model. They, the residual stream and the logits stay float32. The copy is made once per state of the
    weights. Autocast would convert the weights again in every forward pass.
    """
    twin = copy.deepcopy(model, {id(weight): weight for weight in model.parameters()})
    for module in twin.transformer.h.modules():
        for name, child in module.named_children():
            if isinstance(child, Conv1D):  # its weight is (in, out)
                setattr(module, name, Bf16Linear(child.weight.t(), child.bias))
    twin.lm_head = Bf16Head(model.lm_head.weight)
    return twin.eval()


class Bf16Linear(torch.nn.Module):
    """A linear layer with bf16 weights (out, in): any float (..., in) -> bf16 (..., out)."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None):
        super().__init__()
        self.weight = weight.detach().to(torch.bfloat16, memory_format=torch.contiguous_format)
        self.bias = None if bias is None else bias.detach().bfloat16()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply; one row by a matrix-vector product, which on a CPU is twice as fast as F.linear."""
        x = x.bfloat16()
        if x.numel() > x.shape[-1]:
            return F.linear(x, self.weight, self.bias)
        row = x.flatten()
        product = self.weight.mv(row) if self.bias is None else torch.addmv(self.bias, self.weight, row)
        return product.view(*x.shape[:-1], -1)


class Bf16Head(Bf16Linear):
    """A language-model head that multiplies in bf16 and returns float32 logits.

    bf16 has 8 significant bits, and GPT-2's logits lie near -100, where it rounds to steps of 0.5. Most of that is common
    to all tokens: the product with the mean weight. It is computed in float32, and only the rest in bf16.
    """

    def __init__(self, weight: torch.Tensor):
        weight = weight.detach().float()
        mean = weight.mean(0)
        super().__init__(weight - mean, None)
        self.mean = mean

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits: (..., in) -> float32 (..., out)."""
        return super().forward(x).float() + (x.float() @ self.mean)[..., None]

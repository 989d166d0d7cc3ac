"""float32 or bfloat16: what a processor computes faster, and the context in which it does. Knows torch alone."""

from contextlib import AbstractContextManager, nullcontext

import torch

from gpt2lab.errors import LabError

PRECISIONS = ("auto", "fp32", "bf16")


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
    if precision not in PRECISIONS:
        raise LabError(f"Precision {str(precision)[:40]!r} is unknown; use {', '.join(PRECISIONS)}.")
    if precision == "auto":
        return "bf16" if has_fast_bf16(device) else "fp32"
    return precision


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """A context in which matrix products run in bf16 and weights stay as they are; for fp32, one that changes nothing."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def precision_note(precision: str, device: torch.device) -> str:
    """Say in which precision a device computes, and whether that is slow there. Example: "bf16 (in hardware)"."""
    if precision == "fp32":
        return precision
    return f"bf16 ({'in hardware' if has_fast_bf16(device) else 'slow here: no bf16 units'})"

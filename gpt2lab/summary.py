"""A short repr for results, which hold whole tensors and texts. Knows nothing of what is in them."""

from dataclasses import fields, is_dataclass

import numpy as np
import torch

MOST = 4  # entries of a tuple that are shown
LONGEST = 200  # characters of a text that are shown


class Summary:
    """A dataclass (with `repr=False`) whose repr is a line: tensors by type and shape, long texts by their beginning.

    Example: Trace(name='builtin', tokens=(3 entries), ids=int64 (3), q=float32 (4, 6, 3, 64), …)
    """

    def __repr__(self) -> str:
        shown = (f"{field.name}={_short(getattr(self, field.name))}" for field in fields(self) if field.repr)
        return f"{type(self).__name__}({', '.join(shown)})"


def _short(value) -> str:
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"{str(value.dtype).removeprefix('torch.')} ({', '.join(map(str, value.shape))})"
    if isinstance(value, str):
        return repr(value if len(value) <= LONGEST else f"{value[:LONGEST]}…")
    if isinstance(value, dict) or (isinstance(value, tuple | list) and _is_long(value)):
        return f"({len(value)} entries)"
    if isinstance(value, tuple):
        return f"({', '.join(map(_short, value))})"
    return repr(value)


def _is_long(values) -> bool:
    return len(values) > MOST or any(is_dataclass(value) and not isinstance(value, Summary) for value in values)

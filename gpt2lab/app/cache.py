"""A cache bounded in bytes, least recently used out first, and the size of results."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import is_dataclass
from sys import getsizeof
from typing import Any

import numpy as np


class BoundedCache:
    """Values by key, up to a number of bytes in all; a single larger value is kept until the next one comes.

    limit    bytes
    size_of  a value → its bytes
    """

    def __init__(self, limit: int, size_of: Callable[[Any], int]) -> None:
        self.limit, self._size_of = limit, size_of
        self._values: OrderedDict = OrderedDict()  # key -> (value, bytes)
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Any:
        """Return the value of a key, None if it is not there or not any more."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: Hashable, value: Any) -> Any:
        """Keep a value, drop those not used for longest until it fits, and return it."""
        size = self._size_of(value)
        with self._lock:
            self._values.pop(key, None)
            while self._values and self.n_bytes + size > self.limit:
                self._values.popitem(last=False)
            self._values[key] = (value, size)
        return value

    @property
    def n_bytes(self) -> int:
        """Bytes of all values."""
        return sum(size for _, size in self._values.values())


def bytes_of(value: Any) -> int:
    """Count the bytes of a result; shared storage is counted once.

    A view counts as what it keeps alive: the whole storage of a tensor, the whole array below it.
    Example: bytes_of((torch.zeros(10), np.zeros(10))) > 120
    """
    total, counted, waiting = 0, set(), [value]
    while waiting:
        owner, size, parts = _parts(waiting.pop())
        if owner in counted:
            continue
        counted.add(owner)
        total += size
        waiting += parts
    return total


def _parts(value: Any) -> tuple[int, int, list]:
    """Return (identity of the memory, its own bytes, referenced values)."""
    if hasattr(value, "untyped_storage"):  # a tensor
        storage = value.untyped_storage()
        return storage.data_ptr() or id(value), storage.nbytes(), []
    if isinstance(value, np.ndarray):
        while isinstance(value.base, np.ndarray):
            value = value.base
        return id(value), value.nbytes, []
    if hasattr(value, "parameters"):  # a model
        return id(value), 0, [*value.parameters(), *value.buffers()]
    if isinstance(value, dict):
        return id(value), getsizeof(value), [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        return id(value), getsizeof(value), list(value)
    if is_dataclass(value):
        return id(value), getsizeof(value), [*vars(value).values()]
    return id(value), getsizeof(value, 0), []

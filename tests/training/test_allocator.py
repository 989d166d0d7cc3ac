import ctypes
import subprocess
import sys

import pytest
import torch

from gpt2lab.training import allocator
from gpt2lab.training.allocator import (
    DEFAULT_MMAP_MAX,
    M_ARENA_MAX,
    M_MMAP_MAX,
    M_MMAP_THRESHOLD,
    freed_memory_kept,
    return_freed_memory,
)

REUSED = """
import resource, torch
from gpt2lab.training.allocator import freed_memory_kept
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
with freed_memory_kept():
    for made in range(40):
        if made == 32:  # by then there are gaps enough on the heap
            before = faults()
        torch.ones(16 << 20)  # 64 MiB of float32: mapped again for each tensor otherwise
    print(faults() - before)
"""


class Library:
    """Records what is called of the C library."""

    def __init__(self):
        self.calls = []

    def mallopt(self, option, value):
        self.calls.append((option, value))

    def malloc_trim(self, pad):
        self.calls.append("trim")


def test_settings_are_put_back_and_memory_returned_also_after_an_error(monkeypatch):
    library = Library()
    monkeypatch.setattr(allocator.sys, "platform", "linux")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: library)
    with pytest.raises(RuntimeError), freed_memory_kept():
        assert (M_MMAP_MAX, 0) in library.calls
        raise RuntimeError
    assert (M_MMAP_MAX, DEFAULT_MMAP_MAX) in library.calls
    assert library.calls[-1] == "trim"


def test_systems_without_glibc_are_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: pytest.fail("loaded"))
    with freed_memory_kept():
        assert torch.ones(3).sum() == 3


def test_server_has_few_arenas_and_maps_large_blocks(monkeypatch):
    library = Library()
    monkeypatch.setattr(allocator.sys, "platform", "linux")
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: library)
    return_freed_memory()
    assert library.calls == [(M_ARENA_MAX, 2), (M_MMAP_THRESHOLD, 1 << 20)]


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's allocator is not in use"
)
def test_large_tensors_reuse_the_memory_of_freed_ones():
    done = subprocess.run([sys.executable, "-c", REUSED], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 8 * 16_384 / 4  # of eight tensors' pages

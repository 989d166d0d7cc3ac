"""Memory of tensors that come and go at every step: kept by the process instead of given back to the system.

Knows the C library alone.
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
DEFAULT_TRIM, DEFAULT_MMAP_MAX = 128 << 10, 65536


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep freed memory in the process while open, and give it back afterwards; glibc alone, elsewhere nothing changes.

    A CPU tensor past 32 MB is mapped again each time it is made, and the system clears its pages one by one: a third
    of a training step of GPT-2 small in bf16. torch has a caching allocator on GPUs alone.
    Source: mallopt(3); the same as the environment's MALLOC_MMAP_MAX_=0 and MALLOC_TRIM_THRESHOLD_.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt") or not hasattr(libc, "malloc_trim"):  # musl has neither
        yield
        return
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
    try:
        yield
    finally:
        libc.mallopt(M_MMAP_MAX, DEFAULT_MMAP_MAX)
        libc.mallopt(M_TRIM_THRESHOLD, DEFAULT_TRIM)
        libc.malloc_trim(0)

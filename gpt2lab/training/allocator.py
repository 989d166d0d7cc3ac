"""What glibc does with freed memory: kept for a run's next step, or given back early by a server."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8
DEFAULT_TRIM, DEFAULT_MMAP_MAX = 128 << 10, 65536


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Context manager that keeps freed memory for reuse and releases it on exit; it has an effect with glibc only.

    A CPU tensor past 32 MB is mapped again each time it is made, and the system clears its pages one by one: a third
    of a training step of GPT-2 small in bf16. torch has a caching allocator on GPUs alone.
    Source: mallopt(3); the same as the environment's MALLOC_MMAP_MAX_=0 and MALLOC_TRIM_THRESHOLD_.
    """
    libc = _glibc()
    if libc is None:
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


def return_freed_memory() -> None:
    """Let the process give freed memory back early, as suits a server that runs for days; glibc alone.

    By default every thread may fill an arena of its own, and the size from which memory is mapped, and so returned when
    it is freed, grows to 32 MB: a page with eight visitors kept growing by 50 MB a minute.
    """
    if libc := _glibc():
        libc.mallopt(M_ARENA_MAX, 2)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 20)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None  # musl has neither

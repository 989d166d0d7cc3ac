"""Work that is done in steps: a generator that yields its progress and returns the result."""

from collections.abc import Callable, Generator


def finished(steps: Generator, on_progress: Callable[..., None] | None = None):
    """What a generator returns, run to its end; what it yields goes to `on_progress`."""
    try:
        while True:
            try:
                progress = next(steps)
            except StopIteration as end:
                return end.value
            if on_progress:
                on_progress(*progress)
    finally:
        steps.close()

"""Long work: a generator that yields its progress and returns the result."""

from collections.abc import Callable, Generator
from functools import wraps


def stepwise(steps: Callable[..., Generator]) -> Callable:
    """Decorate a function that checks its arguments and returns a generator: a call runs the generator to its end.

    The call takes `on_progress`, a function of what the generator yields, and returns what it returns. The undecorated
    function, for callers that do something between two steps, is `.steps`.
    Example: sweep(lab, text, on_progress=print) and for done, total in sweep.steps(lab, text)
    """

    @wraps(steps)
    def run(*args, on_progress: Callable[..., None] | None = None, **options):
        return finished(steps(*args, **options), on_progress)

    run.steps = steps
    return run


def mapped(steps: Generator, change: Callable) -> Generator:
    """Yield change(*progress) of what a generator yields; return what it returns."""
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            return end.value
        yield change(*progress)


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

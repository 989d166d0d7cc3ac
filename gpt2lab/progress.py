"""Long work: a generator that yields its progress and returns the result."""

from collections.abc import Callable, Generator
from functools import wraps
from typing import Any, ParamSpec, Protocol, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")


class Stepwise(Protocol[P, R]):
    """A function whose work can also be done in steps."""

    steps: Callable[P, Generator[Any, None, R]]

    def __call__(self, *args, on_progress: Callable[..., None] | None = None, **options) -> R: ...


def stepwise(steps: Callable[P, Generator[Any, None, R]]) -> Stepwise[P, R]:
    """Decorate a function that checks its arguments and returns a generator: a call runs the generator to its end.

    The call takes `on_progress`, a function of what the generator yields, and returns what it returns. The undecorated
    function, for callers that do something between two steps, is `.steps`.
    Example: sweep(lab, text, on_progress=print) and for done, total in sweep.steps(lab, text)
    """

    @wraps(steps)
    def run(*args, on_progress: Callable[..., None] | None = None, **options) -> R:
        return finished(steps(*args, **options), on_progress)

    both = cast(Stepwise[P, R], run)  # to mypy, a function has no attributes of its own
    both.steps = steps
    return both


def mapped(steps: Generator[Any, None, R], change: Callable[..., T]) -> Generator[T, None, R]:
    """Yield change(*progress) of what a generator yields; return what it returns."""
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            return end.value
        yield change(*progress)


def finished(steps: Generator[Any, None, R], on_progress: Callable[..., None] | None = None) -> R:
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

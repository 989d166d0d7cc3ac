"""Scoring for the Evaluate tab: a visitor's settings → lines of progress, at last the evaluation."""

import time
from collections.abc import Generator, Iterator
from typing import Any

from gpt2lab.app.evaluate_content import NamedEvaluation
from gpt2lab.app.events import models_of
from gpt2lab.app.language import _
from gpt2lab.app.results import ResultCache
from gpt2lab.data import hub
from gpt2lab.data.sources import DATA
from gpt2lab.data.text import Article, articles_of, load_text
from gpt2lab.errors import LabError, Message, choice
from gpt2lab.evaluation.evaluate import evaluate
from gpt2lab.results import duration

OWN = "own text"  # a value; no text of the package has this name
MAX_CHARACTERS = 1_000_000  # of a visitor's own text
DRAW_SECONDS = 0.3  # between updates of the progress


def evaluation_progress(
    results: ResultCache, label: str, compare: str | None, settings: dict
) -> Iterator[str | NamedEvaluation]:
    """Yield progress lines, at last the evaluation. Raises: LabError for bad settings."""
    labels = models_of(label, compare)
    optional: dict[str, Any] = {name: settings[name] or None for name in ("context", "stride", "quick")}
    articles = articles_of_choice(settings["data"], settings["split"], settings["text"])
    labs = [results.store.lab(name) for name in labels]
    optional |= {"seed": settings["seed"] or 0, "precision": settings["precision"]}
    steps = evaluate.steps(labs, articles, settings["protocols"], **optional)
    evaluation = yield from progress_lines(results.store.locked_steps(steps))
    named = Message("{data}, {split} split", data=settings["data"], split=settings["split"])
    yield NamedEvaluation(evaluation, Message("your own text") if settings["data"] == OWN else named)


def articles_of_choice(data: Any, split: Any, text: Any) -> tuple[Article, ...]:
    """Return the articles of an offered text, or of the visitor's own. Raises: LabError for an unknown or empty text."""
    if data in DATA:
        hub.require_downloaded(data)
        return load_text(data).split(split)
    choice("text", data, [*DATA, OWN])
    if not isinstance(text, str) or not text.strip():
        raise LabError("your own text is empty; type or paste some under More settings")
    if len(text) > MAX_CHARACTERS:
        raise LabError(
            "your own text has {count:,} characters; the limit is {max_characters:,}: take a part of it",
            count=len(text),
            max_characters=MAX_CHARACTERS,
        )
    return articles_of(text, "your own text")


def progress_lines(steps: Generator) -> Generator[str, None, Any]:
    """Yield the progress of scoring with the time left; return what the steps return."""
    doing, drawn, began, before = None, 0.0, 0.0, 0
    while True:
        try:
            what, done, total = next(steps)
        except StopIteration as end:
            return end.value
        now = time.monotonic()
        if what != doing:
            doing, began, before = what, now, done
        if now - drawn > DRAW_SECONDS:
            drawn = now
            left = (now - began) / (done - before) * (total - done) if done > before else None
            yield _progress(what, done, total, left)


def _progress(what: str, done: int, total: int, left: float | None) -> str:
    if not left:
        return _("{what}: {done:,} of {total:,} windows", what=what, done=done, total=total)
    return _(
        "{what}: {done:,} of {total:,} windows, {left} left", what=what, done=done, total=total, left=duration(left)
    )

"""The contents of the Generate tab: visitors' texts, by keys, and the writing of new ones."""

import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gpt2lab.app.cache import BoundedCache
from gpt2lab.app.language import said
from gpt2lab.app.models import ModelStore
from gpt2lab.errors import LabError, whole_number
from gpt2lab.generation.branches import Text, branch_options, numbered, texts_of_stream
from gpt2lab.generation.generate import TextStream, best_of
from gpt2lab.results import finite
from gpt2lab.widgets.base import answered
from gpt2lab.widgets.generation import answer_generation, generation_data, text_part

MAX_TEXTS = 30  # of a visitor
MAX_STEPS = 4096  # tokens of all texts of a visitor; the newest texts are always kept
STEP_BYTES = 4096  # of a token with its alternatives, about
TEXTS_BYTES = 256 << 20  # of all visitors' texts
MAX_CONTINUATIONS = 8
MAX_NEW_TOKENS = 512
DRAW_SECONDS = 0.1  # between updates: a reader sees no more
SHARE = 5  # an update may take this part of the time, which matters for long texts
Texts = tuple[Text, ...]


class TextCache:
    """Texts by visitors' keys, which cannot be guessed, bounded in bytes: those not used for longest go first."""

    def __init__(self, limit: int = TEXTS_BYTES) -> None:
        self._kept = BoundedCache(limit, lambda texts: STEP_BYTES * sum(len(text.tokens) for text in texts))

    def get(self, key: Any) -> Texts:
        """Return a visitor's texts; none for a key that is not known, or not any more."""
        return (self._kept.get(key) if isinstance(key, str) else None) or ()

    def put(self, key: str, texts: Texts) -> None:
        """Keep a visitor's texts."""
        self._kept.put(key, texts)


def new_key() -> str:
    """Make a key that nobody can guess."""
    return secrets.token_urlsafe(16)


class Work(NamedTuple):
    """A stream that is to be written, and the number of the text that it branches from."""

    stream: TextStream
    parent: int | None = None


class Progress(NamedTuple):
    """How far the writing is.

    value    of the page
    texts    all of the visitor
    tokens, total  written now, and to be written at most
    seconds  since the first token was asked for
    ends     of the new texts: why each ended
    """

    value: dict
    texts: Texts
    tokens: int
    total: int
    seconds: float
    ends: list[str]
    stopped: bool
    done: bool


def write(
    store: ModelStore, key: str, texts: Texts, works: Sequence[Work], shown: Sequence[int] = (), stop=None
) -> Iterator[Progress]:
    """Write all streams, token by token, and at last choose the most probable continuation of each.

    shown  numbers of the texts that stay on display, 0 in the place of the first new one; none: the new ones are shown
    stop   an event; once it is set, writing ends with the tokens so far
    """
    steps = [store.locked_steps(iter(work.stream)) for work in works]
    first, run = 1 + max((text.number for text in texts), default=0), secrets.token_hex(4)
    before = [text_part(text) for text in texts]
    total = sum(work.stream.count * work.stream.max_new_tokens for work in works)
    began, due, running = time.monotonic(), 0.0, True
    while running:
        stopped = stop is not None and stop.is_set()
        running = False
        for one in steps:
            if not stopped and next(one, None) is not None:
                running = True
        now = time.monotonic()
        if running and now < due:
            continue
        new, best = _written(works, first, running)
        kept = newest((*texts, *new), len(new))
        written = [text_part(text) for text in new]
        for part in written:
            if running and part["finish"] == "stopped":
                part["finish"] = "writing"
        parts = [*before, *written][-len(kept) :]
        places = [number or best[0] for number in shown] or best
        data = {"texts": parts, "shown": places, "run": run, "writing": running}
        value = page_value(key, **data)
        tokens = sum(len(steps) for work in works for steps in work.stream.new)
        ends = [text.generation.finish for text in new]
        spent = time.monotonic() - now
        due = now + spent + max(DRAW_SECONDS, SHARE * spent)
        yield Progress(value, kept, tokens, total, now - began, ends, stopped, not running)


def _written(works: Sequence[Work], first: int, running: bool) -> tuple[list[Text], list[int]]:
    """Return (the new texts so far, of each stream the number of the one to show)."""
    new: list[Text] = []
    best = []
    for work in works:
        batch = texts_of_stream(work.stream, first + len(new), work.parent)
        generations = [text.generation for text in batch]
        best.append(batch[0 if running else generations.index(best_of(generations))].number)
        new += batch
    return new, best


def page_value(key: str, **data: Any) -> dict:
    """The page's value, whose subject says whose texts they are."""
    return {"data": finite({**generation_data((), ()), **data, "subject": {"key": key}})}


def newest(texts: Texts, least: int) -> Texts:
    """Return the last texts: at most MAX_TEXTS of them and MAX_STEPS tokens, but no fewer than `least`."""
    kept: list[Text] = []
    tokens = 0
    for text in reversed(texts[-MAX_TEXTS:]):
        tokens += len(text.generation.steps)
        if tokens > MAX_STEPS and len(kept) >= least:
            break
        kept.append(text)
    return tuple(reversed(kept))


def streams(store: ModelStore, labels: Sequence[str], count: Any, options: dict) -> list[Work]:
    """Return what is to be written for a prompt, by one model or two. Raises: LabError for bad options."""
    whole_number("continuations", count, 1, MAX_CONTINUATIONS)
    whole_number("max_new_tokens", options.get("max_new_tokens"), 1, MAX_NEW_TOKENS)
    return [Work(TextStream(store.lab(label), count=count, **options)) for label in labels]


def branch(store: ModelStore, texts: Texts, asked: Any) -> tuple[Work, list[int]]:
    """Return (what a view asks to be written, the texts that it shows with 0 for the new one).

    asked  {text, index, token, shown: one number or two, side}

    Raises: LabError for what is not there.
    """
    asked = asked if isinstance(asked, dict) else {}
    text = numbered(texts, asked.get("text"))
    options = branch_options(text, asked.get("index"), asked.get("token"))
    shown = asked.get("shown")
    if not isinstance(shown, list) or not 1 <= len(shown) <= 2:
        raise LabError("the shown texts must be a list of one number or two")
    side = whole_number("side", asked.get("side"), 0, len(shown) - 1)
    others = [0 if i == side else numbered(texts, number).number for i, number in enumerate(shown)]
    return Work(TextStream(store.lab(text.name), **options), text.number), others


def answer_of(store: ModelStore, cache: TextCache, request: Any) -> dict:
    """Return what a view asks for of its visitor's texts, or {"error": one line}."""
    request = request if isinstance(request, dict) else {}
    subject = request.get("subject") if isinstance(request.get("subject"), dict) else {}
    texts = cache.get(subject.get("key"))
    return answered(
        lambda kind, options: answer_generation(texts, kind, options, store.lab, store.lock),
        request.get("kind"),
        request.get("options"),
        said=said,
    )


class FirstText:
    """The text that the tab opens with: written when a visitor first opens it, the same for all."""

    def __init__(self, store: ModelStore, options: dict) -> None:
        self._store, self._options = store, options
        self._text: Text | None = None
        self._lock = threading.Lock()

    def get(self) -> Text:
        """Return the text, written at the first call."""
        with self._lock:
            if self._text is None:
                stream = TextStream(self._store.lab("builtin"), **self._options)
                for _ in self._store.locked_steps(iter(stream)):
                    pass
                [self._text] = texts_of_stream(stream, 1)
        return self._text

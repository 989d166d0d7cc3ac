"""The contents of the Generate tab: texts written by one model or two, and views of them."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import log
from threading import Event
from typing import NamedTuple

import numpy as np

from gpt2lab.app.events import code
from gpt2lab.app.models import ModelStore
from gpt2lab.data.sources import DATA
from gpt2lab.data.tokens import display_tokens, visible
from gpt2lab.errors import LabError, choice, whole_number
from gpt2lab.figures.tables import table
from gpt2lab.generation.generate import Generation, TextStream, best_of, prompt_hint
from gpt2lab.generation.measures import measure, perplexity_under, training_ids
from gpt2lab.generation.sampling import Sampling, Step, redrawn
from gpt2lab.results import readable

MAX_TEXTS = 30  # kept in a visitor's list
MAX_STEPS = 4096  # tokens of all texts in it, about 4 kB each; the newest texts are always kept
MAX_CONTINUATIONS = 8
DRAW_SECONDS = 0.05  # between redraws: faster than that a browser only falls behind
EXACT = 5e-4  # bounds of a probability that are shown as one
NOTHING = 0  # the number of no text
ENDINGS = {
    "end of text": "the model ended the text",
    "stop string": "a stop string came",
    "length": "the length asked for is reached",
    "context": "the model's context is full",
    "stopped": "stopped",
}
COLOURS = {
    "probability": "of the token to the model, 0 to 1",
    "rank": "the top prediction has no colour, the last of all V tokens the fullest, by the logarithm",
    "entropy": "the fuller, the less certain the model was, 0 to ln V nats",
}
Place = tuple[int, int]  # (number of a text, index of a token)


class Start(NamedTuple):
    """A model, its options of `TextStream`, and the tokens that a branch keeps.

    after   tokens kept of the text that it branches from
    parent  that text's number; None for a text of its own
    """

    label: str
    settings: dict
    after: tuple[Step, ...] = ()
    parent: int | None = None


class Text(NamedTuple):
    """A text of the visitor's list, under a fixed number.

    tokens  its tokens as they are displayed
    V       tokens in its model's vocabulary
    begin   the token that its model begins from without a prompt
    hint    a sentence on its prompt, if it is unusual
    """

    number: int
    start: Start
    generation: Generation
    tokens: tuple[str, ...]
    V: int
    begin: str = ""
    hint: str = ""


class Progress(NamedTuple):
    """How far the writing is: all texts of the list, the numbers of the two to show, and the speed in a line."""

    texts: tuple[Text, ...]
    left: int
    right: int
    speed: str
    done: bool


def write(
    store: ModelStore, texts: Sequence[Text], starts: Sequence[Start], count: int = 1, stop: Event | None = None
) -> Iterator[Progress]:
    """Write `count` continuations of each start at once, token by token. At last the best of each start is shown.

    stop  once it is set, writing ends with the tokens so far
    """
    whole_number("continuations", count, 1, MAX_CONTINUATIONS)
    streams = [TextStream(store.lab(start.label), after=start.after, count=count, **start.settings) for start in starts]
    steps = [store.locked_steps(iter(stream)) for stream in streams]
    first = 1 + max((text.number for text in texts), default=NOTHING)
    began, drawn, running = time.monotonic(), 0.0, True
    while running:
        running = False
        stopped = stop is not None and stop.is_set()
        for one in steps:
            if not stopped and next(one, None) is not None:
                running = True
        now = time.monotonic()
        if running and now - drawn < DRAW_SECONDS:
            continue
        drawn, best = now, []
        new: list[Text] = []
        for start, stream in zip(starts, streams):
            batch = stream.generations
            best.append(first + len(new) + (0 if running else batch.index(best_of(batch))))
            new += [as_text(first + len(new) + i, start, stream, generation) for i, generation in enumerate(batch)]
        tokens = sum(len(new_steps) for stream in streams for new_steps in stream.new)
        speed = f"{'Stopped: ' if stopped else ''}{tokens:,} tokens, {tokens / (now - began):,.0f} a second."
        right = best[1] if len(best) > 1 else NOTHING
        yield Progress(newest((*texts, *new), len(new)), best[0], right, speed, not running)


def as_text(number: int, start: Start, stream: TextStream, generation: Generation) -> Text:
    """Return a generation of a stream as a Text."""
    tokenizer = stream.lab.tokenizer
    tokens = display_tokens(tokenizer, [step.id for step in generation.steps])
    begin = "" if generation.prompt else display_tokens(tokenizer, stream.ids.tolist())[0]
    hint = prompt_hint(stream.lab, generation.prompt) or ""
    return Text(number, start, generation, tokens, stream.lab.model.config.vocab_size, begin, hint)


def newest(texts: tuple[Text, ...], least: int) -> tuple[Text, ...]:
    """Return the last texts: at most MAX_TEXTS of them and MAX_STEPS tokens, but no fewer than `least`."""
    kept: list[Text] = []
    tokens = 0
    for text in reversed(texts[-MAX_TEXTS:]):
        tokens += len(text.generation.steps)
        if tokens > MAX_STEPS and len(kept) >= least:
            break
        kept.append(text)
    return tuple(reversed(kept))


def branch(texts: Sequence[Text], at: Place | None, index: int) -> Start:
    """Return the start that takes another of a token's alternatives."""
    (text, step), (_, place) = token_at(texts, at), chosen(at)
    other = step.alternatives[whole_number("choice", index, 0, len(step.alternatives) - 1)]
    after = (*text.generation.steps[:place], step.with_token(other.id))
    length = len(text.start.after) + text.start.settings["max_new_tokens"]  # in all, after the prompt
    changed = {"max_new_tokens": length - len(after), "seed": text.generation.seed}
    return Start(text.start.label, text.start.settings | changed, after, text.number)


def numbered(texts: Sequence[Text], number: int | None) -> Text:
    """Return the text with a number. Raises: LabError if there is none."""
    if not texts:
        raise LabError("there is no text here yet; press Generate first")
    for text in texts:
        if text.number == number:
            return text
    raise LabError(
        "text {number} is not here; use one of {choices}",
        number=str(number)[:40],
        choices=", ".join(str(text.number) for text in texts),
    )


def token_at(texts: Sequence[Text], at: Place | None) -> tuple[Text, Step]:
    """Return (text, step) of a token. Raises: LabError if there is none."""
    number, index = chosen(at)
    text = numbered(texts, number)
    return text, text.generation.steps[whole_number("token", index, 0, len(text.generation.steps) - 1)]


def chosen(at: Place | None) -> Place:
    """Return the token that was clicked. Raises: LabError if none was."""
    if at is None:
        raise LabError("no token is chosen; click one first")
    return at


def list_choices(texts: Sequence[Text]) -> list[tuple[str, int]]:
    """Return (line, number) of each text, branches below their parent."""
    numbers = {text.number for text in texts}
    lines = []

    def add(text: Text, depth: int) -> None:
        start, generation = text.start, text.generation
        where = f"seed {generation.seed}"
        if start.after:
            where = f"{visible(start.after[-1].token)} for token {len(start.after) - 1} of text {start.parent}"
        lines.append((f"{'↳ ' * depth}{text.number}: {start.label}, {where}: {generation.text[:30]!r}", text.number))
        for other in texts:
            if other.start.parent == text.number:
                add(other, depth + 1)

    for text in texts:
        if text.start.parent not in numbers:
            add(text, 0)
    return lines


def text_views(text: Text, by: str) -> tuple[str, str, list[tuple[str, float]]]:
    """Return (whole text, how it ended, coloured tokens)."""
    generation = text.generation
    ending = f"**{text.start.label}**: {len(generation.steps)} tokens; {ENDINGS[generation.finish]}."
    if not generation.prompt:
        ending += f" There was no prompt: the model began from `{text.begin}`."
    ending += f" {text.hint}" if text.hint else ""
    return generation.prompt + generation.text, ending, coloured(text, by)


def coloured(text: Text, by: str) -> list[tuple[str, float]]:
    """Return tokens with a colour from 0 to 1, and a mark where the model re-read. Raises: LabError for an unknown colour."""
    choice("colour", by, COLOURS)
    value = {
        "probability": lambda step: step.probability,
        "rank": lambda step: log(step.rank) / log(text.V),
        "entropy": lambda step: min(1.0, step.entropy / log(text.V)),
    }[by]
    pairs = zip(text.tokens, text.generation.steps)
    return [(f"{'⋮ ' if step.window_shifted else ''}{token}", round(value(step), 4)) for token, step in pairs]


def alternatives(
    texts: Sequence[Text], at: Place | None, temperature: float, top_p: float, top_k: int, min_p: float
) -> tuple[str, dict[str, float]]:
    """Return (description of a token, bars): the model's top predictions, by their probability under a sampler."""
    (text, step), (_, place) = token_at(texts, at), chosen(at)
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k or None, min_p=min_p)
    if sampling == own_sampling(text):
        low = high = np.array([other.sampled_probability for other in step.alternatives])
    else:
        low, high = redrawn(step, sampling, text.V)
    bars = {}
    for other, least, most in zip(step.alternatives, low.tolist(), high.tolist()):
        bounds = "" if most - least < EXACT else f", {least:.3f} to {most:.3f}"
        bars[f"{visible(other.token)} ({other.id}), the model's own {other.probability:.3f}{bounds}"] = least
    by_hand = place == len(text.start.after) - 1
    lines = [
        f"Token {place} of text {text.number}, `{code(text.tokens[place])}`: probability {step.probability:.4f}, rank "
        f"{step.rank:,}, entropy {step.entropy:.3f} nats. It was {'chosen by hand; the sampler draws it' if by_hand else 'drawn'} "
        f"with {step.sampled_probability:.4f}; the filters took {step.removed:.3f} away. The bars: the "
        f"{len(step.alternatives)} top predictions with temperature {temperature:g}, top-p {top_p:g}, top-k {top_k or 'all'}, "
        f"min-p {min_p:g}."
    ]
    if (high - low)[: len(bars)].max(initial=0) >= EXACT:
        lines.append(
            f"What is kept of the step, {len(step.top_logprobs)} top predictions with {np.exp(step.top_logprobs).sum():.3f} of the "
            "probability, is **not enough** to draw them exactly: the bars are the least, the most stands beside."
        )
    if text.start.settings["repetition_penalty"] != 1 and sampling != own_sampling(text):
        lines.append("They leave the repetition penalty out.")
    return " ".join(lines), bars


def own_sampling(text: Text) -> Sampling:
    """Return the sampling settings of a text, without the repetition penalty."""
    return Sampling(**{name: text.start.settings[name] for name in ("temperature", "top_p", "top_k", "min_p")})


def step_rows(text: Text) -> list[list]:
    """Return a table row per generated token."""
    return [
        [
            token,
            f"{step.probability:.4f}",
            step.rank,
            f"{step.entropy:.3f}",
            ", ".join(f"{visible(option.token)} {option.probability:.3f}" for option in step.alternatives[:5]),
        ]
        for token, step in zip(text.tokens, text.generation.steps)
    ]


def measure_table(store: ModelStore, texts: Sequence[Text], data: str) -> str:
    """Return a table of the measures of texts, each under each text's model. Raises: LabError for an unknown text."""
    choice("text", data, DATA)
    labs = {text.start.label: store.lab(text.start.label) for text in texts}
    training = {label: training_ids(lab, data) for label, lab in labs.items()}
    columns = []
    for text in texts:
        writer = labs[text.start.label]
        measures = measure(writer, text.generation, training=training[text.start.label])
        with store.lock:  # models run
            under = {label: perplexity_under(lab, writer, text.generation) for label, lab in labs.items()}
        columns.append(replace(measures, perplexity=under).named)
    rows = [(name, *(cell(column[name]) for column in columns)) for name in columns[0]]
    return table(["", *(f"{text.number}: {text.start.label}" for text in texts)], rows)


def cell(value: float | str | None) -> str:
    """Return a measure for a table."""
    return "–" if value is None else readable(value, 3) if isinstance(value, float) else str(value)

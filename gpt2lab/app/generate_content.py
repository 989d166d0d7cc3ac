"""The texts of the Generate tab: written by a model or two at once, kept, and what is shown of them. Nothing of its layout."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import log
from threading import Event
from typing import NamedTuple

import numpy as np

from gpt2lab.app.models import ModelStore
from gpt2lab.data.sources import DATA
from gpt2lab.data.tokens import display_tokens, visible
from gpt2lab.errors import LabError, choice, whole_number
from gpt2lab.figures.tables import table
from gpt2lab.generation.generate import Generation, batch_steps, best_of, collect_batch, prompt_hint, request
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


class Start(NamedTuple):
    """What is to be written: by which model, with which options of `request`, and what it branches from.

    after   tokens kept of the text that it branches from
    parent  that text's number; None for a text of its own
    """

    label: str
    settings: dict
    after: tuple = ()
    parent: int | None = None


class Text(NamedTuple):
    """A text that is kept, under a number that stays its own.

    tokens  its tokens as they are shown
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


class Written(NamedTuple):
    """How far the writing is: all texts kept, the numbers of those to be shown, and how fast it went."""

    texts: tuple[Text, ...]
    left: int
    right: int
    told: str
    done: bool


def write(
    store: ModelStore, texts: Sequence[Text], starts: Sequence[Start], count: int = 1, stop: Event | None = None
) -> Iterator[Written]:
    """`count` continuations of each start, all written at once, token by token; of several the best is shown at last.

    stop  once it is set the writing ends, with what there is
    """
    whole_number("continuations", count, 1, MAX_CONTINUATIONS)
    asked = [request(store.lab(start.label), after=start.after, **start.settings) for start in starts]
    streams = [store.locked_steps(batch_steps(one, count)) for one in asked]
    rows, first = [[] for _ in asked], 1 + max((text.number for text in texts), default=NOTHING)
    began, drawn, going = time.monotonic(), 0.0, True
    while going:
        going = False
        stopped = stop is not None and stop.is_set()
        for stream, taken in zip(streams, rows):
            if not stopped and (row := next(stream, None)) is not None:
                taken.append(row)
                going = True
        now = time.monotonic()
        if going and now - drawn < DRAW_SECONDS:
            continue
        drawn, new, shown = now, [], []
        for start, one, taken in zip(starts, asked, rows):
            found = collect_batch(one, taken, count)
            best = found[0] if going else best_of(found)
            shown.append(first + len(new) + found.index(best))
            new += [text_kept(first + len(new) + i, start, one, generation) for i, generation in enumerate(found)]
        tokens = sum(step is not None for taken in rows for row in taken for step in row)
        told = f"{'Stopped: ' if stopped else ''}{tokens:,} tokens, {tokens / (now - began):,.0f} a second."
        yield Written(
            newest((*texts, *new), len(new)), shown[0], shown[1] if len(shown) > 1 else NOTHING, told, not going
        )


def text_kept(number: int, start: Start, asked, generation: Generation) -> Text:
    """Return a generation of a request as a Text."""
    tokenizer = asked.lab.tokenizer
    tokens = display_tokens(tokenizer, [step.id for step in generation.steps])
    begin = "" if generation.prompt else display_tokens(tokenizer, asked.ids.tolist())[0]
    hint = prompt_hint(asked.lab, generation.prompt) or ""
    return Text(number, start, generation, tokens, asked.lab.model.config.vocab_size, begin, hint)


def newest(texts: tuple[Text, ...], least: int) -> tuple[Text, ...]:
    """Return the last texts: at most MAX_TEXTS of them and MAX_STEPS tokens, but no fewer than `least`."""
    kept, tokens = [], 0
    for text in reversed(texts[-MAX_TEXTS:]):
        tokens += len(text.generation.steps)
        if tokens > MAX_STEPS and len(kept) >= least:
            break
        kept.append(text)
    return tuple(reversed(kept))


def branch(texts: Sequence[Text], at, choice) -> Start:
    """The start that takes another of a token's alternatives; `at` is (number of a text, place of a token)."""
    found, step = token_at(texts, at)
    other = step.alternatives[whole_number("choice", choice, 0, len(step.alternatives) - 1)]
    after = (*found.generation.steps[: at[1]], step.instead(other.id))
    asked = len(found.start.after) + found.start.settings["max_new_tokens"]  # in all, after the prompt
    changed = {"max_new_tokens": asked - len(after), "seed": found.generation.seed}
    return Start(found.start.label, found.start.settings | changed, after, found.number)


def chosen(texts: Sequence[Text], number) -> Text:
    """The text with a number. Raises: LabError where there is none, or no more."""
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


def token_at(texts: Sequence[Text], at) -> tuple[Text, Step]:
    """(Text, Step) at (number of a text, place of a token). Raises: LabError where there is none."""
    if at is None:
        raise LabError("no token is chosen; click one first")
    found = chosen(texts, at[0])
    return found, found.generation.steps[whole_number("token", at[1], 0, len(found.generation.steps) - 1)]


def listed(texts: Sequence[Text]) -> list[tuple[str, int]]:
    """(line, number) of each text, branches below what they branched from."""
    numbers = {text.number for text in texts}
    lines = []

    def add(text: Text, depth: int) -> None:
        start, found = text.start, text.generation
        where = f"seed {found.seed}"
        if start.after:
            where = f"{visible(start.after[-1].token)} for token {len(start.after) - 1} of text {start.parent}"
        lines.append((f"{'↳ ' * depth}{text.number}: {start.label}, {where}: {found.text[:30]!r}", text.number))
        for other in texts:
            if other.start.parent == text.number:
                add(other, depth + 1)

    for text in texts:
        if text.start.parent not in numbers:
            add(text, 0)
    return lines


def side_of(text: Text, by: str) -> tuple[str, str, list[tuple[str, float]]]:
    """What a text's place on the page holds: the text, how it ended, its tokens in colours."""
    found = text.generation
    ending = f"**{text.start.label}**: {len(found.steps)} tokens; {ENDINGS[found.finish]}."
    if not found.prompt:
        ending += f" There was no prompt: the model began from `{text.begin}`."
    ending += f" {text.hint}" if text.hint else ""
    return found.prompt + found.text, ending, coloured(text, by)


def coloured(text: Text, by: str) -> list[tuple[str, float]]:
    """Tokens with a number from 0 to 1, and a mark where the model re-read. Raises: LabError for an unknown colour."""
    choice("colour", by, COLOURS)
    value = {
        "probability": lambda step: step.probability,
        "rank": lambda step: log(step.rank) / log(text.V),
        "entropy": lambda step: min(1.0, step.entropy / log(text.V)),
    }[by]
    pairs = zip(text.tokens, text.generation.steps)
    return [(f"{'⋮ ' if step.seam else ''}{shown}", round(value(step), 4)) for shown, step in pairs]


def choices_of(texts: Sequence[Text], at, temperature, top_p, top_k, min_p) -> tuple[str, dict[str, float]]:
    """What a token was chosen from, in words, and for bars: the model's top predictions, by what a sampler draws them with."""
    found, step = token_at(texts, at)
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k or None, min_p=min_p)
    if sampling == own_sampling(found):
        low = high = np.array([other.sampled_probability for other in step.alternatives])
    else:
        low, high = redrawn(step, sampling, found.V)
    bars = {}
    for other, least, most in zip(step.alternatives, low.tolist(), high.tolist()):
        bounds = "" if most - least < EXACT else f", {least:.3f} to {most:.3f}"
        bars[f"{visible(other.token)} ({other.id}), the model's own {other.probability:.3f}{bounds}"] = least
    by_hand = at[1] == len(found.start.after) - 1
    words = [
        f"Token {at[1]} of text {found.number}, `{code(found.tokens[at[1]])}`: probability {step.probability:.4f}, rank "
        f"{step.rank:,}, entropy {step.entropy:.3f} nats. It was {'chosen by hand; the sampler draws it' if by_hand else 'drawn'} "
        f"with {step.sampled_probability:.4f}; the filters took {step.removed:.3f} away. The bars: the "
        f"{len(step.alternatives)} top predictions with temperature {temperature:g}, top-p {top_p:g}, top-k {top_k or 'all'}, "
        f"min-p {min_p:g}."
    ]
    if (high - low)[: len(bars)].max(initial=0) >= EXACT:
        words.append(
            f"What is kept of the step, {len(step.top_logprobs)} top predictions with {np.exp(step.top_logprobs).sum():.3f} of the "
            "probability, is **not enough** to draw them exactly: the bars are the least, the most stands beside."
        )
    if found.start.settings["repetition_penalty"] != 1 and sampling != own_sampling(found):
        words.append("They leave the repetition penalty out.")
    return " ".join(words), bars


def own_sampling(text: Text) -> Sampling:
    """What a text was drawn with, as far as its bars can be drawn by something else."""
    return Sampling(**{name: text.start.settings[name] for name in ("temperature", "top_p", "top_k", "min_p")})


def code(token: str) -> str:
    """A token as Markdown's code."""
    return token.replace("`", "ˋ")


def step_rows(text: Text) -> list[list]:
    """A row per generated token, for the table."""
    return [
        [
            shown,
            f"{step.probability:.4f}",
            step.rank,
            f"{step.entropy:.3f}",
            ", ".join(f"{visible(option.token)} {option.probability:.3f}" for option in step.alternatives[:5]),
        ]
        for shown, step in zip(text.tokens, text.generation.steps)
    ]


def measured(store: ModelStore, shown: Sequence[Text], data: str) -> str:
    """A table of the measures of some texts, each under each one's model. Raises: LabError for data that is not offered."""
    choice("text", data, DATA)
    labs = {text.start.label: store.lab(text.start.label) for text in shown}
    training = {label: training_ids(lab, data) for label, lab in labs.items()}
    each = []
    for text in shown:
        writer = labs[text.start.label]
        found = measure(writer, text.generation, training=training[text.start.label])
        with store.lock:  # models run
            under = {label: perplexity_under(lab, writer, text.generation) for label, lab in labs.items()}
        each.append(replace(found, perplexity=under).named)
    rows = [(name, *(cell(one[name]) for one in each)) for name in each[0]]
    return table(["", *(f"{text.number}: {text.start.label}" for text in shown)], rows)


def cell(value) -> str:
    """A measure for a reader."""
    return "–" if value is None else readable(value, 3) if isinstance(value, float) else str(value)

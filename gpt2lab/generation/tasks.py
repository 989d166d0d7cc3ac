"""The GPT-2 paper's tasks, as continuations of a prompt: summarise, translate, answer.

Source of each recipe: Radford et al., Language Models are Unsupervised Multitask
Learners (2019), the section that `recipes` names.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gpt2lab.data.tokens import tokens_and_starts
from gpt2lab.errors import LabError, whole_number
from gpt2lab.generation.generate import Generation, TextStream
from gpt2lab.generation.recipes import PAIRS, QUESTIONS, TASKS
from gpt2lab.generation.sampling import Sampling
from gpt2lab.model.lab import Lab
from gpt2lab.results import Summary

MAX_TEXT = 200_000  # characters of a text to summarise: a short book's; a minute of GPT-2 small per 3,000
MAX_PARTS = 50  # that a long text is split into
MIN_PART = 16  # tokens of a part
ENDING, SPACE = re.compile(r"""[.!?]["')\]]*\s+|\n\s*"""), re.compile(r"\s+")
SENTENCE = re.compile(r"""[^.!?]*(?:[.!?](?!["')\]]*(?:\s|$))[^.!?]*)*[.!?]+["')\]]*(?=\s|$)""")


@dataclass(frozen=True, repr=False)
class Plan(Summary):
    """A task, checked: what is to be generated, once per part of a long text, and how many sentences of each are kept.

    sentences  None keeps all
    """

    task: str
    streams: tuple[TextStream, ...]
    sentences: int | None

    def done(self, generations: Sequence[Generation]) -> "TaskResult":
        """The result of the generations of the first streams, or of all."""
        found = (
            one.text if self.sentences is None else first_sentences(one.text, self.sentences) for one in generations
        )
        prompts = tuple(one.prompt for one in self.streams)
        return TaskResult(self.task, " ".join(text.strip() for text in found), prompts, tuple(generations))

    def stream(self) -> Iterator["TaskResult"]:
        """Yield the result so far, after every token."""
        done: list[Generation] = []
        for stream in self.streams:
            for _ in stream:
                yield self.done([*done, stream.generation])
            done.append(stream.generation)

    def run(self) -> "TaskResult":
        """Run the task and return its result."""
        return self.done([stream.finished().generation for stream in self.streams])


@dataclass(frozen=True, repr=False)
class TaskResult(Summary):
    """What a task gave.

    text         the summary, translation or answer
    prompts      the whole text that the model was given, once per part of a long one
    generations  what it wrote after each
    """

    task: str
    text: str
    prompts: tuple[str, ...]
    generations: tuple[Generation, ...]


def summary_plan(
    lab: Lab,
    text: str,
    *,
    prompt: str = TASKS["summarize"].prompt,
    max_new_tokens: int = TASKS["summarize"].tokens,
    top_k: int = 2,
    sentences: int = 3,
    seed: int = 0,
) -> Plan:
    """The first sentences that follow a text and `TL;DR:`.

    A text that does not fit is split between sentences into parts that do; each is summarised, and the summaries
    are joined by spaces.

    prompt  has {text} in it once

    Raises: LabError for an empty text, one of more than MAX_PARTS parts, and a prompt without its place.
    """
    text = checked("text", text)
    whole_number("sentences", sentences, 1, 20)
    whole_number("max_new_tokens", max_new_tokens, 1, lab.context - 1)
    frame = len(lab.encode(filled(prompt, text="")))
    room = lab.context - max_new_tokens - frame - 1  # 1: the seam between two texts may be a token more
    if room < MIN_PART:
        raise LabError(
            "the prompt's {frame} tokens and {max_new_tokens} new ones leave {room} of {context} for the "
            "text; leave {min_part} at least: ask for fewer new tokens",
            frame=frame,
            max_new_tokens=max_new_tokens,
            room=max(room, 0),
            context=lab.context,
            min_part=MIN_PART,
        )
    parts = split(lab, text, room)
    if len(parts) > MAX_PARTS:
        raise LabError(
            "the text makes {count} parts for {name}; the limit is {max_parts}: shorten it",
            count=len(parts),
            name=lab.name,
            max_parts=MAX_PARTS,
        )
    prompts = tuple(filled(prompt, text=part) for part in parts)
    sampling = Sampling(top_k=top_k, seed=seed)
    streams = tuple(TextStream(lab, one, max_new_tokens=max_new_tokens, sampling=sampling) for one in prompts)
    return Plan("summarize", streams, sentences)


def translation_plan(
    lab: Lab,
    text: str,
    *,
    examples: Sequence[tuple[str, str]] = PAIRS,
    prompt: str = TASKS["translate"].prompt,
    max_new_tokens: int = TASKS["translate"].tokens,
) -> Plan:
    """A sentence in another language, which the examples show: pairs of a sentence and its translation.

    prompt  has {examples} and {text} in it once each

    Raises: LabError for an empty text or one of several lines, examples that are no pairs, a prompt without its places
    or that does not fit, and numbers out of range.
    """
    shown = "\n".join(f"{line('example', one)} = {line('example', other)}" for one, other in pairs(examples))
    asked = filled(prompt, examples=shown, text=line("text", text))
    return Plan("translate", (greedy_line(lab, asked, max_new_tokens),), 1)


def answer_plan(
    lab: Lab,
    document: str,
    question: str,
    *,
    examples: Sequence[tuple[str, str]] = QUESTIONS,
    prompt: str = TASKS["answer"].prompt,
    max_new_tokens: int = TASKS["answer"].tokens,
) -> Plan:
    """What follows a document, questions with their answers, and a question.

    prompt  has {document}, {examples} and {question} in it once each

    Raises: LabError for an empty document or question, examples that are no pairs, a prompt without its places or that
    does not fit, and numbers out of range.
    """
    shown = "\n".join(f"Q: {line('example', one)}\nA: {line('example', other)}" for one, other in pairs(examples))
    asked = filled(prompt, document=checked("document", document), examples=shown, question=line("question", question))
    return Plan("answer", (greedy_line(lab, asked, max_new_tokens),), None)


def greedy_line(lab: Lab, prompt: str, max_new_tokens: int) -> TextStream:
    """The rest of a prompt's last line, always the most probable token."""
    return TextStream(lab, prompt, max_new_tokens=max_new_tokens, temperature=0, stop="\n")


def summarize(lab: Lab, text: str, **options) -> TaskResult:
    """A summary; the options are those of `summary_plan`. Example: summarize(lab, article).text"""
    return summary_plan(lab, text, **options).run()


def translate(lab: Lab, text: str, **options) -> TaskResult:
    """A translation; the options are those of `translation_plan`. Example: translate(lab, "The moon is round.").text"""
    return translation_plan(lab, text, **options).run()


def answer(lab: Lab, document: str, question: str, **options) -> TaskResult:
    """An answer; the options are those of `answer_plan`. Example: answer(lab, "The moon is round.", "What is it?").text"""
    return answer_plan(lab, document, question, **options).run()


def filled(prompt: str, **parts: str) -> str:
    """A prompt with its parts in their places; braces elsewhere, and in the parts, stay as they are.

    Raises: LabError where a place is missing, or there twice.
    """
    if not isinstance(prompt, str):
        raise LabError("the prompt {prompt!r} is no text", prompt=prompt)
    for name in parts:
        if prompt.count(f"{{{name}}}") != 1:
            raise LabError(
                "the prompt {prompt!r} has {{{name}}} {count} times; write it once",
                prompt=prompt[:40],
                name=name,
                count=prompt.count(f"{{{name}}}"),
            )
    return re.sub(rf"\{{({'|'.join(parts)})\}}", lambda found: parts[found[1]], prompt)


def first_sentences(text: str, count: int) -> str:
    """The first sentences of a text, each up to a ., ! or ? before a space; all of it where there are fewer."""
    text, at = text.strip(), 0
    for _ in range(count):
        found = SENTENCE.match(text, at)
        if not found:
            return text
        at = found.end()
    return text[:at]


def split(lab: Lab, text: str, room: int) -> list[str]:
    """A text in parts of at most so many tokens, as it is written: cut after a sentence, else after a word, else anywhere."""
    starts = [*tokens_and_starts(lab.tokenizer, text)[1].tolist(), len(text)]  # of each token, in characters
    parts, begin = [], 0
    while begin < len(text):
        end = starts[min(bisect_left(starts, begin) + room, len(starts) - 1)]
        part = text[begin:] if end == len(text) else cut_off(text[begin:end])
        while len(lab.encode(part)) > room:  # what begins a text can be more tokens than within one
            part = cut_off(part[: len(part) * room // (room + 1)])
        parts.append(part.strip())
        begin += len(part)
    return [part for part in parts if part]


def cut_off(text: str) -> str:
    """As much of a text as ends with a sentence or a line, else with a word, else all of it."""
    for border in (ENDING, SPACE):
        if ends := [found.end() for found in border.finditer(text)]:
            return text[: ends[-1]]
    return text


def checked(name: str, text: str) -> str:
    """A text with something in it, stripped. Raises: LabError otherwise, and past MAX_TEXT characters."""
    if not isinstance(text, str) or not text.strip():
        raise LabError("the {name} is empty; type at least one character", name=name)
    if len(text) > MAX_TEXT:
        raise LabError(
            "the {name} has {count:,} characters; the limit is {max_text:,}: shorten it",
            name=name,
            count=len(text),
            max_text=MAX_TEXT,
        )
    return text.strip()


def line(name: str, text: str) -> str:
    """A text of one line, stripped. Raises: LabError for several lines, and as `checked`."""
    stripped = checked(name, text)
    if len(stripped.splitlines()) > 1:
        raise LabError(
            "the {name} {stripped!r} has several lines; the recipe takes one: join them",
            name=name,
            stripped=stripped[:40],
        )
    return stripped


def pairs_of(lines: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs from lines of 'one = other'; empty lines are none. Raises: LabError for a line that is no pair."""
    for one in (lines := [one for one in lines if one.strip()]):
        if " = " not in one:
            raise LabError("example {one!r} is no pair; write it as 'one = other'", one=one[:40])
    return [(one, other) for one, _, other in (line.partition(" = ") for line in lines)]


def pairs(examples: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Examples as pairs. Raises: LabError for what is none, and for none at all."""
    found = [tuple(one) if isinstance(one, (tuple, list)) else (one,) for one in examples]
    if not found or any(len(one) != 2 for one in found):
        raise LabError("examples are pairs of two texts; give at least one")
    return [(one, other) for one, other in found]

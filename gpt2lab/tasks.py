"""The GPT-2 paper's tasks, which a language model does as text that goes on: summarise, translate, answer.

Knows generation; nothing of pages. Source of each recipe: Radford et al., Language Models are Unsupervised Multitask
Learners (2019), the section that `Task.source` names.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gpt2lab.errors import LabError, whole_number
from gpt2lab.generation import Generation, Request, collect, request, steps_of
from gpt2lab.model import Lab
from gpt2lab.sampling import Sampling

MAX_TEXT = 200_000  # characters of a text to summarise: a short book's; a minute of GPT-2 small per 3,000
MAX_PARTS = 50  # that a long text is split into
LEAST_PART = 16  # tokens of a part
SENTENCE = re.compile(r"""[^.!?]*(?:[.!?](?!["')\]]*(?:\s|$))[^.!?]*)*[.!?]+["')\]]*(?=\s|$)""")


@dataclass(frozen=True)
class Task:
    """A recipe: how the prompt is written, how it is gone on with, and what came of it.

    prompt   with a place for each part, in braces
    recipe   how the paper generates
    expect   what the paper measured, with GPT-2 of 1.5 billion parameters
    source   where in the paper
    """

    prompt: str
    recipe: str
    expect: str
    source: str


TASKS: dict[str, Task] = {
    "summarize": Task(
        "{text}\nTL;DR:",
        "100 tokens drawn among the 2 most probable at each step; the first 3 sentences are the summary.",
        "Barely better than 3 random sentences of the article (mean ROUGE F1 21.40 against 20.98 on CNN and Daily "
        "Mail), and details such as numbers are often confused.",
        "section 3.6, table 4",
    ),
    "translate": Task(
        "{examples}\n{text} =",
        "Pairs of an English sentence = its French one, then greedy; the first sentence is the translation.",
        "5 BLEU from English to French on WMT-14, somewhat worse than a word-by-word dictionary; 11.5 from French to "
        "English. Its training text held 10 MB of French.",
        "section 3.7",
    ),
    "answer": Task(
        "{document}\n\n{examples}\nQ: {question}\nA:",
        "The document, questions with their answers, then greedy to the end of the line.",
        "55 F1 on CoQA, about as three of four trained systems, from a document that holds the answer; without one, "
        "4.1 % of Natural Questions exactly right.",
        "sections 3.5 and 3.8",
    ),
}
SMALLER = (
    "Expect less of smaller models: gpt2, with 124 million parameters, keeps the form and seldom the facts; "
    "the built-in model was trained on too little text for any of this."
)
PAIRS = (
    ("Good morning.", "Bonjour."),
    ("Where is the station?", "Où est la gare ?"),
    ("The house is red.", "La maison est rouge."),
    ("I would like some bread.", "Je voudrais du pain."),
)
QUESTIONS = (("What is this text about?", "It is told above."),)


@dataclass(frozen=True)
class Plan:
    """A task, checked: what is to be generated, once per part of a long text, and how many sentences of each are kept.

    sentences  None keeps all
    """

    task: str
    requests: tuple[Request, ...]
    sentences: int | None

    def done(self, generations: Sequence[Generation]) -> "Done":
        """What the generations of the first requests, or of all, give."""
        found = (
            one.text if self.sentences is None else first_sentences(one.text, self.sentences) for one in generations
        )
        prompts = tuple(one.prompt for one in self.requests)
        return Done(self.task, " ".join(text.strip() for text in found), prompts, tuple(generations))

    def carried_out(self) -> "Done":
        """The whole of it."""
        return self.done([collect(one, tuple(steps_of(one))) for one in self.requests])


@dataclass(frozen=True)
class Done:
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
    max_new_tokens: int = 100,
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
    checked("text", text)
    whole_number("sentences", sentences, 1, 20)
    whole_number("max_new_tokens", max_new_tokens, 1, lab.context - 1)
    frame = len(lab.encode(filled(prompt, text="")))
    room = lab.context - max_new_tokens - frame - 1  # 1: the seam between two texts may be a token more
    if room < LEAST_PART:
        raise LabError(
            f"the prompt's {frame} tokens and {max_new_tokens} new ones leave {max(room, 0)} of {lab.context} for the "
            f"text; leave {LEAST_PART} at least: ask for fewer new tokens"
        )
    parts = split(lab, text.strip(), room)
    if len(parts) > MAX_PARTS:
        raise LabError(f"the text makes {len(parts)} parts for {lab.name}; the limit is {MAX_PARTS}: shorten it")
    prompts = tuple(filled(prompt, text=part) for part in parts)
    sampling = Sampling(top_k=top_k, seed=seed)
    requests = tuple(request(lab, one, max_new_tokens=max_new_tokens, sampling=sampling) for one in prompts)
    return Plan("summarize", requests, sentences)


def translation_plan(
    lab: Lab,
    text: str,
    *,
    examples: Sequence[tuple[str, str]] = PAIRS,
    prompt: str = TASKS["translate"].prompt,
    max_new_tokens: int = 60,
) -> Plan:
    """A sentence in another language, which the examples show: pairs of a sentence and its translation.

    prompt  has {examples} and {text} in it once each

    Raises: LabError for an empty text or one of several lines, and for a prompt that does not fit.
    """
    line("text", text)
    shown = "\n".join(f"{line('example', one)} = {line('example', other)}" for one, other in pairs(examples))
    asked = filled(prompt, examples=shown, text=text.strip())
    return Plan("translate", (greedy_line(lab, asked, max_new_tokens),), 1)


def answer_plan(
    lab: Lab,
    document: str,
    question: str,
    *,
    examples: Sequence[tuple[str, str]] = QUESTIONS,
    prompt: str = TASKS["answer"].prompt,
    max_new_tokens: int = 40,
) -> Plan:
    """What follows a document, questions with their answers, and a question.

    prompt  has {document}, {examples} and {question} in it once each

    Raises: LabError for an empty document or question, and for a prompt that does not fit.
    """
    checked("document", document)
    line("question", question)
    shown = "\n".join(f"Q: {line('example', one)}\nA: {line('example', other)}" for one, other in pairs(examples))
    asked = filled(prompt, document=document.strip(), examples=shown, question=question.strip())
    return Plan("answer", (greedy_line(lab, asked, max_new_tokens),), None)


def greedy_line(lab: Lab, prompt: str, max_new_tokens: int) -> Request:
    """The rest of a prompt's last line, always the most probable token."""
    return request(lab, prompt, max_new_tokens=max_new_tokens, temperature=0, stop="\n")


def summarize(lab: Lab, text: str, **options) -> Done:
    """A summary; the options are those of `summary_plan`. Example: summarize(lab, article).text"""
    return summary_plan(lab, text, **options).carried_out()


def translate(lab: Lab, text: str, **options) -> Done:
    """A translation; the options are those of `translation_plan`. Example: translate(lab, "The moon is round.").text"""
    return translation_plan(lab, text, **options).carried_out()


def answer(lab: Lab, document: str, question: str, **options) -> Done:
    """An answer; the options are those of `answer_plan`. Example: answer(lab, "The moon is round.", "What is it?").text"""
    return answer_plan(lab, document, question, **options).carried_out()


def filled(prompt: str, **parts: str) -> str:
    """A prompt with its parts in their places; braces elsewhere, and in the parts, stay as they are.

    Raises: LabError where a place is missing, or there twice.
    """
    if not isinstance(prompt, str):
        raise LabError(f"the prompt {prompt!r} is no text")
    for name in parts:
        if prompt.count(f"{{{name}}}") != 1:
            raise LabError(
                f"the prompt {prompt[:40]!r} has {{{name}}} {prompt.count(f'{{{name}}}')} times; write it once"
            )
    places = re.compile("|".join(rf"\{{({name})\}}" for name in parts))
    return places.sub(lambda found: parts[found[found.lastindex]], prompt)


def first_sentences(text: str, count: int) -> str:
    """The first sentences of a text, as the paper cuts them: up to a ., ! or ? before a space; all of it where there are fewer."""
    text, at = text.strip(), 0
    for _ in range(count):
        found = SENTENCE.match(text, at)
        if not found:
            return text
        at = found.end()
    return text[:at]


def split(lab: Lab, text: str, room: int) -> list[str]:
    """A text in parts of at most so many tokens: between sentences, where one is too long between words, else anywhere."""
    if len(lab.encode(text)) <= room:
        return [text]
    for border in (r"(?<=[.!?\n])\s+", r"\s+"):
        pieces = [piece for piece in re.split(border, text) if piece]
        if len(pieces) > 1:
            break
    else:
        half = len(text) // 2
        return [*split(lab, text[:half], room), *split(lab, text[half:], room)]
    parts = []
    for piece in pieces:
        longer = f"{parts[-1]} {piece}" if parts else piece
        if parts and len(lab.encode(longer)) <= room:
            parts[-1] = longer
        else:
            parts += split(lab, piece, room)
    return parts


def checked(name: str, text: str) -> str:
    """A text with something in it. Raises: LabError otherwise, and past MAX_TEXT characters."""
    if not isinstance(text, str) or not text.strip():
        raise LabError(f"the {name} is empty; type at least one character")
    if len(text) > MAX_TEXT:
        raise LabError(f"the {name} has {len(text):,} characters; the limit is {MAX_TEXT:,}: shorten it")
    return text


def line(name: str, text: str) -> str:
    """A text of one line, stripped. Raises: LabError for several lines, and as `checked`."""
    stripped = checked(name, text).strip()
    if len(stripped.splitlines()) > 1:
        raise LabError(f"the {name} {stripped[:40]!r} has several lines; the recipe takes one: join them")
    return stripped


def pairs_of(lines: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs from lines of 'one = other'; empty lines are none. Raises: LabError for a line that is no pair."""
    for one in (lines := [one for one in lines if one.strip()]):
        if " = " not in one:
            raise LabError(f"example {one[:40]!r} is no pair; write it as 'one = other'")
    return [tuple(one.split(" = ", 1)) for one in lines]


def pairs(examples: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Examples as pairs. Raises: LabError for what is none, and for none at all."""
    found = [tuple(one) if isinstance(one, (tuple, list)) else (one,) for one in examples]
    if not found or any(len(one) != 2 for one in found):
        raise LabError("examples are pairs of two texts; give at least one")
    return found

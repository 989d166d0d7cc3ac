"""Presets of the Generate tab: prompts to continue, and the GPT-2 paper's tasks as prompts, with what to expect of them."""

from typing import NamedTuple

from gpt2lab.app.language import _
from gpt2lab.generation.recipes import PAIRS, TASKS
from gpt2lab.generation.tasks import filled

PROMPTS = ("The moon is", "In 1867, Marie Curie was born in", "The river Nile flows through", " = Coffee = \n")
ARTICLE = (
    "The honey bee is a social insect. It lives in a nest of wax, which it builds itself. In summer a colony has tens of "
    "thousands of workers and one queen, which lays all of its eggs. Workers gather nectar, from which they make honey, "
    "and pollen, with which they feed the young. In winter the colony lives on the honey that it has stored."
)
DOCUMENT = "The honey bee is a social insect. A colony has one queen, which lays all of its eggs."
SHOWN = {
    "summarize": {"text": ARTICLE},
    "translate": {"examples": "\n".join(" = ".join(pair) for pair in PAIRS), "text": "The sea is deep."},
    "answer": {
        "document": DOCUMENT,
        "examples": "Q: What is a honey bee?\nA: A social insect.",
        "question": "Who lays the eggs?",
    },
}


class Preset(NamedTuple):
    """What a preset sets in the form, and what to expect of it."""

    title: str
    prompt: str
    max_new_tokens: int
    temperature: float
    top_k: int
    stop_at_line: bool
    note: str = ""


def presets() -> list[Preset]:
    """Prompts to continue as the form's defaults do, then the tasks with the paper's settings."""
    titles = {"summarize": _("Summarise"), "translate": _("Translate"), "answer": _("Answer a question")}
    notes = {
        "summarize": _(
            "GPT-2 paper, section 3.6: 100 tokens after “TL;DR:”, drawn from the 2 most probable; the first 3 sentences are "
            "the summary. The 1.5-billion model was barely better than 3 random sentences of the article. The built-in "
            "model is too small for it."
        ),
        "translate": _(
            "GPT-2 paper, section 3.7: pairs of sentences, then the most probable tokens up to the end of the line. The "
            "1.5-billion model reached 5 BLEU from English to French, less than a word-by-word dictionary. The built-in "
            "model is too small for it."
        ),
        "answer": _(
            "GPT-2 paper, section 3.5: a document, questions with answers, then the most probable tokens up to the end of "
            "the line. The 1.5-billion model reached 55 F1 on CoQA. The built-in model is too small for it."
        ),
    }
    found = [Preset(prompt.strip(), prompt, 80, 0.8, 0, False) for prompt in PROMPTS]
    for name, parts in SHOWN.items():
        sampled = name == "summarize"
        how = (1.0, 2, False) if sampled else (0.0, 0, True)
        found.append(Preset(titles[name], filled(TASKS[name].prompt, **parts), TASKS[name].tokens, *how, notes[name]))
    return found

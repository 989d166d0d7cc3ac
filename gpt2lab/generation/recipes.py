"""The tasks of the GPT-2 paper: prompts, decoding settings and reported results."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A task of the paper: prompt, decoding settings and reported result.

    prompt   with a place for each part, in braces
    tokens   new ones, at most
    recipe   how the paper generates
    expect   what the paper measured, with GPT-2 of 1.5 billion parameters
    source   where in the paper
    """

    prompt: str
    tokens: int
    recipe: str
    expect: str
    source: str


TASKS: dict[str, Task] = {
    "summarize": Task(
        "{text}\nTL;DR:",
        100,
        "100 tokens drawn among the 2 most probable at each step; the first 3 sentences are the summary.",
        "Barely better than 3 random sentences of the article (mean ROUGE F1 21.40 against 20.98 on CNN and Daily "
        "Mail), and details such as numbers are often confused.",
        "section 3.6, table 4",
    ),
    "translate": Task(
        "{examples}\n{text} =",
        60,
        "Pairs of an English sentence = its French one, then greedy; the first sentence is the translation.",
        "5 BLEU from English to French on WMT-14, somewhat worse than a word-by-word dictionary; 11.5 from French to "
        "English. Its training text held 10 MB of French.",
        "section 3.7",
    ),
    "answer": Task(
        "{document}\n\n{examples}\nQ: {question}\nA:",
        40,
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
QUESTIONS = (("Is this text written in English?", "Yes, it is."),)

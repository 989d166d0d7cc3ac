"""The paper's tasks on the command line: `task summarize`, `task translate`, `task answer`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from gpt2lab.cli.models import load, quiet
from gpt2lab.cli.output import Json, Model, one_line, report
from gpt2lab.data.textfiles import read_text
from gpt2lab.errors import LabError
from gpt2lab.generation import tasks
from gpt2lab.generation.recipes import SMALLER, TASKS
from gpt2lab.generation.tasks import pairs_of

task_app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="The GPT-2 paper's tasks: summarise, translate, answer."
)
Prompt = Annotated[str | None, typer.Option(help="the prompt, with its places in braces; the paper's if left out")]
Tokens = Annotated[int | None, typer.Option(help="tokens to generate at most; the recipe's number if left out")]
Examples = Annotated[list[str] | None, typer.Option(help="a pair, as 'one = other'; may be given again")]
MAX_BYTES = 1_000_000  # of a file


@task_app.command()
def summarize(
    text: Annotated[str | None, typer.Option(help="the text; one too long is summarised in parts")] = None,
    file: Annotated[Path | None, typer.Option(help="the text, from a UTF-8 file")] = None,
    model: Model = "auto",
    sentences: Annotated[int, typer.Option(help="how many of what follows are the summary")] = 3,
    top_k: Annotated[int, typer.Option(help="draw among the k most probable tokens")] = 2,
    seed: Annotated[int, typer.Option(help="the same seed gives the same text")] = 0,
    prompt: Prompt = None,
    max_new_tokens: Tokens = None,
    as_json: Json = False,
) -> None:
    """Summarise a text: the first sentences generated after it and `TL;DR:`."""
    if (text is None) == (file is None):
        raise LabError("give the text as --text or as --file, one of them")
    text = read_text(file, MAX_BYTES) if file else text
    options = {"sentences": sentences, "top_k": top_k, "seed": seed}
    run_task("summarize", model, as_json, prompt, max_new_tokens, text=text, **options)


@task_app.command()
def translate(
    text: Annotated[str, typer.Option(help="the sentence")],
    model: Model = "auto",
    example: Examples = None,
    prompt: Prompt = None,
    max_new_tokens: Tokens = None,
    as_json: Json = False,
) -> None:
    """Translate a sentence as in the examples, English to French if none are given."""
    run_task("translate", model, as_json, prompt, max_new_tokens, text=text, **examples_of(example))


@task_app.command()
def answer(
    document: Annotated[str, typer.Option(help="the text that holds the answer")],
    question: Annotated[str, typer.Option(help="the question")],
    model: Model = "auto",
    example: Examples = None,
    prompt: Prompt = None,
    max_new_tokens: Tokens = None,
    as_json: Json = False,
) -> None:
    """Answer a question about a document, after example questions and answers."""
    run_task(
        "answer", model, as_json, prompt, max_new_tokens, document=document, question=question, **examples_of(example)
    )


def examples_of(examples: list[str] | None) -> dict:
    """Pairs from 'one = other'; nothing where none are given. Raises: LabError for what is no pair."""
    return {"examples": pairs_of(examples)} if examples else {}


def run_task(name: str, model: str, as_json: bool, prompt: str | None, max_new_tokens: int | None, **options) -> None:
    """Run a task and print its result; what to expect of it goes to standard error."""
    quiet()

    given = {"prompt": prompt, "max_new_tokens": max_new_tokens}
    options |= {option: value for option, value in given.items() if value is not None}
    done = getattr(tasks, name)(load(model), **options)
    recipe = TASKS[name]
    if as_json:
        written = [one.text for one in done.generations]
        values = {"task": name, "text": done.text, "prompts": done.prompts, "generated": written}
        report(values | {"recipe": recipe.recipe, "expect": recipe.expect, "source": recipe.source}, as_json)
        return
    print(f"{one_line(recipe.expect)} {SMALLER}", file=sys.stderr)
    if not done.text:
        print("nothing was written: the model ended the text, or its line, at once", file=sys.stderr)
    print(done.text)

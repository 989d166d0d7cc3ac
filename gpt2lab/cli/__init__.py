"""The command line: one command per capability.

Results go to standard output, progress to standard error. With --json, standard output is one JSON
object on one line. Exit status 0; 2 for bad usage or input, with one line that says why; 1 for a fault.
"""

import atexit
import os
import sys
from io import TextIOWrapper
from typing import ClassVar

import typer

from gpt2lab.cli.lazy import LazyGroup
from gpt2lab.cli.output import fail
from gpt2lab.errors import LabError


class Commands(LazyGroup):
    """The commands of `gpt2lab`."""

    places: ClassVar = {  # place of its function or group, and its first line of help; the place is imported when it is called
        "demo": (
            "finetune:demo",
            "Fine-tune, evaluate, generate and inspect the built-in model on the sample text, offline, in one to two minutes.",
        ),
        "finetune": ("finetune:finetune", "Fine-tune a model; losses, checkpoints and the model go into a run folder."),
        "preview": (
            "preview:preview",
            "Show a text as a model is trained on it: articles, tokens and blocks per split, and the first block.",
        ),
        "runs": (
            "runs:runs_app",
            "Runs: list, show, stop, pause, resume, rename, delete, score, report, history, changes.",
        ),
        "perplexity": (
            "perplexity:perplexity",
            "Measure the perplexity of a text by named protocols, with exact counts, published figures and 95 % intervals.",
        ),
        "generate": (
            "generate:generate",
            "Generate text from a prompt; with --json, every step with its probability, rank, entropy and alternatives.",
        ),
        "task": ("task:task_app", "The GPT-2 paper's tasks: summarise, translate, answer."),
        "explore": (
            "explore:explore",
            "Save the Explore page of a text: one offline page of linked views, or a picture.",
        ),
        "attention": (
            "attention:attention",
            "Save the attention weights of a text, or of two models or texts, as a page, an image, a table or arrays.",
        ),
        "inspect": (
            "inspect:inspect",
            "Inspect a model on a text: surprisal, logit lens, head scores, attribution, ablation, patching, walkthrough.",
        ),
        "app": ("app:app", "Open the app in the browser."),
    }


commands = Commands(
    name="gpt2lab", help="A laboratory for GPT-2: fine-tune it, measure it, and see what happens inside."
)
UsageError = typer.BadParameter.__base__  # typer names no common class of its own for bad usage


def main() -> None:
    """Run the command that the arguments name, and end the process with its status."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character shows its code, and no fault
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    ended_well: list[bool] = []
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        atexit.register(lambda: leave() if ended_well else None)  # registered first, it runs last
    try:
        status = commands(standalone_mode=False)  # typer returns 130 for an interrupt, as shells count it
    except LabError as error:
        fail(str(error))
    except UsageError as error:  # type: ignore[misc]  # to mypy, __base__ may be no exception
        fail(f"{error.format_message().rstrip('.')}; see --help")
    if status:
        sys.exit(status)
    ended_well.append(True)


def leave() -> None:
    """End one of torchrun's processes without tearing it down: now and then its communication threads abort it there,
    and torchrun then calls a run that is complete a failure."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)

"""Models and names of models for the commands, with what is unusual of them on standard error."""

import sys
import warnings
from collections.abc import Iterable

from transformers.utils import logging

from gpt2lab.cli.output import is_first
from gpt2lab.data.sources import auto_choice
from gpt2lab.model.lab import Lab, load_model


def quiet() -> None:
    """Keep transformers' own bars and notices off the screen; its warnings stay."""
    logging.disable_progress_bar()
    warnings.formatwarning = lambda message, *_, **__: (
        f"gpt2lab: {message}\n"
    )  # one line, without a place in the source


def resolve(model: str, data: str = "", *, training: bool = False) -> tuple[str, str]:
    """Return the names with "auto" replaced, and say on standard error what it stands for and why."""
    if "auto" not in (model, data):
        return model, data
    choice = auto_choice(training=training)
    chosen = (choice.model if model == "auto" else model, choice.data if data == "auto" else data)
    if is_first():
        named = " and ".join(name for name, asked in zip(chosen, (model, data)) if asked == "auto")
        print(f"auto: {named} ({choice.reason})", file=sys.stderr)
    return chosen


def load(model: str) -> Lab:
    """Load a model by name, as load_model, and print what is unusual of it; "auto" is resolved as for looking at one."""
    lab = load_model(resolve(model)[0])
    print_notes(lab.name, lab.notes)
    return lab


def print_notes(name: str, notes: Iterable[str]) -> None:
    """Print sentences on a model or a text, a line each, on standard error."""
    for note in notes if is_first() else ():
        print(f"{name}: {note}", file=sys.stderr)

"""The command line: one command per capability.

Results go to standard output, progress to standard error. With --json, standard output is one JSON
object on one line. Exit status 0; 2 for bad usage or input, with one line that says why; 1 for a fault.
"""

import atexit
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from gpt2lab.cli.inside import inspect
from gpt2lab.cli.looking import attention, generate
from gpt2lab.cli.measuring import perplexity
from gpt2lab.cli.output import Runs, fail
from gpt2lab.cli.runs import runs_app
from gpt2lab.cli.tasks import task_app
from gpt2lab.cli.training import demo, finetune
from gpt2lab.errors import LabError

app = typer.Typer(
    name="gpt2lab",
    help="A laboratory for GPT-2: fine-tune it, measure it, and see what happens inside.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
UsageError = typer.BadParameter.__base__  # typer names no common class of its own for bad usage


def main() -> None:
    """Run the command that the arguments name, and end the process with its status."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character shows its code, and no fault
        stream.reconfigure(errors="backslashreplace")
    ended_well = []
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        atexit.register(lambda: ended_well and leave())  # registered first, it runs last
    try:
        status = app(standalone_mode=False)  # typer returns 130 for an interrupt, as shells count it
    except LabError as error:
        fail(str(error))
    except UsageError as error:
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


def serve(
    host: Annotated[str, typer.Option(help="127.0.0.1: this machine alone")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 7860,
    runs: Runs = Path("runs"),
) -> None:
    """Open the app in the browser."""
    from gpt2lab.app import build_app
    from gpt2lab.app import serve as serve_page

    serve_page(build_app(runs), host=host, port=port)


app.command()(demo)
app.command()(finetune)
app.add_typer(runs_app, name="runs")
app.command()(perplexity)
app.command()(generate)
app.add_typer(task_app, name="task")
app.command()(attention)
app.command()(inspect)
app.command(name="app")(serve)

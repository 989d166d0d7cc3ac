"""The process of a run, which reads its settings from JSON.

    python -m gpt2lab.training.worker FOLDER [--queue]    train or resume the run of a folder, as its config.json says
    python -m gpt2lab.training.worker RUNS --estimate     print the cost of a run in a folder of runs as a line of JSON;
                                                          the settings come as JSON on standard input

An error that the user can act on is in status.json, or in the line of JSON as {"error": its template, "values": …}.
Exit status 0; 2 for such an error, 1 for a fault. The command line uses `foreground` for a run in its own process.
"""

import argparse
import json
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from io import TextIOWrapper
from pathlib import Path

from accelerate import PartialState
from transformers.utils import logging

from gpt2lab.errors import LabError
from gpt2lab.pages.run_report import write_report
from gpt2lab.training import runs
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.cost import estimate_cost
from gpt2lab.training.finetuning import resume
from gpt2lab.training.prepare import config_of, settings_line
from gpt2lab.training.result import FinetuneResult


def main() -> int:
    """Do what the arguments ask for; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m gpt2lab.training.worker")
    parser.add_argument("folder", type=Path, help="The run's folder; with --estimate, the folder of runs.")
    parser.add_argument("--queue", action="store_true", help="Wait for the run that holds the machine.")
    parser.add_argument("--estimate", action="store_true", help="Estimate the cost of the settings on standard input.")
    options = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):  # a log that lacks a character shows its code
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.disable_progress_bar()
    try:
        if options.estimate:
            estimate(options.folder)
        else:
            foreground(partial(resume, options.folder, queue=options.queue))
            status = runs.read_status(options.folder)
            print(f"{status.state}: {status.message}" if status.message else status.state)
    except LabError as error:
        print(error, file=sys.stderr)
        if options.estimate:
            print(json.dumps({"error": error.template, "values": error.values}, default=_plain))
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _plain(value):
    """An error's value as JSON has it: numpy's and torch's numbers as numbers, anything else as text."""
    return value.item() if hasattr(value, "item") else str(value)


def estimate(runs_dir: Path) -> None:
    """Print the cost of a run with the settings on standard input. Raises: LabError for bad settings."""
    with redirect_stdout(sys.stderr):  # for what libraries print
        cost = estimate_cost(TrainConfig(**json.load(sys.stdin)), runs_dir)
    print(json.dumps(cost.record()))


def foreground(train: Callable[..., FinetuneResult | None]) -> FinetuneResult | None:
    """Train in this process, where Ctrl-C and the system's request to end pause the run, and write its report.

    train  `finetune` or `resume` with all arguments but on_start
    """
    with redirect_stdout(sys.stderr):  # for what libraries print
        result = train(on_start=_begin)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # there is nothing left to pause
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if result and result.model_dir:
        add_report(result.folder)
    elif result:
        where = f"{result.run} --runs {result.folder.parent}"
        print(f"paused at step {result.steps}; `gpt2lab runs resume {where}` continues it", file=sys.stderr)
    return result


def _begin(folder: Path) -> None:
    """Print the run's name, notes and settings, in the first process alone, and let signals pause it."""
    if PartialState().is_main_process:
        print(f"run {folder.name} in {folder.parent}", file=sys.stderr)
        config = runs.read_config(folder)
        for note in config.get("notes", []):
            print(f"note: {note}", file=sys.stderr)
        print(settings_line(config_of(config)), file=sys.stderr, flush=True)
    install_pause_handlers(folder)


def install_pause_handlers(folder: Path) -> None:
    """From now on Ctrl-C and the system's request to end pause a run. A second Ctrl-C breaks it off."""

    def pause(number, frame):
        runs.request_action(folder, "pause")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\npausing at the next step; once more to break off", file=sys.stderr, flush=True)

    signal.signal(signal.SIGINT, pause)
    signal.signal(signal.SIGTERM, pause)


def add_report(folder: Path) -> None:
    """Write a run's report.html. If that fails, print how to try again; the run itself is complete."""
    again = f"`gpt2lab runs report {folder.name} --runs {folder.parent}` writes it"
    try:
        write_report(folder)
    except LabError as error:
        print(f"there is no report.html ({error}); {again}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"there is no report.html yet; {again}", file=sys.stderr)
        raise


if __name__ == "__main__":
    sys.exit(main())

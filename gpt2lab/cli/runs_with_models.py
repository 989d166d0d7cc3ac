"""The commands of `runs` that load a model: resume, score and report."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from gpt2lab.cli.finetune import resume_foreground
from gpt2lab.cli.models import quiet
from gpt2lab.cli.output import Json, Runs, progress, report
from gpt2lab.cli.runs import RunId
from gpt2lab.pages.run_report import write_report
from gpt2lab.progress import finished
from gpt2lab.training import jobs
from gpt2lab.training.full_validation import load_scoring
from gpt2lab.training.runs import find_run


def write_page(run: RunId, runs: Runs = Path("runs"), as_json: Json = False) -> None:
    """Write a run's report.html again: curves, samples, memorised passages, heads."""
    quiet()
    report({"run": run, "report": str(write_report(find_run(runs, run)))}, as_json)


def score(run: RunId, runs: Runs = Path("runs"), as_json: Json = False) -> None:
    """Score the whole validation split before and after a run whose validations scored a sample of it."""
    quiet()
    scoring = load_scoring(find_run(runs, run))
    with progress("blocks") as show:
        result = finished(scoring.steps(), partial(show, "validation split"))
    change = asdict(result)["whole_validation"] if as_json else str(result.whole_validation)
    report({"run": run, "whole_validation": change}, as_json)


def resume(
    run: RunId,
    runs: Runs = Path("runs"),
    detach: Annotated[
        bool, typer.Option("--detach", help="in a process of its own; this command ends at once")
    ] = False,
    queue: Annotated[bool, typer.Option("--queue", help="wait for the run that holds the machine")] = False,
    as_json: Json = False,
) -> None:
    """Resume a stopped, failed or crashed run from its last checkpoint."""
    quiet()
    folder = find_run(runs, run)
    if not detach:
        return resume_foreground(folder, queue, as_json)
    jobs.resume_run(folder, queue=queue)
    report({"run": run, "folder": str(folder), "state": "queued"}, as_json)
    return None

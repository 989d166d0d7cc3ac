"""The `runs` command: list, show, stop, pause, rename and delete runs; the commands that load a model are imported when called."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from gpt2lab.cli.lazy import LazyGroup
from gpt2lab.cli.output import Json, Runs, report
from gpt2lab.errors import LabError
from gpt2lab.results import readable
from gpt2lab.training import jobs
from gpt2lab.training.runs import (
    delete_run,
    find_run,
    list_runs,
    log_tail,
    read_config,
    read_lines,
    read_metrics,
    read_status,
    rename_run,
    run_bytes,
)

RunId = Annotated[str, typer.Argument(metavar="ID", help="a run's id, as `runs list` shows it")]


class RunCommands(LazyGroup):
    """The commands of `gpt2lab runs` that load a model."""

    places: ClassVar = {
        "resume": ("runs_with_models:resume", "Resume a stopped, failed or crashed run from its last checkpoint."),
        "score": (
            "runs_with_models:score",
            "Score the whole validation split before and after a run whose validations scored a sample of it.",
        ),
        "report": (
            "runs_with_models:write_page",
            "Write a run's report.html again: curves, samples, memorised passages, heads.",
        ),
        "history": (
            "history:history",
            "Show how head scores, surprisal and losses changed over a run, or over the training of the built-in model.",
        ),
        "changes": (
            "history:changes",
            "Show which heads a run changed: how far their attention moved, when, and what their ablation costs now.",
        ),
    }


runs_app = typer.Typer(
    cls=RunCommands,
    help="Runs: list, show, stop, pause, resume, rename, delete, score, report, history, changes.",
    invoke_without_command=True,
    add_completion=False,
)


@runs_app.callback()
def runs_default(context: typer.Context, runs: Runs = Path("runs"), as_json: Json = False) -> None:
    """List, show, stop, pause, resume, rename, delete, score or report runs, see their history and changes; without a subcommand, list them."""
    given = {"runs": runs, "as_json": as_json}
    names = ("list", "show", "stop", "pause", "resume", "rename", "delete", "score", "report", "history", "changes")
    context.default_map = dict.fromkeys(names, given)
    if context.invoked_subcommand is None:
        runs_list(runs, as_json)


@runs_app.command("list")
def runs_list(runs: Runs = Path("runs"), as_json: Json = False) -> None:
    """List all runs, newest first."""
    found = list_runs(runs)
    if as_json:
        keys = ("id", "state", "step", "total_steps", "model", "data", "created", "message")
        return report({"runs": [{key: getattr(run, key) for key in keys} for run in found]}, as_json)
    if not found:
        print(f"no runs in {runs}")
    rows = [(run.id, run.state, run.progress, f"{run.model} on {run.data}", run.message) for run in found]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip())
    return None


@runs_app.command("show")
def runs_show(run: RunId, runs: Runs = Path("runs"), as_json: Json = False) -> None:
    """Show one run: its state, settings, losses, and the end of its log."""
    folder = find_run(runs, run)
    status, config, metrics = read_status(folder), read_config(folder), read_metrics(folder)
    if as_json:
        samples = read_lines(folder / "samples.jsonl")
        shown = {"id": run, **asdict(status), "config": config, "metrics": [asdict(m) for m in metrics]}
        return report(shown | {"samples": samples, "log": log_tail(folder)}, as_json)
    names = (
        "state",
        "step",
        "total_steps",
        "best_step",
        "loss_before",
        "loss_best",
        "tokens_per_second",
        "eta_seconds",
    )
    known = {name: getattr(status, name) for name in (*names, "message") if getattr(status, name) not in (None, "")}
    report({"id": run, "model": config.get("model"), "data": config.get("data"), **known}, as_json)
    for metric in metrics:
        if metric.split == "validation":
            print(f"step {metric.step:>6}  validation loss {metric.loss:.4f}  perplexity {readable(metric.perplexity)}")
    print(log_tail(folder).strip()[-600:])
    return None


def end(run: str, runs: Path, want: str, as_json: bool) -> None:
    """Stop or pause a run and print its last status."""
    status = jobs.stop(find_run(runs, run), want=want)
    report({"id": run, "state": status.state, "step": status.step, "message": status.message}, as_json)


@runs_app.command("stop")
def runs_stop(run: RunId, runs: Runs = Path("runs"), as_json: Json = False) -> None:
    """Stop a run after a last validation and keep its model; it can be resumed."""
    end(run, runs, "stop", as_json)


@runs_app.command("pause")
def runs_pause(run: RunId, runs: Runs = Path("runs"), as_json: Json = False) -> None:
    """Pause a run: save a checkpoint only, which is quicker than stop; resume continues from there."""
    end(run, runs, "pause", as_json)


@runs_app.command("rename")
def runs_rename(
    run: RunId,
    new: Annotated[str, typer.Argument(metavar="NEW", help="1 to 80 of a-z 0-9 . _ -, a letter or digit first")],
    runs: Runs = Path("runs"),
    as_json: Json = False,
) -> None:
    """Give a run that has ended another id."""
    report({"run": new, "folder": str(rename_run(runs, run, new))}, as_json)


@runs_app.command("delete")
def runs_delete(
    run: RunId,
    runs: Runs = Path("runs"),
    yes: Annotated[bool, typer.Option("--yes", help="without asking")] = False,
    as_json: Json = False,
) -> None:
    """Delete a run that has ended, with its model and checkpoints."""
    size = f"{run_bytes(find_run(runs, run)) / 1e6:,.0f} MB"
    if not yes and not confirmed(f"Delete run {run} with its model and checkpoints ({size})?"):
        raise LabError("nothing was deleted; answer y, or give --yes")
    delete_run(runs, run)
    report({"run": run, "deleted": True}, as_json)


def confirmed(question: str) -> bool:
    """Ask on the terminal; no where nobody answers."""
    try:
        return typer.confirm(question, err=True)
    except typer.Abort:
        return False

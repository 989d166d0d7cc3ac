"""The commands `runs history` and `runs changes`: the inside of a model over the steps of its training."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gpt2lab.cli.models import quiet
from gpt2lab.cli.output import Json, Runs, check_out, print_table, report, write
from gpt2lab.cli.runs import RunId
from gpt2lab.errors import choice
from gpt2lab.figures.history import VIEWS
from gpt2lab.inspection.heads import SCORES
from gpt2lab.pages.export import export, format_of
from gpt2lab.results import Result
from gpt2lab.training.head_changes import head_changes
from gpt2lab.training.history import History, read_history

Out = Annotated[Path | None, typer.Option(help="a file in .html, .png, .svg, .csv, .npz or .json")]
SHOWN = 10  # rows of the table of heads


def history(
    run: RunId,
    runs: Runs = Path("runs"),
    view: Annotated[str, typer.Option(help=f"of a .png or .svg: {', '.join(VIEWS)}")] = "scores",
    score: Annotated[str, typer.Option(help=", ".join(SCORES))] = "induction",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Show how head scores, surprisal and losses changed over a run, or over the training of the built-in model."""
    quiet()
    choice("view", view, VIEWS)
    choice("score", score, SCORES)
    check_out(out)
    found = read_history(run, runs)
    drawn = {"view": view, "score": score} if out and format_of(out) in ("png", "svg") else {}
    if not given(found, out, as_json, **drawn):
        print_course(found, score)


def print_course(found: History, score: str) -> None:
    """Print the highest head's score, surprisal and losses at every observed step."""
    layer, head = found.top(score)
    losses = {name: course for name, course in found.losses.items() if (course == course).any()}
    titles = ["step", f"{score} of {layer}.{head}", "surprisal", *losses]
    columns = [found.head_scores[score][:, layer, head], found.surprisal[:, 1:].mean(1), *losses.values()]
    rows = [[f"{step:,}", *(f"{x:.3f}" if x == x else "" for x in row)] for step, *row in zip(found.steps, *columns)]
    print_table(titles, rows)
    step = found.change_step(score)
    if step is not None:
        print(f"layer {layer}, head {head} passes half of its final {score} score by step {step:,}")


def changes(run: RunId, runs: Runs = Path("runs"), out: Out = None, as_json: Json = False) -> None:
    """Show which heads a run changed: how far their attention moved, when, and what their ablation costs now."""
    quiet()
    check_out(out)
    found = head_changes(run, runs)
    if not given(found, out, as_json):
        head, rows = found.table().text()
        print_table(head, rows[:SHOWN])


def given(result: Result, out: Path | None, as_json: bool, **options: Any) -> bool:
    """Write or print a result as it was asked for; False where nothing was."""
    if out is not None:
        content = export(result, format_of(out), **options)
        write(out, content)
        report({"out": str(out), "bytes": len(content)}, as_json)
    elif as_json:
        report(result.record(), as_json)
    return as_json or out is not None

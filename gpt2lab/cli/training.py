"""The commands `demo` and `finetune`."""

import signal
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from gpt2lab.cli.options import with_options
from gpt2lab.cli.output import (
    Json,
    Runs,
    is_first,
    one_line,
    plain,
    print_notes,
    quiet,
    report,
    resolve,
)
from gpt2lab.errors import LabError
from gpt2lab.results import readable
from gpt2lab.training.config import TrainConfig, parse_eval_tokens


def demo(out: Annotated[Path, typer.Option(help="the folder for the run and its report")] = Path("runs")) -> None:
    """Fine-tune, evaluate, generate and inspect the built-in model on the sample text, offline, in one to two minutes."""
    quiet()
    from gpt2lab.cli.demo_job import run_demo

    done = run_demo(out)
    result = done.result
    change = result.val_perplexity_after / result.val_perplexity_before - 1
    print(
        f"validation perplexity  {readable(result.val_perplexity_before)} → {readable(result.val_perplexity_after)}  ({change:+.0%})"
    )
    print(f"speed                  {result.tokens_per_second:,.0f} tokens/s, {result.seconds:.0f} s of training")
    print(f"\nprompt  {result.prompt}\nbefore {one_line(result.text_before)}\nafter  {one_line(result.text_after)}\n")
    for name in ("previous_token", "induction"):
        heads = ", ".join(f"layer {layer} head {head} ({score:.2f})" for layer, head, score in done.scores.top(name))
        print(f"most {name.replace('_', '-')}-like heads  {heads}")
    print(f"\nmodel   {result.model_dir}\nreport  {done.report}")


@with_options(TrainConfig, flags={"learning_rate": "--lr"})
def finetune(
    *,
    run: Annotated[str | None, typer.Option(help="the run's id; made from date, model and data otherwise")] = None,
    runs: Runs = Path("runs"),
    detach: Annotated[
        bool, typer.Option("--detach", help="in a process of its own; this command ends at once")
    ] = False,
    queue: Annotated[bool, typer.Option("--queue", help="wait for the run that holds the machine")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what it would cost: time, memory, disk")] = False,
    resume: Annotated[
        str | None, typer.Option(help="continue this run with its own settings; other options are ignored")
    ] = None,
    as_json: Json = False,
    **settings,
) -> None:
    """Fine-tune a model; losses, checkpoints and the model go into a run folder.

    Settings that are not given follow from the model's size and the method; they are printed at the start.
    """
    quiet()
    from gpt2lab.training import jobs
    from gpt2lab.training.runs import find_run

    if resume is not None:
        return go_on(find_run(runs, resume), queue, as_json)
    config = TrainConfig(**settings | {"eval_tokens": parse_eval_tokens(settings["eval_tokens"])})
    if dry_run:
        return price(config, runs, as_json)
    if detach:
        folder = jobs.start(config, runs, run=run, queue=queue)
        report({"run": folder.name, "folder": str(folder), "state": "queued"}, as_json)
        return None
    from gpt2lab.training.finetuning import finetune as run_finetune

    config = resolved(config)
    with redirect_stdout(sys.stderr):  # for what libraries print
        result = run_finetune(config, run=run, runs_dir=runs, queue=queue, on_start=begun)
    tell(result, as_json)
    return None


def resolved(config):
    """Return the settings with "auto" replaced, and say what it stands for."""
    model, data = resolve(config.model, config.data, training=True)
    return replace(config, model=model, data=data)


def price(config, runs: Path, as_json: bool) -> None:
    """Print the estimated cost of a run."""
    from gpt2lab.training.cost import preview

    cost = preview(resolved(config), runs)
    in_words = dict(cost.lines())
    report(asdict(cost) | {"in_words": in_words} if as_json else in_words, as_json)


def go_on(folder: Path, queue: bool, as_json: bool) -> None:
    """Resume a run in this process, and print its result."""
    from gpt2lab.training.finetuning import resume

    with redirect_stdout(sys.stderr):  # for what libraries print
        result = resume(folder, queue=queue, on_start=begun)
    tell(result, as_json)


def begun(folder: Path) -> None:
    """Name the run; from now on Ctrl-C and the system's request to end pause it. A second Ctrl-C breaks it off."""
    from gpt2lab.training.prepare import config_of, settings_line
    from gpt2lab.training.runs import ask, read_config

    if is_first():
        print(f"run {folder.name} in {folder.parent}", file=sys.stderr)
        config = read_config(folder)
        print_notes("note", config.get("notes", []))
        print(settings_line(config_of(config)), file=sys.stderr, flush=True)

    def pause(number, frame):
        ask(folder, "pause")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\npausing at the next step; once more to break off", file=sys.stderr, flush=True)

    signal.signal(signal.SIGINT, pause)
    signal.signal(signal.SIGTERM, pause)


def tell(result, as_json: bool) -> None:
    """Print the result of a run; of several processes, only the first has one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # there is nothing left to pause
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if result is None:
        return
    if result.model_dir:
        add_report(result.folder)
    else:
        where = f"{result.run} --runs {result.folder.parent}"
        print(f"paused at step {result.steps}; `gpt2lab runs resume {where}` continues it", file=sys.stderr)
    keys = "run model_dir steps best_step tokens seconds tokens_per_second val_loss_before val_loss_after"
    keys = [*keys.split(), "val_perplexity_before", "val_perplexity_after", "precision", "stopped"]
    values = {key: plain(getattr(result, key)) for key in keys}
    changes = {name: change for name in ("validation", "whole_validation") if (change := getattr(result, name))}
    report(values | {name: asdict(change) if as_json else str(change) for name, change in changes.items()}, as_json)


def add_report(folder: Path) -> None:
    """Write a run's report.html. If that fails, print how to try again; the run itself is complete."""
    from gpt2lab.pages.run_report import write_report

    again = f"`gpt2lab runs report {folder.name} --runs {folder.parent}` writes it"
    try:
        write_report(folder)
    except LabError as error:
        print(f"there is no report.html ({error}); {again}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"there is no report.html yet; {again}", file=sys.stderr)
        raise

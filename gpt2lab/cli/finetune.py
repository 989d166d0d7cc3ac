"""The commands `demo` and `finetune`."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from gpt2lab.cli.demo_job import run_demo
from gpt2lab.cli.models import quiet, resolve
from gpt2lab.cli.options import with_options
from gpt2lab.cli.output import Json, Runs, one_line, plain, report
from gpt2lab.results import perplexity_of, readable
from gpt2lab.training import jobs
from gpt2lab.training.config import TrainConfig, parse_eval_tokens
from gpt2lab.training.cost import estimate_cost
from gpt2lab.training.finetuning import finetune as run_finetune
from gpt2lab.training.finetuning import resume
from gpt2lab.training.presets import PRESETS
from gpt2lab.training.presets import preset as preset_config
from gpt2lab.training.runs import find_run
from gpt2lab.training.worker import foreground


def demo(out: Annotated[Path, typer.Option(help="the folder for the run and its report")] = Path("runs")) -> None:
    """Fine-tune, evaluate, generate and inspect the built-in model on the sample text, offline, in one to two minutes."""
    quiet()

    done = run_demo(out)
    result = done.result
    before, after = map(perplexity_of, result.losses)
    print(f"validation perplexity  {readable(before)} → {readable(after)}  ({after / before - 1:+.0%})")
    print(f"speed                  {result.tokens_per_second:,.0f} tokens/s, {result.seconds:.0f} s of training")
    print(f"\nprompt  {result.prompt}\nbefore {one_line(result.text_before)}\nafter  {one_line(result.text_after)}\n")
    for name in ("previous_token", "induction"):
        heads = ", ".join(f"layer {layer} head {head} ({score:.2f})" for layer, head, score in done.scores.top(name))
        print(f"most {name.replace('_', '-')}-like heads  {heads}")
    print(f"\nmodel   {result.model_dir}\nreport  {done.report}")


@with_options(TrainConfig, flags={"learning_rate": "--lr"})
def finetune(
    context: typer.Context,
    *,
    preset: Annotated[
        str | None,
        typer.Option(
            help=f"settings of a known experiment, in which other options take precedence: {', '.join(PRESETS)}"
        ),
    ] = None,
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

    if resume is not None:
        return resume_foreground(find_run(runs, resume), queue, as_json)
    settings |= {"eval_tokens": parse_eval_tokens(settings["eval_tokens"])}
    if preset is None:
        config = TrainConfig(**settings)
    else:
        config = preset_config(preset, **{name: value for name, value in settings.items() if is_given(context, name)})
    if dry_run:
        return print_cost(config, runs, as_json)
    if detach:
        folder = jobs.start_run(config, runs, run=run, queue=queue)
        report({"run": folder.name, "folder": str(folder), "state": "queued"}, as_json)
        return None

    train = partial(run_finetune, resolved(config), run=run, runs_dir=runs, queue=queue)
    return print_result(foreground(train), as_json)


def is_given(context: typer.Context, name: str) -> bool:
    """Whether an option is on the command line, and not its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def resolved(config):
    """Return the settings with "auto" replaced, and say what it stands for."""
    model, data = resolve(config.model, config.data, training=True)
    return replace(config, model=model, data=data)


def print_cost(config, runs: Path, as_json: bool) -> None:
    """Print the estimated cost of a run."""
    cost = estimate_cost(resolved(config), runs).record()
    report(cost if as_json else cost["in_words"], as_json)


def resume_foreground(folder: Path, queue: bool, as_json: bool) -> None:
    """Resume a run in this process, and print its result."""
    print_result(foreground(partial(resume, folder, queue=queue)), as_json)


def print_result(result, as_json: bool) -> None:
    """Print the result of a run; of several processes, only the first has one."""
    if result is None:
        return
    keys = "run model_dir steps best_step tokens seconds tokens_per_second val_loss_before val_loss_after".split()
    keys += ["val_perplexity_before", "val_perplexity_after", "precision", "stopped"]
    values = {key: plain(getattr(result, key)) for key in keys}
    changes = {name: change for name in ("validation", "whole_validation") if (change := getattr(result, name))}
    report(values | {name: asdict(change) if as_json else str(change) for name, change in changes.items()}, as_json)

"""The command line: one command per capability, each a call of the package and a few lines of output.

Results go to standard output, progress to standard error. With --json, standard output is one JSON
object on one line. Exit status 0; 2 for bad usage or input, with one line that says why; 1 for a fault.
"""

import io
import json
import os
import signal
import sys
import warnings
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from gpt2lab.errors import LabError

app = typer.Typer(
    name="gpt2lab",
    help="A laboratory for GPT-2: fine-tune it, measure it, and see what happens inside.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
UsageError = typer.BadParameter.__base__  # typer names no common class of its own for bad usage

Model = Annotated[str, typer.Option(help="auto, builtin, a hub id such as gpt2, or a folder from save_pretrained")]
Data = Annotated[str, typer.Option(help="auto, sample, wikitext-2, wikitext-2-v1, a folder of splits, or a text file")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object and nothing else")]
Runs = Annotated[Path, typer.Option("--runs", help="the folder that run folders are in")]


def main() -> None:
    """Run the command that the arguments name, and end the process with its status."""
    try:
        status = app(standalone_mode=False)  # typer returns 130 for an interrupt, as shells count it
    except LabError as error:
        fail(str(error))
    except UsageError as error:
        fail(f"{error.format_message().rstrip('.')}; see --help")
    if status:
        sys.exit(status)


def fail(message: str) -> None:
    """End with status 2 and one line."""
    if is_first():
        print(f"gpt2lab: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def is_first() -> bool:
    """Whether this is the first, or the only, of the processes that torchrun or accelerate started."""
    return os.environ.get("RANK", "0") == "0"


def quiet() -> None:
    """Keep transformers' own bars and notices off the screen; its warnings stay."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")  # peft 0.21 asks by the old name


@app.command()
def demo(out: Annotated[Path, typer.Option(help="the folder for the run and its report")] = Path("runs")) -> None:
    """The whole job on the built-in model and sample text: one to two minutes, no network."""
    quiet()
    from gpt2lab.demo import run_demo

    done = run_demo(out)
    result = done.result
    change = result.val_perplexity_after / result.val_perplexity_before - 1
    print(
        f"validation perplexity  {result.val_perplexity_before:.2f} → {result.val_perplexity_after:.2f}  ({change:+.0%})"
    )
    print(f"speed                  {result.tokens_per_second:,.0f} tokens/s, {result.seconds:.0f} s of training")
    print(f"\nprompt  {result.prompt}\nbefore {one_line(result.text_before)}\nafter  {one_line(result.text_after)}\n")
    for name in ("previous_token", "induction"):
        heads = ", ".join(f"layer {layer} head {head} ({score:.2f})" for layer, head, score in done.scores.top(name))
        print(f"most {name.replace('_', '-')}-like heads  {heads}")
    print(f"\nmodel   {result.model_dir}\nreport  {done.report}")


@app.command()
def finetune(
    model: Model = "auto",
    data: Data = "auto",
    run: Annotated[str | None, typer.Option(help="the run's id; made from date, model and data otherwise")] = None,
    method: Annotated[
        str, typer.Option(help="full: all weights; lora: small additions; scratch: from random")
    ] = "full",
    lora_rank: Annotated[int, typer.Option(help="of lora's additions")] = 8,
    steps: Annotated[int | None, typer.Option(help="optimizer steps; or give --epochs")] = None,
    epochs: Annotated[float | None, typer.Option(help="passes over the training text; 1 by default")] = None,
    block_size: Annotated[int | None, typer.Option(help="tokens per block; 256 or the context by default")] = None,
    batch_size: Annotated[int, typer.Option(help="blocks per forward pass, of each process")] = 8,
    grad_accum: Annotated[int, typer.Option(help="forward passes per optimizer step")] = 1,
    lr: Annotated[float, typer.Option(help="peak learning rate; 5e-5 suits gpt2, 5e-4 a small model")] = 5e-4,
    seed: Annotated[int, typer.Option(help="of the order of blocks and of dropout")] = 0,
    warmup: Annotated[float, typer.Option(help="share of the steps over which the rate rises from 0")] = 0.1,
    weight_decay: Annotated[float, typer.Option(help="AdamW's")] = 0.01,
    max_grad_norm: Annotated[float, typer.Option(help="gradients are scaled down to it; 0: never")] = 1.0,
    eval_every: Annotated[int | None, typer.Option(help="steps between validations; ten in all by default")] = None,
    patience: Annotated[int, typer.Option(help="end after so many validations without a better one; 0: never")] = 3,
    save_every: Annotated[int | None, typer.Option(help="steps between checkpoints; --eval-every by default")] = None,
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16")] = "auto",
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="less memory, slower")
    ] = False,
    compile: Annotated[bool, typer.Option("--compile", help="faster steps after minutes of warm-up")] = False,
    report_to: Annotated[str, typer.Option(help="none, tensorboard or trackio")] = "none",
    prompt: Annotated[str | None, typer.Option(help="of the texts written along the way")] = None,
    runs: Runs = Path("runs"),
    detach: Annotated[
        bool, typer.Option("--detach", help="in a process of its own; this command ends at once")
    ] = False,
    queue: Annotated[bool, typer.Option("--queue", help="wait for the run that holds the machine")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what it would cost: time, memory, disk")] = False,
    resume: Annotated[
        str | None, typer.Option(help="go on with this run, as it was told; other options are left out")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fine-tune a model; its run folder gets the losses, the checkpoints and the model."""
    quiet()
    from gpt2lab.training import jobs
    from gpt2lab.training.config import TrainConfig
    from gpt2lab.training.runs import find_run

    if resume is not None:
        return go_on(find_run(runs, resume), queue, as_json)
    config = TrainConfig(
        model=model,
        data=data,
        method=method,
        lora_rank=lora_rank,
        steps=steps,
        epochs=epochs,
        block_size=block_size,
        batch_size=batch_size,
        grad_accum=grad_accum,
        learning_rate=lr,
        warmup=warmup,
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
        seed=seed,
        eval_every=eval_every,
        patience=patience,
        save_every=save_every,
        precision=precision,
        gradient_checkpointing=gradient_checkpointing,
        compile=compile,
        report_to=report_to,
        prompt=prompt,
    )
    if dry_run:
        return price(config, runs, as_json)
    if detach:
        folder = jobs.start(config, runs, run=run, queue=queue)
        report({"run": folder.name, "folder": str(folder), "state": "queued"}, as_json)
        return None
    from gpt2lab.training.finetuning import finetune as run_finetune

    with redirect_stdout(sys.stderr):  # for what libraries print
        result = run_finetune(config, run=run, runs_dir=runs, queue=queue, on_start=begun)
    tell(result, as_json)
    return None


def price(config, runs: Path, as_json: bool) -> None:
    """Say what a run would cost."""
    from gpt2lab.training.cost import preview

    cost = preview(config, runs)
    in_words = dict(cost.lines())
    report(asdict(cost) | {"in_words": in_words} if as_json else in_words, as_json)


def go_on(folder: Path, queue: bool, as_json: bool) -> None:
    """Resume a run in this process, and report what it came to."""
    from gpt2lab.training.finetuning import resume

    with redirect_stdout(sys.stderr):  # for what libraries print
        result = resume(folder, queue=queue, on_start=begun)
    tell(result, as_json)


def begun(folder: Path) -> None:
    """Name the run; from now on Ctrl-C and the system's request to end pause it. A second Ctrl-C breaks it off."""
    from gpt2lab.training.runs import ask

    if is_first():
        print(f"run {folder.name} in {folder.parent}", file=sys.stderr, flush=True)

    def pause(number, frame):
        ask(folder, "pause")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\npausing at the next step; once more to break off", file=sys.stderr, flush=True)

    signal.signal(signal.SIGINT, pause)
    signal.signal(signal.SIGTERM, pause)


def tell(result, as_json: bool) -> None:
    """Report what a run came to; of several processes, only the first has a result."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # there is nothing left to pause
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if result is None:
        return
    if result.model_dir:
        add_report(result.folder)
    else:
        where = f"{result.run} --runs {result.folder.parent}"
        print(f"paused at step {result.steps}; `gpt2lab runs resume {where}` goes on", file=sys.stderr)
    keys = "run model_dir steps best_step tokens seconds tokens_per_second val_loss_before val_loss_after"
    keys = [*keys.split(), "val_perplexity_before", "val_perplexity_after", "stopped"]
    report({key: plain(getattr(result, key)) for key in keys}, as_json)


def add_report(folder: Path) -> None:
    """Write a run's report.html. Where it cannot be written, the run is as good without: that is told, and how to try again."""
    from gpt2lab.reports import write_report

    again = f"`gpt2lab runs report {folder.name} --runs {folder.parent}` writes it"
    try:
        write_report(folder)
    except LabError as error:
        print(f"there is no report.html ({error}); {again}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"there is no report.html yet; {again}", file=sys.stderr)
        raise


runs_app = typer.Typer(help="Runs: list, show, stop, pause, resume, report.", invoke_without_command=True)
app.add_typer(runs_app, name="runs")
RunId = Annotated[str, typer.Argument(metavar="ID", help="a run's id, as `runs list` shows it")]


@runs_app.callback()
def runs_default(context: typer.Context, runs: Runs = Path("runs"), as_json: Json = False) -> None:
    """Runs: list, show, stop, pause, resume, report. Without a word, the list."""
    given = {"runs": runs, "as_json": as_json}
    context.default_map = dict.fromkeys(("list", "show", "stop", "pause", "resume", "report"), given)
    if context.invoked_subcommand is None:
        runs_list(runs, as_json)


@runs_app.command("list")
def runs_list(runs: Runs = Path("runs"), as_json: Json = False) -> None:
    """Every run, newest first."""
    from gpt2lab.training.runs import list_runs

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
    """One run: its state, what it was told, its losses, and the end of its log."""
    from gpt2lab.training.runs import find_run, log_tail, read_config, read_lines, read_metrics, read_status

    folder = find_run(runs, run)
    status, config, metrics = read_status(folder), read_config(folder), read_metrics(folder)
    if as_json:
        samples = read_lines(folder / "samples.jsonl")
        shown = {"id": run, **asdict(status), "config": config, "metrics": [asdict(m) for m in metrics]}
        return report(shown | {"samples": samples, "log": log_tail(folder)}, as_json)
    told = ("state", "step", "total_steps", "best_step", "loss_before", "loss_best", "tokens_per_second", "eta_seconds")
    known = {name: getattr(status, name) for name in (*told, "message") if getattr(status, name) not in (None, "")}
    report({"id": run, "model": config.get("model"), "data": config.get("data"), **known}, as_json)
    for metric in metrics:
        if metric.split == "validation":
            print(f"step {metric.step:>6}  validation loss {metric.loss:.4f}  perplexity {metric.perplexity:.2f}")
    print(log_tail(folder).strip()[-600:])
    return None


def end(run: str, runs: Path, want: str, as_json: bool) -> None:
    """Stop or pause a run and say how it ended."""
    from gpt2lab.training import jobs
    from gpt2lab.training.runs import find_run

    status = jobs.stop(find_run(runs, run), want=want)
    report({"id": run, "state": status.state, "step": status.step, "message": status.message}, as_json)


@runs_app.command("stop")
def runs_stop(run: RunId, runs: Runs = Path("runs"), as_json: Json = False) -> None:
    """End a run now and keep a model of what it has learned; it can be resumed."""
    end(run, runs, "stop", as_json)


@runs_app.command("pause")
def runs_pause(run: RunId, runs: Runs = Path("runs"), as_json: Json = False) -> None:
    """End a run for now, with a checkpoint only: quicker than stop; resume goes on from there."""
    end(run, runs, "pause", as_json)


@runs_app.command("report")
def runs_report(run: RunId, runs: Runs = Path("runs"), as_json: Json = False) -> None:
    """Write a run's report.html again: curves, texts, what was learned by heart, heads."""
    quiet()
    from gpt2lab.reports import write_report
    from gpt2lab.training.runs import find_run

    report({"run": run, "report": str(write_report(find_run(runs, run)))}, as_json)


@runs_app.command("resume")
def runs_resume(
    run: RunId,
    runs: Runs = Path("runs"),
    detach: Annotated[
        bool, typer.Option("--detach", help="in a process of its own; this command ends at once")
    ] = False,
    queue: Annotated[bool, typer.Option("--queue", help="wait for the run that holds the machine")] = False,
    as_json: Json = False,
) -> None:
    """Go on with a stopped, failed or crashed run from its last checkpoint."""
    quiet()
    from gpt2lab.training import jobs
    from gpt2lab.training.runs import find_run

    folder = find_run(runs, run)
    if not detach:
        return go_on(folder, queue, as_json)
    jobs.resume(folder, queue=queue)
    report({"run": run, "folder": str(folder), "state": "queued"}, as_json)
    return None


@app.command()
def perplexity(
    model: Model = "auto",
    data: Data = "auto",
    split: Annotated[str, typer.Option(help="train, validation or test")] = "test",
    protocol: Annotated[str, typer.Option(help="sliding: windows over the joined rows")] = "sliding",
    context: Annotated[int | None, typer.Option(help="tokens per window; the model's context by default")] = None,
    stride: Annotated[int | None, typer.Option(help="tokens between windows; the context by default")] = None,
    as_json: Json = False,
) -> None:
    """Perplexity of a text, with exact counts and a 95 % interval over articles."""
    quiet()
    if protocol != "sliding":
        raise LabError(f"protocol {protocol!r} is unknown; use sliding")
    from gpt2lab.model import load_model
    from gpt2lab.scoring import perplexity as measure
    from gpt2lab.sources import resolve_auto
    from gpt2lab.text import load_text

    model, data = resolve_auto(model, data)
    articles = load_text(data).split(split)
    lab = load_model(model)
    with progress("windows") as show:
        result = measure(lab, articles, context=context, stride=stride, on_progress=show)
    derived = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")
    line = asdict(result) | {name: getattr(result, name) for name in derived}
    if as_json:
        report({"model": model, "data": data, "split": split, "results": [line]}, as_json)
    else:
        report({"model": model, "data": data, "split": split, **line}, as_json)


@app.command()
def generate(
    prompt: Annotated[str, typer.Option(help="the text to go on from")],
    model: Model = "auto",
    max_new_tokens: Annotated[int, typer.Option(help="tokens to generate at most")] = 60,
    temperature: Annotated[float, typer.Option(help="0 is greedy, 1 the model's own distribution")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="draw among the k most probable tokens")] = None,
    top_p: Annotated[float, typer.Option(help="draw among the fewest tokens that reach this probability")] = 0.95,
    seed: Annotated[int, typer.Option(help="the same seed gives the same text")] = 0,
    compare: Annotated[str | None, typer.Option(help="a second model, for the same prompt and seed")] = None,
    as_json: Json = False,
) -> None:
    """Text that follows a prompt; with --json every step, its probability, rank, entropy and alternatives."""
    quiet()
    from gpt2lab.model import load_model
    from gpt2lab.sampling import Sampling, collect, generate_steps, text_of

    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    labs = [load_model(name) for name in (model, compare) if name is not None]
    pending = [generate_steps(lab, prompt, max_new_tokens=max_new_tokens, sampling=sampling) for lab in labs]
    stream = io.StringIO() if as_json else sys.stdout
    results = []
    for lab, coming in zip(labs, pending):
        steps, shown, text = [], 0, ""
        print(f"[{lab.name}] {prompt}" if compare else prompt, end="", file=stream, flush=True)
        for step in coming:
            steps.append(step)
            text = text_of(lab, steps)
            if not text.endswith("\ufffd"):  # the rest of a character is still to come
                print(text[shown:], end="", file=stream, flush=True)
                shown = len(text)
        print(text[shown:], file=stream)
        done = collect(lab, prompt, tuple(steps), max_new_tokens=max_new_tokens, seed=seed)
        results.append(asdict(done) | {"model": lab.name})
    if as_json:
        first, *others = results
        report(first | ({"compare": others[0]} if others else {}), as_json)


@app.command()
def attention(
    text: Annotated[str, typer.Option(help="the text to look at")],
    out: Annotated[Path, typer.Option(help="the file to write: .html, .png, .svg, .csv or .npz")],
    model: Model = "auto",
    layer: Annotated[int | None, typer.Option(help="only this layer, from 0")] = None,
    head: Annotated[int | None, typer.Option(help="only this head of the layer, from 0")] = None,
) -> None:
    """Attention weights of a text, as a page, a picture, a table or arrays."""
    quiet()
    from gpt2lab.files import write_bytes
    from gpt2lab.inspection.trace import trace
    from gpt2lab.model import load_model
    from gpt2lab.views.export import attention_file, format_of

    format = format_of(out)
    content = attention_file(trace(load_model(model), text), format, layer=layer, head=head)
    try:
        write_bytes(out, content)
    except OSError as error:
        raise LabError(f"{out} cannot be written ({error.strerror}); choose another file") from error
    print(f"{out}  {len(content):,} bytes")


@app.command(name="app")
def serve(
    host: Annotated[str, typer.Option(help="127.0.0.1: this machine alone")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 7860,
    runs: Runs = Path("runs"),
) -> None:
    """The laboratory in the browser."""
    from gpt2lab.ui import build_app
    from gpt2lab.ui import serve as serve_page

    serve_page(build_app(runs), host=host, port=port)


def report(values: dict, as_json: bool) -> None:
    """Print values as one line of JSON, or as a line each."""
    if as_json:
        print(json.dumps(finite(values), ensure_ascii=False, allow_nan=False))
        return
    known = {name: value for name, value in values.items() if value is not None}
    width = max(map(len, known))
    for name, value in known.items():
        print(f"{name:<{width}}  {f'{value:,.4f}' if isinstance(value, float) else value}")


def finite(value):
    """The value with infinite numbers as null, since JSON has none."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def plain(value):
    """Paths as strings; anything else as it is."""
    return str(value) if isinstance(value, Path) else value


def one_line(text: str) -> str:
    """Text without newlines, for a terminal."""
    return " ".join(text.split())


@contextmanager
def progress(what: str):
    """A callback for (done, total) that draws a bar on standard error from its first call on."""
    bars = []

    def show(done: int, total: int) -> None:
        if not bars:
            bars.append(tqdm(total=total, desc=what, file=sys.stderr))
        bars[0].update(done - bars[0].n)

    try:
        yield show
    finally:
        for bar in bars:
            bar.close()

"""The `generate` command."""

import io
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer

from gpt2lab.cli.models import load, quiet
from gpt2lab.cli.options import flag_of, with_options
from gpt2lab.cli.output import Column, Json, Model, report
from gpt2lab.data.tokens import TextStream, token_bytes
from gpt2lab.errors import LabError
from gpt2lab.generation.generate import (
    batch_steps,
    beam_search,
    best_of,
    collect,
    collect_batch,
    prompt_hint,
    request,
    steps_of,
)
from gpt2lab.generation.measures import measure as measured
from gpt2lab.generation.measures import training_ids
from gpt2lab.generation.sampling import Sampling

DEFAULTS = {"temperature": 0.8, "top_p": 0.95}  # closer to the top predictions than the model itself


@with_options(Sampling, defaults=DEFAULTS)
def generate(
    prompt: Annotated[str, typer.Option(help='the text to go on from; "" for none: the model begins by itself')],
    model: Model = "auto",
    max_new_tokens: Annotated[int, typer.Option(help="tokens to generate at most")] = 60,
    *,
    stop: Annotated[list[str] | None, typer.Option(help="end where this string comes; may be given again")] = None,
    window: Annotated[
        int | None,
        typer.Option(help="continue past the context with a sliding window of this many tokens; else stop there"),
    ] = None,
    count: Annotated[int, typer.Option(help="continuations, with this seed and those after it")] = 1,
    best: Annotated[bool, typer.Option("--best", help="of --count continuations only the most probable")] = False,
    beams: Annotated[
        int | None, typer.Option(help="beam search for the most probable text, with this number of beams")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16 (faster with bf16 units) or int8 (fastest on x86). Default: fp32.")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Short for --precision int8.")] = False,
    compare: Annotated[str | None, typer.Option(help="a second model, for the same prompt and seed")] = None,
    measure: Annotated[
        str | None, typer.Option(help="say how varied each text is, and what it copies from this data's training split")
    ] = None,
    column: Column = None,
    as_json: Json = False,
    **settings,
) -> None:
    """Generate text from a prompt; with --json, every step with its probability, rank, entropy and alternatives."""
    quiet()

    if int8 and precision not in (None, "int8"):
        raise LabError(
            "--int8 and --precision {precision} contradict each other; give one of them.", precision=precision
        )
    precision = "int8" if int8 else precision or "fp32"
    draws = {**asdict(Sampling()), **DEFAULTS, "seed": settings["seed"]}  # a search may be given a seed
    given = {flag_of(name): value != draws[name] for name, value in settings.items()}
    given |= {
        "--count": count != 1,
        "--window": window,
        "--int8" if int8 else f"--precision {precision}": precision != "fp32",
        "--best": best,
    }
    if beams is not None and any(given.values()):
        idle = ", ".join(name for name, value in given.items() if value)
        raise LabError(
            "--beams {beams} searches for one text within the context and draws none; leave {idle} out",
            beams=beams,
            idle=idle,
        )
    if best and count == 1:
        raise LabError("--best chooses among several continuations; give --count 2 or more")
    if column is not None and measure is None:
        raise LabError("--column is of the text that --measure names; give both")
    sampling = Sampling(**settings | ({} if beams is None else {"temperature": 0}))
    labs = [load(name) for name in (model, compare) if name is not None]
    shared = {"max_new_tokens": max_new_tokens, "stop": stop or (), "window": window, "precision": precision}
    asked = [request(lab, prompt, sampling=sampling, **shared) for lab in labs]
    if not prompt:
        begin = labs[0].tokenizer.convert_ids_to_tokens(labs[0].start_id)
        print(f"no prompt: the model begins from {begin}", file=sys.stderr)
    elif hint := prompt_hint(labs[0], prompt):
        print(hint, file=sys.stderr)
    stream = io.StringIO() if as_json else sys.stdout
    results = []
    training = {} if measure is None else {one.lab: training_ids(one.lab, measure, column=column) for one in asked}
    for one in asked:
        prefix = f"[{one.lab.name}] " if compare else ""
        records = []
        for text in texts(one, count, best, beams, f"{prefix}{prompt}", stream):
            records.append(record(one.lab, text) | {"model": one.lab.name})
            if training:
                found = measured(one.lab, text, labs=labs, training=training[one.lab])
                records[-1]["measures"] = asdict(found)
                if not as_json:
                    report(found.named, False)
        first, *others = records
        results.append(first | ({"others": others} if others else {}))
    if as_json:
        first, *others = results
        report(first | ({"compare": others[0]} if others else {}), as_json)


def record(lab, generation) -> dict:
    """Return the JSON object of a Generation, with the bytes of each token."""
    values = asdict(generation)
    for step in values["steps"]:
        del step["top_logprobs"]
        for token in (step, *step["alternatives"]):
            raw = token_bytes(lab.tokenizer, token["id"])
            token["bytes"] = None if raw is None else list(raw)
    return values


def texts(asked, count: int, best: bool, beams: int | None, start: str, stream) -> Iterator:
    """Yield the requested Generations, printing each after `start`: a single one as a stream, several when complete."""
    if count == 1 and beams is None:
        yield printed(asked, steps_of(asked), start, stream)
        return
    if beams is not None:
        options = {"max_new_tokens": asked.max_new_tokens, "stop": asked.stop}
        done = [beam_search(asked.lab, asked.prompt, beams=beams, **options)]
    else:
        batch = collect_batch(asked, list(batch_steps(asked, count)), count)
        done = [best_of(batch)] if best else list(batch)
    for one in done:
        print(f"{start}{one.text}", file=stream)
        yield one


def printed(asked, steps, start: str, stream):
    """The Generation of steps that are printed as they come, whole characters at a time, less the beginning of a stop string."""
    taken, shown, waiting, text = [], 0, "", TextStream(asked.lab.tokenizer, asked.before)
    print(start, end="", file=stream, flush=True)
    held = max((len(each) - 1 for each in asked.stop), default=0)  # characters that may belong to a stop string
    for step in steps:
        taken.append(step)
        waiting += "" if step.id in asked.lab.end_ids else text.add(step.id)
        ready = max(0, len(waiting) - held)
        print(waiting[:ready], end="", file=stream, flush=True)
        shown, waiting = shown + ready, waiting[ready:]
    done = collect(asked, taken)
    print(done.text[shown:], file=stream)
    return done

"""The `generate` command."""

import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Annotated, Any, TextIO

import typer

from gpt2lab.cli.models import load, quiet
from gpt2lab.cli.options import flag_of, with_options
from gpt2lab.cli.output import Column, Json, Model, report
from gpt2lab.data.tokens import DecodeStream, token_bytes
from gpt2lab.errors import LabError
from gpt2lab.generation.generate import Generation, TextStream, beam_search, best_of, prompt_hint
from gpt2lab.generation.measures import measure as measured
from gpt2lab.generation.measures import training_ids
from gpt2lab.generation.sampling import Sampling
from gpt2lab.model.lab import Lab

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
    shared: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "stop": stop or (),
        "window": window,
        "precision": precision,
    }
    streams = [TextStream(lab, prompt, count=count, sampling=sampling, **shared) for lab in labs]
    if not prompt:
        begin = labs[0].tokenizer.convert_ids_to_tokens(labs[0].start_id)
        print(f"no prompt: the model begins from {begin}", file=sys.stderr)
    elif hint := prompt_hint(labs[0], prompt):
        print(hint, file=sys.stderr)
    output = io.StringIO() if as_json else sys.stdout
    results = []
    training = {} if measure is None else {lab: training_ids(lab, measure, column=column) for lab in labs}
    for lab, stream in zip(labs, streams):
        prefix = f"[{lab.name}] " if compare else ""
        records = []
        for text in texts(stream, best, beams, f"{prefix}{prompt}", output):
            records.append(record(lab, text) | {"model": lab.name})
            if training:
                found = measured(lab, text, labs=labs, training=training[lab])
                records[-1]["measures"] = asdict(found)
                if not as_json:
                    report(found.named, False)
        first, *others = records
        results.append(first | ({"others": others} if others else {}))
    if as_json:
        first, *others = results
        report(first | ({"compare": others[0]} if others else {}), as_json)


def record(lab: Lab, generation: Generation) -> dict:
    """Return the JSON object of a Generation, with the bytes of each token."""
    values = asdict(generation)
    for step in values["steps"]:
        del step["top_logprobs"]
        for token in (step, *step["alternatives"]):
            raw = token_bytes(lab.tokenizer, token["id"])
            token["bytes"] = None if raw is None else list(raw)
    return values


def texts(stream: TextStream, best: bool, beams: int | None, start: str, output: TextIO) -> Iterator[Generation]:
    """Yield the requested Generations, printing each after `start`: a single one as it comes, several when complete."""
    if stream.count == 1 and beams is None:
        yield printed(stream, start, output)
        return
    if beams is not None:
        length, stop = stream.max_new_tokens, stream.stop
        done: Sequence[Generation] = [
            beam_search(stream.lab, stream.prompt, beams=beams, max_new_tokens=length, stop=stop)
        ]
    else:
        batch = stream.finished().generations
        done = [best_of(batch)] if best else batch
    for one in done:
        print(f"{start}{one.text}", file=output)
        yield one


def printed(stream: TextStream, start: str, output: TextIO) -> Generation:
    """Print a text as it comes, whole characters at a time, less the beginning of a stop string; return it."""
    shown, waiting, text = 0, "", DecodeStream(stream.lab.tokenizer, stream.before)
    print(start, end="", file=output, flush=True)
    held = max((len(each) - 1 for each in stream.stop), default=0)  # characters that may belong to a stop string
    for (step,) in stream:
        waiting += text.add(step.id) if step and step.id not in stream.lab.end_ids else ""
        ready = max(0, len(waiting) - held)
        print(waiting[:ready], end="", file=output, flush=True)
        shown, waiting = shown + ready, waiting[ready:]
    done = stream.generation
    print(done.text[shown:], file=output)
    return done

"""The commands `generate` and `attention`."""

import io
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gpt2lab.cli.options import flag_of, with_options
from gpt2lab.cli.output import Column, Json, Model, check_out, load, quiet, report, write
from gpt2lab.errors import LabError, choice
from gpt2lab.generation.sampling import Sampling

DEFAULTS = {"temperature": 0.8, "top_p": 0.95}  # closer to the top predictions than the model itself
EXPLORER, ROLLOUT = "explorer", "rollout"  # views beside bertviz'


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
    beams: Annotated[int | None, typer.Option(help="search for the most probable text, keeping so many")] = None,
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
    from gpt2lab.generation.generate import prompt_hint, request
    from gpt2lab.generation.measures import measure as measured
    from gpt2lab.generation.measures import training_ids

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
    from gpt2lab.data.tokens import token_bytes

    values = asdict(generation)
    for step in values["steps"]:
        del step["top_logprobs"]
        for token in (step, *step["alternatives"]):
            raw = token_bytes(lab.tokenizer, token["id"])
            token["bytes"] = None if raw is None else list(raw)
    return values


def texts(asked, count: int, best: bool, beams: int | None, start: str, stream) -> Iterator:
    """Yield the requested Generations, printing each after `start`: a single one as a stream, several when complete."""
    from gpt2lab.generation.generate import batch_steps, beam_search, best_of, collect_batch, steps_of

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
    from gpt2lab.data.tokens import TextStream
    from gpt2lab.generation.generate import collect

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


def attention(
    text: Annotated[str, typer.Option(help="the text to look at; of one too long for the model, its beginning")],
    out: Annotated[Path, typer.Option(help="the file to write: .html, .png, .svg, .csv or .npz")],
    model: Model = "auto",
    layer: Annotated[int | None, typer.Option(help="only this layer, from 0")] = None,
    head: Annotated[int | None, typer.Option(help="only this head of the layer, from 0")] = None,
    compare: Annotated[str | None, typer.Option(help="a second model, on the same text")] = None,
    compare_text: Annotated[str | None, typer.Option(help="a second text, of as many tokens")] = None,
    score: Annotated[str | None, typer.Option(help="write a map of this score of every head instead")] = None,
    view: Annotated[
        str, typer.Option(help="explorer; rollout, of all layers; or, as .html, bertviz' head, model or neuron")
    ] = EXPLORER,
) -> None:
    """Save the attention weights of a text, or of two models or texts, as a page, an image, a table or arrays."""
    quiet()
    from gpt2lab.inspection.compare import compare as paired
    from gpt2lab.inspection.heads import rollout, scores_of
    from gpt2lab.inspection.trace import trace
    from gpt2lab.pages.export import attention_file, format_of, map_file, rollout_file

    format = format_of(out)
    check_out(out)
    pair = compare is not None or compare_text is not None
    check_view(view, format)
    if view != EXPLORER and (pair or score is not None):
        raise LabError("--view {view} is of one model and one text; leave --compare… and --score out", view=view)
    whole = f"--score {score}" if score is not None else "--view rollout" if view == ROLLOUT else None
    if whole and (pair or layer is not None or head is not None):
        raise LabError(
            "{whole} is of all heads of one model and text; leave --layer, --head, --compare… out", whole=whole
        )
    lab = load(model)
    seen = trace(lab, text, cut=True)
    tell_part(seen, "the text")
    if score is not None:
        content = map_file(scores_of(lab, seen).map(score, seen.name), format)
    elif view == ROLLOUT:
        content = rollout_file(rollout(seen), format)
    elif view != EXPLORER:
        content = bertviz_file(seen, view, layer, head)
    else:
        if pair:
            second = lab if compare is None else load(compare)
            other = trace(second, text if compare_text is None else compare_text, cut=True)
            tell_part(other, "the text" if compare_text is None else "the second text")
            seen = paired(seen, other)
        content = attention_file(seen, format, layer=layer, head=head)
    write(out, content)
    print(f"{out}  {len(content):,} bytes")


def check_view(view: str, format: str) -> None:
    """Raises: LabError for a view that does not exist, and for a format that it does not have."""
    from gpt2lab.pages.bertviz import VIEWS

    choice("view", view, [EXPLORER, ROLLOUT, *VIEWS])
    if view in VIEWS and format != "html":
        raise LabError(
            "bertviz' {view} view is a page, no .{format} file; end the file's name in .html", view=view, format=format
        )


def tell_part(seen, what: str) -> None:
    """Print which part of a text is shown, if not all of it."""
    from gpt2lab.pages.explorer import extent

    if seen.left_out:
        print(f"{seen.name} reads of {what}: {extent(seen)}", file=sys.stderr)


def bertviz_file(seen, view: str, layer: int | None, head: int | None) -> bytes:
    """Save one of bertviz' views as a page."""
    from gpt2lab.pages.bertviz import VIEWS, plan
    from gpt2lab.pages.export import bertviz_options

    options = bertviz_options(view, layer, head)
    print(plan(seen, view, **options), file=sys.stderr)
    return VIEWS[view](seen, **options).html.encode()

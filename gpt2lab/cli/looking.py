"""The commands that show what a model does with a text: it goes on with it, it attends to it."""

import io
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gpt2lab.cli.output import Json, Model, quiet, report, write


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


def attention(
    text: Annotated[str, typer.Option(help="the text to look at")],
    out: Annotated[Path, typer.Option(help="the file to write: .html, .png, .svg, .csv or .npz")],
    model: Model = "auto",
    layer: Annotated[int | None, typer.Option(help="only this layer, from 0")] = None,
    head: Annotated[int | None, typer.Option(help="only this head of the layer, from 0")] = None,
) -> None:
    """Attention weights of a text, as a page, a picture, a table or arrays."""
    quiet()
    from gpt2lab.inspection.trace import trace
    from gpt2lab.model import load_model
    from gpt2lab.views.export import attention_file, format_of

    format = format_of(out)
    content = attention_file(trace(load_model(model), text), format, layer=layer, head=head)
    write(out, content)
    print(f"{out}  {len(content):,} bytes")

"""The commands that show what a model does with a text: it goes on with it, it attends to it."""

import io
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gpt2lab.cli.output import Json, Model, quiet, report, write
from gpt2lab.errors import LabError

EXPLORER, ROLLOUT = "explorer", "rollout"  # views beside bertviz'


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
    """Attention weights of a text, or of two models or texts, as a page, a picture, a table or arrays."""
    quiet()
    from gpt2lab.inspection.compare import compare as paired
    from gpt2lab.inspection.heads import rollout, scores_of
    from gpt2lab.inspection.trace import trace
    from gpt2lab.model import load_model
    from gpt2lab.views.export import attention_file, format_of, map_file, rollout_file

    format = format_of(out)
    pair = compare is not None or compare_text is not None
    check_view(view, format)
    if view != EXPLORER and (pair or score is not None):
        raise LabError(f"--view {view} is of one model and one text; leave --compare… and --score out")
    whole = f"--score {score}" if score is not None else "--view rollout" if view == ROLLOUT else None
    if whole and (pair or layer is not None or head is not None):
        raise LabError(f"{whole} is of all heads of one model and text; leave --layer, --head, --compare… out")
    lab = load_model(model)
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
            second = lab if compare is None else load_model(compare)
            other = trace(second, text if compare_text is None else compare_text, cut=True)
            tell_part(other, "the text" if compare_text is None else "the second text")
            seen = paired(seen, other)
        content = attention_file(seen, format, layer=layer, head=head)
    write(out, content)
    print(f"{out}  {len(content):,} bytes")


def check_view(view: str, format: str) -> None:
    """Raises: LabError for a view that does not exist, and for a format that it does not have."""
    from gpt2lab.views.bertviz import VIEWS

    if view not in (known := [EXPLORER, ROLLOUT, *VIEWS]):
        raise LabError(f"view {view!r} is unknown; use {', '.join(known)}")
    if view in VIEWS and format != "html":
        raise LabError(f"bertviz' {view} view is a page, no .{format} file; end the file's name in .html")


def tell_part(seen, what: str) -> None:
    """Say what part of a text is shown, where that is not all of it."""
    from gpt2lab.views.explorer import extent

    if seen.left_out:
        print(f"{seen.name} reads of {what}: {extent(seen)}", file=sys.stderr)


def bertviz_file(seen, view: str, layer: int | None, head: int | None) -> bytes:
    """One of bertviz' views as a page."""
    from gpt2lab.views.bertviz import VIEWS, plan
    from gpt2lab.views.export import bertviz_options

    options = bertviz_options(view, layer, head)
    print(plan(seen, view, **options), file=sys.stderr)
    return VIEWS[view](seen, **options).html.encode()

"""The `attention` command."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from gpt2lab.cli.models import load, quiet
from gpt2lab.cli.output import Model, check_out, write
from gpt2lab.errors import LabError, choice
from gpt2lab.inspection.attention import Attention
from gpt2lab.inspection.compare import Comparison
from gpt2lab.inspection.compare import compare as paired
from gpt2lab.inspection.heads import rollout, scores_of
from gpt2lab.inspection.trace import Trace, trace
from gpt2lab.pages.bertviz import VIEWS, plan
from gpt2lab.pages.explorer import extent
from gpt2lab.pages.export import bertviz_options, export, format_of

EXPLORER, ROLLOUT = "explorer", "rollout"  # views other than bertviz'


def attention(
    text: Annotated[str, typer.Option(help="the text to look at; of one too long for the model, its beginning")],
    out: Annotated[Path, typer.Option(help="the file to write: .html, .png, .svg, .csv, .npz or .json")],
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
    print_extent(seen, "the text")
    if score is not None:
        content = export(scores_of(lab, seen).map(score), format)
    elif view == ROLLOUT:
        content = export(rollout(seen), format)
    elif view != EXPLORER:
        content = bertviz_file(seen, view, layer, head)
    else:
        drawn: Trace | Comparison = seen
        if pair:
            second = lab if compare is None else load(compare)
            other = trace(second, text if compare_text is None else compare_text, cut=True)
            print_extent(other, "the text" if compare_text is None else "the second text")
            drawn = paired(seen, other)
        content = export(Attention(drawn, layer, head), format)
    write(out, content)
    print(f"{out}  {len(content):,} bytes")


def check_view(view: str, format: str) -> None:
    """Raises: LabError for a view that does not exist, and for a format that it does not have."""
    choice("view", view, [EXPLORER, ROLLOUT, *VIEWS])
    if view in VIEWS and format != "html":
        raise LabError(
            "bertviz' {view} view is a page, no .{format} file; end the file's name in .html", view=view, format=format
        )


def print_extent(seen: Trace, what: str) -> None:
    """Print which part of a text is shown, if not all of it."""
    if seen.left_out:
        print(f"{seen.name} reads of {what}: {extent(seen)}", file=sys.stderr)


def bertviz_file(seen: Trace, view: str, layer: int | None, head: int | None) -> bytes:
    """Save one of bertviz' views as a page."""
    options = bertviz_options(view, layer, head)
    print(plan(seen, view, **options).note, file=sys.stderr)
    return VIEWS[view](seen, **options).html.encode()

"""The `preview` command."""

from pathlib import Path
from typing import Annotated

import typer

from gpt2lab.cli.models import load, quiet, resolve
from gpt2lab.cli.output import Column, Data, Json, Model, check_out, one_line, print_table, report, write
from gpt2lab.data.preview import preview as previewed
from gpt2lab.pages.export import export, format_of
from gpt2lab.training.defaults import defaults_for


def preview(
    model: Model = "auto",
    data: Data = "auto",
    column: Column = None,
    block_size: Annotated[int | None, typer.Option(help="tokens per block; by default as in training")] = None,
    out: Annotated[Path | None, typer.Option(help="a file to write: .html, .png, .svg, .csv, .npz or .json")] = None,
    as_json: Json = False,
) -> None:
    """Show a text as a model is trained on it: articles, tokens and blocks per split, and the first block."""
    quiet()
    if out:
        format_of(out)
        check_out(out)
    model, data = resolve(model, data, training=True)
    lab = load(model)
    default = min(defaults_for("full", lab.model.num_parameters()).block_size, lab.context)
    found = previewed(lab, data, default if block_size is None else block_size, column=column)
    if out:
        write(out, export(found, format_of(out)))
    if as_json:
        return report(found.record(), as_json)
    head, rows = found.table().text()
    print_table(head, rows)
    print(f"\nfirst block of {found.block_size:,} tokens: {one_line(found.text)[:400]}")
    return None

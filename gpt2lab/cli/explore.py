"""The `explore` command."""

from pathlib import Path
from typing import Annotated

import typer

from gpt2lab.cli.models import load, quiet
from gpt2lab.cli.output import Model, check_out, write
from gpt2lab.errors import LabError
from gpt2lab.figures import figure, figure_bytes
from gpt2lab.pages.explore import explore as explored


def explore(
    text: Annotated[str, typer.Option(help="the text; of one too long for the model, its beginning")],
    out: Annotated[Path, typer.Option(help="the file to write: .html, .png or .svg")],
    model: Model = "auto",
    compare: Annotated[str | None, typer.Option(help="a second model, on the same text")] = None,
) -> None:
    """Save the Explore page of a text: one offline page of linked views, or a picture."""
    quiet()
    format = out.suffix.lstrip(".").lower()
    if format not in ("html", "png", "svg"):
        raise LabError(
            "a page is no {suffix} file; end the file's name in .html, .png or .svg", suffix=out.suffix or "such"
        )
    check_out(out)
    page = explored(load(model), text, None if compare is None else load(compare))
    content = page.page().html.encode() if format == "html" else figure_bytes(figure(page.result), format)
    write(out, content)
    print(f"{out}  {len(content):,} bytes")

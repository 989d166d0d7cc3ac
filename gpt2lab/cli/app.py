"""The `app` command."""

from pathlib import Path
from typing import Annotated

import typer

from gpt2lab.app import build_app, serve
from gpt2lab.cli.output import Runs


def app(
    host: Annotated[str, typer.Option(help="127.0.0.1: this machine alone")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 7860,
    runs: Runs = Path("runs"),
    mcp: Annotated[
        bool, typer.Option("--mcp", help="Also serve its functions as MCP tools for language models.")
    ] = False,
) -> None:
    """Open the app in the browser."""
    serve(build_app(runs), host=host, port=port, mcp=mcp)

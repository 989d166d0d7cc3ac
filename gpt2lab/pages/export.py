"""Export any result as html, png, svg, csv, npz or json."""

import html
import io
import json
from functools import partial, singledispatch
from pathlib import Path

import numpy as np

from gpt2lab.errors import LabError
from gpt2lab.figures.drawing import figure, figure_bytes, image
from gpt2lab.figures.heads import head_map_rows
from gpt2lab.figures.tables import csv_bytes, table
from gpt2lab.inspection.attention import Attention, check_layer_of, largest
from gpt2lab.inspection.heads import HeadMap, Rollout
from gpt2lab.inspection.lens import Lens, entry_name
from gpt2lab.inspection.surprisal import Surprisal, SurprisalChange
from gpt2lab.inspection.walkthrough import Walkthrough
from gpt2lab.pages.explorer import explorer_page
from gpt2lab.pages.history import history_page
from gpt2lab.pages.surprisal import change_page, surprisal_page
from gpt2lab.pages.walkthrough import walk_page
from gpt2lab.results import Result, finite
from gpt2lab.training.history import History
from gpt2lab.widgets.page import ARTICLE, Page, document

FORMATS = ("html", "png", "svg", "csv", "npz", "json")
MAX_WEIGHTS = 50  # shares that the page of a rollout lists


def export(result: Result, format: str, **options) -> bytes:
    """A result as a file in one of FORMATS: a page, its figure, its table, its arrays, or its record.

    options  of its figure, such as `measure` of a lens; tables, arrays and records hold all there is

    Example: export(logit_lens(lab, "The moon"), "png", measure="entropy")
    Raises: LabError for an unknown format, a picture of a result that has none, and a table too long for a file.
    """
    check_format(format)
    match format:
        case "html":
            return page(result, **options).html.encode()
        case "csv":
            head, rows = result.table()
            return csv_bytes(head, ([_cell(cell) for cell in row] for row in rows))
        case "npz":
            content = io.BytesIO()
            np.savez_compressed(content, allow_pickle=False, **result.arrays())
            return content.getvalue()
        case "json":
            return json.dumps(finite(result.record()), ensure_ascii=False, allow_nan=False).encode()
    return figure_bytes(figure(result, **options), format)


@singledispatch
def page(result: Result, **options) -> Page:
    """The page of a result: its title, its figure and its table, unless it has one of its own."""
    head, rows = result.table().text()
    return _article(result, table(head, rows), **options)


@page.register
def _(result: HeadMap) -> Page:
    return _article(result, head_table(result))


@page.register
def _(result: Lens, *, measure: str = "rank") -> Page:
    words = [[result.names[i] for i in row] for row in result.top[..., 0].tolist()]
    rows = [(entry_name(entry), *row) for entry, row in enumerate(words)]
    return _article(result, table(["after", *result.trace.tokens], rows), measure=measure)


@page.register
def _(result: Rollout) -> Page:
    rows = [tuple(map(str, row)) for row in largest(result.weights, result.trace.tokens, MAX_WEIGHTS)]
    shares = table(["token", "at", "comes from", "at", "share"], rows)
    return _article(result, f"<p>The {len(rows)} largest shares:</p>{shares}")


@page.register
def _(result: Attention) -> Page:
    layers = None if result.layer is None else [result.layer]
    return explorer_page(result.of, layer=result.layer or 0, head=result.head, layers=layers)


@page.register
def _(result: Surprisal) -> Page:
    return surprisal_page(result.title, result.pieces)


@page.register
def _(result: SurprisalChange) -> Page:
    first, second = result.before, result.after
    return change_page(result.title, first.pieces, second.pieces, (first.name, second.name))


page.register(History, history_page)
page.register(Walkthrough, walk_page)


def head_table(result: HeadMap) -> str:
    """A number per head as an HTML table, layers down, heads across."""
    heads = [f"head {head}" for head in range(result.values.shape[1])]
    return table(["", *heads], head_map_rows(result.values))


def bertviz_options(view: str, layer: int | None, head: int | None) -> dict:
    """What a view of bertviz takes for a layer and a head, where None is all of them, or, of one at a time, the first."""
    check_layer_of(head, layer)
    if view == "model":
        return {"layers": None if layer is None else [layer], "heads": None if head is None else [head]}
    return {"layer": layer or 0, "head": (head or 0) if view == "neuron" else head}


def check_format(format: str) -> None:
    """Raises: LabError for a format that is none of FORMATS."""
    if not isinstance(format, str) or format not in FORMATS:
        raise LabError(
            "format {format!r} is unknown; end the file's name in .{formats}",
            format=str(format)[:40],
            formats=", .".join(FORMATS),
        )


def format_of(path: str | Path) -> str:
    """The format that a file's name asks for. Raises: LabError where it is none of FORMATS."""
    format = Path(path).suffix.lstrip(".").lower()
    check_format(format)
    return format


def _article(result: Result, content: str, **options) -> Page:
    body = f"<h1>{html.escape(result.title)}</h1>{image(partial(figure, result, **options), result.title)}{content}"
    return document(result.title, body, style=ARTICLE)


def _cell(cell):
    """A float to six digits, as float32 holds them; anything else as it is."""
    return float(f"{cell:.6g}") if isinstance(cell, float) else cell

"""Export lens, surprisal, attribution, patching and walkthrough as png, svg, csv, npz or html."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpt2lab.errors import LabError, choice
from gpt2lab.figures.heads import head_map
from gpt2lab.figures.inside import (
    LENS,
    SURPRISAL_HEAD,
    attribution_map,
    attribution_rows,
    entry_name,
    lens_figure,
    patching_figure,
    patching_rows,
    rank_figure,
    surprisal_rows,
)
from gpt2lab.figures.tables import csv_bytes, table
from gpt2lab.pages.export import check_format, figure_file
from gpt2lab.pages.surprisal import change_page, surprisal_page
from gpt2lab.pages.walk import walk_page

if TYPE_CHECKING:
    from gpt2lab.inspection.lens import Attribution, Lens
    from gpt2lab.inspection.patching import Patching
    from gpt2lab.inspection.surprisal import Surprisal
    from gpt2lab.inspection.walk import Walk


def lens_file(lens: Lens, format: str, *, measure: str = "rank") -> bytes:
    """A lens in one of the formats; a table and arrays hold every measure. Raises: LabError for another format or measure."""
    choice("measure", measure, LENS)
    tokens, T = lens.trace.tokens, len(lens.trace.tokens)
    words = [[lens.names[i] for i in row] for row in lens.top[..., 0].tolist()]
    lines = (
        [entry, t, tokens[t], words[entry][t], *(f"{float(getattr(lens, name)[entry, t]):.6g}" for name in LENS)]
        for entry in range(len(words))
        for t in range(T)
    )
    fields = ("targets", "top", "top_probability", *LENS)
    return figure_file(
        format,
        f"{LENS[measure].title}: {lens.trace.name}",
        draw=lambda dark=False: lens_figure(lens, measure, dark=dark),
        html_of=lambda: table(["after", *tokens], [(entry_name(i), *row) for i, row in enumerate(words)]),
        lines=(["entry", "at", "token", "top prediction", *LENS], lines),
        arrays={name: getattr(lens, name).numpy() for name in fields} | {"tokens": np.array(tokens)},
    )


def surprisal_file(found: Surprisal, other: Surprisal | None, format: str, *, limits: Sequence[int]) -> bytes:
    """Surprisal in one of the formats, of one model or of two: a page is the text in colours, a picture its ranks and costs."""
    check_format(format)
    each = [found] if other is None else [found, other]
    if format == "html":
        pieces = [one.pieces for one in each]
        if other is None:
            return surprisal_page(f"Surprisal: {found.name}", pieces[0]).html.encode()
        found.change(other)  # refuses other tokens
        return change_page("Surprisal", *pieces, (found.name, other.name)).html.encode()
    arrays = {"tokens": np.array(found.tokens), "ids": found.ids.numpy()}
    for prefix, one in zip(("", "other_"), each):
        arrays |= {f"{prefix}{name}": getattr(one, name).numpy() for name in ("nll", "rank", "entropy", "top")}
    head, rows = SURPRISAL_HEAD, surprisal_rows(found, other)
    if other is not None:
        head = [*head, "change, nats"]
        rows = [[*row, float(change) if change else ""] for *row, change in rows]
    return figure_file(
        format,
        f"Surprisal: {found.name}",
        draw=lambda dark=False: rank_figure(each, limits, dark=dark),
        html_of=str,
        lines=(head, rows),
        arrays=arrays,
    )


def attribution_file(found: Attribution, format: str) -> bytes:
    """What adds to a logit, in one of the formats; tables and arrays hold every part, a picture the heads."""
    drawn = attribution_map(found)
    names, values = zip(*found.parts)
    return figure_file(
        format,
        drawn.title,
        draw=lambda dark=False: head_map(**drawn._asdict(), dark=dark),
        html_of=lambda: table(["part", "logits"], attribution_rows(found)),
        lines=(["part", "logits"], [[name, float(f"{value:.6g}")] for name, value in found.parts]),
        arrays={
            "heads": found.heads.numpy(),
            "mlps": found.mlps.numpy(),
            "parts": np.array(names),
            "values": np.array(values),
        },
    )


def patching_file(found: Patching, format: str) -> bytes:
    """Patched states in one of the formats."""
    head, rows = patching_rows(found)
    return figure_file(
        format,
        f"Activation patching: {found.name}",
        draw=lambda dark=False: patching_figure(found, dark=dark),
        html_of=lambda: table(head, rows),
        lines=(head, [[name, *map(float, shares)] for name, *shares in rows]),
        arrays={
            "values": found.values.numpy(),
            "recovered": found.recovered.numpy(),
            "tokens": np.array(found.tokens),
            "clean_tokens": np.array(found.clean_tokens),
        },
    )


def walk_file(found: Walk, format: str) -> bytes:
    """A walked block: a page, or its numbers as a table or arrays. Raises: LabError for a picture, which it has none of."""
    check_format(format)
    if format in ("png", "svg"):
        raise LabError("a walked block is a page, no .{format} file; use .html, .csv or .npz", format=format)
    if format == "html":
        return walk_page(found).html.encode()
    if format == "csv":
        lines = (
            [step.name, step.formula, i, float(f"{value:.6g}")]
            for step in found.steps
            for i, value in enumerate(step.values.tolist())
        )
        return csv_bytes(["step", "formula", "at", "value"], lines)
    arrays = {step.name: step.values.numpy() for step in found.steps} | {"tokens": np.array(found.tokens)}
    return figure_file(format, "", draw=None, html_of=str, lines=([], []), arrays=arrays)

"""The contents of the Attention tab: views of one trace or of two."""

from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import urlencode

import gradio as gr
from PIL.Image import Image

from gpt2lab.app.events import ALONE, as_image
from gpt2lab.app.results import ResultCache
from gpt2lab.errors import LabError, choice, whole_number
from gpt2lab.figures.drawing import figure
from gpt2lab.figures.heads import head_map_cells
from gpt2lab.inspection.attention import Attention, largest_weights
from gpt2lab.inspection.compare import Comparison
from gpt2lab.inspection.heads import HeadMap, Rollout, describe_head, rollout
from gpt2lab.inspection.trace import Trace
from gpt2lab.pages.bertviz import VIEWS, plan
from gpt2lab.pages.explorer import explorer_page, extent
from gpt2lab.pages.export import bertviz_options, export, head_table
from gpt2lab.widgets.page import Page

TABLE_ROWS = 20
MAX_LINK = 4000  # characters of an address that servers and browsers take
CHANGE = "change"  # offered beside the scores of a head: how far two traces lie apart
NO_SECOND = "there is nothing to compare with; choose a second model or give a second text"
PARTS = ("head", "all heads", "map", "rollout", "bertviz")  # what can be downloaded


class Subject(NamedTuple):
    """The model and the text that the page shows; the inputs may have changed since.

    other, other_text  of a second trace, or None
    """

    label: str
    text: str
    other: str | None
    other_text: str | None

    @classmethod
    def of(cls, label: str, text: str, other: str, other_text: str) -> "Subject":
        """Return the subject of the inputs: a second model reads the same text, a second text is read by the same model."""
        if other in (None, ALONE) and not other_text:
            return cls(label, text, None, None)
        return cls(label, text, label if other in (None, ALONE) else other, other_text or text)


def shown(subject: Subject | None) -> Subject:
    """Return what the page shows. Raises: LabError if it shows nothing yet."""
    if subject is None:
        raise LabError("there is no attention here yet; press Show attention first")
    return subject


def first_trace(results: ResultCache, subject: Subject | None) -> Trace:
    """Return the trace of the subject, or the first of two. Raises: LabError if there is no subject yet."""
    label, text, *_ = shown(subject)
    return results.trace(label, text)


def trace_or_comparison(results: ResultCache, subject: Subject | None) -> Trace | Comparison:
    """Return the Trace of the subject, or the Comparison of its two traces. Raises: LabError if there is none."""
    label, text, other, other_text = shown(subject)
    if other is None or other_text is None:
        return results.trace(label, text)
    return results.comparison(label, text, other, other_text)


def head_numbers(results: ResultCache, subject: Subject | None, score: str, dark: bool) -> tuple[Image | None, str]:
    """Return (map, table) of a score of every head, or of CHANGE; nothing for a single token, which has no scores."""
    if len(first_trace(results, subject).tokens) < 2:
        return None, ""
    if score == CHANGE and shown(subject).other is None:
        gr.Warning(NO_SECOND)  # not an error: the other views are still shown
        return None, ""
    drawn = map_of(results, subject, score)
    return as_image(figure(drawn, dark=dark)), head_table(drawn)


def map_of(results: ResultCache, subject: Subject | None, score: str) -> HeadMap:
    """Return the HeadMap of a score, or of CHANGE. Raises: LabError for an unknown score, or nothing to compare with."""
    label, text, *_ = shown(subject)
    if score != CHANGE:
        return results.scores(label, text).map(score)
    drawn = trace_or_comparison(results, subject)
    if isinstance(drawn, Trace):
        raise LabError(NO_SECOND)
    return drawn.map()


def rollout_of(results: ResultCache, subject: Subject | None) -> Rollout:
    """Return the Rollout of the first trace."""
    return rollout(first_trace(results, subject))


def bertviz_of(
    results: ResultCache, subject: Subject | None, view: str, layer: int, head: int, dark: bool | None
) -> tuple[str, Callable[[], Page]]:
    """Return (what a bertviz view holds and its size, a function that makes the Page).

    dark  None follows the reader's system
    """
    trace = first_trace(results, subject)
    options = bertviz_options(view, *((None, None) if view == "model" else (layer, head)))
    size = plan(trace, view, **options)
    return f"{size}{', of the first of the two' if shown(subject).other else ''}.", lambda: VIEWS[view](
        trace, **options, theme={None: "auto", True: "dark", False: "light"}[dark]
    )


def file_of(
    results: ResultCache,
    subject: Subject | None,
    part: str,
    format: str,
    *,
    layer: int,
    head: int,
    score: str,
    view: str,
) -> tuple[str, bytes]:
    """Return (name, bytes) of one of PARTS as a file. Raises: LabError for an unknown part or format."""
    trace = first_trace(results, subject)
    if part == "head":
        whole_number("head", head, 0, trace.n_heads - 1)
        content = export(Attention(trace_or_comparison(results, subject), layer, head), format)
        return f"attention-layer{layer}-head{head}.{format}", content
    if part == "all heads":
        return f"attention.{format}", export(Attention(trace_or_comparison(results, subject)), format)
    if part == "map":
        return f"attention-{score}.{format}", export(map_of(results, subject, score), format)
    if part == "rollout":
        return f"attention-rollout.{format}", export(rollout_of(results, subject), format)
    choice("part", part, PARTS)
    if format != "html":
        raise LabError("bertviz' views are pages, no .{format} files; save them as html", format=str(format)[:40])
    return f"attention-{view}-view.html", bertviz_of(results, subject, view, layer, head, None)[1]().html.encode()


def one_head(
    results: ResultCache, subject: Subject | None, layer: int, head: int, dark: bool
) -> tuple[str, str, Image, list[list]]:
    """Return (note, explorer, heatmap, table rows) of one head. Raises: LabError for a head that does not exist."""
    trace, drawn = first_trace(results, subject), trace_or_comparison(results, subject)
    whole_number("head", head, 0, trace.n_heads - 1)
    page = explorer_page(drawn, layer=layer, head=head, theme="dark" if dark else "light")
    picture = as_image(figure(Attention(drawn, layer, head), dark=dark))
    rows = [list(row) for row in largest_weights(trace, layer, head, TABLE_ROWS)]
    return head_note(results, shown(subject), drawn, layer, head), page.iframe(), picture, rows


def head_note(results: ResultCache, subject: Subject, drawn: Trace | Comparison, layer: int, head: int) -> str:
    """Describe a head, its change, the part of the text that is shown; with a link."""
    traces = [drawn] if isinstance(drawn, Trace) else [drawn.base, drawn.other]
    is_single = len(traces[0].tokens) < 2
    lines = [
        "One token can only read itself." if is_single else describe_head(results.scores(*subject[:2]), layer, head)
    ]
    if isinstance(drawn, Comparison):
        lines.append(
            f"So it is in {traces[0].name} on the first text, as the table has it; in the second, "
            f"{float(drawn.total_variation[layer, head]):.3f} of its attention goes elsewhere (total variation distance, 0 to 1)."
        )
    lines += [f"Shown: {extent(trace)}." for trace in traces if trace.left_out]
    return " ".join([*lines, link_to(subject, layer, head)])


def link_to(subject: Subject, layer: int, head: int) -> str:
    """Return a Markdown link that opens the page with this subject; a sentence for a text too long for an address."""
    other_text = None if subject.other_text == subject.text else subject.other_text
    parts = {"text": subject.text, "model": subject.label, "other": subject.other, "other_text": other_text}
    query = urlencode({name: part for name, part in parts.items() if part} | {"layer": layer, "head": head})
    return f"[Link to this view](?{query})" if len(query) <= MAX_LINK else "The text is too long for a link."


def head_at(L: int, H: int, point: Sequence[float]) -> tuple[int, int]:
    """Return (layer, head) of the map's cell nearest to a point of the picture, in its own pixels."""
    x, y = point
    cells = head_map_cells(L, H)
    return min(cells, key=lambda cell: (cells[cell][0] - x) ** 2 + (cells[cell][1] - y) ** 2)

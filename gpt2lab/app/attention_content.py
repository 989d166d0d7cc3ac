"""What the Attention tab shows: views of one trace, or of two, from the results. Nothing of the tab's layout."""

from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlencode

import gradio as gr

from gpt2lab.app.events import ALONE, as_image
from gpt2lab.app.results import ResultCache
from gpt2lab.errors import LabError, choice, whole_number
from gpt2lab.figures.attention import attention_heatmap
from gpt2lab.figures.heads import comparison_heatmaps, head_map, head_map_cells, head_map_rows
from gpt2lab.figures.tables import table
from gpt2lab.inspection.heads import describe_head, rollout
from gpt2lab.inspection.trace import Trace
from gpt2lab.pages.bertviz import VIEWS, plan
from gpt2lab.pages.explorer import explorer_page, extent
from gpt2lab.pages.export import attention_file, bertviz_options, largest_weights, map_file, rollout_file

TABLE_ROWS = 20
MAX_LINK = 4000  # characters of an address that servers and browsers take
CHANGE = "change"  # a map's choice beside the scores of a head: how far two traces lie apart
NO_SECOND = "there is nothing to compare with; choose a second model or give a second text"
PARTS = ("head", "all heads", "map", "rollout", "bertviz")  # of what is shown, that files are made of


class Shown(NamedTuple):
    """What the page shows, whatever its inputs say by now; label and text of a second trace, or None."""

    label: str
    text: str
    other: str | None
    other_text: str | None

    @classmethod
    def of(cls, label: str, text: str, other: str, other_text: str) -> "Shown":
        """From the inputs: a second model reads the same text, a second text is read by the same model."""
        if other in (None, ALONE) and not other_text:
            return cls(label, text, None, None)
        return cls(label, text, label if other in (None, ALONE) else other, other_text or text)


def first_trace(results: ResultCache, shown: Shown | None):
    """The trace of what is shown, or the first of two. Raises: LabError where nothing is shown yet."""
    if shown is None:
        raise LabError("there is no attention here yet; press Show attention first")
    return results.trace(*shown[:2])


def seen_of(results: ResultCache, shown: Shown | None):
    """The Trace of what is shown, or the Comparison. Raises: LabError where there is none, or none can be made."""
    trace = first_trace(results, shown)
    return trace if shown[2] is None else results.comparison(*shown)


def head_numbers(results: ResultCache, shown: Shown | None, score: str, dark: bool):
    """A score of every head, or how far each lies apart in two traces: (map, table); none for one token, which has no scores."""
    if len(first_trace(results, shown).tokens) < 2:
        return None, ""
    if score == CHANGE and shown.other is None:
        gr.Warning(NO_SECOND)  # no error: the rest of what was asked for is shown
        return None, ""
    found = map_of(results, shown, score)
    heads = [f"head {head}" for head in range(found.values.shape[1])]
    return as_image(head_map(**found._asdict(), dark=dark)), table(["", *heads], head_map_rows(found.values))


def map_of(results: ResultCache, shown: Shown | None, score: str):
    """The HeadMap of a score, or of CHANGE. Raises: LabError for one that is unknown, or has nothing to compare."""
    trace = first_trace(results, shown)
    if score != CHANGE:
        return results.scores(*shown[:2]).map(score, trace.name)
    if shown.other is None:
        raise LabError(NO_SECOND)
    return seen_of(results, shown).map()


def rollout_of(results: ResultCache, shown: Shown | None):
    """The Rollout of what is shown, of the first of two."""
    return rollout(first_trace(results, shown))


def bertviz_of(results: ResultCache, shown: Shown | None, view: str, layer: int, head: int, dark: bool | None):
    """(what is in it and how large it is, Page) of one of bertviz' views; dark as the reader's system where None."""
    trace = first_trace(results, shown)
    options = bertviz_options(view, *((None, None) if view == "model" else (layer, head)))
    told = plan(trace, view, **options)
    return f"{told}{', of the first of the two' if shown.other else ''}.", lambda: VIEWS[view](
        trace, **options, theme={None: "auto", True: "dark", False: "light"}[dark]
    )


def file_of(
    results: ResultCache, shown: Shown | None, part: str, format: str, *, layer: int, head: int, score: str, view: str
):
    """(name, bytes) of one of PARTS as a file. Raises: LabError for a part or format that does not exist."""
    trace = first_trace(results, shown)
    if part == "head":
        whole_number("head", head, 0, trace.n_heads - 1)
        content = attention_file(seen_of(results, shown), format, layer=layer, head=head)
        return f"attention-layer{layer}-head{head}.{format}", content
    if part == "all heads":
        return f"attention.{format}", attention_file(seen_of(results, shown), format)
    if part == "map":
        return f"attention-{score}.{format}", map_file(map_of(results, shown, score), format)
    if part == "rollout":
        return f"attention-rollout.{format}", rollout_file(rollout_of(results, shown), format)
    choice("part", part, PARTS)
    if format != "html":
        raise LabError("bertviz' views are pages, no .{format} files; save them as html", format=str(format)[:40])
    return f"attention-{view}-view.html", bertviz_of(results, shown, view, layer, head, None)[1]().html.encode()


def one_head(results: ResultCache, shown: Shown | None, layer: int, head: int, dark: bool):
    """(note, explorer, heatmap, table rows) of one head. Raises: LabError for a head that does not exist."""
    trace, seen = first_trace(results, shown), seen_of(results, shown)
    whole_number("head", head, 0, trace.n_heads - 1)
    page = explorer_page(seen, layer=layer, head=head, theme="dark" if dark else "light")
    draw = attention_heatmap if seen is trace else comparison_heatmaps
    figure = draw(seen, layer, head, dark=dark)
    rows = [list(row) for row in largest_weights(trace, layer, head, TABLE_ROWS)]
    return head_note(results, shown, seen, layer, head), page.iframe(), as_image(figure), rows


def head_note(results: ResultCache, shown: Shown, seen, layer: int, head: int) -> str:
    """What the head is, how far it moved, what part of a text is shown, and a link."""
    traces = [seen] if isinstance(seen, Trace) else [seen.base, seen.other]
    one = len(traces[0].tokens) < 2
    told = ["One token can only read itself." if one else describe_head(results.scores(*shown[:2]), layer, head)]
    if len(traces) > 1:
        told.append(
            f"So it is in {traces[0].name} on the first text, as the table has it; in the second, "
            f"{float(seen.total_variation[layer, head]):.3f} of its attention goes elsewhere (total variation distance, 0 to 1)."
        )
    told += [f"Shown: {extent(trace)}." for trace in traces if trace.left_out]
    return " ".join([*told, link_to(shown, layer, head)])


def link_to(shown: Shown, layer: int, head: int) -> str:
    """A link that opens the page with what is shown, in Markdown; none for a text too long for an address."""
    other_text = None if shown.other_text == shown.text else shown.other_text
    parts = {"text": shown.text, "model": shown.label, "other": shown.other, "other_text": other_text}
    query = urlencode({name: part for name, part in parts.items() if part} | {"layer": layer, "head": head})
    return f"[Link to this view](?{query})" if len(query) <= MAX_LINK else "The text is too long for a link."


def head_at(L: int, H: int, point: Sequence[float]) -> tuple[int, int]:
    """(layer, head) of the cell at a point of the map's picture, in its own pixels; the nearest where none is."""
    x, y = point
    cells = head_map_cells(L, H)
    return min(cells, key=lambda cell: (cells[cell][0] - x) ** 2 + (cells[cell][1] - y) ** 2)

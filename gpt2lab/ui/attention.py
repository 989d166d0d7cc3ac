"""The Attention tab: a map of all heads, the explorer, one head's figure and table, bertviz' views, files to take away."""

import re
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlencode

import gradio as gr

from gpt2lab.errors import LabError, whole_number
from gpt2lab.ui.handling import ALONE, IS_DARK, as_image, new_folder, picture, user_errors
from gpt2lab.ui.shelf import Shelf

EXAMPLES = {
    "induction": "Marie Curie discovered polonium in Paris, and Marie Curie discovered radium in Paris.",
    "sink": "The blue whale is the largest animal on Earth. It eats small animals of the open sea.",
    "previous token": "The Supreme Court of the United States ruled in New York City on the first day of May.",
    "subject and verb": "The keys to the old cabinet in the hall are on the table.",
    "article": """ = Honey bee =

 A honey bee is a social flying insect . Honey bees are known for the nests that they build from wax , for the large size of their colonies , and for the honey that they store . In the summer , a colony of honey bees may hold tens of thousands of workers , and one queen that lays all of its eggs .
""",
}
FORMATS = ["png", "svg", "csv", "npz", "html"]
TABLE_ROWS = 20
PLACE = ("layer", "head")
MAX_LINK = 4000  # characters of an address that servers and browsers take
CHANGE = "change"  # a map's choice beside the scores of a head: how far two traces lie apart
INTRO = """Every token reads the tokens before it, with weights that sum to 1: `softmax(QKᵀ/√d_k)`, times `V`. The map has one
number per head; click a head in it, or choose layer and head."""


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


def build_attention_tab(
    demo: gr.Blocks, shelf: Shelf, tabs: gr.Tabs, model: gr.Dropdown, dark: gr.Checkbox
) -> gr.Dropdown:
    """Prompt → map of heads → one head in the explorer, as figure, table, bertviz' lines and file; returns the second model's field."""
    gr.Markdown(INTRO)
    shown = gr.State(None)
    text, other, other_text = build_inputs(shelf)
    inputs = [text, other, other_text]
    show = gr.Button("Show attention", variant="primary", elem_id="attention-show")
    note = gr.Markdown(elem_id="attention-note")
    with gr.Row():
        score, layer, head = build_choice()
    heads = picture("attention-map", "A number per head; the table below has them all")
    with gr.Accordion("The map as a table", open=False, elem_id="attention-map-table"):
        numbers = gr.HTML(elem_id="attention-numbers")
    with gr.Accordion("Explorer", open=True):
        explorer = gr.HTML(elem_id="attention-explorer")
    with gr.Accordion("Figure and largest weights", open=True):
        heatmap = picture("attention-heatmap", "The attention weights of one head; the table below gives its numbers")
        table = gr.Dataframe(
            headers=["reads", "at", "is read", "at", "weight"],
            column_count=5,
            interactive=False,
            elem_id="attention-table",
            show_label=False,
        )
    plan, lines = build_bertviz(shelf, shown, layer, head, dark)
    file = build_files(shelf, shown, layer, head)
    shown.change(
        lambda: ("", "", gr.File(value=None, visible=False)), None, [plan, lines, file], api_visibility="private"
    )

    @user_errors
    def show_all(label, text, other, other_text, score, layer, head, dark):
        shown = Shown.of(label, text, other, other_text)
        trace = first_trace(shelf, shown)
        layer, head = min(layer or 0, trace.n_layers - 1), min(head or 0, trace.n_heads - 1)
        return shown, *head_numbers(shelf, shown, score, dark), layer, head, *one_head(shelf, shown, layer, head, dark)

    @user_errors
    def show_linked(dark, request: gr.Request):
        asked = request.query_params
        if "text" not in asked:
            return [gr.skip()] * (len(answered) + 5)
        label, other, other_text = asked.get("model", "builtin"), asked.get("other", ALONE), asked.get("other_text", "")
        place = [int(asked[name]) if re.fullmatch(r"[0-9]{1,4}", asked.get(name, "")) else 0 for name in PLACE]
        views = show_all(label, asked["text"], other, other_text, "previous_token", *place, dark)
        return gr.Tabs(selected="attention"), label, asked["text"], other, other_text, *views

    @user_errors
    def show_head(shown, layer, head, dark):
        return one_head(shelf, shown, layer, head, dark)

    @user_errors
    def show_clicked(shown, dark, event: gr.SelectData):
        trace = first_trace(shelf, shown)
        layer, head = head_at(trace.n_layers, trace.n_heads, event.index)
        return layer, head, *one_head(shelf, shown, layer, head, dark)

    @user_errors
    def show_score(shown, score, dark):
        return head_numbers(shelf, shown, score, dark)

    views = [note, explorer, heatmap, table]
    asked = [model, *inputs, score, layer, head, dark]
    answered = [shown, heads, numbers, layer, head, *views]
    show.click(show_all, asked, answered, api_name="attention")
    text.submit(show_all, asked, answered, api_name="attention_submit")
    for number in (layer, head):
        name = f"attention_{number.label.lower()}"
        number.input(show_head, [shown, layer, head, dark], views, api_name=name, trigger_mode="always_last")
    heads.select(show_clicked, [shown, dark], [layer, head, *views], api_name="attention_click")
    demo.load(
        show_linked, dark, [tabs, model, *inputs, *answered], js=IS_DARK, api_visibility="private", api_name="linked"
    )
    score.input(show_score, [shown, score, dark], [heads, numbers], api_name="attention_score")
    return other


def build_inputs(shelf: Shelf) -> tuple[gr.Textbox, gr.Dropdown, gr.Textbox]:
    """The text with its examples, and what it may be compared with."""
    text = gr.Textbox(EXAMPLES["induction"], label="Text", lines=2, elem_id="attention-text")
    gr.Examples(
        list(EXAMPLES.values()), text, example_labels=list(EXAMPLES), label="Examples", elem_id="attention-examples"
    )
    with gr.Accordion("Compare", open=False, elem_id="attention-compare"), gr.Row():
        other = gr.Dropdown(
            [ALONE, *shelf.labels()], value=ALONE, label="With model", elem_id="attention-other", min_width=200
        )
        other_text = gr.Textbox(
            label="With text", info="of as many tokens; empty: the same", elem_id="attention-other-text", min_width=200
        )
    return text, other, other_text


def build_choice() -> tuple[gr.Dropdown, gr.Number, gr.Number]:
    """Score, layer and head."""
    # as inspection.heads.SCORES, which takes seconds to import with torch, while a page is being opened
    names = ["previous_token", "duplicate_token", "induction", "first_token", "entropy", "distance"]
    choices = [(name.replace("_", " "), name) for name in names[:-1]]
    choices += [("distance looked back", names[-1]), ("change from the first to the second", CHANGE)]
    score = gr.Dropdown(choices, value="previous_token", label="Map of", elem_id="attention-score", min_width=200)
    layer = gr.Number(0, label="Layer", precision=0, minimum=0, elem_id="attention-layer", min_width=100)
    head = gr.Number(0, label="Head", precision=0, minimum=0, elem_id="attention-head", min_width=100)
    return score, layer, head


def build_bertviz(shelf: Shelf, shown: gr.State, layer: gr.Number, head: gr.Number, dark: gr.Checkbox):
    """bertviz' views, drawn when they are asked for, their size told first; returns where: (size, view)."""
    with gr.Accordion("bertviz", open=False, elem_id="attention-bertviz"):
        view = gr.Radio(["head", "model", "neuron"], value="head", label="View", elem_id="attention-view")
        plan = gr.Markdown(elem_id="attention-plan")
        with gr.Row():
            size = gr.Button("How large?", elem_id="attention-size")
            draw = gr.Button("Draw", elem_id="attention-draw")
        lines = gr.HTML(elem_id="attention-lines")

    @user_errors
    def say(shown, view, layer, head):
        from gpt2lab.views.bertviz import plan

        trace = first_trace(shelf, shown)
        return f"{plan(trace, view, **options(view, layer, head))}."

    @user_errors
    def drawn(shown, view, layer, head, dark):
        from gpt2lab.views.bertviz import VIEWS

        told, trace = say(shown, view, layer, head), first_trace(shelf, shown)
        return told, VIEWS[view](trace, **options(view, layer, head), theme="dark" if dark else "light").iframe()

    def options(view, layer, head):
        from gpt2lab.views.export import bertviz_options

        return bertviz_options(view, *((None, None) if view == "model" else (layer, head)))

    size.click(say, [shown, view, layer, head], plan, api_name="attention_plan")
    draw.click(drawn, [shown, view, layer, head, dark], [plan, lines], api_name="attention_bertviz")
    return plan, lines


def build_files(shelf: Shelf, shown: gr.State, layer: gr.Number, head: gr.Number) -> gr.File:
    """A head, or all of them, as a file; returns where."""
    format = gr.Radio(FORMATS, value="csv", label="Save as", elem_id="attention-format")
    with gr.Row():
        one = gr.Button("Make file of this head", elem_id="attention-save")
        every = gr.Button("Make file of all heads", elem_id="attention-save-all")
    file = gr.File(label="File", interactive=False, visible=False, elem_id="attention-file")

    @user_errors
    def of_head(shown, layer, head, format):
        trace = first_trace(shelf, shown)
        whole_number("head", head, 0, trace.n_heads - 1)
        return made(shown, format, f"attention-layer{layer}-head{head}", layer=layer, head=head)

    @user_errors
    def of_all(shown, format):
        return made(shown, format, "attention")

    def made(shown, format, name, **part):
        from gpt2lab.files import write_bytes
        from gpt2lab.views.export import attention_file

        content = attention_file(seen_of(shelf, shown), format, **part)
        return gr.File(str(write_bytes(new_folder() / f"{name}.{format}", content)), visible=True)

    one.click(of_head, [shown, layer, head, format], file, api_name="attention_file")
    every.click(of_all, [shown, format], file, api_name="attention_file_all")
    return file


def first_trace(shelf: Shelf, shown: Shown | None):
    """The trace of what is shown, or the first of two. Raises: LabError where nothing is shown yet."""
    if shown is None:
        raise LabError("there is no attention here yet; press Show attention first")
    return shelf.trace(*shown[:2])


def seen_of(shelf: Shelf, shown: Shown | None):
    """The Trace of what is shown, or the Comparison. Raises: LabError where there is none, or none can be made."""
    trace = first_trace(shelf, shown)
    return trace if shown[2] is None else shelf.comparison(*shown)


def head_numbers(shelf: Shelf, shown: Shown | None, score: str, dark: bool):
    """A score of every head, or how far each lies apart in two traces: (map, table); none for one token, which has no scores."""
    from gpt2lab.inspection.heads import SCORES
    from gpt2lab.views.export import distance_map
    from gpt2lab.views.maps import head_map, head_map_rows
    from gpt2lab.views.tables import table

    trace = first_trace(shelf, shown)
    if score == CHANGE and shown[2] is None:
        gr.Warning("There is nothing to compare with; choose a second model or give a second text.")
        return None, ""
    if score == CHANGE:
        comparison = seen_of(shelf, shown)
        values, figure = comparison.distance, distance_map(comparison, dark=dark)
    elif not isinstance(score, str) or score not in SCORES:
        raise LabError(f"score {str(score)[:40]!r} is unknown; use {', '.join(SCORES)}")
    elif len(trace.tokens) < 2:
        return None, ""
    else:
        values = getattr(shelf.scores(*shown[:2]), score)
        title = f"{SCORES[score].title}: {trace.name}"
        figure = head_map(values, title=title, unit=SCORES[score].unit, dark=dark)
    return as_image(figure), table(["", *(f"head {head}" for head in range(trace.n_heads))], head_map_rows(values))


def one_head(shelf: Shelf, shown: Shown | None, layer: int, head: int, dark: bool):
    """(note, explorer, heatmap, table rows) of one head. Raises: LabError for a head that does not exist."""
    from gpt2lab.views.explorer import explorer_page
    from gpt2lab.views.export import largest_weights
    from gpt2lab.views.figures import attention_heatmap
    from gpt2lab.views.maps import comparison_heatmaps

    trace, seen = first_trace(shelf, shown), seen_of(shelf, shown)
    whole_number("head", head, 0, trace.n_heads - 1)
    page = explorer_page(seen, layer=layer, head=head, theme="dark" if dark else "light")
    draw = attention_heatmap if seen is trace else comparison_heatmaps
    figure = draw(seen, layer, head, dark=dark)
    rows = [list(row) for row in largest_weights(trace, layer, head, TABLE_ROWS)]
    return head_note(shelf, shown, seen, layer, head), page.iframe(), as_image(figure), rows


def head_note(shelf: Shelf, shown: Shown, seen, layer: int, head: int) -> str:
    """What the head is, how far it moved, what part of a text is shown, and a link."""
    from gpt2lab.inspection.heads import describe_head
    from gpt2lab.inspection.trace import Trace
    from gpt2lab.views.explorer import extent

    traces = [seen] if isinstance(seen, Trace) else [seen.base, seen.other]
    one = len(traces[0].tokens) < 2
    told = ["One token can only read itself." if one else describe_head(shelf.scores(*shown[:2]), layer, head)]
    if len(traces) > 1:
        told.append(
            f"So it is in {traces[0].name} on the first text, as the table has it; in the second, "
            f"{float(seen.distance[layer, head]):.3f} of its attention goes elsewhere (total variation distance, 0 to 1)."
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
    from gpt2lab.views.maps import head_map_cells

    x, y = point
    cells = head_map_cells(L, H)
    return min(cells, key=lambda cell: (cells[cell][0] - x) ** 2 + (cells[cell][1] - y) ** 2)

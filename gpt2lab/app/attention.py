"""The Attention tab: a map of all heads, the explorer, one head's figure and table, bertviz' views, downloads."""

import re

import gradio as gr

from gpt2lab.app.attention_content import (
    CHANGE,
    PARTS,
    TABLE_ROWS,
    Subject,
    bertviz_of,
    file_of,
    first_trace,
    head_at,
    head_numbers,
    one_head,
    rollout_of,
)
from gpt2lab.app.events import ALONE, IS_DARK, Source, as_image, new_folder, picture, user_errors
from gpt2lab.app.results import ResultCache
from gpt2lab.figures.heads import rollout_heatmap
from gpt2lab.files import write_bytes
from gpt2lab.inspection.attention import largest
from gpt2lab.inspection.heads import SCORES
from gpt2lab.pages.bertviz import VIEWS
from gpt2lab.pages.export import FORMATS

EXAMPLES = {
    "induction": "Marie Curie discovered polonium in Paris, and Marie Curie discovered radium in Paris.",
    "sink": "The blue whale is the largest animal on Earth. It eats small animals of the open sea.",
    "previous token": "The Supreme Court of the United States ruled in New York City on the first day of May.",
    "subject and verb": "The keys to the old cabinet in the hall are on the table.",
    "article": """ = Honey bee =

 A honey bee is a social flying insect . Honey bees are known for the nests that they build from wax , for the large size of their colonies , and for the honey that they store . In the summer , a colony of honey bees may hold tens of thousands of workers , and one queen that lays all of its eggs .
""",
}
INTRO = """Every token reads the tokens before it, with weights that sum to 1: `softmax(QKᵀ/√d_k)`, times `V`. The map has one
number per head; click a head in it, or choose layer and head."""


def build_attention_tab(
    demo: gr.Blocks, results: ResultCache, tabs: gr.Tabs, model: gr.Dropdown, dark: gr.Checkbox
) -> Source:
    """Build the tab: text → map of heads → one head in the explorer, as figure, table, bertviz' lines and file."""
    gr.Markdown(INTRO)
    subject = gr.State(None)
    text, other, other_text = build_inputs(results)
    inputs = [text, other, other_text]
    with gr.Row():
        show = gr.Button("Show attention", variant="primary", elem_id="attention-show")
        inside = gr.Button("Look inside this text", elem_id="attention-inside")
    note = gr.Markdown(elem_id="attention-note")
    with gr.Row():
        score, layer, head = build_choice()
    heads = picture("attention-map", "A number per head; the table below has them all")
    with gr.Accordion("Scores as a table", open=False, elem_id="attention-map-table"):
        numbers = gr.HTML(elem_id="attention-numbers")
    views = [note, *build_views()]
    rollout = build_rollout(results, subject, dark)
    view, bertviz = build_bertviz(results, subject, layer, head, dark)
    file = build_files(results, [subject, layer, head, score, view])
    stale = [*rollout, *bertviz, file]
    subject.change(
        lambda: (None, None, "", "", gr.File(value=None, visible=False)), None, stale, api_visibility="private"
    )

    @user_errors
    def show_all(
        label: str,
        text: str,
        other: str,
        other_text: str,
        score: str,
        layer: int | None,
        head: int | None,
        dark: bool,
    ) -> tuple:
        subject = Subject.of(label, text, other, other_text)
        trace = first_trace(results, subject)
        layer, head = min(layer or 0, trace.n_layers - 1), min(head or 0, trace.n_heads - 1)
        return (
            subject,
            *head_numbers(results, subject, score, dark),
            layer,
            head,
            *one_head(results, subject, layer, head, dark),
        )

    @user_errors
    def fill_in(request: gr.Request) -> tuple | list:
        link = linked(request)
        if link is None:
            return [gr.skip()] * 7
        label, text, other, other_text, *place = link
        offered = (ALONE, *results.store.labels())
        label, other = (name if name in offered else gr.skip() for name in (label, other))
        place = [gr.skip() if number is None else number for number in place]
        return gr.Tabs(selected="attention"), label, text, other, other_text, *place

    @user_errors
    def show_linked(dark: bool, request: gr.Request) -> tuple | list:
        link = linked(request)
        if link is None:
            return [gr.skip()] * len(outputs)
        values = show_all(*link[:4], "previous_token", *link[4:], dark)
        layer, head = values[3:5]
        if [layer, head] != link[4:]:
            gr.Warning(
                f"The model has no such layer and head as the link asks for; layer {layer}, head {head} is shown."
            )
        return values

    @user_errors
    def show_head(subject: Subject | None, layer: int, head: int, dark: bool) -> tuple:
        return one_head(results, subject, layer, head, dark)

    @user_errors
    def show_clicked(subject: Subject | None, dark: bool, event: gr.SelectData) -> tuple:
        trace = first_trace(results, subject)
        layer, head = head_at(trace.n_layers, trace.n_heads, event.index)
        return layer, head, *one_head(results, subject, layer, head, dark)

    @user_errors
    def show_score(subject: Subject | None, score: str, dark: bool) -> tuple:
        return head_numbers(results, subject, score, dark)

    all_inputs = [model, *inputs, score, layer, head, dark]
    outputs = [subject, heads, numbers, layer, head, *views]
    for name, trigger in (("attention", show.click), ("attention_submit", text.submit)):
        # clear the old subject first, so that it cannot be downloaded if the new one fails
        cleared = trigger(lambda: (None, ""), None, [subject, note], api_visibility="private", show_progress="hidden")
        cleared.then(show_all, all_inputs, outputs, api_name=name)
    for number in (layer, head):
        name = f"attention_{number.label.lower()}"
        number.input(show_head, [subject, layer, head, dark], views, api_name=name, trigger_mode="always_last")
    heads.select(show_clicked, [subject, dark], [layer, head, *views], api_name="attention_click")
    opened = demo.load(
        fill_in, None, [tabs, model, *inputs, layer, head], api_visibility="private", api_name="filled_in"
    )
    opened.then(show_linked, dark, outputs, js=IS_DARK, api_visibility="private", api_name="linked")
    score.input(show_score, [subject, score, dark], [heads, numbers], api_name="attention_score")
    return Source(other, [text], inside)


def linked(request: gr.Request) -> list | None:
    """Return [model, text, second model, second text, layer, head] of a page's address; None if it names no text.

    A layer or head that is not a number is None.
    """
    query = request.query_params
    if "text" not in query:
        return None
    places = [query.get(name, "0") for name in ("layer", "head")]
    numbers = [int(place) if re.fullmatch("[0-9]{1,4}", place) else None for place in places]
    second = query.get("other", ALONE), query.get("other_text", "")
    return [query.get("model", "builtin"), query["text"], *second, *numbers]


def build_inputs(results: ResultCache) -> tuple[gr.Textbox, gr.Dropdown, gr.Textbox]:
    """Build the text with its examples, the second model and the second text."""
    text = gr.Textbox(EXAMPLES["induction"], label="Text", lines=2, elem_id="attention-text")
    gr.Examples(
        list(EXAMPLES.values()), text, example_labels=list(EXAMPLES), label="Examples", elem_id="attention-examples"
    )
    with gr.Accordion("Compare", open=False, elem_id="attention-compare"), gr.Row():
        other = gr.Dropdown(
            [ALONE, *results.store.labels()], value=ALONE, label="With model", elem_id="attention-other", min_width=200
        )
        other_text = gr.Textbox(
            label="With text",
            info="As many tokens; empty: the same text.",
            elem_id="attention-other-text",
            min_width=200,
        )
    return text, other, other_text


def build_choice() -> tuple[gr.Dropdown, gr.Number, gr.Number]:
    """Build the choices of score, layer and head."""
    choices = [(name.replace("_", " "), name) for name in SCORES if name != "distance"]
    choices += [("distance", "distance"), ("change", CHANGE)]
    score = gr.Dropdown(choices, value="previous_token", label="Head score", elem_id="attention-score", min_width=200)
    layer = gr.Number(0, label="Layer", precision=0, minimum=0, elem_id="attention-layer", min_width=100)
    head = gr.Number(0, label="Head", precision=0, minimum=0, elem_id="attention-head", min_width=100)
    return score, layer, head


def build_views() -> list:
    """Build the views of one head: explorer, heatmap, table."""
    with gr.Accordion("Explorer", open=True):
        explorer = gr.HTML(elem_id="attention-explorer")
    with gr.Accordion("Figure and largest weights", open=True):
        heatmap = picture("attention-heatmap", "The attention weights of one head; the table below gives its numbers")
        table = build_weights("attention-table", ["reads", "at", "is read", "at", "weight"])
    return [explorer, heatmap, table]


def build_weights(name: str, headers: list[str]) -> gr.Dataframe:
    """Build a table of the largest entries of a token by token matrix."""
    return gr.Dataframe(headers=headers, column_count=5, interactive=False, elem_id=name, show_label=False)


def build_rollout(results: ResultCache, subject: gr.State, dark: gr.Checkbox) -> list:
    """Build attention rollout, drawn on request: picture and table."""
    with gr.Accordion("Rollout: through all layers", open=False, elem_id="attention-rollout"):
        draw = gr.Button("Draw rollout", elem_id="attention-rollout-draw")
        drawn = picture(
            "attention-rollout-map", "How much of each token comes from each; the table below has the largest"
        )
        table = build_weights("attention-rollout-table", ["token", "at", "comes from", "at", "share"])

    @user_errors
    def show(subject: Subject | None, dark: bool) -> tuple:
        rollout = rollout_of(results, subject)
        rows = [list(row) for row in largest(rollout.weights, rollout.trace.tokens, TABLE_ROWS)]
        return as_image(rollout_heatmap(rollout, dark=dark)), rows

    draw.click(show, [subject, dark], [drawn, table], api_name="attention_rollout")
    return [drawn, table]


def build_bertviz(
    results: ResultCache, subject: gr.State, layer: gr.Number, head: gr.Number, dark: gr.Checkbox
) -> tuple[gr.Radio, list]:
    """Build bertviz' views, drawn on request: (view choice, [size, lines])."""
    with gr.Accordion("bertviz", open=False, elem_id="attention-bertviz"):
        view = gr.Radio(list(VIEWS), value="head", label="View", elem_id="attention-view")
        plan = gr.Markdown(elem_id="attention-plan")
        with gr.Row():
            size = gr.Button("Estimate size", elem_id="attention-size")
            draw = gr.Button("Draw", elem_id="attention-draw")
        lines = gr.HTML(elem_id="attention-lines")

    @user_errors
    def estimate(subject: Subject | None, view: str, layer: int, head: int) -> str:
        return bertviz_of(results, subject, view, layer, head, None)[0]

    @user_errors
    def draw_view(subject: Subject | None, view: str, layer: int, head: int, dark: bool) -> tuple[str, str]:
        estimated, make_page = bertviz_of(results, subject, view, layer, head, dark)
        return estimated, make_page().iframe()

    size.click(estimate, [subject, view, layer, head], plan, api_name="attention_plan")
    draw.click(draw_view, [subject, view, layer, head, dark], [plan, lines], api_name="attention_bertviz")
    return view, [plan, lines]


def build_files(results: ResultCache, fields: list) -> gr.File:
    """Build the download of a part. `fields` are subject, layer, head, score and view."""
    with gr.Row():
        part = gr.Radio(PARTS, value="head", label="Part", elem_id="attention-part")
        format = gr.Radio(list(FORMATS), value="csv", label="Format", elem_id="attention-format")
    save = gr.Button("Make file", elem_id="attention-save")
    file = gr.File(label="File", interactive=False, visible=False, elem_id="attention-file")

    @user_errors
    def make_file(
        part: str, format: str, subject: Subject | None, layer: int, head: int, score: str, view: str
    ) -> gr.File:
        name, content = file_of(results, subject, part, format, layer=layer, head=head, score=score, view=view)
        return gr.File(str(write_bytes(new_folder() / name, content)), visible=True)

    save.click(make_file, [part, format, *fields], file, api_name="attention_file")
    return file

"""The Attention tab: a map of all heads, the explorer, one head's figure and table, bertviz' views, files to take away."""

import re

import gradio as gr

from gpt2lab.app.attention_content import (
    CHANGE,
    PARTS,
    TABLE_ROWS,
    Shown,
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
from gpt2lab.inspection.heads import SCORES
from gpt2lab.pages.bertviz import VIEWS
from gpt2lab.pages.export import FORMATS, largest

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
    """Prompt → map of heads → one head in the explorer, as figure, table, bertviz' lines and file."""
    gr.Markdown(INTRO)
    shown = gr.State(None)
    text, other, other_text = build_inputs(results)
    inputs = [text, other, other_text]
    with gr.Row():
        show = gr.Button("Show attention", variant="primary", elem_id="attention-show")
        inside = gr.Button("Look inside this text", elem_id="attention-inside")
    note = gr.Markdown(elem_id="attention-note")
    with gr.Row():
        score, layer, head = build_choice()
    heads = picture("attention-map", "A number per head; the table below has them all")
    with gr.Accordion("The map as a table", open=False, elem_id="attention-map-table"):
        numbers = gr.HTML(elem_id="attention-numbers")
    views = [note, *build_views()]
    rollout = build_rollout(results, shown, dark)
    view, bertviz = build_bertviz(results, shown, layer, head, dark)
    file = build_files(results, [shown, layer, head, score, view])
    stale = [*rollout, *bertviz, file]
    shown.change(
        lambda: (None, None, "", "", gr.File(value=None, visible=False)), None, stale, api_visibility="private"
    )

    @user_errors
    def show_all(label, text, other, other_text, score, layer, head, dark):
        shown = Shown.of(label, text, other, other_text)
        trace = first_trace(results, shown)
        layer, head = min(layer or 0, trace.n_layers - 1), min(head or 0, trace.n_heads - 1)
        return (
            shown,
            *head_numbers(results, shown, score, dark),
            layer,
            head,
            *one_head(results, shown, layer, head, dark),
        )

    @user_errors
    def fill_in(request: gr.Request):
        asked = linked(request)
        if asked is None:
            return [gr.skip()] * 7
        labels = [one if one in (ALONE, *results.store.labels()) else gr.skip() for one in (asked[0], asked[2])]
        place = [gr.skip() if number is None else number for number in asked[4:]]
        return gr.Tabs(selected="attention"), labels[0], asked[1], labels[1], asked[3], *place

    @user_errors
    def show_linked(dark, request: gr.Request):
        asked = linked(request)
        if asked is None:
            return [gr.skip()] * len(answered)
        answer = show_all(*asked[:4], "previous_token", *asked[4:], dark)
        if list(answer[3:5]) != asked[4:]:
            layer, head = answer[3:5]
            gr.Warning(
                f"The model has no such layer and head as the link asks for; layer {layer}, head {head} is shown."
            )
        return answer

    @user_errors
    def show_head(shown, layer, head, dark):
        return one_head(results, shown, layer, head, dark)

    @user_errors
    def show_clicked(shown, dark, event: gr.SelectData):
        trace = first_trace(results, shown)
        layer, head = head_at(trace.n_layers, trace.n_heads, event.index)
        return layer, head, *one_head(results, shown, layer, head, dark)

    @user_errors
    def show_score(shown, score, dark):
        return head_numbers(results, shown, score, dark)

    asked = [model, *inputs, score, layer, head, dark]
    answered = [shown, heads, numbers, layer, head, *views]
    for name, ask in (("attention", show.click), ("attention_submit", text.submit)):
        # what was shown goes first, so that nothing of it can be saved where the next cannot be shown
        gone = ask(lambda: (None, ""), None, [shown, note], api_visibility="private", show_progress="hidden")
        gone.then(show_all, asked, answered, api_name=name)
    for number in (layer, head):
        name = f"attention_{number.label.lower()}"
        number.input(show_head, [shown, layer, head, dark], views, api_name=name, trigger_mode="always_last")
    heads.select(show_clicked, [shown, dark], [layer, head, *views], api_name="attention_click")
    opened = demo.load(
        fill_in, None, [tabs, model, *inputs, layer, head], api_visibility="private", api_name="filled_in"
    )
    opened.then(show_linked, dark, answered, js=IS_DARK, api_visibility="private", api_name="linked")
    score.input(show_score, [shown, score, dark], [heads, numbers], api_name="attention_score")
    return Source(other, [text], inside)


def linked(request: gr.Request) -> list | None:
    """Model, text, second model, second text, layer and head that a page's address asks for; None where it names no text.

    A layer or head that is no number is None.
    """
    asked = request.query_params
    if "text" not in asked:
        return None
    places = [asked.get(name, "0") for name in ("layer", "head")]
    numbers = [int(place) if re.fullmatch("[0-9]{1,4}", place) else None for place in places]
    return [
        asked.get("model", "builtin"),
        asked["text"],
        asked.get("other", ALONE),
        asked.get("other_text", ""),
        *numbers,
    ]


def build_inputs(results: ResultCache) -> tuple[gr.Textbox, gr.Dropdown, gr.Textbox]:
    """The text with its examples, and what it may be compared with."""
    text = gr.Textbox(EXAMPLES["induction"], label="Text", lines=2, elem_id="attention-text")
    gr.Examples(
        list(EXAMPLES.values()), text, example_labels=list(EXAMPLES), label="Examples", elem_id="attention-examples"
    )
    with gr.Accordion("Compare", open=False, elem_id="attention-compare"), gr.Row():
        other = gr.Dropdown(
            [ALONE, *results.store.labels()], value=ALONE, label="With model", elem_id="attention-other", min_width=200
        )
        other_text = gr.Textbox(
            label="With text", info="of as many tokens; empty: the same", elem_id="attention-other-text", min_width=200
        )
    return text, other, other_text


def build_choice() -> tuple[gr.Dropdown, gr.Number, gr.Number]:
    """Score, layer and head."""
    choices = [(name.replace("_", " "), name) for name in SCORES if name != "distance"]
    choices += [("distance looked back", "distance"), ("change from the first to the second", CHANGE)]
    score = gr.Dropdown(choices, value="previous_token", label="Map of", elem_id="attention-score", min_width=200)
    layer = gr.Number(0, label="Layer", precision=0, minimum=0, elem_id="attention-layer", min_width=100)
    head = gr.Number(0, label="Head", precision=0, minimum=0, elem_id="attention-head", min_width=100)
    return score, layer, head


def build_views() -> list:
    """Where the views of one head are shown: note, explorer, heatmap, table."""
    with gr.Accordion("Explorer", open=True):
        explorer = gr.HTML(elem_id="attention-explorer")
    with gr.Accordion("Figure and largest weights", open=True):
        heatmap = picture("attention-heatmap", "The attention weights of one head; the table below gives its numbers")
        table = build_weights("attention-table", ["reads", "at", "is read", "at", "weight"])
    return [explorer, heatmap, table]


def build_weights(name: str, headers: list[str]) -> gr.Dataframe:
    """A table of the largest numbers of a matrix of tokens."""
    return gr.Dataframe(headers=headers, column_count=5, interactive=False, elem_id=name, show_label=False)


def build_rollout(results: ResultCache, shown: gr.State, dark: gr.Checkbox) -> list:
    """Attention through all layers, when it is asked for; returns where: picture and table."""
    with gr.Accordion("Rollout: through all layers", open=False, elem_id="attention-rollout"):
        draw = gr.Button("Draw rollout", elem_id="attention-rollout-draw")
        drawn = picture(
            "attention-rollout-map", "How much of each token comes from each; the table below has the largest"
        )
        table = build_weights("attention-rollout-table", ["token", "at", "comes from", "at", "share"])

    @user_errors
    def show(shown, dark):
        found = rollout_of(results, shown)
        rows = [list(row) for row in largest(found.weights, found.trace.tokens, TABLE_ROWS)]
        return as_image(rollout_heatmap(found, dark=dark)), rows

    draw.click(show, [shown, dark], [drawn, table], api_name="attention_rollout")
    return [drawn, table]


def build_bertviz(results: ResultCache, shown: gr.State, layer: gr.Number, head: gr.Number, dark: gr.Checkbox):
    """bertviz' views, drawn when they are asked for, their size told first; returns which view, and where: (size, view)."""
    with gr.Accordion("bertviz", open=False, elem_id="attention-bertviz"):
        view = gr.Radio(list(VIEWS), value="head", label="View", elem_id="attention-view")
        plan = gr.Markdown(elem_id="attention-plan")
        with gr.Row():
            size = gr.Button("How large?", elem_id="attention-size")
            draw = gr.Button("Draw", elem_id="attention-draw")
        lines = gr.HTML(elem_id="attention-lines")

    @user_errors
    def say(shown, view, layer, head):
        return bertviz_of(results, shown, view, layer, head, None)[0]

    @user_errors
    def drawn(shown, view, layer, head, dark):
        told, made = bertviz_of(results, shown, view, layer, head, dark)
        return told, made().iframe()

    size.click(say, [shown, view, layer, head], plan, api_name="attention_plan")
    draw.click(drawn, [shown, view, layer, head, dark], [plan, lines], api_name="attention_bertviz")
    return view, [plan, lines]


def build_files(results: ResultCache, chosen: list) -> gr.File:
    """A part of what is shown as a file; `chosen` is what is shown, layer, head, score, view; returns where."""
    with gr.Row():
        part = gr.Radio(PARTS, value="head", label="Save", elem_id="attention-part")
        format = gr.Radio(list(FORMATS), value="csv", label="as", elem_id="attention-format")
    save = gr.Button("Make file", elem_id="attention-save")
    file = gr.File(label="File", interactive=False, visible=False, elem_id="attention-file")

    @user_errors
    def made(part, format, shown, layer, head, score, view):
        name, content = file_of(results, shown, part, format, layer=layer, head=head, score=score, view=view)
        return gr.File(str(write_bytes(new_folder() / name, content)), visible=True)

    save.click(made, [part, format, *chosen], file, api_name="attention_file")
    return file

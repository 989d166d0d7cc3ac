"""The Attention tab: every head as a thumbnail, one head large, bertviz' lines, a table, and files to take away."""

from collections.abc import Sequence

import gradio as gr

from gpt2lab.errors import LabError, whole_number
from gpt2lab.ui.handling import as_image, new_folder, user_errors
from gpt2lab.ui.shelf import Shelf

EXAMPLES = [
    "Marie Curie discovered polonium in Paris, and Marie Curie discovered radium in Paris.",
    "The blue whale is the largest animal on Earth. The blue whale eats krill.",
    "The keys to the old cabinet in the hall are on the table.",
]
FORMATS = ["png", "svg", "csv", "npz", "html"]
TABLE_ROWS = 20
INTRO = """Every token reads the tokens before it, with weights that sum to 1: `softmax(QKᵀ/√d_k)`, times `V`. Each thumbnail
is one head: a row per token that reads, a column per token that is read. Click one, or choose layer and head."""


def build_attention_tab(shelf: Shelf, model: gr.Dropdown, dark: gr.Checkbox) -> None:
    """Prompt → grid of heads → one head as heatmap, lines, table and file."""
    gr.Markdown(INTRO)
    shown = gr.State(None)  # (label, text) of the grid, whatever the inputs say by now
    text = gr.Textbox(EXAMPLES[0], label="Text", lines=2, elem_id="attention-text")
    gr.Examples(EXAMPLES, text, elem_id="attention-examples")
    show = gr.Button("Show attention", variant="primary", elem_id="attention-show")
    with gr.Row():
        layer = gr.Number(0, label="Layer", precision=0, minimum=0, elem_id="attention-layer", min_width=100)
        head = gr.Number(0, label="Head", precision=0, minimum=0, elem_id="attention-head", min_width=100)
    with gr.Row():
        grid = gr.Image(
            label="All heads",
            show_label=False,
            alt_text="A thumbnail of the attention weights of every head; the table below gives a head's numbers",
            interactive=False,
            format="png",
            buttons=["download", "fullscreen"],
            elem_id="attention-grid",
            min_width=300,
        )
        heatmap = gr.Image(
            label="One head",
            show_label=False,
            alt_text="The attention weights of one head as a heatmap; the table below gives its numbers",
            interactive=False,
            format="png",
            buttons=["download", "fullscreen"],
            elem_id="attention-heatmap",
            min_width=300,
        )
    with gr.Accordion("Lines from token to token (bertviz head view)", open=True):
        lines = gr.HTML(elem_id="attention-lines")
    with gr.Accordion("The head's largest weights", open=True):
        table = gr.Dataframe(
            headers=["reads", "at", "is read", "at", "weight"],
            column_count=5,
            interactive=False,
            elem_id="attention-table",
            show_label=False,
        )
    format = gr.Radio(FORMATS, value="csv", label="Save this head as", elem_id="attention-format")
    save = gr.Button("Make file", elem_id="attention-save")
    file = gr.File(label="File", interactive=False, visible=False, elem_id="attention-file")

    @user_errors
    def all_heads(label, text, layer, head, dark):
        trace = shelf.trace(label, text)
        layer, head = min(layer or 0, trace.n_layers - 1), min(head or 0, trace.n_heads - 1)
        return (label, text), grid_image(trace, dark), layer, head, *one_head(trace, layer, head, dark)

    @user_errors
    def chosen_head(shown, layer, head, dark):
        return one_head(trace_shown(shelf, shown), layer, head, dark)

    @user_errors
    def clicked_head(shown, dark, event: gr.SelectData):
        trace = trace_shown(shelf, shown)
        layer, head = head_at(trace, event.index)
        return layer, head, *one_head(trace, layer, head, dark)

    @user_errors
    def head_file(shown, layer, head, format):
        from gpt2lab.files import write_bytes
        from gpt2lab.views.export import attention_file

        trace = trace_shown(shelf, shown)
        whole_number("head", head, 0, trace.n_heads - 1)
        content = attention_file(trace, format, layer=layer, head=head)
        path = write_bytes(new_folder() / f"attention-layer{layer}-head{head}.{format}", content)
        return gr.File(str(path), visible=True)

    views = [heatmap, lines, table]
    asked, answered = [model, text, layer, head, dark], [shown, grid, layer, head, *views]
    show.click(all_heads, asked, answered, api_name="attention")
    text.submit(all_heads, asked, answered, api_name="attention_submit")
    for number in (layer, head):
        name = f"attention_{number.label.lower()}"
        number.input(chosen_head, [shown, layer, head, dark], views, api_name=name, trigger_mode="always_last")
    grid.select(clicked_head, [shown, dark], [layer, head, *views], api_name="attention_click")
    save.click(head_file, [shown, layer, head, format], file, api_name="attention_file")


def trace_shown(shelf: Shelf, shown: tuple[str, str] | None):
    """The trace of the grid on the page, from its (label, text). Raises: LabError where there is none yet."""
    if shown is None:
        raise LabError("there is no attention here yet; press Show attention first")
    return shelf.trace(*shown)


def grid_image(trace, dark: bool):
    """The grid of thumbnails as a picture."""
    from gpt2lab.views.figures import attention_grid

    return as_image(attention_grid(trace, dark=dark))


def one_head(trace, layer: int, head: int, dark: bool):
    """(heatmap, lines, table rows) of one head. Raises: LabError for a head that does not exist."""
    from gpt2lab.views.bertviz import MAX_TOKENS, head_view_page
    from gpt2lab.views.export import largest_weights
    from gpt2lab.views.figures import attention_heatmap

    whole_number("head", head, 0, trace.n_heads - 1)
    n = len(trace.tokens)
    if n > MAX_TOKENS:
        lines = f"<p>The lines of {n} tokens would freeze the browser; up to {MAX_TOKENS} are drawn.</p>"
    else:
        lines = head_view_page(trace, layer=layer, head=head, theme="dark" if dark else "light").iframe()
    rows = [list(row) for row in largest_weights(trace, layer, head, TABLE_ROWS)]
    return as_image(attention_heatmap(trace, layer, head, dark=dark)), lines, rows


def head_at(trace, point: Sequence[float]) -> tuple[int, int]:
    """(layer, head) of the thumbnail at a point of the grid's picture, in its own pixels; the nearest where none is."""
    from gpt2lab.views.figures import attention_grid_cells

    x, y = point
    cells = attention_grid_cells(trace)
    return min(cells, key=lambda cell: (cells[cell][0] - x) ** 2 + (cells[cell][1] - y) ** 2)

"""The Attention tab: every head as a thumbnail, one head large, bertviz' lines, a table, and files to take away."""

from collections.abc import Sequence
from io import BytesIO
from tempfile import mkdtemp

import gradio as gr

from gpt2lab.errors import LabError
from gpt2lab.ui.handling import user_errors
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
        layer, head = min(_index(layer), trace.n_layers - 1), min(_index(head), trace.n_heads - 1)
        return grid_image(trace, dark), layer, head, *one_head(trace, layer, head, dark)

    @user_errors
    def chosen_head(label, text, layer, head, dark):
        return one_head(shelf.trace(label, text), _index(layer), _index(head), dark)

    @user_errors
    def clicked_head(label, text, dark, event: gr.SelectData):
        trace = shelf.trace(label, text)
        layer, head = head_at(trace, event.index)
        return layer, head, *one_head(trace, layer, head, dark)

    @user_errors
    def head_file(label, text, layer, head, format):
        from gpt2lab.files import write_bytes
        from gpt2lab.views.export import attention_file

        trace = shelf.trace(label, text)
        layer, head = _index(layer), _index(head)
        content = attention_file(trace, format, layer=layer, head=head)
        path = write_bytes(f"{mkdtemp()}/attention-layer{layer}-head{head}.{format}", content)
        return gr.File(str(path), visible=True)

    views = [heatmap, lines, table]
    asked = [model, text, layer, head, dark]
    show.click(all_heads, asked, [grid, layer, head, *views], api_name="attention")
    text.submit(all_heads, asked, [grid, layer, head, *views], api_name="attention_submit")
    for number in (layer, head):
        number.input(
            chosen_head, asked, views, api_name=f"attention_{number.label.lower()}", trigger_mode="always_last"
        )
    grid.select(clicked_head, [model, text, dark], [layer, head, *views], api_name="attention_click")
    save.click(head_file, [model, text, layer, head, format], file, api_name="attention_file")


def grid_image(trace, dark: bool):
    """The grid of thumbnails as a picture."""
    from gpt2lab.views.figures import attention_grid

    return as_image(attention_grid(trace, dark=dark))


def one_head(trace, layer: int, head: int, dark: bool):
    """(heatmap, lines, table rows) of one head."""
    from gpt2lab.views.bertviz import MAX_TOKENS, head_view_page
    from gpt2lab.views.export import largest_weights
    from gpt2lab.views.figures import attention_heatmap

    n = len(trace.tokens)
    if n > MAX_TOKENS:
        lines = f"<p>The lines of {n} tokens would freeze the browser; up to {MAX_TOKENS} are drawn.</p>"
    else:
        lines = head_view_page(trace, layer=layer, head=head, theme="dark" if dark else "light").iframe()
    rows = [list(row) for row in largest_weights(trace, layer, head, TABLE_ROWS)]
    return as_image(attention_heatmap(trace, layer, head, dark=dark)), lines, rows


def as_image(figure):
    """A matplotlib figure as a picture for gr.Image."""
    from PIL import Image

    from gpt2lab.views.figures import figure_bytes

    return Image.open(BytesIO(figure_bytes(figure, "png")))


def head_at(trace, point: Sequence[float]) -> tuple[int, int]:
    """(layer, head) of the thumbnail at a point of the grid's picture, in its own pixels; the nearest where none is."""
    from gpt2lab.views.figures import attention_grid_cells

    x, y = point
    cells = attention_grid_cells(trace)
    return min(cells, key=lambda cell: (cells[cell][0] - x) ** 2 + (cells[cell][1] - y) ** 2)


def _index(value) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or value < 0 or value > 1e6:
        raise LabError(f"layer and head are whole numbers from 0, not {value!r}")
    return int(value)

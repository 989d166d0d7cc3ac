"""The Inside tab: what each token cost, what each layer believed, what adds to it, a block by its formulas, heads switched off."""

from typing import NamedTuple

import gradio as gr

from gpt2lab.ui.handling import ALONE, Stops, new_folder, picture, user_errors
from gpt2lab.ui.looked import (
    COLOURS,
    PARTS,
    Place,
    ablated,
    at_place,
    checked,
    coloured,
    file_of,
    head_names,
    lens_pictures,
    lenses,
    patched,
    ranks,
    summary,
    surprisals,
    sweep_views,
    swept,
    walked,
)
from gpt2lab.ui.shelf import Shelf
from gpt2lab.ui.shown import head_at

EXAMPLES = {
    "a name again": "Marie Curie discovered polonium in Paris, and Marie Curie discovered radium in Paris.",
    "a fact": "The river Nile flows through Egypt, and the river Thames flows through London.",
    "a heading": " = Honey bee = \n\n A honey bee is a social flying insect.",
}
MEASURES = ["rank", "probability", "entropy", "divergence"]  # as views.inside.LENS, which takes torch
FORMATS = ["png", "svg", "csv", "npz", "html"]
INTRO = """How little the model expected each token; click one to see how its prediction came about, layer by layer and part by
part. Then switch heads off and see what the text costs without them."""
LENS = """The **logit lens** reads the state after each layer as if it were the last, with the last norm's own formula. It follows
the token that comes next. *Divergence* is how far the last layer's prediction is from this one (KL, nats)."""
ADDED = """**Direct logit attribution**: each part writes into the state that the last norm and the unembedding read; the parts add
up to the difference of two logits. The last norm's scale is held as it is here: it would be another without a part."""
OFF = """What is switched off writes nothing, or its mean over this text. Unlike attention weights, this is causal: the text costs
so much more without it."""
PATCHING = """The text above is the clean prompt. A corrupted one, of as many tokens, is read with **one** state of the clean run
put in; where that brings the clean answer back, the difference between the prompts lies."""


class Inside(NamedTuple):
    """What the page needs of the tab: the second model's field, the text, and what shows it."""

    other: gr.Dropdown
    text: gr.Textbox
    show: dict


def build_inside_tab(shelf: Shelf, model: gr.Dropdown, dark: gr.Checkbox) -> Inside:
    """Text → surprisal in colours; a token → lens, attribution, walk; heads off → what the text costs; files."""
    gr.Markdown(INTRO)
    seen = gr.State(None)
    text, other, look, note = build_text(shelf)
    by, tokens, scale, limits, bars, counts = build_surprisal()
    position, told, measure, lens, table = build_lens()
    token, against, added, parts = build_attribution()
    layer, head, page = build_walk()
    off, mean, sweep, stop, swept_note, first, second, sweep_table, cost, changed, expected = build_off()
    corrupted, patch, patch_told, patches, patch_table = build_patching()
    place = [position, token, against]
    at = [told, table, *added, parts]
    shown = [seen, note, tokens, scale, bars, counts, *lens, position, *at, page, layer, head, off]
    stale = [swept_note, first, second, sweep_table, cost, changed, expected, patch_told, *patches, patch_table]
    stops = Stops()

    def looked_at(seen, where, dark):
        told, tables, pictures, parts = at_place(shelf, seen, where, dark)
        return told, tables, *two(pictures), parts

    @user_errors
    def show(label, other, text, by, limits, measure, dark):
        found = checked(shelf, label, other, text)
        costs = surprisals(shelf, found)
        by = by if len(costs) > 1 or by != "change" else COLOURS[0]
        last = len(lenses(shelf, found)[0].targets) - 1
        where = Place(max(0, last - 1), "", "")
        return (
            found,
            summary(costs),
            *coloured(costs, by),
            *ranks(shelf, found, limits, dark),
            *two(lens_pictures(shelf, found, measure, dark)),
            where.position,
            *looked_at(found, where, dark),
            walked(shelf, found, where.position, 0, 0, dark),
            0,
            0,
            gr.Dropdown(head_names(shelf, found.label), value=[]),
            *("", *two([]), "", "", [], "", "", *two([]), ""),  # of the text before
        )

    @user_errors
    def show_place(seen, position, token, against, layer, head, dark):
        where = Place(position, token or "", against or "")
        return *looked_at(seen, where, dark), walked(shelf, seen, position, layer, head, dark)

    @user_errors
    def show_clicked(seen, token, against, layer, head, dark, event: gr.SelectData):
        position = max(0, event.index - 1)
        return position, *show_place(seen, position, token, against, layer, head, dark)

    @user_errors
    def show_off(seen, off, mean):
        return ablated(shelf, seen, off, mean)

    @user_errors
    def toggle(seen, off, mean, event: gr.SelectData):
        c = shelf.lab(seen.label).model.config if seen else None
        name = "{}.{}".format(*head_at(c.n_layer, c.n_head, event.index)) if c else ""
        off = [one for one in off if one != name] if name in off else [*off, name]
        return off, *ablated(shelf, seen, off, mean)

    @user_errors
    def show_sweep(request: gr.Request, seen, mean, dark):
        with stops.running(request) as flag:
            for now in swept(shelf, seen, mean):
                if flag.is_set():
                    yield "Stopped.", gr.skip(), gr.skip(), gr.skip()
                    return
                if isinstance(now, str):
                    yield now, gr.skip(), gr.skip(), gr.skip()
            pictures, tables = sweep_views(now, dark)
            yield "Click a head to switch it off, or on again.", *two(pictures), tables

    @user_errors
    def show_patches(seen, corrupted, token, against, dark):
        told, pictures, tables = patched(shelf, seen, corrupted, token or "", against or "", dark)
        return told, *two(pictures), tables

    asked = [model, other, text, by, limits, measure, dark]
    answered = [*shown, *stale]
    gr.on([look.click, text.submit], show, asked, answered, api_name="inside")
    by.input(
        user_errors(lambda seen, by: coloured(surprisals(shelf, seen), by)),
        [seen, by],
        [tokens, scale],
        api_name="inside_colours",
    )
    limits.submit(
        user_errors(lambda seen, limits, dark: ranks(shelf, seen, limits, dark)),
        [seen, limits, dark],
        [bars, counts],
        api_name="inside_ranks",
    )
    measure.input(
        user_errors(lambda seen, measure, dark: two(lens_pictures(shelf, seen, measure, dark))),
        [seen, measure, dark],
        lens,
        api_name="inside_lens",
    )
    tokens.select(
        show_clicked, [seen, token, against, layer, head, dark], [position, *at, page], api_name="inside_token"
    )
    for name, change in (("position", position.input), ("token", token.submit), ("against", against.submit)):
        change(show_place, [seen, *place, layer, head, dark], [*at, page], api_name=f"inside_at_{name}")
    for name, number in (("layer", layer), ("head", head)):
        number.input(
            user_errors(lambda *values: walked(shelf, *values)),
            [seen, position, layer, head, dark],
            page,
            api_name=f"inside_walk_{name}",
            trigger_mode="always_last",
        )
    for name, change in (("off", off.input), ("mean", mean.input)):
        change(show_off, [seen, off, mean], [cost, changed, expected], api_name=f"inside_{name}")
    sweep.click(
        show_sweep,
        [seen, mean, dark],
        [swept_note, first, second, sweep_table],
        api_name="inside_sweep",
        concurrency_limit=4,
        show_progress="hidden",
    )
    stop.click(stops.stop, None, None, api_name="inside_stop", show_progress="hidden")
    first.select(toggle, [seen, off, mean], [off, cost, changed, expected], api_name="inside_toggle")
    patch.click(
        show_patches,
        [seen, corrupted, token, against, dark],
        [patch_told, *patches, patch_table],
        api_name="inside_patch",
    )
    build_save(shelf, [seen, *place, limits, measure, layer, head, off, mean, corrupted])
    return Inside(other, text, {"fn": show, "inputs": asked, "outputs": answered})


def build_text(shelf: Shelf) -> tuple[gr.Textbox, gr.Dropdown, gr.Button, gr.Markdown]:
    """The text with its examples, the second model, and the button."""
    text = gr.Textbox(EXAMPLES["a name again"], label="Text", lines=3, elem_id="inside-text")
    gr.Examples(list(EXAMPLES.values()), text, example_labels=list(EXAMPLES), elem_id="inside-examples")
    other = gr.Dropdown(
        [ALONE, *shelf.labels()], value=ALONE, label="Compare with", elem_id="inside-other", min_width=200
    )
    look = gr.Button("Look inside", variant="primary", elem_id="inside-look")
    return text, other, look, gr.Markdown(elem_id="inside-note")


def build_surprisal() -> tuple:
    """The text in colours, and how many tokens had which rank."""
    by = gr.Radio(list(COLOURS), value="nats", label="Colour by", elem_id="inside-by")
    tokens = gr.HighlightedText(
        label="Tokens: click one", show_legend=False, show_inline_category=False, elem_id="inside-tokens"
    )
    scale = gr.Markdown(elem_id="inside-scale")
    with gr.Accordion("Ranks and costs", open=False, elem_id="inside-ranks"):
        limits = gr.Textbox(
            "10, 100, 1000", label="Limits of the ranks", info="press Enter", elem_id="inside-limits", max_lines=1
        )
        bars = picture("inside-bars", "How many tokens had which rank, and cost how much; the table has the ranks")
        counts = gr.HTML(elem_id="inside-counts")
    return by, tokens, scale, limits, bars, counts


def build_lens() -> tuple:
    """Where is looked, and the lens as pictures and as a table."""
    gr.Markdown("### What each layer believed")
    with gr.Row():
        position = gr.Number(0, precision=0, label="After token", elem_id="inside-position", min_width=100)
        measure = gr.Radio(MEASURES, value="rank", label="Colour layers by", elem_id="inside-measure", min_width=240)
    told = gr.Markdown(elem_id="inside-told")
    lens = pair("inside-lens", "The lens: layers by positions; the table below has the position that is looked at")
    table = gr.HTML(elem_id="inside-table")
    gr.Markdown(LENS)
    return position, told, measure, lens, table


def build_attribution() -> tuple:
    """What adds to a token's logit over another's."""
    gr.Markdown("### What adds to the answer")
    with gr.Row():
        shared = {"info": "text of one token, or #id; press Enter", "max_lines": 1, "min_width": 200}
        token = gr.Textbox(label="Token; empty: what comes next", elem_id="inside-follow", **shared)
        against = gr.Textbox(label="Over; empty: the favourite among the others", elem_id="inside-against", **shared)
    added = pair("inside-added", "What each head adds; the table below has every part")
    with gr.Accordion("Every part", open=False, elem_id="inside-parts-all"):
        parts = gr.HTML(elem_id="inside-parts")
    gr.Markdown(ADDED)
    return token, against, added, parts


def build_walk() -> tuple[gr.Number, gr.Number, gr.HTML]:
    """A block by its formulas."""
    with gr.Accordion("The block, step by step", open=False, elem_id="inside-walk"):
        with gr.Row():
            layer = gr.Number(0, precision=0, label="Layer", elem_id="inside-layer", min_width=100)
            head = gr.Number(0, precision=0, label="Head", elem_id="inside-head", min_width=100)
        page = gr.HTML(elem_id="inside-page")
    return layer, head, page


def build_off() -> tuple:
    """Heads and MLPs switched off, the sweep over all heads, and what the text costs then."""
    gr.Markdown(f"### Switch heads off\n\n{OFF}")
    with gr.Row():
        off = gr.Dropdown(
            [], value=[], multiselect=True, label="Switched off: layer.head", elem_id="inside-off", min_width=240
        )
        mean = gr.Checkbox(False, label="They write their mean, not zero", elem_id="inside-mean", min_width=200)
    with gr.Row():
        sweep = gr.Button("Measure every head alone", elem_id="inside-sweep", min_width=200)
        stop = gr.Button("Stop", elem_id="inside-stop", min_width=100)
    note = gr.Markdown(elem_id="inside-swept")
    first, second = pair(
        "inside-map", "How much more the text costs without each head; the table below has the numbers"
    )
    with gr.Accordion("The map as a table", open=False, elem_id="inside-map-table"):
        table = gr.HTML(elem_id="inside-losses")
    cost = gr.Markdown(elem_id="inside-cost")
    changed = gr.HighlightedText(
        label="What each token costs more without them",
        show_legend=False,
        show_inline_category=False,
        elem_id="inside-changed",
    )
    expected = gr.HTML(elem_id="inside-expected")
    return off, mean, sweep, stop, note, first, second, table, cost, changed, expected


def build_patching() -> tuple:
    """A clean run's states in a corrupted one."""
    with gr.Accordion("Activation patching", open=False, elem_id="inside-patching"):
        gr.Markdown(PATCHING)
        corrupted = gr.Textbox(label="Corrupted prompt", info="of as many tokens", elem_id="inside-corrupted")
        patch = gr.Button("Patch", elem_id="inside-patch")
        told = gr.Markdown(elem_id="inside-patched")
        patches = pair("inside-patches", "How far each state brings the clean answer back; the table has the numbers")
        table = gr.HTML(elem_id="inside-patch-table")
    return corrupted, patch, told, patches, table


def build_save(shelf: Shelf, fields: list) -> None:
    """A part of what is shown as a file."""
    with gr.Row():
        part = gr.Radio(PARTS, value=PARTS[0], label="Save", elem_id="inside-part", min_width=240)
        format = gr.Radio(FORMATS, value="csv", label="as", elem_id="inside-format", min_width=200)
    save = gr.Button("Make file", elem_id="inside-save")
    file = gr.File(label="File", interactive=False, visible=False, elem_id="inside-file")

    @user_errors
    def made(part, format, seen, position, token, against, limits, measure, layer, head, off, mean, corrupted):
        from gpt2lab.files import write_bytes

        name, content = file_of(
            shelf,
            seen,
            part,
            format,
            place=Place(position, token or "", against or ""),
            limits=limits,
            measure=measure,
            layer=layer,
            head=head,
            off=off,
            mean=mean,
            corrupted=corrupted,
        )
        return gr.File(str(write_bytes(new_folder() / name, content)), visible=True)

    save.click(made, [part, format, *fields], file, api_name="inside_file")


def pair(name: str, told: str) -> list[gr.Image]:
    """Places for the picture of a model, and of a second one, which is not seen without it."""
    with gr.Row():
        first, second = picture(name, told), picture(f"{name}-other", f"{told}; of the second model")
    second.visible = False
    return [first, second]


def two(pictures: list) -> list:
    """Pictures of one model or two for the places of a pair."""
    other = pictures[1] if len(pictures) > 1 else None
    return [pictures[0] if pictures else None, gr.Image(other, visible=other is not None)]

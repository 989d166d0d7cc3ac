"""The Inside tab: surprisal, logit lens, direct logit attribution, a block's walk, ablation, activation patching."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gradio as gr

from gpt2lab.app.events import ALONE, Stops, listen, new_folder, picture, uncover, user_errors
from gpt2lab.app.inside_content import (
    COLOURS,
    FIELDS,
    MAX_SHOWN,
    PARTS,
    Place,
    Subject,
    ablated,
    at_place,
    checked,
    coloured,
    file_of,
    head_clicked,
    head_names,
    lens_pictures,
    lenses,
    patch_views,
    patched,
    ranks,
    summary,
    surprisals,
    sweep_views,
    swept,
    walked,
)
from gpt2lab.app.results import ResultCache
from gpt2lab.errors import whole_number
from gpt2lab.figures.lens import LENS
from gpt2lab.files import write_bytes
from gpt2lab.pages.export import FORMATS

EXAMPLES = {
    "a name again": "Marie Curie discovered polonium in Paris, and Marie Curie discovered radium in Paris.",
    "a fact": "The river Nile flows through Egypt, and the river Thames flows through London.",
    "a heading": " = Honey bee = \n\n A honey bee is a social flying insect.",
}
INTRO = """Tokens are coloured by surprisal. Click one to see how the model predicted it, layer by layer, and ablate heads to see
which ones matter."""
LENS_NOTE = """The **logit lens** reads the state after each layer as if it were the last, with the last norm's own formula. It follows
the next token. *Divergence* is how far the last layer's prediction is from this one (KL, nats)."""
ADDED = """**Direct logit attribution**: each part writes into the state that the last norm and the unembedding read; the parts add
up to the difference of two logits. The last norm's scale is held as it is here: it would be another without a part."""
OFF = """An ablated head or MLP writes zero, or its mean over this text. Unlike attention weights, this is causal: it shows how
much the loss depends on that part."""
PATCHING = """The text above is the clean prompt. A corrupted prompt of the same length is read with **one** state of the clean
run patched in. Where that restores the clean answer, the model holds the difference between the prompts."""


class Inside(NamedTuple):
    """What the page connects to other tabs: the choice of a second model, the text, and the event that inspects it."""

    other: gr.Dropdown
    text: gr.Textbox
    show: dict


class Section(NamedTuple):
    """A part of the tab.

    fields  by name
    views   the outputs
    first   returns their values for a new subject
    """

    fields: dict
    views: list
    first: Callable[..., tuple | list]


def build_inside_tab(results: ResultCache, model: gr.Dropdown, dark: gr.Checkbox) -> Inside:
    """Build the tab: text → surprisal in colours; a token → lens, attribution, walk; ablated heads → the loss; files."""
    gr.Markdown(INTRO)
    subject, stops = gr.State(None), Stops("heads or states are still being measured; press Stop first")
    text, other, look, note = build_text(results)
    costs = build_surprisal(results, subject, dark)
    place = build_place(results, subject, dark, costs.fields["tokens"])
    off = build_off(results, subject, dark, stops)
    patching = build_patching(results, subject, dark, stops, place)
    fields = {name: field for section in (costs, place, off, patching) for name, field in section.fields.items()}
    sections = (costs, place, off, patching, build_save(results, subject, fields))
    settings = [costs.fields["by"], costs.fields["limits"], place.fields["measure"], dark]

    @user_errors
    def show(
        request: gr.Request, label: str, other: str, text: str, by: str, limits: str, measure: str, dark: bool
    ) -> tuple:
        subject = checked(results, label, other, text)
        stops.end(request)  # a measurement of the previous text
        line = summary(surprisals(results, subject), lenses(results, subject)[0])
        parts = (section.first(subject, by=by, limits=limits, measure=measure, dark=dark) for section in sections)
        return subject, line, *(view for part in parts for view in part)

    inputs = [model, other, text, *settings]
    outputs = [subject, note, *(view for section in sections for view in section.views)]
    uncover(gr.on([look.click, text.submit], show, inputs, outputs, api_name="inside"), outputs)
    return Inside(other, text, {"fn": show, "inputs": inputs, "outputs": outputs})


def build_text(results: ResultCache) -> tuple[gr.Textbox, gr.Dropdown, gr.Button, gr.Markdown]:
    """Build the text with its examples, the second model, the button and the note."""
    text = gr.Textbox(EXAMPLES["a name again"], label="Text", lines=3, elem_id="inside-text")
    gr.Examples(list(EXAMPLES.values()), text, example_labels=list(EXAMPLES), elem_id="inside-examples")
    other = gr.Dropdown(
        [ALONE, *results.store.labels()], value=ALONE, label="Compare with", elem_id="inside-other", min_width=200
    )
    look = gr.Button("Look inside", variant="primary", elem_id="inside-look")
    return text, other, look, gr.Markdown(elem_id="inside-note")


def build_surprisal(results: ResultCache, subject: gr.State, dark: gr.Checkbox) -> Section:
    """Build the text in colours, and how many tokens had which rank."""
    by = gr.Radio(list(COLOURS), value="nats", label="Colour by", elem_id="inside-by")
    tokens = highlighted("Tokens: click one", "inside-tokens")
    scale = gr.Markdown(elem_id="inside-scale")
    with gr.Accordion("Ranks and costs", open=False, elem_id="inside-ranks"):
        limits = gr.Textbox(
            "10, 100, 1000", label="Rank limits", info="Press Enter.", elem_id="inside-limits", max_lines=1
        )
        bars = picture("inside-bars", "How many tokens had which rank, and cost how much; the table has the ranks")
        counts = gr.HTML(elem_id="inside-counts")

    def first(subject: Subject, *, by: str, limits: str, dark: bool, **settings: Any) -> tuple:
        costs = surprisals(results, subject)
        by = by if len(costs) > 1 or by != "change" else COLOURS[0]
        return *coloured(costs, by), *ranks(results, subject, limits, dark)

    def colour(subject: Subject | None, by: str) -> tuple:
        return coloured(surprisals(results, subject), by)

    def count(subject: Subject | None, limits: str, dark: bool) -> tuple:
        return ranks(results, subject, limits, dark)

    listen(by.input, colour, [subject, by], [tokens, scale], api_name="inside_colours")
    listen(limits.submit, count, [subject, limits, dark], [bars, counts], api_name="inside_ranks")
    return Section({"by": by, "limits": limits, "tokens": tokens}, [tokens, scale, bars, counts], first)


def build_place(results: ResultCache, subject: gr.State, dark: gr.Checkbox, tokens: gr.HighlightedText) -> Section:
    """Build the views of a position: logit lens, direct logit attribution, a block's walk."""
    gr.Markdown("### Logit lens")
    with gr.Row():
        position = gr.Number(0, precision=0, label="After token", elem_id="inside-position", min_width=100)
        measure = gr.Radio(list(LENS), value="rank", label="Colour layers by", elem_id="inside-measure", min_width=240)
    line = gr.Markdown(elem_id="inside-summary")
    lens = pair("inside-lens", "Logit lens: layers by positions; the table below has the selected position")
    table = gr.HTML(elem_id="inside-table")
    gr.Markdown(LENS_NOTE)
    token, against, added, parts = build_attribution()
    with gr.Accordion("The block, step by step", open=False, elem_id="inside-walk"):
        with gr.Row():
            layer = gr.Number(0, precision=0, label="Layer", elem_id="inside-layer", min_width=100)
            head = gr.Number(0, precision=0, label="Head", elem_id="inside-head", min_width=100)
        page = gr.HTML(elem_id="inside-page")
    at, numbers = [line, table, *added, parts, page], [layer, head, dark]

    def show(
        subject: Subject | None, position: int, token: str, against: str, layer: int, head: int, dark: bool
    ) -> tuple:
        place = Place(position, token or "", against or "")
        line, tables, pictures, parts = at_place(results, subject, place, dark)
        return line, tables, *two(pictures), parts, walked(results, subject, position, layer, head, dark)

    def first(subject: Subject, *, measure: str, dark: bool, **settings: Any) -> tuple:
        position = max(0, len(lenses(results, subject)[0].targets) - 2)  # of the last token's prediction
        pictures = two(lens_pictures(results, subject, measure, dark))
        return *pictures, position, "", "", 0, 0, *show(subject, position, "", "", 0, 0, dark)

    def show_clicked(
        subject: Subject | None, token: str, against: str, layer: int, head: int, dark: bool, event: gr.SelectData
    ) -> tuple:
        index = whole_number("token", event.index, 0, MAX_SHOWN)
        position = max(0, index - 1)  # of the clicked token's prediction
        return position, *show(subject, position, token, against, layer, head, dark)

    def colour(subject: Subject | None, measure: str, dark: bool) -> list:
        return two(lens_pictures(results, subject, measure, dark))

    def walk(subject: Subject | None, position: int, layer: int, head: int, dark: bool) -> str:
        return walked(results, subject, position, layer, head, dark)

    listen(tokens.select, show_clicked, [subject, token, against, *numbers], [position, *at], api_name="inside_token")
    for name, change in (("position", position.input), ("token", token.submit), ("against", against.submit)):
        listen(change, show, [subject, position, token, against, *numbers], at, api_name=f"inside_at_{name}")
    for name, number in (("layer", layer), ("head", head)):
        api_name = f"inside_walk_{name}"
        listen(number.input, walk, [subject, position, *numbers], [page], api_name=api_name, trigger_mode="always_last")
    listen(measure.input, colour, [subject, measure, dark], lens, api_name="inside_lens")
    fields = {"position": position, "token": token, "against": against}
    fields |= {"measure": measure, "layer": layer, "head": head}
    return Section(fields, [*lens, position, token, against, layer, head, *at], first)


def build_attribution() -> tuple[gr.Textbox, gr.Textbox, list[gr.Image], gr.HTML]:
    """Build the panel that shows direct logit attribution: token, contrast, pictures, table."""
    gr.Markdown("### Direct logit attribution")
    with gr.Row():
        shared = {"max_lines": 1, "min_width": 200}
        token = gr.Textbox(
            label="Token", info="Text or #id of a token. Default: the next token.", elem_id="inside-follow", **shared
        )
        against = gr.Textbox(
            label="Contrast with",
            info="Text or #id of a token. Default: the runner-up.",
            elem_id="inside-against",
            **shared,
        )
    added = pair("inside-added", "Attribution of each head; the table below has every part")
    with gr.Accordion("Every part", open=False, elem_id="inside-parts-all"):
        parts = gr.HTML(elem_id="inside-parts")
    gr.Markdown(ADDED)
    return token, against, added, parts


def build_off(results: ResultCache, subject: gr.State, dark: gr.Checkbox, stops: Stops) -> Section:
    """Build the ablation of heads and MLPs, the sweep over all heads, and the loss under ablation."""
    gr.Markdown(f"### Ablation\n\n{OFF}")
    with gr.Row():
        off = gr.Dropdown([], value=[], multiselect=True, label="Ablated heads", elem_id="inside-off", min_width=240)
        mean = gr.Checkbox(False, label="Mean ablation", elem_id="inside-mean", min_width=200)
    with gr.Row():
        go = gr.Button("Ablate every head alone", elem_id="inside-sweep", min_width=200)
        stop = gr.Button("Stop", elem_id="inside-stop", min_width=100)
    note = gr.Markdown(elem_id="inside-swept")
    maps = pair("inside-map", "Loss added by ablating each head; the table below has the numbers")
    with gr.Accordion("Scores as a table", open=False, elem_id="inside-map-table"):
        table = gr.HTML(elem_id="inside-losses")
    cost = gr.Markdown(elem_id="inside-cost")
    changed = highlighted("Added loss of each token", "inside-changed")
    expected = gr.HTML(elem_id="inside-expected")
    costs = [cost, changed, expected]

    def first(subject: Subject, **settings: Any) -> tuple:
        return gr.Dropdown(head_names(results, subject.label), value=[], multiselect=True), "", *two([]), "", "", [], ""

    def show(subject: Subject | None, off: list[str] | None, mean: bool) -> tuple:
        return ablated(results, subject, off, mean)

    def toggle(subject: Subject | None, off: list[str] | None, mean: bool, event: gr.SelectData) -> tuple | list:
        name = head_clicked(results, subject, event.index)
        if name is None:
            return [gr.skip()] * (1 + len(costs))
        off = off or []
        off = [other for other in off if other != name] if name in off else [*off, name]
        return off, *ablated(results, subject, off, mean)

    @user_errors
    def sweep(request: gr.Request, subject: Subject | None, mean: bool, dark: bool) -> Iterator[tuple]:
        for line, sweeps in stoppable(stops, request, swept(results, subject, mean)):
            if sweeps is None:
                yield line, *[gr.skip()] * 3
            else:
                pictures, tables = sweep_views(sweeps, dark)
                yield "Click a head to ablate it; click again to restore it.", *two(pictures), tables

    shared = {"concurrency_limit": 4, "show_progress": "hidden"}
    swept_views = [note, *maps, table]
    uncover(go.click(sweep, [subject, mean, dark], swept_views, api_name="inside_sweep", **shared), swept_views)
    stop.click(stops.stop, None, None, api_name="inside_stop", show_progress="hidden")
    for name, place in zip(("toggle", "toggle_other"), maps):
        listen(place.select, toggle, [subject, off, mean], [off, *costs], api_name=f"inside_{name}")
    for name, change in (("off", off.input), ("mean", mean.input)):
        listen(change, show, [subject, off, mean], costs, api_name=f"inside_{name}")
    mean.input(lambda: ("", *two([]), ""), None, swept_views, api_visibility="private")  # the map is of the other kind
    return Section({"off": off, "mean": mean}, [off, *swept_views, *costs], first)


def build_patching(results: ResultCache, subject: gr.State, dark: gr.Checkbox, stops: Stops, place: Section) -> Section:
    """Build activation patching: states of a clean run in a corrupted one."""
    with gr.Accordion("Activation patching", open=False, elem_id="inside-patching"):
        gr.Markdown(PATCHING)
        corrupted = gr.Textbox(label="Corrupted prompt", info="As many tokens as the text.", elem_id="inside-corrupted")
        with gr.Row():
            go = gr.Button("Patch", elem_id="inside-patch", min_width=200)
            stop = gr.Button("Stop", elem_id="inside-patch-stop", min_width=100)
        line = gr.Markdown(elem_id="inside-patched")
        patches = pair("inside-patches", "How far each state restores the clean answer; the table has the numbers")
        table = gr.HTML(elem_id="inside-patch-table")
    views = [line, *patches, table]

    @user_errors
    def patch(
        request: gr.Request, subject: Subject | None, corrupted: str, token: str, against: str, dark: bool
    ) -> Iterator[tuple]:
        steps = patched(results, subject, corrupted, token, against)
        for line, patchings in stoppable(stops, request, steps):
            if patchings is None:
                yield line, *[gr.skip()] * 3
            else:
                line, pictures, tables = patch_views(patchings, dark)
                yield line, *two(pictures), tables

    inputs = [subject, corrupted, place.fields["token"], place.fields["against"], dark]
    shared = {"concurrency_limit": 4, "show_progress": "hidden"}
    uncover(go.click(patch, inputs, views, api_name="inside_patch", **shared), views)
    stop.click(stops.stop, None, None, api_name="inside_patch_stop", show_progress="hidden")
    return Section({"corrupted": corrupted}, views, lambda subject, **settings: ("", *two([]), ""))


def stoppable(stops: Stops, request: gr.Request, steps: Iterator) -> Iterator[tuple[str, list | None]]:
    """Yield (progress line, None) for each step, at last ("", results); ends when Stop is pressed."""
    with stops.running(request) as flag:
        for step in steps:
            if flag.is_set():
                yield "Stopped.", None
                return
            yield (step, None) if isinstance(step, str) else ("", step)


def build_save(results: ResultCache, subject: gr.State, fields: dict) -> Section:
    """Build the download of a part."""
    with gr.Row():
        part = gr.Radio(PARTS, value=PARTS[0], label="Part", elem_id="inside-part", min_width=240)
        format = gr.Radio(list(FORMATS), value="csv", label="Format", elem_id="inside-format", min_width=200)
    save = gr.Button("Make file", elem_id="inside-save")
    file = gr.File(label="File", interactive=False, visible=False, elem_id="inside-file")
    needed = {name: fields[name] for name in FIELDS}

    def make_file(part: str, format: str, subject: Subject | None, *values: Any) -> gr.File:
        name, content = file_of(results, subject, part, format, **dict(zip(needed, values)))
        return gr.File(str(write_bytes(new_folder() / name, content)), visible=True)

    listen(save.click, make_file, [part, format, subject, *needed.values()], [file], api_name="inside_file")
    return Section({}, [file], lambda subject, **settings: [gr.File(None, visible=False)])


def highlighted(label: str, name: str) -> gr.HighlightedText:
    """Build the place of coloured tokens."""
    return gr.HighlightedText(label=label, show_legend=False, show_inline_category=False, elem_id=name)


def pair(name: str, description: str) -> list[gr.Image]:
    """Build the places of two models' pictures; the second is hidden while there is one model."""
    with gr.Row():
        first, second = picture(name, description), picture(f"{name}-other", f"{description}; of the second model")
    second.visible = False
    return [first, second]


def two(pictures: list) -> list:
    """Return the updates of a pair for the pictures of one model or two, or none."""
    other = pictures[1] if len(pictures) > 1 else None
    return [pictures[0] if pictures else None, gr.Image(other, visible=other is not None)]

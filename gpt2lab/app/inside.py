"""The Inside tab: what each token cost, what each layer believed, what adds to it, a block by its formulas, heads switched off."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import gradio as gr

from gpt2lab.app.events import ALONE, Stops, listen, new_folder, picture, uncover, user_errors
from gpt2lab.app.inside_content import (
    COLOURS,
    FIELDS,
    MAX_SHOWN,
    PARTS,
    Place,
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
from gpt2lab.figures.inside import LENS
from gpt2lab.files import write_bytes
from gpt2lab.pages.export import FORMATS

EXAMPLES = {
    "a name again": "Marie Curie discovered polonium in Paris, and Marie Curie discovered radium in Paris.",
    "a fact": "The river Nile flows through Egypt, and the river Thames flows through London.",
    "a heading": " = Honey bee = \n\n A honey bee is a social flying insect.",
}
INTRO = """How little the model expected each token; click one to see how its prediction came about, layer by layer and part by
part. Then switch heads off and see what the text costs without them."""
LENS_NOTE = """The **logit lens** reads the state after each layer as if it were the last, with the last norm's own formula. It follows
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


class Section(NamedTuple):
    """A part of the tab: fields by name, the places of what it shows, and what makes that for a text just looked into."""

    fields: dict
    views: list
    first: Callable


def build_inside_tab(results: ResultCache, model: gr.Dropdown, dark: gr.Checkbox) -> Inside:
    """Text → surprisal in colours; a token → lens, attribution, walk; heads off → what the text costs; files."""
    gr.Markdown(INTRO)
    seen, stops = gr.State(None), Stops("heads or states are still being measured; press Stop first")
    text, other, look, note = build_text(results)
    costs = build_surprisal(results, seen, dark)
    place = build_place(results, seen, dark, costs.fields["tokens"])
    off = build_off(results, seen, dark, stops)
    patching = build_patching(results, seen, dark, stops, place)
    fields = {name: field for one in (costs, place, off, patching) for name, field in one.fields.items()}
    sections = (costs, place, off, patching, build_save(results, seen, fields))
    settings = [costs.fields["by"], costs.fields["limits"], place.fields["measure"], dark]

    @user_errors
    def show(request: gr.Request, label, other, text, by, limits, measure, dark):
        found = checked(results, label, other, text)
        stops.end(request)  # what is measured of the text before
        told = summary(surprisals(results, found), lenses(results, found)[0])
        parts = (one.first(found, by=by, limits=limits, measure=measure, dark=dark) for one in sections)
        return found, told, *(view for part in parts for view in part)

    asked = [model, other, text, *settings]
    answered = [seen, note, *(view for one in sections for view in one.views)]
    uncover(gr.on([look.click, text.submit], show, asked, answered, api_name="inside"), answered)
    return Inside(other, text, {"fn": show, "inputs": asked, "outputs": answered})


def build_text(results: ResultCache) -> tuple[gr.Textbox, gr.Dropdown, gr.Button, gr.Markdown]:
    """The text with its examples, the second model, and the button."""
    text = gr.Textbox(EXAMPLES["a name again"], label="Text", lines=3, elem_id="inside-text")
    gr.Examples(list(EXAMPLES.values()), text, example_labels=list(EXAMPLES), elem_id="inside-examples")
    other = gr.Dropdown(
        [ALONE, *results.store.labels()], value=ALONE, label="Compare with", elem_id="inside-other", min_width=200
    )
    look = gr.Button("Look inside", variant="primary", elem_id="inside-look")
    return text, other, look, gr.Markdown(elem_id="inside-note")


def build_surprisal(results: ResultCache, seen: gr.State, dark: gr.Checkbox) -> Section:
    """The text in colours, and how many tokens had which rank."""
    by = gr.Radio(list(COLOURS), value="nats", label="Colour by", elem_id="inside-by")
    tokens = highlighted("Tokens: click one", "inside-tokens")
    scale = gr.Markdown(elem_id="inside-scale")
    with gr.Accordion("Ranks and costs", open=False, elem_id="inside-ranks"):
        limits = gr.Textbox(
            "10, 100, 1000", label="Limits of the ranks", info="press Enter", elem_id="inside-limits", max_lines=1
        )
        bars = picture("inside-bars", "How many tokens had which rank, and cost how much; the table has the ranks")
        counts = gr.HTML(elem_id="inside-counts")

    def first(seen, *, by, limits, dark, **settings):
        found = surprisals(results, seen)
        return *coloured(found, by if len(found) > 1 or by != "change" else COLOURS[0]), *ranks(
            results, seen, limits, dark
        )

    def colour(seen, by):
        return coloured(surprisals(results, seen), by)

    def count(seen, limits, dark):
        return ranks(results, seen, limits, dark)

    listen(by.input, colour, [seen, by], [tokens, scale], api_name="inside_colours")
    listen(limits.submit, count, [seen, limits, dark], [bars, counts], api_name="inside_ranks")
    return Section({"by": by, "limits": limits, "tokens": tokens}, [tokens, scale, bars, counts], first)


def build_place(results: ResultCache, seen: gr.State, dark: gr.Checkbox, tokens: gr.HighlightedText) -> Section:
    """A place of the text: what each layer believed there, what adds to the answer, the block by its formulas."""
    gr.Markdown("### What each layer believed")
    with gr.Row():
        position = gr.Number(0, precision=0, label="After token", elem_id="inside-position", min_width=100)
        measure = gr.Radio(list(LENS), value="rank", label="Colour layers by", elem_id="inside-measure", min_width=240)
    told = gr.Markdown(elem_id="inside-told")
    lens = pair("inside-lens", "The lens: layers by positions; the table below has the position that is looked at")
    table = gr.HTML(elem_id="inside-table")
    gr.Markdown(LENS_NOTE)
    token, against, added, parts = build_attribution()
    with gr.Accordion("The block, step by step", open=False, elem_id="inside-walk"):
        with gr.Row():
            layer = gr.Number(0, precision=0, label="Layer", elem_id="inside-layer", min_width=100)
            head = gr.Number(0, precision=0, label="Head", elem_id="inside-head", min_width=100)
        page = gr.HTML(elem_id="inside-page")
    at, numbers = [told, table, *added, parts, page], [layer, head, dark]

    def looked_at(seen, position, token, against, layer, head, dark):
        place = Place(position, token or "", against or "")
        told, tables, pictures, parts = at_place(results, seen, place, dark)
        return told, tables, *two(pictures), parts, walked(results, seen, position, layer, head, dark)

    def first(seen, *, measure, dark, **settings):
        position = max(0, len(lenses(results, seen)[0].targets) - 2)  # after which the last token came
        pictures = two(lens_pictures(results, seen, measure, dark))
        return *pictures, position, "", "", 0, 0, *looked_at(seen, position, "", "", 0, 0, dark)

    def show(*values):
        return looked_at(*values)

    def show_clicked(seen, token, against, layer, head, dark, event: gr.SelectData):
        position = max(
            0, whole_number("token", event.index, 0, MAX_SHOWN) - 1
        )  # the prediction of the token that was clicked
        return position, *looked_at(seen, position, token, against, layer, head, dark)

    def colour(seen, measure, dark):
        return two(lens_pictures(results, seen, measure, dark))

    def walk(*values):
        return walked(results, *values)

    listen(tokens.select, show_clicked, [seen, token, against, *numbers], [position, *at], api_name="inside_token")
    for name, change in (("position", position.input), ("token", token.submit), ("against", against.submit)):
        listen(change, show, [seen, position, token, against, *numbers], at, api_name=f"inside_at_{name}")
    for name, number in (("layer", layer), ("head", head)):
        api_name = f"inside_walk_{name}"
        listen(number.input, walk, [seen, position, *numbers], [page], api_name=api_name, trigger_mode="always_last")
    listen(measure.input, colour, [seen, measure, dark], lens, api_name="inside_lens")
    fields = {
        "position": position,
        "token": token,
        "against": against,
        "measure": measure,
        "layer": layer,
        "head": head,
    }
    return Section(fields, [*lens, position, token, against, layer, head, *at], first)


def build_attribution() -> tuple:
    """Where is shown what adds to a token's logit over another's."""
    gr.Markdown("### What adds to the answer")
    with gr.Row():
        shared = {"info": "text of one token, or #id; press Enter", "max_lines": 1, "min_width": 200}
        token = gr.Textbox(label="Token; empty: what comes next", elem_id="inside-follow", **shared)
        against = gr.Textbox(
            label="Over; empty: the top prediction among the others", elem_id="inside-against", **shared
        )
    added = pair("inside-added", "What each head adds; the table below has every part")
    with gr.Accordion("Every part", open=False, elem_id="inside-parts-all"):
        parts = gr.HTML(elem_id="inside-parts")
    gr.Markdown(ADDED)
    return token, against, added, parts


def build_off(results: ResultCache, seen: gr.State, dark: gr.Checkbox, stops: Stops) -> Section:
    """Heads and MLPs switched off, the sweep over all heads, and what the text costs then."""
    gr.Markdown(f"### Switch heads off\n\n{OFF}")
    with gr.Row():
        off = gr.Dropdown(
            [], value=[], multiselect=True, label="Switched off: layer.head", elem_id="inside-off", min_width=240
        )
        mean = gr.Checkbox(False, label="They write their mean, not zero", elem_id="inside-mean", min_width=200)
    with gr.Row():
        go = gr.Button("Measure every head alone", elem_id="inside-sweep", min_width=200)
        stop = gr.Button("Stop", elem_id="inside-stop", min_width=100)
    note = gr.Markdown(elem_id="inside-swept")
    maps = pair("inside-map", "How much more the text costs without each head; the table below has the numbers")
    with gr.Accordion("The map as a table", open=False, elem_id="inside-map-table"):
        table = gr.HTML(elem_id="inside-losses")
    cost = gr.Markdown(elem_id="inside-cost")
    changed = highlighted("What each token costs more without them", "inside-changed")
    expected = gr.HTML(elem_id="inside-expected")
    costs = [cost, changed, expected]

    def first(seen, **settings):
        return gr.Dropdown(head_names(results, seen.label), value=[], multiselect=True), "", *two([]), "", "", [], ""

    def show(seen, off, mean):
        return ablated(results, seen, off, mean)

    def toggle(seen, off, mean, event: gr.SelectData):
        name = head_clicked(results, seen, event.index)
        if name is None:
            return [gr.skip()] * (1 + len(costs))
        off = [one for one in off or [] if one != name] if name in (off or []) else [*(off or []), name]
        return off, *ablated(results, seen, off, mean)

    @user_errors
    def sweep(request: gr.Request, seen, mean, dark):
        for told, done in measured(stops, request, swept(results, seen, mean)):
            if done is None:
                yield told, *[gr.skip()] * 3
            else:
                pictures, tables = sweep_views(done, dark)
                yield "Click a head to switch it off, or on again.", *two(pictures), tables

    shared = {"concurrency_limit": 4, "show_progress": "hidden"}
    swept_views = [note, *maps, table]
    uncover(go.click(sweep, [seen, mean, dark], swept_views, api_name="inside_sweep", **shared), swept_views)
    stop.click(stops.stop, None, None, api_name="inside_stop", show_progress="hidden")
    for name, place in zip(("toggle", "toggle_other"), maps):
        listen(place.select, toggle, [seen, off, mean], [off, *costs], api_name=f"inside_{name}")
    for name, change in (("off", off.input), ("mean", mean.input)):
        listen(change, show, [seen, off, mean], costs, api_name=f"inside_{name}")
    mean.input(lambda: ("", *two([]), ""), None, swept_views, api_visibility="private")  # the map was of the other
    return Section({"off": off, "mean": mean}, [off, *swept_views, *costs], first)


def build_patching(results: ResultCache, seen: gr.State, dark: gr.Checkbox, stops: Stops, place: Section) -> Section:
    """A clean run's states in a corrupted one."""
    with gr.Accordion("Activation patching", open=False, elem_id="inside-patching"):
        gr.Markdown(PATCHING)
        corrupted = gr.Textbox(label="Corrupted prompt", info="of as many tokens", elem_id="inside-corrupted")
        with gr.Row():
            go = gr.Button("Patch", elem_id="inside-patch", min_width=200)
            stop = gr.Button("Stop", elem_id="inside-patch-stop", min_width=100)
        told = gr.Markdown(elem_id="inside-patched")
        patches = pair("inside-patches", "How far each state brings the clean answer back; the table has the numbers")
        table = gr.HTML(elem_id="inside-patch-table")
    views = [told, *patches, table]

    @user_errors
    def patch(request: gr.Request, seen, corrupted, token, against, dark):
        for told, done in measured(stops, request, patched(results, seen, corrupted, token, against)):
            if done is None:
                yield told, *[gr.skip()] * 3
            else:
                told, pictures, tables = patch_views(done, dark)
                yield told, *two(pictures), tables

    asked = [seen, corrupted, place.fields["token"], place.fields["against"], dark]
    shared = {"concurrency_limit": 4, "show_progress": "hidden"}
    uncover(go.click(patch, asked, views, api_name="inside_patch", **shared), views)
    stop.click(stops.stop, None, None, api_name="inside_patch_stop", show_progress="hidden")
    return Section({"corrupted": corrupted}, views, lambda seen, **settings: ("", *two([]), ""))


def measured(stops: Stops, request: gr.Request, steps: Iterator) -> Iterator[tuple[str, list | None]]:
    """(how far it is, None) as steps go on, at last ("", what they came to); ends where Stop is pressed."""
    with stops.running(request) as flag:
        for now in steps:
            if flag.is_set():
                yield "Stopped.", None
                return
            yield (now, None) if isinstance(now, str) else ("", now)


def build_save(results: ResultCache, seen: gr.State, fields: dict) -> Section:
    """A part of what is shown as a file."""
    with gr.Row():
        part = gr.Radio(PARTS, value=PARTS[0], label="Save", elem_id="inside-part", min_width=240)
        format = gr.Radio(list(FORMATS), value="csv", label="as", elem_id="inside-format", min_width=200)
    save = gr.Button("Make file", elem_id="inside-save")
    file = gr.File(label="File", interactive=False, visible=False, elem_id="inside-file")
    needed = {name: fields[name] for name in FIELDS}

    def made(part, format, seen, *values):
        name, content = file_of(results, seen, part, format, **dict(zip(needed, values)))
        return gr.File(str(write_bytes(new_folder() / name, content)), visible=True)

    listen(save.click, made, [part, format, seen, *needed.values()], [file], api_name="inside_file")
    return Section({}, [file], lambda seen, **settings: [gr.File(None, visible=False)])


def highlighted(label: str, name: str) -> gr.HighlightedText:
    """A place for tokens in colours."""
    return gr.HighlightedText(label=label, show_legend=False, show_inline_category=False, elem_id=name)


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

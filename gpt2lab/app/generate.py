"""The Generate tab: text as it is written, by one model or two; what each token was chosen from; other ways to go on."""

from typing import NamedTuple

import gradio as gr

from gpt2lab.app.events import ALONE, Source, Stops, uncover, user_errors
from gpt2lab.app.generate_content import (
    COLOURS,
    MAX_CONTINUATIONS,
    MAX_TEXTS,
    NOTHING,
    Start,
    branch,
    choices_of,
    chosen,
    listed,
    measured,
    side_of,
    step_rows,
    write,
)
from gpt2lab.app.models import ModelStore
from gpt2lab.data.sources import DATA

EXAMPLES = ["The moon is", "In 1867, Marie Curie was born in", "The river Nile flows through", " = Coffee = \n"]
MAX_NEW_TOKENS = 512
INTRO = """The model gives every token of its vocabulary a probability; sampling chooses one, and the next begins. Click a
token to see what it was chosen from, what other settings would make of that, and to go on from another one."""
MEASURES = """- **distinct-n**: distinct runs of n tokens over all of them; 1 where none comes twice
- **repeated**: share of runs of 4 tokens that were there before
- **copied**: the longest part that stands in the training text word for word
- **perplexity**: per token of the text after its prompt, under each model; lower is more probable"""
SAMPLING = ("temperature", "top_p", "top_k", "min_p")  # what a token's bars can be drawn anew by


class Side(NamedTuple):
    """A place for one of the texts."""

    column: gr.Column
    text: gr.Textbox
    ending: gr.Markdown
    tokens: gr.HighlightedText


def build_generate_tab(store: ModelStore, model: gr.Dropdown) -> Source:
    """Prompt and sampling → streamed text in colours; a token → its alternatives → another text."""
    gr.Markdown(INTRO)
    texts, at, stops = gr.State(()), gr.State(None), Stops()
    with gr.Row():
        with gr.Column(scale=3, min_width=280):
            prompt, other, go, stop, note = build_prompt(store)
        with gr.Column(scale=2, min_width=280):
            settings, continuations = build_settings()
    which, beside, by, left, right = build_texts()
    inside = gr.Button("Look inside this text", elem_id="generate-inside")
    bars, told, choices, drawn = build_choices(texts, at)
    table, measures = build_tables(store, texts, which, beside)
    shown = [which, beside, *left[1:], *right, table, measures]  # the first place is always there

    def views(texts, left, right, by, done=True):
        """What `shown` holds for two texts' numbers; the table is only made of what is done."""
        first = chosen(texts, left)
        second = side_of(chosen(texts, right), by) if right else ("", "", [])
        return [
            gr.Dropdown(listed(texts), value=left, visible=len(texts) > 1),
            gr.Dropdown([("nothing", NOTHING), *listed(texts)], value=right, visible=len(texts) > 1),
            *side_of(first, by),
            gr.Column(visible=bool(right)),
            *second,
            step_rows(first) if done else gr.skip(),
            "",
        ]

    def stream(request, texts, starts, count, by, beside=NOTHING):
        """The views of texts while they are written, after all the texts and a word on how far it is."""
        with stops.running(request) as flag:
            yield gr.skip(), "Reading the prompt …", *([gr.skip()] * len(shown))
            for now in write(store, texts, starts, count, flag):
                kept = {text.number for text in now.texts}
                right = now.right or (beside if beside in kept else NOTHING)
                yield now.texts, now.told, *views(now.texts, now.left, right, by, now.done)

    @user_errors
    def generate(request: gr.Request, label, other, prompt, continuations, by, texts, *values):
        options = dict(zip(settings, values))
        options |= {name: options[name] or None for name in ("top_k", "window")}  # 0 is none
        labels = [label] if other in (None, ALONE) else [label, other]
        yield from stream(
            request, texts, [Start(one, {"prompt": prompt, **options}) for one in labels], continuations, by
        )

    @user_errors
    def go_on(request: gr.Request, texts, at, by, beside, event: gr.SelectData):
        yield from stream(request, texts, [branch(texts, at, event.index)], 1, by, beside)

    @user_errors
    def show(texts, which, beside, by):
        return views(texts, which, beside, by) if texts else [gr.skip()] * len(shown)

    @user_errors
    def look(texts, number, event: gr.SelectData):
        place, drawn_by = (number, event.index), chosen(texts, number).start.settings
        values = [drawn_by[name] for name in SAMPLING]
        return place, gr.Row(visible=True), *choices_of(texts, place, *values), *(one or 0 for one in values)

    asked = [model, other, prompt, continuations, by, texts, *settings.values()]
    answered = [texts, note, *shown]
    shared = {"concurrency_limit": 4, "show_progress": "hidden"}  # the note tells it
    writing = [
        gr.on([go.click, prompt.submit], generate, asked, answered, api_name="generate", **shared),
        choices.select(go_on, [texts, at, by, beside], answered, api_name="generate_branch", **shared),
    ]
    for event in writing:
        uncover(event, answered)
    stop.click(stops.stop, None, None, api_name="generate_stop", show_progress="hidden")
    for name, place, number in (("token", left, which), ("token_beside", right, beside)):
        place.tokens.select(look, [texts, number], [at, bars, told, choices, *drawn], api_name=f"generate_{name}")
    for name, changed in (("show", which), ("show_beside", beside), ("colours", by)):
        changed.input(show, [texts, which, beside, by], shown, api_name=f"generate_{name}")
    return Source(other, [left.text, prompt], inside)


def build_prompt(store: ModelStore) -> tuple[gr.Textbox, gr.Dropdown, gr.Button, gr.Button, gr.Markdown]:
    """The prompt with its examples, the second model, the buttons, and where is told how it goes."""
    prompt = gr.Textbox(
        EXAMPLES[0], label="Prompt", info="empty: the model begins by itself", lines=3, elem_id="generate-prompt"
    )
    gr.Examples(EXAMPLES, prompt, elem_id="generate-examples")
    other = gr.Dropdown(
        [ALONE, *store.labels()],
        value=ALONE,
        label="Beside it, from the same prompt and seed",
        elem_id="generate-other",
    )
    with gr.Row():
        go = gr.Button("Generate", variant="primary", elem_id="generate-go", min_width=120)
        stop = gr.Button("Stop", elem_id="generate-stop", min_width=100)
    return prompt, other, go, stop, gr.Markdown(elem_id="generate-note")


def build_settings() -> tuple[dict[str, gr.components.Component], gr.Slider]:
    """How long, how tokens are drawn, how the model computes, by the names of `request`; and how many continuations."""
    settings = {
        "max_new_tokens": gr.Slider(
            1, MAX_NEW_TOKENS, 80, step=1, label="New tokens, at most", elem_id="generate-length"
        ),
        "temperature": gr.Slider(
            0, 2, 0.8, step=0.05, label="Temperature", info="0 takes the most probable token", elem_id="generate-temp"
        ),
        "top_p": gr.Slider(
            0.05, 1, 0.95, step=0.05, label="Top-p", info="1 keeps all tokens", elem_id="generate-top-p"
        ),
    }
    with gr.Row():
        for name, label, info in (("top_k", "Top-k", "0 keeps all"), ("seed", "Seed", "same seed, same text")):
            elem_id = f"generate-{name.replace('_', '-')}"
            settings[name] = gr.Number(0, precision=0, label=label, info=info, elem_id=elem_id, min_width=100)
    with gr.Accordion("More", open=False, elem_id="generate-more"):
        settings["min_p"] = gr.Slider(
            0, 1, 0, step=0.01, label="Min-p", info="share of the top prediction's probability; 0 keeps all"
        )
        settings["repetition_penalty"] = gr.Slider(0.5, 2, 1, step=0.05, label="Repetition penalty", info="1 is none")
        settings["window"] = gr.Number(
            0,
            precision=0,
            label="Window",
            info="past the context, so many last tokens are read anew; 0 ends the text there",
        )
        settings["precision"] = gr.Dropdown(
            ["fp32", "bf16", "int8"],
            value="fp32",
            label="Precision",
            info="bf16 is faster with bf16 units, int8 on x86 processors. Both change probabilities slightly.",
            elem_id="generate-precision",
        )
        continuations = gr.Slider(
            1,
            MAX_CONTINUATIONS,
            1,
            step=1,
            label="Continuations",
            info="with this seed and those after it; the most probable is shown, all are in the list",
            elem_id="generate-count",
        )
    return settings, continuations


def build_texts() -> tuple[gr.Dropdown, gr.Dropdown, gr.Radio, Side, Side]:
    """Which texts are shown, and the places for one and for another beside it."""
    with gr.Row():
        which = gr.Dropdown(
            [], label=f"Texts so far, the last {MAX_TEXTS}", visible=False, elem_id="generate-which", min_width=280
        )
        beside = gr.Dropdown(
            [("nothing", NOTHING)],
            value=NOTHING,
            label="Beside it",
            visible=False,
            elem_id="generate-beside",
            min_width=280,
        )
    scales = "; ".join(f"{name}: {scale}" for name, scale in COLOURS.items())
    by = gr.Radio(list(COLOURS), value="probability", label="Colour by", info=scales, elem_id="generate-by")
    with gr.Row():
        return which, beside, by, build_side("", True), build_side("-beside", False)


def build_side(end: str, visible: bool) -> Side:
    """A place for a text and its tokens in colours; `end` of its parts' ids."""
    with gr.Column(visible=visible, min_width=280) as column:
        text = gr.Textbox(label="Text", lines=6, interactive=False, buttons=["copy"], elem_id=f"generate-text{end}")
        ending = gr.Markdown(elem_id=f"generate-ending{end}")
        tokens = gr.HighlightedText(
            label="Tokens: click one",
            show_legend=False,
            show_inline_category=False,
            elem_id=f"generate-tokens{end}",
        )
    return Side(column, text, ending, tokens)


def build_choices(texts: gr.State, at: gr.State) -> tuple[gr.Row, gr.Markdown, gr.Label, list]:
    """What a token was chosen from: the row of it, in words, in bars that can be clicked, and sliders that draw those anew."""
    with gr.Row(visible=False) as bars:
        with gr.Column(scale=3, min_width=280):
            told = gr.Markdown(elem_id="generate-token")
            choices = gr.Label(label="Click one to go on from there", show_heading=False, elem_id="generate-choices")
        with gr.Column(scale=2, min_width=280):
            gr.Markdown("What would the bars be with")
            drawn = [
                gr.Slider(0, 2, 1, step=0.05, label="Temperature", elem_id="generate-redraw-temperature"),
                gr.Slider(0.05, 1, 1, step=0.05, label="Top-p", elem_id="generate-redraw-top-p"),
                gr.Number(0, precision=0, label="Top-k", info="0 keeps all", elem_id="generate-redraw-top-k"),
                gr.Slider(0, 1, 0, step=0.01, label="Min-p", elem_id="generate-redraw-min-p"),
            ]

    @user_errors
    def redraw(texts, at, *values):
        return choices_of(texts, at, *values)

    shared = {"trigger_mode": "always_last", "show_progress": "hidden"}
    for name, field in zip(SAMPLING, drawn):
        api_name = f"generate_redraw_{name}"
        field.input(redraw, [texts, at, *drawn], [told, choices], api_name=api_name, **shared)
    return bars, told, choices, drawn


def build_tables(
    store: ModelStore, texts: gr.State, which: gr.Dropdown, beside: gr.Dropdown
) -> tuple[gr.Dataframe, gr.HTML]:
    """Every token of the text, and measures of the texts shown when they are asked for."""
    with gr.Accordion("Every token, and what it was chosen from", open=False):
        table = gr.Dataframe(
            headers=["token", "probability", "rank", "entropy (nats)", "the model's top predictions"],
            column_count=5,
            interactive=False,
            show_label=False,
            elem_id="generate-steps",
        )
    with gr.Accordion("How varied, what it copies, how probable", open=False, elem_id="generate-measures"):
        with gr.Row():
            data = gr.Dropdown(
                list(DATA), value="sample", label="Copies from the training split of", elem_id="generate-data"
            )
            measure = gr.Button("Measure", elem_id="generate-measure")
        measures = gr.HTML(elem_id="generate-measured")
        gr.Markdown(MEASURES)

    @user_errors
    def measure_shown(texts, which, beside, data):
        second = [chosen(texts, beside)] if beside else []
        return measured(store, [chosen(texts, which), *second], data)

    measure.click(measure_shown, [texts, which, beside, data], measures, api_name="generate_measure")
    return table, measures

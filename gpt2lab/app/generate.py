"""The Generate tab: text as it is written, by one model or two; each token's alternatives; branches."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import gradio as gr

from gpt2lab.app.events import ALONE, Source, Stops, uncover, user_errors
from gpt2lab.app.generate_content import (
    COLOURS,
    MAX_CONTINUATIONS,
    MAX_TEXTS,
    NOTHING,
    Place,
    Start,
    alternatives,
    branch,
    list_choices,
    measure_table,
    numbered,
    step_rows,
    text_views,
    write,
)
from gpt2lab.app.models import ModelStore
from gpt2lab.data.sources import DATA

EXAMPLES = ["The moon is", "In 1867, Marie Curie was born in", "The river Nile flows through", " = Coffee = \n"]
MAX_NEW_TOKENS = 512
INTRO = """The model gives every token of its vocabulary a probability, and sampling chooses one. Click a token to see its
alternatives, to see the effect of other settings, and to continue from another token."""
MEASURES = """- **distinct-n**: distinct runs of n tokens over all of them; 1 where none comes twice
- **repeated**: share of runs of 4 tokens that occurred before
- **copied**: the longest part that occurs in the training text word for word
- **perplexity**: per token of the text after its prompt, under each model; lower is more probable"""
SAMPLING = ("temperature", "top_p", "top_k", "min_p")  # the settings that a token's bars can be redrawn with


class Side(NamedTuple):
    """The components of one text."""

    column: gr.Column
    text: gr.Textbox
    ending: gr.Markdown
    tokens: gr.HighlightedText


def build_generate_tab(store: ModelStore, model: gr.Dropdown) -> Source:
    """Build the tab: prompt and sampling → streamed text in colours; a token → its alternatives → a branch."""
    gr.Markdown(INTRO)
    texts, at, stops = gr.State(()), gr.State(None), Stops()
    with gr.Row():
        with gr.Column(scale=3, min_width=280):
            prompt, other, go, stop, note = build_prompt(store)
        with gr.Column(scale=2, min_width=280):
            settings, continuations = build_settings()
    which, beside, by, left, right = build_texts()
    explore = gr.Button("Explore this text", elem_id="generate-explore")
    bars, summary, choices, drawn = build_choices(texts, at)
    table, measures = build_tables(store, texts, which, beside)
    places = [which, beside, *left[1:], *right, table, measures]  # the first place is always there

    def views(texts: tuple, left: int, right: int, by: str, done: bool = True) -> list:
        """Return the values of `places` for two texts' numbers. The table is only updated at the end."""
        first = numbered(texts, left)
        second = text_views(numbered(texts, right), by) if right else ("", "", [])
        return [
            gr.Dropdown(list_choices(texts), value=left, visible=len(texts) > 1),
            gr.Dropdown([("nothing", NOTHING), *list_choices(texts)], value=right, visible=len(texts) > 1),
            *text_views(first, by),
            gr.Column(visible=bool(right)),
            *second,
            step_rows(first) if done else gr.skip(),
            "",
        ]

    def stream(
        request: gr.Request, texts: tuple, starts: list[Start], count: int, by: str, beside: int = NOTHING
    ) -> Iterator[tuple]:
        """Yield (texts, note, *views) while texts are written."""
        with stops.running(request) as flag:
            yield gr.skip(), "Reading the prompt …", *([gr.skip()] * len(places))
            for now in write(store, texts, starts, count, flag):
                numbers = {text.number for text in now.texts}
                right = now.right or (beside if beside in numbers else NOTHING)
                yield now.texts, now.speed, *views(now.texts, now.left, right, by, now.done)

    @user_errors
    def generate(
        request: gr.Request,
        label: str,
        other: str,
        prompt: str,
        continuations: int,
        by: str,
        texts: tuple,
        *values: Any,
    ) -> Iterator[tuple]:
        options = dict(zip(settings, values))
        options |= {name: options[name] or None for name in ("top_k", "window")}  # 0 is none
        labels = [label] if other in (None, ALONE) else [label, other]
        starts = [Start(name, {"prompt": prompt, **options}) for name in labels]
        yield from stream(request, texts, starts, continuations, by)

    @user_errors
    def continue_from(
        request: gr.Request, texts: tuple, at: Place | None, by: str, beside: int, event: gr.SelectData
    ) -> Iterator[tuple]:
        yield from stream(request, texts, [branch(texts, at, event.index)], 1, by, beside)

    @user_errors
    def show(texts: tuple, which: int, beside: int, by: str) -> list:
        return views(texts, which, beside, by) if texts else [gr.skip()] * len(places)

    @user_errors
    def inspect_token(texts: tuple, number: int, event: gr.SelectData) -> tuple:
        place, options = (number, event.index), numbered(texts, number).start.settings
        values = [options[name] for name in SAMPLING]
        return place, gr.Row(visible=True), *alternatives(texts, place, *values), *(value or 0 for value in values)

    inputs = [model, other, prompt, continuations, by, texts, *settings.values()]
    outputs = [texts, note, *places]
    shared = {"concurrency_limit": 4, "show_progress": "hidden"}  # the note shows it
    writing = [
        gr.on([go.click, prompt.submit], generate, inputs, outputs, api_name="generate", **shared),
        choices.select(continue_from, [texts, at, by, beside], outputs, api_name="generate_branch", **shared),
    ]
    for event in writing:
        uncover(event, outputs)
    stop.click(stops.stop, None, None, api_name="generate_stop", show_progress="hidden")
    for name, place, number in (("token", left, which), ("token_beside", right, beside)):
        place.tokens.select(
            inspect_token, [texts, number], [at, bars, summary, choices, *drawn], api_name=f"generate_{name}"
        )
    for name, changed in (("show", which), ("show_beside", beside), ("colours", by)):
        changed.input(show, [texts, which, beside, by], places, api_name=f"generate_{name}")
    return Source(other, [left.text, prompt], explore)


def build_prompt(store: ModelStore) -> tuple[gr.Textbox, gr.Dropdown, gr.Button, gr.Button, gr.Markdown]:
    """Build the prompt with its examples, the second model, the buttons and the note."""
    prompt = gr.Textbox(
        EXAMPLES[0], label="Prompt", info="empty: the model begins by itself", lines=3, elem_id="generate-prompt"
    )
    gr.Examples(EXAMPLES, prompt, elem_id="generate-examples")
    other = gr.Dropdown(
        [ALONE, *store.labels()],
        value=ALONE,
        label="Compare with (same prompt and seed)",
        elem_id="generate-other",
    )
    with gr.Row():
        go = gr.Button("Generate", variant="primary", elem_id="generate-go", min_width=120)
        stop = gr.Button("Stop", elem_id="generate-stop", min_width=100)
    return prompt, other, go, stop, gr.Markdown(elem_id="generate-note")


def build_settings() -> tuple[dict[str, gr.components.Component], gr.Slider]:
    """Build (options by the names of `TextStream`, number of continuations)."""
    settings = {
        "max_new_tokens": gr.Slider(1, MAX_NEW_TOKENS, 80, step=1, label="Max new tokens", elem_id="generate-length"),
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
            info="past the context, re-read this many last tokens; 0 ends the text there",
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
            info="With this seed and the following. The most probable is shown, all are in the list.",
            elem_id="generate-count",
        )
    return settings, continuations


def build_texts() -> tuple[gr.Dropdown, gr.Dropdown, gr.Radio, Side, Side]:
    """Build the lists of texts, the colours, and the places of two texts."""
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
    """Build the place of a text and its coloured tokens; its ids end in `end`."""
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
    """Build (row, description, clickable bars, sliders that redraw the bars) of a token's alternatives."""
    with gr.Row(visible=False) as bars:
        with gr.Column(scale=3, min_width=280):
            summary = gr.Markdown(elem_id="generate-token")
            choices = gr.Label(label="Click one to continue from there", show_heading=False, elem_id="generate-choices")
        with gr.Column(scale=2, min_width=280):
            gr.Markdown("Redraw the bars with")
            drawn = [
                gr.Slider(0, 2, 1, step=0.05, label="Temperature", elem_id="generate-redraw-temperature"),
                gr.Slider(0.05, 1, 1, step=0.05, label="Top-p", elem_id="generate-redraw-top-p"),
                gr.Number(0, precision=0, label="Top-k", info="0 keeps all", elem_id="generate-redraw-top-k"),
                gr.Slider(0, 1, 0, step=0.01, label="Min-p", elem_id="generate-redraw-min-p"),
            ]

    @user_errors
    def redraw(texts: tuple, at: Place | None, *values: Any) -> tuple[str, dict[str, float]]:
        return alternatives(texts, at, *values)

    shared = {"trigger_mode": "always_last", "show_progress": "hidden"}
    for name, field in zip(SAMPLING, drawn):
        api_name = f"generate_redraw_{name}"
        field.input(redraw, [texts, at, *drawn], [summary, choices], api_name=api_name, **shared)
    return bars, summary, choices, drawn


def build_tables(
    store: ModelStore, texts: gr.State, which: gr.Dropdown, beside: gr.Dropdown
) -> tuple[gr.Dataframe, gr.HTML]:
    """Build the table of tokens and the measures of the texts on display."""
    with gr.Accordion("Token probabilities", open=False):
        table = gr.Dataframe(
            headers=["token", "probability", "rank", "entropy (nats)", "top predictions"],
            column_count=5,
            interactive=False,
            show_label=False,
            elem_id="generate-steps",
        )
    with gr.Accordion("Text statistics", open=False, elem_id="generate-measures"):
        with gr.Row():
            data = gr.Dropdown(
                list(DATA), value="sample", label="Copies from the training split of", elem_id="generate-data"
            )
            measure = gr.Button("Measure", elem_id="generate-measure")
        measures = gr.HTML(elem_id="generate-measured")
        gr.Markdown(MEASURES)

    @user_errors
    def measure_texts(texts: tuple, which: int, beside: int, data: str) -> str:
        second = [numbered(texts, beside)] if beside else []
        return measure_table(store, [numbered(texts, which), *second], data)

    measure.click(measure_texts, [texts, which, beside, data], measures, api_name="generate_measure")
    return table, measures

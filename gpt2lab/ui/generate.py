"""The Generate tab: text as it is written, each token coloured, what it was chosen from, and other ways to go on."""

import time
from math import log
from typing import NamedTuple

import gradio as gr

from gpt2lab.errors import LabError, whole_number
from gpt2lab.ui.handling import user_errors
from gpt2lab.ui.shelf import Shelf

EXAMPLES = ["The moon is", "In 1867, Marie Curie was born in", "The river Nile flows through", " = Coffee = \n"]
MAX_NEW_TOKENS = 512
MAX_TEXTS = 30  # kept in a visitor's list
DRAW_SECONDS = 0.05  # between redraws: faster than that a browser only falls behind
ENDINGS = {
    "end of text": "the model ended the text.",
    "stop string": "a stop string came.",
    "length": "the length asked for is reached.",
    "context": "the model's context is full.",
    "stopped": "stopped.",
}
COLOURS = {
    "probability": "of the token to the model, 0 to 1",
    "rank": "the favourite has no colour, the last of all V tokens the fullest, by the logarithm",
    "entropy": "the fuller, the less certain the model was, 0 to ln V nats",
}


class Text(NamedTuple):
    """One text that was written: by which model and settings, its generation, and what it branched from."""

    label: str
    settings: dict
    generation: object
    origin: str


def build_generate_tab(shelf: Shelf, model: gr.Dropdown) -> None:
    """Prompt and sampling → streamed text in colours; a token → its alternatives → another text."""
    gr.Markdown(
        "The model gives every token of its vocabulary a probability; sampling chooses one, and the next begins. "
        "Click a token to see what it was chosen from, and one of those to go on from there."
    )
    texts, at = gr.State(()), gr.State(None)
    with gr.Row():
        with gr.Column(scale=3, min_width=280):
            prompt, go, stop = build_prompt()
        with gr.Column(scale=2, min_width=280):
            settings = build_settings()
    text = gr.Textbox(label="Text", lines=6, interactive=False, buttons=["copy"], elem_id="generate-text")
    note = gr.Markdown(elem_id="generate-note")
    which = gr.Dropdown([], label="Texts so far", visible=False, elem_id="generate-which")
    by, tokens, told, choices = build_tokens()
    with gr.Accordion("Every token, and what it was chosen from", open=False):
        steps_table = gr.Dataframe(
            headers=["token", "probability", "rank", "entropy (nats)", "the model's favourites"],
            column_count=5,
            interactive=False,
            show_label=False,
            elem_id="generate-steps",
        )
    views = [text, note, tokens, steps_table]

    def write(label, settings, by, texts, origin, after=()):
        """Views of a text while it is written, and the texts so far with it."""
        from gpt2lab.sampling import collect, request, steps_of

        lab = shelf.lab(label)
        asked = request(lab, after=after, **settings)
        began, drawn, taken = time.monotonic(), 0.0, []

        def views_of(ending, table):
            found = collect(asked, taken)
            kept = (*texts, Text(label, settings, found, origin))[-MAX_TEXTS:]
            return (
                settings["prompt"] + found.text,
                ending(found),
                coloured(found.steps, by, lab.model.config.vocab_size),
                step_rows(found) if table else gr.skip(),
                kept,
                listed(kept, len(kept) - 1),
            )

        for step in shelf.each(steps_of(asked)):
            taken.append(step)
            now = time.monotonic()
            if now - drawn > DRAW_SECONDS:
                drawn = now
                yield views_of(lambda found: f"{len(found.steps)} tokens", False)
        speed = len(taken) / (time.monotonic() - began)
        yield views_of(
            lambda found: (
                f"{len(found.steps)} tokens, {speed:,.0f} a second; {ENDINGS[found.finish]}{unconditional(found)}"
            ),
            True,
        )

    @user_errors
    def stream(label, prompt, length, temperature, top_p, top_k, seed, min_p, penalty, window, int8, by, texts):
        settings = {
            "prompt": prompt,
            "max_new_tokens": length,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k or None,
            "seed": seed,
            "min_p": min_p,
            "repetition_penalty": penalty,
            "window": window or None,
            "int8": int8,
        }
        yield from write(label, settings, by, texts, "")

    @user_errors
    def branch(texts, which, at, by, event: gr.SelectData):
        found = chosen(texts, which)
        steps = found.generation.steps
        whole_number("token", at, 0, len(steps) - 1)
        others = steps[at].alternatives
        other = others[whole_number("choice", event.index, 0, len(others) - 1)]
        after = (*steps[:at], steps[at].instead(other.id))
        left = max(1, found.settings["max_new_tokens"] - len(after))
        origin = f", {other.token!r} for token {at} of text {which + 1}"
        yield from write(found.label, found.settings | {"max_new_tokens": left}, by, texts, origin, after)

    @user_errors
    def look(texts, which, event: gr.SelectData):
        steps = chosen(texts, which).generation.steps
        place = whole_number("token", event.index, 0, len(steps) - 1)
        return place, *alternatives(steps[place], place)

    @user_errors
    def show(texts, which, by):
        found = chosen(texts, which).generation
        V = shelf.lab(texts[which].label).model.config.vocab_size
        ending = f"{len(found.steps)} tokens; {ENDINGS[found.finish]}{unconditional(found)}"
        return found.prompt + found.text, ending, coloured(found.steps, by, V), step_rows(found)

    def again(texts, which, by):
        return show(texts, which, by) if texts else [gr.skip()] * len(views)

    asked = [model, prompt, *settings, by, texts]
    answered = [*views, texts, which]
    shared = {"concurrency_limit": 4}
    running = [
        go.click(stream, asked, answered, api_name="generate", **shared),
        prompt.submit(stream, asked, answered, api_name="generate_submit", **shared),
        choices.select(branch, [texts, which, at, by], answered, api_name="generate_branch", **shared),
    ]
    halted = stop.click(None, None, None, cancels=running, api_name="generate_stop")
    halted.then(lambda: "Stopped.", None, note, api_visibility="private")
    for anew in (go.click, prompt.submit, which.input):  # a choice of another text's token is none of the next one's
        anew(lambda: (None, "", None), None, [at, told, choices], api_visibility="private", show_progress="hidden")
    tokens.select(look, [texts, which], [at, told, choices], api_name="generate_token")
    which.input(show, [texts, which, by], views, api_name="generate_show")
    by.input(again, [texts, which, by], views, api_name="generate_colours")


def build_prompt() -> tuple[gr.Textbox, gr.Button, gr.Button]:
    """The prompt with its examples, and the buttons."""
    prompt = gr.Textbox(
        EXAMPLES[0], label="Prompt", info="empty: the model begins by itself", lines=3, elem_id="generate-prompt"
    )
    gr.Examples(EXAMPLES, prompt, elem_id="generate-examples")
    with gr.Row():
        go = gr.Button("Generate", variant="primary", elem_id="generate-go", min_width=120)
        stop = gr.Button("Stop", elem_id="generate-stop", min_width=100)
    return prompt, go, stop


def build_settings() -> list:
    """How long, how tokens are drawn, and how the model computes; in the order that `stream` takes them."""
    length = gr.Slider(1, MAX_NEW_TOKENS, 80, step=1, label="New tokens, at most", elem_id="generate-length")
    temperature = gr.Slider(
        0, 2, 0.8, step=0.05, label="Temperature", info="0 takes the most probable token", elem_id="generate-temp"
    )
    top_p = gr.Slider(0.05, 1, 0.95, step=0.05, label="Top-p", info="1 keeps all tokens", elem_id="generate-top-p")
    with gr.Row():
        top_k = gr.Number(0, precision=0, label="Top-k", info="0 keeps all", elem_id="generate-top-k", min_width=100)
        seed = gr.Number(
            0, precision=0, label="Seed", info="same seed, same text", elem_id="generate-seed", min_width=100
        )
    with gr.Accordion("More", open=False, elem_id="generate-more"):
        min_p = gr.Slider(0, 1, 0, step=0.01, label="Min-p", info="share of the favourite's probability; 0 keeps all")
        penalty = gr.Slider(0.5, 2, 1, step=0.05, label="Repetition penalty", info="1 is none")
        window = gr.Number(
            0,
            precision=0,
            label="Window",
            info="past the context, so many last tokens are read anew; 0 ends the text there",
        )
        int8 = gr.Checkbox(False, label="Weights of 8 bits", info="faster on x86 processors, and a little off")
    return [length, temperature, top_p, top_k, seed, min_p, penalty, window, int8]


def build_tokens() -> tuple[gr.Radio, gr.HighlightedText, gr.Markdown, gr.Label]:
    """The text's tokens in colours, and what one of them was chosen from."""
    scales = "; ".join(f"{name}: {scale}" for name, scale in COLOURS.items())
    by = gr.Radio(list(COLOURS), value="probability", label="Colour by", info=scales, elem_id="generate-by")
    tokens = gr.HighlightedText(
        label="Tokens: click one", show_legend=False, show_inline_category=False, elem_id="generate-tokens"
    )
    told = gr.Markdown(elem_id="generate-token")
    choices = gr.Label(label="Click one to go on from there", show_heading=False, elem_id="generate-choices")
    return by, tokens, told, choices


def chosen(texts: tuple[Text, ...], which) -> Text:
    """The text that is shown. Raises: LabError where there is none."""
    if not texts:
        raise LabError("there is no text here yet; press Generate first")
    return texts[whole_number("text", which, 0, len(texts) - 1)]


def listed(texts: tuple[Text, ...], which: int) -> gr.Dropdown:
    """The texts so far, to choose from: by their number, how they begin, and where they branched off."""
    choices = [
        (f"{i + 1}: {one.label}, seed {one.generation.seed}{one.origin}: {one.generation.text[:30]!r}", i)
        for i, one in enumerate(texts)
    ]
    return gr.Dropdown(choices, value=which, visible=len(texts) > 1)


def coloured(steps, by: str, V: int) -> list[tuple[str, float]]:
    """Tokens with a number from 0 to 1. Raises: LabError for what there is no colour by."""
    if by not in COLOURS:
        raise LabError(f"colour {str(by)[:40]!r} is unknown; use {', '.join(COLOURS)}")
    value = {
        "probability": lambda step: step.probability,
        "rank": lambda step: log(step.rank) / log(V),
        "entropy": lambda step: min(1.0, step.entropy / log(V)),
    }[by]
    return [(seen(step), round(value(step), 4)) for step in steps]


def seen(step) -> str:
    """A token as it is shown among the others: with its line's end, and a mark where the model read anew."""
    return f"{'⋮ ' if step.seam else ''}{step.token}".replace("\n", "⏎")


def alternatives(step, place: int) -> tuple[str, dict[str, float]]:
    """What a token was chosen from: in words, and for the bars."""
    words = (
        f"Token {place}, `{code(step.token)}`: probability {step.probability:.4f}, rank {step.rank:,}, entropy "
        f"{step.entropy:.3f} nats. The sampler drew it with {step.sampled_probability:.4f}; its filters took "
        f"{step.removed:.3f} away."
    )
    bars = {
        f"{other.token!r} ({other.id}), drawn with {other.sampled_probability:.3f}": other.probability
        for other in step.alternatives
    }
    return words, bars


def code(token: str) -> str:
    """A token as Markdown's code."""
    return repr(token).replace("`", "ˋ")


def unconditional(generation) -> str:
    """A word for text without a prompt."""
    return "" if generation.prompt else " There was no prompt: the model began from `<|endoftext|>`."


def step_rows(generation) -> list[list]:
    """A row per generated token, for the table."""
    return [
        [
            repr(step.token),
            f"{step.probability:.4f}",
            step.rank,
            f"{step.entropy:.3f}",
            ", ".join(f"{option.token!r} {option.probability:.3f}" for option in step.alternatives[:5]),
        ]
        for step in generation.steps
    ]

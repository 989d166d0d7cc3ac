"""The Generate tab: a prompt and its settings, and the text as it is written, with the alternatives of each token."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import gradio as gr

from gpt2lab.app.bar import Bar
from gpt2lab.app.events import Stops, models_of, uncover, user_errors
from gpt2lab.app.generate_content import (
    MAX_CONTINUATIONS,
    MAX_NEW_TOKENS,
    FirstText,
    Progress,
    TextCache,
    Work,
    answer_of,
    branch,
    new_key,
    page_value,
    streams,
    write,
)
from gpt2lab.app.generate_presets import presets
from gpt2lab.app.language import _
from gpt2lab.app.models import ModelStore
from gpt2lab.widgets.base import gradio_html
from gpt2lab.widgets.generation import text_part

FIRST = {"prompt": "The moon is", "max_new_tokens": 80, "temperature": 0.8, "top_p": 0.95, "seed": 0}
SHOWN_TEXT = "(prompt) => [document.querySelector('#generate-page .gpt2lab')?.dataset.text || prompt]"
PRESET_FIELDS = ("max_new_tokens", "temperature", "top_k")


class GenerateTab(NamedTuple):
    """What the app connects to the Explore tab and to the course.

    prompt  what is continued
    look    the button that opens the shown text in the Explore tab; in its event `js` puts that text in the prompt's place
    """

    prompt: gr.Textbox
    look: gr.Button
    js: str = SHOWN_TEXT


def build_generate_tab(store: ModelStore, bar: Bar, tab: gr.Tab) -> GenerateTab:
    """Build the tab: prompt and settings, then the texts, which grow as they are written."""
    key, stops, cache, first = gr.State(""), Stops(), TextCache(), FirstText(store, FIRST)
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=280):
            prompt, go, stop, buttons = build_prompt()
        with gr.Column(scale=2, min_width=280):
            settings = build_settings()
    more, stop_at_line, continuations = build_more_settings()
    settings |= more
    note = gr.Markdown(visible=False, elem_id="generate-preset-note")
    status = gr.Markdown(elem_id="generate-status")

    def answer(request: Any) -> dict:
        """What the view asks for of the texts that it shows."""
        return answer_of(store, cache, request)

    page = gr.HTML(
        **gradio_html("generation"),
        apply_default_css=False,
        server_functions=[answer],
        elem_id="generate-page",
    )
    with gr.Row():
        look = gr.Button(_("Explore this text"), size="md", scale=0, min_width=200, elem_id="generate-explore")
    outputs = [key, status, page]

    def stream(request: gr.Request, key: str, make: Any) -> Iterator[tuple]:
        """Yield the outputs while what `make` returns, works and shown texts, is written."""
        key = key if cache.get(key) else new_key()
        with stops.running(request) as flag:
            yield gr.skip(), _("Reading the prompt …"), gr.skip()
            texts = cache.get(key)
            works, shown = make(texts)
            for now in write(store, key, texts, works, shown, flag):
                cache.put(key, now.texts)
                yield key, status_line(now, works), now.value

    @user_errors
    def generate(
        request: gr.Request,
        key: str,
        label: str,
        compared: str,
        prompt: str,
        count: int,
        stop_at_line: bool,
        *values: Any,
    ) -> Iterator[tuple]:
        options = {"prompt": prompt, **dict(zip(settings, values)), "stop": "\n" if stop_at_line is True else ()}
        options |= {name: options[name] or None for name in ("top_k", "window")}  # 0 is none
        labels = models_of(label, compared)
        yield from stream(request, key, lambda texts: (streams(store, labels, count, options), []))

    @user_errors
    def continue_from(request: gr.Request, key: str, event: gr.EventData) -> Iterator[tuple]:
        def make(texts: tuple) -> tuple[list[Work], list[int]]:
            work, shown = branch(store, texts, event._data)
            return [work], shown

        yield from stream(request, key, make)

    @user_errors
    def open_tab(key: str) -> tuple:
        if cache.get(key):
            return (gr.skip(),) * 3
        key, text = new_key(), first.get()
        cache.put(key, (text,))
        line = _("An example by the built-in model. Click a token to see its alternatives.")
        return key, line, page_value(key, texts=[text_part(text)], shown=[1])

    inputs = [key, bar.model, bar.compare, prompt, continuations, stop_at_line, *settings.values()]
    shared = {"concurrency_limit": 4, "show_progress": "hidden", "api_visibility": "private"}  # the status shows it
    opened = tab.select(open_tab, key, outputs, show_progress="hidden", api_visibility="private")
    uncover(opened, outputs)
    writing = gr.on([go.click, prompt.submit], generate, inputs, outputs, cancels=[opened], **shared)
    uncover(writing, outputs)  # the example must not come after a text that was asked for
    uncover(page.select(continue_from, key, outputs, **shared), outputs)
    stop.click(stops.stop, None, None, show_progress="hidden", api_visibility="private")
    connect_presets(buttons, prompt, settings, stop_at_line, note)
    return GenerateTab(prompt, look)


def status_line(now: Progress, works: Sequence[Work]) -> str:
    """Say how far the writing is, or how it ended."""
    speed = now.tokens / max(now.seconds, 1e-3)
    if not now.done:
        return _(
            "Writing: {tokens} of {total} tokens, {speed} tokens/s",
            tokens=f"{now.tokens:,}",
            total=f"{now.total:,}",
            speed=f"{speed:,.0f}",
        )
    if now.stopped:
        return _("Stopped after {tokens} tokens.", tokens=f"{now.tokens:,}")
    if len(now.ends) > 1:
        return _(
            "Finished: {count} texts, {tokens} tokens, {speed} tokens/s.",
            count=len(now.ends),
            tokens=f"{now.tokens:,}",
            speed=f"{speed:,.0f}",
        )
    ends = {
        "length": _("Finished: the length of {limit} tokens is reached.", limit=f"{limit_of(works):,}"),
        "end of text": _("Finished: the model ended the text after {tokens} tokens.", tokens=f"{now.tokens:,}"),
        "stop string": _("Finished: the line ended after {tokens} tokens.", tokens=f"{now.tokens:,}"),
        "context": _("Finished: the model's context is full after {tokens} tokens.", tokens=f"{now.tokens:,}"),
    }
    return ends[now.ends[0]]


def limit_of(works: Sequence[Work]) -> int:
    """Return the most tokens that a text may have, with those that a branch keeps."""
    stream = works[0].stream
    return len(stream.after) + stream.max_new_tokens


def build_prompt() -> tuple[gr.Textbox, gr.Button, gr.Button, list[gr.Button]]:
    """Build (prompt, Generate, Stop, presets)."""
    prompt = gr.Textbox(
        FIRST["prompt"],
        label=_("Prompt"),
        info=_("Leave it empty to let the model begin by itself."),
        lines=3,
        max_lines=12,
        elem_id="generate-prompt",
    )
    with gr.Row():
        go = gr.Button(_("Generate"), variant="primary", elem_id="generate-go", min_width=120)
        stop = gr.Button(_("Stop"), elem_id="generate-stop", min_width=100)
    with gr.Row(elem_id="generate-presets"):
        buttons = [gr.Button(one.title, size="sm", scale=0, min_width=60) for one in presets()]
    return prompt, go, stop, buttons


def build_settings() -> dict[str, gr.components.Component]:
    """Build the settings that are always in sight: options by the names of `TextStream`."""
    return {
        "max_new_tokens": gr.Slider(
            1, MAX_NEW_TOKENS, 80, step=1, label=_("Max new tokens"), elem_id="generate-length"
        ),
        "temperature": gr.Slider(
            0,
            2,
            0.8,
            step=0.05,
            label=_("Temperature"),
            info=_("0 always takes the most probable token."),
            elem_id="generate-temp",
        ),
        "seed": gr.Number(
            0, precision=0, label=_("Seed"), info=_("The same seed gives the same text."), elem_id="generate-seed"
        ),
    }


def build_more_settings() -> tuple[dict[str, gr.components.Component], gr.Checkbox, gr.Slider]:
    """Build (options by the names of `TextStream`, Stop at the end of the line, number of continuations), folded."""
    settings: dict[str, gr.components.Component] = {}
    with gr.Accordion(_("More settings"), open=False, elem_id="generate-more"), gr.Row():
        settings["top_p"] = gr.Slider(
            0.05,
            1,
            0.95,
            step=0.05,
            label=_("Top-p"),
            info=_("1 keeps all tokens."),
            elem_id="generate-top-p",
            min_width=200,
        )
        settings["top_k"] = gr.Number(
            0, precision=0, label=_("Top-k"), info=_("0 keeps all tokens."), elem_id="generate-top-k", min_width=200
        )
        settings["min_p"] = gr.Slider(
            0,
            1,
            0,
            step=0.01,
            label=_("Min-p"),
            info=_("Share of the top prediction's probability; 0 keeps all tokens."),
            elem_id="generate-min-p",
            min_width=200,
        )
        settings["repetition_penalty"] = gr.Slider(
            0.5,
            2,
            1,
            step=0.05,
            label=_("Repetition penalty"),
            info=_("1 is none."),
            elem_id="generate-penalty",
            min_width=200,
        )
        continuations = gr.Slider(
            1,
            MAX_CONTINUATIONS,
            1,
            step=1,
            label=_("Continuations"),
            info=_("With this seed and the following ones; the most probable is shown first."),
            elem_id="generate-count",
            min_width=200,
        )
        stop_at_line = gr.Checkbox(
            False, label=_("Stop at the end of the line"), elem_id="generate-line", min_width=200
        )
        settings["window"] = gr.Number(
            0,
            precision=0,
            label=_("Sliding window"),
            info=_("Past the context, the model re-reads this many last tokens; 0 ends the text there."),
            elem_id="generate-window",
            min_width=200,
        )
        settings["precision"] = gr.Dropdown(
            ["fp32", "bf16", "int8"],
            value="fp32",
            label=_("Precision"),
            info=_("bf16 and int8 can be faster and change probabilities slightly."),
            elem_id="generate-precision",
            min_width=200,
        )
    return settings, stop_at_line, continuations


def connect_presets(
    buttons: Sequence[gr.Button], prompt: gr.Textbox, settings: dict, stop_at_line: gr.Checkbox, note: gr.Markdown
) -> None:
    """Let a preset's button set the form's fields, and say what to expect of a task."""

    @user_errors
    def choose(index: int) -> list:
        one = presets()[index]  # in the visitor's language
        fields = [getattr(one, name) for name in PRESET_FIELDS]
        return [one.prompt, *fields, one.stop_at_line, gr.Markdown(one.note, visible=bool(one.note))]

    outputs = [prompt, *(settings[name] for name in PRESET_FIELDS), stop_at_line, note]
    for index, button in enumerate(buttons):
        button.click(partial(choose, index), None, outputs, show_progress="hidden", api_visibility="private")

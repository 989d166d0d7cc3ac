"""The Evaluate tab: perplexity of one or two models by named protocols, and the loss of each part of the text."""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import gradio as gr

from gpt2lab.app.bar import Bar
from gpt2lab.app.download import Downloads, build_download
from gpt2lab.app.evaluate_content import (
    NamedEvaluation,
    details,
    documents_of,
    evaluation_file,
    figures_table,
    shares_of,
    verdict_lines,
    words_of,
)
from gpt2lab.app.evaluate_scoring import MAX_CHARACTERS, OWN, evaluation_progress
from gpt2lab.app.events import ALONE, as_image, escaped, picture, uncover, user_errors
from gpt2lab.app.language import _, listed
from gpt2lab.app.results import ResultCache
from gpt2lab.data.sources import DATA
from gpt2lab.data.text import SPLITS
from gpt2lab.errors import LabError
from gpt2lab.evaluation.protocols import PROTOCOLS
from gpt2lab.figures.evaluation import result_figure
from gpt2lab.results import duration

PRIVATE = {"api_visibility": "private"}
EXAMPLE = {
    "data": "sample",
    "split": "test",
    "protocols": ["sliding"],
    "text": "",
    "precision": "fp32",
} | dict.fromkeys(
    ("context", "stride", "quick", "seed"), 0
)  # scored when the tab is opened: the built-in model takes a few seconds for it


class Views(NamedTuple):
    """What shows an evaluation, from top to bottom; `column` is hidden until there is one."""

    note: gr.Markdown
    verdict: gr.Markdown
    table: gr.HTML
    column: gr.Column
    protocol: gr.Radio
    by: gr.Radio
    shares: gr.Image
    share_table: gr.HTML
    document: gr.Dropdown
    words: gr.HTML
    kind: gr.Dropdown
    save: gr.Button
    file: gr.File
    figure: gr.Image
    details: gr.HTML


def build_evaluate_tab(tab: gr.Tab, results: ResultCache, bar: Bar, downloads: Downloads) -> None:
    """Build the tab: text and protocols → a table of perplexities, losses by part and by token.

    tab  this tab: when it is opened for the first time, the built-in model is scored on the sample as an example, unless
         another one or a second one was chosen
    """
    key, running = gr.State(None), gr.State(False)  # of the evaluation on the page
    settings, go, stop = build_settings(downloads)
    views = build_views()

    @user_errors
    def evaluate(label: str, compare: str, dark: bool, *values: Any) -> Iterator[dict]:
        yield from score(label, compare, dark, dict(zip(settings, values)))

    @user_errors
    def example(key: str | None, running: bool, label: str, compare: str, dark: bool) -> Iterator[dict]:
        if key is None and not running and (label, compare) == ("builtin", ALONE):
            yield from score(label, ALONE, dark, EXAMPLE)
        else:
            yield {views.note: gr.skip()}  # without a value, gradio would empty all views

    def score(label: str, compare: str, dark: bool, asked: dict) -> Iterator[dict]:
        began = time.monotonic()
        yield {running: True, views.note: _("Reading the text …"), views.file: gr.File(None, visible=False)}
        try:
            for step in evaluation_progress(results, label, compare, asked):
                if isinstance(step, NamedEvaluation):
                    yield {key: results.add_evaluation(step), running: False} | shown(
                        views, step, time.monotonic() - began, dark is True
                    )
                else:
                    yield {views.note: step}
        except LabError:
            yield {views.note: "", running: False}
            raise

    def stopped(running: bool) -> tuple:
        line = _("Stopped. Finished windows are stored: Evaluate continues from there.")
        return (line if running else gr.skip()), False

    outputs = [key, running, views.note, views.verdict, views.table, views.column, views.protocol, views.file]
    outputs += [views.figure, views.details]
    hidden = {**PRIVATE, "concurrency_limit": 4, "show_progress": "hidden"}  # the note shows it; a stop is no error
    first = tab.select(example, [key, running, bar.model, bar.compare, bar.dark], outputs, **hidden)
    event = go.click(
        evaluate, [bar.model, bar.compare, bar.dark, *settings.values()], outputs, cancels=[first], **hidden
    )
    for scored in (first, event):
        uncover(scored, outputs)
    halted = stop.click(None, None, None, cancels=[first, event], **PRIVATE)
    halted.then(stopped, running, [views.note, running], **PRIVATE)
    connect_views(results, bar, key, views, [first.success, event.success])


def connect_views(results: ResultCache, bar: Bar, key: gr.State, views: Views, done: list) -> None:
    """Let the views of an evaluation follow what is chosen in them; `done` are the moments after an evaluation."""

    @user_errors
    def show_shares(key: str | None, name: str, by: str, dark: bool) -> tuple:
        if key is None:  # the tab was opened without an example
            return (gr.skip(),) * 3
        evaluation = results.evaluation(key).evaluation
        picture, rows = shares_of(evaluation, name, by, dark is True)
        return picture, rows, gr.Dropdown(choices=documents_of(evaluation, name), value=0)

    @user_errors
    def show_breakdown(key: str | None, name: str, by: str, dark: bool) -> tuple:
        return shares_of(results.evaluation(key).evaluation, name, by, dark is True)

    @user_errors
    def show_document(key: str | None, name: str, document: int | None, dark: bool) -> Any:
        if key is None:
            return gr.skip()
        return words_of(results.evaluation(key).evaluation, name, document, "dark" if dark is True else "light")

    @user_errors
    def make_file(key: str | None, name: str, by: str, kind: str) -> gr.File:
        return gr.File(str(evaluation_file(results.evaluation(key), name, by, kind)), visible=True)

    shown, breakdown = [key, views.protocol, views.by, bar.dark], [views.shares, views.share_table]
    reading = [key, views.protocol, views.document, bar.dark]
    for moment in (*done, views.protocol.input):
        drawn = moment(show_shares, shown, [*breakdown, views.document], **PRIVATE)
        drawn.success(show_document, reading, views.words, **PRIVATE)
    asked = [
        (views.by.input, show_breakdown, shown, breakdown),
        (views.document.input, show_document, reading, [views.words]),
        (views.save.click, make_file, [key, views.protocol, views.by, views.kind], [views.file]),
    ]
    for trigger, handler, inputs, outputs in asked:
        uncover(trigger(handler, inputs, outputs, **PRIVATE), outputs)


def shown(views: Views, step: NamedEvaluation, seconds: float, dark: bool) -> dict:
    """The values of the views that show an evaluation as a whole."""
    evaluation = step.evaluation
    names, verdict = evaluation.protocols, verdict_lines(evaluation)
    return {
        views.note: _(
            "**{models} on {text}**, scored in {seconds}.",
            models=escaped(listed(evaluation.models)),
            text=step.text,
            seconds=duration(seconds),
        ),
        views.verdict: gr.Markdown(verdict, visible=bool(verdict)),
        views.table: figures_table(evaluation),
        views.column: gr.Column(visible=True),
        views.protocol: gr.Radio(names, value=names[0]),
        views.figure: as_image(result_figure(evaluation.results, dark=dark)),
        views.details: details(evaluation),
    }


def build_settings(downloads: Downloads) -> tuple[dict[str, gr.components.Component], gr.Button, gr.Button]:
    """Build (settings by the names that `evaluation_progress` takes, Evaluate, Stop)."""
    with gr.Row(elem_id="evaluate-ask"):
        data = gr.Dropdown(
            [*((name, name) for name in DATA), (_("Your own text"), OWN)],
            value="sample",
            label=_("Text"),
            elem_id="evaluate-data",
            min_width=160,
        )
        split = gr.Dropdown(list(SPLITS), value="test", label=_("Split"), elem_id="evaluate-split", min_width=120)
        protocols = gr.CheckboxGroup(
            list(PROTOCOLS),
            value=list(PROTOCOLS),
            label=_("Protocols"),
            elem_id="evaluate-protocols",
            min_width=260,
            scale=2,
        )
        go = gr.Button(_("Evaluate"), variant="primary", elem_id="evaluate-go", min_width=110, scale=0)
        stop = gr.Button(_("Stop"), elem_id="evaluate-stop", min_width=80, scale=0)
    build_download(downloads, data, "evaluate-data")
    settings = {"data": data, "split": split, "protocols": protocols}
    with gr.Accordion(_("More settings, your own text"), open=False, elem_id="evaluate-more"):
        settings |= build_more_settings()
    return settings, go, stop


def build_more_settings() -> dict[str, gr.components.Component]:
    """Build the settings that are seldom changed."""
    settings: dict[str, gr.components.Component] = {}
    with gr.Row():
        for name, label, info in (
            ("context", _("Context"), _("Tokens per window. 0: the model's own; of two models, the smaller.")),
            ("stride", _("Stride"), _("Tokens between two sliding windows. 0: the context.")),
            ("quick", _("Articles"), _("How many to score, drawn at random. 0: all.")),
            ("seed", _("Seed"), _("The same seed draws the same articles.")),
        ):
            settings[name] = gr.Number(
                0, precision=0, label=label, info=info, elem_id=f"evaluate-{name}", min_width=160
            )
        settings["precision"] = gr.Dropdown(
            ["fp32", "bf16"],
            value="fp32",
            label=_("Precision"),
            info=_("bf16 is faster with bf16 units; the result states the difference."),
            elem_id="evaluate-precision",
            min_width=160,
        )
    settings["text"] = gr.Textbox(
        "",
        label=_("Your own text"),
        info=_("Scored if chosen under Text. Up to {limit:,} characters.", limit=MAX_CHARACTERS),
        lines=4,
        max_lines=12,
        elem_id="evaluate-text",
    )
    return settings


def build_views() -> Views:
    """Build the views of an evaluation, hidden until there is one."""
    note = gr.Markdown(
        _(
            "Press Evaluate to see the perplexity of the model here, where the text is hard, and the loss of every token."
        ),
        elem_id="evaluate-note",
    )
    verdict, figures = gr.Markdown(visible=False, elem_id="evaluate-verdict"), gr.HTML(elem_id="evaluate-table")
    with gr.Column(visible=False) as column:
        with gr.Row():
            protocol = gr.Radio([], label=_("Protocol"), elem_id="evaluate-protocol", min_width=200)
            choices = [
                (_("Part"), "part"),
                (_("Position in the window"), "position"),
                (_("Frequency"), "frequency"),
                (_("Document"), "document"),
            ]
            by = gr.Radio(choices, value="part", label=_("Loss by"), elem_id="evaluate-by", min_width=300, scale=2)
        with gr.Row():
            with gr.Column(min_width=300):
                shares = picture("evaluate-shares", _("The loss of each part of the text; the table has its numbers"))
            with gr.Column(min_width=300):
                share_table = gr.HTML(elem_id="evaluate-share-table")
        document = gr.Dropdown([], label=_("Document"), elem_id="evaluate-document")
        words = gr.HTML(elem_id="evaluate-words")
        with gr.Row(elem_id="evaluate-files"):
            kinds = [
                (_("Figures, CSV"), "csv"),
                (_("Figures, JSON"), "json"),
                (_("Loss by part, CSV"), "parts.csv"),
                (_("Loss of every token, CSV"), "tokens.csv"),
                (_("Everything, HTML page"), "html"),
            ]
            kind = gr.Dropdown(kinds, value="csv", label=_("Format"), elem_id="evaluate-kind", min_width=220, scale=0)
            save = gr.Button(_("Download"), elem_id="evaluate-save", min_width=110, scale=0)
            file = gr.File(label=_("File"), interactive=False, visible=False, elem_id="evaluate-file", height=90)
        with gr.Accordion(_("Details: intervals as a picture, every number"), open=False, elem_id="evaluate-details"):
            figure = picture("evaluate-figure", _("Bits per byte of each model by each protocol, with 95 % intervals"))
            more = gr.HTML()
    return Views(note, verdict, figures, column, protocol, by, shares, share_table, document, words, kind, save, file, figure, more)  # fmt: skip

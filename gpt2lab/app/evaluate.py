"""The Evaluate tab: perplexity of one or two models by named protocols, and the loss of each part of the text."""

import json
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL.Image import Image

from gpt2lab.app.download import Downloads, build_download
from gpt2lab.app.events import ALONE, as_image, new_folder, picture, user_errors
from gpt2lab.app.results import ResultCache
from gpt2lab.data import hub
from gpt2lab.data.sources import DATA
from gpt2lab.data.text import SPLITS, Article, articles_of, load_text
from gpt2lab.errors import LabError, choice
from gpt2lab.evaluation.breakdown import surprisals, titles
from gpt2lab.evaluation.evaluate import Evaluation, evaluate
from gpt2lab.evaluation.protocols import PROTOCOLS
from gpt2lab.figures.evaluation import (
    SHARE_HEAD,
    meaning_lines,
    result_figure,
    result_table,
    results_csv,
    share_rows,
    shares_csv,
    shares_figure,
    tokens_csv,
)
from gpt2lab.files import write_bytes
from gpt2lab.pages.evaluation import evaluation_page
from gpt2lab.pages.surprisal import change_page, surprisal_page
from gpt2lab.results import duration

OWN = "your own text, below"
BREAKDOWNS = {"Position in the window": "position", "Frequency": "frequency", "Part": "part", "Document": "document"}
MAX_CHARACTERS = 1_000_000  # of a visitor's own text
DRAW_SECONDS = 0.3  # between updates of the progress
MAX_ROWS = 100  # of a table
FILES = {
    "figures, CSV": "csv",
    "figures, JSON": "json",
    "where it is hard, CSV": "parts.csv",
    "loss of every token, CSV": "tokens.csv",
    "all on a page": "html",
}
STOPPED = "Stopped. Finished windows are stored: Evaluate continues from there."
INTRO = """How well a model predicts a text. "Perplexity on WikiText-2" alone says little: the **protocol** decides how the text
is split, how much context a prediction has, and how the loss is averaged. Lower is better."""
TERMS = """- **perplexity**: exp of the mean loss per token: the number of equally likely tokens with the same loss. Comparable only
under the same tokenizer and protocol.
- **word** and **byte perplexity**, **bits per byte**: the same loss per word or byte of the original text; comparable
between tokenizers.
- **95 % interval**: the range of the figure over other articles of the same kind."""


@dataclass(frozen=True, eq=False)
class NamedEvaluation:
    """An evaluation and the name of its text."""

    evaluation: Evaluation
    text: str


def build_evaluate_tab(
    results: ResultCache, model: gr.Dropdown, dark: gr.Checkbox, downloads: Downloads
) -> gr.Dropdown:
    """Build the tab: models, text, protocols → figures, breakdowns, losses by token. Return the choice of a second model."""
    gr.Markdown(INTRO)
    key = gr.State(None)  # of the evaluation on the page
    running = gr.State(False)
    settings = build_settings(results, downloads)
    with gr.Row():
        go = gr.Button("Evaluate", variant="primary", elem_id="evaluate-go", min_width=120)
        stop = gr.Button("Stop", elem_id="evaluate-stop", min_width=100)
    note = gr.Markdown(elem_id="evaluate-note")
    verdict = gr.Markdown(elem_id="evaluate-verdict")
    table = gr.Dataframe(
        interactive=False,
        show_label=False,
        max_height=1600,
        elem_id="evaluate-table",
        wrap=True,
        buttons=[],
        value=[["", ""]],
        visible=False,
    )
    meaning = gr.Markdown(elem_id="evaluate-meaning")
    views, figure, protocol, by, shares, share_table, document, words, kind, save, file = build_views()

    @user_errors
    def evaluate(label: str, dark: bool, *values: Any) -> Iterator[dict]:
        began = time.monotonic()
        nothing = {verdict: "", meaning: "", table: gr.Dataframe(visible=False), views: gr.Column(visible=False)}
        yield {key: None, note: "Reading the text …", running: True, file: gr.File(None, visible=False), **nothing}
        try:
            for step in evaluation_progress(results, label, dict(zip(settings, values))):
                if isinstance(step, NamedEvaluation):
                    yield scored(step, time.monotonic() - began, dark is True)
                else:
                    yield {note: step}
        except LabError:
            yield {note: "", running: False}
            raise

    def scored(step: NamedEvaluation, seconds: float, dark: bool) -> dict:
        evaluation = step.evaluation
        names = evaluation.protocols
        return {
            key: results.add_evaluation(step),
            note: f"**{plain(', '.join(evaluation.models))} on {plain(step.text)}**, scored in {duration(seconds)}.",
            running: False,
            **dict(zip((verdict, table, meaning, figure), figures_of(evaluation, dark))),
            views: gr.Column(visible=True),
            protocol: gr.Radio(names, value=names[0]),
        }

    def stopped(running: bool) -> tuple:
        return (STOPPED if running else gr.skip()), False

    @user_errors
    def show_shares(key: str | None, name: str, by: str, dark: bool) -> tuple:
        evaluation = results.evaluation(key).evaluation
        picture, rows = shares_of(evaluation, name, by, dark is True)
        return picture, rows, gr.Dropdown(choices=documents_of(evaluation, name), value=0)

    @user_errors
    def show_breakdown(key: str | None, name: str, by: str, dark: bool) -> tuple:
        return shares_of(results.evaluation(key).evaluation, name, by, dark is True)

    @user_errors
    def show_document(key: str | None, name: str, document: int | None, dark: bool) -> str:
        return words_of(results.evaluation(key).evaluation, name, document, "dark" if dark is True else "light")

    @user_errors
    def make_file(key: str | None, name: str, by: str, kind: str) -> gr.File:
        path = evaluation_file(results.evaluation(key), name, by, kind)
        return gr.File(str(path), visible=True)

    outputs = [key, running, note, verdict, table, meaning, figure, views, protocol, file]
    event = go.click(
        evaluate,
        [model, dark, *settings.values()],
        outputs,
        api_name="evaluate",
        concurrency_limit=4,
        show_progress="hidden",  # the note shows it, and a stop is not an error
    )
    halted = stop.click(None, None, None, cancels=[event], api_name="evaluate_stop")
    halted.then(stopped, running, [note, running], api_visibility="private")
    inputs, breakdown = [key, protocol, by, dark], [shares, share_table, document]
    reading = [key, protocol, document, dark]
    for number, trigger in enumerate((event.success, protocol.input)):
        done = trigger(show_shares, inputs, breakdown, api_name=f"evaluate_hard_{number}")
        done.success(show_document, reading, words, api_visibility="private")
    by.input(show_breakdown, inputs, breakdown[:2], api_name="evaluate_by")
    document.input(show_document, reading, words, api_name="evaluate_words")
    save.click(make_file, [key, protocol, by, kind], file, api_name="evaluate_file")
    return settings["other"]


def build_views() -> tuple:
    """Build the views of an evaluation, hidden until there is one: their column, then its parts from top to bottom."""
    with gr.Column(visible=False) as views:
        figure = picture("evaluate-figure", "Bits per byte of each model by each protocol, with 95 % intervals")
        with gr.Accordion("What the figures mean", open=False):
            gr.Markdown(TERMS)
        gr.Markdown("### Loss by part of the text")
        with gr.Row():
            protocol = gr.Radio([], label="Protocol", elem_id="evaluate-protocol", min_width=200)
            by = gr.Radio(list(BREAKDOWNS), value="Part", label="Loss by", elem_id="evaluate-by", min_width=200)
        shares = picture("evaluate-shares", "The loss of each part of the text; the table below gives its numbers")
        share_table = gr.Dataframe(interactive=False, show_label=False, elem_id="evaluate-share-table")
        document = gr.Dropdown([], label="Document", elem_id="evaluate-document")
        words = gr.HTML(elem_id="evaluate-words")
        with gr.Row():
            kind = gr.Radio(list(FILES), value=next(iter(FILES)), label="File", elem_id="evaluate-kind", min_width=300)
            save = gr.Button("Make file", elem_id="evaluate-save", min_width=120)
        file = gr.File(label="File", interactive=False, visible=False, elem_id="evaluate-file")
    return views, figure, protocol, by, shares, share_table, document, words, kind, save, file


def build_settings(results: ResultCache, downloads: Downloads) -> dict[str, gr.components.Component]:
    """Build the settings, by the names that `evaluation_progress` takes."""
    with gr.Row():
        settings = {
            "other": gr.Dropdown(
                [ALONE, *results.store.labels()],
                value=ALONE,
                label="Compare with",
                elem_id="evaluate-other",
                min_width=180,
            ),
            "data": gr.Dropdown([*DATA, OWN], value="sample", label="Text", elem_id="evaluate-data", min_width=160),
            "split": gr.Dropdown(list(SPLITS), value="test", label="Split", elem_id="evaluate-split", min_width=120),
            "protocols": gr.CheckboxGroup(
                list(PROTOCOLS), value=list(PROTOCOLS), label="Protocols", elem_id="evaluate-protocols", min_width=240
            ),
        }
    build_download(downloads, settings["data"], "evaluate-data")
    with gr.Accordion("More settings, your own text", open=False, elem_id="evaluate-more"):
        with gr.Row():
            for name, label, info in (
                ("context", "Context", "Tokens per window. 0: the model's own, of two the smaller."),
                ("stride", "Stride", "Of sliding windows. 0: the context."),
                ("quick", "Articles", "How many articles to score, drawn at random. 0: all."),
                ("seed", "Seed", "Of the articles drawn."),
            ):
                settings[name] = gr.Number(
                    0, precision=0, label=label, info=info, elem_id=f"evaluate-{name}", min_width=160
                )
        settings["text"] = gr.Textbox(
            "",
            label="Your own text",
            info=f"ScoredText if {OWN!r} is chosen; up to {MAX_CHARACTERS:,} characters.",
            lines=4,
            max_lines=12,
            elem_id="evaluate-text",
        )
        settings["precision"] = gr.Dropdown(
            ["fp32", "bf16"],
            value="fp32",
            label="Precision",
            info="bf16 is faster with bf16 units. The result states the measured difference.",
            elem_id="evaluate-precision",
        )
    return settings


def evaluation_progress(results: ResultCache, label: str, settings: dict) -> Iterator[str | NamedEvaluation]:
    """Yield progress lines, at last the evaluation. Raises: LabError for bad settings."""
    labels = [label] if settings["other"] in (None, ALONE) else [label, settings["other"]]
    optional: dict[str, Any] = {name: settings[name] or None for name in ("context", "stride", "quick")}
    articles = articles_of_choice(settings["data"], settings["split"], settings["text"])
    labs = [results.store.lab(name) for name in labels]
    optional |= {"seed": settings["seed"] or 0, "precision": settings["precision"]}
    steps = evaluate.steps(labs, articles, settings["protocols"], **optional)
    evaluation = yield from progress_lines(results.store.locked_steps(steps))
    own = settings["data"] == OWN
    yield NamedEvaluation(evaluation, "your own text" if own else f"{settings['data']}, {settings['split']} split")


def articles_of_choice(data: str, split: str, text: str) -> tuple[Article, ...]:
    """Return the articles of an offered text, or of the visitor's own. Raises: LabError for an unknown or empty text."""
    if data in DATA:
        hub.require_downloaded(data)
        return load_text(data).split(split)
    choice("text", data, [*DATA, OWN])
    if not isinstance(text, str) or not text.strip():
        raise LabError("your own text is empty; type or paste some under More settings")
    if len(text) > MAX_CHARACTERS:
        raise LabError(
            "your own text has {count:,} characters; the limit is {max_characters:,}: take a part of it",
            count=len(text),
            max_characters=MAX_CHARACTERS,
        )
    return articles_of(text, "your own text")


def progress_lines(steps: Generator) -> Generator[str, None, Any]:
    """Yield the progress of scoring with the time left; return what the steps return."""
    doing, drawn, began, before = None, 0.0, 0.0, 0
    while True:
        try:
            what, done, total = next(steps)
        except StopIteration as end:
            return end.value
        now = time.monotonic()
        if what != doing:
            doing, began, before = what, now, done
        if now - drawn > DRAW_SECONDS:
            drawn = now
            left = (now - began) / (done - before) * (total - done) if done > before else None
            yield f"{what}: {done:,} of {total:,} windows" + (f", {duration(left)} left" if left else "")


def figures_of(evaluation: Evaluation, dark: bool) -> tuple[str, gr.Dataframe, str, Image]:
    """Return (verdicts, table, meanings, figure) of an evaluation."""
    results = evaluation.results
    head, rows = result_table(results)
    verdicts = "\n\n".join(f"**{protocol}**: {plain(verdict)}" for protocol, verdict in evaluation.verdicts)
    lines = "\n".join(f"- {plain(line)}" for line in meaning_lines(results))
    table = gr.Dataframe([list(row) for row in rows], headers=head, column_count=len(head), visible=True)
    return verdicts, table, lines, as_image(result_figure(results, dark=dark))


def plain(text: str) -> str:
    """Escape Markdown."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|~$" else c for c in text)


def shares_of(evaluation: Evaluation, protocol: str, by: str, dark: bool) -> tuple[Image, gr.Dataframe]:
    """Return (figure, table) of the loss of each part of a text."""
    name = BREAKDOWNS.get(by, by)
    shares = evaluation.shares(name, protocol)
    several = len(shares) > 1
    rows = [
        [*row, model][: len(row) + several]
        for model, model_shares in shares.items()
        for row in share_rows(model_shares)[:MAX_ROWS]
    ]
    head = ["part", *SHARE_HEAD[1:], "model"][: len(SHARE_HEAD) + several]
    return as_image(shares_figure(name, shares, dark=dark)), gr.Dataframe(rows, headers=head, column_count=len(head))


def documents_of(evaluation: Evaluation, protocol: str) -> list[tuple[str, int]]:
    """Return (title, number) of the documents that a protocol reads."""
    return [(title, i) for i, title in enumerate(titles(evaluation.of(protocol)[0]))]


def words_of(evaluation: Evaluation, protocol: str, document: int | None, theme: str) -> str:
    """Return a document coloured by one model's surprisal, or by the change from the first model to the second."""
    models, number = evaluation.of(protocol), document or 0
    pieces = [surprisals(scored, number) for scored in models]
    title = titles(models[0])[number]
    if len(models) == 2 and [text for text, _ in pieces[0]] == [text for text, _ in pieces[1]]:
        return change_page(title, pieces[0], pieces[1], (models[0].model, models[1].model), theme=theme).iframe()
    pages = [surprisal_page(f"{title}, {scored.model}", nll, theme=theme) for scored, nll in zip(models, pieces)]
    return "".join(page.iframe() for page in pages)


def evaluation_file(scored: NamedEvaluation, protocol: str, by: str, kind: str) -> Path:
    """Write an evaluation to a file in a new folder. Raises: LabError for an unknown kind."""
    choice("file", kind, FILES)
    evaluation, end = scored.evaluation, FILES[kind]
    if end == "csv":
        content = results_csv(evaluation, scored.text)
    elif end == "json":
        record = {"model": evaluation.models[0], "data": scored.text, **evaluation.record()}
        content = json.dumps(record, ensure_ascii=False, indent=1).encode()
    elif end == "parts.csv":
        content = shares_csv(evaluation, BREAKDOWNS.get(by, by))
    elif end == "tokens.csv":
        content = tokens_csv(evaluation.pieces(protocol))
    else:
        title = f"Perplexity of {', '.join(evaluation.models)} on {scored.text}"
        content = evaluation_page(title, evaluation, [*BREAKDOWNS.values()]).html.encode()
    return write_bytes(new_folder() / f"perplexity.{end}", content)

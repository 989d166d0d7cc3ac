"""The Evaluate tab: perplexity of one model or two by named protocols, what each figure means, and where the text is hard."""

import json
import time
from collections.abc import Generator
from dataclasses import dataclass

import gradio as gr

from gpt2lab.app.download import Downloads, build_download
from gpt2lab.app.events import ALONE, as_image, new_folder, picture, user_errors
from gpt2lab.app.results import ResultCache
from gpt2lab.data import hub
from gpt2lab.data.sources import DATA
from gpt2lab.data.text import SPLITS, articles_of, load_text
from gpt2lab.errors import LabError, choice
from gpt2lab.evaluation.breakdown import surprisals, titles
from gpt2lab.evaluation.evaluate import evaluation_steps
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
STOPPED = "Stopped. What was scored is kept: Evaluate goes on from there."
INTRO = """How well a model predicts a text. "Perplexity on WikiText-2" alone says little: the **protocol** decides how the text
is cut, how much a prediction may read, and what is divided by what. Lower is better."""
TERMS = """- **perplexity**: exp of the mean loss per token: among how many equally likely tokens the model wavers. Compares only
under the same tokenizer and protocol.
- **word** and **byte perplexity**, **bits per byte**: the same loss per word or byte of the original text; these compare
between tokenizers.
- **95 % interval**: how far the figure would move with other articles of the same kind."""


@dataclass(frozen=True, eq=False)
class Shown:
    """What is on a visitor's page: an evaluation, and of what."""

    evaluation: object
    text: str


def build_evaluate_tab(
    results: ResultCache, model: gr.Dropdown, dark: gr.Checkbox, downloads: Downloads
) -> gr.Dropdown:
    """Models, text, protocols → figures, and views of where it is hard; the choice of the second model is returned."""
    gr.Markdown(INTRO)
    shown = gr.State(None)  # the key of the evaluation on the page
    running = gr.State(False)
    asked = build_questions(results, downloads)
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
    views, figure, protocol, by, shared, share_table, document, words, kind, save, file = build_views()

    @user_errors
    def evaluate(label, dark, *values):
        found, began = None, time.monotonic()
        nothing = {verdict: "", meaning: "", table: gr.Dataframe(visible=False), views: gr.Column(visible=False)}
        yield {shown: None, note: "Reading the text …", running: True, file: gr.File(None, visible=False), **nothing}
        try:
            for step in steps_asked(results, label, dict(zip(asked, values))):
                if isinstance(step, Shown):
                    found = step
                else:
                    yield {note: step}
        except LabError:
            yield {note: "", running: False}
            raise
        names = found.evaluation.protocols
        yield {
            shown: results.add_evaluation(found),
            note: f"**{plain(', '.join(found.evaluation.models))} on {plain(found.text)}**, scored in {duration(time.monotonic() - began)}.",
            running: False,
            **dict(zip((verdict, table, meaning, figure), figures_of(found.evaluation, dark is True))),
            views: gr.Column(visible=True),
            protocol: gr.Radio(names, value=names[0]),
        }

    def stopped(running):
        return (STOPPED if running else gr.skip()), False

    @user_errors
    def hard(key, name, by, dark):
        found = results.evaluation(key).evaluation
        picture, rows = shares_of(found, name, by, dark is True)
        return picture, rows, gr.Dropdown(choices=documents_of(found, name), value=0)

    @user_errors
    def hard_by(key, name, by, dark):
        return shares_of(results.evaluation(key).evaluation, name, by, dark is True)

    @user_errors
    def read(key, name, document, dark):
        return words_of(results.evaluation(key).evaluation, name, document, "dark" if dark is True else "light")

    @user_errors
    def make_file(key, name, by, kind):
        path = evaluation_file(results.evaluation(key), name, by, kind)
        return gr.File(str(path), visible=True)

    outputs = [shown, running, note, verdict, table, meaning, figure, views, protocol, file]
    event = go.click(
        evaluate,
        [model, dark, *asked.values()],
        outputs,
        api_name="evaluate",
        concurrency_limit=4,
        show_progress="hidden",  # the note tells it, and a stop is no error
    )
    halted = stop.click(None, None, None, cancels=[event], api_name="evaluate_stop")
    halted.then(stopped, running, [note, running], api_visibility="private")
    which, place = [shown, protocol, by, dark], [shared, share_table, document]
    reading = [shown, protocol, document, dark]
    for number, chosen in enumerate((event.success, protocol.input)):
        done = chosen(hard, which, place, api_name=f"evaluate_hard_{number}")
        done.success(read, reading, words, api_visibility="private")
    by.input(hard_by, which, place[:2], api_name="evaluate_by")
    document.input(read, reading, words, api_name="evaluate_words")
    save.click(make_file, [shown, protocol, by, kind], file, api_name="evaluate_file")
    return asked["other"]


def build_views() -> tuple:
    """What looks at an evaluation, hidden until there is one: the column that holds it all, then its parts from top to bottom."""
    with gr.Column(visible=False) as views:
        figure = picture("evaluate-figure", "Bits per byte of each model by each protocol, with 95 % intervals")
        with gr.Accordion("What the figures mean", open=False):
            gr.Markdown(TERMS)
        gr.Markdown("### Where it is hard")
        with gr.Row():
            protocol = gr.Radio([], label="Protocol", elem_id="evaluate-protocol", min_width=200)
            by = gr.Radio(list(BREAKDOWNS), value="Part", label="Loss by", elem_id="evaluate-by", min_width=200)
        shared = picture("evaluate-shares", "The loss of each part of the text; the table below gives its numbers")
        share_table = gr.Dataframe(interactive=False, show_label=False, elem_id="evaluate-share-table")
        document = gr.Dropdown([], label="Word for word, a document", elem_id="evaluate-document")
        words = gr.HTML(elem_id="evaluate-words")
        with gr.Row():
            kind = gr.Radio(list(FILES), value=next(iter(FILES)), label="Save", elem_id="evaluate-kind", min_width=300)
            save = gr.Button("Make file", elem_id="evaluate-save", min_width=120)
        file = gr.File(label="File", interactive=False, visible=False, elem_id="evaluate-file")
    return views, figure, protocol, by, shared, share_table, document, words, kind, save, file


def build_questions(results: ResultCache, downloads: Downloads) -> dict[str, gr.components.Component]:
    """What is asked, by the name that `steps_asked` knows it by."""
    with gr.Row():
        asked = {
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
    build_download(downloads, asked["data"], "evaluate-data")
    with gr.Accordion("More settings, your own text", open=False, elem_id="evaluate-more"):
        with gr.Row():
            for name, label, info in (
                ("context", "Context", "tokens per window; 0: the model's own, of two the smaller"),
                ("stride", "Stride", "of sliding windows; 0: the context"),
                ("quick", "Articles", "score only so many, drawn at random; 0: all"),
                ("seed", "Seed", "of the articles drawn"),
            ):
                asked[name] = gr.Number(
                    0, precision=0, label=label, info=info, elem_id=f"evaluate-{name}", min_width=160
                )
        asked["text"] = gr.Textbox(
            "",
            label="Your own text",
            info=f"scored where {OWN!r} is chosen; up to {MAX_CHARACTERS:,} characters",
            lines=4,
            max_lines=12,
            elem_id="evaluate-text",
        )
        asked["precision"] = gr.Dropdown(
            ["fp32", "bf16"],
            value="fp32",
            label="Precision",
            info="bf16 is faster with bf16 units. The result states the measured difference.",
            elem_id="evaluate-precision",
        )
    return asked


def steps_asked(results: ResultCache, label: str, asked: dict) -> Generator[str | Shown, None, None]:
    """How far it is, in words, as often as it changes; at last what is to be shown. Raises: LabError for bad choices."""
    labels = [label] if asked["other"] in (None, ALONE) else [label, asked["other"]]
    optional = {name: asked[name] or None for name in ("context", "stride", "quick")}
    articles = articles_asked(asked["data"], asked["split"], asked["text"])
    labs = [results.store.lab(one) for one in labels]
    optional |= {"seed": asked["seed"] or 0, "precision": asked["precision"]}
    steps = evaluation_steps(labs, articles, asked["protocols"], **optional)
    evaluation = yield from in_words(results.store.locked_steps(steps))
    yield Shown(evaluation, "your own text" if asked["data"] == OWN else f"{asked['data']}, {asked['split']} split")


def articles_asked(data, split, text) -> tuple:
    """The articles of a text that the page offers, or of a visitor's own. Raises: LabError."""
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


def in_words(steps: Generator) -> Generator[str, None, object]:
    """How far a scoring is, with the time that what it does now will take; returns what the steps return."""
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


def figures_of(evaluation, dark: bool) -> tuple:
    """(verdicts, table, meanings, figure) of an evaluation."""
    results = evaluation.results
    head, rows = result_table(results)
    verdicts = "\n\n".join(f"**{protocol}**: {plain(said)}" for protocol, said in evaluation.verdicts)
    lines = "\n".join(f"- {plain(line)}" for line in meaning_lines(results))
    table = gr.Dataframe([list(row) for row in rows], headers=head, column_count=len(head), visible=True)
    return verdicts, table, lines, as_image(result_figure(results, dark=dark))


def plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|~$" else c for c in text)


def shares_of(evaluation, protocol: str, by: str, dark: bool) -> tuple:
    """(figure, table) of where a text is hard."""
    name = BREAKDOWNS.get(by, by)
    shares = evaluation.shares(name, protocol)
    several = len(shares) > 1
    rows = [
        [*row, model][: len(row) + several] for model, mine in shares.items() for row in share_rows(mine)[:MAX_ROWS]
    ]
    head = ["part", *SHARE_HEAD[1:], "model"][: len(SHARE_HEAD) + several]
    return as_image(shares_figure(name, shares, dark=dark)), gr.Dataframe(rows, headers=head, column_count=len(head))


def documents_of(evaluation, protocol: str) -> list[tuple[str, int]]:
    """(title, number) of the documents that a protocol reads."""
    return [(title, i) for i, title in enumerate(titles(evaluation.of(protocol)[0]))]


def words_of(evaluation, protocol: str, document: int | None, theme: str) -> str:
    """A document word for word, coloured: one model's surprisal, or what the second expected better than the first."""
    mine, number = evaluation.of(protocol), document or 0
    pieces = [surprisals(scored, number) for scored in mine]
    title = titles(mine[0])[number]
    if len(mine) == 2 and [text for text, _ in pieces[0]] == [text for text, _ in pieces[1]]:
        return change_page(title, *pieces, (mine[0].model, mine[1].model), theme=theme).iframe()
    pages = [surprisal_page(f"{title}, {one.model}", its, theme=theme) for one, its in zip(mine, pieces)]
    return "".join(page.iframe() for page in pages)


def evaluation_file(shown: Shown, protocol: str, by: str, kind: str):
    """A file of an evaluation to take away, in a folder of its own. Raises: LabError for an unknown kind."""
    choice("file", kind, FILES)
    evaluation, end = shown.evaluation, FILES[kind]
    if end == "csv":
        content = results_csv(evaluation, shown.text)
    elif end == "json":
        found = {"model": evaluation.models[0], "data": shown.text, **evaluation.record()}
        content = json.dumps(found, ensure_ascii=False, indent=1).encode()
    elif end == "parts.csv":
        content = shares_csv(evaluation, BREAKDOWNS.get(by, by))
    elif end == "tokens.csv":
        content = tokens_csv(evaluation.pieces(protocol))
    else:
        title = f"Perplexity of {', '.join(evaluation.models)} on {shown.text}"
        content = evaluation_page(title, evaluation, [*BREAKDOWNS.values()]).html.encode()
    return write_bytes(new_folder() / f"perplexity.{end}", content)

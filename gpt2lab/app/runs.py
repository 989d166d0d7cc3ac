"""The runs, in the page: states, losses, texts, models; stop, pause, resume.

Runs are processes of their own, and all that is shown is read from their folders: closing the page
changes nothing, and every visitor sees the same.
"""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from io import BytesIO
from pathlib import Path

import gradio as gr

from gpt2lab.app.handling import Stops, new_folder, uncover, user_errors
from gpt2lab.app.shelf import Shelf
from gpt2lab.errors import LabError
from gpt2lab.results import duration, perplexity_of, readable
from gpt2lab.training import jobs, runs

POLL_SECONDS = 2
MAX_SHOWN = 6  # runs in one figure
COLUMNS = {"run": "38%", "state": "29%", "perplexity": "33%"}  # with their widths
DOES = {
    "stop": "Stop",
    "pause": "Pause",
    "resume": "Resume",
    "use": "Use this model",
    "zip": "Model as a zip",
    "report": "Report",
    "score": "Score whole validation split",
}


def build_runs(page: gr.Blocks, shelf: Shelf, model: gr.Dropdown, dark: gr.Checkbox) -> gr.Dropdown:
    """The list of runs, and what is known of those chosen in it; the choice is returned."""
    gr.Markdown("### Runs")
    table = gr.Dataframe(
        headers=list(COLUMNS),
        column_count=len(COLUMNS),
        column_widths=list(COLUMNS.values()),
        wrap=True,
        interactive=False,
        max_height=260,
        label="Every run here, newest first; click one to look at it",
        buttons=[],
        elem_id="runs-list",
    )
    shown = gr.Dropdown(
        [],
        multiselect=True,
        max_choices=MAX_SHOWN,
        label="Looked at",
        info="Add others to compare their losses; words, texts, log and buttons are the first one's.",
        elem_id="runs",
    )
    buttons = build_buttons(shelf, shown, model)
    outputs = [*build_view(), *buttons]
    seen = gr.State()  # what is drawn, so that nothing is drawn twice

    @user_errors
    def arrive():
        active, ids = jobs.active_run(shelf.runs_dir), run_ids(shelf)
        return gr.Dropdown(choices=ids, value=[active.id] if active else ids[:1])

    @user_errors
    def look(shown, seen, dark):
        return view(shelf, shown, seen, dark is True)

    @user_errors
    def choose(event: gr.SelectData):
        return [runs.find_run(shelf.runs_dir, event.row_value[0]).name]

    hidden = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
    for moment in (gr.Timer(POLL_SECONDS).tick, shown.change):
        moment(look, [shown, seen, dark], [seen, table, shown, *outputs], **hidden)
    table.select(choose, None, shown, **hidden)
    page.load(arrive, None, shown, api_visibility="private")
    return shown


def build_view() -> list:
    """State, losses, texts, validation losses and log of the runs shown: empty."""
    state = gr.Markdown(elem_id="finetune-state")
    plot = gr.Image(
        show_label=False,
        buttons=["download", "fullscreen"],
        interactive=False,
        elem_id="finetune-plot",
        format="png",
        label="Losses",
        alt_text="Losses of training and validation over the steps; the table below gives those of validation",
    )
    texts = gr.Dataframe(
        headers=["step", "text"],
        column_count=2,
        column_widths=["15%", "85%"],
        wrap=True,
        interactive=False,
        label="Written along the way: the same prompt, the same seed",
        elem_id="finetune-texts",
    )
    with gr.Accordion("Validation losses as a table", open=False):
        table = gr.Dataframe(
            headers=["step", "loss (nats per token)", "perplexity"],
            column_count=3,
            interactive=False,
            show_label=False,
            elem_id="finetune-table",
        )
    with gr.Accordion("Log", open=False):
        log = gr.Textbox(lines=8, interactive=False, show_label=False, elem_id="finetune-log")
    return [state, plot, texts, table, log]


def build_buttons(shelf: Shelf, shown: gr.Dropdown, model: gr.Dropdown) -> list[gr.Button]:
    """What can be done with the first run shown, in the order of DOES."""
    with gr.Row():
        button = {
            name: gr.Button(label, interactive=False, elem_id=f"finetune-{name}", min_width=90)
            for name, label in DOES.items()
        }
    stop_scoring = gr.Button("Stop scoring", visible=False, elem_id="finetune-score-stop", min_width=90)
    scored = gr.Markdown(elem_id="finetune-scored")
    file = gr.File(label="File", visible=False, interactive=False, elem_id="finetune-file")
    scoring = Stops("A split is being scored on this page; press Stop scoring first.")

    def end(want):
        @user_errors
        def ask(shown):
            end_run(first(shelf, shown), want)

        return ask

    @user_errors
    def go_on(shown):
        jobs.resume(first(shelf, shown))

    @user_errors
    def take(shown):
        run = first(shelf, shown)
        check_model(run)
        return gr.Dropdown(choices=shelf.labels(), value=run.name)

    @user_errors
    def pack(shown):
        run = first(shelf, shown)
        check_model(run)
        archive = shutil.make_archive(str(new_folder() / run.name), "zip", run / "model")
        return gr.File(archive, label="The model", visible=True)

    @user_errors
    def tell(shown):
        return gr.File(report_file(first(shelf, shown)), label="The report, a page of its own", visible=True)

    for name, act, output in (
        ("stop", end("stop"), None),
        ("pause", end("pause"), None),
        ("resume", go_on, None),
        ("use", take, model),
        ("zip", pack, file),
        ("report", tell, file),
    ):
        button[name].click(act, shown, output, api_name=f"finetune_{name}")

    def score(request: gr.Request, shown):
        try:
            with scoring.running(request) as flag:
                yield gr.Button(visible=True), "Loading both models …"
                for line in score_split(shelf, first(shelf, shown), flag):
                    yield gr.skip(), line
        except LabError:
            yield gr.Button(visible=False), ""
            raise
        yield gr.Button(visible=False), gr.skip()

    outputs = [stop_scoring, scored]
    event = button["score"].click(user_errors(score), shown, outputs, api_name="finetune_score", concurrency_limit=8)
    uncover(event, outputs)
    stop_scoring.click(scoring.stop, None, None, queue=False, api_visibility="private")
    shown.change(lambda: "", None, scored, api_visibility="private", show_progress="hidden")
    return list(button.values())


def run_ids(shelf: Shelf) -> list[str]:
    """The ids of all runs, newest first."""
    return [run.id for run in runs.list_runs(shelf.runs_dir)]


def first(shelf: Shelf, shown) -> Path:
    """The folder of the first run that is shown. Raises: LabError where none is, or it is unknown here."""
    if not isinstance(shown, list) or not shown:
        raise LabError("no run is shown; choose one in the list")
    return runs.find_run(shelf.runs_dir, shown[0])


def has_model(folder: Path) -> bool:
    """Whether a run has left its model."""
    return (folder / "model" / "config.json").is_file()


def check_model(folder: Path) -> None:
    """Raises: LabError for a run that has left no model yet."""
    if not has_model(folder):
        raise LabError(
            "run {name!r} has left no model yet; press Stop, or wait until it has finished", name=folder.name
        )


def end_run(folder: Path, want: str) -> None:
    """Ask a run to end, and see to it that it does, without waiting. Raises: LabError for one that has ended."""
    jobs.check_alive(folder)
    runs.request_action(folder, want)

    def see_to_it():
        with suppress(LabError):  # it has ended meanwhile
            jobs.stop(folder, want=want)

    threading.Thread(target=see_to_it, daemon=True).start()


def report_file(folder: Path) -> str:
    """A copy of a run's report.html to take away, written first where it is missing."""
    from gpt2lab.pages.run_report import write_report

    page = folder / "report.html"
    if not page.is_file():
        write_report(folder)
    return str(shutil.copy(page, new_folder() / f"{folder.name}.html"))


def score_split(shelf: Shelf, folder: Path, stop: threading.Event) -> Iterator[str]:
    """Score the whole validation split before and after a run; yields lines about how far it is, at last the result."""
    from gpt2lab.training.whole import load_scoring

    check_model(folder)
    steps, began, results = load_scoring(folder).steps(), time.monotonic(), []

    def run():
        results.append((yield from shelf.each(steps)))

    with closing(steps):
        for done, total in run():
            if stop.is_set():
                yield f"Stopped after {done:,} of {total:,} blocks; nothing was changed."
                return
            left = (time.monotonic() - began) / done * (total - done)
            yield f"Scoring the validation split: {done:,} of {total:,} blocks, about {duration(left)} left."
    yield f"Validation perplexity of **{escaped(folder.name)}**: {escaped(str(results[0].whole_validation))}."


def view(shelf: Shelf, shown, seen, dark: bool):
    """(what is drawn, list, choice, line, figure, texts, table, log, *buttons) of the runs shown, from their folders."""
    listed = runs.list_runs(shelf.runs_dir)
    ids, rows = [run.id for run in listed], [row_of(run) for run in listed]
    by_id = {run.id: run for run in listed}
    chosen = [by_id[run] for run in shown or [] if run in by_id][:MAX_SHOWN]
    if not chosen:
        line = "No run is looked at." if ids else "There are no runs yet."
        empty = gr.Image(None, visible=False), gr.Dataframe([], visible=False), [], ""
        return [rows], rows, gr.Dropdown(choices=ids), line, *empty, *[gr.Button(interactive=False)] * len(DOES)
    run = chosen[0]
    line, log, buttons = told(run), runs.log_tail(run.folder), possible(run)
    metrics = {run.id: runs.read_metrics(run.folder) for run in chosen}
    samples = runs.read_lines(run.folder / "samples.jsonl")
    now = [rows, dark, [len(samples), *([name, len(found)] for name, found in metrics.items())]]
    same = [old == new for old, new in zip(seen, now)] if seen else []
    table = gr.skip() if same[:1] == [True] else rows
    if same[1:] == [True, True]:
        return now, table, gr.Dropdown(choices=ids), line, gr.skip(), gr.skip(), gr.skip(), log, *buttons
    from gpt2lab.figures.training import validation_rows

    figure = picture(metrics, dark)
    texts = [[sample.get("step"), f"{sample.get('prompt')}{sample.get('text')}"] for sample in reversed(samples)]
    return (
        now,
        table,
        gr.Dropdown(choices=ids),
        line,
        gr.Image(figure, visible=figure is not None),
        gr.Dataframe(texts, visible=bool(texts)),
        [list(row) for row in validation_rows(metrics[run.id])],
        log,
        *buttons,
    )


def possible(run: runs.Run) -> list[gr.Button]:
    """The buttons of DOES, each as it can be pressed or not."""
    alive = run.state in runs.ALIVE
    can = {"stop": alive, "pause": alive, "resume": not alive and run.state != "finished"}
    return [gr.Button(interactive=can.get(name, has_model(run.folder))) for name in DOES]


def row_of(run: runs.Run) -> list[str]:
    """A run as a row of the list."""
    steps, _, perplexities = run.progress.partition(", perplexity ")
    return [run.id, f"{run.state} {steps}", perplexities]


def picture(metrics: dict, dark: bool):
    """The losses of runs as an image; None before the first."""
    from PIL import Image

    from gpt2lab.figures.drawing import figure_bytes
    from gpt2lab.figures.training import loss_curves

    drawn = {name: found for name, found in metrics.items() if found}
    return Image.open(BytesIO(figure_bytes(loss_curves(drawn, dark=dark), "png"))) if drawn else None


def told(run: runs.Run) -> str:
    """What a run is and how far, in a line."""
    model, status = Path(run.model), run.status
    base = model.parent.name if model.name == "model" else model.name  # of a run's model, the run's id
    total = f" of {run.total_steps:,}" if run.total_steps else ""
    words = [f"**{run.id}**: {run.state}, step {run.step:,}{total}; {escaped(f'{base} on {Path(run.data).name}')}."]
    if status and None not in (status.tokens_per_second, status.eta_seconds):
        words.append(f"{status.tokens_per_second:,.0f} tokens/s, about {duration(status.eta_seconds)} left.")
    if status and None not in (status.loss_before, status.loss_best, status.best_step):
        before, best = perplexity_of(status.loss_before), perplexity_of(status.loss_best)
        words.append(f"Validation perplexity {readable(before)} → **{readable(best)}** at step {status.best_step:,}.")
    return " ".join([*words, escaped(run.message)]).rstrip()


def escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]()#+-.!<>|~$" else c for c in text)

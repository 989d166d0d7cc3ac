"""The list of runs: states, losses, texts, models; stop, pause, resume.

Runs are separate processes, and the page reads their folders: closing the page changes nothing, and every visitor
sees the same.
"""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import gradio as gr
from PIL.Image import Image

from gpt2lab.app.events import Stops, as_image, escaped, new_folder, uncover, user_errors
from gpt2lab.app.models import ModelStore
from gpt2lab.errors import LabError
from gpt2lab.figures.training import loss_curves, validation_rows
from gpt2lab.pages.run_report import write_report
from gpt2lab.results import duration, perplexity_of, readable
from gpt2lab.training import jobs, runs
from gpt2lab.training.full_validation import load_scoring
from gpt2lab.training.result import FinetuneResult

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


def build_runs(page: gr.Blocks, store: ModelStore, model: gr.Dropdown, dark: gr.Checkbox) -> gr.Dropdown:
    """Build the list of runs and the views of the selected ones; return the selection."""
    gr.Markdown("### Runs")
    table = gr.Dataframe(
        headers=list(COLUMNS),
        column_count=len(COLUMNS),
        column_widths=list(COLUMNS.values()),
        wrap=True,
        interactive=False,
        max_height=260,
        label="Runs, newest first: click one to select it",
        buttons=[],
        elem_id="runs-list",
    )
    selected = gr.Dropdown(
        [],
        multiselect=True,
        max_choices=MAX_SHOWN,
        label="Selected",
        info="Add others to compare their losses. The other views and the buttons are for the first.",
        elem_id="runs",
    )
    buttons = build_buttons(store, selected, model)
    outputs = [*build_view(), *buttons]
    drawn = gr.State()  # what the views hold, so that nothing is drawn twice

    @user_errors
    def arrive() -> gr.Dropdown:
        active, ids = jobs.active_run(store.runs_dir), run_ids(store)
        return gr.Dropdown(choices=ids, value=[active.id] if active else ids[:1])

    @user_errors
    def refresh(selected: list[str], drawn: list | None, dark: bool) -> tuple:
        return view(store, selected, drawn, dark is True)

    @user_errors
    def choose(event: gr.SelectData) -> list[str]:
        return [runs.find_run(store.runs_dir, event.row_value[0]).name]

    hidden = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
    for moment in (gr.Timer(POLL_SECONDS).tick, selected.change):
        moment(refresh, [selected, drawn, dark], [drawn, table, selected, *outputs], **hidden)
    table.select(choose, None, selected, **hidden)
    page.load(arrive, None, selected, api_visibility="private")
    return selected


def build_view() -> list:
    """Build the empty views of runs: state, losses, texts, validation losses, log."""
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
        label="Samples during training (same prompt and seed)",
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


def build_buttons(store: ModelStore, selected: gr.Dropdown, model: gr.Dropdown) -> list[gr.Button]:
    """Build the buttons of the first selected run, in the order of DOES."""
    with gr.Row():
        button = {
            name: gr.Button(label, interactive=False, elem_id=f"finetune-{name}", min_width=90)
            for name, label in DOES.items()
        }
    stop_scoring = gr.Button("Stop scoring", visible=False, elem_id="finetune-score-stop", min_width=90)
    scored = gr.Markdown(elem_id="finetune-scored")
    file = gr.File(label="File", visible=False, interactive=False, elem_id="finetune-file")
    scoring = Stops("A split is being scored on this page; press Stop scoring first.")

    def end(want: str) -> Callable[[list[str]], None]:
        @user_errors
        def ask(selected: list[str]) -> None:
            end_run(first(store, selected), want)

        return ask

    @user_errors
    def resume(selected: list[str]) -> None:
        jobs.resume_run(first(store, selected))

    @user_errors
    def use(selected: list[str]) -> gr.Dropdown:
        run = first(store, selected)
        check_model(run)
        return gr.Dropdown(choices=store.labels(), value=run.name)

    @user_errors
    def pack(selected: list[str]) -> gr.File:
        run = first(store, selected)
        check_model(run)
        archive = shutil.make_archive(str(new_folder() / run.name), "zip", run / "model")
        return gr.File(archive, label="The model", visible=True)

    @user_errors
    def report(selected: list[str]) -> gr.File:
        return gr.File(report_file(first(store, selected)), label="Report", visible=True)

    for name, act, output in (
        ("stop", end("stop"), None),
        ("pause", end("pause"), None),
        ("resume", resume, None),
        ("use", use, model),
        ("zip", pack, file),
        ("report", report, file),
    ):
        button[name].click(act, selected, output, api_name=f"finetune_{name}")

    def score(request: gr.Request, selected: list[str]) -> Iterator[tuple]:
        try:
            with scoring.running(request) as flag:
                yield gr.Button(visible=True), "Loading both models …"
                for line in score_split(store, first(store, selected), flag):
                    yield gr.skip(), line
        except LabError:
            yield gr.Button(visible=False), ""
            raise
        yield gr.Button(visible=False), gr.skip()

    outputs = [stop_scoring, scored]
    event = button["score"].click(user_errors(score), selected, outputs, api_name="finetune_score", concurrency_limit=8)
    uncover(event, outputs)
    stop_scoring.click(scoring.stop, None, None, queue=False, api_visibility="private")
    selected.change(lambda: "", None, scored, api_visibility="private", show_progress="hidden")
    return list(button.values())


def run_ids(store: ModelStore) -> list[str]:
    """Return the ids of all runs, newest first."""
    return [run.id for run in runs.list_runs(store.runs_dir)]


def first(store: ModelStore, selected: list[str]) -> Path:
    """Return the folder of the first selected run. Raises: LabError if none is selected, or it is unknown."""
    if not isinstance(selected, list) or not selected:
        raise LabError("no run is selected; choose one in the list")
    return runs.find_run(store.runs_dir, selected[0])


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
    """Ask a run to end, and make sure that it does, without waiting. Raises: LabError if it has ended."""
    jobs.check_alive(folder)
    runs.request_action(folder, want)

    def make_sure() -> None:
        with suppress(LabError):  # it has ended meanwhile
            jobs.stop(folder, want=want)

    threading.Thread(target=make_sure, daemon=True).start()


def report_file(folder: Path) -> str:
    """Copy a run's report.html for download; write it first if it is missing."""
    page = folder / "report.html"
    if not page.is_file():
        write_report(folder)
    return str(shutil.copy(page, new_folder() / f"{folder.name}.html"))


def score_split(store: ModelStore, folder: Path, stop: threading.Event) -> Iterator[str]:
    """Score the whole validation split before and after a run; yield progress lines, at last the result."""
    check_model(folder)
    steps, began = load_scoring(folder).steps(), time.monotonic()
    results: list[FinetuneResult] = []

    def run() -> Iterator[tuple[int, int]]:
        results.append((yield from store.locked_steps(steps)))

    with closing(steps):
        for done, total in run():
            if stop.is_set():
                yield f"Stopped after {done:,} of {total:,} blocks; nothing was changed."
                return
            left = (time.monotonic() - began) / done * (total - done)
            yield f"Scoring the validation split: {done:,} of {total:,} blocks, about {duration(left)} left."
    yield f"Validation perplexity of **{escaped(folder.name)}**: {escaped(str(results[0].whole_validation))}."


def view(store: ModelStore, selected: list[str] | None, drawn: list | None, dark: bool) -> tuple:
    """Return (what is drawn, list, selection, line, figure, texts, table, log, *buttons) of the selected runs."""
    listed = runs.list_runs(store.runs_dir)
    ids, rows = [run.id for run in listed], [row_of(run) for run in listed]
    by_id = {run.id: run for run in listed}
    chosen = [by_id[run] for run in selected or [] if run in by_id][:MAX_SHOWN]
    if not chosen:
        line = "No run is selected." if ids else "There are no runs yet."
        empty: tuple = gr.Image(None, visible=False), gr.Dataframe([], visible=False), [], ""
        return [rows], rows, gr.Dropdown(choices=ids), line, *empty, *[gr.Button(interactive=False)] * len(DOES)
    run = chosen[0]
    line, log, buttons = run_line(run), runs.log_tail(run.folder), possible(run)
    metrics = {run.id: runs.read_metrics(run.folder) for run in chosen}
    samples = runs.read_lines(run.folder / "samples.jsonl")
    now = [rows, dark, [len(samples), *([name, len(lines)] for name, lines in metrics.items())]]
    same = [old == new for old, new in zip(drawn, now)] if drawn else []
    table = gr.skip() if same[:1] == [True] else rows
    if same[1:] == [True, True]:
        return now, table, gr.Dropdown(choices=ids), line, gr.skip(), gr.skip(), gr.skip(), log, *buttons
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
    """Return the buttons of DOES, each enabled or not."""
    alive = run.state in runs.ALIVE
    can = {"stop": alive, "pause": alive, "resume": not alive and run.state != "finished"}
    return [gr.Button(interactive=can.get(name, has_model(run.folder))) for name in DOES]


def row_of(run: runs.Run) -> list[str]:
    """Return a run as a row of the list."""
    steps, _, perplexities = run.progress.partition(", perplexity ")
    return [run.id, f"{run.state} {steps}", perplexities]


def picture(metrics: dict[str, tuple[runs.Metric, ...]], dark: bool) -> Image | None:
    """Draw the losses of runs; None before the first."""
    measured = {name: lines for name, lines in metrics.items() if lines}
    return as_image(loss_curves(measured, dark=dark)) if measured else None


def run_line(run: runs.Run) -> str:
    """Describe a run and its progress."""
    model, status = Path(run.model), run.status
    base = model.parent.name if model.name == "model" else model.name  # of a run's model, the run's id
    total = f" of {run.total_steps:,}" if run.total_steps else ""
    words = [f"**{run.id}**: {run.state}, step {run.step:,}{total}; {escaped(f'{base} on {Path(run.data).name}')}."]
    if status and status.tokens_per_second is not None and status.eta_seconds is not None:
        words.append(f"{status.tokens_per_second:,.0f} tokens/s, about {duration(status.eta_seconds)} left.")
    if status and status.loss_before is not None and status.loss_best is not None and status.best_step:
        before, best = perplexity_of(status.loss_before), perplexity_of(status.loss_best)
        words.append(f"Validation perplexity {readable(before)} → **{readable(best)}** at step {status.best_step:,}.")
    return " ".join([*words, escaped(run.message)]).rstrip()

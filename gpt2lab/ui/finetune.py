"""The Fine-tune tab: start a run, watch any runs, stop, pause, resume, take the model.

Runs are processes of their own, and all that is shown is read from their folders: closing the page
changes nothing, and every visitor sees the same.
"""

import shutil
import tempfile
import threading
from pathlib import Path

import gradio as gr

from gpt2lab.errors import LabError
from gpt2lab.sources import DATA
from gpt2lab.training import jobs, runs
from gpt2lab.training.config import METHODS, TrainConfig
from gpt2lab.ui.handling import user_errors
from gpt2lab.ui.shelf import Shelf

POLL_SECONDS = 2
MAX_SHOWN = 6  # runs in one figure


def build_finetune_tab(page: gr.Blocks, shelf: Shelf, model: gr.Dropdown, dark: gr.Checkbox) -> None:
    """Settings → a run; runs → their states, losses, texts and models."""
    gr.Markdown(
        "Training goes on from the model chosen above, on the train split of a text; the validation split, which it "
        "never trains on, tells whether it has learned. A run goes on when this page is closed."
    )
    with gr.Row():
        data = gr.Dropdown(list(DATA), value="sample", label="Text", elem_id="finetune-data", min_width=160)
        method = gr.Dropdown(list(METHODS), value="full", label="Method", elem_id="finetune-method", min_width=120)
        steps = gr.Slider(1, 2000, 80, step=1, label="Steps", elem_id="finetune-steps", min_width=160)
        rate = gr.Number(1e-3, label="Learning rate", info="5e-5 suits gpt2", elem_id="finetune-rate", min_width=140)
        seed = gr.Number(0, precision=0, label="Seed", elem_id="finetune-seed", min_width=100)
    with gr.Accordion("More settings", open=False, elem_id="finetune-more"), gr.Row():
        batch = gr.Number(8, precision=0, label="Blocks per forward pass", min_width=140)
        accumulate = gr.Number(1, precision=0, label="Forward passes per step", min_width=140)
        patience = gr.Number(3, precision=0, label="Patience", info="validations without gain; 0: never", min_width=140)
        queue = gr.Checkbox(False, label="Wait for the run that is under way", min_width=140)
    with gr.Row():
        start = gr.Button("Fine-tune", variant="primary", elem_id="finetune-start", min_width=120)
        price = gr.Button("What would it cost?", elem_id="finetune-price", min_width=120)
    cost = gr.Markdown(elem_id="finetune-cost")
    gr.Markdown("### Runs")
    shown = gr.Dropdown(
        [], multiselect=True, max_choices=MAX_SHOWN, label="Shown", info="the first is told in words", elem_id="runs"
    )
    state = gr.Markdown(elem_id="finetune-state")
    with gr.Row():
        stop = gr.Button("Stop", elem_id="finetune-stop", min_width=90)
        pause = gr.Button("Pause", elem_id="finetune-pause", min_width=90)
        resume = gr.Button("Resume", elem_id="finetune-resume", min_width=90)
        use = gr.Button("Use this model", elem_id="finetune-use", min_width=130)
        zipped = gr.Button("Make a zip of the model", elem_id="finetune-zip", min_width=130)
    file = gr.File(label="The model", visible=False, interactive=False, elem_id="finetune-file")
    plot = gr.Image(
        label="Loss of training and validation; a star marks the best", buttons=["download", "fullscreen"],
        interactive=False, elem_id="finetune-plot", format="png",
    )  # fmt: skip
    texts = gr.Dataframe(
        headers=["step", "text"], column_count=2, column_widths=["80px", "100%"], wrap=True, interactive=False,
        label="Written along the way: the same prompt, the same seed", elem_id="finetune-texts",
    )  # fmt: skip
    with gr.Accordion("Validation losses as a table", open=False):
        table = gr.Dataframe(
            headers=["step", "loss (nats per token)", "perplexity"], column_count=3, interactive=False,
            show_label=False, elem_id="finetune-table",
        )  # fmt: skip
    with gr.Accordion("Log", open=False):
        log = gr.Textbox(lines=8, interactive=False, show_label=False, elem_id="finetune-log")
    seen = gr.State()  # what is drawn, so that nothing is drawn twice
    timer = gr.Timer(POLL_SECONDS)

    def settings(label, data, method, steps, rate, seed, batch, accumulate, patience) -> TrainConfig:
        if data not in DATA:
            raise LabError(f"text {str(data)[:80]!r} is not offered here; choose one of {', '.join(DATA)}")
        return TrainConfig(
            model=shelf.location(label),
            data=data,
            method=method,
            steps=steps,
            learning_rate=rate,
            seed=seed,
            batch_size=batch,
            grad_accum=accumulate,
            patience=patience,
        )

    @user_errors
    def begin(queue, shown, *asked):
        folder = jobs.start(settings(*asked), shelf.runs_dir, queue=queue is True)
        return gr.Dropdown(choices=run_ids(shelf.runs_dir), value=[folder.name]), ""

    @user_errors
    def estimate(*asked):
        cost = jobs.price(settings(*asked), shelf.runs_dir)
        return "\n".join(f"- {name}: **{value}**" for name, value in cost.items())

    @user_errors
    def arrive():
        ids = run_ids(shelf.runs_dir)
        active = jobs.active_run(shelf.runs_dir)
        return gr.Dropdown(choices=ids, value=[active.id] if active else ids[:1])

    @user_errors
    def look(shown, seen, dark, label):
        return view(shelf, shown, seen, dark is True)

    def end(want):
        @user_errors
        def ask(shown):
            folder = first(shelf, shown)
            if not runs.read_status(folder).alive:
                raise LabError(f"run {folder.name!r} is {runs.read_status(folder).state}; there is nothing to {want}")
            runs.ask(folder, want)
            threading.Thread(target=see_it_end, args=(folder, want), daemon=True).start()

        return ask

    @user_errors
    def go_on(shown):
        jobs.resume(first(shelf, shown))

    @user_errors
    def take(shown):
        run = first(shelf, shown).name
        shelf.location(run)
        return gr.Dropdown(choices=shelf.labels(), value=run)

    @user_errors
    def pack(shown):
        run = first(shelf, shown).name
        archive = shutil.make_archive(str(Path(tempfile.mkdtemp()) / run), "zip", shelf.location(run))
        return gr.File(archive, visible=True)

    asked = [model, data, method, steps, rate, seed, batch, accumulate, patience]
    outputs = [seen, shown, state, plot, texts, table, log]
    start.click(begin, [queue, shown, *asked], [shown, cost], api_name="finetune", concurrency_limit=8)
    price.click(estimate, asked, cost, api_name="finetune_cost", show_progress="full")
    stop.click(end("stop"), shown, None, api_name="finetune_stop")
    pause.click(end("pause"), shown, None, api_name="finetune_pause")
    resume.click(go_on, shown, None, api_name="finetune_resume")
    use.click(take, shown, model, api_name="finetune_use")
    zipped.click(pack, shown, file, api_name="finetune_zip")
    hidden = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
    timer.tick(look, [shown, seen, dark, model], outputs, **hidden)
    shown.change(look, [shown, seen, dark, model], outputs, **hidden)
    page.load(arrive, None, shown, api_visibility="private")


def run_ids(runs_dir: Path) -> list[str]:
    """The ids of all runs, newest first."""
    return [run.id for run in runs.list_runs(runs_dir)]


def first(shelf: Shelf, shown) -> Path:
    """The folder of the first run that is shown. Raises: LabError where none is, or it is unknown here."""
    if not isinstance(shown, list) or not shown:
        raise LabError("no run is shown; choose one in the list")
    return runs.find_run(shelf.runs_dir, shown[0])


def see_it_end(folder: Path, want: str) -> None:
    """Terminate a run that does not end by itself in time."""
    try:
        jobs.stop(folder, want=want)
    except LabError:
        return  # it has ended meanwhile


def view(shelf: Shelf, shown, seen, dark: bool):
    """(what is drawn, list of runs, line, figure, texts, table, log) of the runs shown, from their folders."""
    folders = [runs.find_run(shelf.runs_dir, run) for run in (shown or [])[:MAX_SHOWN]]
    ids = run_ids(shelf.runs_dir)
    if not folders:
        return [ids], gr.Dropdown(choices=ids), "No run is shown.", None, [], [], ""
    status, log = runs.read_status(folders[0]), runs.log_tail(folders[0])
    metrics = {folder.name: runs.read_metrics(folder) for folder in folders}
    line = told(folders[0].name, status, metrics[folders[0].name])
    now = [ids, dark, [[name, len(found)] for name, found in metrics.items()]]
    if now == seen:
        return gr.skip(), gr.skip(), line, gr.skip(), gr.skip(), gr.skip(), log
    from gpt2lab.views.report import validation_rows

    samples = runs.read_lines(folders[0] / "samples.jsonl")
    return (
        now,
        gr.Dropdown(choices=ids),
        line,
        picture(metrics, dark),
        [[sample["step"], sample["prompt"] + sample["text"]] for sample in reversed(samples)],
        [list(row) for row in validation_rows(metrics[folders[0].name])],
        log,
    )


def picture(metrics: dict, dark: bool):
    """The losses of runs as an image; None before the first."""
    from io import BytesIO

    from PIL import Image

    from gpt2lab.views.figures import figure_bytes, loss_curve, loss_curves

    drawn = {name: found for name, found in metrics.items() if found}
    if not drawn:
        return None
    figure = loss_curve(*drawn.values(), dark=dark) if len(drawn) == 1 else loss_curves(drawn, dark=dark)
    return Image.open(BytesIO(figure_bytes(figure, "png")))


def told(run: str, status: runs.RunStatus, metrics) -> str:
    """How a run is, in a line."""
    total = f" of {status.total_steps:,}" if status.total_steps else ""
    words = [f"**{run}**: {status.state}, step {status.step:,}{total}."]
    if status.alive and status.step:
        words.append(f"{status.tokens_per_second:,.0f} tokens/s, about {status.eta_seconds:.0f} s left.")
    validation = [metric for metric in metrics if metric.split == "validation"]
    if validation:
        best = min(validation[1:] or validation, key=lambda metric: metric.loss)
        words.append(
            f"Validation perplexity {validation[0].perplexity:.2f} → **{best.perplexity:.2f}** at step {best.step:,}."
        )
    if status.message:
        words.append(escaped(status.message))
    return " ".join(words)


def escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]()#+-.!<>|~$" else c for c in text)

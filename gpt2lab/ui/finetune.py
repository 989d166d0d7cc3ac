"""The Fine-tune tab: choose data and steps, watch the losses, stop, compare the words before and after."""

import threading
from dataclasses import dataclass, field
from pathlib import Path

import gradio as gr
import pandas as pd

from gpt2lab.errors import LabError
from gpt2lab.sources import DATA
from gpt2lab.ui.handling import user_errors
from gpt2lab.ui.shelf import Shelf

POLL_SECONDS = 0.5  # between looks at the run's folder
COLOURS = {"train": "#8da0cb", "validation": "#d95f02"}


@dataclass
class Job:
    """A run in a thread of this process; its folder is known once it is made."""

    owner: str
    stop: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)
    folder: Path | None = None
    result: object = None
    error: BaseException | None = None


class Bench:
    """The one place where this server trains: a second run would only slow both down."""

    def __init__(self, runs_dir: Path):
        self.runs_dir = runs_dir
        self._lock, self._job = threading.Lock(), None

    def start(self, owner: str, **settings) -> Job:
        """Start a run. Raises: LabError while another is under way."""
        with self._lock:
            if self._job and not self._job.done.is_set():
                raise LabError("a run is under way on this machine; stop it, or wait until it has ended")
            job = self._job = Job(owner)
        threading.Thread(target=self._run, args=(job, settings), daemon=True).start()
        return job

    def stop(self, owner: str) -> None:
        """Ask the owner's run to end after the step it is in."""
        job = self._job
        if job and job.owner == owner and not job.done.is_set():
            job.stop.set()

    def _run(self, job: Job, settings: dict) -> None:
        from gpt2lab.training.trainer import finetune

        def started(folder: Path) -> None:
            job.folder = folder

        try:
            job.result = finetune(runs_dir=self.runs_dir, on_start=started, should_stop=job.stop.is_set, **settings)
        except Exception as error:  # told to the visitor by the thread that watches
            job.error = error
        finally:
            job.done.set()


def build_finetune_tab(shelf: Shelf, model: gr.Dropdown) -> None:
    """Data and steps → a run, its live losses, and a text written before and after."""
    bench = Bench(shelf.runs_dir)
    gr.Markdown(
        "Training goes on from the model chosen above, on the train split of a text; the validation split, which it "
        "never trains on, tells whether it has learned. Closing this page ends the run; its model is kept."
    )
    with gr.Row():
        data = gr.Dropdown(list(DATA), value="sample", label="Text", elem_id="finetune-data", min_width=160)
        steps = gr.Slider(1, 2000, 80, step=1, label="Steps", elem_id="finetune-steps", min_width=160)
        rate = gr.Number(1e-3, label="Learning rate", info="5e-5 suits gpt2", elem_id="finetune-rate", min_width=140)
        seed = gr.Number(0, precision=0, label="Seed", elem_id="finetune-seed", min_width=100)
    with gr.Row():
        start = gr.Button("Fine-tune", variant="primary", elem_id="finetune-start", min_width=120)
        stop = gr.Button("Stop", elem_id="finetune-stop", min_width=100)
    state = gr.Markdown("Not started.", elem_id="finetune-state")
    plot = gr.LinePlot(  # given an empty table first, it would never draw a line
        x="step",
        y="loss",
        color="split",
        color_map=COLOURS,
        x_title="optimizer steps",
        y_title="loss (nats per token)",
        height=320,
        elem_id="finetune-plot",
        label="Loss",
    )
    with gr.Row():
        before = gr.Textbox(
            label="Written before", lines=6, interactive=False, elem_id="finetune-before", min_width=260
        )
        after = gr.Textbox(label="Written after", lines=6, interactive=False, elem_id="finetune-after", min_width=260)
    with gr.Accordion("Validation losses as a table", open=False):
        table = gr.Dataframe(
            headers=["step", "loss (nats per token)", "perplexity"],
            column_count=3,
            interactive=False,
            show_label=False,
            elem_id="finetune-table",
        )

    @user_errors
    def run(label, data, steps, rate, seed, request: gr.Request):
        if data not in DATA:
            raise LabError(f"text {str(data)[:80]!r} is not offered here; choose one of {', '.join(DATA)}")
        job = bench.start(
            request.session_hash, model=shelf.location(label), data=data, steps=steps, learning_rate=rate, seed=seed
        )
        try:
            while not job.done.wait(POLL_SECONDS):
                yield *progress(job), gr.skip()
        finally:
            job.stop.set()  # the page was closed: nobody would see the rest
        if job.error:
            raise told(job.error)
        yield *progress(job), gr.Dropdown(choices=shelf.labels())

    def halt(request: gr.Request) -> None:
        bench.stop(request.session_hash)

    outputs = [state, plot, table, before, after, model]
    asked = [model, data, steps, rate, seed]
    start.click(run, asked, outputs, api_name="finetune", concurrency_limit=8, show_progress="hidden")
    stop.click(halt, None, None, api_name="finetune_stop", queue=False)


def told(error: BaseException) -> LabError:
    """A run's failure as a line for the visitor."""
    return error if isinstance(error, LabError) else LabError(f"the run failed: {error}")


def progress(job: Job):
    """(line, loss points, validation table, text before, text after) of a job, from its run folder."""
    from gpt2lab.training.runs import read_lines, read_metrics, read_status
    from gpt2lab.views.report import validation_rows

    if job.folder is None or not (job.folder / "status.json").is_file():
        return "Preparing: the model and the text are being loaded.", gr.skip(), gr.skip(), "", ""
    metrics = read_metrics(job.folder)
    texts = [sample["prompt"] + sample["text"] for sample in read_lines(job.folder / "samples.jsonl")]
    first, last = (texts[0] if texts else ""), (texts[-1] if len(texts) > 1 else "")
    line = ended(job.result) if job.result else under_way(read_status(job.folder))
    return (
        line,
        loss_points(metrics) if metrics else gr.skip(),
        [list(row) for row in validation_rows(metrics)],
        first,
        last,
    )


def loss_points(metrics) -> pd.DataFrame:
    """The losses as the plot takes them."""
    return pd.DataFrame(
        {"step": [m.step for m in metrics], "loss": [m.loss for m in metrics], "split": [m.split for m in metrics]}
    )


def under_way(status) -> str:
    """How far a run is, in a line."""
    if not status.step:
        return f"Step 0 of {status.total_steps:,}: measuring the loss before training."
    return (
        f"Step {status.step:,} of {status.total_steps:,}, {status.tokens_per_second:,.0f} tokens/s, "
        f"about {status.eta_seconds:.0f} s left."
    )


def ended(result) -> str:
    """What a run came to, in a line."""
    how = "Stopped after" if result.stopped else "Finished:"
    return (
        f"{how} {result.steps:,} steps, {result.tokens_per_second:,.0f} tokens/s. Validation perplexity "
        f"{result.val_perplexity_before:.2f} → **{result.val_perplexity_after:.2f}**. "
        f"The model is now in the list above, as **{result.run}**."
    )

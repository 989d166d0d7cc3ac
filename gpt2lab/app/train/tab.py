"""The Train tab put together: text and settings on the left, the preview beside them, the runs below."""

import threading
from collections.abc import Iterator
from dataclasses import fields as dataclass_fields
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from gpt2lab.app.bar import Bar
from gpt2lab.app.download import Downloads, build_download
from gpt2lab.app.events import escaped, uncover, user_errors
from gpt2lab.app.language import _
from gpt2lab.app.models import ModelStore
from gpt2lab.app.train.actions import first, training_off
from gpt2lab.app.train.changes import build_changes
from gpt2lab.app.train.presets import build_base, build_presets
from gpt2lab.app.train.runs import build_runs
from gpt2lab.app.train.settings import FITTED, SETTINGS, build_settings, config_of, placeholders, trained_label, typed
from gpt2lab.app.train.text import Previews, accept, build_text, columns_of, offered, preview_panel
from gpt2lab.errors import LabError
from gpt2lab.training import jobs
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.cost import Cost

HIDDEN = {"show_progress": "hidden", "api_visibility": "private"}


def build_train_tab(
    page: gr.Blocks,
    tab: gr.Tab,
    store: ModelStore,
    bar: Bar,
    downloads: Downloads,
    *,
    training_allowed: bool = True,
) -> None:
    """Build the tab. Without `training_allowed`, as on a shared page, nothing is started or changed."""
    previews = Previews(store)
    if not training_allowed:
        gr.Markdown(
            _(
                "Training is off on this shared page. On your own machine: pip install gpt2lab, then gpt2lab app, or "
                "gpt2lab finetune --model builtin --data sample."
            ),
            elem_id="finetune-off",
        )
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            with gr.Row():
                base = build_base()
                text = build_text(store, training_allowed)
            build_download(downloads, text.data, "finetune-data")
            fields, queue = build_settings()
            build_presets(base, text.data, fields)
            with gr.Row():
                start = gr.Button(
                    _("Start training"),
                    variant="primary",
                    elem_id="finetune-start",
                    min_width=140,
                    interactive=training_allowed,
                )
                price = gr.Button(_("Estimate cost"), elem_id="finetune-price", min_width=140)
            defaults = gr.Markdown(elem_id="finetune-defaults")
            cost = gr.Markdown(elem_id="finetune-cost")
        with gr.Column(scale=2, min_width=300):
            preview = preview_panel(previews.value("builtin", "sample", None, "full")[0])
    runs = build_runs(page, tab, store, bar.model, bar.compare, training_allowed=training_allowed)
    build_changes(runs.selected, partial(first, store), bar.dark)

    subject = [bar.model, base, text.data, text.column]
    names = list(fields)

    @user_errors
    def follow(label: str, base: Any, data: Any, column: Any, method: Any, *sizes: Any) -> tuple:
        """The preview and the defaults, after a change of what they follow from."""
        label = trained_label(label, base)
        block, batch, accum = (
            typed(SETTINGS[name], size) for name, size in zip(("block_size", "batch_size", "grad_accum"), sizes)
        )
        column = column if column in columns_of(store, data) else None  # of the text that was chosen before
        value, chosen = previews.value(label, data, column, method, block)
        found = previews.preview(label, data, column, method, block)[0] if chosen else None
        line = chosen and _(
            "Defaults for {model}: {settings} ({source}).",
            model=escaped(label),
            settings=chosen.line,
            source=chosen.source,
        )
        return value, line or "", *placeholders(found, chosen, batch, accum)

    @user_errors
    def receive(file: Any) -> tuple:
        if not training_allowed:
            raise training_off()
        stored = accept(store, file)
        return gr.Dropdown(choices=offered(store), value=stored.id), None

    def show_columns(data: Any) -> gr.Dropdown:
        columns = columns_of(store, data)
        return gr.Dropdown(choices=list(columns), value=columns[0] if columns else None, visible=len(columns) > 1)

    def begin(queue: bool, selected: list, *values: Any) -> Iterator[tuple]:
        if not training_allowed:
            raise training_off()
        starting = Start(config_of(store, *values), store.runs_dir, queue is True)
        if folder := starting.folder():
            yield runs.show([folder.name])
        try:
            starting.wait()
        except LabError:
            yield runs.show(selected)
            raise

    def estimate(*values: Any) -> Iterator[str]:
        config = config_of(store, *values)
        yield _("A few steps are measured on this machine: 10 to 30 seconds.")
        try:
            record = jobs.cost_in_worker(config, store.runs_dir)
        except LabError:
            yield ""
            raise
        yield cost_lines(record)

    followed = [*subject, fields["method"], fields["block_size"], fields["batch_size"], fields["grad_accum"]]
    views = [preview, defaults, *(fields[name] for name in FITTED)]
    changes = [bar.model.change, base.change, text.data.change, text.column.change, fields["method"].change, page.load]
    changes += [fields[name].blur for name in ("block_size", "batch_size", "grad_accum")]
    for change in changes:
        uncover(change(follow, followed, views, concurrency_limit=4, **HIDDEN), views)
    received = text.file.upload(receive, text.file, [text.data, text.file], **HIDDEN)
    received.failure(lambda: (gr.skip(), None), None, [text.data, text.file], **HIDDEN)  # no trace of a refused file
    text.data.change(show_columns, text.data, text.column, **HIDDEN)
    page.load(lambda: gr.Dropdown(choices=offered(store)), None, text.data, **HIDDEN)
    inputs = [*subject, *(fields[name] for name in names)]
    begun = start.click(
        user_errors(begin), [queue, runs.selected, *inputs], runs.outputs, concurrency_limit=8, **HIDDEN
    )
    uncover(begun, runs.outputs)
    uncover(price.click(user_errors(estimate), inputs, cost, concurrency_limit=2, api_visibility="private"), [cost])


def cost_lines(record: dict) -> str:
    """The estimate of a run's cost, as its record has it, as a list in Markdown."""
    cost = Cost(**{field.name: record[field.name] for field in dataclass_fields(Cost)})
    return "\n".join("- " + _("{name}: ", name=name) + f"**{_(value)}**" for name, value in cost.lines())


class Start:
    """A start in a thread of its own: it continues if the page is closed meanwhile."""

    def __init__(self, config: TrainConfig, runs_dir: Path, queue: bool) -> None:
        self._there = threading.Event()
        self._folder: Path | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(config, runs_dir, queue), daemon=True)
        self._thread.start()

    def _run(self, config: TrainConfig, runs_dir: Path, queue: bool) -> None:
        try:
            jobs.start_run(config, runs_dir, queue=queue, on_start=self._begun)
        except BaseException as error:  # raised again by `wait`
            self._error = error
        self._there.set()

    def _begun(self, folder: Path) -> None:
        self._folder = folder
        self._there.set()

    def folder(self) -> Path | None:
        """Return the run's folder once it is there; None if the run was refused before."""
        self._there.wait()
        return self._folder

    def wait(self) -> None:
        """Wait until the run trains or is queued. Raises: what the start raised."""
        self._thread.join()
        if self._error:
            raise self._error

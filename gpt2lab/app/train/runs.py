"""The runs of the page's folder: their table, and curves, settings, samples and log of the selected ones.

Runs are separate processes, and the page reads their folders: closing the page changes nothing, and every visitor
sees the same.
"""

import json
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from gpt2lab.app.events import user_errors
from gpt2lab.app.language import _
from gpt2lab.app.models import ModelStore
from gpt2lab.app.train.actions import build_actions, possible
from gpt2lab.app.train.inside import build_inside
from gpt2lab.errors import LabError
from gpt2lab.results import duration, finite, perplexity_of, readable
from gpt2lab.settings import label_of
from gpt2lab.training import jobs, runs
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.curves import MAX_RUNS, SETTINGS, RunCurves, history_of
from gpt2lab.training.full_validation import whole_change
from gpt2lab.widgets.base import gradio_html
from gpt2lab.widgets.curves import curves_data

POLL_SECONDS = 2
HIDDEN = {"show_progress": "hidden", "api_visibility": "private"}
VIEWS = ("runs", "curves", "rundetails")


class RunViews(NamedTuple):
    """The selection, and the outputs of events that show it.

    show  a selection → values for the outputs
    """

    selected: gr.State
    outputs: list
    show: Callable[[Any], tuple]


def build_runs(
    page: gr.Blocks,
    tab: gr.Tab,
    store: ModelStore,
    model: gr.Dropdown,
    compare: gr.Dropdown,
    *,
    training_allowed: bool,
) -> RunViews:
    """Build the table of the runs and the views of the selected ones."""
    selected, drawn = gr.State([]), gr.State([])
    with gr.Row():
        with gr.Column(min_width=300, scale=5):
            table = view_of("runs")
            actions = gr.Column()
        with gr.Column(min_width=300, scale=4):
            curves = view_of("curves")
    details = view_of("rundetails")
    views = [table, curves, details]

    def show(ids: Any) -> tuple:
        """Draw everything for a selection."""
        chosen = chosen_of(store, ids)
        values = values_of(store, chosen)
        return [run.id for run in chosen], marks(values), *values, *possible(store, chosen, training_allowed)

    with actions:
        buttons = build_actions(store, selected, model, compare, show, [selected, drawn, *views], training_allowed)
    outputs = [selected, drawn, *views, *buttons]

    @user_errors
    def arrive() -> tuple:
        active, listed = jobs.active_run(store.runs_dir), runs.list_runs(store.runs_dir)
        return show([active.id] if active else [run.id for run in listed[:1]])

    @user_errors
    def refresh(ids: Any, before: Any) -> tuple:
        chosen = chosen_of(store, ids)
        values = values_of(store, chosen)
        now = marks(values)
        changed = [old != new for old, new in zip(before, now)] if isinstance(before, list) and before else [True] * 3
        if not any(changed):
            return (gr.skip(),) * len(outputs)
        shown = [value if new else gr.skip() for value, new in zip(values, changed)]
        return [run.id for run in chosen], now, *shown, *possible(store, chosen, training_allowed)

    @user_errors
    def choose(event: gr.EventData) -> tuple:
        ids = (event._data or {}).get("runs") if isinstance(event._data, dict) else None
        if not isinstance(ids, list) or len(ids) > MAX_RUNS:
            raise LabError("choose up to {limit} runs of the table", limit=MAX_RUNS)
        return show([runs.find_run(store.runs_dir, each).name for each in ids])

    table.select(choose, None, outputs, **HIDDEN)
    timer = gr.Timer(POLL_SECONDS)
    timer.tick(refresh, [selected, drawn], outputs, concurrency_limit=None, **HIDDEN)
    page.load(arrive, None, outputs, **HIDDEN)
    build_inside(selected, partial(chosen_of, store), tab, timer)
    return RunViews(selected, outputs, show)


def view_of(name: str) -> gr.HTML:
    """Build the place of a view."""
    return gr.HTML({"data": {}}, **gradio_html(name), apply_default_css=False, elem_id=f"train-{name}")


def marks(values: tuple) -> list[int]:
    """Return a number for each value, which changes when the value does."""
    return [hash(json.dumps(value, sort_keys=True)) for value in values]


def chosen_of(store: ModelStore, ids: Any) -> list[runs.Run]:
    """Return the runs of a selection that are still there."""
    found = []
    for each in ids if isinstance(ids, list) else []:
        try:
            summary = runs.run_summary(runs.find_run(store.runs_dir, each))
        except LabError:  # deleted meanwhile
            continue
        found += [summary] if summary else []
    return found[:MAX_RUNS]


def values_of(store: ModelStore, chosen: list[runs.Run]) -> tuple[dict, dict, dict]:
    """Return the values of the views of a selection."""
    listed = runs.list_runs(store.runs_dir)
    rows = [row_of(store, run) for run in listed]
    histories = tuple(history_of(run.folder, run) for run in chosen)
    table = {"rows": rows, "chosen": [run.id for run in chosen], "limit": MAX_RUNS}
    details = details_of(store, chosen[0], RunCurves(histories)) if chosen else {}
    return tuple({"data": finite(value)} for value in (table, curves_data(histories), details))  # type: ignore[return-value]


def state_of(run: runs.Run) -> str:
    """The state of a run; one whose process is not there yet is starting."""
    return "starting" if run.state == "queued" and not run.message else run.state


def state_name(state: str) -> str:
    """The state as a word of a sentence."""
    names = {
        "starting": _("starting"),
        "queued": _("queued"),
        "running": _("running"),
        "stopping": _("stopping"),
        "stopped": _("stopped"),
        "finished": _("finished"),
        "failed": _("failed"),
        "crashed": _("crashed"),
    }
    return names[state]


def row_of(store: ModelStore, run: runs.Run) -> dict:
    """Return a run as a row of the table."""
    losses = (run.status.loss_before, run.status.loss_best) if run.status else ()
    return {
        "id": run.id,
        "state": state_of(run),
        "step": run.step,
        "total": run.total_steps,
        "perplexity": " → ".join(readable(perplexity_of(loss)) for loss in losses if loss is not None),
        "model": model_name(run.model),
        "text": Path(run.data).name,
        "started": run.created,
    }


def model_name(location: str) -> str:
    """The name of a run's base model: of a run's model, the run's id."""
    path = Path(location)
    return path.parent.name if path.name == "model" else path.name


def details_of(store: ModelStore, run: runs.Run, curves: RunCurves) -> dict:
    """Return what the view of the first selected run shows."""
    settings = curves.differences()
    if len(curves.runs) == 1:
        known = curves.runs[0].settings
        settings = type(settings)(
            ["setting", run.id], [(name, known[name]) for name in SETTINGS if known[name] is not None]
        )
    titles = {field.name: _(label_of(field)) for field in fields(TrainConfig)}
    shown = [(titles[name], *(plain(name, value) for value in values)) for name, *values in settings.rows]
    samples = [
        {"step": line["step"], "prompt": str(line.get("prompt", "")), "text": line["text"]}
        for line in reversed(runs.read_lines(run.folder / "samples.jsonl"))
        if isinstance(line.get("step"), int) and isinstance(line.get("text"), str)
    ]
    return {
        "id": run.id,
        "line": run_line(run),
        "settings": {"head": list(settings.head), "rows": shown},
        "samples": samples,
        "log": runs.log_tail(run.folder),
    }


def plain(name: str, value: Any) -> Any:
    """A setting as visitors see it: the names of models and texts, not their places on this machine."""
    if name == "model" and isinstance(value, str):
        return model_name(value)
    return Path(value).name if name == "data" and isinstance(value, str) else value


def run_line(run: runs.Run) -> str:
    """Describe how far a run is."""
    status, state = run.status, state_of(run)
    if state == "starting":
        return _("{run} is starting: its process loads the model and the text.", run=run.id)
    words = []
    if status and status.alive and status.tokens_per_second is not None and status.eta_seconds is not None:
        words.append(
            _(
                "{speed} tokens per second, about {time} left.",
                speed=f"{status.tokens_per_second:,.0f}",
                time=duration(status.eta_seconds),
            )
        )
    if status and status.loss_before is not None and status.loss_best is not None and status.best_step:
        before, best = (readable(perplexity_of(loss)) for loss in (status.loss_before, status.loss_best))
        if f"{before} → {best}" not in run.message:  # the last message says it with its interval
            words.append(
                _(
                    "Validation perplexity {before} → {best} at step {step}.",
                    before=before,
                    best=best,
                    step=f"{status.best_step:,}",
                )
            )
    whole = None if status and status.alive else whole_change(run.folder)
    if whole and str(whole.sentence) not in run.message:  # it was scored after the run
        words.append(_("Validation perplexity {change}.", change=whole.sentence))
    steps = f"{run.step:,}", "?" if run.total_steps is None else f"{run.total_steps:,}"
    line = _(
        "{run}: {state}, step {step} of {total}.", run=run.id, state=state_name(state), step=steps[0], total=steps[1]
    )
    message = _(run.message)
    said = f"{message[:1].upper()}{message[1:]}"
    return _(" ").join([line, *words, said]).rstrip()

"""What can be done with the first selected run: stop, pause, resume, use, rename, delete, save, score."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import gradio as gr

from gpt2lab.app.bar import second_choices
from gpt2lab.app.events import ALONE, Stops, escaped, new_folder, uncover, user_errors
from gpt2lab.app.language import _
from gpt2lab.app.models import ModelStore
from gpt2lab.errors import LabError
from gpt2lab.pages.run_report import write_report
from gpt2lab.results import duration
from gpt2lab.training import jobs, runs
from gpt2lab.training.full_validation import load_scoring, whole_change
from gpt2lab.training.result import FinetuneResult

HIDDEN = {"show_progress": "hidden", "api_visibility": "private"}


def build_actions(
    store: ModelStore,
    selected: gr.State,
    model: gr.Dropdown,
    compare: gr.Dropdown,
    show: Callable[[Any], tuple],
    views: list,
    training_allowed: bool,
) -> list[gr.Button]:
    """Build the buttons, in the order of `possible`; `show` draws a selection on the views and the buttons."""
    with gr.Row():
        button = {
            name: gr.Button(label, size="sm", interactive=False, elem_id=f"finetune-{name}", min_width=136)
            for name, label in labels().items()
        }
    buttons = list(button.values())
    outputs = [*views, *buttons]

    def allowed(selected: Any) -> Path:
        if not training_allowed:
            raise training_off()
        return first(store, selected)

    def end(want: str) -> Callable[[Any], tuple]:
        @user_errors
        def ask(selected: Any) -> tuple:
            end_run(allowed(selected), want)
            return show(selected)

        return ask

    @user_errors
    def resume(selected: Any) -> tuple:
        jobs.resume_run(allowed(selected))
        return show(selected)

    @user_errors
    def use(selected: Any) -> gr.Dropdown:
        run = first(store, selected)
        check_model(run)
        return gr.Dropdown(choices=store.labels(), value=run.name)

    @user_errors
    def compare_base(selected: Any) -> tuple:
        run = first(store, selected)
        check_model(run)
        labels = store.labels()
        return gr.Dropdown(choices=labels, value=base_label(store, run)), gr.Dropdown(
            choices=second_choices(store), value=run.name
        )

    for name, act in (("stop", end("stop")), ("pause", end("pause")), ("resume", resume)):
        uncover(button[name].click(act, selected, outputs, concurrency_limit=8, **HIDDEN), outputs)
    button["use"].click(use, selected, model, **HIDDEN)
    button["compare"].click(compare_base, selected, [model, compare], **HIDDEN)
    build_rename_and_delete(store, selected, model, compare, button, show, outputs, allowed)
    build_files(store, selected, button)
    build_scoring(store, selected, button["score"], allowed)
    return buttons


def labels() -> dict[str, Any]:
    """The texts of the buttons."""
    return {
        "stop": _("Stop"),
        "pause": _("Pause"),
        "resume": _("Resume"),
        "use": _("Use this model"),
        "compare": _("Compare with base"),
        "rename": _("Rename"),
        "delete": _("Delete"),
        "zip": _("Download model"),
        "report": _("Report"),
        "score": _("Score full validation"),
    }


def possible(store: ModelStore, chosen: list[runs.Run], training_allowed: bool) -> list[gr.Button]:
    """Return the buttons, each enabled or not for the first of the selected runs."""
    run = chosen[0] if chosen else None
    alive, left = (run.state in runs.ALIVE, has_model(run.folder)) if run else (False, False)
    changed = run is not None and training_allowed
    can = {
        "stop": changed and alive,
        "pause": changed and alive,
        "resume": changed and not alive and run is not None and run.state != "finished",
        "rename": changed and not alive,
        "delete": changed and not alive,
        "score": changed and left and not alive and run is not None and whole_change(run.folder) is None,
    }
    return [gr.Button(interactive=bool(can.get(name, left))) for name in labels()]


def build_rename_and_delete(
    store: ModelStore,
    selected: gr.State,
    model: gr.Dropdown,
    compare: gr.Dropdown,
    button: dict[str, gr.Button],
    show: Callable[[Any], tuple],
    outputs: list,
    allowed: Callable[[Any], Path],
) -> None:
    """Build the rows that ask for a run's new name, and whether it is to be deleted."""
    with gr.Row(visible=False, elem_id="finetune-rename-row") as rename_row:
        name = gr.Textbox(label=_("New name"), max_length=80, elem_id="finetune-rename-name", scale=3, min_width=220)
        rename = gr.Button(_("Rename"), elem_id="finetune-rename-do", variant="primary", size="sm", min_width=90)
        keep = gr.Button(_("Cancel"), size="sm", min_width=90, elem_id="finetune-rename-cancel")
    with gr.Row(visible=False, elem_id="finetune-delete-row") as delete_row:
        question = gr.Markdown(elem_id="finetune-delete-question")
        delete = gr.Button(_("Delete for good"), elem_id="finetune-delete-do", variant="stop", size="sm", min_width=120)
        spare = gr.Button(_("Cancel"), size="sm", min_width=90, elem_id="finetune-delete-cancel")
    asked = gr.State("")  # the run of the question: the selection may change before the answer

    @user_errors
    def ask_name(selected: Any) -> tuple:
        run = allowed(selected)
        return gr.Row(visible=True), run.name, run.name, gr.Row(visible=False)

    @user_errors
    def ask_delete(selected: Any) -> tuple:
        run = runs.ended_run(store.runs_dir, allowed(selected).name)
        line = _(
            "Delete {run} with its model, checkpoints and records ({size} MB)? This cannot be undone.",
            run=escaped(run.name),
            size=f"{runs.run_bytes(run) / 1e6:,.0f}",
        )
        return gr.Row(visible=True), line, run.name, gr.Row(visible=False)

    def bar(label: Any, other: Any, gone: str, now: str | None = None) -> tuple:
        """The bar's models, where one of them has another name or is gone."""
        known = store.labels()
        first = (now or "builtin") if label == gone else label
        second = (now or ALONE) if other == gone else other
        return gr.Dropdown(choices=known, value=first), gr.Dropdown(choices=second_choices(store), value=second)

    @user_errors
    def do_rename(run: Any, new: Any, label: Any, other: Any, selected: Any) -> tuple:
        before = allowed([run]).name
        runs.rename_run(store.runs_dir, before, new)
        others = [new if each == before else each for each in selected]
        return gr.Row(visible=False), *bar(label, other, before, new), *show(others)

    @user_errors
    def do_delete(run: Any, label: Any, other: Any, selected: Any) -> tuple:
        gone = allowed([run]).name
        runs.delete_run(store.runs_dir, gone)
        left = [each for each in selected if each != gone] or [each.id for each in runs.list_runs(store.runs_dir)[:1]]
        return gr.Row(visible=False), *bar(label, other, gone), *show(left)

    button["rename"].click(ask_name, selected, [rename_row, name, asked, delete_row], **HIDDEN)
    button["delete"].click(ask_delete, selected, [delete_row, question, asked, rename_row], **HIDDEN)
    changed = [model, compare, *outputs]
    for act in (rename.click, name.submit):
        uncover(act(do_rename, [asked, name, model, compare, selected], [rename_row, *changed], **HIDDEN), changed)
    uncover(delete.click(do_delete, [asked, model, compare, selected], [delete_row, *changed], **HIDDEN), changed)
    for no in (keep, spare):
        no.click(lambda: (gr.Row(visible=False), gr.Row(visible=False)), None, [rename_row, delete_row], **HIDDEN)


def build_files(store: ModelStore, selected: gr.State, button: dict[str, gr.Button]) -> None:
    """Build the place of a run's files: its model as a zip archive, its report."""
    file = gr.File(label=_("File"), visible=False, interactive=False, elem_id="finetune-file")

    @user_errors
    def pack(selected: Any) -> gr.File:
        run = first(store, selected)
        check_model(run)
        archive = shutil.make_archive(str(new_folder() / run.name), "zip", run / "model")
        return gr.File(archive, label=_("The model"), visible=True)

    @user_errors
    def report(selected: Any) -> gr.File:
        return gr.File(report_file(first(store, selected)), label=_("Report"), visible=True)

    for name, act in (("zip", pack), ("report", report)):
        uncover(button[name].click(act, selected, file, api_visibility="private"), [file])


def build_scoring(store: ModelStore, selected: gr.State, button: gr.Button, allowed: Callable[[Any], Path]) -> None:
    """Build the place of the score of a whole validation split, with its Stop."""
    stop = gr.Button(_("Stop scoring"), visible=False, elem_id="finetune-score-stop", min_width=90, size="sm")
    scored = gr.Markdown(elem_id="finetune-scored")
    scoring = Stops("A split is being scored on this page; press Stop scoring first.")

    def score(request: gr.Request, selected: Any) -> Iterator[tuple]:
        try:
            with scoring.running(request) as flag:
                yield gr.Button(visible=True), _("Loading both models …"), gr.skip()
                for line in score_split(store, allowed(selected), flag):
                    yield gr.skip(), line, gr.skip()
        except LabError:
            yield gr.Button(visible=False), "", gr.skip()
            raise
        yield (
            gr.Button(visible=False),
            gr.skip(),
            gr.Button(interactive=flag.is_set()),
        )  # what is stopped can be repeated

    outputs = [stop, scored, button]
    uncover(button.click(user_errors(score), selected, outputs, concurrency_limit=8, **HIDDEN), outputs)
    stop.click(scoring.stop, None, None, queue=False, api_visibility="private")


def training_off() -> LabError:
    """The error of a shared page, on which nothing is trained."""
    return LabError("training is off on this server, which is shared; run gpt2lab on a machine of your own")


def first(store: ModelStore, selected: Any) -> Path:
    """Return the folder of the first selected run. Raises: LabError if none is selected, or it is unknown."""
    if not isinstance(selected, list) or not selected:
        raise LabError("no run is selected; choose one in the table")
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


def base_label(store: ModelStore, folder: Path) -> str:
    """Return the label of the model that a run began from. Raises: LabError where it is not offered any more."""
    name = runs.read_config(folder).get("model")
    for label in store.labels():
        if name == label or (isinstance(name, str) and Path(store.location(label)).absolute() == Path(name).absolute()):
            return label
    raise LabError("the model that run {name!r} began from is not here any more", name=folder.name)


def end_run(folder: Path, want: str) -> None:
    """Ask a run to end, and make sure that it does, without waiting. Raises: LabError if it has ended."""
    jobs.check_alive(folder)
    runs.request_action(folder, want)

    def make_sure() -> None:
        with suppress(LabError):  # it has ended meanwhile
            jobs.stop(folder, want=want)

    threading.Thread(target=make_sure, daemon=True).start()


def report_file(folder: Path) -> str:
    """Copy a run's report.html for download; write it first if it is missing or older than the result."""
    page, result = folder / "report.html", folder / "result.json"
    if not page.is_file() or (result.is_file() and result.stat().st_mtime > page.stat().st_mtime):
        write_report(folder)  # again, if the whole split was scored since
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
                yield _(
                    "Stopped after {done} of {total} blocks; nothing was changed.", done=f"{done:,}", total=f"{total:,}"
                )
                return
            yield _(
                "Scoring the validation split: {done} of {total} blocks, about {time} left.",
                done=f"{done:,}",
                total=f"{total:,}",
                time=duration((time.monotonic() - began) / done * (total - done)),
            )
    yield _(
        "Validation perplexity of **{run}**: {change}.",
        run=escaped(folder.name),
        change=escaped(_(results[0].whole_validation.sentence)) if results[0].whole_validation else "",
    )

"""The inside of a model along its training: the view of a slider over steps, for runs and for the model of the Explore tab."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr

from gpt2lab.app.bar import Bar
from gpt2lab.app.events import user_errors
from gpt2lab.app.language import _, said
from gpt2lab.app.models import ModelStore
from gpt2lab.data.sources import BUILTIN
from gpt2lab.errors import LabError
from gpt2lab.results import finite
from gpt2lab.training.history import History, read_history
from gpt2lab.widgets.base import gradio_html
from gpt2lab.widgets.timeline import first_selection, timeline_data

HIDDEN = {"show_progress": "hidden", "api_visibility": "private"}
SIDES = 2  # runs that are shown side by side


def inside_view(name: str) -> gr.HTML:
    """Build the place of the view."""
    return gr.HTML({"data": {}}, **gradio_html("timeline"), apply_default_css=False, elem_id=name)


def inside_value(asked: Sequence[str | Path], *, more: bool = False) -> dict:
    """Return the value of the view.

    asked  what `read_history` takes; what has no history is said in a line
    more   whether further ones are selected, which are not shown
    """
    found: list[History] = []
    notes = [_("The first two selected runs are shown.")] if more else []
    for each in asked:
        try:
            found.append(read_history(each))
        except LabError as error:
            notes.append(said(error))
    notes += [_(problem) for history in found for problem in history.problems]
    if not found:
        return {"data": {"sides": [], "notes": notes}}
    try:
        data = timeline_data(found, notes)
    except LabError as error:
        del found[1:]
        data = timeline_data(found, [*notes, said(error)])
    return {"data": finite(data), "selection": asdict(first_selection(found))}


def observed(folder: Path) -> list[str]:
    """Return the names of a run's observations: they change when there is something new to show."""
    return sorted(file.name for file in (folder / "history").glob("[0-9]*.npz"))


def inside_folder(store: ModelStore, label: Any) -> str | Path | None:
    """Return what `read_history` takes for a model of the bar; None for one without a history."""
    try:
        location = store.location(label)
    except LabError:
        return None
    if location == "builtin":
        return "builtin" if (BUILTIN / "checkpoint" / "history.npz").is_file() else None
    place = Path(location)  # a run's model, or the snapshot of a step
    folder = place.parents[1] if place.parent.name == "snapshots" else place.parent
    return folder if place.is_dir() and observed(folder) else None


def build_model_inside(store: ModelStore, bar: Bar) -> None:
    """Build the section of the Explore tab: how the heads of the bar's model formed, loaded when it is opened."""
    with gr.Accordion(_("How its heads formed"), open=False, elem_id="explore-inside") as section:
        view = inside_view("explore-history")

    @user_errors
    def load(label: Any) -> dict:
        folder = inside_folder(store, label)
        return gr.skip() if folder is None else inside_value([folder])

    section.expand(load, bar.model, view, **HIDDEN)
    bar.model.change(
        lambda label: gr.Accordion(open=False, visible=inside_folder(store, label) is not None),
        bar.model,
        section,
        **HIDDEN,
    )

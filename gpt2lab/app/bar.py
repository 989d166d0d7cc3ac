"""The bar on top of all tabs: the model, a second one to compare with, their downloads, dark and light, the language."""

from typing import Any, NamedTuple

import gradio as gr

from gpt2lab.app.download import Downloads, build_download
from gpt2lab.app.events import ALONE, escaped, models_of, user_errors
from gpt2lab.app.language import SWITCH, _
from gpt2lab.app.models import ModelStore
from gpt2lab.data import hub
from gpt2lab.data.sources import auto_choice

TITLE = "# gpt2lab"
PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}
# Gradio chooses by the system's scheme; what the visitor chose here before comes first.
OPEN_THEME = """() => {
  const chosen = localStorage.getItem("gpt2lab_theme");
  if (chosen) document.body.classList.toggle("dark", chosen === "dark");
  return document.body.classList.contains("dark");
}"""
SWITCH_THEME = """() => {
  const dark = document.body.classList.toggle("dark");
  localStorage.setItem("gpt2lab_theme", dark ? "dark" : "light");
  return dark;
}"""


class Bar(NamedTuple):
    """What the tabs read: the two models' labels, whether the page is dark; and what changes them.

    compare     ALONE for no second model
    kept        labels of the last visit, as the browser keeps them: any JSON
    downloaded  the events after a download
    """

    model: gr.Dropdown
    compare: gr.Dropdown
    dark: gr.Checkbox
    status: gr.Markdown
    kept: gr.BrowserState
    downloaded: list


def build_bar(page: gr.Blocks, store: ModelStore, downloads: Downloads) -> Bar:
    """Build the bar: choices that hold in every tab and in the next visit."""
    dark = gr.Checkbox(visible=False)
    kept = gr.BrowserState(None, storage_key="gpt2lab", secret="gpt2lab")  # no secret: the browser may keep any JSON
    with gr.Row(elem_id="bar"):
        gr.Markdown(TITLE, elem_id="title")
        model = gr.Dropdown(store.labels(), value="builtin", label=_("Model"), elem_id="model", min_width=170)
        compare = gr.Dropdown(
            second_choices(store), value=ALONE, label=_("Compare with"), elem_id="compare", min_width=170
        )
        theme = gr.Button("◐", elem_id="theme", min_width=44, scale=0)
        language = gr.Button("EN / 中文", elem_id="language", min_width=104, scale=0)
    downloaded = [
        build_download(downloads, model, "model"),
        build_download(downloads, compare, "compare"),
    ]
    status = gr.Markdown(elem_id="status")

    @user_errors
    def describe(label: str, compare: str) -> str:
        return status_line(store, label, compare)

    both = [model, compare]
    for moment in (model.change, compare.change, *(event.then for event in downloaded)):
        moment(describe, both, status, **PRIVATE)
    gr.on([model.change, compare.change], None, both, kept, js="(model, compare) => ({ model, compare })", **PRIVATE)
    theme.click(None, None, dark, js=SWITCH_THEME, **PRIVATE)
    page.load(None, None, dark, js=OPEN_THEME, **PRIVATE)
    language.click(None, None, None, js=SWITCH, **PRIVATE)
    return Bar(model, compare, dark, status, kept, downloaded)


def second_choices(store: ModelStore) -> list[tuple[str, str]]:
    """Return the choices of a second model, none first."""
    return [(_("no second model"), ALONE), *((label, label) for label in store.labels())]


def labels_of(store: ModelStore, wanted: Any) -> tuple[str, str]:
    """Return (model, second model) of a link or an earlier visit; what is not offered here any more is the default.

    wanted  {"model": label, "compare": label}, from a client: it may be anything
    """
    wanted = wanted if isinstance(wanted, dict) else {}
    offered = store.labels()
    model, compare = (wanted.get(name) for name in ("model", "compare"))
    return model if model in offered else "builtin", compare if compare in offered else ALONE


def status_line(store: ModelStore, label: str, compare: str) -> str:
    """Describe the two models in a line each, and what suits this machine. Loads a model that is on this machine."""
    labels = models_of(label, compare)
    lines = [line for line in (model_line(store, each) for each in labels) if line]
    choice = auto_choice()
    if choice.model not in labels:
        lines.append(
            _(
                "Recommended on this machine: {model} ({reason}).",
                model=choice.model,
                reason=choice.reason,
            )
        )
    return "<br>".join(lines)


def model_line(store: ModelStore, label: str) -> str:
    """Describe a model in a line, loading it if it is on this machine."""
    if not hub.is_downloaded(store.location(label)):
        return ""  # the row of its download says so
    lab = store.lab(label)
    notes = "".join(f" {escaped(_(note))}" for note in lab.notes)
    return _("**{name}**: {shape}, {device}.", name=escaped(label), shape=lab.shape, device=lab.device.type) + notes

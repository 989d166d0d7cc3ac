"""Presets: a button each, which fills in the settings of a run that is worth watching."""

from collections.abc import Callable

import gradio as gr

from gpt2lab.app.language import _
from gpt2lab.app.train.settings import SETTINGS
from gpt2lab.data.sources import SHAPES
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.presets import PRESETS, preset

HIDDEN = {"show_progress": "hidden", "api_visibility": "private"}


def build_base() -> gr.Dropdown:
    """Build the choice of what is trained: the bar's model, or a shape without weights."""
    choices = [(_("the model above"), ""), *((name, name) for name in SHAPES)]
    return gr.Dropdown(choices, value="", label=_("Trained model"), elem_id="finetune-base", min_width=160)


def build_presets(base: gr.Dropdown, data: gr.Dropdown, fields: dict[str, gr.components.Component]) -> None:
    """Build the buttons, and the place of what to expect of a run."""
    with gr.Row():
        buttons = {
            name: gr.Button(_(each.title), size="sm", elem_id=f"finetune-preset-{name}")
            for name, each in PRESETS.items()
        }
    expect = gr.Markdown(elem_id="finetune-expect")

    def fill(name: str) -> Callable[[], tuple]:
        return lambda: (
            *form_values(preset(name)),
            _("{expect} Source: {source}.", expect=_(PRESETS[name].expect), source=PRESETS[name].source),
        )

    for name, button in buttons.items():
        button.click(fill(name), None, [base, data, *fields.values(), expect], **HIDDEN)


def form_values(config: TrainConfig) -> tuple:
    """Return a run's settings as the form shows them: the model, the text, and the values in the order of SETTINGS."""
    given = {name: getattr(config, name) for name in SETTINGS}
    as_text = {name for name, field in SETTINGS.items() if field.default is None}
    shown = [("" if value is None else f"{value}") if name in as_text else value for name, value in given.items()]
    return config.model, config.data, *shown

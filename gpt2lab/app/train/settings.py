"""The settings of a run as form fields, made from the metadata of TrainConfig, with the defaults of a model."""

from dataclasses import Field, fields
from typing import Any

import gradio as gr

from gpt2lab.app.language import _
from gpt2lab.app.models import ModelStore
from gpt2lab.app.train.text import text_location
from gpt2lab.data import hub
from gpt2lab.data.preview import Preview
from gpt2lab.data.sources import SHAPES
from gpt2lab.errors import LabError
from gpt2lab.settings import help_of, label_of, types_of
from gpt2lab.training.config import TrainConfig, parse_eval_tokens
from gpt2lab.training.defaults import Defaults

ELSEWHERE = ("model", "data", "column")  # settings that have a place of their own
NOT_HERE = ("report_to",)  # sends metrics to what a visitor cannot see
VISIBLE = ("method", "steps", "learning_rate")
SETTINGS = {field.name: field for field in fields(TrainConfig) if field.name not in (*ELSEWHERE, *NOT_HERE)}
FITTED = ("steps", "learning_rate", "block_size", "batch_size", "grad_accum")  # whose defaults follow from the model


def build_settings() -> tuple[dict[str, gr.components.Component], gr.Checkbox]:
    """Build the fields, few of them in sight; return them by name, and whether the run may wait for another."""
    built = {}
    with gr.Row():
        for name in VISIBLE:
            built[name] = form_field(SETTINGS[name])
    folded = [name for name in SETTINGS if name not in VISIBLE]
    ticked = [name for name in folded if types_of(SETTINGS[name]) == (bool,)]
    with gr.Accordion(_("More settings"), open=False, elem_id="finetune-more"):
        with gr.Row():
            built |= {name: form_field(SETTINGS[name]) for name in folded if name not in ticked}
        built |= {name: form_field(SETTINGS[name]) for name in ticked}
        queue = gr.Checkbox(False, label=_("Queue after the active run"), elem_id="finetune-queue")
    return {name: built[name] for name in SETTINGS}, queue


def form_field(field: Field) -> gr.components.Component:
    """Build the field of a setting; an empty one stands for its default."""
    kinds, choices = types_of(field), field.metadata["choices"]
    common: dict[str, Any] = {
        "label": _(label_of(field)),
        "info": _(help_of(field)),
        "elem_id": f"finetune-{field.name}",
        "min_width": 200,
    }
    if kinds == (bool,):
        return gr.Checkbox(field.default, **common)
    if field.default is None:  # as text: gradio shows an empty number as 0
        return gr.Textbox(placeholder=_("default"), max_lines=1, **common)
    if choices:
        return gr.Dropdown(list(choices), value=field.default, **common)
    whole = {} if float in kinds else {"precision": 0}
    return gr.Number(field.default, **whole, **common)


def config_of(store: ModelStore, label: str, base: Any, data: Any, column: Any, *values: Any) -> TrainConfig:
    """Return a visitor's settings as a TrainConfig, the values in the order of SETTINGS.

    base  a name in SHAPES, which is trained in place of the model with the label

    Raises: LabError for a choice that is not offered, a number out of range, and for what is not downloaded.
    """
    given = {name: typed(SETTINGS[name], value) for name, value in zip(SETTINGS, values)}
    given = {name: value for name, value in given.items() if value is not None}
    name, column = text_location(store, data, column)
    label = trained_label(label, base)
    model = label if is_shape(label) else store.location(label)
    config = TrainConfig(model=model, data=name, column=column, **given)
    for each in (model, name):
        hub.require_downloaded(each)
    return config


def trained_label(label: str, base: Any) -> str:
    """Return what is trained: a name in SHAPES where the form has one, else the label of the bar's model."""
    return base if is_shape(base) else label


def is_shape(label: Any) -> bool:
    """Whether a visitor's choice, which can be anything, names a shape without weights."""
    return label in [*SHAPES]


def typed(field: Field, value: Any) -> Any:
    """A form's value as the setting takes it; None for an empty one. Raises: LabError for what is not a number."""
    kinds = types_of(field)
    if value is None or not isinstance(value, str) or not {int, float} & set(kinds):
        return None if value == "" else value
    if str in kinds:
        return parse_eval_tokens(value)
    text = value.strip().replace(",", "")
    try:
        return (float if float in kinds else int)(text) if text else None
    except ValueError:
        raise LabError(
            "{name} {value!r} is not a number; correct it, or leave it empty", name=field.name, value=text[:40]
        ) from None


def placeholders(shown: Preview | None, chosen: Defaults | None, batch: Any, accum: Any) -> list[gr.Textbox]:
    """Return the fields of FITTED with the values that a run uses where they are left empty."""
    if chosen is None or shown is None:
        return [gr.Textbox(placeholder=_("default"))] * len(FITTED)
    given = isinstance(batch, int) and batch > 0
    batch = batch if given else chosen.batch_size
    accum = accum if isinstance(accum, int) and accum > 0 else 1 if given else chosen.grad_accum
    steps = max(1, round(chosen.epochs * -(-shown.splits[0].blocks // (batch * accum))))
    known = [steps, chosen.learning_rate, shown.block_size, chosen.batch_size, accum]
    return [gr.Textbox(placeholder=f"{value:g}" if isinstance(value, float) else f"{value}") for value in known]

"""The text that is trained on: offered ones, a visitor's own file, and a preview as the model reads it."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from gradio.utils import get_upload_folder

from gpt2lab.app.cache import BoundedCache, bytes_of
from gpt2lab.app.language import _, said, spoken
from gpt2lab.app.models import ModelStore
from gpt2lab.data import hub
from gpt2lab.data.preview import Preview, preview
from gpt2lab.data.sources import DATA, SHAPES
from gpt2lab.data.upload import SUFFIXES, StoredText, store_text, stored_texts
from gpt2lab.errors import LabError, choice, whole_number
from gpt2lab.model.lab import random_model
from gpt2lab.training.defaults import Defaults, defaults_for
from gpt2lab.widgets.base import gradio_html
from gpt2lab.widgets.preview import preview_data

PREVIEW_BYTES = 16 << 20  # of previews of all visitors


class TextFields(NamedTuple):
    """The fields of the text."""

    data: gr.Dropdown
    column: gr.Dropdown
    file: gr.File


def build_text(store: ModelStore, training_allowed: bool) -> TextFields:
    """Build the choice of a text and the place for one's own."""
    data = gr.Dropdown(offered(store), value="sample", label=_("Text"), elem_id="finetune-data", min_width=160)
    column = gr.Dropdown(
        [],
        label=_("Column"),
        info=_("Of a table: each row is an article."),
        visible=False,
        elem_id="finetune-column",
        min_width=160,
    )
    file = gr.File(
        label=_("Your own text ({kinds})", kinds=", ".join(SUFFIXES)),
        file_types=list(SUFFIXES),
        height=132,
        min_width=240,
        visible=training_allowed,
        elem_id="finetune-upload",
    )
    return TextFields(data, column, file)


def preview_panel(value: dict) -> gr.HTML:
    """Build the panel of the preview."""
    return gr.HTML(value, **gradio_html("preview"), apply_default_css=False, elem_id="finetune-preview")


def offered(store: ModelStore) -> list[tuple[str, str]]:
    """Return the texts on offer as (title, value): the package's own, and the stored ones, newest first."""
    return [(name, name) for name in DATA] + [(text.name, text.id) for text in stored_texts(store.runs_dir).values()]


def accept(store: ModelStore, file: Any) -> StoredText:
    """Store the file that an event received. Raises: LabError for a path that is not in gradio's own upload folder."""
    uploads = Path(get_upload_folder()).resolve()
    if not isinstance(file, str) or not Path(file).resolve().is_relative_to(uploads):
        raise LabError("no file was received; drop one on the field")
    return store_text(file, store.runs_dir)


def text_location(store: ModelStore, data: Any, column: Any) -> tuple[str, str | None]:
    """Return what `load_text` takes for a text on offer: its name and its column. Raises: LabError for another one."""
    if isinstance(data, str) and data in DATA:
        return data, None
    texts = stored_texts(store.runs_dir)
    text = texts[choice("text", data, texts)] if isinstance(data, str) and data in texts else None
    if text is None:
        choice("text", data, DATA)
    assert text is not None
    return str(text.path), text.column(column if isinstance(column, str) else None)


def columns_of(store: ModelStore, data: Any) -> tuple[str, ...]:
    """Return the text columns of a text on offer; () for one that is no table."""
    text = stored_texts(store.runs_dir).get(data) if isinstance(data, str) else None
    return text.columns if text else ()


class Previews:
    """Previews of the texts on offer, computed once for all visitors."""

    def __init__(self, store: ModelStore) -> None:
        self.store = store
        self._known = BoundedCache(PREVIEW_BYTES, bytes_of)

    def preview(
        self, label: str, data: Any, column: Any, method: str, block_size: Any = None
    ) -> tuple[Preview, Defaults]:
        """Return the preview of a text for a model, and the settings that fit the model and the method.

        Raises: LabError for a model or text that is not downloaded, and for settings that cannot be.
        """
        name, column = text_location(self.store, data, column)
        hub.require_downloaded(name)
        lab, version = (
            (random_model(label), 0) if label in [*SHAPES] else (self.store.lab(label), self.store.version(label))
        )
        chosen = defaults_for(method, lab.model.num_parameters())
        chosen = replace(chosen, block_size=min(chosen.block_size, lab.context))
        size = chosen.block_size
        if block_size is not None:
            size = whole_number("block_size", block_size, 2, lab.context)
        key = label, version, name, column, size
        found = self._known.get(key)
        if found is None:
            found = self._known.put(key, preview(lab, name, size, column=column))
        return found, chosen

    def value(
        self, label: str, data: Any, column: Any, method: str, block_size: Any = None
    ) -> tuple[dict, Defaults | None]:
        """Return the value of the preview's panel, which says why where there is none, and the settings that fit."""
        try:
            found, chosen = self.preview(label, data, column, method, block_size)
        except LabError as error:
            return {"data": {"message": said(error)}}, None
        return {"data": spoken(preview_data(found)) | {"name": Path(found.name).name}}, chosen

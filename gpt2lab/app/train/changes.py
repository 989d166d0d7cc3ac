"""What a finished run changed in each head: a figure and a table, computed when they are asked for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from gpt2lab.app.events import as_image, picture, uncover, user_errors
from gpt2lab.app.language import _
from gpt2lab.figures.drawing import figure
from gpt2lab.figures.tables import table
from gpt2lab.training.head_changes import head_changes

HIDDEN = {"show_progress": "minimal", "api_visibility": "private"}
SHOWN = 12  # heads of the table


def build_changes(selected: gr.State, first: Callable[[Any], Path], dark: gr.Checkbox) -> None:
    """Build the section; `first` gives the folder of the first selected run."""
    with gr.Accordion(_("What training changed in each head"), open=False, elem_id="train-changes"):
        gr.Markdown(
            _(
                "How far each head's attention moved on the observed text, between which steps most of it happened, and what "
                "switching the head off costs before and after. Both models are loaded for it."
            )
        )
        button = gr.Button(_("Compare before and after"), size="sm", scale=0, min_width=200, elem_id="train-changes-go")
        drawn = picture(
            "train-changes-figure", _("How far attention moved, and how much more an ablation costs, by head")
        )
        rows = gr.HTML(elem_id="train-changes-table")

    @user_errors
    def show(selected: Any, dark: bool) -> tuple:
        found = head_changes(first(selected))
        head = [_("Layer"), _("Head"), _("Attention moved"), _("Most of it from step"), _("To step")]
        head += [_("Ablation costs before"), _("After"), _("Change, nats per token")]
        return as_image(figure(found, dark=dark is True)), table(head, found.table().text()[1][:SHOWN])

    selected.change(lambda: (None, ""), None, [drawn, rows], **HIDDEN)  # they were another run's
    uncover(button.click(show, [selected, dark], [drawn, rows], concurrency_limit=1, **HIDDEN), [drawn, rows])

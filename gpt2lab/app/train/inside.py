"""The inside of the selected runs over time: read when the tab is first opened, then live while they train."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from gpt2lab.app.inside import HIDDEN, SIDES, inside_value, inside_view, observed
from gpt2lab.training.runs import Run


def build_inside(selected: gr.State, chosen_of: Callable[[Any], list[Run]], tab: gr.Tab, timer: gr.Timer) -> None:
    """Build the view. It follows the selection and looks for new observations at every tick of the timer.

    chosen_of  a selection → its runs
    """
    opened, drawn = gr.State(False), gr.State(None)
    view = inside_view("train-inside")

    def follow(ids: Any, before: Any, is_open: Any) -> tuple:
        if is_open is not True:
            return gr.skip(), gr.skip()
        chosen = chosen_of(ids)
        now = [[run.id, *observed(run.folder)] for run in chosen]
        if now == before:
            return gr.skip(), gr.skip()
        value = inside_value([run.folder for run in chosen[:SIDES]], more=len(chosen) > SIDES)
        same = isinstance(before, list) and [each[:1] for each in before] == [each[:1] for each in now]
        if same and all(len(each) > 1 for each in before):  # then the reader's selection stays
            value.pop("selection", None)
        return value, now

    event = {"fn": follow, "inputs": [selected, drawn, opened], "outputs": [view, drawn]} | HIDDEN
    tab.select(lambda: True, None, opened, **HIDDEN).then(**event)
    selected.change(**event)
    timer.tick(concurrency_limit=None, **event)

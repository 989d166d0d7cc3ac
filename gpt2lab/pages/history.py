"""The page of a history: the view with a slider over the steps of a training."""

from gpt2lab.training.history import History
from gpt2lab.widgets.base import widget_page
from gpt2lab.widgets.page import Page
from gpt2lab.widgets.timeline import first_selection, timeline_data


def history_page(history: History) -> Page:
    """How the inside of a model formed: all views of its probe at every observed step."""
    return widget_page("timeline", timeline_data([history]), first_selection([history]), title=history.title)

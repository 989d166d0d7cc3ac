"""The walkthrough of a block as a page: every formula with its numbers, as colours and as text."""

from gpt2lab.inspection.walkthrough import Walkthrough
from gpt2lab.widgets.base import widget_page
from gpt2lab.widgets.page import Page
from gpt2lab.widgets.walkthrough import walk_state


def walk_page(walk: Walkthrough, *, theme: str = "auto") -> Page:
    """Return the walkthrough page, from the embedding to the block's output and the prediction from there."""
    return widget_page("walkthrough", *walk_state(walk), title=walk.title, theme=theme, height=560)

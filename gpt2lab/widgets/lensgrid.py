"""The logit lens as a table: layers by positions."""

from gpt2lab.inspection.lens import Lens
from gpt2lab.widgets.base import Selection, Widget
from gpt2lab.widgets.data import lens_parts, side_of


class LensGrid(Widget):
    """The top prediction after every layer at every position; a click selects the position.

    lens  that follows the next tokens: `logit_lens(lab, text, next=True)`
    """

    module = "lensgrid"

    def __init__(self, lens: Lens, selection: Selection | None = None) -> None:
        data = {"sides": [side_of(lens.trace, lens=lens_parts(lens)["lens"])]}
        super().__init__(lens, data, selection, title=lens.title)

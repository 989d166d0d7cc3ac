"""Tokens of a text, coloured by how little each was expected."""

from gpt2lab.inspection.lens import Lens
from gpt2lab.widgets.base import Selection, Widget
from gpt2lab.widgets.data import lens_parts, side_of


class TokenStrip(Widget):
    """A text's tokens, coloured by surprisal, rank or entropy; a click selects one.

    lens  that follows the next tokens: `logit_lens(lab, text, next=True)`
    """

    module = "tokenstrip"

    def __init__(self, lens: Lens, selection: Selection | None = None) -> None:
        parts = lens_parts(lens)
        data = {"sides": [side_of(lens.trace, surprisal=parts["surprisal"])]}
        super().__init__(lens, data, selection, title=f"Surprisal: {lens.trace.name}")

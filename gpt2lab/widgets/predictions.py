"""The most probable next tokens after the selected position."""

from gpt2lab.inspection.lens import Lens
from gpt2lab.widgets.base import Selection, Widget
from gpt2lab.widgets.data import lens_parts, side_of


class Predictions(Widget):
    """Bars of the next token's probabilities; a click selects `token`.

    lens  that follows the next tokens, with as many top predictions as there shall be bars: `logit_lens(lab, text, next=True, top=20)`
    """

    module = "predictions"

    def __init__(self, lens: Lens, selection: Selection | None = None) -> None:
        parts = lens_parts(lens)
        data = {"sides": [side_of(lens.trace, surprisal=parts["surprisal"], next=parts["next"])]}
        super().__init__(lens, data, selection, title=f"Next token: {lens.trace.name}")

"""A cell per head, layers × heads: coloured by a score, by its change between two models, or a thumbnail of its attention."""

from typing import Any

from gpt2lab.inspection.compare import Comparison
from gpt2lab.inspection.heads import HeadScores
from gpt2lab.inspection.trace import Trace
from gpt2lab.widgets.attention import answer_for, attention_data
from gpt2lab.widgets.base import Selection, Widget
from gpt2lab.widgets.data import scores_part


class HeadGrid(Widget):
    """Heads of a model; a click selects one, Shift-click switches it off or on (`off`).

    seen  scores; or a trace, shown as thumbnails of attention; or a comparison, shown by its change too
    """

    module = "headgrid"

    def __init__(self, seen: HeadScores | Trace | Comparison, selection: Selection | None = None) -> None:
        chosen = selection or Selection()
        if isinstance(seen, HeadScores):
            super().__init__(seen, scores_data(seen), selection, title=seen.title)
            return
        data = attention_data(seen, chosen.layer, chosen.head)
        title = f"Heads: {' and '.join(side['name'] for side in data['sides'])}"
        super().__init__(seen, data, selection, title=title, answer=answer_for(seen))


def scores_data(scores: HeadScores) -> dict[str, Any]:
    """The data of a grid of scores, of no text."""
    L, H = scores.induction.shape
    side = {"name": scores.name, "tokens": [], "note": "", "layers": L, "heads": H, "scores": scores_part(scores)}
    return {"sides": [side]}

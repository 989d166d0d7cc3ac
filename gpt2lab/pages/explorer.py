"""The attention explorer: every head of a trace, or of two, the text, and the selected heads large, in one offline page."""

from collections.abc import Sequence

from gpt2lab.inspection.compare import Comparison
from gpt2lab.inspection.trace import Trace
from gpt2lab.widgets.attention import attention_data, traces_of
from gpt2lab.widgets.base import Selection, widget_page
from gpt2lab.widgets.page import Page


def explorer_page(
    seen: Trace | Comparison,
    *,
    layer: int = 0,
    head: int | None = None,
    layers: Sequence[int] | None = None,
    theme: str = "auto",
) -> Page:
    """Thumbnails of all heads, and one or several large: as a heatmap, as lines, as the coloured text.

    seen         of a comparison, both traces and the second less the first
    layer, head  selected when the page opens; None for all heads of the layer
    layers       in the page; None for all, or, of long texts, for `layer` and those after it that fit

    Stored weights are within a bound that the page states, the largest error of any in it; for the
    heads whose q and k the page carries, it computes the weight itself in double precision.

    Raises: LabError for layers or heads that do not exist, for more layers than fit, and for weights that
    are not numbers.
    """
    first = traces_of(seen)[0]
    heads = first.heads(layer, head)
    data = attention_data(seen, layer, heads[0], layers) | {"chosen": heads}
    selection = Selection(len(first.tokens) - 1, layer, heads[0])
    return widget_page("attentionpage", data, selection, title="Attention explorer", theme=theme)


def extent(trace: Trace) -> str:
    """What part of its text a trace is of, in words; "" for all of it."""
    n = len(trace.tokens)
    return (
        f"the first {n:,} of {n + trace.left_out:,} tokens; the rest does not fit the model" if trace.left_out else ""
    )

"""Input attribution: what each unit of a text adds, and the curves that judge the method."""

from matplotlib.figure import Figure

from gpt2lab.figures.drawing import LINES, RUN_COLOURS, figure, for_dark_pages, label
from gpt2lab.figures.heads import plain
from gpt2lab.inspection.input_attribution import InputAttribution

MAX_BARS = 60  # units with a name
LOW, HIGH = "#5e4fa2", "#d55e00"  # takes from the prediction, adds to it
WIDTH, HEIGHT = 10.0, 3.8  # inches


@figure.register(InputAttribution)
def input_attribution_figure(result: InputAttribution, *, dark: bool = False) -> Figure:
    """Left: a bar per unit, in the order of the text. Right: the prediction without, and with only, the most important."""
    drawn = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    bars, curves = drawn.subplots(1, 2, width_ratios=(2, 1))
    values = result.values.tolist()
    bars.bar(range(len(values)), values, color=[HIGH if value > 0 else LOW for value in values])
    bars.axhline(0, color=LINES, linewidth=0.8)
    if len(values) <= MAX_BARS:
        bars.set_xticks(range(len(values)), [label(unit) for unit in result.units], rotation=90, fontsize=8)
    bars.set(xlabel=result.unit, ylabel="adds, nats")
    bars.set_title(plain(result.title, WIDTH * 0.65), fontsize=10, parse_math=False)
    share = (100 * result.share).tolist()
    curves.plot(share, result.deletion.tolist(), marker=".", color=RUN_COLOURS[0], label="without the most important")
    curves.plot(share, result.insertion.tolist(), marker=".", color=RUN_COLOURS[1], label="with them alone")
    curves.set(xlabel=f"% of the {result.unit}s", ylabel="prediction, nats")
    curves.legend(fontsize=8, frameon=False)
    return for_dark_pages(drawn) if dark else drawn

"""The lengths of a text's articles as a histogram."""

from matplotlib.figure import Figure

from gpt2lab.data.preview import Preview
from gpt2lab.figures.drawing import RUN_COLOURS, figure, for_dark_pages


@figure.register(Preview)
def preview_figure(result: Preview, *, dark: bool = False) -> Figure:
    """Articles by their number of tokens, for each split; the dotted line is the block size."""
    drawn = Figure(figsize=(7, 3.2), layout="constrained")
    axes = drawn.add_subplot()
    edges, counts = result.histogram()
    below = [0] * (len(edges) - 1)
    for (name, values), colour in zip(counts.items(), RUN_COLOURS):
        axes.stairs([a + b for a, b in zip(below, values)], edges, baseline=below, fill=True, color=colour, label=name)
        below = [a + b for a, b in zip(below, values)]
    if edges[0] <= result.block_size <= edges[-1]:
        axes.axvline(result.block_size, linestyle=":", color="#888888", label="block size")
    axes.set(xlabel="tokens per article", ylabel="articles")
    if edges[-1] > 20 * max(1, edges[0]):
        axes.set_xscale("log")
    axes.legend(frameon=False, fontsize=8)
    return for_dark_pages(drawn) if dark else drawn

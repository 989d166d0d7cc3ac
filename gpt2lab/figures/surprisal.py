"""Figures of surprisal: how many tokens had which rank, and cost how much."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from gpt2lab.figures.drawing import RUN_COLOURS, figure, for_dark_pages
from gpt2lab.figures.heads import plain
from gpt2lab.inspection.surprisal import Surprisal, SurprisalChange

BINS, WIDTH = 40, 9.0  # of the histogram; inches of the figure of ranks and costs


@figure.register
def _(result: Surprisal, *, dark: bool = False) -> Figure:
    return rank_figure([result], dark=dark)


@figure.register
def _(result: SurprisalChange, *, dark: bool = False) -> Figure:
    return rank_figure([result.before, result.after], dark=dark)


def rank_figure(surprisals: Sequence[Surprisal], *, dark: bool = False) -> Figure:
    """Two panels: how many tokens are in each bucket of ranks; how many cost how many nats. A colour per model."""
    figure = Figure(figsize=(WIDTH, 3), layout="constrained")
    ranks, costs = figure.subplots(1, 2)
    width = 0.8 / len(surprisals)
    known = [one.nll[1:].numpy() for one in surprisals]
    top = max([1.0, *(float(nll.max()) for nll in known if len(nll))])
    for i, (one, nll) in enumerate(zip(surprisals, known)):
        names, counts = zip(*one.buckets)
        places = np.arange(len(counts)) + (i - (len(surprisals) - 1) / 2) * width
        ranks.bar(places, counts, width, color=RUN_COLOURS[i], label=f"{i}")
        ranks.set_xticks(range(len(names)), names, fontsize=8)
        costs.hist(nll, BINS, range=(0, top), histtype="step", color=RUN_COLOURS[i])
    ranks.set(xlabel="rank of the token", ylabel="tokens")
    costs.set(xlabel="nats", ylabel="tokens")
    if len(surprisals) > 1:
        handles, _ = ranks.get_legend_handles_labels()
        labels = [f" {plain(one.name, WIDTH)}" for one in surprisals]  # with "_" before it, a name would be left out
        legend = figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=8)
        for text in legend.get_texts():
            text.set_parse_math(False)
    return for_dark_pages(figure) if dark else figure

"""The figure of a generated text: how probable each token was, and how sure the model."""

import numpy as np
from matplotlib.figure import Figure

from gpt2lab.figures.drawing import RUN_COLOURS, figure, for_dark_pages, label
from gpt2lab.generation.generate import Generation

MAX_SHOWN = 80  # tokens that can be labelled legibly


def generation_figure(result: Generation, *, dark: bool = False) -> Figure:
    """Surprisal of each token as bars and the entropy of what it was drawn from as a line, in nats: the first MAX_SHOWN."""
    steps = result.steps[:MAX_SHOWN]
    figure = Figure(figsize=(10, 3), layout="constrained")
    axes = figure.subplots()
    surprisal = [-np.log(max(step.probability, 1e-30)) for step in steps]
    axes.bar(range(len(steps)), surprisal, color=RUN_COLOURS[0], label="surprisal of the token")
    axes.plot([step.entropy for step in steps], color=RUN_COLOURS[1], marker=".", label="entropy before it")
    names = [label(step.token.replace(" ", "·").replace("\n", "⏎")) for step in steps]
    axes.set_xticks(range(len(steps)), names, rotation=90, fontsize=7)
    axes.set(ylabel="nats", xlim=(-0.7, max(len(steps), 1) - 0.3))
    axes.legend(frameon=False, fontsize=8, ncols=2)
    return for_dark_pages(figure) if dark else figure


@figure.register
def _(result: Generation, *, dark: bool = False) -> Figure:
    return generation_figure(result, dark=dark)

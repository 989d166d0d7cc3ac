"""Direct logit attribution at every position: parts down, positions across."""

from matplotlib.figure import Figure

from gpt2lab.figures.drawing import MAX_LABELS, figure, for_dark_pages, label
from gpt2lab.figures.heads import DIVERGING, plain
from gpt2lab.inspection.contributions import Contributions

MAX_PARTS = 30  # that are drawn: the largest, by the mean of their size over the positions
WIDTH, ROW = 9.0, 0.2  # inches


@figure.register(Contributions)
def contributions_figure(result: Contributions, *, dark: bool = False) -> Figure:
    """A heatmap of the largest parts, in the model's order, purple below 0 and orange above it."""
    largest = sorted(result.values.abs().mean(0).topk(min(MAX_PARTS, len(result.parts))).indices.tolist())
    values = result.values[:, largest].T.numpy()  # (parts, P)
    most = float(abs(values).max())
    drawn = Figure(figsize=(WIDTH, 1.8 + ROW * len(largest)), layout="constrained")
    axes = drawn.subplots()
    image = axes.imshow(values, cmap=DIVERGING, vmin=-most, vmax=most, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(len(largest)), [result.parts[part] for part in largest], fontsize=8)
    if len(result.words) <= MAX_LABELS:
        axes.set_xticks(range(len(result.words)), [label(word) for word, _ in result.words], rotation=90, fontsize=8)
    axes.set_xlabel("token whose logit is explained")
    drawn.colorbar(image, ax=axes, label="logits")
    axes.set_title(plain(result.title, WIDTH * 0.8), fontsize=10, parse_math=False)
    return for_dark_pages(drawn) if dark else drawn

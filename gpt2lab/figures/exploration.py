"""An exploration as one picture: surprisal, one head score, one head's attention, the lens."""

from matplotlib.figure import Figure

from gpt2lab.figures.drawing import MAP, MAX_LABELS, RUN_COLOURS, figure, for_dark_pages, heatmap, label
from gpt2lab.figures.heads import plain
from gpt2lab.inspection.exploration import Exploration
from gpt2lab.inspection.lens import entry_name

WIDTH, HEIGHT = 11.0, 8.0  # inches


@figure.register(Exploration)
def exploration_figure(result: Exploration, *, dark: bool = False) -> Figure:
    """Four panels: each token's surprisal, every head's induction score, the attention of the highest, rank by layer."""
    drawn = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    costs, heads, attention, lens = drawn.subplots(2, 2).flat
    tokens, T = result.seen.tokens, len(result.seen.tokens)
    names = [label(token) for token in tokens]
    nll = (-result.lens.probability[-1, :-1].log()).tolist()
    costs.bar(range(1, T), nll, color=RUN_COLOURS[1])
    costs.set(ylabel="surprisal, nats", xlim=(-0.5, T - 0.5))
    costs.set_title(plain(result.seen.name, WIDTH / 2), fontsize=10, parse_math=False)
    layer = head = 0
    if result.scores is None:
        heads.set_axis_off()
    else:
        [(layer, head, _)] = result.scores.top("induction", 1)
        image = heads.imshow(result.scores.induction.numpy(), cmap=MAP, vmin=0, vmax=1, origin="lower", aspect="auto")
        heads.set(xlabel="head", ylabel="layer", title="induction score")
        drawn.colorbar(image, ax=heads, shrink=0.8)
    heatmap(attention, result.seen.attention(layer, head).numpy(), tokens, cmap=MAP, vmin=0)
    attention.set_title(f"attention of layer {layer}, head {head}")
    ranks = result.lens.rank.double().log10().numpy()  # (L+1, T)
    image = lens.imshow(ranks, cmap=f"{MAP}_r", origin="lower", aspect="auto", interpolation="nearest")
    lens.set_yticks(range(len(ranks)), [entry_name(entry) for entry in range(len(ranks))], fontsize=8)
    lens.set_title("logit lens: rank of the next token, log₁₀")
    drawn.colorbar(image, ax=lens, shrink=0.8)
    for axes in (costs, lens):
        axes.set_xticks(range(T) if T <= MAX_LABELS else [], names if T <= MAX_LABELS else [], rotation=90, fontsize=8)
    return for_dark_pages(drawn) if dark else drawn

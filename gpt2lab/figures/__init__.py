"""Figures of results by matplotlib, and the tables beside them. Each function returns a figure; showing it is the caller's."""

from gpt2lab.figures.attention import attention_grid, attention_heatmap
from gpt2lab.figures.contributions import contributions_figure
from gpt2lab.figures.drawing import figure, figure_bytes
from gpt2lab.figures.entropy import entropy_figure
from gpt2lab.figures.evaluation import meaning_lines, result_figure, result_table, shares_figure
from gpt2lab.figures.exploration import exploration_figure
from gpt2lab.figures.generation import generation_figure
from gpt2lab.figures.heads import comparison_heatmaps, head_map, rollout_heatmap
from gpt2lab.figures.history import changes_figure, history_figure
from gpt2lab.figures.input_attribution import input_attribution_figure
from gpt2lab.figures.lens import lens_figure, patching_figure
from gpt2lab.figures.notebook import attach
from gpt2lab.figures.preview import preview_figure
from gpt2lab.figures.surprisal import rank_figure
from gpt2lab.figures.training import loss_curve, loss_curves

__all__ = [
    "attach",
    "attention_grid",
    "attention_heatmap",
    "changes_figure",
    "comparison_heatmaps",
    "contributions_figure",
    "entropy_figure",
    "exploration_figure",
    "figure",
    "figure_bytes",
    "generation_figure",
    "head_map",
    "history_figure",
    "input_attribution_figure",
    "lens_figure",
    "loss_curve",
    "loss_curves",
    "meaning_lines",
    "patching_figure",
    "preview_figure",
    "rank_figure",
    "result_figure",
    "result_table",
    "rollout_heatmap",
    "shares_figure",
]

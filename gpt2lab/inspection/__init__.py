"""Analyses of a forward pass: traces, head scores, logit lens, surprisal, attribution, ablation, patching."""

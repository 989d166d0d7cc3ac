"""Perplexity: protocols, one scorer for all of them, confidence intervals, comparisons and breakdowns."""

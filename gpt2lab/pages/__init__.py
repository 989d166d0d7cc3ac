"""Offline HTML documents of results, and results as files."""

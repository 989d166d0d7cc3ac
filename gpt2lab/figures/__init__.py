"""Figures of results by matplotlib, and the tables beside them. Each function returns a figure; showing it is the caller's."""

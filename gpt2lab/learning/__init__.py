"""A guided course: steps with a question each, which the live model answers."""

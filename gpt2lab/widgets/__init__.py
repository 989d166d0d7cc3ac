"""Interactive views: one ES module per view in `static/`, one Python class each, the same in Jupyter, in the app and as a file."""

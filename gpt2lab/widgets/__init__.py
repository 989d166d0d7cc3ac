"""Interactive views: one ES module per view in `static/`, one Python class each, the same in Jupyter, in the app and as a file."""

from importlib import import_module

_MODULES = {
    "Ablation": "ablation",
    "Attention": "attention",
    "Contributions": "contributions",
    "Curves": "curves",
    "GenerationView": "generation",
    "HeadGrid": "headgrid",
    "LensGrid": "lensgrid",
    "Predictions": "predictions",
    "TextPreview": "preview",
    "Timeline": "timeline",
    "Selection": "base",
    "TokenStrip": "tokenstrip",
    "Walkthrough": "walkthrough",
}
__all__ = list(_MODULES)


def __getattr__(name: str):
    """A widget, from its module, imported when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module 'gpt2lab.widgets' has no attribute {name!r}")
    return getattr(import_module(f"gpt2lab.widgets.{_MODULES[name]}"), name)

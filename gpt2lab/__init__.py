"""A laboratory for GPT-2: fine-tune it, measure it, and see what happens inside.

Axes, in every shape the documentation gives:
    B batch   T tokens   L layers   H heads   D model width   K head width   V vocabulary   N blocks
"""

import sys
from importlib import import_module

_ROOMS = {
    "LabError": "errors",
    "ablate": "inspection.ablation",
    "Sampling": "generation.sampling",
    "TrainConfig": "training.config",
    "answer": "generation.tasks",
    "attach": "figures.notebook",
    "compare": "inspection.compare",
    "evaluate": "evaluation.evaluate",
    "finetune": "training.finetuning",
    "generate": "generation.generate",
    "generate_batch": "generation.generate",
    "head_scores": "inspection.heads",
    "load_model": "model.lab",
    "logit_lens": "inspection.lens",
    "load_text": "data.text",
    "perplexity": "evaluation.perplexity",
    "resume": "training.finetuning",
    "summarize": "generation.tasks",
    "surprisal": "inspection.surprisal",
    "trace": "inspection.trace",
    "translate": "generation.tasks",
}
__all__ = list(_ROOMS)


def __getattr__(name: str):
    """A public name, from its room: torch and transformers take seconds to import, and not every caller needs them."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'gpt2lab' has no attribute {name!r}")
    return getattr(import_module(f"gpt2lab.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names too, which completion in a notebook would not know of before their first use."""
    return sorted({*globals(), *_ROOMS} - {"sys", "import_module"})


if "IPython" in sys.modules and (_shell := sys.modules["IPython"].get_ipython()):
    import_module("gpt2lab.figures.notebook").show_figures(_shell)

"""A laboratory for GPT-2: fine-tune it, measure it, and see what happens inside.

Axes, in every shape the documentation gives:
    B batch   T tokens   L layers   H heads   D model width   K head width   V vocabulary   N blocks
"""

import sys
from importlib import import_module

_MODULES = {
    "COURSE": "learning.course",
    "LabError": "errors",
    "PRESETS": "training.presets",
    "SCORES": "inspection.heads",
    "Sampling": "generation.sampling",
    "TASKS": "generation.recipes",
    "TextStream": "generation.generate",
    "TrainConfig": "training.config",
    "VIEWS": "pages.bertviz",
    "ablate": "inspection.ablation",
    "answer": "generation.tasks",
    "attach": "figures.notebook",
    "attribution": "inspection.attribution",
    "auto_choice": "data.sources",
    "beam_search": "generation.generate",
    "change_page": "pages.surprisal",
    "compare": "inspection.compare",
    "contributions": "inspection.contributions",
    "describe_head": "inspection.heads",
    "evaluate": "evaluation.evaluate",
    "explore": "pages.explore",
    "explorer_page": "pages.explorer",
    "export": "pages.export",
    "finetune": "training.finetuning",
    "token_probabilities": "inspection.lens",
    "generate": "generation.generate",
    "generate_batch": "generation.generate",
    "head_changes": "training.head_changes",
    "head_scores": "inspection.heads",
    "head_view_page": "pages.bertviz",
    "input_attribution": "inspection.input_attribution",
    "load_model": "model.lab",
    "load_text": "data.text",
    "logit_lens": "inspection.lens",
    "measure": "generation.measures",
    "patching": "inspection.patching",
    "perplexity": "evaluation.perplexity",
    "estimate_cost": "training.cost",
    "preset": "training.presets",
    "preview": "data.preview",
    "random_model": "model.lab",
    "read_curves": "training.curves",
    "read_history": "training.history",
    "read_result": "training.result",
    "resume": "training.finetuning",
    "rollout": "inspection.heads",
    "start_run": "training.jobs",
    "store_text": "data.upload",
    "summarize": "generation.tasks",
    "surprisal": "inspection.surprisal",
    "sweep": "inspection.ablation",
    "trace": "inspection.trace",
    "trace_ids": "inspection.trace",
    "training_ids": "generation.measures",
    "translate": "generation.tasks",
    "walk": "inspection.walkthrough",
    "walk_page": "pages.walkthrough",
}
__all__ = list(_MODULES)


def __getattr__(name: str):
    """A public name, from its module: torch and transformers take seconds to import, and not every caller needs them."""
    if name not in _MODULES:
        raise AttributeError(f"module 'gpt2lab' has no attribute {name!r}")
    return getattr(import_module(f"gpt2lab.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """Return the public names too, which completion in a notebook would not know of before their first use."""
    return sorted({*globals(), *_MODULES} - {"sys", "import_module"})


if "IPython" in sys.modules and (_shell := sys.modules["IPython"].get_ipython()):
    import_module("gpt2lab.figures.notebook").show_figures(_shell)

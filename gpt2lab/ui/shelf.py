"""The models that the page offers, loaded once for everyone, and the traces made with them.

A client names a model by its label; only labels on the shelf are taken, so no client names a path.
Knows models and run folders; nothing of gradio. torch is imported when the first model is.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from gpt2lab.errors import LabError
from gpt2lab.sources import HUB_MODELS
from gpt2lab.training.runs import finished_models

MAX_MODELS = 3  # kept in memory: GPT-2 small takes half a gigabyte
MAX_TRACES = 4  # kept, so that another head of the same text needs no second forward pass; 0.3 GB each at most


class Shelf:
    """Loaded models and recent traces, shared by all visitors of a page.

    `lock` is held while a model runs: hooks of one visitor must not see another's forward pass.
    """

    def __init__(self, runs_dir: Path):
        self.runs_dir = runs_dir
        self.lock = threading.Lock()  # not an RLock: a generator may go on in another thread
        self._labs, self._traces = OrderedDict(), OrderedDict()

    def labels(self) -> list[str]:
        """What can be chosen now: the built-in model, the hub's GPT-2s, and the models of runs, newest first."""
        return list(dict.fromkeys(["builtin", *HUB_MODELS, *finished_models(self.runs_dir)]))

    def location(self, label: str) -> str:
        """The name that load_model takes for a label. Raises: LabError for a label that is not on the shelf."""
        if label == "builtin" or label in HUB_MODELS:
            return label
        runs = finished_models(self.runs_dir)
        if not isinstance(label, str) or label not in runs:
            raise LabError(f"model {str(label)[:80]!r} is not offered here; choose one of {', '.join(self.labels())}")
        return str(runs[label])

    def lab(self, label: str):
        """The Lab for a label, loaded at its first use."""
        with self.lock:
            return self._lab(label)

    def trace(self, label: str, text: str):
        """The Trace of a text, made at its first use."""
        from gpt2lab.inspection.trace import trace

        self.location(label)
        with self.lock:
            return _kept(self._traces, (label, text), MAX_TRACES, lambda: trace(self._lab(label), text))

    def each(self, steps: Iterator) -> Iterator:
        """The items of an iterator that runs a model, the lock held for each and free between them."""
        end = object()
        while True:
            with self.lock:
                step = next(steps, end)
            if step is end:
                return
            yield step

    def _lab(self, label: str):
        from gpt2lab.model import load_model

        location = self.location(label)
        return _kept(self._labs, label, MAX_MODELS, lambda: load_model(location))


def _kept(kept: OrderedDict, key, limit: int, make):
    """kept[key], made where it is missing; the entry not used for longest goes."""
    if key not in kept:
        kept[key] = make()
    kept.move_to_end(key)
    while len(kept) > limit:
        kept.popitem(last=False)
    return kept[key]

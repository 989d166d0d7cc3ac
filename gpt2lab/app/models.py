"""The models that the page offers, loaded once for all visitors.

A client names a model by its label. Only offered labels are accepted, so no client can name a path.
"""

import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from gpt2lab.app.cache import BoundedCache, bytes_of
from gpt2lab.data import hub
from gpt2lab.data.sources import HUB_MODELS
from gpt2lab.errors import choice
from gpt2lab.model.lab import Lab, load_model
from gpt2lab.training.runs import finished_models

T = TypeVar("T")
MODEL_BYTES = 2 << 30  # of loaded models: four of GPT-2 small's size; a larger one is held alone


class ModelStore:
    """Loaded models, shared by all visitors of a page and bounded in bytes.

    `lock` is held while a model runs: hooks of one visitor must not see another's forward pass. It is free while a
    model is loaded.
    """

    def __init__(self, runs_dir: Path) -> None:
        self.runs_dir = runs_dir
        self.lock = threading.Lock()  # not an RLock: a generator may continue in another thread
        self._loading = threading.Lock()  # one load at a time, as transformers asks for
        self._labs = BoundedCache(MODEL_BYTES, lambda lab: bytes_of(lab.model))

    def labels(self) -> list[str]:
        """Return the offered labels: the built-in model, the hub's GPT-2s, and the models of runs, newest first."""
        return list(dict.fromkeys(["builtin", *HUB_MODELS, *finished_models(self.runs_dir)]))

    def location(self, label: str) -> str:
        """Return the name that load_model takes for a label. Raises: LabError for a label that is not offered."""
        if label == "builtin" or label in HUB_MODELS:
            return label
        runs = finished_models(self.runs_dir)
        choice("model", label, ["builtin", *HUB_MODELS, *runs])
        return str(runs[label])

    def version(self, label: str) -> int:
        """Return a number that changes when a label's model does: a resumed run replaces its model."""
        weights = Path(self.location(label)) / "model.safetensors"
        return weights.stat().st_mtime_ns if weights.is_file() else 0

    def lab(self, label: str) -> Lab:
        """Return the Lab of a label, loaded at its first use, while other models may run.

        Its name is the label: visitors must not see paths of this machine.
        Raises: LabError for a label that is not offered, or a hub model that is not downloaded.
        """
        location = self.location(label)
        hub.require_downloaded(location)
        key = (label, self.version(label))
        if (lab := self._labs.get(key)) is not None:
            return lab
        with self._loading:
            lab = self._labs.get(key)  # another visitor may have loaded it meanwhile
            return self._labs.put(key, replace(load_model(location), name=label)) if lab is None else lab

    def with_model(self, label: str, function: Callable[[Lab], Any]) -> Any:
        """Return function(lab) for a label, while no other model runs."""
        lab = self.lab(label)
        with self.lock:
            return function(lab)

    def locked_steps(self, steps: Iterator[T]) -> Generator[T, None, Any]:
        """Yield from steps that run a model, holding the lock for each of them only; return what they return."""
        while True:
            with self.lock:
                try:
                    step = next(steps)
                except StopIteration as end:
                    return end.value
            yield step

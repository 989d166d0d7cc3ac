"""The models that the page offers, loaded once for everyone, and the results made with them.

A client names a model by its label; only labels that are offered are accepted, so no client names a path.
Knows models and run folders; nothing of gradio.
"""

import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from gpt2lab.app.cache import BoundedCache, bytes_of
from gpt2lab.data import hub
from gpt2lab.data.sources import HUB_MODELS
from gpt2lab.errors import LabError, choice
from gpt2lab.progress import finished
from gpt2lab.training.runs import finished_models

MODEL_BYTES = 2 << 30  # of loaded models: four of GPT-2 small's size; a larger one is held alone
RESULT_BYTES = 128 << 20  # of traces, lenses, surprisals and evaluations of all visitors together


class Shelf:
    """Loaded models and recent results, shared by all visitors of a page, each bounded in bytes.

    `lock` is held while a model runs: hooks of one visitor must not see another's forward pass. It is free while a
    model is loaded.
    """

    def __init__(self, runs_dir: Path):
        self.runs_dir = runs_dir
        self.lock = threading.Lock()  # not an RLock: a generator may continue in another thread
        self._loading = threading.Lock()  # one load at a time, as transformers asks for
        self._labs = BoundedCache(MODEL_BYTES, lambda lab: bytes_of(lab.model))
        self._results = BoundedCache(RESULT_BYTES, bytes_of)

    def labels(self) -> list[str]:
        """Return what can be chosen now: the built-in model, the hub's GPT-2s, and the models of runs, newest first."""
        return list(dict.fromkeys(["builtin", *HUB_MODELS, *finished_models(self.runs_dir)]))

    def location(self, label: str) -> str:
        """Return the name that load_model takes for a label. Raises: LabError for a label that is not offered."""
        if label == "builtin" or label in HUB_MODELS:
            return label
        runs = finished_models(self.runs_dir)
        choice("model", label, ["builtin", *HUB_MODELS, *runs])
        return str(runs[label])

    def state(self, label: str) -> int:
        """Return what changes when a label's model does: a stopped run that is resumed replaces its model."""
        weights = Path(self.location(label)) / "model.safetensors"
        return weights.stat().st_mtime_ns if weights.is_file() else 0

    def lab(self, label: str):
        """Return the Lab of a label, loaded at its first use, while other models may run.

        Raises: LabError for a label that is not offered, or a hub model that is not downloaded.
        """
        from gpt2lab.model.lab import load_model

        location = self.location(label)
        hub.require_downloaded(location)
        key = (label, self.state(label))
        if (lab := self._labs.get(key)) is not None:
            return lab
        with self._loading:
            lab = self._labs.get(key)  # another visitor may have loaded it meanwhile
            return self._labs.put(key, load_model(location)) if lab is None else lab

    def named(self, label: str):
        """Return the Lab of a label, named by its label: a path of this machine is no visitor's business."""
        return replace(self.lab(label), name=label)

    def run(self, label: str, function: Callable):
        """Return function(lab) of a label's model, while no other model runs."""
        lab = self.named(label)
        with self.lock:
            return function(lab)

    def result(self, kind: str, label: str, text: str, make: Callable):
        """Return make(lab), a result of a model and a text, made at its first use while no other model runs."""
        key, lab = (kind, label, text, self.state(label)), self.named(label)
        if (known := self._results.get(key)) is not None:
            return known
        with self.lock:
            known = self._results.get(key)  # another visitor may have made it meanwhile
            return self._results.put(key, make(lab)) if known is None else known

    def trace(self, label: str, text: str):
        """Return the Trace of a text, or of its beginning if it does not fit."""
        from gpt2lab.inspection.trace import trace

        return self.result("trace", label, text, lambda lab: trace(lab, text, cut=True))

    def scores(self, label: str, text: str):
        """Return the HeadScores of a text of two tokens or more."""
        from gpt2lab.inspection.heads import scores_of

        traced = self.trace(label, text)
        return self.result("scores", label, text, lambda lab: scores_of(lab, traced))

    def lens(self, label: str, text: str, make: Callable):
        """Return make(lab), a Lens of a text."""
        return self.result("lens", label, text, make)

    def comparison(self, label: str, text: str, other: str, other_text: str):
        """Return the Comparison of two texts' traces. Raises: LabError if they cannot be compared."""
        from gpt2lab.inspection.compare import compare

        pair = self.trace(label, text), self.trace(other, other_text)
        key = ("comparison", *map(id, pair))  # a comparison holds its traces, so that their ids stay theirs
        known = self._results.get(key)
        return self._results.put(key, compare(*pair)) if known is None else known

    def surprisal(self, label: str, text: str, steps_of: Callable):
        """Return what steps_of(lab, text) returns, a Surprisal; other models may run between its steps."""
        key = ("surprisal", label, text, self.state(label))
        known = self._results.get(key)
        if known is None:
            known = self._results.put(key, finished(self.each(steps_of(self.named(label), text))))
        return known

    def keep(self, evaluation) -> str:
        """Keep an evaluation, and return the key that `evaluation` takes."""
        key = secrets.token_hex(8)
        self._results.put(("evaluation", key), evaluation)
        return key

    def evaluation(self, key: str | None):
        """Return the evaluation kept under a key. Raises: LabError if it is not there, or not any more."""
        found = self._results.get(("evaluation", key if isinstance(key, str) else None))
        if found is None:
            raise LabError(
                "There is no evaluation here any more; press Evaluate: what was scored before costs nothing."
            )
        return found

    def each(self, steps: Iterator) -> Iterator:
        """Yield from an iterator that runs a model, holding the lock for each item; returns what it returns."""
        while True:
            with self.lock:
                try:
                    step = next(steps)
                except StopIteration as end:
                    return end.value
            yield step

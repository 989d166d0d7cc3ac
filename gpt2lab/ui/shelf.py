"""The models that the page offers, loaded once for everyone, and the traces made with them.

A client names a model by its label; only labels on the shelf are taken, so no client names a path.
Knows models and run folders; nothing of gradio. torch is imported when the first model is.
"""

import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from gpt2lab.errors import LabError
from gpt2lab.sources import HUB_MODELS
from gpt2lab.steps import finished
from gpt2lab.training.runs import finished_models

MAX_MODELS = 3  # kept in memory: GPT-2 small takes half a gigabyte
MAX_EVALUATIONS = (
    4  # kept, for the views of them: the NLL of every token, 0.1 GB per model and protocol at most, of a long text
)
MAX_SURPRISALS = 32  # some hundred bytes a token each
MAX_TRACES = 4  # kept, so that another head of the same text needs no second forward pass; 0.1 GB each of GPT-2 small, 0.9 of gpt2-xl


class Shelf:
    """Loaded models and recent traces, shared by all visitors of a page.

    `lock` is held while a model runs: hooks of one visitor must not see another's forward pass.
    """

    def __init__(self, runs_dir: Path):
        self.runs_dir = runs_dir
        self.lock = threading.Lock()  # not an RLock: a generator may go on in another thread
        self._keeping = threading.Lock()
        self._labs, self._traces, self._scores = OrderedDict(), OrderedDict(), OrderedDict()
        self._comparisons, self._evaluations = OrderedDict(), OrderedDict()
        self._lenses, self._surprisals = OrderedDict(), OrderedDict()  # a lens holds a trace with its residual stream

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

    def state(self, label: str) -> int:
        """What changes when a label's model does: a stopped run that goes on replaces its model."""
        weights = Path(self.location(label)) / "model.safetensors"
        return weights.stat().st_mtime_ns if weights.is_file() else 0

    def lab(self, label: str):
        """The Lab for a label, loaded at its first use."""
        with self.lock:
            return self._lab(label)

    def trace(self, label: str, text: str):
        """The Trace of a text, or of its beginning where it does not fit, made at its first use."""
        from gpt2lab.inspection.trace import trace

        key = (label, text, self.state(label))

        def made():  # under its label: a path of this machine is no visitor's business
            return replace(trace(self._lab(label), text, cut=True), name=label)

        with self.lock:
            return _kept(self._traces, key, MAX_TRACES, made)

    def comparison(self, label: str, text: str, other: str, other_text: str):
        """The Comparison of two texts' traces, made at its first use. Raises: LabError where they cannot be compared."""
        from gpt2lab.inspection.compare import compare

        pair = self.trace(label, text), self.trace(other, other_text)
        key = tuple(map(id, pair))  # a comparison keeps its traces, whose ids are theirs as long
        with self._keeping:
            return _kept(self._comparisons, key, MAX_TRACES, lambda: compare(*pair))

    def scores(self, label: str, text: str):
        """The HeadScores of a text, of two tokens or more, made at their first use."""
        from gpt2lab.inspection.heads import scores_of

        traced, key = self.trace(label, text), (label, text, self.state(label))
        with self.lock:
            return _kept(self._scores, key, MAX_TRACES, lambda: scores_of(self._lab(label), traced))

    def named(self, label: str):
        """The Lab for a label, under its label: a path of this machine is no visitor's business."""
        return replace(self.lab(label), name=label)

    def run(self, label: str, function):
        """function(lab) of a label's model, while no other model runs."""
        lab = self.named(label)
        with self.lock:
            return function(lab)

    def lens(self, label: str, text: str, make):
        """make(lab), a Lens of a text, made at its first use."""
        key, lab = (label, text, self.state(label)), self.named(label)
        with self.lock:
            return _kept(self._lenses, key, MAX_TRACES, lambda: make(lab))

    def surprisal(self, label: str, text: str, steps_of):
        """What steps_of(lab, text) returns, a Surprisal, made at its first use; other models may run between its steps."""
        key = (label, text, self.state(label))
        with self._keeping:
            known = self._surprisals.get(key)
        if known is None:
            known = finished(self.each(steps_of(self.named(label), text)))
        with self._keeping:
            return _kept(self._surprisals, key, MAX_SURPRISALS, lambda: known)

    def keep(self, evaluation) -> str:
        """Put an evaluation on the shelf; returns the key that `evaluation` takes."""
        key = secrets.token_hex(8)
        with self._keeping:
            _kept(self._evaluations, key, MAX_EVALUATIONS, lambda: evaluation)
        return key

    def evaluation(self, key: str | None):
        """What was kept under a key. Raises: LabError where it is not there, or no more."""
        with self._keeping:
            if key in self._evaluations:
                self._evaluations.move_to_end(key)
                return self._evaluations[key]
        raise LabError("there is no evaluation here, or no more; press Evaluate: what was scored before costs nothing")

    def each(self, steps: Iterator) -> Iterator:
        """The items of an iterator that runs a model, the lock held for each and free between them; returns what it returns."""
        while True:
            with self.lock:
                try:
                    step = next(steps)
                except StopIteration as end:
                    return end.value
            yield step

    def _lab(self, label: str):
        from gpt2lab.model import load_model

        location = self.location(label)
        return _kept(self._labs, (label, self.state(label)), MAX_MODELS, lambda: load_model(location))


def _kept(kept: OrderedDict, key, limit: int, make):
    """kept[key], made where it is missing; the entry not used for longest goes."""
    if key not in kept:
        kept[key] = make()
    kept.move_to_end(key)
    while len(kept) > limit:
        kept.popitem(last=False)
    return kept[key]

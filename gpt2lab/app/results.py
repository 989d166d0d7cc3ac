"""Results of the page's models, computed once for all visitors."""

import secrets
from collections.abc import Callable
from typing import Any

from gpt2lab.app.cache import BoundedCache, bytes_of
from gpt2lab.app.models import ModelStore
from gpt2lab.errors import LabError
from gpt2lab.inspection.compare import Comparison, compare
from gpt2lab.inspection.heads import HeadScores, scores_of
from gpt2lab.inspection.lens import Lens, logit_lens
from gpt2lab.inspection.surprisal import Surprisal, surprisal
from gpt2lab.inspection.trace import Trace, trace
from gpt2lab.model.lab import Lab
from gpt2lab.progress import finished

RESULT_BYTES = 128 << 20  # of traces, lenses, surprisals and evaluations of all visitors together


class ResultCache:
    """Recent results of the models of a ModelStore, shared by all visitors and bounded in bytes.

    Results are kept by kind, model and text; evaluations by a random key.
    """

    def __init__(self, store: ModelStore) -> None:
        self.store = store
        self._results = BoundedCache(RESULT_BYTES, bytes_of)

    def trace(self, label: str, text: str) -> Trace:
        """Return the Trace of a text, or of its beginning if it does not fit."""
        return self._result("trace", label, text, lambda lab: trace(lab, text, cut=True))

    def scores(self, label: str, text: str) -> HeadScores:
        """Return the HeadScores of a text of two tokens or more."""
        traced = self.trace(label, text)
        return self._result("scores", label, text, lambda lab: scores_of(lab, traced))

    def lens(self, label: str, text: str) -> Lens:
        """Return the Lens that follows each next token of a text, or of its beginning if it does not fit."""
        return self._result("lens", label, text, lambda lab: logit_lens(lab, text, next=True, cut=True))

    def comparison(self, label: str, text: str, other: str, other_text: str) -> Comparison:
        """Return the Comparison of two texts' traces. Raises: LabError if they cannot be compared."""
        pair = self.trace(label, text), self.trace(other, other_text)
        key = ("comparison", *map(id, pair))  # a comparison holds its traces, so that their ids stay theirs
        known = self._results.get(key)
        return self._results.put(key, compare(*pair)) if known is None else known

    def surprisal(self, label: str, text: str) -> Surprisal:
        """Return the Surprisal of a text, a window at a time: other models may run between windows."""
        key = ("surprisal", label, text, self.store.version(label))
        known = self._results.get(key)
        if known is None:
            steps = surprisal.steps(self.store.lab(label), text)
            known = self._results.put(key, finished(self.store.locked_steps(steps)))
        return known

    def add_evaluation(self, evaluation: Any) -> str:
        """Keep an evaluation, and return the key that `evaluation` takes."""
        key = secrets.token_hex(8)
        self._results.put(("evaluation", key), evaluation)
        return key

    def evaluation(self, key: str | None) -> Any:
        """Return the evaluation of a key. Raises: LabError if there is none, or it is no longer kept."""
        evaluation = self._results.get(("evaluation", key if isinstance(key, str) else None))
        if evaluation is None:
            raise LabError("There is no evaluation here any more; press Evaluate: stored losses are reused.")
        return evaluation

    def _result(self, kind: str, label: str, text: str, compute: Callable[[Lab], Any]) -> Any:
        """Return compute(lab), computed at its first use while no other model runs."""
        key, lab = (kind, label, text, self.store.version(label)), self.store.lab(label)
        if (known := self._results.get(key)) is not None:
            return known
        with self.store.lock:
            known = self._results.get(key)  # another visitor may have computed it meanwhile
            return self._results.put(key, compute(lab)) if known is None else known

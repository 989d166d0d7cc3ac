"""Results of the page's models, computed once for all visitors."""

import secrets
from collections.abc import Callable
from typing import Any

from gpt2lab.app.cache import BoundedCache, bytes_of
from gpt2lab.app.models import ModelStore
from gpt2lab.errors import LabError
from gpt2lab.inspection.exploration import Exploration, exploration
from gpt2lab.inspection.heads import induction_scores
from gpt2lab.model.lab import Lab
from gpt2lab.training.allocator import freed_memory_kept

RESULT_BYTES = 128 << 20  # of explorations and evaluations of all visitors together


class ResultCache:
    """Recent results of the models of a ModelStore, shared by all visitors and bounded in bytes.

    Results are kept by kind, model and text; evaluations by a random key.
    """

    def __init__(self, store: ModelStore) -> None:
        self.store = store
        self._results = BoundedCache(RESULT_BYTES, bytes_of)

    def exploration(self, label: str, text: str) -> Exploration:
        """Return the Exploration of a text, or of its beginning if it does not fit."""
        induction = self.result("induction", label, "", induction_scores)

        def explored(lab: Lab) -> Exploration:
            with freed_memory_kept():  # the lens makes and frees the logits of every layer
                return exploration(lab, text, induction=induction)

        return self.result("exploration", label, text, explored)

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

    def result(self, kind: str, label: str, text: str, compute: Callable[[Lab], Any]) -> Any:
        """Return compute(lab) of a label and a text, computed at its first use while no other model runs.

        kind  what is computed, with its options: the key beside label and text
        """
        key, lab = (kind, label, text, self.store.version(label)), self.store.lab(label)
        if (known := self._results.get(key)) is not None:
            return known
        with self.store.lock:
            known = self._results.get(key)  # another visitor may have computed it meanwhile
            return self._results.put(key, compute(lab)) if known is None else known

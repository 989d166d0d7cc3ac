"""What fine-tuning changed in each head: how far its attention moved, when, and how much more its ablation costs now."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from gpt2lab.errors import LabError
from gpt2lab.inspection.ablation import sweep_of_ids
from gpt2lab.inspection.compare import compare
from gpt2lab.inspection.heads import HeadMap
from gpt2lab.inspection.trace import trace_ids
from gpt2lab.model.lab import Lab, load_model
from gpt2lab.results import Result, Table
from gpt2lab.training.history import History, read_history
from gpt2lab.training.prepare import base_model, config_of
from gpt2lab.training.result import read_result
from gpt2lab.training.runs import find_run, read_config

COLUMNS = ("layer", "head", "attention moved", "most of it from step", "to step", "ablation before", "after", "change")


@dataclass(frozen=True, eq=False, repr=False)
class HeadChanges(Result):
    """What a run changed in each head, on its probe.

    moved   (L, H)  total variation distance of its attention before and after, mean over the tokens that attend, 0 to 1
    began, ended  (L, H)  int64, the two observed steps after one another between which its attention moved most
    before, after (L, H)  how much the loss of the probe rises with the head ablated (set to zero), nats per token
    """

    name: str
    moved: np.ndarray
    began: np.ndarray
    ended: np.ndarray
    before: np.ndarray
    after: np.ndarray

    @property
    def title(self) -> str:
        """The run."""
        return f"What training changed in each head: {self.name}"

    @property
    def matters(self) -> np.ndarray:
        """(L, H): how much more its ablation costs after training, nats per token."""
        return self.after - self.before

    def table(self) -> Table:
        """A row per head, the head whose attention moved most first."""
        H = self.moved.shape[1]
        order = np.argsort(-self.moved, axis=None, kind="stable").tolist()
        numbers = (self.moved, self.began, self.ended, self.before, self.after, self.matters)
        return Table(COLUMNS, [[*divmod(at, H), *(array.flat[at].item() for array in numbers)] for at in order])

    def arrays(self) -> dict[str, np.ndarray]:
        """The fields by name, (L, H) each."""
        return {name: getattr(self, name) for name in ("moved", "began", "ended", "before", "after")}

    def record(self) -> dict:
        """The fields by name, L×H lists."""
        return {"changes": super().record()}

    def maps(self) -> tuple[HeadMap, HeadMap]:
        """How far attention moved and how much more an ablation costs, to be drawn."""
        moved, matters = (torch.from_numpy(np.ascontiguousarray(each)) for each in (self.moved, self.matters))
        return (
            HeadMap(moved, f"attention moved: {self.name}", "total variation distance, 0 to 1", vmin=0.0),
            HeadMap(matters, f"ablation costs more: {self.name}", "Δ nats per token", centred=True),
        )


def head_changes(run: str | Path, runs_dir: str | Path = "runs") -> HeadChanges:
    """What a run that has ended changed in each head, on its probe: `before` it, and in the model that it kept.

    run  an id in `runs_dir`, or the Path of a run's folder

    The models before and after are loaded. Example: head_changes("first").table()
    Raises: LabError for a run that is not there, or that has no model or no history.
    """
    folder = run if isinstance(run, Path) else find_run(Path(runs_dir), run)
    result, history = read_result(folder), read_history(folder)
    return changes_between(history, base_model(config_of(read_config(folder))), load_model(str(result.model_dir)))


def changes_between(history: History, base: Lab, tuned: Lab) -> HeadChanges:
    """`head_changes` of two models that are loaded already. Raises: LabError for a history of one step."""
    ids = torch.from_numpy(history.ids)
    labs = (base, tuned)
    costs = [found.losses.numpy() - found.loss for found in (sweep_of_ids(lab, ids.to(lab.device)) for lab in labs)]
    moved = compare(*(trace_ids(lab, ids.to(lab.device)) for lab in labs)).total_variation
    return HeadChanges(history.name, moved.numpy(), *most_moved(history), *costs)


def most_moved(history: History) -> tuple[np.ndarray, np.ndarray]:
    """The two observed steps after one another between which each head's attention moved most: (L, H) each."""
    attention = history.attention.astype(np.float32) / 255  # (S, L, H, T, T)
    moved = [_distance(one, other) for one, other in pairwise(attention)]
    if not moved:
        raise LabError("run {name!r} was observed at one step alone, so nothing can be compared", name=history.name)
    most = np.argmax(moved, axis=0)
    return history.steps[most], history.steps[most + 1]


def _distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Total variation distance (…) of attention (…, T, T), as `Comparison` defines it."""
    return np.abs(one - other).sum(-1)[..., 1:].mean(-1) / 2

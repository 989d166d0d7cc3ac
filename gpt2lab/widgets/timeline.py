"""The inside of a model along its training: a slider over steps that all views of a text follow; of two trainings, side by side."""

import base64
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gpt2lab.errors import LabError
from gpt2lab.inspection.heads import SCORES
from gpt2lab.results import finite
from gpt2lab.training.history import History, read_history
from gpt2lab.training.runs import ALIVE, find_run, run_summary
from gpt2lab.widgets.base import Selection
from gpt2lab.widgets.curves import LiveWidget
from gpt2lab.widgets.data import rounded

MAX_WEIGHTS = 4_000_000  # attention weights in a page, a byte each; deflated and in base64 they take 3 MB at most
SHARES = tuple(name for name, score in SCORES.items() if "0 to 1" in str(score.unit))


class Timeline(LiveWidget):
    """How the inside of a model formed: attention, head scores, surprisal and lens ranks at the steps of its training.

    Reading `step` gives the step that is shown; setting it to one that was observed moves all views.

    history  a History, or what `read_history` takes: the id of a run in `runs_dir`, the Path of its folder, or "builtin"
    compare  a second one of the same text and shape, shown beside the first

    Raises: LabError for a run without a history, and for two that have no common text or shape.
    """

    module = "timeline"

    def __init__(
        self,
        history: History | str | Path,
        compare: History | str | Path | None = None,
        *,
        runs_dir: str | Path = "runs",
    ) -> None:
        self._asked = [history] if compare is None else [history, compare]
        self._runs_dir = Path(runs_dir)
        found = self._read()
        names = " and ".join(each.name for each in found)
        super().__init__(found[0], timeline_data(found), first_selection(found), title=f"History: {names}")

    def _read(self) -> list[History]:
        return [each if isinstance(each, History) else read_history(each, self._runs_dir) for each in self._asked]

    def update(self) -> bool:
        """Read the runs again; return whether one of them is still under way. At the last step, the view stays there."""
        before = observed_steps(self.data)
        found = self._read()
        self.result = found[0]
        if any(side["steps"] != each.steps.tolist() for side, each in zip(self.data["sides"], found)):
            at_end = self.selection.step in (None, before[-1])
            self.data = finite(timeline_data(found))
            if at_end:
                self.selection = replace(self.selection, step=observed_steps(self.data)[-1])
        return any(self._alive(each) for each in self._asked)

    def _alive(self, asked: History | str | Path) -> bool:
        if isinstance(asked, History) or asked == "builtin":
            return False
        summary = run_summary(asked if isinstance(asked, Path) else find_run(self._runs_dir, asked))
        return summary is not None and summary.state in ALIVE

    def _checked(self, selected: Selection) -> Selection:
        steps = observed_steps(self.data)
        if selected.step is not None and selected.step not in steps:
            raise LabError(
                "step {step} was not observed; use one of {known}", step=selected.step, known=", ".join(map(str, steps))
            )
        return super()._checked(selected)


def observed_steps(data: dict) -> list[int]:
    """The steps that the slider has: those of all sides, rising."""
    return sorted({step for side in data["sides"] for step in side["steps"]})


def first_selection(histories: Sequence[History]) -> Selection:
    """What is selected first: the last step, and of the first history the highest induction head and the token whose next
    one became most expected."""
    history = histories[0]
    layer, head = history.top()
    gain = np.nan_to_num(history.surprisal[0] - history.surprisal[-1])[1:]
    position = int(gain.argmax()) if len(gain) else 0
    return Selection(position=position, layer=layer, head=head, step=max(int(each.steps[-1]) for each in histories))


def timeline_data(histories: Sequence[History], notes: Sequence[str] = ()) -> dict:
    """The data of the view.

    sides  of each training {name, tokens, ids, layers, heads} and, the first axis being steps, {steps, losses, scores,
           surprisal, ranks, attention}; formed: the step at which the highest head of a score formed, or null;
           full: what the full colour stands for
    notes  sentences to show above

    Raises: LabError for histories that cannot be shown side by side.
    """
    check_comparable(histories)
    full = full_colours(histories)
    return {"sides": [_side(each, full, MAX_WEIGHTS // len(histories)) for each in histories], "notes": list(notes)}


def check_comparable(histories: Sequence[History]) -> None:
    """Raises: LabError for two of another text or shape."""
    first, other = histories[0], histories[-1]
    if not np.array_equal(first.ids, other.ids) or first.tokens != other.tokens:
        raise LabError(
            "{first} and {other} were observed on different texts; choose two runs with the same probe",
            first=first.name,
            other=other.name,
        )
    shapes = [f"{each.n_layers} × {each.n_heads}" for each in (first, other)]
    if shapes[0] != shapes[1]:
        raise LabError(
            "{first} has {shape} heads and {other} has {other_shape}; choose two runs of one shape",
            first=first.name,
            shape=shapes[0],
            other=other.name,
            other_shape=shapes[1],
        )


def full_colours(histories: Sequence[History]) -> dict[str, float]:
    """What the full colour stands for, the same at all steps of all histories: the largest value of each measure."""
    full = {name: max(_largest(each.head_scores[name]) for each in histories) for name in SCORES if name not in SHARES}
    full["nll"] = max(_largest(each.surprisal) for each in histories)
    full["rank"] = max(float(np.log10(each.lens_rank.max())) for each in histories)
    return {name: max(value, 1e-9) for name, value in full.items()}


def _largest(values: np.ndarray) -> float:
    return float(np.nan_to_num(values).max())


def _side(history: History, full: dict[str, float], room: int) -> dict[str, Any]:
    losses = {name: rounded(values, 4) for name, values in history.losses.items() if np.isfinite(values).any()}
    return {
        "name": history.name,
        "tokens": list(history.tokens),
        "ids": history.ids.tolist(),
        "layers": history.n_layers,
        "heads": history.n_heads,
        "steps": history.steps.tolist(),
        "losses": losses,
        "scores": [
            {"name": name, **{field: str(text) for field, text in score._asdict().items()}}
            | {"values": rounded(history.head_scores[name], 4)}
            for name, score in SCORES.items()
        ],
        "formed": {name: history.change_step(name) if name in SHARES else None for name in SCORES},
        "full": full,
        "surprisal": rounded(history.surprisal, 4),
        "ranks": history.lens_rank.tolist(),
        "attention": packed_attention(history.attention, room),
    }


def packed_attention(attention: np.ndarray, room: int) -> dict[str, Any]:
    """Attention (S, L, H, T, T) in 255ths of the steps that fit: {at: their indexes, weights}.

    weights  (steps, L, H, T(T+1)/2) bytes, of each token up to itself, deflated, in base64
    room     weights; of more steps, evenly spaced ones are packed, the first and the last among them
    """
    S, L, H, T, _ = attention.shape
    fitting = max(2, room // (L * H * T * (T + 1) // 2))
    at = np.unique(np.linspace(0, S - 1, min(S, fitting)).round().astype(int))
    rows, columns = np.tril_indices(T)
    weights = attention[at][..., rows, columns]
    return {"at": at.tolist(), "weights": base64.b64encode(zlib.compress(weights.tobytes(), 6)).decode()}

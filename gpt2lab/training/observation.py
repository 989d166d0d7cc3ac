"""A run observes itself while it trains: what is observed, at which steps, and the Trainer callback that does it.

An observation is one file in `history/` of the run's folder, written whole. `history` reads them.
"""

import shutil
from collections.abc import Callable, Sequence
from io import BytesIO
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from transformers import TrainerCallback

from gpt2lab.errors import LabError
from gpt2lab.files import write_bytes
from gpt2lab.inspection.heads import SCORES, random_tokens_twice, scores_of_twice
from gpt2lab.inspection.lens import logit_lens
from gpt2lab.inspection.trace import Trace, trace_batch, trace_ids
from gpt2lab.model.lab import Lab, all_finite

if TYPE_CHECKING:  # `prepare` checks the probe, and imports this module
    from gpt2lab.training.prepare import PreparedRun

PROBE = (
    "Marie Curie was born in Warsaw. In 1895 she married Pierre Curie, and in 1903 Marie Curie and Pierre Curie "
    "shared the Nobel Prize in physics."
)
SCORE = "head_scores_"  # begins the names of head scores among the arrays
PROBE_TOKENS = 64  # that are observed, of a longer probe the first
MAX_OBSERVATIONS = 60
MAX_BYTES = 20_000_000  # of a run's history
SHARE = 0.03  # of the training time that observing takes at most
# tokens that are trained on in the time of one observation, measured with benchmarks/history.py
TOKENS_EACH = {"cpu": 400, "cuda": 50_000}


def probe_ids(lab: Lab, probe: str | None) -> torch.Tensor:
    """The tokens (T,) of the text on which a run observes itself: its first PROBE_TOKENS. Raises: LabError for no token."""
    ids = lab.encode(PROBE if probe is None else probe)[: min(PROBE_TOKENS, lab.context)]
    if not len(ids):
        raise LabError("the probe is empty; give a text, or leave it out")
    return ids


def observe(lab: Lab, ids: torch.Tensor) -> dict[str, np.ndarray]:
    """What there is to see inside a model at one step, on a probe ids (T,) and on random tokens shown twice.

    Returns what `History` has of every step: surprisal (T,), lens_rank (L+1, T), attention (L, H, T, T), repeated_loss
    (2,), weight_norm (L,) and head_scores_<name> (L, H); and tokens and ids (T,). The model's mode and all random numbers
    are as before afterwards.
    """
    seen = trace_ids(lab, ids, residual=True)
    lens = logit_lens(lab, seen, top=1, next=True)
    twice = trace_batch(lab, random_tokens_twice(lab, 0), logits=True)
    scores = scores_of_twice(twice, lab.name)
    attention = torch.stack([seen.attention(layer) for layer in range(seen.n_layers)])
    return {
        "tokens": np.array(seen.tokens),
        "ids": seen.ids.numpy(),
        "surprisal": np.concatenate([[np.nan], -lens.probability[-1, :-1].log().numpy()]).astype(np.float32),
        "lens_rank": lens.rank.numpy().astype(np.uint32),
        "attention": (attention * 255).round().byte().numpy(),
        "repeated_loss": repeated_loss(twice),
        "weight_norm": norms(layer_weights(lab)),
        **{f"{SCORE}{name}": getattr(scores, name).numpy() for name in SCORES},
    }


def repeated_loss(twice: Sequence[Trace]) -> np.ndarray:
    """(2,): mean NLL, nats per token, of the first and of the second showing, whose first tokens are left out."""
    losses = torch.stack(
        [F.cross_entropy(seen.logits[:-1], seen.ids[1:], reduction="none") for seen in twice if seen.logits is not None]
    )
    n = len(twice[0].ids) // 2
    return np.array([losses[:, : n - 1].mean(), losses[:, n:].mean()], np.float32)


def layer_weights(lab: Lab) -> list[list[torch.Tensor]]:
    """The weights of each layer."""
    return [[weight.detach() for weight in block.parameters()] for block in lab.model.transformer.h]


def norms(layers: list[list[torch.Tensor]]) -> np.ndarray:
    """(L,): the L2 norm of all weights of each layer."""
    return np.array(
        [sqrt(sum(float(weight.double().square().sum()) for weight in layer)) for layer in layers], np.float32
    )


def planned_steps(job: "PreparedRun", n_tokens: int) -> tuple[int, ...]:
    """The steps at which a run is observed: the first, the last, validations, and as many log-spaced ones as fit.

    n_tokens  of the probe

    They follow from the settings alone, so that a resumed run is observed at the same steps. Observing takes SHARE of the
    training time and MAX_BYTES on disk, unless the first step, the last and the snapshots take more.
    """
    config, c = job.config, job.lab.model.config
    trained = config.steps * config.batch_size * config.grad_accum * config.block_size * job.processes
    affordable = int(SHARE * trained / TOKENS_EACH.get(job.lab.device.type, TOKENS_EACH["cuda"]))
    fitting = MAX_BYTES // (c.n_layer * c.n_head * n_tokens**2)
    count = max(2, 1 + config.snapshots, min(affordable, fitting, MAX_OBSERVATIONS))
    validations = [*range(config.eval_every, config.steps, config.eval_every)]
    fixed = {0, config.steps, *thinned(validations, count - 2)}
    steps = fixed
    for points in range(1, 8 * count):
        more = fixed | {round(step) for step in np.geomspace(1, config.steps, points)}
        if len(more) > count:
            break
        steps = more
    return tuple(sorted(steps))


def thinned(values: Sequence[int], count: int) -> list[int]:
    """Up to `count` of the values, evenly spread, the last among them."""
    if count < 1 or len(values) <= count:
        return [*values][: max(0, count)]
    return [values[round(place)] for place in np.linspace(0, len(values) - 1, count + 1)[1:]]


def snapshot_steps(planned: Sequence[int], count: int) -> tuple[int, ...]:
    """Those of the observed steps whose weights are kept, the last among them; that before training is the base model."""
    return tuple(thinned(planned[1:], count))


class Observer(TrainerCallback):
    """Write a run's observations to its folder, at the planned steps.

    snapshot  writes the weights as they are to a folder, at the steps of `snapshots`
    """

    def __init__(self, folder: Path, job: "PreparedRun", snapshot: Callable[[Path], None] = lambda folder: None):
        self.folder, self.lab, self.ids, self.snapshot = folder, job.lab, probe_ids(job.lab, job.config.probe), snapshot
        self.planned = planned_steps(job, len(self.ids))
        self.snapshots = snapshot_steps(self.planned, job.config.snapshots)
        self.before: list[list[torch.Tensor]] | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0 and not observation_file(self.folder, 0).is_file():
            self.write(0)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step + 1 in self.planned:
            self.before = [[weight.clone() for weight in layer] for layer in layer_weights(self.lab)]

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.planned:
            if not all(all_finite(weight.detach()) for weight in self.lab.model.parameters()):
                raise RuntimeError(
                    f"a weight is not a finite number at step {state.global_step}; lower the learning rate"
                )
            self.write(state.global_step)

    def write(self, step: int) -> None:
        """Observe the model as it is."""
        found = observe(self.lab, self.ids)
        found["update_norm"] = np.full(len(found["weight_norm"]), np.nan, np.float32)
        if self.before is not None:
            moved = [[new - old for new, old in zip(*layer)] for layer in zip(layer_weights(self.lab), self.before)]
            found["update_norm"], self.before = norms(moved), None
        content = BytesIO()
        np.savez_compressed(content, allow_pickle=False, **found)
        write_bytes(observation_file(self.folder, step), content.getvalue())
        if step in self.snapshots:
            self.snapshot(snapshot_folder(self.folder, step))


def observation_file(folder: Path, step: int) -> Path:
    """The file of a step's observation in a run's folder."""
    return folder / "history" / f"{step:08}.npz"


def snapshot_folder(folder: Path, step: int) -> Path:
    """The folder of the weights of a step in a run's folder."""
    return folder / "snapshots" / f"step-{step:08}"


def rewind_observations(folder: Path, step: int, planned: Sequence[int]) -> None:
    """Remove the observations and snapshots after a step, or outside the plan, to resume from its checkpoint.

    Also what a process that was killed while it wrote one has left.
    """
    keep = {at for at in planned if at <= step}
    for file in (folder / "history").glob("*.npz*"):
        if file.suffix != ".npz" or not file.stem.isdigit() or int(file.stem) not in keep:
            file.unlink()
    for snapshot in (folder / "snapshots").glob("step-*"):
        if not snapshot.name.removeprefix("step-").isdigit() or int(snapshot.name.removeprefix("step-")) not in keep:
            shutil.rmtree(snapshot)

"""The app's public functions on runs: what one would cost, its start, its state."""

import os
from pathlib import Path
from typing import Any

from gpt2lab.app.models import ModelStore
from gpt2lab.data import hub
from gpt2lab.data.sources import DATA
from gpt2lab.errors import LabError, choice, whole_number
from gpt2lab.results import finite
from gpt2lab.training import jobs, runs
from gpt2lab.training.config import TrainConfig

MAX_STEPS = 2000  # of a run


def training_by_default() -> bool:
    """Whether visitors may train: GPT2LAB_TRAINING is 1 or 0; without it, not on a shared Space of the hub."""
    return os.environ.get("GPT2LAB_TRAINING", "0" if os.environ.get("SPACE_ID") else "1") == "1"


class RunsApi:
    """Functions on the runs of a server.

    training_allowed  whether visitors may train
    """

    def __init__(self, store: ModelStore, training_allowed: bool) -> None:
        self._store, self._training_allowed = store, training_allowed

    def estimate(
        self,
        model: str = "builtin",
        data: str = "sample",
        method: str = "full",
        steps: int = 80,
        learning_rate: float | None = None,
        block_size: int | None = None,
        batch_size: int | None = None,
        grad_accum: int | None = None,
        seed: int = 0,
    ) -> dict:
        """Estimate what fine-tuning a GPT-2 would cost on this machine, by training it for a few steps.

        Parameters:
            model: "builtin", "gpt2" or another downloaded model, or the id of a run.
            data: "sample", "repeated", or "wikitext-2" or "wikitext-2-v1" if it is downloaded.
            method: "full" (all weights), "lora" (low-rank additions) or "scratch" (from random weights).
            steps: optimizer steps, 1 to 2,000.
            learning_rate: above 0 to 1; null: the default for the model and the method.
            block_size: tokens in a block; null: the default.
            batch_size: blocks in a forward pass; null: the default.
            grad_accum: forward passes in a step; null: the default.
            seed: of the order of blocks.

        Returns:
            An object with seconds and seconds_doubt of the whole run, training_seconds, validation_seconds, memory, disk and disk_free (bytes), parameters, trained, tokens, and in_words, the same for readers.
        """
        config = self._config(model, data, method, steps, learning_rate, block_size, batch_size, grad_accum, seed)
        return finite(jobs.cost_in_worker(config, self._store.runs_dir))

    def start_run(
        self,
        model: str = "builtin",
        data: str = "sample",
        method: str = "full",
        steps: int = 80,
        learning_rate: float | None = None,
        block_size: int | None = None,
        batch_size: int | None = None,
        grad_accum: int | None = None,
        seed: int = 0,
    ) -> dict:
        """Start to fine-tune a GPT-2 on this machine; one run at a time. Ask run_status how far it is.

        Parameters:
            model: "builtin", "gpt2" or another downloaded model, or the id of a run.
            data: "sample", "repeated", or "wikitext-2" or "wikitext-2-v1" if it is downloaded.
            method: "full" (all weights), "lora" (low-rank additions) or "scratch" (from random weights).
            steps: optimizer steps, 1 to 2,000.
            learning_rate: above 0 to 1; null: the default for the model and the method.
            block_size: tokens in a block; null: the default.
            batch_size: blocks in a forward pass; null: the default.
            grad_accum: forward passes in a step; null: the default.
            seed: of the order of blocks.

        Returns:
            An object as run_status returns it; its run is the id that run_status takes.
        """
        config = self._config(model, data, method, steps, learning_rate, block_size, batch_size, grad_accum, seed)
        return self.run_status(jobs.start_run(config, self._store.runs_dir).name)

    def run_status(self, run: str) -> dict:
        """Return how far a run is, and its validation losses.

        Parameters:
            run: the id of a run, as start_run returns it.

        Returns:
            An object with run, state ("queued", "running", "stopping", "stopped", "finished", "failed" or "crashed"), step, total_steps, tokens_per_second, eta_seconds, best_step, loss_before and loss_best (nats per token), message, model, data, created, and has_model, whether its id can be given as a model.
        """
        known = {one.id: one for one in runs.list_runs(self._store.runs_dir)}
        if not isinstance(run, str) or run not in known:
            raise LabError("there is no run {run}; the Train tab lists all runs", run=short(run))
        found, status = known[run], known[run].status
        names = ("tokens_per_second", "eta_seconds", "best_step", "loss_before", "loss_best")
        return finite(
            {
                "run": run,
                "state": found.state,
                "step": found.step,
                "total_steps": found.total_steps,
                **{name: getattr(status, name, None) for name in names},
                "message": found.message,
                "model": _label(found.model),
                "data": _label(found.data),
                "created": found.created,
                "has_model": run in self._store.labels(),
            }
        )

    def _config(self, model: str, data: str, method: str, steps: int, *options: Any) -> TrainConfig:
        """Return the settings of a run. Raises: LabError for bad ones, and where training is not allowed."""
        if not self._training_allowed:
            raise LabError("training is off on this server, which is shared; run gpt2lab on a machine of your own")
        whole_number("steps", steps, 1, MAX_STEPS)
        location = self._store.location(model)
        for name in (location, choice("data", data, DATA)):
            hub.require_downloaded(name)
        names = ("learning_rate", "block_size", "batch_size", "grad_accum", "seed")
        return TrainConfig(model=location, data=data, method=method, steps=steps, **dict(zip(names, options)))


def short(value: Any) -> str:
    """Return a stranger's value as it can stand in a message."""
    return repr(value)[:60] if not isinstance(value, list | dict) else f"a {type(value).__name__} of {len(value)}"


def _label(name: str) -> str:
    """Return the label of a model or text by its name in a run's settings: visitors must not see this machine's paths."""
    path = Path(name)
    return path.parent.name if path.name == "model" else path.name

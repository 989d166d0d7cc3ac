"""The Trainer callback of a run: progress, metrics, samples, checkpoints to keep, requests to stop or pause."""

import time
from collections.abc import Callable
from dataclasses import asdict
from math import isfinite, nan
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import rotate_checkpoints

from gpt2lab.errors import Message
from gpt2lab.results import perplexity_of, readable
from gpt2lab.training import runs
from gpt2lab.training.config import PreparedConfig
from gpt2lab.training.machine import MachineUse

STATUS_SECONDS = 1.0  # between heartbeats
CHECKPOINTS_KEPT = 2  # the last and the best
CONTROL_SECONDS = 0.2  # between polls of the control file


class Interrupted(Exception):  # noqa: N818 - no error: a request
    """Raised when a stop or pause request arrives during a validation."""


class LossMeter(TrainerCallback, ExportableState):
    """The training loss since it was last logged, and the tokens so far; kept through checkpoints to the last bit."""

    def __init__(self):
        self.loss, self.tokens, self.since = torch.zeros(()), torch.zeros((), dtype=torch.int64), 0
        self.blocks = np.empty((0, 2))  # nats and predicted tokens of each block in the last validation

    def add(self, loss: torch.Tensor, tokens: torch.Tensor) -> None:
        """Count a forward pass: its share of the step's mean loss, and its tokens. Nothing waits for the device."""
        self.loss = self.loss.to(loss.device) + loss
        self.tokens = self.tokens.to(loss.device) + tokens

    def take(self, step: int) -> float:
        """The mean loss since the last call, nats per token."""
        mean = float(self.loss) / (step - self.since)
        self.loss, self.since = torch.zeros_like(self.loss), step
        return mean

    def state(self) -> dict:
        return {
            "args": {},
            "attributes": {"loss": float(self.loss), "tokens": int(self.tokens), "since": self.since},
        }

    def on_train_begin(self, args, state, control, **kwargs):
        kept = state.stateful_callbacks.get("LossMeter", {}).get("attributes")
        if kept:
            self.loss, self.tokens = torch.tensor(kept["loss"]), torch.tensor(kept["tokens"])
            self.since = kept["since"]


class RunWatch(TrainerCallback, ExportableState):
    """Write a run's progress to its folder, draw the bar, keep the best checkpoint, stop the run when requested.

    writes     whether this process is the one that writes: of several, only the first
    broadcast  the requested action of the first process → the same in every process
    sample     writes a text with the model as it is
    is_finite  whether all weights are finite numbers
    """

    def __init__(
        self,
        folder: Path,
        config: PreparedConfig,
        meter: LossMeter,
        *,
        writes: bool = True,
        broadcast: Callable[[str | None], str | None] = lambda action: action,
        sample: Callable[[], str],
        is_finite: Callable[[], bool],
    ):
        self.folder, self.config, self.meter, self.writes = folder, config, meter, writes
        self.broadcast, self.write_sample, self.is_finite = broadcast, sample, is_finite
        self.step, self.learning_rate = 0, 0.0
        self.validation: dict[int, float] = {}
        self.training_seconds, self.seconds_before = 0.0, 0.0
        self.started = self.step_began = time.monotonic()
        self.last_write = self.last_poll = 0.0
        self.action: str | None = None
        self.finishing, self.phase = False, ""
        self.at_epoch_begin = self.at_step_begin = None
        self.resumed_at = self.n_eval_batches = 0
        self.bar = None
        self.use, self.last_logged = MachineUse(), (0, 0.0)  # tokens and seconds of training at the last line

    @property
    def tokens(self) -> int:
        """Tokens of text trained on so far."""
        return int(self.meter.tokens)

    @property
    def seconds(self) -> float:
        """Of the run so far, in all its processes."""
        return self.seconds_before + time.monotonic() - self.started

    @property
    def best_step(self) -> int | None:
        """The trained step with the lowest validation loss, the first where several share it."""
        return best_step(self.validation)

    def state(self) -> dict:
        kept = {
            "training_seconds": self.training_seconds,
            "seconds": self.seconds,
            "validation": [*self.validation.items()],
            "learning_rate": self.learning_rate,
        }
        return {"args": {}, "attributes": kept}

    def on_train_begin(self, args, state, control, **kwargs):
        kept = state.stateful_callbacks.get("RunWatch", {}).get("attributes")
        self.step = self.resumed_at = state.global_step
        if kept:
            self.training_seconds, self.seconds_before = kept["training_seconds"], kept["seconds"]
            self.validation, self.learning_rate = dict(kept["validation"]), kept["learning_rate"]
        self.last_logged = self.tokens, self.training_seconds
        if self.best_step:  # the folder may have been moved since
            state.best_model_checkpoint = str(Path(args.output_dir) / f"checkpoint-{self.best_step}")
        if self.writes:
            self.bar = tqdm(total=self.config.steps, initial=self.step, unit="step", desc="fine-tune", mininterval=1)
        if self.step >= self.config.steps or out_of_patience(self.validation, self.config.patience):
            raise Interrupted  # all is trained, and only the model was not kept yet

    def on_epoch_begin(self, args, state, control, **kwargs):
        # the epoch's iterator draws a number before its first step, and draws it again after a resume there
        self.at_epoch_begin = random_state() if state.global_step > self.resumed_at else None

    def on_step_begin(self, args, state, control, **kwargs):
        self.step_began = time.monotonic()
        random, self.at_epoch_begin = self.at_epoch_begin or random_state(), None
        self.at_step_begin = random, self.meter.loss, self.meter.tokens

    def on_substep_end(self, args, state, control, **kwargs):
        self.beat()
        if self.poll_request():  # the step is given up, and done again after the pause with the same dropout
            random, self.meter.loss, self.meter.tokens = self.at_step_begin
            set_random_state(random)
            control.should_training_stop = True
            control.should_save = state.global_step > self.resumed_at

    def on_step_end(self, args, state, control, **kwargs):
        self.training_seconds += time.monotonic() - self.step_began
        self.step = state.global_step
        requested = self.poll_request()
        if requested or self.step % self.config.save_every == 0:
            control.should_save = True
            self.check(self.is_finite(), "a weight is not a finite number")
        if requested:
            control.should_training_stop = True
        if self.bar is not None:
            self.bar.update()
        self.beat()

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        self.n_eval_batches += 1
        self.phase = Message("validating")
        if eval_dataloader:
            self.phase = Message("validating, {share:.0%}", share=self.n_eval_batches / len(eval_dataloader))
        self.beat()  # the heart beats through long validations
        if self.poll_request() == "pause" or (self.action and not self.step):
            raise Interrupted  # to stop needs what this validation will measure of the model that is to be kept

    def on_log(self, args, state, control, logs, **kwargs):
        if "loss" in logs:
            norm = float(logs.get("grad_norm", nan))
            tokens, seconds = (now - last for now, last in zip((self.tokens, self.training_seconds), self.last_logged))
            self.last_logged = self.tokens, self.training_seconds
            self.record(
                "train",
                float(logs["loss"]),
                float(logs["learning_rate"]),
                grad_norm=norm if isfinite(norm) else None,
                tokens_per_second=round(tokens / seconds, 1) if seconds else None,
                **self.use.measured(),
            )

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        loss = float(metrics["eval_loss"])
        self.n_eval_batches, self.phase = 0, ""
        self.record("validation", loss, self.learning_rate)
        self.validation[self.step] = loss
        self.write("running")  # the sample and the next step may take longer than the validation did
        if self.writes:
            nll, tokens = self.meter.blocks.T.tolist()
            runs.append_line(self.folder / "validation.jsonl", {"step": self.step, "nll": nll, "tokens": tokens})
        text = self.write_sample()
        if self.writes:
            line = {"step": self.step, "prompt": self.config.prompt, "text": text}
            runs.append_line(self.folder / "samples.jsonl", line)
        if self.best_step == self.step and not self.finishing:
            state.best_model_checkpoint = str(Path(args.output_dir) / f"checkpoint-{self.step}")  # rotation spares it
            control.should_save = True
        if self.action or out_of_patience(self.validation, self.config.patience):
            control.should_training_stop = True
            control.should_save = control.should_save or (self.action is not None and not self.finishing)
            if self.step == self.resumed_at and not self.finishing:
                raise Interrupted  # validated again after a resume: the Trainer would take one more step

    def on_save(self, args, state, control, **kwargs):
        if self.writes:
            best = state.best_model_checkpoint  # by number: the Trainer's own pruning goes by time, and doubts it aloud
            rotate_checkpoints(args.output_dir, CHECKPOINTS_KEPT, best_model_checkpoint=best)
        self.beat()

    def poll_request(self) -> str | None:
        """Poll control.json and return the pending request, identical in all processes.

        A run that has nothing left to train ends by itself. One that was asked to stop, and validates what it will
        keep, can still be asked to pause instead.
        """
        if self.step >= self.config.steps or (self.finishing and self.action is None):
            return None
        if self.action != "pause":
            asked = None
            if self.writes and time.monotonic() - self.last_poll > CONTROL_SECONDS:
                self.last_poll = time.monotonic()
                asked = runs.requested_action(self.folder)
            self.action = self.broadcast(asked) or self.action
        return self.action

    def record(self, split: str, loss: float, lr: float, **others) -> None:
        """Append a metric. Raises: RuntimeError for a non-finite loss."""
        self.check(isfinite(loss), f"the {split} loss is {loss}")
        self.learning_rate = lr
        if self.writes:
            metric = runs.Metric(self.step, self.tokens, split, loss, lr, round(self.seconds, 3), **others)
            known = {name: value for name, value in asdict(metric).items() if value is not None}
            runs.append_line(self.folder / "metrics.jsonl", known)

    def check(self, finite: bool, what: str) -> None:
        """Raises: RuntimeError unless a value is finite; `what` says which."""
        if not finite:
            raise RuntimeError(f"{what} at step {self.step}; lower the learning rate")

    def beat(self) -> None:
        """Write the status once a second, in the writing process only."""
        if self.writes and time.monotonic() - self.last_write > STATUS_SECONDS:
            self.check(isfinite(float(self.meter.loss)), "the training loss is not finite")
            self.write("running", self.phase)

    def close(self, state: str, message: str = "") -> None:
        """Write the last status of a run."""
        if self.bar is not None:
            self.bar.close()
        self.write(state, message)
        if self.writes:
            (self.folder / "control.json").unlink(missing_ok=True)  # it is answered

    def summary(self) -> str:
        """Speed and quality so far, for the progress bar."""
        speed, loss = self.tokens / self.training_seconds, [*self.validation.values()][-1]
        return f"{speed:,.0f} tokens/s, validation perplexity {readable(perplexity_of(loss), 1)}"

    def write(self, state: str, message: str = "") -> None:
        """Write the run's status."""
        self.last_write = time.monotonic()
        if not self.writes:
            return
        if self.bar is not None and self.training_seconds and self.validation:
            self.bar.set_postfix_str(self.summary(), refresh=False)
        speed, left, best = None, None, self.best_step
        if self.step and self.training_seconds:
            speed = self.tokens / self.training_seconds
            if state in runs.ALIVE:
                left = self.seconds / self.step * (self.config.steps - self.step)  # validations included
        status = runs.RunStatus(
            state,
            self.step,
            self.config.steps,
            **runs.this_process(),
            tokens_per_second=speed,
            eta_seconds=left,
            best_step=best,
            loss_before=self.validation.get(0),
            loss_best=None if best is None else self.validation[best],
            message=message,
        )
        runs.write_status(self.folder, status)


def random_state() -> list[torch.Tensor]:
    """Return the state of PyTorch's random number generators: the CPU's, then each GPU's."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else ())]


def set_random_state(state: list[torch.Tensor]) -> None:
    """Restore the state of the random number generators."""
    torch.set_rng_state(state[0])
    if state[1:]:
        torch.cuda.set_rng_state_all(state[1:])


def best_step(validation: dict[int, float]) -> int | None:
    """The step after 0 with the lowest loss, the first where several share it; None where there is none."""
    trained = {step: loss for step, loss in validation.items() if step}
    return min(trained, key=trained.__getitem__, default=None)


def out_of_patience(validation: dict[int, float], patience: int) -> bool:
    """Whether none of the last `patience` validations improved on the best before them."""
    best = best_step(validation)
    return bool(patience and best and sum(step > best for step in validation) >= patience)

"""What a run does beside training: its progress into its folder, a bar on the screen, a wish to stop passed on.

Knows run folders and transformers' callbacks; nothing of models.
"""

import time
from dataclasses import asdict
from math import isfinite
from pathlib import Path

from tqdm.auto import tqdm
from transformers import TrainerCallback

from gpt2lab.training import runs
from gpt2lab.training.config import TrainConfig
from gpt2lab.units import perplexity_of

STATUS_SECONDS = 1.0  # between heartbeats


class RunWatch(TrainerCallback):
    """Writes a run's progress into its folder, draws the progress bar, and passes on a wish to stop."""

    def __init__(self, folder: Path, config: TrainConfig, should_stop=None):
        self.folder, self.config, self.should_stop = folder, config, should_stop
        self.step, self.tokens, self.learning_rate = 0, 0, 0.0
        self.validation, self.evaluated_at = [], None
        self.started = time.monotonic()
        self.training_seconds, self.step_began, self.written = 0.0, None, 0.0
        self.bar = None
        self.process = runs.this_process()
        self.write("running")

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = tqdm(total=self.config.steps, unit="step", desc="fine-tune", mininterval=1)

    def on_step_begin(self, args, state, control, **kwargs):
        self.step_began = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        self.training_seconds += time.monotonic() - self.step_began
        self.step, self.tokens = state.global_step, int(state.num_input_tokens_seen)
        self.bar.set_postfix_str(self.summary(), refresh=False)
        self.bar.update()
        if self.should_stop and self.should_stop():
            control.should_training_stop = True
        if time.monotonic() - self.written > STATUS_SECONDS:
            self.write("running")

    def on_prediction_step(self, args, state, control, **kwargs):
        if time.monotonic() - self.written > STATUS_SECONDS:  # the heart beats through long evaluations
            self.write("running")

    def on_log(self, args, state, control, logs, **kwargs):
        if "loss" in logs:
            self.record("train", float(logs["loss"]), float(logs["learning_rate"]))

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.evaluated_at = state.global_step
        self.validation.append(float(metrics["eval_loss"]))
        self.record("validation", self.validation[-1], self.learning_rate)

    def close(self, state: str, message: str = "") -> None:
        """The last word on a run."""
        if self.bar is not None:
            self.bar.close()
        self.write(state, message)

    def summary(self) -> str:
        """Speed and quality so far, for the progress bar."""
        return f"{self.tokens / self.training_seconds:,.0f} tokens/s, validation perplexity {perplexity_of(self.validation[-1]):.1f}"

    def record(self, split: str, loss: float, lr: float) -> None:
        """Append a metric. Raises: RuntimeError where the loss is not a number any more."""
        if not isfinite(loss):
            raise RuntimeError(f"the {split} loss is {loss} at step {self.step}; lower the learning rate")
        self.learning_rate = lr
        seconds = round(time.monotonic() - self.started, 3)
        metric = runs.Metric(self.step, self.tokens, split, loss, lr, seconds)
        runs.append_line(self.folder / "metrics.jsonl", asdict(metric))

    def sample(self, step: int, text: str) -> None:
        """Append the text written at a step."""
        runs.append_line(self.folder / "samples.jsonl", {"step": step, "prompt": self.config.prompt, "text": text})

    def write(self, state: str, message: str = "") -> None:
        """Replace the run's status."""
        self.written = time.monotonic()
        speed = self.tokens / self.training_seconds if self.step else None
        seconds_a_step = self.training_seconds / self.step if self.step else None
        status = runs.RunStatus(
            state,
            self.step,
            self.config.steps,
            **self.process,
            heartbeat=time.time(),
            tokens_per_second=speed,
            eta_seconds=seconds_a_step and seconds_a_step * (self.config.steps - self.step),
            message=message,
        )
        runs.write_status(self.folder, status)

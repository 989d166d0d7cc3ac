"""Estimate what a run costs before it starts: time, memory and disk, from a few measured steps on this machine."""

import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from statistics import median, pstdev

import psutil
import torch
from accelerate import PartialState
from transformers import PrinterCallback, TrainerCallback

from gpt2lab.data.blocks import Blocks
from gpt2lab.data.sources import resolve_auto
from gpt2lab.errors import Message
from gpt2lab.model.precision import precision_note
from gpt2lab.results import duration
from gpt2lab.training.allocator import freed_memory_kept
from gpt2lab.training.checkpoints import disk_needed
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.finetuning import peak_memory, sample_text
from gpt2lab.training.full_validation import is_affordable
from gpt2lab.training.jobs import machine_lock
from gpt2lab.training.prepare import PreparedRun, free_bytes, prepare
from gpt2lab.training.trainer import LabTrainer, trainable, training_arguments

PROBE_STEPS = 6  # at most, after one that warms up
PROBE_SECONDS = 6.0  # of measured steps, after which no further one begins
PROBE_EVALUATION_BATCHES = 2
FRESH_SECONDS = 60.0  # age of a process that was started for the estimate
MIN_DOUBT = 0.15  # of the time: machines do not run evenly


@dataclass(frozen=True)
class Cost:
    """Estimated cost of a run on this machine.

    parameters, trained       in the model, and those of them that training changes
    precision                 as `precision_note` says it
    batch_size, grad_accum    blocks of block_size tokens of a step: batch_size × grad_accum
    steps, tokens             optimizer steps, and tokens read in them if the run does not end early
    validations, eval_tokens  how often the validation split is scored, and how many of its split_tokens each time
    seconds, seconds_doubt    of the whole run, ± doubt
    training_seconds          of the optimizer steps
    validation_seconds        of the validations and their samples
    whole_seconds             of scoring the whole split at the end, before and after; 0 if that is not done
    memory                    peak bytes of this process, or of the GPU
    disk, disk_free           bytes that the run folder takes at most, and that are free there
    """

    parameters: int
    trained: int
    precision: str
    learning_rate: float
    batch_size: int
    grad_accum: int
    block_size: int
    steps: int
    tokens: int
    validations: int
    eval_tokens: int
    split_tokens: int
    seconds: float
    seconds_doubt: float
    training_seconds: float
    validation_seconds: float
    whole_seconds: float
    memory: int
    disk: int
    disk_free: int

    def record(self) -> dict:
        """All values, and `lines` as "in_words", for JSON."""
        return asdict(self) | {
            "settings": str(self.settings),
            "in_words": {str(name): str(value) for name, value in self.lines()},
        }

    def lines(self) -> list[tuple[Message, Message]]:
        """Name and value, for people."""
        gb, mb = 1e9, 1e6
        validating = {"time": duration(self.validation_seconds), "validations": self.validations}
        scored, split = f"{self.eval_tokens:,}", f"{self.split_tokens:,}"
        is_part = self.eval_tokens != self.split_tokens
        return [
            (
                Message("Parameters trained"),
                Message("{trained:,} of {count:,}", trained=self.trained, count=self.parameters),
            ),
            (Message("Settings"), self.settings),
            (Message("Length"), Message("{steps:,} steps, {tokens:,} tokens", steps=self.steps, tokens=self.tokens)),
            (Message("Training"), duration(self.training_seconds)),
            (
                Message("Validation"),
                Message("{time}: {validations} × {tokens} of {all} tokens", tokens=scored, all=split, **validating)
                if is_part
                else Message("{time}: {validations} × {tokens} tokens", tokens=scored, **validating),
            ),
            *([(Message("Whole validation split"), self._whole())] if is_part else []),
            (
                Message("Total time"),
                Message(
                    "{time} ± {doubt}, less if it stops early",
                    time=duration(self.seconds),
                    doubt=duration(self.seconds_doubt),
                ),
            ),
            (Message("Peak memory"), Message("{size} GB", size=f"{self.memory / gb:.1f}")),
            (
                Message("Disk"),
                Message(
                    "{size} MB of {free} GB free",
                    size=f"{self.disk / mb:,.0f}",
                    free=f"{self.disk_free / gb:.1f}",
                ),
            ),
        ]

    @property
    def settings(self) -> Message:
        """Precision, learning rate and the blocks of a step in a line."""
        return Message(
            "{precision}, learning rate {rate:g}, {batch} × {accum} blocks of {block} tokens per step",
            precision=Message(self.precision),
            rate=self.learning_rate,
            batch=self.batch_size,
            accum=self.grad_accum,
            block=self.block_size,
        )

    def _whole(self) -> Message:
        if not self.whole_seconds:
            return Message("not scored at the end")
        return Message("{time}, before and after", time=duration(self.whole_seconds))


class Stopwatch(TrainerCallback):
    """Seconds of each optimizer step and, in it, of the optimizer; ends the training after PROBE_SECONDS.

    passes  forward passes per measured step
    """

    def __init__(self, passes: int = 1):
        self.passes = passes
        self.steps: list[float] = []
        self.optimizer: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.began = time.perf_counter()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.computed = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        now = time.perf_counter()
        self.steps.append(now - self.began)
        self.optimizer.append(now - self.computed)
        control.should_training_stop = sum(self.steps[1:]) > PROBE_SECONDS

    def step_seconds(self, grad_accum: int) -> float:
        """Seconds of a step of grad_accum forward passes."""
        optimizer = median(self.optimizer[1:] or self.optimizer)
        return grad_accum / self.passes * (median(self.steps[1:] or self.steps) - optimizer) + optimizer

    @property
    def spread(self) -> float:
        """Standard deviation of the measured steps as a share of one; 0 of fewer than two."""
        measured = self.steps[1:]
        return pstdev(measured) / median(measured) if len(measured) > 1 else 0.0


def estimate_cost(config: TrainConfig, runs_dir: str | Path = "runs") -> Cost:
    """Measure a few steps, part of a validation, a sample and a checkpoint, and estimate the whole run from them.

    It takes 10 to 30 s, and assumes that nothing else keeps the machine busy meanwhile. A run that is started in
    that time waits for it.

    Raises: LabError for bad settings, as `finetune`, or while a run is training here.
    """
    with machine_lock(preview=True), freed_memory_kept():
        return _measure(config, Path(runs_dir))


def _measure(config: TrainConfig, runs_dir: Path) -> Cost:
    began = time.perf_counter()
    imported = import_seconds()
    model, data = resolve_auto(config.model, config.data, training=True)
    job = prepare(replace(config, model=model, data=data), PartialState(cpu=not torch.cuda.is_available()))
    lab, config = job.lab, job.config
    model = trainable(lab, config)
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    started = time.perf_counter() - began + imported
    watch, (validation, sample, saving) = measure_parts(job, model)
    tokens = config.steps * config.batch_size * config.grad_accum * config.block_size
    warm_up = watch.steps[0] - watch.step_seconds(watch.passes) if config.compile else 0.0  # compiling takes minutes
    training = config.steps * watch.step_seconds(config.grad_accum) + warm_up
    validations, checkpoints = ceil(config.steps / config.eval_every) + 1, ceil(config.steps / config.save_every)
    validating = validations * (validation * len(job.validation) + sample)
    seconds = started + training + validating + (checkpoints + 1) * saving
    whole = 0.0
    if config.eval_tokens != "all" and is_affordable(config.method, job.split.n_tokens, tokens / training, seconds):
        whole = 2 * validation * len(job.split)
    seconds += whole
    return Cost(
        parameters=parameters,
        trained=trained,
        precision=str(precision_note(config.precision, lab.device)),
        learning_rate=config.learning_rate,
        batch_size=config.batch_size,
        grad_accum=config.grad_accum,
        block_size=config.block_size,
        steps=config.steps,
        tokens=tokens,
        validations=validations,
        eval_tokens=job.validation.n_tokens,
        split_tokens=job.split.n_tokens,
        seconds=seconds,
        seconds_doubt=seconds * max(MIN_DOUBT, watch.spread),
        training_seconds=training,
        validation_seconds=validating,
        whole_seconds=whole,
        memory=peak_memory(lab.device),
        disk=disk_needed(lab, config),
        disk_free=free_bytes(runs_dir),
    )


def import_seconds() -> float:
    """Seconds that a run's own process takes to import everything: this one's age if it is fresh, else measured."""
    age = time.time() - psutil.Process().create_time()
    if age < FRESH_SECONDS:
        return age
    return seconds_of(
        lambda: subprocess.run(
            [sys.executable, "-c", "import gpt2lab.training.finetuning"], check=True, capture_output=True
        )
    )


def measure_parts(job: PreparedRun, model: torch.nn.Module) -> tuple[Stopwatch, tuple[float, float, float]]:
    """Measure some steps; returns them and (seconds per block validated, per sample, per checkpoint).

    Steps of more than two forward passes are measured with two: with a second one, gradients are there twice.
    """
    lab, config, watch = job.lab, job.config, Stopwatch(min(job.config.grad_accum, 2))
    steps = min(config.steps, 1 + PROBE_STEPS)
    short = replace(config, steps=steps, grad_accum=watch.passes)
    probe = replace(short, eval_every=10**7, save_every=10**7, report_to="none")
    few = first_blocks(job.validation, PROBE_EVALUATION_BATCHES * config.batch_size)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = LabTrainer(
            model=model,
            args=training_arguments(probe, Path(scratch), lab, evaluates_first=False),
            train_dataset=job.train,
            eval_dataset=few,
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.evaluate()  # warms up
        validation = seconds_of(trainer.evaluate) / len(few)
        sample = seconds_of(lambda: sample_text(lab, config))
        saving = 3 * seconds_of(lambda: trainer.save_model(scratch))  # weights, and two moments of each
    return watch, (validation, sample, saving)


def first_blocks(blocks: Blocks, n: int) -> Blocks:
    """The first n blocks."""
    return Blocks(blocks.input_ids[:n], blocks.labels[:n], blocks.n_tokens)


def seconds_of(action) -> float:
    """How long it takes to do something."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began

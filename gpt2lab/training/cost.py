"""What a run would cost, before it is started: time, memory and disk, from a few measured steps on this machine.

Knows training; writes only into a folder of its own, which it removes.
"""

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from statistics import median, pstdev

import torch
from accelerate import PartialState
from transformers import PrinterCallback, TrainerCallback

from gpt2lab.blocks import Blocks
from gpt2lab.sources import resolve_auto
from gpt2lab.training.checkpoints import disk_needed
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.finetuning import free_bytes, peak_memory, prepare, sample_text
from gpt2lab.training.jobs import machine_lock
from gpt2lab.training.trainer import LabTrainer, trainable, training_arguments
from gpt2lab.units import duration

PROBE_STEPS = 6  # the first of which warms up
PROBE_EVALUATION_BATCHES = 4
LEAST_DOUBT = 0.15  # of the time: machines do not run evenly


@dataclass(frozen=True)
class Cost:
    """What a run would cost on this machine.

    parameters, trained       numbers in the model, and those of them that training changes
    steps, tokens             optimizer steps, and tokens of text read in them, if it does not end early
    seconds, seconds_doubt    of the whole run, validations and checkpoints included, ± so much
    memory                    peak bytes: of this process, or of the GPU where there is one
    disk, disk_free           bytes that the run folder takes at most, and that are free there
    """

    parameters: int
    trained: int
    steps: int
    tokens: int
    seconds: float
    seconds_doubt: float
    memory: int
    disk: int
    disk_free: int

    def lines(self) -> list[tuple[str, str]]:
        """Name and value, for people."""
        gb, mb = 1e9, 1e6
        return [
            ("parameters trained", f"{self.trained:,} of {self.parameters:,}"),
            ("steps, tokens", f"{self.steps:,} steps, {self.tokens:,} tokens"),
            ("time", f"{duration(self.seconds)} ± {duration(self.seconds_doubt)}, less if it stops early"),
            ("peak memory", f"{self.memory / gb:.1f} GB"),
            ("disk", f"{self.disk / mb:,.0f} MB of {self.disk_free / gb:.1f} GB free"),
        ]


class Stopwatch(TrainerCallback):
    """The seconds of each optimizer step."""

    def __init__(self):
        self.steps = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(time.perf_counter() - self.began)


def preview(config: TrainConfig, runs_dir: str | Path = "runs") -> Cost:
    """Measure a few steps, a part of a validation, a sample and a checkpoint; reckon the whole run from them.

    It takes some 10 to 60 s, and is right only where nothing else keeps the machine busy meanwhile. A run that
    is started in that time waits for it.

    Raises: LabError for bad settings, as `finetune`, or while a run is training here.
    """
    with machine_lock(preview=True):
        return _measure(config, Path(runs_dir))


def _measure(config: TrainConfig, runs_dir: Path) -> Cost:
    began = time.perf_counter()
    imports = [sys.executable, "-c", "import gpt2lab.training.finetuning"]  # as the run's own process will begin
    subprocess.run(imports, check=True, capture_output=True)
    model, data = resolve_auto(config.model, config.data)
    job = prepare(replace(config, model=model, data=data), PartialState(cpu=not torch.cuda.is_available()))
    lab, config = job.lab, job.config
    model = trainable(lab, config)
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    disk, free = disk_needed(lab, config), free_bytes(runs_dir)
    watch = Stopwatch()
    batches = ceil(len(job.validation) / config.batch_size)
    few = min(batches, PROBE_EVALUATION_BATCHES)
    started = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as scratch:
        probe = replace(
            config, steps=min(config.steps, PROBE_STEPS), eval_every=10**7, save_every=10**7, report_to="none"
        )
        trainer = LabTrainer(
            model=model,
            args=training_arguments(probe, Path(scratch), lab, evaluates_first=False),
            train_dataset=job.train,
            eval_dataset=first_blocks(job.validation, few * config.batch_size),
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        validation = seconds_of(trainer.evaluate) * batches / few
        sample = seconds_of(lambda: sample_text(lab, config))
        saving = 3 * seconds_of(lambda: trainer.save_model(scratch))  # weights, and two moments of each
    step = median(watch.steps[1:] or watch.steps)
    validations, checkpoints = config.steps // config.eval_every + 1, ceil(config.steps / config.save_every)
    warm_up = watch.steps[0] - step if config.compile else 0.0  # a compiled model's first step takes minutes
    training = config.steps * step + warm_up
    seconds = started + training + validations * (validation + sample) + (checkpoints + 1) * saving
    spread = pstdev(watch.steps[1:]) / step if len(watch.steps) > 2 else 0.0
    tokens = config.steps * config.batch_size * config.grad_accum * config.block_size
    return Cost(
        parameters=parameters,
        trained=trained,
        steps=config.steps,
        tokens=tokens,
        seconds=seconds,
        seconds_doubt=seconds * max(LEAST_DOUBT, spread),
        memory=peak_memory(lab.device),
        disk=disk,
        disk_free=free,
    )


def first_blocks(blocks: Blocks, n: int) -> Blocks:
    """The first n blocks."""
    return Blocks(blocks.input_ids[:n], blocks.labels[:n], blocks.n_tokens)


def seconds_of(action) -> float:
    """How long it takes to do something."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began

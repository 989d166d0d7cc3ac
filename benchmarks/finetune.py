"""A fine-tuning step of gpt2lab against transformers' Trainer with its defaults (fp32), side by side.

    python benchmarks/finetune.py [--steps 4] [--repeat 2] [--only T=1024] [--precision auto]
    python benchmarks/finetune.py --overhead

GPT-2 small's shape, random weights, random tokens. Each measurement is a process of its own, so that
its peak memory is its own; ours and the peer's take turns, each one's best counts. Prints tokens/s, peak memory, ratios.
--overhead: seconds of a step of the built-in model with and without what a run does beside training: metrics,
status, heartbeat, an eye on the control file.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from side_by_side import in_a_process, machine

CASES = {  # name: (tokens per block, blocks per step, our method, ratio aimed at)
    "T=1024": (1024, 1, "full", 4.0),
    "T=256": (256, 4, "full", 3.3),
    "LoRA, T=1024": (1024, 1, "lora", 5.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4, help="measured steps, after one that warms up")
    parser.add_argument("--repeat", type=int, default=2, help="measurements of each side")
    parser.add_argument("--only", choices=CASES, help="one case")
    parser.add_argument("--precision", default="auto", help="of ours: auto, fp32 or bf16")
    parser.add_argument("--overhead", action="store_true", help="of metrics, control and heartbeat instead")
    parser.add_argument("--measure", nargs=2, metavar=("SIDE", "CASE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure, arguments.steps, arguments.precision)))
        return
    if arguments.overhead:
        watched, bare = overhead()
        print(f"watched {watched * 1e3:.1f} ms a step, bare {bare * 1e3:.1f} ms: {watched / bare:.3f}× (aim 1.02×)")
        return
    row = "{:<14} {:>12} {:>12} {:>8} {:>7} {:>10} {:>10} {:>8}"
    print(row.format("case", "ours tok/s", "peer tok/s", "ratio", "aim", "ours MB", "peer MB", "ratio"))
    print(machine())
    for case, (*_, aim) in CASES.items():
        if arguments.only not in (None, case):
            continue
        found = {"ours": [], "peer": []}
        for _ in range(arguments.repeat):
            for side, runs in found.items():
                options = ("--steps", str(arguments.steps), "--precision", arguments.precision)
                runs.append(in_a_process(*options, "--measure", side, case))
        ours, peer = (max(runs, key=lambda run: run["speed"]) for runs in found.values())
        cells = [f"{m['speed']:.1f}" for m in (ours, peer)] + [f"{ours['speed'] / peer['speed']:.2f}×", f"{aim}×"]
        cells += [f"{m['memory'] / 1e6:,.0f}" for m in (ours, peer)] + [f"{ours['memory'] / peer['memory']:.2f}×"]
        print(row.format(case, *cells), flush=True)


def measure(side: str, case: str, steps: int, precision: str) -> dict:
    """{"speed": tokens/s, "memory": peak bytes of this process} of one side."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    from gpt2lab.data.blocks import Blocks
    from gpt2lab.training.allocator import freed_memory_kept

    T, B, method, _ = CASES[case]
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config())
    ids = torch.randint(50257, (B * (steps + 1), T))
    blocks = Blocks(ids, ids, ids.numel())
    times = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            times.append(-time.perf_counter())

        def on_step_end(self, *args, **kwargs):
            times[-1] += time.perf_counter()

    with tempfile.TemporaryDirectory() as scratch:
        if side == "peer":
            settings = TrainingArguments(
                scratch, per_device_train_batch_size=B, max_steps=steps + 1, save_strategy="no", disable_tqdm=True
            )
            trainer = Trainer(model=model, args=settings, train_dataset=blocks, callbacks=[Clock()])
        else:
            from gpt2lab.model.lab import Lab, with_fused_gelu
            from gpt2lab.training.config import TrainConfig
            from gpt2lab.training.trainer import LabTrainer, trainable, training_arguments

            lab = Lab(with_fused_gelu(model), None, "random")  # as load_model gives it
            shape = {"batch_size": B, "grad_accum": 1, "block_size": T, "steps": steps + 1, "eval_every": 10**6}
            config = TrainConfig(**shape, method=method, learning_rate=5e-5, precision=precision)
            settings = training_arguments(config, Path(scratch), lab, evaluates_first=False)
            trainer = LabTrainer(
                model=trainable(lab, config),
                args=settings,
                train_dataset=blocks,
                eval_dataset=blocks,
                callbacks=[Clock()],
            )
        with freed_memory_kept() if side == "ours" else nullcontext():
            trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    return {"speed": B * T * steps / sum(times[1:]), "memory": peak}


def overhead(rounds: int = 6, steps: int = 12) -> tuple[float, float]:
    """Median seconds from step to step, with RunWatch and without, by turns in one process."""
    from statistics import median

    import torch
    from accelerate import PartialState
    from transformers import PrinterCallback, TrainerCallback

    from gpt2lab.training import runs
    from gpt2lab.training.config import TrainConfig
    from gpt2lab.training.prepare import prepare
    from gpt2lab.training.trainer import LabTrainer, trainable, training_arguments
    from gpt2lab.training.watch import LossMeter, RunWatch

    config = TrainConfig(model="builtin", data="sample", steps=steps, eval_every=10**6, save_every=10**6)
    job = prepare(config, PartialState(cpu=not torch.cuda.is_available()))
    config = job.config
    gaps = {True: [], False: []}

    class Clock(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            self.began = []

        def on_step_begin(self, *args, **kwargs):
            self.began.append(time.perf_counter())

    for turn in range(2 * rounds):
        clock, meter, watched = Clock(), LossMeter(), turn % 2 == 0
        with tempfile.TemporaryDirectory() as scratch:
            folder = runs.new_run(Path(scratch), {"model": "builtin", "data": "sample"}, "it")
            watch = RunWatch(folder, config, meter, sample=lambda: "", is_finite=lambda: True)
            trainer = LabTrainer(
                model=trainable(job.lab, config),
                args=training_arguments(config, folder / "checkpoints", job.lab, evaluates_first=False),
                train_dataset=job.train,
                eval_dataset=job.validation,
                meter=meter,
                callbacks=[clock, watch] if watched else [clock],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        gaps[watched] += [later - earlier for earlier, later in zip(clock.began[1:], clock.began[2:])]
    return median(gaps[True]), median(gaps[False])


if __name__ == "__main__":
    main()

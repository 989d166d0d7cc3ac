"""The checkpoints of a run: which of them is whole and readable, what it knows, how much room they take."""

import shutil
import zipfile
from math import ceil
from pathlib import Path

import safetensors

from gpt2lab.model.lab import Lab
from gpt2lab.training import runs
from gpt2lab.training.config import PreparedConfig
from gpt2lab.training.watch import CHECKPOINTS_KEPT, best_step


def roll_back(folder: Path, processes: int = 1) -> Path | None:
    """Return the newest complete checkpoint, or None; later checkpoints and metrics are deleted."""
    found, validated = None, set()
    for checkpoint in runs.whole_checkpoints(folder):
        validation = validated_in(checkpoint)
        best = best_step(validation)
        kept = best is None or is_readable(checkpoint.with_name(f"checkpoint-{best}"), processes)
        if kept and is_readable(checkpoint, processes):
            found, validated = checkpoint, set(validation)
            break
    step = step_of(found)
    for path in (folder / "checkpoints").glob("checkpoint-*"):
        if path != found and (not found or not path.name.removeprefix("checkpoint-").isdigit() or step_of(path) > step):
            shutil.rmtree(path)
    runs.rewind(folder, step, validated)
    return found


def step_of(checkpoint: Path | None) -> int:
    """The optimizer steps done at a checkpoint, from its name; 0 where there is none."""
    return 0 if checkpoint is None else int(checkpoint.name.removeprefix("checkpoint-"))


def validated_in(checkpoint: Path | None) -> dict[int, float]:
    """Step → validation loss, as known at a checkpoint."""
    if checkpoint is None:
        return {}
    kept = runs.checkpoint_state(checkpoint).get("stateful_callbacks", {}).get("RunWatch", {}).get("attributes", {})
    return dict(kept.get("validation", []))


def is_due(checkpoint: Path | None, config: PreparedConfig) -> bool:
    """Whether the step that training resumes from is still to be validated."""
    step = step_of(checkpoint)
    return step % config.eval_every == 0 and step not in validated_in(checkpoint)


def is_readable(checkpoint: Path, processes: int = 1) -> bool:
    """Whether a checkpoint's weights, optimizer and random numbers, those of every process, can be opened."""
    try:
        for file in checkpoint.glob("*.safetensors"):
            with safetensors.safe_open(file, framework="pt"):
                pass
        weights = any(checkpoint.glob("*.safetensors")) or is_in_shards(checkpoint / "pytorch_model_fsdp_0")
        optimizer = any(checkpoint.glob("optimizer.*")) or is_in_shards(checkpoint / "optimizer_0")
        random = ["rng_state.pth"] if processes == 1 else [f"rng_state_{i}.pth" for i in range(processes)]
        states = [checkpoint / name for name in ("scheduler.pt", *random)]
        return weights and optimizer and all(map(zipfile.is_zipfile, [*states, *checkpoint.glob("optimizer.*")]))
    except (OSError, safetensors.SafetensorError):
        return False


def is_in_shards(folder: Path) -> bool:
    """Whether a folder holds what processes that share a model (FSDP) wrote together; its index comes last."""
    return (folder / ".metadata").is_file()


def drop_torn_checkpoints(folder: Path) -> None:
    """Remove checkpoints that were not written to the end."""
    whole = runs.whole_checkpoints(folder)
    for path in (folder / "checkpoints").glob("checkpoint-*"):
        if path not in whole:
            shutil.rmtree(path, ignore_errors=True)


def disk_needed(lab: Lab, config: PreparedConfig) -> int:
    """Bytes that a run's folder takes at most: checkpoints with AdamW's two moments, the model, and its snapshots."""
    parameters = lab.model.num_parameters()
    c = lab.model.config
    trained = config.lora_rank * 4 * c.n_embd * c.n_layer if config.method == "lora" else parameters
    saved = ceil(config.steps / min(config.save_every, config.eval_every))
    return min(saved, CHECKPOINTS_KEPT + 1) * 12 * trained + 4 * parameters * (
        1 + config.snapshots
    )  # an old one goes once the new one is there

"""Prepare a run: model, blocks, and settings with their defaults filled in."""

import importlib.util
import platform
import shutil
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
import transformers
from accelerate import PartialState

from gpt2lab.data import hub
from gpt2lab.data.blocks import Blocks, pack, token_ids
from gpt2lab.data.sources import model_source
from gpt2lab.data.text import TextSplits, load_text
from gpt2lab.errors import LabError
from gpt2lab.model.lab import Lab, check_vocabulary, downloaded, load_model, random_model, weights_digest
from gpt2lab.model.precision import precision_note, resolve_precision, warn_if_slow
from gpt2lab.training.checkpoints import disk_needed
from gpt2lab.training.config import PreparedConfig, TrainConfig
from gpt2lab.training.defaults import Defaults, defaults_for
from gpt2lab.training.observation import probe_ids
from gpt2lab.training.validation import plan_validation, sample_blocks


@dataclass(frozen=True, eq=False)
class PreparedRun:
    """Model, blocks and settings of a run before its first step.

    validation  the blocks that each validation scores · split  all blocks of the validation split
    notes       what is unusual of the model and of how the text was read, a sentence each
    """

    lab: Lab
    train: Blocks
    validation: Blocks
    split: Blocks
    config: PreparedConfig
    processes: int
    notes: tuple[str, ...] = ()


def prepare(config: TrainConfig, process: PartialState) -> PreparedRun:
    """Load model and text, and fill in the settings that are not given.

    Raises: LabError where a block is longer than the context, a split shorter than a block, the prompt does not
    fit, the probe has no token, eval_tokens is past the validation split, or report_to names what is not installed.
    """
    lab, splits = base_model(config, process.device), load_text(config.data, column=config.column)
    precision = resolve_precision(config.precision, lab.device)
    warn_if_slow(precision, lab.device)
    chosen = with_defaults(config, lab)
    if chosen.block_size > lab.context:
        raise LabError(
            "a block of {block_size:,} tokens is past the context of {name}, {context:,}; use less",
            block_size=chosen.block_size,
            name=lab.name,
            context=lab.context,
        )
    if config.report_to != "none" and not importlib.util.find_spec(config.report_to):
        raise LabError("report_to {report_to!r} is not installed; pip install {report_to}", report_to=config.report_to)
    train, split = (
        pack(token_ids(lab.tokenizer, splits.split(name)), chosen.block_size) for name in ("train", "validation")
    )
    for blocks in (train, split):
        check_vocabulary(lab, blocks.input_ids.flatten())
    prompt = config.prompt or first_words(lab, splits)
    lab.encode_prompt(prompt, room=1)
    probe_ids(lab, config.probe)
    blocks = chosen.batch_size * chosen.grad_accum * process.num_processes  # per optimizer step
    steps = config.steps or max(1, round(chosen.epochs * -(-len(train) // blocks)))
    validations, validation = with_validation(config, split, steps, steps * blocks * chosen.block_size)
    settings = {"steps": steps, "epochs": None, "prompt": prompt, "precision": precision, **validations}
    settings |= {name: getattr(chosen, name) for name in ("learning_rate", "block_size", "batch_size", "grad_accum")}
    prepared = PreparedConfig(**asdict(config) | settings)
    notes = (*lab.notes, *([f"{config.data}: {splits.note}."] if splits.note else []))
    return PreparedRun(lab, train, validation, split, prepared, process.num_processes, notes)


def fetch(config: TrainConfig) -> None:
    """Download the model and the text of a run from the hub, if they are not on this machine. Raises: LabError."""
    weights = config.method != "scratch"
    downloaded(model_source(config.model, weights=weights), weights=weights)
    if not hub.is_downloaded(config.data):
        hub.download(config.data)


def with_defaults(config: TrainConfig, lab: Lab) -> Defaults:
    """Return the defaults of a model and a method, with what is given in their place."""
    default = defaults_for(config.method, lab.model.num_parameters())
    return replace(
        default,
        learning_rate=config.learning_rate or default.learning_rate,
        block_size=config.block_size or min(default.block_size, lab.context),
        batch_size=config.batch_size or default.batch_size,
        grad_accum=config.grad_accum or (1 if config.batch_size else default.grad_accum),
        epochs=config.epochs or default.epochs,
    )


def settings_line(config: TrainConfig) -> str:
    """Return the main settings of a prepared run in a line; those of one that still waits are not chosen yet."""
    if config.learning_rate is None or config.eval_tokens is None:
        return f"{config.method}, settings chosen when it starts"
    part = "the whole validation split" if config.eval_tokens == "all" else f"{config.eval_tokens:,} validation tokens"
    return (
        f"{config.method}, {config.precision}, learning rate {config.learning_rate:g}, {config.steps:,} steps of "
        f"{config.batch_size} × {config.grad_accum} blocks of {config.block_size} tokens, {part} every "
        f"{config.eval_every:,} steps"
    )


def with_validation(config: TrainConfig, split: Blocks, steps: int, train_tokens: int) -> tuple[dict, Blocks]:
    """Choose how often and on how much text to validate; returns these settings and the blocks to score."""
    asked = split.n_tokens if isinstance(config.eval_tokens, str) else config.eval_tokens  # the only word is "all"
    if asked and asked > split.n_tokens:
        raise LabError(
            "eval_tokens {asked:,} is past the validation split, which has {n_tokens:,}; use less, or all",
            asked=asked,
            n_tokens=split.n_tokens,
        )
    eval_every, tokens = plan_validation(
        config.method, steps, train_tokens, split.n_tokens, eval_every=config.eval_every, eval_tokens=asked
    )
    validation = sample_blocks(split, tokens)
    settings = {
        "eval_every": eval_every,
        "eval_tokens": "all" if len(validation) == len(split) else validation.n_tokens,
        "save_every": config.save_every or eval_every,
    }
    return settings, validation


def base_model(config: TrainConfig, device: torch.device | None = None) -> Lab:
    """Load the model that a run begins with; for "scratch", one of its shape with random weights."""
    if config.method == "scratch":
        return random_model(config.model, config.seed, device=device)
    return load_model(config.model, device=device)


def first_words(lab: Lab, splits: TextSplits, words: int = 6) -> str:
    """Return the first words of the validation text: a prompt that fits the data and half the context."""
    rows = (row.strip() for article in splits.validation for row in article.rows)
    paragraph = next((row for row in rows if row and not row.startswith("=")), "The")
    prompt = " ".join(paragraph.split()[:words])
    while len(lab.encode(prompt)) > lab.context // 2:
        prompt = prompt[: len(prompt) // 2]
    return prompt


def check_disk(job: PreparedRun, folder: Path) -> None:
    """Raises: LabError if the disk has no room for what the run still has to write."""
    there = sum(path.stat().st_size for path in (folder / "checkpoints").rglob("*") if path.is_file())
    needed, free = disk_needed(job.lab, job.config) - there, free_bytes(folder)
    if free < needed:
        raise LabError(
            "the run needs about {needed:,.0f} MB in {folder}, {free:,.0f} MB are free; make room, or choose "
            "another folder for runs",
            needed=needed / 1000000.0,
            folder=folder,
            free=free / 1000000.0,
        )


def free_bytes(folder: Path) -> int:
    """Return the bytes that are free where a folder is, or would be made."""
    there = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    return shutil.disk_usage(there).free


def run_config(job: PreparedRun) -> dict:
    """Return a run's config.json: settings, fingerprints of base model and text, machine."""
    device = job.lab.device
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    machine = {
        "device": f"{device.type} ({gpu})",
        "precision": precision_note(job.config.precision, device),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    text = f"{job.train.digest} {job.split.digest}"
    begun_with = {"base": weights_digest(job.lab.model), "text": text, "processes": job.processes}
    begun_with["train_tokens"] = job.train.n_tokens
    return {**asdict(job.config), **begun_with, "machine": machine, "notes": list(job.notes)}


def config_of(known: dict) -> TrainConfig:
    """Return the settings in a run's config.json. Raises: LabError if there are none."""
    names = {field.name for field in fields(TrainConfig)}
    if not {"model", "data"} <= known.keys():
        raise LabError("config.json names no model and data; start a new run")
    known = {"eval_tokens": "all"} | known  # what a run did that was begun before there was a choice
    return TrainConfig(**{name: value for name, value in known.items() if name in names})

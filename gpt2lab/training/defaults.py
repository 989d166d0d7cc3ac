"""Settings that fit a model and a method, each with its source."""

import json
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from gpt2lab.data.sources import BUILTIN, HUB_MODELS, SHAPES
from gpt2lab.errors import LabError, Message

SMALL = 30_000_000  # parameters; below it are models for a CPU, above it GPT-2's own sizes, 82 M and more


@dataclass(frozen=True)
class Defaults:
    """What a run uses for settings that are not given.

    block_size     tokens per block, at most the model's context
    batch_size     blocks per forward pass · grad_accum  forward passes per optimizer step
    epochs         passes over the training text
    source         where the learning rate comes from
    """

    learning_rate: float
    block_size: int
    batch_size: int
    grad_accum: int
    epochs: float
    source: str

    @property
    def line(self) -> Message:
        """The settings in a line."""
        return Message(
            "learning rate {rate:g}, {tokens:,} tokens per step ({batch} × {accum} blocks of {block}), {passes}",
            rate=self.learning_rate,
            tokens=self.block_size * self.batch_size * self.grad_accum,
            batch=self.batch_size,
            accum=self.grad_accum,
            block=self.block_size,
            passes=Message("1 epoch") if self.epochs == 1 else Message("{epochs:g} epochs", epochs=self.epochs),
        )

    def __str__(self) -> str:
        return str(self.line)


# Blocks: 256 tokens hold a paragraph or three; GPT-2's own sizes get 512, and 1,024 tokens per forward pass, which
# takes 3 to 4 GB for GPT-2 small. Small models pass over a text several times before their validation loss rises.
TABLE = {
    ("small", "full"): Defaults(1e-4, 256, 8, 1, 4, Message("measured on the built-in model and sample")),
    ("small", "lora"): Defaults(5e-4, 256, 8, 1, 4, Message("measured on the built-in model and sample")),
    ("small", "scratch"): Defaults(1e-3, 256, 8, 1, 10, Message("nanoGPT, config/train_shakespeare_char.py")),
    ("gpt2", "full"): Defaults(5e-5, 512, 2, 2, 1, Message("transformers' TrainingArguments and run_clm")),
    ("gpt2", "lora"): Defaults(2e-4, 512, 2, 2, 1, Message("Hu et al. 2021, LoRA, table 11: GPT-2 on E2E")),
    ("gpt2", "scratch"): Defaults(
        3e-4, 512, 2, 8, 10, Message("half of nanoGPT's for GPT-2 124M, for far fewer tokens a step")
    ),
}


def defaults_for(method: str, parameters: int) -> Defaults:
    """Return the settings that fit a method and a number of parameters.

    Example: defaults_for("full", 124_439_808).learning_rate -> 5e-05
    Raises: LabError for an unknown method.
    """
    row = ("small" if parameters < SMALL else "gpt2", method)
    if row not in [*TABLE]:  # a list: a visitor's method may be unhashable
        raise LabError("method {method!r} is unknown; use full, lora, scratch", method=str(method)[:40])
    return TABLE[row]


def parameters_of(config: dict) -> int:
    """Count the parameters of a GPT-2 from its config.json. Example: those of gpt2 -> 124,439,808."""
    shape = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12} | config
    V, T, D, L = (int(shape[name]) for name in ("vocab_size", "n_positions", "n_embd", "n_layer"))
    inner = int(shape.get("n_inner") or 4 * D)
    head = 0 if shape.get("tie_word_embeddings", True) else V * D
    block = 4 * D * D + 4 * D + 2 * D * inner + inner + D + 4 * D  # attention; MLP; two LayerNorms
    return V * D + T * D + L * block + 2 * D + head


def named_parameters(name: str) -> int:
    """Count the parameters of a model by its name, without loading or downloading it.

    A hub model that is not in the cache counts as GPT-2 small, the smallest size class of which the hub's are.
    """
    folder = {"builtin": BUILTIN / "checkpoint", **SHAPES}.get(name, name)
    known = None if name in HUB_MODELS else Path(folder) / "config.json"
    if known is None or not known.is_file():
        known = try_to_load_from_cache(name, "config.json") if name in HUB_MODELS else None
    try:
        return parameters_of(
            json.loads(Path(known).read_text(encoding="utf-8")) if isinstance(known, str | Path) else {}
        )
    except (OSError, ValueError, TypeError) as error:
        raise LabError(
            "The configuration of {name!r} cannot be read ({error}); save the model again.", name=name, error=error
        ) from error

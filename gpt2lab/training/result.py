"""The result of a fine-tuning run, and the model card."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from gpt2lab.errors import LabError
from gpt2lab.files import write_bytes
from gpt2lab.model.lab import Lab
from gpt2lab.results import Summary, perplexity_of, readable
from gpt2lab.training.config import PreparedConfig
from gpt2lab.training.records import check_fields, parse_record, write_json
from gpt2lab.training.validation import Change

METHODS = {
    "full": "All weights",
    "lora": "Low-rank additions, merged into the weights",
    "scratch": "From random weights",
}


CHANGES = {"validation", "whole_validation"}


@dataclass(frozen=True, repr=False)
class FinetuneResult(Summary):
    """Result of a run. Losses are nats per token.

    validation        before and after on the blocks that the run's validations score; None for a paused run
    whole_validation  before and after on the whole validation split, where that was scored too

    model_dir  the fine-tuned model; None for a run that was paused
    steps      done · best_step  the one whose model was kept: the lowest validation loss
    tokens     of text read in training, repeats counted · seconds  of training, evaluations left out
    stopped    it was asked to stop or to pause before its last step
    memory     peak bytes of the first process, or of its GPU; since a run was last resumed
    """

    run: str
    folder: Path
    model_dir: Path | None
    steps: int
    best_step: int
    tokens: int
    seconds: float
    val_loss_before: float | None
    val_loss_after: float | None
    text_before: str
    text_after: str
    prompt: str
    stopped: bool
    memory: int | None = None
    precision: str = "fp32"
    validation: Change | None = None
    whole_validation: Change | None = None

    def __post_init__(self):
        check_fields(self)

    @property
    def tokens_per_second(self) -> float:
        """Tokens trained on per second of training."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def losses(self) -> tuple[float, float]:
        """Validation loss before and after. Raises: LabError where they were not measured, as in a paused run."""
        if self.val_loss_before is None or self.val_loss_after is None:
            raise LabError("run {name!r} has no validation loss before and after training", name=self.run)
        return self.val_loss_before, self.val_loss_after

    @property
    def val_perplexity_before(self) -> float | None:
        """exp(val_loss_before); None where it was not measured."""
        return None if self.val_loss_before is None else perplexity_of(self.val_loss_before)

    @property
    def val_perplexity_after(self) -> float | None:
        """exp(val_loss_after); None where it was not measured."""
        return None if self.val_loss_after is None else perplexity_of(self.val_loss_after)


def write_result(result: FinetuneResult) -> None:
    """Write a result to its run's folder, as result.json."""
    content = asdict(result) | {"folder": None, "model_dir": None}
    write_json(result.folder / "result.json", content)


def read_result(folder: Path) -> FinetuneResult:
    """Read the result of a run. Raises: LabError if there is none yet, or result.json cannot be read."""
    try:
        content = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        if isinstance(content, dict):
            content |= {"run": folder.name, "folder": folder, "model_dir": folder / "model"}
            content |= {name: read_change(content[name]) for name in CHANGES & content.keys()}
        result = parse_record(FinetuneResult, content)
        if None in (result.val_loss_before, result.val_loss_after):
            raise ValueError("it has no losses")
    except FileNotFoundError as error:
        raise LabError("run {name!r} has left no model yet, so there is nothing to report", name=folder.name) from error
    except (OSError, ValueError) as error:
        raise LabError(
            "{folder} cannot be read ({error}), so there is nothing to report",
            folder=folder / "result.json",
            error=error,
        ) from error
    return result


def read_change(content: dict | None) -> Change | None:
    """Return the Change in a result.json, None if there is none. Raises: ValueError if it is damaged."""
    if content is None:
        return None
    change = parse_record(Change, content)
    check_fields(change)
    return change


def write_card(lab: Lab, result: FinetuneResult, config: PreparedConfig, processes: int, folder: Path) -> None:
    """Write the model card of a run into a model's folder, as README.md."""
    write_bytes(folder / "README.md", model_card(lab, result, config, processes).encode())


def model_card(lab: Lab, result: FinetuneResult, config: PreparedConfig, processes: int = 1) -> str:
    """Return the README.md of a fine-tuned model."""
    base = Path(config.model).name if Path(config.model).is_dir() else config.model
    return f"""---
library_name: transformers
base_model: {base}
pipeline_tag: text-generation
---
# {result.run}

`{base}` fine-tuned on `{Path(config.data).name}` with gpt2lab: {lab.shape}.

{change_table(result)}

{METHODS[config.method]}; {result.steps:,} optimizer steps of {config.batch_size * config.grad_accum * processes} blocks
of {config.block_size} tokens ({result.tokens:,} tokens) in {result.seconds:.0f} s on {lab.device.type}. The model after step
{result.best_step:,}, with the lowest validation loss, was kept. AdamW, learning rate {config.learning_rate:g} after a
warm-up over {config.warmup:.0%} of the steps, cosine decay, seed {config.seed}; matrix products in {result.precision}, weights
in fp32.

Perplexity is over disjoint blocks of {config.block_size} tokens. It depends on the tokenizer: compare it only with
models that share this one. Intervals are 95 % bootstrap intervals over blocks.
"""


def change_table(result: FinetuneResult) -> str:
    """Return the validation losses and perplexities of a run as a Markdown table, one row for each part of the split."""
    changes = [change for change in (result.validation, result.whole_validation) if change]
    rows: list[tuple[str, float, float, str]] = [
        (change.part, change.before, change.after, change.relative) for change in changes
    ]
    if not rows:  # of a run that was begun before losses were kept by block
        rows = [("the split", *result.losses, "")]
    lines = [
        f"| {part} | {before:.4f} → {after:.4f} | {readable(perplexity_of(before))} → {readable(perplexity_of(after))} | {change} |"
        for part, before, after, change in rows
    ]
    head = ["| validation on | loss, nats per token | perplexity | change |", "|---|---|---|---|"]
    return "\n".join([*head, *lines])

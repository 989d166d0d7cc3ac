"""What a fine-tuning run came to, and the card that goes with its model. Knows numbers and texts; runs nothing."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from gpt2lab.errors import LabError
from gpt2lab.model import Lab
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.runs import check_fields, record_of, write_json
from gpt2lab.units import perplexity_of

METHODS = {
    "full": "All weights",
    "lora": "Low-rank additions, merged into the weights",
    "scratch": "From random weights",
}


@dataclass(frozen=True)
class FinetuneResult:
    """What a run came to. Losses are nats per token over the whole validation split.

    model_dir  the fine-tuned model; None for a run that was paused
    steps      done · best_step  the one whose model was kept: the lowest validation loss
    tokens     of text read in training, repeats counted · seconds  of training, evaluations left out
    stopped    it was told to stop or to pause before its last step
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

    def __post_init__(self):
        check_fields(self)

    @property
    def tokens_per_second(self) -> float:
        """Tokens trained on per second of training."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def val_perplexity_before(self) -> float | None:
        """exp(val_loss_before); None where it was not measured."""
        return None if self.val_loss_before is None else perplexity_of(self.val_loss_before)

    @property
    def val_perplexity_after(self) -> float | None:
        """exp(val_loss_after); None where it was not measured."""
        return None if self.val_loss_after is None else perplexity_of(self.val_loss_after)


def write_result(result: FinetuneResult) -> None:
    """Keep a result in its run's folder, as result.json."""
    content = asdict(result) | {"folder": None, "model_dir": None}
    write_json(result.folder / "result.json", content)


def read_result(folder: Path) -> FinetuneResult:
    """What a run that left a model came to. Raises: LabError where there is none yet, or result.json cannot be read."""
    try:
        content = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        if isinstance(content, dict):
            content |= {"run": folder.name, "folder": folder, "model_dir": folder / "model"}
        result = record_of(FinetuneResult, content)
        if None in (result.val_loss_before, result.val_loss_after):
            raise ValueError("it has no losses")
    except FileNotFoundError as error:
        raise LabError(f"run {folder.name!r} has left no model yet, so there is nothing to report") from error
    except (OSError, ValueError) as error:
        raise LabError(f"{folder / 'result.json'} cannot be read ({error}), so there is nothing to report") from error
    return result


def model_card(lab: Lab, result: FinetuneResult, config: TrainConfig, processes: int = 1) -> str:
    """The README.md that goes with a fine-tuned model."""
    base = Path(config.model).name if Path(config.model).is_dir() else config.model
    return f"""---
library_name: transformers
base_model: {base}
pipeline_tag: text-generation
---
# {result.run}

`{base}` fine-tuned on `{Path(config.data).name}` with gpt2lab: {lab.shape}.

| | before | after |
|---|---|---|
| validation loss, nats per token | {result.val_loss_before:.4f} | {result.val_loss_after:.4f} |
| validation perplexity | {result.val_perplexity_before:.2f} | {result.val_perplexity_after:.2f} |

{METHODS[config.method]}; {result.steps:,} optimizer steps of {config.batch_size * config.grad_accum * processes} blocks of
{config.block_size} tokens ({result.tokens:,} tokens) in {result.seconds:.0f} s on {lab.device.type}, of which the model
after step {result.best_step:,} was kept, with the lowest validation loss; AdamW, learning rate
{config.learning_rate:g} after a warm-up over {config.warmup:.0%} of the steps, cosine decay, seed {config.seed}.

The perplexity is over disjoint blocks of {config.block_size} tokens of the validation split. It depends on the
tokenizer: compare it only with models that share this one.
"""

"""Fine-tune a GPT-2: blocks in, a run folder with a model out, through transformers' Trainer.

Knows blocks, models and run folders; nothing of pages and pictures.
"""

import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import exp, isfinite
from pathlib import Path

import torch
import transformers
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments

from gpt2lab.blocks import IGNORED, Blocks, pack, token_ids
from gpt2lab.errors import LabError
from gpt2lab.model import Lab, load_model, token_nll
from gpt2lab.sampling import generate
from gpt2lab.sources import resolve_auto
from gpt2lab.text import TextSplits, load_text
from gpt2lab.training import runs
from gpt2lab.training.config import TrainConfig

DEFAULT_BLOCK = 256
EVALUATIONS = 10
TRAIN_LOSS_POINTS = 100  # on the loss curve: as many as can be told apart
STATUS_SECONDS = 1.0  # between heartbeats
SAMPLE_TOKENS = 60


@dataclass(frozen=True)
class FinetuneResult:
    """What a run came to. Losses are nats per token over the whole validation split.

    tokens   read in training, repeats counted · seconds  of training, evaluations left out
    stopped  it was told to stop before its last step
    """

    run: str
    folder: Path
    model_dir: Path
    steps: int
    tokens: int
    seconds: float
    val_loss_before: float
    val_loss_after: float
    text_before: str
    text_after: str
    prompt: str
    stopped: bool

    @property
    def tokens_per_second(self) -> float:
        """Tokens trained on per second of training."""
        return self.tokens / self.seconds

    @property
    def val_perplexity_before(self) -> float:
        """exp(val_loss_before)."""
        return exp(self.val_loss_before)

    @property
    def val_perplexity_after(self) -> float:
        """exp(val_loss_after)."""
        return exp(self.val_loss_after)


class LabTrainer(Trainer):
    """transformers' Trainer with an evaluation loss that is the exact mean over tokens.

    Its own is a mean over blocks, in which a padded block counts as much as a full one.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, compute_metrics=mean_over_tokens, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Per block, the NLL summed in nats and the count of predicted tokens: (B, 2)."""
        inputs = self._prepare_inputs(inputs)
        ids, labels = inputs["input_ids"], inputs["labels"][:, 1:]
        counted = labels != IGNORED
        nll = token_nll(self.accelerator.unwrap_model(model), ids) * counted
        sums = torch.stack([nll.double().sum(1), counted.sum(1)], dim=1)
        return None, sums, labels[:, :1]


def mean_over_tokens(prediction) -> dict[str, float]:
    """The sums of all blocks → {"loss": nats per token}."""
    nll, tokens = prediction.predictions.sum(0)
    return {"loss": nll / tokens}


def finetune(
    config: TrainConfig | None = None,
    *,
    run: str | None = None,
    runs_dir: str | Path = "runs",
    on_start: Callable[[Path], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    **settings,
) -> FinetuneResult:
    """Fine-tune a model on a text's train split; validation loss before, during and after.

    config       a TrainConfig; or give its fields here: model="builtin", data="sample", epochs=1
    run          the run's id; made from date, model, data and a word otherwise
    runs_dir     where run folders are
    on_start     called with the run's folder once it is there, to watch it from elsewhere
    should_stop  asked after every optimizer step; on True the run ends, and its model is kept

    Returns a FinetuneResult; the model is in `model_dir`, ready for load_model.
    Raises: LabError for bad settings, before anything is written; RuntimeError where the loss
    stops being a number (the run is then marked as failed).
    """
    config = config or TrainConfig(**settings)
    model, data = resolve_auto(config.model, config.data)
    config = replace(config, model=model, data=data)
    lab, splits = load_model(model), load_text(data)
    train, validation, config = prepare(lab, splits, config)
    folder = runs.new_run(Path(runs_dir), {**asdict(config), "machine": machine(lab)}, run)
    if on_start:
        on_start(folder)
    watch = RunWatch(folder, config, should_stop)
    try:
        return _train(lab, train, validation, config, folder, watch)
    except BaseException as error:
        watch.write("failed", message=f"{type(error).__name__}: {error}")
        raise


def prepare(lab: Lab, splits: TextSplits, config: TrainConfig) -> tuple[Blocks, Blocks, TrainConfig]:
    """Blocks to train on and to validate on, and the config with its defaults filled in.

    Raises: LabError where a block is longer than the context, or a split shorter than a block.
    """
    block = config.block_size or min(DEFAULT_BLOCK, lab.context)
    if block > lab.context:
        raise LabError(f"a block of {block:,} tokens is past the context of {lab.name}, {lab.context:,}; use less")
    train, validation = (pack(token_ids(lab.tokenizer, splits.split(name)), block) for name in ("train", "validation"))
    per_epoch = -(-len(train) // (config.batch_size * config.grad_accum))
    steps = config.steps or max(1, round((config.epochs or 1) * per_epoch))
    return (
        train,
        validation,
        replace(
            config,
            block_size=block,
            steps=steps,
            epochs=None,
            eval_every=config.eval_every or max(1, steps // EVALUATIONS),
            prompt=config.prompt or first_words(splits),
        ),
    )


def first_words(splits: TextSplits, words: int = 6) -> str:
    """The beginning of the validation text's first paragraph: a prompt that fits the data."""
    rows = (row.strip() for article in splits.validation for row in article.rows)
    paragraph = next((row for row in rows if row and not row.startswith("=")), "The")
    return " ".join(paragraph.split()[:words])


def machine(lab: Lab) -> dict:
    """Where a run took place, for its config.json."""
    device = torch.cuda.get_device_name(lab.device) if lab.device.type == "cuda" else platform.machine()
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return {"device": f"{lab.device.type} ({device})", "threads": torch.get_num_threads(), **versions}


def _train(lab, train, validation, config, folder, watch) -> FinetuneResult:
    use_fast_attention(lab.model)
    sample = {"max_new_tokens": SAMPLE_TOKENS, "temperature": 0.8, "top_p": 0.95, "seed": config.seed}
    before = generate(lab, config.prompt, **sample)
    watch.sample(0, before.text)
    with tempfile.TemporaryDirectory() as scratch:  # Trainer wants a folder of its own; nothing stays in it
        trainer = LabTrainer(
            model=lab.model,
            args=training_arguments(config, scratch, lab),
            train_dataset=train,
            eval_dataset=validation,
            callbacks=[watch],
        )
        for callback in (transformers.PrinterCallback, transformers.trainer_callback.ProgressCallback):
            trainer.remove_callback(callback)
        trainer.train()
        if watch.evaluated_at != trainer.state.global_step:
            trainer.evaluate()
    lab.model.eval()
    after = generate(lab, config.prompt, **sample)
    watch.sample(watch.step, after.text)
    result = FinetuneResult(
        run=folder.name,
        folder=folder,
        model_dir=folder / "model",
        steps=watch.step,
        tokens=watch.tokens,
        seconds=watch.training_seconds,
        val_loss_before=watch.validation[0],
        val_loss_after=watch.validation[-1],
        text_before=before.text,
        text_after=after.text,
        prompt=config.prompt,
        stopped=watch.step < config.steps,
    )
    save_model(lab, result, config)
    watch.write("stopped" if result.stopped else "finished")
    return result


def training_arguments(config: TrainConfig, scratch: str, lab: Lab) -> TrainingArguments:
    """Our settings in transformers' words."""
    return TrainingArguments(
        output_dir=scratch,
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.grad_accum,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup,  # below 1: a share of the steps
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        eval_on_start=True,  # the baseline at step 0
        eval_strategy="steps",
        eval_steps=config.eval_every,
        logging_steps=max(1, config.steps // TRAIN_LOSS_POINTS),
        save_strategy="no",
        include_num_input_tokens_seen=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=lab.device.type == "cuda",
        use_cpu=lab.device.type == "cpu",
    )


def use_fast_attention(model) -> None:
    """Turn dropout on attention weights off: PyTorch's fast CPU attention has none, and falls back to the slow path.

    Dropout on embeddings and residuals stays. The configuration that is saved is not changed.
    """
    for block in model.transformer.h:
        block.attn.attn_dropout.p = 0.0


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
        self.bar = tqdm(total=self.config.steps, unit="step", desc="fine-tune")

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

    def on_log(self, args, state, control, logs, **kwargs):
        if "loss" in logs:
            self.record("train", float(logs["loss"]), float(logs["learning_rate"]))

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.evaluated_at = state.global_step
        self.validation.append(float(metrics["eval_loss"]))
        self.record("validation", self.validation[-1], self.learning_rate)

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()

    def summary(self) -> str:
        """Speed and quality so far, for the progress bar."""
        return (
            f"{self.tokens / self.training_seconds:,.0f} tokens/s, validation perplexity {exp(self.validation[-1]):.1f}"
        )

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


def save_model(lab: Lab, result: FinetuneResult, config: TrainConfig) -> None:
    """Write `model/` with its card, whole or not at all."""
    partial = result.folder / "model.partial"
    lab.model.save_pretrained(partial)
    lab.tokenizer.save_pretrained(partial)
    (partial / "README.md").write_text(model_card(lab, result, config), encoding="utf-8")
    shutil.rmtree(result.model_dir, ignore_errors=True)
    partial.rename(result.model_dir)


def model_card(lab: Lab, result: FinetuneResult, config: TrainConfig) -> str:
    """The README.md that goes with a fine-tuned model."""
    return f"""---
library_name: transformers
base_model: {Path(config.model).name}
pipeline_tag: text-generation
---
# {result.run}

`{Path(config.model).name}` fine-tuned on `{Path(config.data).name}` with gpt2lab: {lab.shape}.

| | before | after |
|---|---|---|
| validation loss, nats per token | {result.val_loss_before:.4f} | {result.val_loss_after:.4f} |
| validation perplexity | {result.val_perplexity_before:.2f} | {result.val_perplexity_after:.2f} |

{result.steps:,} optimizer steps of {config.batch_size * config.grad_accum} blocks of {config.block_size} tokens
({result.tokens:,} tokens) in {result.seconds:.0f} s on {lab.device.type}; AdamW, learning rate
{config.learning_rate:g} after a warm-up over {config.warmup:.0%} of the steps, cosine decay, seed {config.seed}.

The perplexity is over disjoint blocks of {config.block_size} tokens of the validation split. It depends on the
tokenizer: compare it only with models that share this one.
"""

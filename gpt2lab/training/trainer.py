"""Fine-tune a GPT-2: blocks in, a run folder with a model out, through transformers' Trainer.

Knows blocks, models and run folders; nothing of pages and pictures.
"""

import platform
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import torch
import transformers
from transformers import Trainer, TrainingArguments

from gpt2lab.blocks import IGNORED, Blocks, pack, token_ids
from gpt2lab.errors import LabError
from gpt2lab.model import Lab, load_model, token_nll
from gpt2lab.sampling import generate
from gpt2lab.sources import resolve_auto
from gpt2lab.text import TextSplits, load_text
from gpt2lab.training import runs
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.result import FinetuneResult, model_card
from gpt2lab.training.watch import RunWatch

DEFAULT_BLOCK = 256
EVALUATIONS = 10
TRAIN_LOSS_POINTS = 100  # on the loss curve: as many as can be told apart
SAMPLE_TOKENS = 60


class LabTrainer(Trainer):
    """transformers' Trainer, exact about tokens: padding is neither read nor scored.

    Its own evaluation loss is a mean over blocks, in which a padded block counts as much as a full one.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, compute_metrics=mean_over_tokens, **kwargs)

    def training_step(self, model, inputs, num_items_in_batch=None):
        """As transformers', and the tokens of text are counted."""
        self.state.num_input_tokens_seen += int((inputs["labels"] != IGNORED).sum())
        return super().training_step(model, inputs, num_items_in_batch)

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
    if config and settings:
        raise TypeError(f"both a config and {', '.join(settings)} are given; give one of them")
    config = config or TrainConfig(**settings)
    model, data = resolve_auto(config.model, config.data)
    config = replace(config, model=model, data=data)
    lab, splits = load_model(model), load_text(data)
    train, validation, config = prepare(lab, splits, config)
    folder = runs.new_run(Path(runs_dir), {**asdict(config), "machine": machine(lab)}, run)
    watch = RunWatch(folder, config, should_stop)
    if on_start:
        on_start(folder)
    try:
        return _train(lab, train, validation, config, folder, watch)
    except BaseException as error:
        with suppress(OSError):  # a full disk may be the very reason; the error itself is told
            watch.close("failed", f"{type(error).__name__}: {error}")
        raise


def prepare(lab: Lab, splits: TextSplits, config: TrainConfig) -> tuple[Blocks, Blocks, TrainConfig]:
    """Blocks to train on and to validate on, and the config with its defaults filled in.

    Raises: LabError where a block is longer than the context, a split shorter than a block, or the prompt does not fit.
    """
    block = config.block_size or min(DEFAULT_BLOCK, lab.context)
    if block > lab.context:
        raise LabError(f"a block of {block:,} tokens is past the context of {lab.name}, {lab.context:,}; use less")
    train, validation = (pack(token_ids(lab.tokenizer, splits.split(name)), block) for name in ("train", "validation"))
    prompt = config.prompt or first_words(lab, splits)
    lab.encode_prompt(prompt, room=1)
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
            prompt=prompt,
        ),
    )


def first_words(lab: Lab, splits: TextSplits, words: int = 6) -> str:
    """The beginning of the validation text's first paragraph: a prompt that fits the data and half the context."""
    rows = (row.strip() for article in splits.validation for row in article.rows)
    paragraph = next((row for row in rows if row and not row.startswith("=")), "The")
    prompt = " ".join(paragraph.split()[:words])
    while len(lab.encode(prompt)) > lab.context // 2:
        prompt = prompt[: len(prompt) // 2]
    return prompt


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
    watch.close("stopped" if result.stopped else "finished")
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
        warmup_steps=int(config.warmup * config.steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        eval_on_start=True,  # the baseline at step 0
        eval_strategy="steps",
        logging_nan_inf_filter=False,  # a loss that is not a number ends the run, and is not glossed over
        eval_steps=config.eval_every,
        logging_steps=max(1, config.steps // TRAIN_LOSS_POINTS),
        save_strategy="no",
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


def save_model(lab: Lab, result: FinetuneResult, config: TrainConfig) -> None:
    """Write `model/` with its card, whole or not at all."""
    partial = result.folder / "model.partial"
    lab.model.save_pretrained(partial)
    lab.tokenizer.save_pretrained(partial)
    (partial / "README.md").write_text(model_card(lab, result, config), encoding="utf-8")
    shutil.rmtree(result.model_dir, ignore_errors=True)
    partial.rename(result.model_dir)

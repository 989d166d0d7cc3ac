"""transformers' Trainer with exact token counts, and its arguments from our settings."""

from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from transformers import Trainer, TrainingArguments

from gpt2lab.data.blocks import IGNORED
from gpt2lab.model.lab import Lab, token_nll, without_peft_warning
from gpt2lab.model.precision import autocast, resolve_precision, train_attention_in_fp32
from gpt2lab.training.config import PreparedConfig, TrainConfig
from gpt2lab.training.validation import block_sums
from gpt2lab.training.watch import Interrupted, LossMeter

TRAIN_LOSS_POINTS = 100  # on the loss curve: as many as can be distinguished


class LabTrainer(Trainer):
    """transformers' Trainer, exact about tokens: padding is neither read nor scored.

    Its own evaluation loss is a mean over blocks, in which a padded block counts as much as a full
    one. Validation here leaves the random numbers of training as they were.
    """

    def __init__(self, *args, meter: LossMeter | None = None, callbacks=(), **kwargs):
        self.meter = meter or LossMeter()
        super().__init__(*args, compute_metrics=self.mean_over_tokens, callbacks=[self.meter, *callbacks], **kwargs)

    def mean_over_tokens(self, prediction) -> dict[str, float]:
        """Return {"loss": nats per token} of a validation, and keep the sums of its blocks, (N, 2), in the meter."""
        self.meter.blocks = prediction.predictions
        nll, tokens = self.meter.blocks.sum(0)
        return {"loss": nll / tokens}

    def training_step(self, model, inputs, num_items_in_batch=None):
        """As transformers'; its loss and its tokens of text are counted, over all processes."""
        tokens = (inputs["labels"] != IGNORED).sum()
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.args.world_size > 1:
            loss, tokens = self.accelerator.reduce(loss, "mean"), self.accelerator.reduce(tokens.to(loss.device), "sum")
        self.meter.add(loss, tokens)
        return loss

    def log(self, logs, start_time=None):
        """As transformers', with the training loss exact across a resume."""
        if "loss" in logs:
            logs["loss"] = self.meter.take(self.state.global_step)
        super().log(logs, start_time)

    def evaluate(self, *args, **kwargs):
        """As transformers'. If a stop is requested meanwhile, the run saves its state and ends."""
        began_at = self.state.global_step
        with torch.random.fork_rng():
            try:
                return super().evaluate(*args, **kwargs)
            except Interrupted:
                if began_at == getattr(self, "_initial_global_step", 0):
                    raise  # nothing new to save
        self.control.should_training_stop = self.control.should_save = True
        return {}

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Per block, the NLL summed in nats and the count of predicted tokens: (B, 2)."""
        inputs = self._prepare_inputs(inputs)
        with autocast("bf16" if self.args.bf16 else "fp32", self.args.device):
            nll = self.token_nll(model, inputs["input_ids"])
        sums = block_sums(nll, inputs["labels"])
        return None, sums, inputs["labels"][:, :1]  # without labels the Trainer would not compute metrics

    def token_nll(self, model, ids: torch.Tensor) -> torch.Tensor:
        """The package's own NLL of ids (B, T), (B, T - 1); of a model in shards, by a forward pass that gathers them."""
        if self.is_fsdp_enabled:
            with torch.no_grad():
                logits = model(input_ids=ids).logits[:, :-1].float()  # (B, T - 1, V)
            return F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        plain = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        return token_nll(plain.get_base_model() if hasattr(plain, "get_base_model") else plain, ids)

    def whole_weights(self, checkpoint: Path | None) -> dict[str, torch.Tensor]:
        """The model's weights by name, put together where they are in shards: all processes take part.

        checkpoint  the weights are put back to what they were at it; None: they are those of now
        """
        if checkpoint:
            self.state.best_model_checkpoint = str(checkpoint)
            self._load_best_model()
        return self.accelerator.get_state_dict(self.model)


def trainable(lab: Lab, config: TrainConfig) -> torch.nn.Module:
    """Prepare the lab's model for training; for "lora", add the adapter."""
    transformers.set_seed(config.seed)
    use_fast_attention(lab, config.precision)
    if lab.model.config.tie_word_embeddings:
        lab.model._keys_to_ignore_on_save = ["lm_head.weight"]  # in no checkpoint, and not to be missed there
    if config.method != "lora":
        return lab.model
    import peft

    additions = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_rank,
        lora_alpha=2 * config.lora_rank,
        target_modules=["c_attn"],
        fan_in_fan_out=True,  # GPT-2's Conv1D holds its weights transposed
    )
    with without_peft_warning():
        return peft.get_peft_model(lab.model, additions)


def use_fast_attention(lab: Lab, precision: str) -> None:
    """Turn dropout on attention weights off: PyTorch's fast CPU attention has none, and falls back to the slow path.

    Dropout on embeddings and residuals stays. The configuration that is saved is not changed.
    """
    for block in lab.model.transformer.h:
        block.attn.attn_dropout.p = 0.0
    if lab.device.type == "cpu" and resolve_precision(precision, lab.device) == "bf16":
        train_attention_in_fp32(lab.model)


def training_arguments(
    config: PreparedConfig, checkpoints: Path, lab: Lab, *, evaluates_first: bool = True
) -> TrainingArguments:
    """Return TrainingArguments for the settings of a prepared run."""
    on_cpu = lab.device.type == "cpu"
    return TrainingArguments(
        output_dir=str(checkpoints),
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
        data_seed=config.seed,
        bf16=resolve_precision(config.precision, lab.device) == "bf16",  # by autocast; weights stay float32
        activation_checkpointing=config.gradient_checkpointing,
        torch_compile=config.compile,
        eval_on_start=evaluates_first,  # the baseline at step 0
        eval_strategy="steps",
        logging_nan_inf_filter=False,  # a loss that is not a number ends the run, and is not glossed over
        eval_steps=config.eval_every,
        logging_steps=max(1, config.steps // TRAIN_LOSS_POINTS),
        save_strategy="no",  # RunWatch says when, and which are kept
        report_to=config.report_to,
        project="gpt2lab",
        run_name=checkpoints.parent.name,
        disable_tqdm=True,
        dataloader_pin_memory=lab.device.type == "cuda",
        ddp_find_unused_parameters=False,
        use_cpu=on_cpu,
    )

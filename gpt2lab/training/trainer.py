"""Fine-tune a GPT-2: blocks in, a run folder with a model out, through transformers' Trainer.

Under torchrun or accelerate, every process runs this, and the first one writes.
Knows blocks, models and run folders; nothing of pages and pictures.
"""

import importlib.util
import platform
import shutil
import zipfile
from collections.abc import Callable
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import safetensors.torch
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import GPT2LMHeadModel, Trainer, TrainingArguments

from gpt2lab.blocks import IGNORED, Blocks, pack, token_ids
from gpt2lab.errors import LabError
from gpt2lab.model import Lab, load_model, token_nll
from gpt2lab.sampling import generate
from gpt2lab.sources import resolve_auto
from gpt2lab.text import TextSplits, load_text
from gpt2lab.training import jobs, runs
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.result import FinetuneResult, model_card, write_result
from gpt2lab.training.watch import Interrupted, LossMeter, RunWatch, best_step, out_of_patience

DEFAULT_BLOCK = 256
EVALUATIONS = 10
TRAIN_LOSS_POINTS = 100  # on the loss curve: as many as can be told apart
SAMPLE_TOKENS = 60
CHECKPOINTS_KEPT = 2  # the last and the best


class LabTrainer(Trainer):
    """transformers' Trainer, exact about tokens: padding is neither read nor scored.

    Its own evaluation loss is a mean over blocks, in which a padded block counts as much as a full
    one. Validation here leaves the random numbers of training as they were.
    """

    def __init__(self, *args, meter: LossMeter | None = None, callbacks=(), **kwargs):
        self.meter = meter or LossMeter()
        super().__init__(*args, compute_metrics=mean_over_tokens, callbacks=[self.meter, *callbacks], **kwargs)

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
        """As transformers'. Told to stop in its midst, the run saves what training had come to, and ends."""
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
        ids, labels = inputs["input_ids"], inputs["labels"][:, 1:]
        counted = labels != IGNORED
        plain = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        plain = plain.get_base_model() if hasattr(plain, "get_base_model") else plain
        nll = token_nll(plain, ids) * counted
        sums = torch.stack([nll.double().sum(1), counted.sum(1)], dim=1)
        return None, sums, labels[:, :1]  # without labels the Trainer would not compute metrics


def mean_over_tokens(prediction) -> dict[str, float]:
    """The sums of all blocks → {"loss": nats per token}."""
    nll, tokens = prediction.predictions.sum(0)
    return {"loss": nll / tokens}


@dataclass(frozen=True, eq=False)
class Job:
    """All that a run needs before it begins."""

    lab: Lab
    train: Blocks
    validation: Blocks
    config: TrainConfig


def finetune(
    config: TrainConfig | None = None,
    *,
    run: str | None = None,
    runs_dir: str | Path = "runs",
    on_start: Callable[[Path], None] | None = None,
    queue: bool = False,
    **settings,
) -> FinetuneResult | None:
    """Fine-tune a model on a text's train split; validation loss before, during and after.

    config    a TrainConfig; or give its fields here: model="builtin", data="sample", epochs=1
    run       the run's id; made from date, model, data and a word otherwise
    runs_dir  where run folders are
    on_start  called with the run's folder once it is there, to watch it from elsewhere
    queue     where another run is training on this machine: wait for it

    Returns a FinetuneResult; the model is in `model_dir`, ready for load_model. Of several processes,
    only the first returns it.
    Raises: LabError for bad settings, or while another run holds the machine, before anything is
    written; RuntimeError where the loss stops being a number (the run is then marked as failed).
    """
    if config and settings:
        raise TypeError(f"both a config and {', '.join(settings)} are given; give one of them")
    config = config or TrainConfig(**settings)
    model, data = resolve_auto(config.model, config.data)
    process = PartialState(cpu=not torch.cuda.is_available())
    with held(process, None, queue):
        job = prepare(replace(config, model=model, data=data), process)
        in_all(process, lambda: check_disk(job, Path(runs_dir)))
        folder = in_all(process, lambda: runs.new_run(Path(runs_dir), described(job), run))
        in_all(process, lambda: jobs.sign(folder))
        if on_start:
            on_start(folder)
        return train(job, folder, process)


def resume(folder: str | Path, *, queue: bool = False) -> FinetuneResult | None:
    """Go on with a run that was stopped, failed or crashed, or that waits to be started; as `finetune` returns.

    On a CPU the model that comes out is the same, to the last bit, as that of a run never interrupted.

    Raises: LabError for a run that is finished or at work, whose settings cannot be read, or whose text has changed.
    """
    folder = Path(folder)
    process = PartialState(cpu=not torch.cuda.is_available())
    in_all(process, lambda: jobs.reopen(folder))
    try:
        with held(process, folder, queue):
            known = runs.read_config(folder)
            job = prepare(config_of(known), process)
            if known.get("text") not in (None, digest(job)):
                raise LabError(f"the text of run {folder.name!r} has changed since it began; start a new run")
            in_all(process, lambda: runs.write_json(folder / "config.json", known | described(job)))
            return train(job, folder, process)
    except LabError as error:
        state, reason = "stopped" if runs.wish(folder) else "failed", str(error)
        in_all(process, lambda: jobs.mark(folder, state, reason))
        raise


@contextmanager
def held(process: PartialState, folder: Path | None, queue: bool):
    """The machine held for one run, by the first of its processes."""
    with ExitStack() as stack:
        lock = jobs.machine_lock(folder, queue=queue)
        in_all(process, lambda: stack.enter_context(lock))
        yield


def in_all(process: PartialState, make: Callable):
    """What `make` returns in the first process, in every process; its LabError is raised in all of them."""
    answer = [None]
    if process.is_main_process:
        try:
            answer = [make()]
        except LabError as error:
            answer = [error]
    if process.num_processes > 1:
        broadcast_object_list(answer)
    if isinstance(answer[0], LabError):
        raise answer[0]
    return answer[0]


def prepare(config: TrainConfig, process: PartialState) -> Job:
    """Model, blocks, and the config with its defaults filled in.

    Raises: LabError where a block is longer than the context, a split shorter than a block, the prompt does not
    fit, or report_to names what is not installed.
    """
    lab, splits = load_model(config.model, device=process.device), load_text(config.data)
    block = config.block_size or min(DEFAULT_BLOCK, lab.context)
    if block > lab.context:
        raise LabError(f"a block of {block:,} tokens is past the context of {lab.name}, {lab.context:,}; use less")
    if config.report_to != "none" and not importlib.util.find_spec(config.report_to):
        raise LabError(f"report_to {config.report_to!r} is not installed; pip install {config.report_to}")
    train, validation = (pack(token_ids(lab.tokenizer, splits.split(name)), block) for name in ("train", "validation"))
    prompt = config.prompt or first_words(lab, splits)
    lab.encode_prompt(prompt, room=1)
    per_epoch = -(-len(train) // (config.batch_size * config.grad_accum * process.num_processes))
    steps = config.steps or max(1, round((config.epochs or 1) * per_epoch))
    eval_every = config.eval_every or max(1, steps // EVALUATIONS)
    filled = {"block_size": block, "steps": steps, "epochs": None, "prompt": prompt, "eval_every": eval_every}
    return Job(lab, train, validation, replace(config, **filled, save_every=config.save_every or eval_every))


def first_words(lab: Lab, splits: TextSplits, words: int = 6) -> str:
    """The beginning of the validation text's first paragraph: a prompt that fits the data and half the context."""
    rows = (row.strip() for article in splits.validation for row in article.rows)
    paragraph = next((row for row in rows if row and not row.startswith("=")), "The")
    prompt = " ".join(paragraph.split()[:words])
    while len(lab.encode(prompt)) > lab.context // 2:
        prompt = prompt[: len(prompt) // 2]
    return prompt


def disk_needed(lab: Lab, config: TrainConfig) -> int:
    """Bytes that a run's folder takes at most: checkpoints with AdamW's two moments, and the model."""
    parameters = lab.model.num_parameters()
    c = lab.model.config
    trained = config.lora_rank * 4 * c.n_embd * c.n_layer if config.method == "lora" else parameters
    return (CHECKPOINTS_KEPT + 1) * 12 * trained + 4 * parameters


def free_bytes(folder: Path) -> int:
    """Bytes free where a folder is, or would be made."""
    there = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    return shutil.disk_usage(there).free


def check_disk(job: Job, folder: Path) -> None:
    """Raises: LabError where a run would not find room."""
    needed, free = disk_needed(job.lab, job.config), free_bytes(folder)
    if free < needed:
        raise LabError(
            f"the run needs about {needed / 1e6:,.0f} MB in {folder}, {free / 1e6:,.0f} MB are free; "
            "make room, or choose another folder for runs"
        )


def described(job: Job) -> dict:
    """A run's config.json: what it was told, what it trains on, and the machine it runs on."""
    device = job.lab.device
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    machine = {
        "device": f"{device.type} ({gpu})",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return {**asdict(job.config), "text": digest(job), "machine": machine}


def digest(job: Job) -> str:
    """A fingerprint of what a run trains on and is validated on."""
    return f"{job.train.digest} {job.validation.digest}"


def config_of(known: dict) -> TrainConfig:
    """The settings in a run's config.json. Raises: LabError where they are none."""
    names = {field.name for field in fields(TrainConfig)}
    if not {"model", "data"} <= known.keys():
        raise LabError("config.json names no model and data; start a new run")
    return TrainConfig(**{name: value for name, value in known.items() if name in names})


def train(job: Job, folder: Path, process: PartialState) -> FinetuneResult | None:
    """Train from the last checkpoint, or from the beginning, to the end or to a wish to stop."""
    lab, config = job.lab, job.config
    meter = LossMeter()
    watch = RunWatch(
        folder,
        config,
        meter,
        writes=process.is_main_process,
        agree=lambda wish: in_all(process, lambda: wish),
        sample=lambda: sample_text(lab, config),
        is_finite=lambda: all(parameter.isfinite().all() for parameter in lab.model.parameters()),
    )
    watch.write("running")
    try:
        checkpoint = in_all(process, lambda: go_back(folder, config))
        trainer = LabTrainer(
            model=trainable(lab, config),
            args=training_arguments(config, folder / "checkpoints", lab, evaluates_first=is_due(checkpoint, config)),
            train_dataset=job.train,
            eval_dataset=job.validation,
            meter=meter,
            callbacks=[watch],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        with suppress(Interrupted):
            trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        return conclude(job, trainer, watch)
    except KeyboardInterrupt:
        watch.close("stopped", "interrupted; resume goes on from the last checkpoint")
        raise
    except BaseException as error:
        if process.is_main_process:
            drop_torn_checkpoints(folder)  # first of all: it makes room where the disk is full
        with suppress(OSError):
            watch.close("failed", f"{type(error).__name__}: {error}")
        raise


def conclude(job: Job, trainer: LabTrainer, watch: RunWatch) -> FinetuneResult | None:
    """The best model saved with its card, and the last word on the run; after a pause, only the last word."""
    lab, config, folder = job.lab, job.config, watch.folder
    watch.closing = True
    paused = watch.wish == "pause"
    if not paused and watch.step not in watch.validation:
        trainer.evaluate()
    if not watch.writes:
        return None
    best = watch.best_step
    if not paused and best not in (None, watch.step):
        restore(trainer.model, folder / "checkpoints" / f"checkpoint-{best}")
    samples = {line["step"]: line["text"] for line in runs.read_lines(folder / "samples.jsonl")}
    result = FinetuneResult(
        run=folder.name,
        folder=folder,
        model_dir=None if paused else folder / "model",
        steps=watch.step,
        best_step=best or 0,
        tokens=watch.tokens,
        seconds=watch.training_seconds,
        val_loss_before=watch.validation.get(0),
        val_loss_after=watch.validation.get(best or 0),
        text_before=samples.get(0, ""),
        text_after=samples.get(best or 0, ""),
        prompt=config.prompt,
        stopped=watch.wish is not None,
    )
    if paused:
        watch.close("stopped", f"paused at step {watch.step}; resume goes on from there")
        return result
    save_model(lab, trainer.model, result, config)
    write_result(result)
    early = out_of_patience(watch.validation, config.patience) and watch.step < config.steps
    reason = f"no better validation loss for {config.patience} validations; " if early else ""
    kept = f"{reason}the model is that of step {best}" if best not in (None, watch.step) else ""
    watch.close("stopped" if result.stopped else "finished", kept)
    return result


def go_back(folder: Path, config: TrainConfig) -> Path | None:
    """The newest whole checkpoint from which something is left to do, or None; what came after it is forgotten."""
    found, validated = None, set()
    for checkpoint in runs.whole_checkpoints(folder):
        validation = validated_in(checkpoint)
        best = best_step(validation)
        kept = best is None or is_readable(checkpoint.with_name(f"checkpoint-{best}"))
        done = step_of(checkpoint) >= config.steps or out_of_patience(validation, config.patience)
        if kept and not done and is_readable(checkpoint):
            found, validated = checkpoint, set(validation)
            break
    step = step_of(found) if found else 0
    for path in (folder / "checkpoints").glob("checkpoint-*"):
        if path != found and (not found or not path.name.removeprefix("checkpoint-").isdigit() or step_of(path) > step):
            shutil.rmtree(path)
    runs.rewind(folder, step, validated)
    return found


def step_of(checkpoint: Path) -> int:
    """The optimizer steps done at a checkpoint, from its name."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def validated_in(checkpoint: Path | None) -> dict[int, float]:
    """Step → validation loss, as known at a checkpoint."""
    if checkpoint is None:
        return {}
    kept = runs.checkpoint_state(checkpoint).get("stateful_callbacks", {}).get("RunWatch", {}).get("attributes", {})
    return dict(kept.get("validation", []))


def is_due(checkpoint: Path | None, config: TrainConfig) -> bool:
    """Whether the step that training goes on from is still to be validated."""
    step = step_of(checkpoint) if checkpoint else 0
    return step % config.eval_every == 0 and step not in validated_in(checkpoint)


def is_readable(checkpoint: Path) -> bool:
    """Whether the weights and the optimizer's state of a checkpoint can be opened."""
    try:
        for file in checkpoint.glob("*.safetensors"):
            with safetensors.safe_open(file, framework="pt"):
                pass
        random = list(checkpoint.glob("rng_state*.pth"))  # one per process
        states = [checkpoint / "optimizer.pt", checkpoint / "scheduler.pt", *random]
        return bool(random) and any(checkpoint.glob("*.safetensors")) and all(map(zipfile.is_zipfile, states))
    except (OSError, safetensors.SafetensorError):
        return False


def drop_torn_checkpoints(folder: Path) -> None:
    """Remove checkpoints that were not written to the end."""
    whole = runs.whole_checkpoints(folder)
    for path in (folder / "checkpoints").glob("checkpoint-*"):
        if path not in whole:
            shutil.rmtree(path, ignore_errors=True)


def trainable(lab: Lab, config: TrainConfig) -> torch.nn.Module:
    """The lab's model made ready: random weights for "scratch", low-rank additions inside it for "lora"."""
    transformers.set_seed(config.seed)
    use_fast_attention(lab.model)
    if config.method == "scratch":
        lab.model.load_state_dict(GPT2LMHeadModel(lab.model.config).state_dict())
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
    return peft.get_peft_model(lab.model, additions)


def restore(model: torch.nn.Module, checkpoint: Path) -> None:
    """Put a checkpoint's weights, or its low-rank additions, back into the model."""
    adapter = checkpoint / "adapter_model.safetensors"
    if adapter.is_file():
        import peft

        peft.set_peft_model_state_dict(model, safetensors.torch.load_file(adapter))
    else:
        safetensors.torch.load_model(model, checkpoint / "model.safetensors", device=str(model.device))


def sample_text(lab: Lab, config: TrainConfig) -> str:
    """A text with the run's prompt and seed, by the model as it is now."""
    was_training = lab.model.training
    lab.model.eval()
    text = generate(
        lab, config.prompt, max_new_tokens=SAMPLE_TOKENS, temperature=0.8, top_p=0.95, seed=config.seed
    ).text
    lab.model.train(was_training)
    return text


def training_arguments(
    config: TrainConfig, checkpoints: Path, lab: Lab, *, evaluates_first: bool = True
) -> TrainingArguments:
    """Our settings in transformers' words."""
    on_cpu = lab.device.type == "cpu"
    bf16 = config.precision == "bf16" or (
        config.precision == "auto" and lab.device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
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
        bf16=bf16,
        activation_checkpointing=config.gradient_checkpointing,
        torch_compile=config.compile,
        eval_on_start=evaluates_first,  # the baseline at step 0
        eval_strategy="steps",
        logging_nan_inf_filter=False,  # a loss that is not a number ends the run, and is not glossed over
        eval_steps=config.eval_every,
        logging_steps=max(1, config.steps // TRAIN_LOSS_POINTS),
        save_strategy="no",  # RunWatch says when
        save_total_limit=CHECKPOINTS_KEPT,
        report_to=config.report_to,
        disable_tqdm=True,
        dataloader_pin_memory=lab.device.type == "cuda",
        ddp_find_unused_parameters=False,
        use_cpu=on_cpu,
    )


def use_fast_attention(model) -> None:
    """Turn dropout on attention weights off: PyTorch's fast CPU attention has none, and falls back to the slow path.

    Dropout on embeddings and residuals stays. The configuration that is saved is not changed.
    """
    for block in model.transformer.h:
        block.attn.attn_dropout.p = 0.0


def save_model(lab: Lab, model: torch.nn.Module, result: FinetuneResult, config: TrainConfig) -> None:
    """Write `model/` with its card, whole or not at all; of a LoRA run the additions too, in `adapter/`."""
    if config.method == "lora":
        model.save_pretrained(result.folder / "adapter")
        model.merge_and_unload()  # into lab.model
    partial = result.folder / "model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    lab.model.save_pretrained(partial)
    lab.tokenizer.save_pretrained(partial)
    (partial / "README.md").write_text(model_card(lab, result, config), encoding="utf-8")
    shutil.rmtree(result.model_dir, ignore_errors=True)
    partial.rename(result.model_dir)

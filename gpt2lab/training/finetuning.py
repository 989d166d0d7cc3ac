"""Fine-tune a GPT-2 into a run folder.

Under torchrun or accelerate, every process runs this, and the first one writes.
"""

import errno
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from functools import reduce
from pathlib import Path

import safetensors
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from gpt2lab.data.sources import resolve_auto
from gpt2lab.errors import LabError, Message, first_line
from gpt2lab.generation.generate import generate
from gpt2lab.model.lab import Lab, all_finite, without_peft_warning
from gpt2lab.progress import finished
from gpt2lab.training import jobs, runs
from gpt2lab.training.allocator import freed_memory_kept
from gpt2lab.training.checkpoints import drop_torn_checkpoints, is_due, roll_back, step_of, validated_in
from gpt2lab.training.config import PreparedConfig, TrainConfig
from gpt2lab.training.full_validation import SplitScoring, is_affordable
from gpt2lab.training.observation import Observer, rewind_observations
from gpt2lab.training.prepare import PreparedRun, base_model, check_disk, config_of, fetch, prepare, run_config
from gpt2lab.training.result import FinetuneResult, write_card, write_result
from gpt2lab.training.trainer import LabTrainer, trainable, training_arguments
from gpt2lab.training.validation import change_of, predicted_tokens
from gpt2lab.training.watch import Interrupted, LossMeter, RunWatch, out_of_patience

SAMPLE_TOKENS = 60


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
    queue     where another run is training on this machine: wait for it, as a run that can be seen and stopped

    Returns a FinetuneResult; the model is in `model_dir`, ready for load_model. Of several processes,
    only the first returns it.
    Raises: LabError for bad settings, or while another run holds the machine, before anything is
    written; RuntimeError where the loss stops being a number (the run is then marked as failed).
    """
    if config and settings:
        raise TypeError(f"both a config and {', '.join(settings)} are given; give one of them")
    config = config or TrainConfig(**settings)
    model, data = resolve_auto(config.model, config.data, training=True)
    config = replace(config, model=model, data=data)
    process = PartialState(cpu=not torch.cuda.is_available())
    if queue:
        reject_queue_if_distributed(process)
        waiting = runs.new_run(Path(runs_dir), asdict(config), run)
        with jobs.remove_if_rejected(waiting):
            return resume(waiting, on_start=on_start, queue=True)
    with first_process_holds(process, jobs.machine_lock()):
        on_first_process(process, lambda: fetch(config))
        job = prepare(config, process)
        on_first_process(process, lambda: check_disk(job, Path(runs_dir)))
        folder = on_first_process(process, lambda: runs.new_run(Path(runs_dir), run_config(job), run))
        on_first_process(process, lambda: jobs.register_run(folder))
        if on_start:
            on_start(folder)
        return train(job, folder, process)


def resume(
    folder: str | Path, *, on_start: Callable[[Path], None] | None = None, queue: bool = False
) -> FinetuneResult | None:
    """Resume a run that was stopped, failed or crashed, or start one that waits; returns as `finetune`.

    On a CPU the model that comes out is the same, to the last bit, as that of a run never interrupted.
    If it cannot resume, its status stays what it was.

    Raises: LabError for a run that is finished or at work, whose settings cannot be read, or whose text has changed.
    """
    folder = Path(folder)
    process = PartialState(cpu=not torch.cuda.is_available())
    if queue:
        reject_queue_if_distributed(process)
    with first_process_holds(process, jobs.requeued(folder)):
        if on_start:
            on_start(folder)
        with first_process_holds(process, jobs.machine_lock(folder, queue=queue)):
            known = runs.read_config(folder)
            on_first_process(process, lambda: fetch(config_of(known)))
            job = prepare(config_of(known), process)
            now = run_config(job)
            for name, what in (
                ("text", "text"),
                ("base", f"model {job.config.model!r}"),
                ("processes", "number of processes"),
            ):
                if known.get(name) not in (None, now[name]):
                    raise LabError(
                        "the {what} of run {name!r} has changed since it began; start a new run",
                        what=what,
                        name=folder.name,
                    )
            on_first_process(process, lambda: check_disk(job, folder))
            on_first_process(process, lambda: runs.write_json(folder / "config.json", known | now))
            return train(job, folder, process)


def reject_queue_if_distributed(process: PartialState) -> None:
    """Raises: LabError for several processes: the others give up a first one that waits for the machine too long."""
    if process.num_processes > 1:
        raise LabError(
            "{num_processes} processes cannot queue; start them when the machine is free",
            num_processes=process.num_processes,
        )


@contextmanager
def first_process_holds(process: PartialState, context: AbstractContextManager):
    """Enter a context in the first process; if it raises a LabError there, it is raised in every process."""
    with ExitStack() as stack:
        on_first_process(process, lambda: stack.enter_context(context))
        yield


def on_first_process(process: PartialState, make: Callable):
    """Call `make` in the first process; return its result, or raise its LabError, in every process."""
    answer: list = [None]
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


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of the GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def train(job: PreparedRun, folder: Path, process: PartialState) -> FinetuneResult | None:
    """Train from the last checkpoint, or from the beginning, until the end or a request to stop."""
    lab, config = job.lab, job.config
    meter = LossMeter()
    watch = RunWatch(
        folder,
        config,
        meter,
        writes=process.is_main_process,
        broadcast=lambda action: on_first_process(process, lambda: action),
        sample=lambda: sample_text(lab, config),
        is_finite=lambda: all(all_finite(parameter.detach()) for parameter in lab.model.parameters()),
    )
    observer = Observer(folder, job, lambda target: save_snapshot(job, trainer, target))
    try:
        checkpoint = on_first_process(process, lambda: roll_back(folder, job.processes))
        on_first_process(process, lambda: rewind_observations(folder, step_of(checkpoint), observer.planned))
        watch.step, watch.validation = step_of(checkpoint), validated_in(checkpoint)
        watch.write("running")
        trainer = LabTrainer(
            model=trainable(lab, config),
            args=training_arguments(config, folder / "checkpoints", lab, evaluates_first=is_due(checkpoint, config)),
            train_dataset=job.train,
            eval_dataset=job.validation,
            meter=meter,
            callbacks=[watch],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        observes = watch.writes and not trainer.is_fsdp_enabled  # of a model in shards, no process can look inside
        if observes:
            trainer.add_callback(observer)
        if trainer.is_fsdp_enabled and not trainer.accelerator.is_fsdp2:
            raise LabError(
                "FSDP version 1 is not supported: validation needs the unsharded modules; set fsdp_version: 2 in accelerate's config"
            )
        with suppress(Interrupted), freed_memory_kept():
            trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        if observes and watch.action != "pause" and watch.step not in observer.planned:
            observer.write(watch.step)  # the run ended early
        result = finish_run(job, trainer, watch)
        # torchrun ends the first process if another ends badly: all wait for its model
        on_first_process(process, lambda: None)
        return result
    except KeyboardInterrupt:
        watch.close("stopped", Message("interrupted; resume continues from the last checkpoint"))
        raise
    except BaseException as error:
        if process.is_main_process:
            drop_torn_checkpoints(folder)  # first of all: it makes room where the disk is full
        message = f"{type(error).__name__}: {error}"
        if is_disk_error(error):
            message = Message(
                "step {step} cannot be written ({error}); make room; resume continues from the checkpoint before",
                step=watch.step,
                error=first_line(error),
            )
        with suppress(OSError):
            watch.close("failed", message)
        if is_disk_error(error):
            raise LabError("run {name!r} has failed: {message}", name=folder.name, message=message) from error
        raise


def is_disk_error(error: BaseException) -> bool:
    """Whether a disk is full, over its quota or read-only; torch and safetensors have errors of their own for that."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
    in_torch = isinstance(error, RuntimeError) and ("inline_container" in str(error) or "PytorchStream" in str(error))
    return in_torch or isinstance(error, safetensors.SafetensorError)


def finish_run(job: PreparedRun, trainer: LabTrainer, watch: RunWatch) -> FinetuneResult | None:
    """Save the best model with its card and close the run; after a pause, only close it.

    A run that is asked to stop before its first step has nothing to keep either.
    """
    config, folder = job.config, watch.folder
    watch.finishing = True
    if watch.action != "pause" and watch.step not in watch.validation and (watch.step or not watch.action):
        with suppress(Interrupted):
            trainer.evaluate()
    paused = watch.action == "pause" or not watch.validation
    best = watch.best_step
    earlier = folder / "checkpoints" / f"checkpoint-{best}" if best not in (None, watch.step) else None
    weights = None if paused else trainer.whole_weights(earlier)
    if not watch.writes:
        return None
    samples = {line["step"]: line["text"] for line in runs.read_lines(folder / "samples.jsonl")}
    scored = runs.read_block_losses(folder)
    change = None
    if not paused and {0, best or 0} <= scored.keys():
        change = change_of(scored[0], scored[best or 0], predicted_tokens(job.split))
    result = FinetuneResult(
        run=folder.name,
        folder=folder,
        model_dir=None if paused else folder / "model",
        steps=watch.step,
        best_step=best or 0,
        tokens=watch.tokens,
        seconds=watch.training_seconds,
        memory=peak_memory(job.lab.device),
        val_loss_before=watch.validation.get(0),
        val_loss_after=watch.validation.get(best or 0),
        text_before=samples.get(0, ""),
        text_after=samples.get(best or 0, ""),
        prompt=config.prompt,
        stopped=watch.action is not None,
        precision=config.precision,
        validation=change,
    )
    if weights is None:  # paused
        at = Message("paused at step {step}; resume continues from there", step=watch.step)
        nothing = Message("ended at step {step}; resume continues from there", step=watch.step)
        watch.close("stopped", at if watch.step else nothing)
        return result
    save_model(job, trainer.model, weights, result)
    write_result(result)
    result = score_whole_split(job, watch, result)
    watch.close("stopped" if result.stopped else "finished", closing_message(config, watch, result))
    return result


def closing_message(config: PreparedConfig, watch: RunWatch, result: FinetuneResult) -> str:
    """Say why a run ended early, which step's model was kept, and how the validation perplexity changed."""
    parts: list[Message] = []
    if out_of_patience(watch.validation, config.patience) and watch.step < config.steps:
        parts.append(Message("no better validation loss for {count} validations", count=config.patience))
    if watch.best_step not in (None, watch.step):
        parts.append(Message("best checkpoint: step {step}", step=watch.best_step))
    if change := result.whole_validation or result.validation:
        parts.append(Message("validation perplexity {change}", change=change.sentence))
    return reduce(lambda one, other: Message("{one}; {other}", one=one, other=other), parts) if parts else ""


def score_whole_split(job: PreparedRun, watch: RunWatch, result: FinetuneResult) -> FinetuneResult:
    """Score the whole validation split before and after, if the run sampled it and it takes a tenth of the run at most.

    A request to stop or to pause ends it without a result. Of several processes the others would wait too long.
    """
    config = job.config
    if config.eval_tokens == "all" or job.processes > 1 or not result.steps or result.stopped:
        return result
    if not is_affordable(config.method, job.split.n_tokens, result.tokens_per_second, watch.seconds):
        return result
    scoring = SplitScoring(base_model(config, job.lab.device), job.lab, job.split, config, result)

    def show(done: int, total: int) -> None:
        if runs.requested_action(result.folder):
            raise Interrupted
        watch.phase = Message("scoring the whole validation split, {share:.0%}", share=done / total)
        watch.beat()

    with suppress(Interrupted):
        return finished(scoring.steps(), show)
    return result


def sample_text(lab: Lab, config: PreparedConfig) -> str:
    """Generate a text with the run's prompt and seed from the current model."""
    was_training = lab.model.training
    lab.model.eval()
    text = generate(
        lab, config.prompt, max_new_tokens=SAMPLE_TOKENS, temperature=0.8, top_p=0.95, seed=config.seed
    ).text
    lab.model.train(was_training)
    return text


def save_model(
    job: PreparedRun, model: torch.nn.Module, weights: dict[str, torch.Tensor], result: FinetuneResult
) -> None:
    """Write `model/` with its card atomically; for LoRA, also the adapter to `adapter/`."""
    partial = result.folder / "model.partial"
    write_plain(job, model, weights, result.folder / "adapter", partial)
    write_card(job.lab, result, job.config, job.processes, partial)
    shutil.rmtree(result.folder / "model", ignore_errors=True)
    partial.rename(result.folder / "model")


def save_snapshot(job: PreparedRun, trainer: LabTrainer, folder: Path) -> None:
    """Write the weights as they are to a folder that can be loaded as a model, atomically."""
    weights = trainer.accelerator.get_state_dict(trainer.model)
    partial = folder.with_name(f"partial-{folder.name}")
    with tempfile.TemporaryDirectory() as adapter:
        write_plain(job, trainer.model, weights, Path(adapter), partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def write_plain(
    job: PreparedRun, model: torch.nn.Module, weights: dict[str, torch.Tensor], adapter: Path, folder: Path
) -> None:
    """Write a model and its tokenizer to a folder; for LoRA, the adapter to another one, and both merged."""
    plain: torch.nn.Module = job.lab.model
    state: dict[str, torch.Tensor] | None = weights
    if job.config.method == "lora":
        import peft

        model.save_pretrained(adapter, state_dict=weights, save_embedding_layers=False)
        base = base_model(job.config, torch.device("cpu")).model
        with without_peft_warning():
            plain, state = peft.PeftModel.from_pretrained(base, adapter).merge_and_unload(), None
    shutil.rmtree(folder, ignore_errors=True)
    plain.save_pretrained(folder, state_dict=state)
    job.lab.tokenizer.save_pretrained(folder)

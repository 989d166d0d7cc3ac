"""Runs that are killed, stopped, paused, starved and resumed, as real processes."""

import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import psutil
import pytest
import safetensors.torch
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

from gpt2lab.errors import LabError
from gpt2lab.model.lab import load_model
from gpt2lab.training import finetuning, jobs, runs, watch, worker
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.finetuning import finetune, resume
from gpt2lab.training.result import read_result
from tests.processes import PATIENCE, ROOT, Command, fork

STEPS = 18
SETTINGS = {
    "block_size": 16,
    "batch_size": 2,
    "grad_accum": 2,
    "steps": STEPS,
    "eval_every": 6,
    "save_every": 4,
    "patience": 0,
    "learning_rate": 1e-2,
    "prompt": "the moon",
    "precision": "bf16",
    "snapshots": 4,  # and so 5 observations
}
LORA = {"method": "lora", "lora_rank": 3, "learning_rate": 3e-2, "precision": "fp32"}
LONG_STEPS = {"grad_accum": 8, "steps": 4, "eval_every": 3, "save_every": 3}


def write_little(target, *arguments):
    """Do something, with short texts at each validation."""
    finetuning.SAMPLE_TOKENS = 8
    target(*arguments)


def train_in_process(settings, runs_dir, run):
    finetune(**settings, runs_dir=runs_dir, run=run)


def ask_once_written(action, file, **wanted):
    """In this process, ask the run to pause or stop once a line or a status with these values is in a file; look at once."""
    watch.CONTROL_SECONDS = -1.0  # at every forward pass
    append, write = runs.append_line, runs.write_status

    def ask(path, content):
        if path.name == file and wanted.items() <= content.items():
            runs.request_action(path.parent, action)

    runs.append_line = lambda path, content: (append(path, content), ask(path, content))
    runs.write_status = lambda folder, status: (write(folder, status), ask(folder / "status.json", asdict(status)))


def train_until(moment, settings, runs_dir, run, action="pause"):
    """Train, and pause or stop at a moment: (file, values)."""
    ask_once_written(action, moment[0], **moment[1])
    train_in_process(settings, runs_dir, run)


def resume_until(moment, folder):
    ask_once_written("pause", moment[0], **moment[1])
    resume(folder)


BEGINNING = ("status.json", {"state": "running"})


def measured_train(step):
    """The moment at which a step has been trained."""
    return "metrics.jsonl", {"split": "train", "step": step}


def queue_in_process(settings, runs_dir, run):
    """Make a run here, and train it when the machine is free."""
    resume(runs.new_run(runs_dir, settings, run), queue=True)


def train_in_process_with_small_files(settings, runs_dir, run):
    """Once there is a checkpoint, no file may grow past its weights."""

    def watch(folder):
        while not runs.whole_checkpoints(folder):
            time.sleep(0.001)
        largest = (runs.whole_checkpoints(folder)[0] / "model.safetensors").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest + 1, resource.RLIM_INFINITY))

    def start(folder):
        threading.Thread(target=watch, args=(folder,), daemon=True).start()

    finetune(**settings, runs_dir=runs_dir, run=run, on_start=start)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache, and so one machine, for all runs here."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def same_machine(cache, monkeypatch):
    monkeypatch.setenv("GPT2LAB_CACHE", cache)


@pytest.fixture
def process():
    """A function that starts another in a process, which ends with the test at the latest."""
    started = []

    def start(target, *arguments):
        started.append(fork(write_little, target, *arguments))
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.join()


@pytest.fixture
def begin(tiny_folder, moon, tmp_path, process):
    """A function that starts a run in a process: (process, folder)."""

    def start(run="run", *, target=train_in_process, runs_dir=tmp_path, **changes):
        settings = {"model": str(tiny_folder), "data": moon, **SETTINGS, **changes}
        return process(target, settings, runs_dir, run), Path(runs_dir) / run

    return start


@pytest.fixture
def go_on(process):
    """A function that resumes a run in a process."""
    return lambda folder, target=resume: process(target, folder)


@pytest.fixture(scope="module")
def reference(tiny_folder, moon, tmp_path_factory, cache):
    """A function: changes → the folder of a run that nothing came between."""

    def train(**changes):
        settings = {"model": str(tiny_folder), "data": moon, **SETTINGS, **changes}
        folder = tmp_path_factory.mktemp("reference")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GPT2LAB_CACHE", cache)
            running = fork(write_little, train_in_process, settings, folder, "run")
        running.join(PATIENCE)
        assert running.exitcode == 0
        return folder / "run"

    return train


@pytest.fixture(scope="module")
def uninterrupted(reference):
    return reference()


@pytest.fixture(scope="module")
def uninterrupted_lora(reference):
    return reference(**LORA)


@pytest.fixture(scope="module")
def long_steps(reference, text_folder, sentences):
    """The settings of a run with two long steps an epoch, and that run uninterrupted."""
    train, validation = (" ".join(random.Random(0).choices(sentences, k=k)) for k in (26, 60))
    settings = LONG_STEPS | {"data": text_folder(train=train, validation=validation)}
    folder = reference(**settings)
    tokens = {metric.step: metric.tokens for metric in runs.read_metrics(folder)}
    a_step = SETTINGS["block_size"] * SETTINGS["batch_size"] * LONG_STEPS["grad_accum"]
    assert tokens[1] > a_step - 32  # a pause after step 1 falls into an epoch
    assert a_step < tokens[2] < 2 * a_step  # and one after step 2 between two
    return settings, folder


TIMED = ("seconds", "tokens_per_second", "memory", "cpu", "gpu")  # of the machine, and not of the training


def measured(folder):
    """What must be the same in two runs: everything measured and written, but for the time it took."""
    metrics = [line | dict.fromkeys(TIMED, 0) for line in runs.read_lines(folder / "metrics.jsonl")]
    return metrics, runs.read_lines(folder / "samples.jsonl")


def observed(folder):
    """Every byte of what a run observed of itself, and of its snapshots' weights, by name."""
    files = [*folder.glob("history/*"), *folder.glob("snapshots/*/model.safetensors")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def assert_same_run(folder, reference):
    metrics, samples = measured(folder)
    expected, written = measured(reference)
    assert [(line["split"], line["step"]) for line in metrics] == [(line["split"], line["step"]) for line in expected]
    assert metrics == expected
    assert samples == written
    assert observed(folder) == observed(reference)
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (folder / "model" / file).read_bytes() == (reference / "model" / file).read_bytes()
    assert runs.read_status(folder).state == "finished"


def wait_until(condition, process):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.is_alive(), "the run ended before the moment came"
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def end(process):
    """The exit status of a process that ends by itself."""
    process.join(PATIENCE)
    return process.exitcode


def kill(process, folder):
    """End a process as the system does where memory runs out."""
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert runs.read_status(folder).state == "crashed"


def lines(folder):
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def has_measured(folder, split, step):
    return any((metric.split, metric.step) == (split, step) for metric in runs.read_metrics(folder))


def state_of(folder):
    """The state of a run that may not be there yet."""
    return runs.read_status(folder).state if (folder / "status.json").exists() else None


def unfinished_checkpoint(folder):
    made = (folder / "checkpoints").glob("checkpoint-*")
    return any(not (path / "trainer_state.json").exists() for path in made)


def steps_of(folder, split):
    return [metric.step for metric in runs.read_metrics(folder) if metric.split == split]


def test_uninterrupted_run_measures_what_it_should(uninterrupted):
    assert steps_of(uninterrupted, "train") == list(range(1, STEPS + 1))
    assert {int(file.stem) for file in uninterrupted.glob("history/*")} >= {0, 6, 12, STEPS}
    assert steps_of(uninterrupted, "validation") == list(range(0, STEPS + 1, 6))
    assert [line["step"] for line in measured(uninterrupted)[1]] == list(range(0, STEPS + 1, 6))


MOMENTS = {
    "before the first step": lambda folder: lines(folder) >= 1,
    "while a checkpoint is written": unfinished_checkpoint,
    "while a later checkpoint is written": lambda folder: lines(folder) > 10 and unfinished_checkpoint(folder),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_run_resumes_to_the_same_numbers_and_the_same_bits(moment, begin, go_on, uninterrupted):
    process, folder = begin()
    wait_until(lambda: MOMENTS[moment](folder), process)
    kill(process, folder)
    assert end(go_on(folder)) == 0
    assert_same_run(folder, uninterrupted)


def test_run_that_is_killed_again_and_again_resumes_to_the_same_bits(begin, go_on, uninterrupted):
    process, folder = begin()
    for number in (6, 12, 18):
        wait_until(lambda number=number: lines(folder) >= number, process)
        time.sleep(random.Random(number).random() * 0.02)
        kill(process, folder)
        process = go_on(folder)
    assert end(process) == 0
    assert_same_run(folder, uninterrupted)


def test_killed_run_of_low_rank_additions_resumes_to_the_same_bits(begin, go_on, uninterrupted_lora):
    process, folder = begin(**LORA)
    wait_until(lambda: lines(folder) >= 10, process)
    kill(process, folder)
    assert end(go_on(folder)) == 0
    assert_same_run(folder, uninterrupted_lora)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (folder / "adapter" / file).read_bytes() == (uninterrupted_lora / "adapter" / file).read_bytes()


@pytest.mark.parametrize(("step", "changes"), [(9, {}), (7, LORA)])
def test_run_paused_between_steps_resumes_to_the_same_bits(step, changes, begin, go_on, request):
    process, folder = begin(**changes, target=partial(train_until, measured_train(step)))
    assert end(process) == 0
    status = runs.read_status(folder)
    assert (status.state, status.message) == ("stopped", f"paused at step {step}; resume continues from there")
    assert not (folder / "model").exists()
    assert end(go_on(folder)) == 0
    assert_same_run(folder, request.getfixturevalue("uninterrupted_lora" if changes else "uninterrupted"))


def test_run_paused_amid_a_step_gives_it_up_and_resumes_to_the_same_bits(begin, go_on, long_steps):
    settings, uninterrupted = long_steps
    process, folder = begin(**settings, target=partial(train_until, measured_train(1)))
    assert end(process) == 0
    for _ in range(2):
        status = runs.read_status(folder)
        assert (status.state, status.step) == ("stopped", 1)
        assert steps_of(folder, "train") == [1]
        assert (folder / "checkpoints" / "checkpoint-1").is_dir()
        # paused once more, before it has done anything new
        assert end(go_on(folder, partial(resume_until, BEGINNING))) == 0
    assert end(go_on(folder)) == 0
    assert_same_run(folder, uninterrupted)


def test_run_paused_amid_the_first_step_of_an_epoch_resumes_to_the_same_bits(begin, go_on, long_steps):
    settings, uninterrupted = long_steps
    process, folder = begin(**settings, target=partial(train_until, measured_train(2)))
    assert end(process) == 0
    assert (runs.read_status(folder).state, runs.read_status(folder).step) == ("stopped", 2)
    assert end(go_on(folder)) == 0
    assert_same_run(folder, uninterrupted)


@pytest.mark.parametrize("step", [0, 3])
def test_run_paused_amid_a_validation_resumes_to_the_same_bits(step, begin, go_on, long_steps):
    settings, uninterrupted = long_steps
    process, folder = begin(**settings, target=partial(train_until, measured_train(step) if step else BEGINNING))
    assert end(process) == 0
    status = runs.read_status(folder)
    assert (status.state, status.step) == ("stopped", step)
    assert not has_measured(folder, "validation", step)
    assert end(go_on(folder)) == 0
    assert_same_run(folder, uninterrupted)


def test_run_paused_amid_the_validation_that_would_end_it_ends_there_when_it_continues(begin, go_on, reference):
    settings = {"grad_accum": 1, "steps": 40, "eval_every": 4, "save_every": 4, "learning_rate": 3e-2, "patience": 1}
    uninterrupted = reference(**settings)
    last = steps_of(uninterrupted, "train")[-1]
    assert last < 40
    process, folder = begin(**settings, target=partial(train_until, measured_train(last)))
    assert end(process) == 0
    assert runs.read_status(folder).step == last
    assert not has_measured(folder, "validation", last)
    assert end(go_on(folder)) == 0
    assert_same_run(folder, uninterrupted)


@pytest.mark.parametrize("step", [1, 9])
def test_stopped_run_keeps_a_model_and_resumes_to_the_same_bits(step, begin, go_on, uninterrupted):
    process, folder = begin(target=partial(train_until, measured_train(step), action="stop"))
    assert end(process) == 0
    status, result = runs.read_status(folder), read_result(folder)
    assert (status.state, status.step, result.steps) == ("stopped", step, step)
    assert result.stopped
    lab = load_model(str(result.model_dir), device="cpu")
    assert lab.context == 64
    validation = {m.step: m.loss for m in runs.read_metrics(folder) if m.split == "validation"}
    trained = {step: loss for step, loss in validation.items() if step}
    assert result.steps in validation
    assert result.val_loss_before == validation[0]
    assert result.val_loss_after == (min(trained.values()) if trained else validation[0])
    with pytest.raises(LabError, match="is stopped; there is nothing to stop"):
        jobs.stop(folder)
    assert end(go_on(folder)) == 0
    assert_same_run(folder, uninterrupted)


def test_machine_is_free_and_the_wish_forgotten_once_the_holder_was_killed(begin, go_on, uninterrupted):
    process, folder = begin()
    wait_until(lambda: lines(folder) >= 5, process)
    with pytest.raises(LabError, match="is training on this machine"), jobs.machine_lock():
        pytest.fail("two runs hold the machine")
    os.kill(process.pid, signal.SIGSTOP)
    runs.request_action(folder, "pause")
    kill(process, folder)
    with jobs.machine_lock():
        pass
    assert end(go_on(folder)) == 0
    assert_same_run(folder, uninterrupted)


ENDLESS = {"steps": 100_000, "eval_every": 100_000, "save_every": 100_000}


def test_run_in_another_folder_is_refused_while_one_trains(begin, tmp_path):
    process, folder = begin(**ENDLESS)
    wait_until(lambda: lines(folder) >= 1, process)
    with pytest.raises(LabError, match="is training on this machine; stop it, wait until it has ended, or queue"):
        finetune(model="builtin", data="sample", steps=1, runs_dir=tmp_path / "others")
    assert not (tmp_path / "others").exists()
    with pytest.raises(LabError, match=r"run 'run' is (running|queued); there is nothing to resume"):
        resume(folder)
    other = runs.new_run(tmp_path / "others", {"model": "builtin", "data": "sample"}, "other")
    with pytest.raises(LabError, match="is training on this machine"):
        resume(other)
    assert runs.read_status(other).message.count("is training on this machine") == 1
    assert process.is_alive()


def test_queued_run_starts_when_the_first_ends_and_another_is_stopped_while_it_waits(begin, uninterrupted):
    first, holder = begin("first", target=queue_in_process, **ENDLESS)
    wait_until(lambda: lines(holder) >= 1, first)
    second, waiting = begin("second", target=queue_in_process)
    third, stopped = begin("third", target=queue_in_process)
    for process, folder in ((second, waiting), (third, stopped)):
        wait_until(lambda folder=folder: state_of(folder) and runs.read_status(folder).message, process)
        status = runs.read_status(folder)
        assert (status.state, status.message) == (
            "queued",
            f"run 'first' in {holder.parent.resolve()} is training on this machine",
        )
    assert jobs.stop(stopped).state == "stopped"
    assert end(third) == 1
    assert runs.read_status(stopped).message == "run 'third' was stopped while it waited for the machine"
    assert (runs.read_status(waiting).state, lines(waiting)) == ("queued", 0)
    assert jobs.stop(holder, want="pause").state == "stopped"
    assert (end(first), end(second)) == (0, 0)
    assert_same_run(waiting, uninterrupted)


def test_run_whose_files_may_not_grow_fails_and_continues_from_the_checkpoint_before(begin, go_on, uninterrupted):
    process, folder = begin(target=train_in_process_with_small_files)
    assert end(process) == 1
    assert_failed_between_checkpoints(folder)
    assert end(go_on(folder)) == 0
    assert_same_run(folder, uninterrupted)


def assert_failed_between_checkpoints(folder):
    status = runs.read_status(folder)
    assert status.state == "failed"
    assert "make room; resume continues from the checkpoint before" in status.message
    kept = runs.whole_checkpoints(folder)
    assert kept
    assert set(kept) == set((folder / "checkpoints").glob("checkpoint-*"))
    for checkpoint in kept:
        assert safetensors.torch.load_file(checkpoint / "model.safetensors")
    assert status.step > int(kept[0].name.removeprefix("checkpoint-"))


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 6 MB: room for a run, and little more."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if done.returncode:
        pytest.skip("a disk can be mounted by root alone")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_run_on_a_disk_that_fills_fails_and_continues_once_there_is_room(begin, go_on, small_disk, uninterrupted):
    process, folder = begin(runs_dir=small_disk)
    wait_until(lambda: len(runs.whole_checkpoints(folder)) >= 2, process)
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    filler = small_disk / "filler"
    filler.write_bytes(bytes(max(0, free - 200_000)))  # room for metrics, but for no checkpoint
    assert end(process) == 1
    assert_failed_between_checkpoints(folder)
    filler.unlink()
    assert end(go_on(folder)) == 0
    assert_same_run(folder, uninterrupted)


def test_run_on_a_disk_that_may_only_be_read_is_shown_and_can_be_neither_stopped_nor_resumed(begin, small_disk):
    process, folder = begin(runs_dir=small_disk)
    wait_until(lambda: lines(folder) >= 5, process)
    kill(process, folder)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    [run] = runs.list_runs(small_disk)
    assert (run.id, run.state) == ("run", "crashed")
    for act in (resume, jobs.resume_run, lambda folder: runs.request_action(folder, "stop")):
        with pytest.raises(LabError, match=r"run cannot be written \(Read-only file system\); make room, make it"):
            act(folder)
    with pytest.raises(LabError, match=r"disk cannot be written \(Read-only file system\)"):
        runs.new_run(small_disk, {"model": "builtin", "data": "sample"}, "other")


def test_run_that_goes_astray_fails_with_its_step_and_keeps_the_checkpoint_before(begin):
    growing = {
        "learning_rate": 1.0,
        "warmup": 0.0,
        "weight_decay": 10.0,
        "max_grad_norm": 1e6,
    }  # decay of 1 - 10 a step
    process, folder = begin(**growing, steps=200, eval_every=1, save_every=1)
    assert end(process) == 1
    status = runs.read_status(folder)
    assert status.state == "failed"
    assert f"at step {status.step}; lower the learning rate" in status.message
    assert 1 < status.step < 200
    [newest, *_] = runs.whole_checkpoints(folder)
    assert newest.name == f"checkpoint-{status.step - 1}"
    found = safetensors.torch.load_file(newest / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in found.values())
    assert not (folder / "model").exists()


def arguments_for(model, data, **settings):
    options = {"model": model, "data": data, "lr": settings.pop("learning_rate"), **settings}
    return [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]


@pytest.fixture
def command(tmp_path):
    """A function that starts `gpt2lab finetune` in a process, which ends with the test at the latest."""
    started = []

    def start(*arguments, **options):
        started.append(Command(tmp_path / f"command {len(started)}", "finetune", *arguments, **options))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.join()


def test_process_that_the_system_asks_to_end_pauses_its_run(tiny_folder, moon, tmp_path, command):
    settings = SETTINGS | {"steps": 2_000, "eval_every": 500, "save_every": 500}
    folder = tmp_path / "mine"
    running = command(*arguments_for(tiny_folder, moon, **settings, run="mine", runs=tmp_path), "--json")
    wait_until(lambda: lines(folder) >= 2, running.process)
    running.process.terminate()
    done, status = running.finish(), runs.read_status(folder)
    assert done.returncode == 0
    assert (status.state, status.message) == ("stopped", f"paused at step {status.step}; resume continues from there")
    assert 0 < status.step < 2_000
    assert (folder / "checkpoints" / f"checkpoint-{status.step}" / "trainer_state.json").is_file()
    found = json.loads(done.stdout)
    assert (found["run"], found["steps"], found["stopped"], found["model_dir"]) == ("mine", status.step, True, None)


def take_long_over_the_report():
    worker.write_report = lambda folder: (print("writing", flush=True), time.sleep(100))


def test_process_that_the_system_asks_to_end_while_it_writes_the_report_ends(tiny_folder, moon, tmp_path, command):
    options = arguments_for(tiny_folder, moon, **SETTINGS, run="mine", runs=tmp_path)
    running = command(*options, before=(take_long_over_the_report,))
    wait_until(lambda: running.out.exists() and running.out.read_text() == "writing\n", running.process)
    running.process.terminate()
    assert running.finish(30).returncode == -signal.SIGTERM
    assert runs.read_status(tmp_path / "mine").state == "finished"
    assert load_model(str(tmp_path / "mine" / "model"), device="cpu").context == 64


def test_of_two_starts_at_once_one_is_refused_and_the_other_outlives_a_pause(tiny_folder, moon, tmp_path):
    config = TrainConfig(model=str(tiny_folder), data=moon, **SETTINGS | ENDLESS)
    begun, refused, together = [], [], threading.Barrier(2)

    def start(run):
        together.wait()
        try:
            begun.append(jobs.start_run(config, tmp_path, run=run))
        except LabError as error:
            refused.append((run, str(error)))

    threads = [threading.Thread(target=start, args=(run,)) for run in ("one", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [folder], [(second, message)] = begun, refused
    try:
        assert {folder.name, second} == {"one", "other"}
        assert message == f"run '{folder.name}' is under way on this machine; stop it, wait, or queue this run"
        assert not (tmp_path / second).exists()
        pid = runs.read_status(folder).pid
        assert pid != os.getpid()
        assert os.getsid(pid) == pid  # a terminal that closes takes its session along, and not this one
        deadline = time.monotonic() + PATIENCE
        while not runs.read_status(folder).step:
            assert runs.read_status(folder).alive, runs.log_tail(folder)
            assert time.monotonic() < deadline
            time.sleep(0.01)
        status = jobs.stop(folder, want="pause")
        assert (status.state, status.message) == (
            "stopped",
            f"paused at step {status.step}; resume continues from there",
        )
        assert "fine-tune" in runs.log_tail(folder)
    finally:
        status = runs.read_status(folder)
        if status.alive:
            psutil.Process(status.pid).kill()


@pytest.fixture
def two_and_one(no_dropout_folder, text_folder, sentences, tmp_path, begin):
    """A function: settings → the arguments of their run in two processes, its folder, and that of a run by one alone."""
    data = text_folder(train=" ".join(sentences[:2] * 10), validation=" ".join(sentences[2:] * 4))  # is soon overfitted
    settings = SETTINGS | {"grad_accum": 1, "steps": 9, "eval_every": 3, "save_every": 3, "precision": "fp32"}

    def run(**changes):
        options = settings | changes
        process, alone = begin("alone", model=str(no_dropout_folder), **options | {"data": data, "batch_size": 4})
        assert end(process) == 0
        arguments = arguments_for(no_dropout_folder, data, **options | {"batch_size": 2})
        return [*arguments, "--runs", tmp_path / "together", "--run", "mine"], tmp_path / "together" / "mine", alone

    return run


def assert_same_losses(together, alone):
    assert runs.read_status(together).state == "finished"
    found, expected = measured(together), measured(alone)
    for one, other in zip(found[0], expected[0], strict=True):
        assert (one["split"], one["step"], one["tokens"]) == (other["split"], other["step"], other["tokens"])
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["lr"] == pytest.approx(other["lr"])
    assert [line["step"] for line in found[1]] == [line["step"] for line in expected[1]]
    losses = [line["loss"] for line in found[0]]
    assert len(set(losses)) == len(losses)  # a model that learns measures no loss twice


def test_two_processes_train_as_one_with_twice_the_blocks(two_and_one):
    arguments, together, alone = two_and_one()
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--", "gpt2lab", "finetune"]
    done = subprocess.run(
        [sys.executable, "-m", *launch, *map(str, arguments), "--json"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr  # the cause stands far above torchrun's own traceback
    [line] = done.stdout.splitlines()  # of the first process alone
    assert json.loads(line)["run"] == "mine"
    assert steps_of(together, "train") == list(range(1, 10))
    assert steps_of(together, "validation") == [0, 3, 6, 9]
    assert_same_losses(together, alone)


def share_in_shards():
    """Make the processes of a run share their model in shards (FSDP) on CPUs.

    accelerate shards models on accelerators alone; if it believes that its processes have GPUs, it does the same by gloo.
    """
    os.environ |= {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": "GPT2Block",
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    }
    join = PartialState.__init__

    def join_as_gpus(self, *arguments, **options):
        join(self, *arguments, **options)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = join_as_gpus
    worker.write_report = lambda folder: None  # takes seconds


@pytest.mark.parametrize("method", ["full", "lora"])
def test_two_processes_that_share_one_model_in_shards_train_as_one(two_and_one, command, method):
    arguments, together, alone = two_and_one(method=method)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    both = [
        command(*arguments, before=(share_in_shards,), RANK=str(rank), LOCAL_RANK=str(rank), **variables)
        for rank in range(2)
    ]
    for one in both:
        done = one.finish()
        assert done.returncode == 0, done.stderr
    assert any((path / "pytorch_model_fsdp_0").is_dir() for path in (together / "checkpoints").iterdir())
    assert_same_losses(together, alone)
    result, expected = read_result(together), read_result(alone)
    assert result.best_step == expected.best_step
    assert method == "lora" or result.best_step < 9  # an earlier one is put back
    labs = [load_model(str(one.model_dir), device="cpu") for one in (result, expected)]
    with torch.no_grad():
        found, other = (lab.model(lab.encode("the moon goes around the earth")[None]).logits for lab in labs)
    assert torch.allclose(found, other, atol=1e-3)

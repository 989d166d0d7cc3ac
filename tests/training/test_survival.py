"""Runs that are killed, stopped, paused, starved and resumed, as real processes."""

import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import safetensors.torch
import torch

import gpt2lab
from gpt2lab.errors import LabError
from gpt2lab.model.lab import load_model
from gpt2lab.training import jobs, runs, watch
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.finetuning import finetune, resume
from gpt2lab.training.result import read_result

PROCESSES = multiprocessing.get_context("forkserver")  # a fresh process without seconds of imports
PROCESSES.set_forkserver_preload(["gpt2lab.training.finetuning", "peft"])
PATIENCE = 120  # seconds
ROOT = Path(gpt2lab.__file__).parents[1]
SETTINGS = {
    "block_size": 16,
    "batch_size": 2,
    "grad_accum": 2,
    "steps": 24,
    "eval_every": 4,
    "save_every": 3,
    "patience": 0,
    "learning_rate": 1e-2,
    "prompt": "the moon",
    "precision": "bf16",
}
LORA = {"method": "lora", "lora_rank": 3, "learning_rate": 3e-2, "precision": "fp32"}
SLOW = {"block_size": 64, "batch_size": 4, "grad_accum": 32, "steps": 4, "eval_every": 3, "save_every": 3}


def train_in_process(settings, runs_dir, run, cache):
    os.environ["GPT2LAB_CACHE"] = cache
    finetune(**settings, runs_dir=runs_dir, run=run)


def resume_in_process(folder, cache):
    os.environ["GPT2LAB_CACHE"] = cache
    resume(folder)


def train_attentively(settings, runs_dir, run, cache):
    """With an eye on wishes at every forward pass."""
    watch.CONTROL_SECONDS = -1.0
    train_in_process(settings, runs_dir, run, cache)


def resume_attentively(folder, cache):
    watch.CONTROL_SECONDS = -1.0
    resume_in_process(folder, cache)


def queue_in_process(settings, runs_dir, run, cache):
    """Make a run here, and train it when the machine is free."""
    os.environ["GPT2LAB_CACHE"] = cache
    resume(runs.new_run(runs_dir, settings, run), queue=True)


def train_in_process_with_small_files(settings, runs_dir, run, cache):
    """Once there is a checkpoint, no file may grow past its weights."""
    os.environ["GPT2LAB_CACHE"] = cache

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
        started.append(PROCESSES.Process(target=target, args=arguments))
        started[-1].start()
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.join()


@pytest.fixture
def begin(tiny_folder, moon, tmp_path, cache, process):
    """A function that starts a run in a process: (process, folder)."""

    def start(run="run", *, target=train_in_process, runs_dir=tmp_path, **changes):
        settings = {"model": str(tiny_folder), "data": moon, **SETTINGS, **changes}
        return process(target, settings, runs_dir, run, cache), Path(runs_dir) / run

    return start


@pytest.fixture
def go_on(cache, process):
    """A function that resumes a run in a process."""
    return lambda folder, target=resume_in_process: process(target, folder, cache)


@pytest.fixture(scope="module")
def reference(tiny_folder, moon, tmp_path_factory, cache):
    """A function: changes → the folder of a run that nothing came between."""

    def train(**changes):
        settings = {"model": str(tiny_folder), "data": moon, **SETTINGS, **changes}
        folder = tmp_path_factory.mktemp("reference")
        running = PROCESSES.Process(target=train_in_process, args=(settings, folder, "run", cache))
        running.start()
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
def long_texts(text_folder, sentences):
    """Training text for two steps of SLOW an epoch, and validation text that takes as long."""
    draw = random.Random(0)
    train, validation = (" ".join(draw.choice(sentences) for _ in range(count)) for count in (450, 1200))
    return text_folder(train=train, validation=validation)


@pytest.fixture(scope="module")
def slow(reference, long_texts):
    """The settings of a run with long steps and validations, and that run uninterrupted."""
    settings = SLOW | {"data": long_texts}
    folder = reference(**settings)
    tokens = {metric.step: metric.tokens for metric in runs.read_metrics(folder)}
    a_step = SLOW["block_size"] * SLOW["batch_size"] * SLOW["grad_accum"]
    assert tokens[1] > a_step - 64  # a pause after step 1 falls into an epoch
    assert a_step < tokens[2] < 2 * a_step  # and one after step 2 between two
    return settings | {"target": train_attentively}, folder


def measured(folder):
    """What must be the same in two runs: everything measured and written, but for the time it took."""
    metrics = [line | {"seconds": 0} for line in runs.read_lines(folder / "metrics.jsonl")]
    return metrics, runs.read_lines(folder / "samples.jsonl")


def assert_same_run(folder, reference):
    metrics, samples = measured(folder)
    expected, written = measured(reference)
    assert [(line["split"], line["step"]) for line in metrics] == [(line["split"], line["step"]) for line in expected]
    assert metrics == expected
    assert samples == written
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
    assert steps_of(uninterrupted, "train") == list(range(1, 25))
    assert steps_of(uninterrupted, "validation") == list(range(0, 25, 4))
    assert [line["step"] for line in measured(uninterrupted)[1]] == list(range(0, 25, 4))


MOMENTS = {
    "before the first step": lambda folder: lines(folder) >= 1,
    "while a checkpoint is written": unfinished_checkpoint,
    "while a later checkpoint is written": lambda folder: lines(folder) > 12 and unfinished_checkpoint(folder),
} | {f"random {seed}": None for seed in range(3)}


def random_moment(seed, folder, reference):
    """A condition: so many lines, up to the last of a reference."""
    number = random.Random(seed).randrange(1, lines(reference))
    return lambda: lines(folder) >= number


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_run_resumes_to_the_same_numbers_and_the_same_bits(moment, begin, go_on, uninterrupted):
    process, folder = begin()
    if MOMENTS[moment]:
        wait_until(lambda: MOMENTS[moment](folder), process)
    else:
        wait_until(random_moment(moment, folder, uninterrupted), process)
        time.sleep(random.Random(moment).random() * 0.02)
    kill(process, folder)
    assert end(go_on(folder)) == 0
    assert_same_run(folder, uninterrupted)


def test_run_that_is_killed_again_and_again_resumes_to_the_same_bits(begin, go_on, uninterrupted):
    process, folder = begin()
    for number in (6, 14, 22):
        wait_until(lambda number=number: lines(folder) >= number, process)
        kill(process, folder)
        process = go_on(folder)
    assert end(process) == 0
    assert_same_run(folder, uninterrupted)


def test_killed_run_of_low_rank_additions_resumes_to_the_same_bits(begin, go_on, uninterrupted_lora):
    process, folder = begin(**LORA)
    wait_until(random_moment("lora", folder, uninterrupted_lora), process)
    kill(process, folder)
    assert end(go_on(folder)) == 0
    assert_same_run(folder, uninterrupted_lora)
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (folder / "adapter" / file).read_bytes() == (uninterrupted_lora / "adapter" / file).read_bytes()


@pytest.mark.parametrize(("number", "changes"), [(9, {}), (8, LORA)])
def test_run_paused_between_steps_resumes_to_the_same_bits(number, changes, begin, go_on, request):
    process, folder = begin(**changes)
    wait_until(lambda: lines(folder) >= number, process)
    runs.request_action(folder, "pause")
    assert end(process) == 0
    status = runs.read_status(folder)
    assert (status.state, status.message) == (
        "stopped",
        f"paused at step {status.step}; resume continues from there",
    )
    assert status.step < 24
    assert not (folder / "model").exists()
    assert end(go_on(folder)) == 0
    assert_same_run(folder, request.getfixturevalue("uninterrupted_lora" if changes else "uninterrupted"))


def test_run_paused_amid_a_step_gives_it_up_and_resumes_to_the_same_bits(begin, go_on, slow):
    settings, uninterrupted = slow
    process, folder = begin(**settings)
    wait_until(lambda: has_measured(folder, "train", 1), process)
    runs.request_action(folder, "pause")
    assert end(process) == 0
    for _ in range(2):
        status = runs.read_status(folder)
        assert (status.state, status.step) == ("stopped", 1)
        assert steps_of(folder, "train") == [1]
        assert (folder / "checkpoints" / "checkpoint-1").is_dir()
        process = go_on(folder, resume_attentively)  # to be paused once more, before it has done anything new
        wait_until(lambda: state_of(folder) == "running", process)
        runs.request_action(folder, "pause")
        assert end(process) == 0
    assert end(go_on(folder)) == 0
    assert_same_run(folder, uninterrupted)


def test_run_paused_amid_the_first_step_of_an_epoch_resumes_to_the_same_bits(begin, go_on, slow):
    settings, uninterrupted = slow
    process, folder = begin(**settings)
    wait_until(lambda: has_measured(folder, "train", 2), process)
    runs.request_action(folder, "pause")
    assert end(process) == 0
    assert (runs.read_status(folder).state, runs.read_status(folder).step) == ("stopped", 2)
    assert end(go_on(folder)) == 0
    assert_same_run(folder, uninterrupted)


@pytest.mark.parametrize("step", [0, 3])
def test_run_paused_amid_a_validation_resumes_to_the_same_bits(step, begin, go_on, slow):
    settings, uninterrupted = slow
    process, folder = begin(**settings)
    wait_until(lambda: has_measured(folder, "train", step) if step else state_of(folder) == "running", process)
    runs.request_action(folder, "pause")
    assert end(process) == 0
    status = runs.read_status(folder)
    assert (status.state, status.step) == ("stopped", step)
    assert not has_measured(folder, "validation", step)
    assert end(go_on(folder)) == 0
    assert_same_run(folder, uninterrupted)


def test_run_paused_amid_the_validation_that_would_end_it_ends_there_when_it_continues(
    begin, go_on, reference, long_texts, moon, text_folder
):
    train, validation = (
        (Path(data) / f"{split}.txt").read_text() for data, split in ((moon, "train"), (long_texts, "validation"))
    )
    settings = {
        "data": text_folder(train=train, validation=validation),
        "block_size": 64,
        "batch_size": 4,
        "grad_accum": 1,
    }
    settings |= {"steps": 40, "eval_every": 4, "save_every": 4, "learning_rate": 3e-2, "patience": 1}
    uninterrupted = reference(**settings)
    last = steps_of(uninterrupted, "train")[-1]
    assert last < 40
    process, folder = begin(**settings, target=train_attentively)
    wait_until(lambda: has_measured(folder, "train", last), process)
    runs.request_action(folder, "pause")
    assert end(process) == 0
    assert runs.read_status(folder).step == last
    assert not has_measured(folder, "validation", last)
    assert end(go_on(folder)) == 0
    assert_same_run(folder, uninterrupted)


@pytest.mark.parametrize("number", [1, 11])
def test_stopped_run_keeps_a_model_and_resumes_to_the_same_bits(number, begin, go_on, uninterrupted):
    process, folder = begin()
    wait_until(lambda: lines(folder) >= number, process)
    runs.request_action(folder, "stop")
    assert end(process) == 0
    status, result = runs.read_status(folder), read_result(folder)
    assert (status.state, status.step) == ("stopped", result.steps)
    assert result.steps < 24
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
    for act in (resume, jobs.resume, lambda folder: runs.request_action(folder, "stop")):
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


def command(*arguments):
    return [sys.executable, "-m", *map(str, arguments)]


def start_command(arguments, **options):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True, "cwd": ROOT}
    return subprocess.Popen(command(*arguments), **pipes | options)


def arguments_for(model, data, **settings):
    options = {"model": model, "data": data, "lr": settings.pop("learning_rate"), **settings}
    return [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]


def test_process_that_the_system_asks_to_end_pauses_its_run(tiny_folder, moon, tmp_path, go_on):
    settings = SETTINGS | {"steps": 2_000, "eval_every": 500, "save_every": 500}
    options = arguments_for(tiny_folder, moon, **settings, run="mine", runs=tmp_path)
    with start_command(["gpt2lab", "finetune", *options, "--json"]) as running:
        psutil_process = psutil.Process(running.pid)
        folder = tmp_path / "mine"
        try:
            deadline = time.monotonic() + PATIENCE
            while lines(folder) < 2:
                assert running.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            running.send_signal(signal.SIGTERM)
            out, _ = running.communicate(timeout=PATIENCE)
        finally:
            if psutil_process.is_running():
                running.kill()
    status = runs.read_status(folder)
    assert running.returncode == 0
    assert (status.state, status.message) == ("stopped", f"paused at step {status.step}; resume continues from there")
    assert 0 < status.step < 2_000
    assert (folder / "checkpoints" / f"checkpoint-{status.step}" / "trainer_state.json").is_file()
    found = json.loads(out)
    assert (found["run"], found["steps"], found["stopped"], found["model_dir"]) == ("mine", status.step, True, None)


def test_process_that_the_system_asks_to_end_while_it_writes_the_report_ends(tiny_folder, moon, tmp_path):
    program = """if True:
        import time, gpt2lab.pages.run_report
        gpt2lab.pages.run_report.write_report = lambda folder: (print("writing", flush=True), time.sleep(100))
        from gpt2lab.cli import main
        main()"""
    options = arguments_for(tiny_folder, moon, **SETTINGS, run="mine", runs=tmp_path)
    options = [sys.executable, "-c", program, "finetune", *map(str, options)]
    with subprocess.Popen(options, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT) as running:
        try:
            assert running.stdout.readline() == "writing\n"
            running.send_signal(signal.SIGTERM)
            running.wait(30)
        finally:
            running.kill()
    assert running.returncode == -signal.SIGTERM
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
    """A function: what torchrun starts in two processes, and settings → the folders of their run and of one alone."""
    data = text_folder(train=" ".join(sentences[:2] * 10), validation=" ".join(sentences[2:] * 4))  # is soon overfitted
    settings = SETTINGS | {"grad_accum": 1, "steps": 9, "eval_every": 3, "precision": "fp32"}

    def run(*program, **changes):
        options = settings | changes
        process, alone = begin("alone", model=str(no_dropout_folder), **options | {"data": data, "batch_size": 4})
        assert end(process) == 0
        arguments = ["finetune", *arguments_for(no_dropout_folder, data, **options | {"batch_size": 2})]
        launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", 2, *program]
        done = subprocess.run(
            command(*launch, *arguments, "--runs", tmp_path / "together", "--run", "mine", "--json"),
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
        return tmp_path / "together" / "mine", alone

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
    together, alone = two_and_one("-m", "--", "gpt2lab")
    assert steps_of(together, "train") == list(range(1, 10))
    assert steps_of(together, "validation") == [0, 3, 6, 9]
    assert_same_losses(together, alone)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_two_processes_that_share_one_model_in_shards_train_as_one(two_and_one, method):
    together, alone = two_and_one("--", Path(__file__).with_name("fsdp_on_cpu.py"), method=method)
    assert any((path / "pytorch_model_fsdp_0").is_dir() for path in (together / "checkpoints").iterdir())
    assert_same_losses(together, alone)
    result, expected = read_result(together), read_result(alone)
    assert result.best_step == expected.best_step
    assert method == "lora" or result.best_step < 9  # an earlier one is put back
    labs = [load_model(str(one.model_dir), device="cpu") for one in (result, expected)]
    with torch.no_grad():
        found, other = (lab.model(lab.encode("the moon goes around the earth")[None]).logits for lab in labs)
    assert torch.allclose(found, other, atol=1e-3)

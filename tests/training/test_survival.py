"""Runs that are killed, stopped, paused and resumed, as real processes."""

import multiprocessing
import os
import random
import signal
import time

import pytest

from gpt2lab.training import runs
from gpt2lab.training.trainer import finetune, resume

PROCESSES = multiprocessing.get_context("forkserver")  # a fresh process without seconds of imports
PROCESSES.set_forkserver_preload(["gpt2lab.training.trainer"])
PATIENCE = 120  # seconds
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
}


def train_in_process(settings, runs_dir, run, cache):
    os.environ["GPT2LAB_CACHE"] = cache
    finetune(**settings, runs_dir=runs_dir, run=run)


def resume_in_process(folder, cache):
    os.environ["GPT2LAB_CACHE"] = cache
    resume(folder)


@pytest.fixture
def begin(tiny_folder, moon, tmp_path):
    """A function that starts a run in a process: (process, folder)."""

    def start(run="run", **changes):
        settings = {"model": str(tiny_folder), "data": moon, **SETTINGS, **changes}
        process = PROCESSES.Process(target=train_in_process, args=(settings, tmp_path, run, str(tmp_path / "cache")))
        process.start()
        return process, tmp_path / run

    return start


@pytest.fixture
def go_on(tmp_path):
    def start(folder):
        process = PROCESSES.Process(target=resume_in_process, args=(folder, str(tmp_path / "cache")))
        process.start()
        return process

    return start


@pytest.fixture(scope="module")
def uninterrupted(tiny_folder, moon, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    settings = {"model": str(tiny_folder), "data": moon, **SETTINGS}
    process = PROCESSES.Process(target=train_in_process, args=(settings, folder, "run", str(folder / "cache")))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == 0
    return folder / "run"


def measured(folder):
    """What must be the same in two runs: everything measured and written, but for the time it took."""
    metrics = [line | {"seconds": 0} for line in runs.read_lines(folder / "metrics.jsonl")]
    return metrics, runs.read_lines(folder / "samples.jsonl")


def assert_same_run(folder, reference):
    assert measured(folder) == measured(reference)
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (folder / "model" / file).read_bytes() == (reference / "model" / file).read_bytes()
    assert runs.read_status(folder).state == "finished"


def wait_until(condition, process):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.is_alive(), "the run ended before the moment came"
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def lines(folder):
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def unfinished_checkpoint(folder):
    made = (folder / "checkpoints").glob("checkpoint-*")
    return any(not (path / "trainer_state.json").exists() for path in made)


def test_uninterrupted_run_measures_what_it_should(uninterrupted):
    metrics, samples = measured(uninterrupted)
    assert [line["step"] for line in metrics if line["split"] == "train"] == list(range(1, 25))
    assert [line["step"] for line in metrics if line["split"] == "validation"] == list(range(0, 25, 4))
    assert [line["step"] for line in samples] == list(range(0, 25, 4))


MOMENTS = {
    "before the first step": lambda folder, seed: lines(folder) >= 1,
    "while a checkpoint is written": lambda folder, seed: unfinished_checkpoint(folder),
    "while a later checkpoint is written": lambda folder, seed: lines(folder) > 12 and unfinished_checkpoint(folder),
} | {f"random {seed}": None for seed in range(9)}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_run_resumes_to_the_same_numbers_and_the_same_bits(moment, begin, go_on, uninterrupted):
    process, folder = begin()
    if MOMENTS[moment]:
        wait_until(lambda: MOMENTS[moment](folder, 0), process)
    else:
        number = random.Random(moment).randrange(1, lines(uninterrupted))
        wait_until(lambda: lines(folder) >= number, process)
        time.sleep(random.Random(moment).random() * 0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert runs.read_status(folder).state == "crashed"
    process = go_on(folder)
    process.join(PATIENCE)
    assert process.exitcode == 0
    assert_same_run(folder, uninterrupted)

"""The process of a run, as a real one."""

import time

import pytest

from gpt2lab.errors import LabError
from gpt2lab.training import jobs, runs
from gpt2lab.training.config import TrainConfig

PATIENCE = 120  # seconds
SETTINGS = {"block_size": 16, "batch_size": 2, "steps": 3, "eval_every": 3, "prompt": "the moon", "precision": "fp32"}


def test_started_run_trains_to_its_end_and_writes_its_report(tiny_folder, moon, tmp_path):
    folder = jobs.start_run(TrainConfig(model=str(tiny_folder), data=moon, **SETTINGS), tmp_path, run="mine")
    deadline = time.monotonic() + PATIENCE
    while not (folder / "report.html").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    status, log = runs.read_status(folder), runs.log_tail(folder)
    assert (status.state, status.step) == ("finished", 3), log
    assert (folder / "report.html").exists(), log
    assert log.startswith(f"run mine in {tmp_path}\n")
    while status.message not in runs.log_tail(folder) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert runs.log_tail(folder).endswith(f"\nfinished: {status.message}\n")


def test_run_that_its_process_refuses_leaves_the_reason_and_no_folder(tiny_folder, moon, tmp_path):
    config = TrainConfig(model=str(tiny_folder), data=moon, **SETTINGS | {"block_size": 65})
    with pytest.raises(LabError, match=r"^a block of 65 tokens is past the context of"):
        jobs.start_run(config, tmp_path / "runs", run="mine")
    assert list((tmp_path / "runs").iterdir()) == []


def test_cost_is_measured_and_bad_settings_are_refused_as_they_are_here(tiny_folder, moon, tmp_path):
    config = TrainConfig(model=str(tiny_folder), data=moon, **SETTINGS)
    assert jobs.estimate_cost_in_worker(config, tmp_path)["steps, tokens"] == "3 steps, 96 tokens"
    with pytest.raises(LabError, match=r"^no text '/no': no such file") as caught:
        jobs.estimate_cost_in_worker(TrainConfig(model=str(tiny_folder), data="/no"), tmp_path)
    assert caught.value.values["name"] == "/no"

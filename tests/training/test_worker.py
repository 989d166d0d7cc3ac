"""The process of a run."""

import pytest

from gpt2lab.errors import LabError
from gpt2lab.training import jobs
from gpt2lab.training.config import TrainConfig
from tests.processes import Worker

SETTINGS = {"block_size": 16, "batch_size": 2, "steps": 3, "eval_every": 3, "prompt": "the moon", "precision": "fp32"}


def test_run_that_its_process_refuses_leaves_the_reason_and_no_folder(tiny_folder, moon, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs.subprocess, "Popen", Worker)
    config = TrainConfig(model=str(tiny_folder), data=moon, **SETTINGS | {"block_size": 65})
    with pytest.raises(LabError, match=r"^a block of 65 tokens is past the context of"):
        jobs.start_run(config, tmp_path / "runs", run="mine")
    assert list((tmp_path / "runs").iterdir()) == []


def test_cost_is_measured_in_a_process(tiny_folder, moon, tmp_path):
    config = TrainConfig(model=str(tiny_folder), data=moon, **SETTINGS)
    assert jobs.cost_in_worker(config, tmp_path)["in_words"]["Length"] == "3 steps, 96 tokens"

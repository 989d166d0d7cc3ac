import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from gpt2lab.data.blocks import pack
from gpt2lab.errors import LabError
from gpt2lab.training import cost, jobs
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.cost import Cost, Stopwatch, estimate_cost

V, T, D, L = 300, 64, 32, 2  # vocabulary, context, width and layers of the tiny model
PARAMETERS = V * D + T * D + L * (12 * D * D + 13 * D) + 2 * D  # tied head; a block is 12 D² + 13 D
RANK = 3
ADDITIONS = L * RANK * (D + 3 * D)  # to each D × 3D projection, rank × D and rank × 3D
BLOCK = 16
IMPORTS = 1000.0  # seconds


@pytest.fixture
def estimate(tiny_folder, moon, tmp_path, monkeypatch):
    """A function: changes to a run's settings → what it would cost, where its imports take IMPORTS."""
    monkeypatch.setattr(cost, "import_seconds", lambda: IMPORTS)

    def ask(**changes):
        settings = {"model": str(tiny_folder), "data": moon, "block_size": BLOCK, "batch_size": 2, "grad_accum": 2}
        return estimate_cost(TrainConfig(**settings | changes), tmp_path / "runs")

    return ask


def test_full_run_trains_every_parameter(estimate):
    found = estimate(steps=50)
    assert (found.parameters, found.trained) == (PARAMETERS, PARAMETERS)
    assert found.disk == 3 * 3 * 4 * PARAMETERS + 4 * PARAMETERS  # 3 checkpoints of weights and 2 moments; the model
    assert (found.steps, found.tokens) == (50, 50 * 2 * 2 * BLOCK)


def test_low_rank_run_trains_its_additions_alone(estimate):
    found = estimate(method="lora", lora_rank=RANK, steps=3)
    assert (found.parameters, found.trained) == (PARAMETERS + ADDITIONS, ADDITIONS)
    least = 3 * 3 * 4 * ADDITIONS + 4 * PARAMETERS
    assert least <= found.disk <= least + 4 * ADDITIONS


def test_length_in_epochs_is_reported_in_steps(estimate, tiny_lab, moon):
    tokens = len(tiny_lab.encode((Path(moon) / "train.txt").read_text(encoding="utf-8"))) + 1  # the end of the text
    blocks = -(-tokens // BLOCK)
    a_pass = -(-blocks // 4)
    assert estimate(epochs=2).steps == 2 * a_pass


def test_run_that_is_shorter_than_the_probe_is_measured_too(estimate):
    found = estimate(steps=1)
    assert (found.steps, found.tokens) == (1, 2 * 2 * BLOCK)
    assert found.seconds > 0


def test_cost_is_in_range_of_this_machine(estimate, tmp_path):
    found = estimate(steps=100_000)
    assert 0 < found.seconds_doubt < found.seconds
    assert IMPORTS + found.training_seconds < found.seconds
    assert 50e6 < found.memory < 100e9
    free = shutil.disk_usage(tmp_path).free
    assert found.disk_free == pytest.approx(free, rel=0.1)
    assert estimate(steps=10).seconds < found.seconds


def test_imports_take_as_long_as_a_fresh_process_is_old_and_are_measured_in_an_older_one(monkeypatch):
    ran = []

    def run(command, **options):
        assert command[:2] == [sys.executable, "-c"] and options["check"]
        exec(command[2])
        ran.append(command[2])

    monkeypatch.setattr(cost.subprocess, "run", run)
    monkeypatch.setattr(cost, "FRESH_SECONDS", float("inf"))
    assert cost.import_seconds() == pytest.approx(time.time() - psutil.Process().create_time(), abs=5)
    assert ran == []
    monkeypatch.setattr(cost, "FRESH_SECONDS", 0.0)
    assert cost.import_seconds() > 0
    assert ran == ["import gpt2lab.training.finetuning"]


def test_asking_what_a_run_would_cost_leaves_nothing_behind(estimate, tiny_folder, tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    before = {path: path.read_bytes() for path in tiny_folder.iterdir()}
    estimate(steps=2)
    assert not (tmp_path / "runs").exists()
    assert [*(tmp_path / "scratch").iterdir()] == []
    assert {path: path.read_bytes() for path in tiny_folder.iterdir()} == before


def test_cost_is_not_measured_while_a_run_is_training_here(estimate, tmp_path):
    with jobs.machine_lock(tmp_path / "runs" / "busy"), pytest.raises(LabError, match=r"run 'busy' in .* is training"):
        estimate(steps=2)
    assert estimate(steps=2).steps == 2


@pytest.mark.parametrize(
    ("change", "message"), [({"block_size": 65}, "past the context"), ({"data": "/no"}, "no text")]
)
def test_run_that_could_not_begin_has_no_cost(estimate, change, message):
    with pytest.raises(LabError, match=message):
        estimate(steps=2, **change)


COST = Cost(
    parameters=124_439_808,
    trained=294_912,
    precision="fp32",
    learning_rate=2e-4,
    batch_size=2,
    grad_accum=2,
    block_size=512,
    steps=1200,
    tokens=2_457_600,
    validations=11,
    eval_tokens=65_000,
    split_tokens=280_000,
    seconds=5400,
    seconds_doubt=810,
    training_seconds=4800,
    validation_seconds=480,
    whole_seconds=90,
    memory=3_200_000_000,
    disk=1_990_000_000,
    disk_free=50_000_000_000,
)


def test_cost_in_words_has_its_units():
    assert dict(COST.lines()) == {
        "Parameters trained": "294,912 of 124,439,808",
        "Settings": "fp32, learning rate 0.0002, 2 × 2 blocks of 512 tokens per step",
        "Length": "1,200 steps, 2,457,600 tokens",
        "Training": "80 min",
        "Validation": "8 min: 11 × 65,000 of 280,000 tokens",
        "Whole validation split": "90 s, before and after",
        "Total time": "1.5 h ± 14 min, less if it stops early",
        "Peak memory": "3.2 GB",
        "Disk": "1,990 MB of 50.0 GB free",
    }


def test_whole_split_is_a_line_of_its_own_only_where_it_is_sampled():
    assert dict(replace(COST, whole_seconds=0.0).lines())["Whole validation split"] == "not scored at the end"
    whole = dict(replace(COST, eval_tokens=280_000, whole_seconds=0.0).lines())
    assert whole["Validation"] == "8 min: 11 × 280,000 tokens"
    assert "Whole validation split" not in whole


def test_step_of_several_forward_passes_has_one_optimizer_update():
    watch = Stopwatch(passes=2)
    watch.steps, watch.optimizer = [9.0, 4.5, 4.5, 4.5], [3.0, 0.5, 0.5, 0.5]  # the first warms up
    assert watch.step_seconds(2) == 4.5
    assert watch.step_seconds(1) == 2.5
    assert watch.step_seconds(4) == 8.5
    assert watch.spread == 0


def test_first_blocks_are_the_first():
    blocks = pack(np.arange(50), 8)
    few = cost.first_blocks(blocks, 2)
    assert few.input_ids.tolist() == [list(range(8)), list(range(8, 16))]
    assert few.labels.tolist() == few.input_ids.tolist()

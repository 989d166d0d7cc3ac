import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from gpt2lab.app.models import ModelStore
from gpt2lab.app.results import ResultCache
from gpt2lab.errors import LabError
from gpt2lab.inspection.exploration import exploration
from gpt2lab.inspection.heads import head_scores, induction_scores


@pytest.fixture
def results(tmp_path, monkeypatch, tiny_lab):
    """A cache over a store that loads the tiny model for every label."""
    monkeypatch.setattr("gpt2lab.app.models.load_model", lambda location: replace(tiny_lab, name=location))
    return ResultCache(ModelStore(tmp_path / "runs"))


@pytest.fixture
def explored(results, monkeypatch):
    """The (label, text) that exploration was called with."""
    calls = []

    def recorded(lab, text, **options):
        assert results.store.lock.locked()
        calls.append((lab.name, text))
        return exploration(lab, text, **options)

    monkeypatch.setattr("gpt2lab.app.results.exploration", recorded)
    return calls


def add_run(results, run):
    """Add a run's model; return its weights file."""
    model = results.store.runs_dir / run / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"before")
    return model / "model.safetensors"


def test_exploration_is_computed_once_for_a_model_and_a_text(results, explored):
    first = results.exploration("builtin", "The moon")
    assert results.exploration("builtin", "The moon") is first
    assert first.seen.name == "builtin"
    results.exploration("builtin", "The sea")
    results.exploration("gpt2", "The moon")
    assert explored == [("builtin", "The moon"), ("builtin", "The sea"), ("gpt2", "The moon")]
    assert not results.store.lock.locked()


def test_induction_of_a_model_is_measured_once(results, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "gpt2lab.app.results.induction_scores", lambda lab: calls.append(lab.name) or induction_scores(lab)
    )
    found = [results.exploration("builtin", text) for text in ("The moon", "The sea")]
    assert calls == ["builtin"]
    for each in found:
        torch.testing.assert_close(
            each.scores.induction, head_scores(results.store.lab("builtin"), ["The moon"]).induction
        )


@pytest.mark.parametrize("label", ["../secret", "", None, ["builtin"]])
def test_label_that_is_not_offered_is_refused(results, explored, label):
    with pytest.raises(LabError, match="is unknown; use builtin, gpt2, "):
        results.exploration(label, "The moon")
    assert explored == []
    assert not results.store.lock.locked()


def test_result_that_fails_is_not_kept_and_leaves_the_lock_free(results):
    for _ in range(2):
        with pytest.raises(LabError, match="is empty"):
            results.exploration("builtin", "")
        assert not results.store.lock.locked()


def test_new_run_is_explored_without_a_restart(results, explored):
    with pytest.raises(LabError, match="is unknown"):
        results.exploration("my-run", "x")
    add_run(results, "my-run")
    results.exploration("my-run", "x")
    assert explored == [("my-run", "x")]


def test_results_of_a_replaced_model_are_computed_again(results):
    weights = add_run(results, "run")
    first = results.exploration("run", "moon")
    os.utime(weights, (1, 1))
    assert results.exploration("run", "moon") is not first


def test_kept_evaluations_have_keys_that_are_not_guessed(results):
    keys = [results.add_evaluation(object()) for _ in range(50)]
    assert len(set(keys)) == 50
    assert all(isinstance(key, str) and len(key) >= 16 for key in keys)


def test_evaluations_of_many_visitors_are_kept_while_there_is_room(tmp_path, monkeypatch):
    monkeypatch.setattr("gpt2lab.app.results.RESULT_BYTES", 100_000)
    results = ResultCache(ModelStore(tmp_path))
    first = results.add_evaluation(np.zeros(1000))  # 8,000 bytes
    others = [results.add_evaluation(np.zeros(1000)) for _ in range(8)]
    assert results.evaluation(first) is not None
    for _ in range(4):
        results.add_evaluation(np.zeros(1000))
    assert results.evaluation(first) is not None  # it was used last
    for key in (others[0], None, "", 7, [first]):
        with pytest.raises(LabError, match="There is no evaluation here any more"):
            results.evaluation(key)


def test_equal_evaluations_are_kept_apart(results):
    assert results.add_evaluation((1, 2)) != results.add_evaluation((1, 2))

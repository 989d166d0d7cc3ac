import os
from dataclasses import replace

import numpy as np
import pytest

from gpt2lab.app.models import ModelStore
from gpt2lab.app.results import ResultCache
from gpt2lab.errors import LabError
from gpt2lab.inspection.trace import trace


@pytest.fixture
def results(tmp_path, monkeypatch, tiny_lab):
    """A cache over a store that loads the tiny model for every label."""
    monkeypatch.setattr("gpt2lab.app.models.load_model", lambda location: replace(tiny_lab, name=location))
    return ResultCache(ModelStore(tmp_path / "runs"))


@pytest.fixture
def traced(results, monkeypatch):
    """The (label, text) that trace was called with."""
    calls = []

    def recorded(lab, text, *, cut):
        assert results.store.lock.locked()
        calls.append((lab.name, text))
        return trace(lab, text, cut=cut)

    monkeypatch.setattr("gpt2lab.app.results.trace", recorded)
    return calls


def add_run(results, run):
    """Add a run's model; return its weights file."""
    model = results.store.runs_dir / run / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"before")
    return model / "model.safetensors"


def test_trace_is_computed_once_for_a_model_and_a_text(results, traced):
    first = results.trace("builtin", "The moon")
    assert results.trace("builtin", "The moon") is first
    assert first.name == "builtin"
    results.trace("builtin", "The sea")
    results.trace("gpt2", "The moon")
    assert traced == [("builtin", "The moon"), ("builtin", "The sea"), ("gpt2", "The moon")]


def test_every_kind_of_result_is_computed_once(results):
    for compute in (results.scores, results.lens, results.surprisal):
        first = compute("builtin", "The moon")
        assert compute("builtin", "The moon") is first
        assert compute("builtin", "The sea") is not first
    pair = ("builtin", "The moon", "gpt2", "The moon")
    assert results.comparison(*pair) is results.comparison(*pair)
    assert not results.store.lock.locked()


@pytest.mark.parametrize("label", ["../secret", "", None, ["builtin"]])
def test_label_that_is_not_offered_is_refused(results, traced, label):
    for compute in (results.trace, results.scores, results.lens, results.surprisal):
        with pytest.raises(LabError, match="is unknown; use builtin, gpt2, "):
            compute(label, "The moon")
    assert traced == []
    assert not results.store.lock.locked()


def test_result_that_fails_is_not_kept_and_leaves_the_lock_free(results):
    for _ in range(2):
        for compute in (results.trace, results.lens, results.surprisal):
            with pytest.raises(LabError, match="is empty"):
                compute("builtin", "")
            assert not results.store.lock.locked()


def test_new_run_is_traced_without_a_restart(results, traced):
    with pytest.raises(LabError, match="is unknown"):
        results.trace("my-run", "x")
    add_run(results, "my-run")
    results.trace("my-run", "x")
    assert traced == [("my-run", "x")]


def test_results_of_a_replaced_model_are_computed_again(results):
    weights = add_run(results, "run")
    first = results.trace("run", "moon"), results.surprisal("run", "moon")
    os.utime(weights, (1, 1))
    assert results.trace("run", "moon") is not first[0]
    assert results.surprisal("run", "moon") is not first[1]


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

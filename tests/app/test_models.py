import os
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from gpt2lab.app import models
from gpt2lab.app.models import ModelStore
from gpt2lab.data import hub
from gpt2lab.data.sources import HUB_MODELS
from gpt2lab.errors import LabError


@pytest.fixture
def store(tmp_path):
    return ModelStore(tmp_path / "runs")


@dataclass(frozen=True, eq=False)
class Loaded:
    """A Lab of 4,000 bytes of weights."""

    location: str
    name: str = "a folder of this machine"

    @property
    def model(self):
        return Weights


class Weights:
    @staticmethod
    def parameters():
        return [torch.zeros(1000)]

    @staticmethod
    def buffers():
        return []


@pytest.fixture
def loaded(monkeypatch, store):
    """The locations that load_model was called with; each call gives a new object."""
    calls = []

    def load(location):
        assert not store.lock.locked()
        calls.append(location)
        return Loaded(location)

    monkeypatch.setattr("gpt2lab.app.models.load_model", load)
    return calls


def leave_model(store, run, at=100):
    model = store.runs_dir / run / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    os.utime(model / "config.json", (at, at))
    return str(model)


def test_offered_are_the_builtin_the_hubs_and_the_runs_newest_first(store):
    assert store.labels() == ["builtin", *HUB_MODELS]
    leave_model(store, "older", at=100)
    leave_model(store, "newer", at=200)
    assert store.labels() == ["builtin", *HUB_MODELS, "newer", "older"]


def test_label_is_the_models_name_and_a_runs_label_its_folder(store):
    folder = leave_model(store, "my-run")
    assert store.location("builtin") == "builtin"
    assert store.location("gpt2-medium") == "gpt2-medium"
    assert store.location("my-run") == folder


@pytest.mark.parametrize(
    "label",
    ["../secret", "runs/my-run", "my-run/model", "/etc", ".", "", "auto", "openai/gpt2", "GPT2", None, 0, ["builtin"]],
)
def test_label_that_is_not_offered_is_refused_and_nothing_is_loaded(store, loaded, label):
    leave_model(store, "my-run")
    for ask in (store.location, store.lab, store.version):
        with pytest.raises(LabError, match=r"is unknown; use builtin, gpt2, .*, my-run"):
            ask(label)
    assert loaded == []
    assert not store.lock.locked()


def test_path_of_a_runs_model_is_not_taken_for_its_label(store, loaded):
    folder = leave_model(store, "my-run")
    with pytest.raises(LabError, match="is unknown"):
        store.lab(folder)
    assert loaded == []


def test_long_label_is_refused_in_a_short_line(store):
    with pytest.raises(LabError) as caught:
        store.location("x" * 100_000)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("run", ["builtin", "gpt2"])
def test_run_named_like_an_offered_model_does_not_take_its_place(store, run):
    leave_model(store, run)
    assert store.location(run) == run
    assert store.labels().count(run) == 1


def test_model_is_loaded_at_its_first_use_and_once(store, loaded):
    folder = leave_model(store, "my-run")
    first = store.lab("builtin")
    assert store.lab("builtin") is first
    assert (store.lab("my-run").location, store.lab("builtin")) == (folder, first)
    assert loaded == ["builtin", folder]


def test_models_past_the_limit_of_bytes_push_out_the_one_not_used_for_longest(tmp_path, monkeypatch, loaded):
    monkeypatch.setattr(models, "MODEL_BYTES", 12_500)  # three
    store = ModelStore(tmp_path / "runs")
    for label in ("builtin", "gpt2", "distilgpt2", "builtin", "gpt2-medium"):
        store.lab(label)
    assert loaded == ["builtin", "gpt2", "distilgpt2", "gpt2-medium"]
    for label in ("builtin", "distilgpt2", "gpt2-medium"):
        store.lab(label)
    assert len(loaded) == 4
    store.lab("gpt2")
    assert loaded[4:] == ["gpt2"]


def test_model_that_is_not_downloaded_is_refused_and_not_fetched(store, loaded, monkeypatch):
    monkeypatch.setattr(hub, "is_downloaded", lambda name: name != "gpt2")
    with pytest.raises(LabError, match="gpt2 is not downloaded; choose it as Model and press Download"):
        store.lab("gpt2")
    assert loaded == []
    store.lab("builtin")


def test_a_model_runs_while_another_is_loaded(store, monkeypatch):
    is_loading, may_end = threading.Event(), threading.Event()

    def load(location):
        if location == "gpt2":
            is_loading.set()
            assert may_end.wait(10)
        return Loaded(location)

    monkeypatch.setattr("gpt2lab.app.models.load_model", load)
    store.lab("builtin")
    thread = threading.Thread(target=store.lab, args=("gpt2",))
    thread.start()
    assert is_loading.wait(10)
    assert store.with_model("builtin", lambda lab: lab.name) == "builtin"
    assert list(store.locked_steps(iter([1, 2]))) == [1, 2]
    may_end.set()
    thread.join()


def test_model_that_cannot_be_loaded_is_tried_again(store, monkeypatch):
    answers = iter([LabError("unreachable"), Loaded("gpt2")])

    def load(location):
        answer = next(answers)
        if isinstance(answer, LabError):
            raise answer
        return answer

    monkeypatch.setattr("gpt2lab.app.models.load_model", load)
    with pytest.raises(LabError, match="unreachable"):
        store.lab("gpt2")
    assert not store.lock.locked()
    assert store.lab("gpt2").location == "gpt2"


def test_visitors_who_come_at_once_share_one_model(store, loaded):
    labs, together = [], threading.Barrier(8)

    def visit():
        together.wait()
        labs.append(store.lab("builtin"))

    threads = [threading.Thread(target=visit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loaded == ["builtin"]
    assert len(labs) == 8
    assert {id(lab) for lab in labs} == {id(labs[0])}


def test_lock_is_held_for_each_item_and_free_between_them(store):
    held = []

    def steps():
        for i in range(3):
            held.append(store.lock.locked())
            yield i
        held.append(store.lock.locked())

    seen = []
    for item in store.locked_steps(steps()):
        assert not store.lock.locked()
        seen.append(item)
    assert seen == [0, 1, 2]
    assert held == [True] * 4
    assert not store.lock.locked()


def test_items_that_are_false_do_not_end_the_iteration(store):
    assert list(store.locked_steps(iter([None, 0, "", ()]))) == [None, 0, "", ()]


def test_lock_is_free_after_an_item_fails(store):
    def steps():
        yield 1
        raise RuntimeError("the model broke")

    items = store.locked_steps(steps())
    assert next(items) == 1
    with pytest.raises(RuntimeError, match="the model broke"):
        next(items)
    assert not store.lock.locked()


def test_lock_is_free_after_a_visitor_leaves_midway(store):
    items = store.locked_steps(iter(range(5)))
    next(items)
    items.close()
    assert not store.lock.locked()


def test_iteration_may_continue_in_another_thread(store):
    items, seen = store.locked_steps(iter(range(3))), []
    seen.append(next(items))
    thread = threading.Thread(target=lambda: seen.extend(items))
    thread.start()
    thread.join()
    assert seen == [0, 1, 2]


def test_two_visitors_take_turns_item_by_item(store):
    running = []

    def steps(name):
        for i in range(3):
            running.append(name)
            assert running == [name]
            running.remove(name)
            yield name, i

    one, two = store.locked_steps(steps("one")), store.locked_steps(steps("two"))
    assert [item for pair in zip(one, two) for item in pair] == [(name, i) for i in range(3) for name in ("one", "two")]


def test_model_that_a_resumed_run_has_replaced_is_loaded_again(store, loaded):
    weights = Path(leave_model(store, "run")) / "model.safetensors"
    weights.write_bytes(b"before")
    first = store.lab("run")
    assert store.lab("run") is first
    os.utime(weights, (1, 1))
    assert store.lab("run") is not first


def test_locked_steps_return_what_the_steps_return(store):
    returned = []

    def steps():
        assert store.lock.locked()
        yield 1
        assert store.lock.locked()
        return "the end"

    def collect():
        returned.append((yield from store.locked_steps(steps())))

    for item in collect():
        assert item == 1
        assert not store.lock.locked()
    assert returned == ["the end"]
    assert not store.lock.locked()


def test_steps_of_a_visitor_who_leaves_are_closed_at_once(store):
    closed = threading.Event()

    def steps():
        try:
            yield from range(5)
        finally:
            closed.set()

    items = store.locked_steps(steps())
    next(items)
    assert not closed.is_set()
    items.close()
    del items
    assert closed.is_set()

import os
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import gpt2lab.inspection.trace
import gpt2lab.model.lab
from gpt2lab.app import shelf as shelves
from gpt2lab.app.shelf import Shelf
from gpt2lab.data import hub
from gpt2lab.data.sources import HUB_MODELS
from gpt2lab.errors import LabError


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path / "runs")


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
def loaded(monkeypatch, shelf):
    """The locations that load_model was called with; each call gives a new object."""
    calls = []

    def load(location):
        assert not shelf.lock.locked()
        calls.append(location)
        return Loaded(location)

    monkeypatch.setattr(gpt2lab.model.lab, "load_model", load)
    return calls


@dataclass(frozen=True, eq=False)
class Traced:
    text: str
    name: str


@pytest.fixture
def traced(monkeypatch, shelf, loaded):
    """The (location, text) that trace was called with; each call gives a new object."""
    calls = []

    def trace(lab, text, *, cut):
        assert shelf.lock.locked()
        calls.append((lab.location, text))
        return Traced(text, lab.name)

    monkeypatch.setattr(gpt2lab.inspection.trace, "trace", trace)
    return calls


def leave_model(shelf, run, at=100):
    model = shelf.runs_dir / run / "model"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    os.utime(model / "config.json", (at, at))
    return str(model)


def test_offered_are_the_builtin_the_hubs_and_the_runs_newest_first(shelf):
    assert shelf.labels() == ["builtin", *HUB_MODELS]
    leave_model(shelf, "older", at=100)
    leave_model(shelf, "newer", at=200)
    assert shelf.labels() == ["builtin", *HUB_MODELS, "newer", "older"]


def test_label_is_the_models_name_and_a_runs_label_its_folder(shelf):
    folder = leave_model(shelf, "my-run")
    assert shelf.location("builtin") == "builtin"
    assert shelf.location("gpt2-medium") == "gpt2-medium"
    assert shelf.location("my-run") == folder


@pytest.mark.parametrize(
    "label",
    ["../secret", "runs/my-run", "my-run/model", "/etc", ".", "", "auto", "openai/gpt2", "GPT2", None, 0, ["builtin"]],
)
def test_label_that_is_not_offered_is_refused_and_nothing_is_loaded(shelf, loaded, traced, label):
    leave_model(shelf, "my-run")
    for ask in (shelf.location, shelf.lab, lambda label: shelf.trace(label, "x")):
        with pytest.raises(LabError, match=r"is unknown; use builtin, gpt2, .*, my-run"):
            ask(label)
    assert loaded == traced == []
    assert not shelf.lock.locked()


def test_path_of_a_runs_model_is_not_taken_for_its_label(shelf, loaded):
    folder = leave_model(shelf, "my-run")
    with pytest.raises(LabError, match="is unknown"):
        shelf.lab(folder)
    assert loaded == []


def test_long_label_is_refused_in_a_short_line(shelf):
    with pytest.raises(LabError) as caught:
        shelf.location("x" * 100_000)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("run", ["builtin", "gpt2"])
def test_run_named_like_an_offered_model_does_not_take_its_place(shelf, run):
    leave_model(shelf, run)
    assert shelf.location(run) == run
    assert shelf.labels().count(run) == 1


def test_model_is_loaded_at_its_first_use_and_once(shelf, loaded):
    folder = leave_model(shelf, "my-run")
    first = shelf.lab("builtin")
    assert shelf.lab("builtin") is first
    assert (shelf.lab("my-run").location, shelf.lab("builtin")) == (folder, first)
    assert loaded == ["builtin", folder]


def test_models_past_the_limit_of_bytes_push_out_the_one_not_used_for_longest(tmp_path, monkeypatch, loaded):
    monkeypatch.setattr(shelves, "MODEL_BYTES", 12_500)  # three
    shelf = Shelf(tmp_path / "runs")
    for label in ("builtin", "gpt2", "distilgpt2", "builtin", "gpt2-medium"):
        shelf.lab(label)
    assert loaded == ["builtin", "gpt2", "distilgpt2", "gpt2-medium"]
    for label in ("builtin", "distilgpt2", "gpt2-medium"):
        shelf.lab(label)
    assert len(loaded) == 4
    shelf.lab("gpt2")
    assert loaded[4:] == ["gpt2"]


def test_model_that_is_not_downloaded_is_refused_and_not_fetched(shelf, loaded, monkeypatch):
    monkeypatch.setattr(hub, "is_downloaded", lambda name: name != "gpt2")
    with pytest.raises(LabError, match="gpt2 is not downloaded; choose it as Model and press Download"):
        shelf.lab("gpt2")
    assert loaded == []
    shelf.lab("builtin")


def test_a_model_runs_while_another_is_loaded(shelf, monkeypatch):
    shelf_is_loading, may_end = threading.Event(), threading.Event()

    def load(location):
        if location == "gpt2":
            shelf_is_loading.set()
            assert may_end.wait(10)
        return Loaded(location)

    monkeypatch.setattr(gpt2lab.model.lab, "load_model", load)
    shelf.lab("builtin")
    thread = threading.Thread(target=shelf.lab, args=("gpt2",))
    thread.start()
    assert shelf_is_loading.wait(10)
    assert shelf.run("builtin", lambda lab: lab.name) == "builtin"
    assert list(shelf.each(iter([1, 2]))) == [1, 2]
    may_end.set()
    thread.join()


def test_model_that_cannot_be_loaded_is_tried_again(shelf, monkeypatch):
    answers = iter([LabError("out of reach"), Loaded("gpt2")])

    def load(location):
        answer = next(answers)
        if isinstance(answer, LabError):
            raise answer
        return answer

    monkeypatch.setattr(gpt2lab.model.lab, "load_model", load)
    with pytest.raises(LabError, match="out of reach"):
        shelf.lab("gpt2")
    assert not shelf.lock.locked()
    assert shelf.lab("gpt2").location == "gpt2"


def test_visitors_who_come_at_once_share_one_model(shelf, loaded):
    labs, together = [], threading.Barrier(8)

    def visit():
        together.wait()
        labs.append(shelf.lab("builtin"))

    threads = [threading.Thread(target=visit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loaded == ["builtin"]
    assert len(labs) == 8
    assert {id(lab) for lab in labs} == {id(labs[0])}


def test_trace_is_made_once_for_a_model_and_a_text(shelf, loaded, traced):
    first = shelf.trace("builtin", "The moon")
    assert shelf.trace("builtin", "The moon") is first
    assert (first.text, first.name) == ("The moon", "builtin")
    shelf.trace("builtin", "The sea")
    shelf.trace("gpt2", "The moon")
    assert traced == [("builtin", "The moon"), ("builtin", "The sea"), ("gpt2", "The moon")]
    assert loaded == ["builtin", "gpt2"]


def test_trace_that_fails_is_not_kept_and_leaves_the_lock_free(shelf, loaded, monkeypatch):
    def refuse(lab, text, *, cut):
        raise LabError("the prompt is empty")

    monkeypatch.setattr(gpt2lab.inspection.trace, "trace", refuse)
    for _ in range(2):
        with pytest.raises(LabError, match="the prompt is empty"):
            shelf.trace("builtin", "")
    assert not shelf.lock.locked()


def test_run_that_is_new_is_offered_and_traced_without_a_restart(shelf, traced):
    with pytest.raises(LabError):
        shelf.trace("my-run", "x")
    folder = leave_model(shelf, "my-run")
    shelf.trace("my-run", "x")
    assert traced == [(folder, "x")]


def test_lock_is_held_for_each_item_and_free_between_them(shelf):
    held = []

    def steps():
        for i in range(3):
            held.append(shelf.lock.locked())
            yield i
        held.append(shelf.lock.locked())

    seen = []
    for item in shelf.each(steps()):
        assert not shelf.lock.locked()
        seen.append(item)
    assert seen == [0, 1, 2]
    assert held == [True] * 4
    assert not shelf.lock.locked()


def test_items_that_are_false_do_not_end_the_iteration(shelf):
    assert list(shelf.each(iter([None, 0, "", ()]))) == [None, 0, "", ()]


def test_lock_is_free_after_an_item_fails(shelf):
    def steps():
        yield 1
        raise RuntimeError("the model broke")

    items = shelf.each(steps())
    assert next(items) == 1
    with pytest.raises(RuntimeError, match="the model broke"):
        next(items)
    assert not shelf.lock.locked()


def test_lock_is_free_after_a_visitor_leaves_midway(shelf):
    items = shelf.each(iter(range(5)))
    next(items)
    items.close()
    assert not shelf.lock.locked()


def test_iteration_may_go_on_in_another_thread(shelf):
    items, seen = shelf.each(iter(range(3))), []
    seen.append(next(items))
    thread = threading.Thread(target=lambda: seen.extend(items))
    thread.start()
    thread.join()
    assert seen == [0, 1, 2]


def test_two_visitors_take_turns_item_by_item(shelf):
    running = []

    def steps(name):
        for i in range(3):
            running.append(name)
            assert running == [name]
            running.remove(name)
            yield name, i

    one, two = shelf.each(steps("one")), shelf.each(steps("two"))
    assert [item for pair in zip(one, two) for item in pair] == [(name, i) for i in range(3) for name in ("one", "two")]


def test_model_that_a_resumed_run_has_replaced_is_loaded_anew(shelf, loaded, traced):
    weights = Path(leave_model(shelf, "run")) / "model.safetensors"
    weights.write_bytes(b"before")
    first, seen = shelf.lab("run"), shelf.trace("run", "moon")
    assert (shelf.lab("run"), shelf.trace("run", "moon")) == (first, seen)
    os.utime(weights, (1, 1))
    assert shelf.lab("run") is not first
    assert shelf.trace("run", "moon") is not seen

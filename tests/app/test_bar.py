"""The bar's choices, from links and from what a browser kept."""

import pytest

from gpt2lab.app import bar
from gpt2lab.app.bar import labels_of, status_line
from gpt2lab.app.events import ALONE
from gpt2lab.app.models import ModelStore
from gpt2lab.data.sources import Choice
from gpt2lab.errors import Message


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return ModelStore(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize(
    ("wanted", "labels"),
    [
        ({"model": "gpt2", "compare": "builtin"}, ("gpt2", "builtin")),
        ({"model": "../../etc", "compare": "gpt2"}, ("builtin", "gpt2")),
        ({"model": ["gpt2"], "compare": {"a": 1}}, ("builtin", ALONE)),
        *[(anything, ("builtin", ALONE)) for anything in (None, [], "gpt2", 7, {}, {"model": None})],
    ],
)
def test_only_offered_models_are_taken_over(store, wanted, labels):
    assert labels_of(store, wanted) == labels


def test_status_describes_models_on_this_machine_and_recommends_a_better_one(store, monkeypatch):
    monkeypatch.setattr(bar.hub, "is_downloaded", lambda name: name == "builtin")
    monkeypatch.setattr(bar, "auto_choice", lambda: Choice("gpt2", "sample", Message("gpt2 is downloaded")))
    shape = store.lab("builtin").shape
    lines = status_line(store, "builtin", "distilgpt2").split("<br>")
    assert lines == [f"**builtin**: {shape}, cpu.", "Recommended on this machine: gpt2 (gpt2 is downloaded)."]
    monkeypatch.setattr(bar, "auto_choice", lambda: Choice("builtin", "sample", Message("x")))
    assert status_line(store, "builtin", ALONE) == f"**builtin**: {shape}, cpu."

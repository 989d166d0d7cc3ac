"""The Explore tab's functions: what the page gets, what its views may ask, and bad input."""

import base64
import json
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest

from gpt2lab.app.events import ALONE
from gpt2lab.app.explore import asked, page_value
from gpt2lab.app.models import ModelStore
from gpt2lab.app.results import ResultCache
from gpt2lab.errors import LabError
from gpt2lab.inspection.exploration import exploration
from gpt2lab.inspection.surprisal import surprisal
from gpt2lab.pages.explore import SAVED
from gpt2lab.pages.export import FORMATS
from gpt2lab.widgets.base import answered

TEXT = "The moon is round and the moon is old."
SUBJECT = {"models": ["builtin"], "text": TEXT}


@pytest.fixture
def results(tmp_path, monkeypatch, tiny_lab):
    """A cache over a store that loads the tiny model for every label."""
    monkeypatch.setattr("gpt2lab.app.models.load_model", lambda location: replace(tiny_lab, name=location))
    return ResultCache(ModelStore(tmp_path / "runs"))


@pytest.fixture
def ask(results):
    """A function: kind and options → what a view gets."""

    def ask(kind, subject=SUBJECT, **options):
        request = {"subject": subject}
        return answered(lambda kind, options: asked(results, request, kind, options), kind, options)

    return ask


def test_page_has_the_numbers_of_the_package(results, tiny_lab):
    value = page_value(results, "builtin", TEXT, "gpt2")
    json.dumps(value, allow_nan=False)
    found, sides = exploration(tiny_lab, TEXT), value["data"]["sides"]
    assert [side["name"] for side in sides] == ["builtin", "gpt2"]
    for side in sides:
        assert side["tokens"] == list(found.seen.tokens)
        np.testing.assert_allclose(side["surprisal"]["nll"][1:], surprisal(tiny_lab, TEXT).nll[1:], atol=1e-3)
        assert side["lens"]["rank"] == found.lens.rank.tolist()
        values = np.frombuffer(base64.b64decode(side["contributions"]["values"]), "<f4")
        np.testing.assert_allclose(values, found.contributions.values.flatten(), atol=1e-5)
    assert value["data"]["incomparable"] == ""
    assert value["selection"]["position"] == int(found.contributions.total[:-1].argmax())


def test_models_with_other_tokens_are_each_shown_and_that_is_said(results, tiny_lab, monkeypatch):
    original = results.exploration

    def other_tokens(label, text):
        return original(label, text if label == "builtin" else f"{text} And more.")

    monkeypatch.setattr(results, "exploration", other_tokens)
    data = page_value(results, "builtin", TEXT, "gpt2")["data"]
    assert "read other tokens" in data["incomparable"]
    assert len(data["sides"][0]["tokens"]) < len(data["sides"][1]["tokens"])


@pytest.mark.parametrize("format", FORMATS)
def test_every_part_is_saved_in_every_format(ask, format):
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "npz": b"PK", "html": b"<!doctype html>", "json": b"{"}
    for part in SAVED:
        answer = ask("save", part=part, format=format, selection={"position": 3, "layer": 1, "head": 1, "off": [[0, 1]]},
                     asked={"corrupted": "The moon is round and the moon is old!"})  # fmt: skip
        if part == "walkthrough" and format in ("png", "svg"):
            assert "has no picture" in answer["error"]
            continue
        assert "error" not in answer, (part, answer)
        assert base64.b64decode(answer["content"]).startswith(starts.get(format, b"")), part


def test_saved_head_is_the_selected_one(ask, results, tiny_lab):
    answer = ask("save", part="attention of the head", format="npz", selection={"layer": 1, "head": 2})
    weights = np.load(BytesIO(base64.b64decode(answer["content"])))["weights"]
    np.testing.assert_allclose(weights[0, 0], exploration(tiny_lab, TEXT).seen.attention(1, 2), atol=1e-6)


def test_rollout_and_bertviz(ask):
    rollout = ask("rollout", dark=True)
    assert base64.b64decode(rollout["png"]).startswith(b"\x89PNG")
    assert 0 < rollout["rows"][0][4] <= 1
    for view in ("head", "model", "neuron"):
        assert f"{view} view of layers" in ask("bertviz", view=view, layer=1, head=1)["note"]
    assert "would freeze the browser" in ask("bertviz", SUBJECT | {"text": "a b " * 30}, view="head")["error"]


@pytest.mark.parametrize(
    "subject",
    [None, [], {}, {"models": []}, {"models": ["builtin"] * 3, "text": TEXT}, {"models": "builtin", "text": TEXT},
     {"models": ["builtin"]}, {"models": ["builtin"], "text": ""}, {"models": ["builtin"], "text": 7},
     {"models": ["/etc"], "text": TEXT}, {"models": [["builtin"]], "text": TEXT}, {"models": ["builtin"], "text": "x" * 20_001}],
)  # fmt: skip
def test_bad_subject_is_one_line(ask, subject):
    answer = ask("rollout", subject)
    assert list(answer) == ["error"]
    assert "\n" not in answer["error"]


@pytest.mark.parametrize("kind", [None, "", "__class__", "ablate ", ["save"], 7])
def test_bad_kind_is_one_line(ask, kind):
    assert "is unknown" in ask(kind)["error"]


def test_bad_options_of_a_saved_part(ask):
    for options in (
        {"part": "x", "format": "csv"},
        {"part": "lens", "format": "../x"},
        {"part": "attention of the head", "format": "csv", "selection": {"layer": 99}},
        {"part": "attention of the head", "format": "csv", "selection": {"layer": "0"}},
        {"part": "attribution", "format": "csv", "selection": {"position": 1e9}},
        {"part": "attribution", "format": "csv", "selection": {"position": float("nan")}},
        {"part": "ablation", "format": "csv", "selection": {"off": 3}},
        {"part": "ablation", "format": "csv", "selection": {"off": [[0]]}},
        {"part": "patching", "format": "csv"},
    ):
        assert list(ask("save", **options)) == ["error"], options


def test_bad_text_and_models_are_refused(results):
    for label, text, compare in (
        ("builtin", "", ALONE),
        ("/etc", TEXT, ALONE),
        ("builtin", TEXT, "../x"),
        ("builtin", None, None),
    ):
        with pytest.raises(LabError):
            page_value(results, label, text, compare)

"""What all widgets share: the selection and its checks, the one module of a view, its styles, its page, its answers."""

import json
import re
from importlib.resources import files

import pytest

import gpt2lab.widgets as widgets
from gpt2lab.errors import LabError
from gpt2lab.inspection.lens import logit_lens
from gpt2lab.widgets import Selection, TokenStrip
from gpt2lab.widgets.base import answered, bundle, gradio_html, styles

STATIC = files("gpt2lab.widgets") / "static"
VIEWS = sorted(
    path.name.removesuffix(".js")
    for path in STATIC.iterdir()
    if re.search(r"^export function \w+View\(", path.read_text(), re.MULTILINE)
)


@pytest.fixture
def strip(tiny_lab):
    return TokenStrip(logit_lens(tiny_lab, "The moon is round.", next=True))


def test_selection_of_json_and_back():
    values = {"position": 3, "layer": 1, "head": 2, "token": 7, "off": [[0, 1], [2, 3]], "side": 2, "unknown": 9}
    selection = Selection.of(values)
    assert selection == Selection(3, 1, 2, 7, ((0, 1), (2, 3)), 2)
    assert Selection.of({}) == Selection()


@pytest.mark.parametrize(
    "values",
    [{"position": -1}, {"position": "0"}, {"position": 1.5}, {"position": True}, {"layer": None}, {"head": float("nan")},
     {"token": -1}, {"off": 3}, {"off": [[0]]}, {"off": [[0, -1]]}, {"off": [0]}, {"off": "0.1"}, {"side": 3}],
)  # fmt: skip
def test_bad_selection_is_refused(values):
    with pytest.raises(LabError):
        Selection.of(values)


def test_parts_of_the_selection_are_read_and_set(strip):
    strip.position, strip.layer = 2, 1
    assert (strip.selection.position, strip.position, strip.layer) == (2, 2, 1)
    for name, value in (("position", len(strip.data["sides"][0]["tokens"])), ("layer", 99), ("head", 99)):
        with pytest.raises(LabError, match=f"{name} {value} is out of range"):
            setattr(strip, name, value)
    assert strip.position == 2


def test_what_a_browser_sends_is_checked(strip):
    strip.set_state({"selection": {"position": 1}})
    assert strip.position == 1
    with pytest.raises(LabError):
        strip.set_state({"selection": {"position": 10**5}})
    assert strip.position == 1


def test_live_view_has_a_picture_for_readers_without_a_kernel(strip):
    shown = strip._repr_mimebundle_()
    content = shown[0] if isinstance(shown, tuple) else shown
    assert content["image/png"].startswith("iVBOR")
    assert "application/vnd.jupyter.widget-view+json" in content


@pytest.mark.parametrize("view", VIEWS)
def test_module_of_a_view_is_whole(view):
    code = bundle(view)
    assert "import {" not in code and not re.search(r"^export (?!default)", code, re.MULTILINE)
    assert code.rstrip().endswith(f"export default lib.mount({view}.{view}View);")
    names = re.findall(r"^const (\w+) = \(\(\) => \{$", code, re.MULTILINE)
    assert len(names) == len(set(names)) and names[-1] == view
    for name in names:
        source = (STATIC / f"{name}.js").read_text()
        assert not re.search(
            r"innerHTML|insertAdjacentHTML|document\.write|eval\(|fetch\(|https?:(?!//www\.w3\.org/2000/svg)", source
        ), name
    assert json.dumps(gradio_html(view))


def test_every_view_has_a_class_and_every_class_a_view():
    views = {getattr(widgets, name).module for name in widgets.__all__ if name != "Selection"}
    of_pages = {"explore", "attentionpage", "runs", "rundetails", "course"}
    assert views | of_pages == set(VIEWS)


def test_answers_are_values_or_one_line():
    def answer(kind, options):
        if kind == "bad":
            raise LabError("no {kind}", kind=kind)
        return {"kind": kind, "options": options, "infinite": float("inf")}

    assert answered(answer, "good", {"a": 1}) == {"kind": "good", "options": {"a": 1}, "infinite": None}
    assert answered(answer, "bad", None) == {"error": "no bad"}
    assert answered(answer, "good", [1])["options"] == {}


def test_style_of_a_view_holds_inside_its_panel():
    rules = styles("ablation").split((STATIC / "lib.css").read_text())[1]
    selectors = [
        selector for rule in re.findall(r"([^{}]+)\{", rules) for selector in rule.split(",") if ".gpt2lab" in selector
    ]
    assert selectors and all(".g-ablation" in selector for selector in selectors)

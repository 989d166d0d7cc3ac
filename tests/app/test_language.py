"""The Chinese of the page: nothing missing, nothing left over, every field in its place."""

import re
from string import Formatter
from types import SimpleNamespace

import gradio as gr
import pytest
from gradio.context import LocalContext

from gpt2lab.app.events import user_errors
from gpt2lab.app.language import COOKIE, catalogue, spoken, start_script
from gpt2lab.errors import Message, whole_number
from gpt2lab.inspection.heads import SCORES
from tests.texts import PACKAGE, hard_coded, in_python, in_settings, in_views

VIEWS = sorted(path.stem for path in (PACKAGE / "widgets/static").glob("*.js"))
SOURCES = sorted(path.name for path in PACKAGE.iterdir() if path.name not in ("cli", "builtin", "__pycache__"))
CHINESE = "[\u3400-\u9fff]"


@pytest.mark.parametrize("name", VIEWS)
def test_every_text_of_a_view_has_its_chinese(name):
    assert in_views(name) - set(catalogue()) == set()


@pytest.mark.parametrize("path", SOURCES)
def test_every_message_and_error_has_its_chinese(path):
    assert in_python(path) - set(catalogue()) == set()


def test_no_translation_is_left_over():
    assert set(catalogue()) - in_views() - in_python() - in_settings() == set()


def test_every_setting_has_its_chinese():
    assert in_settings() - set(catalogue()) == set()


def fields_of(template):
    return sorted((part[1:] for part in Formatter().parse(template) if part[1] is not None), key=repr)


@pytest.mark.parametrize(("english", "chinese"), catalogue().items())
def test_both_have_the_same_fields_in_the_same_format(english, chinese):
    assert fields_of(english) == fields_of(chinese)


def test_chinese_punctuation_is_full_width():
    half_width = re.compile(rf"{CHINESE}[,;:?!(]|[,;:?!)]{CHINESE}")
    assert [chinese for chinese in catalogue().values() if half_width.search(chinese)] == []


@pytest.mark.parametrize("path", sorted((PACKAGE / "app").rglob("*.py")), ids=lambda path: path.stem)
def test_no_label_is_hard_coded(path):
    assert hard_coded(path) == []


def test_page_starts_with_the_chinese_of_views_and_of_scores():
    script = start_script().decode()
    for english in [*in_views("headgrid"), *(text for score in SCORES.values() for text in score)]:
        assert catalogue()[english] in script


@pytest.mark.parametrize("name", VIEWS)
def test_views_join_a_name_and_a_value_in_the_readers_language(name):
    assert "}: ${" not in (PACKAGE / f"widgets/static/{name}.js").read_text(encoding="utf-8")


@pytest.mark.parametrize(("language", "title", "line"), [("en", "Error", "steps 0 is"), ("zh", "错误", "steps 0 超出")])
def test_a_toast_is_in_the_visitors_language(language, title, line):
    LocalContext.request.set(SimpleNamespace(cookies={COOKIE: language}, headers={}))
    try:
        with pytest.raises(gr.Error) as caught:
            user_errors(whole_number)("steps", 0, 1, 9)
    finally:
        LocalContext.request.set(None)
    assert caught.value.title == title and caught.value.message.startswith(line)


def test_messages_in_an_answer_are_said_in_the_visitors_language():
    note = Message("The first {n:,} of {total:,} tokens; the rest does not fit {name}.", n=1000, total=1001, name="m")
    answer = {"sides": [{"note": note, "name": "tokens", "loss": 0.5}]}
    assert spoken(answer) == answer  # while the page is built
    LocalContext.request.set(SimpleNamespace(cookies={COOKIE: "zh"}, headers={}))
    try:
        [side] = spoken(answer)["sides"]
    finally:
        LocalContext.request.set(None)
    assert "1,000" in side["note"] and re.search(CHINESE, side["note"])
    assert (side["name"], side["loss"]) == ("tokens", 0.5)

import html
import json

import pytest

from gpt2lab.widgets.page import POLICY, Page, document, script_json

HOSTILE = "\"><script>alert(1)</script>&amp;\u2028'é"
VALUES = [
    "</script>",
    "<!-- <script>",
    "]]>",
    "\u2028\u2029\0\x7f",
    "\"'`\\",
    "é 🌙 \ud83c",
    [1, 2.5, None, True, {"<a>": ["</SCRIPT >"]}],
]


def test_title_is_escaped_and_the_body_stands_as_given(read_html):
    read = read_html(document(HOSTILE, "<p>a body</p>").html)
    assert [tag for tag, _ in read.tags] == ["html", "head", "meta", "meta", "meta", "title", "style", "body", "p"]
    assert read.texts[read.texts.index(HOSTILE)] == HOSTILE
    assert "a body" in read.text


def test_document_forbids_every_request_by_policy(read_html):
    metas = [attributes for tag, attributes in read_html(document("t", "").html).tags if tag == "meta"]
    policies = [meta["content"] for meta in metas if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policies == [POLICY]
    rules = dict(rule.split(" ", 1) for rule in POLICY.split("; "))
    assert rules.pop("default-src") == "'none'"
    assert {source for sources in rules.values() for source in sources.split()} == {"'unsafe-inline'", "data:"}


def test_policy_comes_before_anything_it_has_to_govern():
    text = document("t", "<script>1</script>", style="p {}").html
    assert text.index("Content-Security-Policy") < min(text.index(tag) for tag in ("<style", "<script", "<title"))


def test_document_declares_its_characters_within_the_first_kilobyte():
    assert b'<meta charset="utf-8">' in document("é" * 2000, "").html.encode()[:1024]


def test_frame_is_sandboxed_and_holds_exactly_the_document(read_html):
    page = document(HOSTILE, f"<script>const a = {script_json(HOSTILE)};</script>&lt; \" '", height=321)
    [(tag, attributes)] = read_html(page.iframe()).tags
    assert (tag, attributes["sandbox"]) == ("iframe", "allow-scripts allow-downloads")
    assert attributes["srcdoc"] == page.html
    assert "height: 321px" in attributes["style"]
    assert not {"src", "onload", "allow"} & set(attributes)


def test_notebook_shows_the_frame():
    page = Page("<p>x</p>")
    assert page._repr_html_() == page.iframe()
    assert html.escape("<p>x</p>") in page._repr_html_()


@pytest.mark.parametrize(
    ("theme", "light", "dark"), [("light", True, False), ("dark", False, True), ("auto", True, True)]
)
def test_theme_sets_its_colours_and_auto_asks_the_reader(theme, light, dark):
    text = document("t", "", theme=theme).html
    assert ("--paper: #ffffff" in text, "--paper: #18181b" in text) == (light, dark)
    assert ("prefers-color-scheme: dark" in text) == (theme == "auto")


def test_style_of_the_caller_comes_after_the_common_one():
    text = document("t", "", style="body { margin: 7px }").html
    assert text.index("body { margin: 7px }") > text.index("body { margin: 0")


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_json_in_a_script_reads_back_and_cannot_end_it(value, read_html):
    text = script_json(value)
    assert json.loads(text) == value
    assert "<" not in text
    assert text.isascii()
    assert not set("\u2028\u2029\n") & set(text)
    read = read_html(f"<script>const value = {text};</script><p>after</p>")
    assert ([tag for tag, _ in read.tags], read.texts) == (["script", "p"], ["after"])


def test_json_example_of_the_documentation_is_true():
    assert script_json("</script>") == '"\\u003c/script>"'


def test_saved_page_is_the_document_in_utf_8(tmp_path):
    page = document("Ünïcode 🌙", "é")
    path = page.save(tmp_path / "page.html")
    assert path == tmp_path / "page.html"
    assert path.read_bytes() == page.html.encode("utf-8")

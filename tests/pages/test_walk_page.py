"""The walkthrough's page as a document; tests/browser/test_walkthrough_view.py reads what it shows."""

import json
from dataclasses import replace

import pytest

from gpt2lab.inspection.walkthrough import walk
from gpt2lab.pages.walkthrough import walk_page
from gpt2lab.widgets.page import POLICY, THEMES
from gpt2lab.widgets.walkthrough import walk_part

TEXT = "The moon is a small world."
HOSTILE = ("</script>", "<img src=x onerror=alert(1)>", "<b>bold</b>", "&amp;", "\"'", "$x$", "\u202eשלום")


@pytest.fixture(scope="module")
def walked(tiny_lab):
    return walk(tiny_lab, TEXT, 1, 2, 6)


def state_of(found):
    return json.loads(found.scripts[0])


def test_page_holds_the_walkthrough_and_opens_at_its_place(read_html, walked):
    state = state_of(read_html(walk_page(walked).html))
    [side] = state["data"]["sides"]
    assert side["walk"] == walk_part(walked)
    assert (side["name"], side["tokens"]) == (walked.name, list(walked.tokens))
    selection = state["selection"]
    assert (selection["position"], selection["layer"], selection["head"]) == (6, 1, 2)


def test_page_is_named_by_token_layer_head_and_model(read_html, walked):
    found = read_html(walk_page(walked).html)
    assert f"Walkthrough of token 6, {walked.tokens[6]!r}, layer 1, head 2: {walked.name}" in found.text


def test_hostile_tokens_stay_data(read_html, walked):
    tokens = (HOSTILE * 2)[: len(walked.tokens)]
    hostile = replace(walked, tokens=tokens, name="<i>name</i>", predictions=tuple((token, 0.1) for token in HOSTILE))
    found, clean = read_html(walk_page(hostile).html), read_html(walk_page(walked).html)
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in clean.tags]
    [side] = state_of(found)["data"]["sides"]
    assert (side["tokens"], side["name"]) == (list(tokens), "<i>name</i>")


def test_page_can_reach_nothing(read_html, walked):
    found = read_html(walk_page(walked).html)
    [policy] = [attributes["content"] for tag, attributes in found.tags if "http-equiv" in attributes]
    assert policy == POLICY
    assert found.attributes("src", "href") == []
    assert 'sandbox="allow-scripts allow-downloads"' in walk_page(walked).iframe()


@pytest.mark.parametrize("theme", THEMES)
def test_page_is_light_or_dark_as_asked_for(walked, theme):
    page = walk_page(walked, theme=theme)
    assert THEMES[theme] in page.html
    assert not [other for other in THEMES if other != theme and f"<style>{THEMES[other]}\n" in page.html]

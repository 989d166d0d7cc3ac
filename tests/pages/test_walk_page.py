import base64
import html
import io
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from PIL import Image

from gpt2lab.figures.heads import DIVERGING
from gpt2lab.inspection.walkthrough import walk
from gpt2lab.pages.walkthrough import ATTENTION_STEPS, MAX_TOKENS, WRITTEN, walk_page
from gpt2lab.widgets.page import POLICY, THEMES

TEXT = "The moon is a small world."
HOSTILE = ("</script>", "<img src=x onerror=alert(1)>", "<b>bold</b>", "&amp;", "\"'", "$x$", "x" * 300)


@pytest.fixture(scope="module")
def walked(tiny_lab):
    return walk(tiny_lab, TEXT, 1, 2, 6)


def vectors(walked):
    """The steps that have a strip."""
    return [step for step in walked.steps if step.name not in ATTENTION_STEPS]


def strips(found):
    return [attributes["src"] for tag, attributes in found.tags if tag == "img"]


def pixels(strip):
    content = base64.b64decode(strip.removeprefix("data:image/png;base64,"), validate=True)
    return np.array(Image.open(io.BytesIO(content)))


def cells(page):
    """The token table's rows, as they stand in the page."""
    body = page.html.split("<tbody>")[1].split("</tbody>")[0]
    rows = [row.split("</td>")[:-1] for row in body.split("<tr>")[1:]]
    return [[html.unescape(cell.removeprefix("<td>")) for cell in row] for row in rows]


def test_page_holds_every_formula_and_title(read_html, walked):
    found = read_html(walk_page(walked).html)
    for step in walked.steps:
        assert step.formula in found.text and step.title in found.text
    assert "If the model stopped here softmax(ln_f(x) " in found.text


def test_page_says_which_token_layer_head_and_model(read_html, walked):
    found = read_html(walk_page(walked).html)
    assert f"Token 6, {walked.tokens[6]!r}, in layer 1, head 2 of {walked.name}" in found.text
    marked = [at for at, one in enumerate(one for tag, one in found.tags if tag == "span") if one.get("class") == "me"]
    assert marked == [6]


def test_token_table_has_the_model_s_numbers_to_four_digits(walked):
    rows = cells(walk_page(walked))
    assert [row[0] for row in rows[:7]] == [f"{at} {token}" for at, token in enumerate(walked.tokens[:7])]
    for token, *numbers in rows:
        values = [float(walked.step(name).values[int(token.split()[0])]) for name in ATTENTION_STEPS]
        assert numbers == ["−∞" if value == -np.inf else f"{value:.4f}" for value in values]
    assert {row[3] for row in rows[7:]} == {"−∞"}  # what lies ahead
    assert sum(float(row[4]) for row in rows) == pytest.approx(1, abs=1e-3)


def test_of_a_long_text_the_tokens_read_most_are_listed_and_the_token_itself(read_html, tiny_lab):
    walked = walk(tiny_lab, "x" * 60, 0, 0, 59)
    page = walk_page(walked)
    shown = [int(row[0].split()[0]) for row in cells(page)]
    assert shown == sorted({*walked.step("weights").values.topk(MAX_TOKENS).indices.tolist(), 59})
    assert f"The {MAX_TOKENS} read most, of 60 tokens." in read_html(page.html).text


def test_tokens_that_lie_ahead_take_no_place_of_those_read(tiny_lab):
    walked = walk(tiny_lab, "x" * 60, 0, 0, 5)
    shown = [int(row[0].split()[0]) for row in cells(walk_page(walked))]
    assert shown[:6] == [0, 1, 2, 3, 4, 5] and len(shown) <= 7


def test_strip_has_a_pixel_per_number_coloured_by_it(read_html, walked):
    found = strips(read_html(walk_page(walked).html))
    assert len(found) == len(vectors(walked))
    for strip, step in zip(found, vectors(walked)):
        values = step.values.numpy()
        row = pixels(strip)
        assert row.shape == (1, len(values), 3)
        scaled = values / np.abs(values).max() / 2 + 0.5
        np.testing.assert_array_equal(row[0], matplotlib.colormaps[DIVERGING](scaled, bytes=True)[:, :3])


def test_strip_of_zeros_is_white(read_html, walked):
    steps = tuple(replace(step, values=step.values * 0) if step.name == "mlp_out" else step for step in walked.steps)
    at = [step.name for step in vectors(walked)].index("mlp_out")
    row = pixels(strips(read_html(walk_page(replace(walked, steps=steps)).html))[at])
    assert row.min() > 240


def test_each_vector_is_reported_in_numbers_too(read_html, walked):
    text = read_html(walk_page(walked).html).text
    for step in vectors(walked):
        values = step.values
        line = f"{len(values)} numbers ({step.over}), from {values.min():.3f} to {values.max():.3f}, length {values.norm():.3f}"
        assert line in text
        written = ", ".join(f"{value:.3f}" for value in values[:WRITTEN].tolist())
        assert f": {written}{', …' if len(values) > WRITTEN else ''}" in text
    assert f"mean {walked.mean:.4f}, variance {walked.variance:.4f}" in text


def test_predictions_from_there_are_reported(read_html, walked):
    text = read_html(walk_page(walked).html).text
    for token, probability in walked.predictions:
        assert f"{token} {probability:.4f}" in text


def test_hostile_tokens_are_escaped(read_html, walked):
    tokens = (HOSTILE * 2)[: len(walked.tokens)]
    predictions = tuple((token, 0.1) for token in HOSTILE)
    hostile = replace(walked, tokens=tokens, predictions=predictions, name="<i>name</i>")
    page = walk_page(hostile)
    found, clean = read_html(page.html), read_html(walk_page(walked).html)
    tags = {tag for tag, _ in found.tags}
    assert tags == {tag for tag, _ in clean.tags} and not tags & {"b", "i", "script"}
    assert found.count("img") == clean.count("img")
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert all(token in found.text for token in HOSTILE) and "<i>name</i>" in found.text


def test_page_can_reach_nothing(read_html, walked):
    found = read_html(walk_page(walked).html)
    [policy] = [attributes["content"] for tag, attributes in found.tags if "http-equiv" in attributes]
    assert policy == POLICY
    assert all(address.startswith("data:image/png;base64,") for address in found.attributes("src", "href"))
    assert 'sandbox="allow-scripts allow-downloads"' in walk_page(walked).iframe()


@pytest.mark.parametrize("theme", THEMES)
def test_page_is_light_or_dark_as_asked_for(walked, theme):
    page = walk_page(walked, theme=theme)
    assert THEMES[theme] in page.html
    assert not [other for other in THEMES if other != theme and f"<style>{THEMES[other]}\n" in page.html]


def test_one_token_reads_itself(read_html, tiny_lab):
    page = walk_page(walk(tiny_lab, "x", 0, 0))
    [row] = cells(page)
    assert row[-1] == "1.0000"
    assert len(strips(read_html(page.html))) == 16

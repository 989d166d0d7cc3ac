"""The grid of heads in a real browser: its numbers, selecting, switching off, small screens."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from playwright.sync_api import expect

from gpt2lab.figures.heads import luminance
from gpt2lab.inspection.compare import compare
from gpt2lab.inspection.heads import SCORES, HeadScores
from gpt2lab.inspection.trace import Trace
from gpt2lab.widgets.base import Selection
from gpt2lab.widgets.headgrid import HeadGrid

CELLS = ".g-cell"


@pytest.fixture(scope="module")
def scores():
    """A function: L, H → seeded scores; the first head has no duplicate-token score."""

    def make(L, H, seed=0):
        values = torch.rand(len(SCORES), L, H, generator=torch.Generator().manual_seed(seed))
        values[1, 0, 0] = torch.nan
        return HeadScores(*values, name="<b>made</b>")

    return make


@pytest.fixture(scope="module")
def traces():
    """Two traces with seeded random attention, the second with other keys."""
    q, k, v = torch.randn(3, 3, 4, 9, 8, generator=torch.Generator().manual_seed(0))
    first = Trace("first", tuple(f"t{i}" for i in range(9)), torch.arange(9), q, k, v, (1.0,) * 3)
    return first, replace(first, name="second", k=k.flip(0))


@pytest.fixture
def visit(visit_file, tmp_path):
    """A function: a widget, and what a browser takes → its page, drawn."""

    def open_one(widget, **options):
        page = visit_file(widget.save(tmp_path / "grid.html").as_uri(), **options)
        page.locator("[data-drawn=true]").wait_for(state="attached")
        return page

    return open_one


def numbers(page, L, H):
    """(L, H): the numbers in the cells; NaN for none. The last layer is on top."""
    texts = page.locator(CELLS).all_inner_texts()
    values = [float("nan") if text == "–" else float(text.replace("−", "-")) for text in texts]
    return np.array(values).reshape(L, H)[::-1]


def head(page, layer, head):
    return page.locator(f"{CELLS}[title^='Layer {layer}, head {head}:']")


def selected(page):
    [title] = page.locator(f"{CELLS}[aria-selected=true]").evaluate_all("cells => cells.map(cell => cell.title)")
    return title.split(":")[0]


def off(page):
    return page.locator(".g-off").evaluate_all("cells => cells.map(cell => cell.title.split(':')[0])")


def test_numbers_and_colours_are_the_scores(visit, scores):
    made = scores(3, 4)
    page = visit(HeadGrid(made))
    np.testing.assert_allclose(numbers(page, 3, 4), made.induction, atol=5.1e-3)
    opacity = page.locator(CELLS).evaluate_all(
        "cells => cells.map(cell => +cell.style.background.match(/[.\\d]+\\)$/)[0].slice(0, -1))"
    )
    np.testing.assert_allclose(np.array(opacity).reshape(3, 4)[::-1], 0.04 + 0.81 * made.induction, atol=2e-3)
    page.get_by_label("Colour by").select_option("duplicate_token")
    np.testing.assert_allclose(numbers(page, 3, 4), made.duplicate_token, atol=5.1e-3)
    expect(page.get_by_text(SCORES["duplicate_token"].definition)).to_be_visible()
    name = f"Layer 2, head 1: duplicate token {made.duplicate_token[2, 1]:.3f} share of attention"
    assert head(page, 2, 1).get_attribute("aria-label") == head(page, 2, 1).get_attribute("title") == name
    assert head(page, 0, 0).get_attribute("title").endswith("no value")


def test_click_and_keys_move_the_selection(visit, scores):
    page = visit(HeadGrid(scores(3, 4), Selection(layer=1, head=2)))
    assert selected(page) == "Layer 1, head 2"
    head(page, 2, 0).click()
    assert selected(page) == "Layer 2, head 0"
    for keys, place in (
        ("ArrowLeft ArrowUp", "Layer 2, head 0"),  # the grid's corner
        ("ArrowDown ArrowRight", "Layer 1, head 1"),
        ("ArrowRight ArrowRight ArrowRight", "Layer 1, head 3"),
        ("ArrowDown ArrowDown ArrowUp", "Layer 1, head 3"),
        ("End Home", "Layer 2, head 0"),
    ):
        for key in keys.split():
            page.keyboard.press(key)
        assert selected(page) == place, keys
    assert page.locator(f"{CELLS}[tabindex='0']").count() == 1


def test_heads_are_switched_off_and_on(visit, scores):
    page = visit(HeadGrid(scores(3, 4), Selection(off=((2, 3),))))
    assert off(page) == ["Layer 2, head 3"]
    head(page, 1, 2).click(modifiers=["Shift"])
    assert off(page) == ["Layer 2, head 3", "Layer 1, head 2"]
    assert selected(page) == "Layer 0, head 0"
    expect(head(page, 1, 2)).to_have_attribute("aria-label", head(page, 1, 2).get_attribute("title") + ", switched off")
    page.locator(f"{CELLS}[aria-selected=true]").focus()
    for key in ("Shift+Enter", "ArrowRight", "Shift+Space", "Shift+Space"):
        page.keyboard.press(key)
    assert off(page) == ["Layer 2, head 3", "Layer 1, head 2", "Layer 0, head 0"]
    page.get_by_role("button", name="Switch off").click()  # on touch
    head(page, 2, 3).click()
    assert off(page) == ["Layer 1, head 2", "Layer 0, head 0"]
    page.get_by_role("button", name="All on").click()
    assert off(page) == []


def test_change_is_the_total_variation_and_thumbnails_are_drawn(visit, traces):
    comparison = compare(*traces)
    page = visit(HeadGrid(comparison))
    assert page.locator(f"{CELLS} canvas").count() == 12
    page.get_by_label("Colour by").select_option("change")
    np.testing.assert_allclose(numbers(page, 3, 4), comparison.total_variation, atol=0.01)
    page.get_by_label("Colour by").select_option("rest")
    assert page.locator(f"{CELLS} canvas").count() == 12


def test_thumbnails_of_a_difference_share_one_scale(visit, traces):
    """A head that barely changed is as pale as it is little, with the first token hidden too."""
    first = traces[0]
    q, k = torch.ones(1, 2, 3, 8), torch.zeros(1, 2, 3, 8)
    base = replace(first, tokens=("a", "b", "c"), ids=torch.arange(3), q=q, k=k, v=k, scaling=(1.0,))
    k = k.clone()
    k[0, 0, 1], k[0, 1, 1] = 0.05, 2.0
    page = visit(HeadGrid(compare(base, replace(base, name="second", k=k)), Selection(side=2)))
    for shows in ("attention", "rest"):
        page.get_by_label("Colour by").select_option(shows)
        most = page.locator(f"{CELLS} canvas").evaluate_all(
            "all => all.map(canvas => Math.max(...canvas.getContext('2d').getImageData(0, 0, 3, 3).data.filter((_, i) => i % 4 === 3)))"
        )
        assert most[0] < 0.65 * most[1]
        assert most[1] == pytest.approx(255 * 0.85, abs=1)


def test_scores_of_two_models_and_a_sweep(visit, scores, tmp_path):
    first, second = scores(2, 3), scores(2, 3, seed=1)
    widget = HeadGrid(first, Selection(side=0))
    sides = [HeadGrid(one).data["sides"][0] for one in (first, second)]
    losses = [[3.0, 3.5, 2.5], [3.0, 3.0, 4.25]]
    for side in sides:
        side["sweep"] = {"loss": 3.0, "losses": losses}
    widget.data = {"sides": sides}
    page = visit(widget)
    page.get_by_label("Shown").select_option("2")
    np.testing.assert_allclose(numbers(page, 2, 3), second.induction - first.induction, atol=5.1e-3)
    page.get_by_label("Shown").select_option("1")
    np.testing.assert_allclose(numbers(page, 2, 3), second.induction, atol=5.1e-3)
    page.get_by_label("Colour by").select_option("sweep")
    np.testing.assert_allclose(numbers(page, 2, 3), np.array(losses) - 3, atol=5.1e-3)
    assert "--g-cold" in head(page, 0, 2).get_attribute("style")


def test_models_of_different_shape_have_no_difference(visit, scores):
    widget = HeadGrid(scores(2, 3))
    widget.data = {"sides": [HeadGrid(scores(*shape)).data["sides"][0] for shape in ((2, 3), (4, 5))]}
    page = visit(widget)
    page.get_by_label("Shown").select_option("2")
    expect(page.get_by_text("The models have different shapes")).to_be_visible()
    page.get_by_label("Shown").select_option("1")
    assert page.locator(CELLS).count() == 20


@pytest.mark.parametrize(("L", "H"), [(12, 12), (48, 25)])
def test_many_heads_fit_a_phone_and_are_hit(visit, scores, L, H):
    page = visit(HeadGrid(scores(L, H)), viewport={"width": 320, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    last = page.locator(CELLS).nth(H - 1)
    assert last.bounding_box()["x"] + last.bounding_box()["width"] <= 320 - 12
    last.click()
    assert selected(page) == f"Layer {L - 1}, head {H - 1}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_numbers_are_readable_on_every_colour(visit, scores, scheme):
    made = scores(2, 25)
    made.induction[:] = torch.linspace(0, 1, 50).view(2, 25)
    page = visit(HeadGrid(made), color_scheme=scheme)
    paper = {"light": (255, 255, 255), "dark": (24, 24, 27)}[scheme]
    painted = page.locator(CELLS).evaluate_all(
        "cells => cells.map(cell => [getComputedStyle(cell).backgroundColor, getComputedStyle(cell).color])"
    )
    for background, ink in painted:
        *rgb, alpha = map(float, re.findall(r"[\d.]+", background))
        mixed = [(alpha * part + (1 - alpha) * under) / 255 for part, under in zip(rgb, paper)]
        lighter, darker = sorted((luminance(mixed), luminance([float(x) / 255 for x in re.findall(r"\d+", ink)])))[::-1]
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, background

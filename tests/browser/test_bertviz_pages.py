"""bertviz' views in a real browser: what is drawn, that it can be read, and that nothing else happens."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from playwright.sync_api import expect

from gpt2lab.inspection.trace import trace, trace_ids
from gpt2lab.pages import bertviz
from gpt2lab.pages.bertviz import VIEWS, head_view_page, model_view_page, neuron_view_page

HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    "<script>alert(2)</script>",
    "&amp;&lt;b&gt;",
    "\"quo'tes`\\",
    "a\u2028b\u2029c",
    "⟨F0 9F⟩",
    "مرحبا",
    "Ġ·▁${alert(3)}",
)
EACH_VIEW = pytest.mark.parametrize("view", VIEWS)
EACH_THEME = pytest.mark.parametrize("theme", ["light", "dark"])
LABELS = {"head": "#left text", "model": "text.detail + g.detail text", "neuron": "#collapsed #leftText text"}
SCRIPTS = {"head": 4, "model": 4, "neuron": 5}
PAPER = {"light": "rgb(255, 255, 255)", "dark": "rgb(24, 24, 27)"}
LINES = {"head": "#attention line", "model": "svg > g:not(.detail) line", "neuron": "#collapsed line"}

# Contrast (WCAG 2, 1 to 21) of every text that is on show with what is painted below its middle.
CONTRASTS = """() => {
    const channels = color => (color.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
    const over = (below, [r, g, b, alpha = 1], opacity) =>
        below.map((old, i) => old + ([r, g, b][i] - old) * alpha * opacity);
    const opacity = element =>
        element === null ? 1 : getComputedStyle(element).opacity * opacity(element.parentElement);
    const backgrounds = element => {
        if (element === null) return [255, 255, 255];
        return over(backgrounds(element.parentElement), channels(getComputedStyle(element).backgroundColor), 1);
    };
    const shade = x => x / 255 <= 0.04045 ? x / 255 / 12.92 : ((x / 255 + 0.055) / 1.055) ** 2.4;
    const luminance = ([r, g, b]) => 0.2126 * shade(r) + 0.7152 * shade(g) + 0.0722 * shade(b);
    const contrast = (one, other) => {
        const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
    };
    const on_show = element => {
        const box = element.getBoundingClientRect();
        return box.width && box.height && getComputedStyle(element).visibility !== "hidden" && opacity(element) > 0.01;
    };
    const seen = [...document.querySelectorAll("p, span")].filter(on_show).map(element =>
        [element.textContent, contrast(channels(getComputedStyle(element).color).slice(0, 3), backgrounds(element))]);
    const painted = [];
    for (const element of document.querySelectorAll("svg rect, svg text")) {
        if (!on_show(element)) continue;
        const box = element.getBoundingClientRect(), style = getComputedStyle(element);
        if (element.tagName === "rect") {
            painted.push([box, channels(style.fill), style.fillOpacity * opacity(element)]);
            continue;
        }
        const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
        const below = painted.filter(([b]) => b.left <= x && x <= b.right && b.top <= y && y <= b.bottom)
            .reduce((color, [, fill, opacity]) => over(color, fill, opacity), backgrounds(element.ownerSVGElement));
        seen.push([element.textContent, contrast(over(below, channels(style.fill), opacity(element)), below)]);
    }
    return seen;
}"""


@pytest.fixture(scope="module")
def seen(tiny_lab):
    return trace(tiny_lab, "The moon is a small world 🌙.")


@pytest.fixture
def show(visit_file, tmp_path):
    """A function: page → the frame it is drawn in."""

    def show_one(page, *, where="file", width=1100, scheme="light"):
        path = tmp_path / "page.html"
        if where == "file":
            page.save(path)
        else:
            path.write_text(f'<!doctype html><meta charset="utf-8"><p>around</p>{page.iframe()}', encoding="utf-8")
        tab = visit_file(path.as_uri(), viewport={"width": width, "height": 900}, color_scheme=scheme)
        frame = tab.main_frame if where == "file" else tab.frames[1]
        frame.locator("svg").wait_for()
        return frame

    return show_one


def opacities(frame, selector):
    """The opacity of every line: in bertviz' views, a weight."""
    return frame.locator(selector).evaluate_all("lines => lines.map(line => +line.getAttribute('stroke-opacity'))")


def weights_shown(seen, view):
    """What `opacities` should find in a view that is just opened, in the order of the lines."""
    weights = torch.stack([seen.attention(layer) for layer in range(seen.n_layers)])
    n = len(seen.tokens)
    if view == "head":
        return weights[0].flatten() / seen.n_heads  # bertviz divides by the heads that are on
    return weights[..., *torch.tril_indices(n, n)].flatten() if view == "model" else weights[0, 0].flatten()


def look_closer(frame, view):
    """What shows most text: the mouse on a token, or a thumbnail opened."""
    if view == "head":
        frame.locator("#left text").last.hover()
    elif view == "model":
        frame.locator("#attn_background_1_2 ~ rect").click()
    else:
        frame.locator("#collapsed #leftText text").last.hover()


@EACH_VIEW
@pytest.mark.parametrize("where", ["file", "frame"])
def test_a_view_draws_the_weights_of_the_trace(show, seen, view, where):
    frame = show(VIEWS[view](seen), where=where)
    np.testing.assert_allclose(opacities(frame, LINES[view]), weights_shown(seen, view), atol=5.1e-5)
    look_closer(frame, view)
    expect(frame.locator(LABELS[view])).to_have_count(len(seen.tokens))
    assert tuple(frame.locator(LABELS[view]).all_text_contents()) == seen.tokens


@EACH_VIEW
@pytest.mark.parametrize("where", ["file", "frame"])
def test_hostile_tokens_are_shown_as_they_are_and_do_nothing(show, tiny_lab, view, where):
    hostile = replace(trace_ids(tiny_lab, torch.arange(len(HOSTILE))), tokens=HOSTILE)
    frame = show(VIEWS[view](hostile), where=where)
    look_closer(frame, view)
    assert tuple(frame.locator(LABELS[view]).all_text_contents()) == HOSTILE
    expect(frame.locator(LABELS[view]).first).to_be_visible()
    assert frame.locator("img, b, iframe").count() == 0
    assert frame.locator("script").count() == SCRIPTS[view]


@EACH_VIEW
@pytest.mark.parametrize(("where", "theme"), [("file", "light"), ("frame", "dark")])
def test_text_can_be_read(show, seen, view, theme, where):
    other = {"light": "dark", "dark": "light"}[theme]
    frame = show(VIEWS[view](seen, theme=theme), where=where, scheme=other)
    assert frame.evaluate("getComputedStyle(document.body).backgroundColor") == PAPER[theme]
    expect(frame.locator("[id^=bertviz]")).to_have_css("background-color", "rgba(0, 0, 0, 0)")
    assert_readable(frame)
    look_closer(frame, view)
    assert_readable(frame, *seen.tokens)
    if view == "neuron":
        frame.locator("#collapsed #leftText g").last.locator("rect").last.click()
        frame.locator("#expanded #leftText text").nth(3).hover()
        assert_readable(frame, "Query q", "Key k ", "Softmax", *seen.tokens)


@EACH_THEME
@pytest.mark.parametrize("view", ["head", "neuron"])
def test_text_can_be_read_where_one_token_has_all_the_weight(show, seen, view, theme):
    """What marks a token that is read is as strong as its weight, and of another colour for each head."""
    sharp = replace(seen, scaling=(1e4,) * seen.n_layers)
    assert sharp.attention(0)[:, -1].amax(-1).min() > 0.99
    for head in range(seen.n_heads):
        frame = show(VIEWS[view](sharp, head=head, theme=theme))
        look_closer(frame, view)
        assert_readable(frame, *seen.tokens)


@EACH_VIEW
def test_colours_of_a_page_for_both_themes_are_those_of_the_system_even_when_it_changes(show, seen, view):
    frame = show(VIEWS[view](seen), scheme="dark")
    for theme, line in (("dark", "#2994de"), ("light", "blue"), ("dark", "#2994de")):
        frame.page.emulate_media(color_scheme=theme)
        if view == "neuron":
            expect(frame.locator("#collapsed line").first).to_have_attribute("stroke", line)
        if view == "model":
            fill = {"dark": "black", "light": "white"}[theme]
            expect(frame.locator(".attn_background").first).to_have_attribute("fill", fill)
        expect(frame.locator("body")).to_have_css("background-color", PAPER[theme])
        assert_readable(frame)


def test_layer_and_heads_of_the_head_view_can_be_changed(show, seen):
    frame = show(head_view_page(seen, head=1))
    expected = torch.zeros_like(seen.attention(0))
    expected[1] = seen.attention(0, 1)
    np.testing.assert_allclose(opacities(frame, LINES["head"]), expected.flatten(), atol=5.1e-5)
    frame.locator("#layer").select_option("1")
    frame.locator("svg > g:last-child rect").nth(3).click()  # the square of head 3
    expected = torch.zeros_like(seen.attention(1))
    expected[[1, 3]] = seen.attention(1)[[1, 3]] / 2
    np.testing.assert_allclose(opacities(frame, LINES["head"]), expected.flatten(), atol=5.1e-5)


def test_a_thumbnail_of_the_model_view_opens_its_layer_and_head(show, seen):
    frame = show(model_view_page(seen, layers=[1], heads=[1, 3]))
    axes = frame.locator("svg > text").all_text_contents()
    assert axes == ["Heads", "1", "3", "Layers", "1"]
    frame.locator("#attn_background_0_1 ~ rect").click()
    expect(frame.locator("text.detail")).to_have_text("Layer 1, Head 3")
    rows, columns = torch.tril_indices(len(seen.tokens), len(seen.tokens))
    expected = seen.attention(1, 3)[rows, columns]
    np.testing.assert_allclose(opacities(frame, "g.detail line"), expected, atol=5.1e-5)


def test_neuron_view_shows_the_scores_of_the_model_and_the_weights_they_make(show, random_lab):
    seen = trace(random_lab(scale_attn_by_inverse_layer_idx=True), "The moon is a small world.")
    frame = show(neuron_view_page(seen, layer=1, head=2))
    frame.locator("#collapsed #leftText g").nth(5).hover()
    frame.locator("#collapsed #leftText g").nth(5).locator("rect").last.click()
    frame.locator("#expanded #leftText text").nth(4).hover()
    scores = frame.locator(".dotproduct").evaluate_all("squares => squares.map(square => +square.dataset.value)")
    expected = seen.q[1, 2, 4] @ seen.k[1, 2].T * seen.scaling[1]
    np.testing.assert_allclose(scores, expected, atol=2e-3)
    marks = frame.locator("#expanded #rightText .highlight").evaluate_all("all => all.map(one => +one.style.opacity)")
    np.testing.assert_allclose(marks, seen.attention(1, 2)[4], atol=5.1e-5)


def test_menus_of_a_neuron_view_that_is_cut_name_what_they_show(show, seen, monkeypatch):
    n, K = len(seen.tokens), seen.q.shape[-1]
    monkeypatch.setattr(bertviz, "MAX_NUMBERS", 2 * (n * n + 2 * n * K))
    frame = show(neuron_view_page(seen, layer=1, head=2))
    expect(frame.locator("p")).to_have_text(
        "Neuron view of layer 1 of 2, heads 1-2 of 4; the rest is left out so that the browser does not freeze."
    )
    assert frame.locator("#layer option").all_text_contents() == ["1"]
    assert frame.locator("#att_head option").all_text_contents() == ["1", "2"]
    np.testing.assert_allclose(opacities(frame, LINES["neuron"]), seen.attention(1, 2).flatten(), atol=5.1e-5)
    frame.locator("#att_head").select_option(label="1")
    np.testing.assert_allclose(opacities(frame, LINES["neuron"]), seen.attention(1, 1).flatten(), atol=5.1e-5)
    assert_readable(frame)


@EACH_VIEW
def test_a_phone_scrolls_the_drawing_and_not_the_page(show, seen, view):
    frame = show(VIEWS[view](seen), width=390)
    assert frame.evaluate("document.documentElement.scrollWidth") == 390
    wide = {"head": 0, "model": 970, "neuron": 1010}[view]
    assert frame.locator("#vis").evaluate("vis => vis.scrollWidth") >= wide
    if wide:
        frame.locator("#vis").evaluate("vis => vis.scrollLeft = 1e6")
        assert frame.locator("svg").evaluate("svg => svg.getBoundingClientRect().right") <= 390


@EACH_VIEW
@pytest.mark.parametrize("cut", [False, True])
def test_frame_is_as_tall_as_what_is_in_it(show, seen, monkeypatch, view, cut):
    if cut:
        monkeypatch.setattr(bertviz, "MAX_NUMBERS", 1)
        monkeypatch.setattr(bertviz, "MAX_LINES", 200)
    page = VIEWS[view](seen)
    frame = show(page, where="frame", width=390)
    assert frame.evaluate("document.documentElement.scrollHeight") <= page.height
    assert frame.locator("p").count() == cut


def assert_readable(frame, *texts):
    """That all text on show, and these in any case, has the contrast that WCAG 2 (1.4.3) asks for: 4.5."""
    contrasts = frame.evaluate(CONTRASTS)
    assert contrasts
    assert {text for text, _ in contrasts} >= set(texts)
    assert [(text, contrast) for text, contrast in contrasts if not contrast >= 4.5] == []

"""The walkthrough view in a real browser: its numbers against the walkthrough's, and how it follows the selection."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from playwright.sync_api import expect

from gpt2lab.inspection.trace import trace
from gpt2lab.inspection.walkthrough import walk
from gpt2lab.widgets.walkthrough import Walkthrough
from tests.traces import HOSTILE

TEXT = "The moon is a small world."
GROUPS = {
    "embedding": ["token_embedding", "position_embedding", "resid_pre"],
    "ln_1": ["ln_1"],
    "q, k, v": ["query", "key", "value"],
    "z": ["z", "head_out"],
    "attn_out": ["attn_out"],
    "resid_mid": ["resid_mid"],
    "ln_2": ["ln_2"],
    "mlp": ["mlp_pre", "mlp_post", "mlp_out"],
    "resid_post": ["resid_post"],
}
ATTENTION = ("products", "scaled", "masked", "weights")
CELLS = "canvas => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, 1).data]"


@pytest.fixture(scope="module")
def seen(tiny_lab):
    return trace(tiny_lab, TEXT, residual=True)


@pytest.fixture
def show(visit_file, tmp_path):
    """A function: walkthrough → its page."""
    return lambda walked, **options: visit_file(Walkthrough(walked).save(tmp_path / "walk.html").as_uri(), **options)


def choose(page, name):
    page.get_by_role("tab", name=name, exact=True).click()


def cells(page):
    rows = page.locator(".g-weights tbody tr").all()
    return [row.locator("th, td").all_inner_texts() for row in rows]


def number(text):
    return -np.inf if text == "−∞" else float(text)


def test_every_step_has_its_formula_title_and_numbers(show, tiny_lab):
    walked = walk(tiny_lab, TEXT, 1, 2, 6)
    page = show(walked)
    for group, names in GROUPS.items():
        choose(page, group)
        assert page.locator("[data-step]").evaluate_all("all => all.map(one => one.dataset.step)") == names
        for name in names:
            step, shown = walked.step(name), page.locator(f"[data-step={name}]")
            expect(shown).to_contain_text(step.title)
            expect(shown.get_by_role("math")).to_have_accessible_name(step.formula)
            text = shown.locator(".g-numbers").inner_text()
            assert text.startswith(f"{len(step.values)} numbers ({step.over}), from ")
            values = [float(value) for value in re.findall(r"-?\d+\.\d+", text)]
            extra = [walked.mean, walked.variance] if name == "ln_1" else []
            expected = [step.values.min(), step.values.max(), step.values.norm(), *extra, *step.values[:8]]
            assert values == pytest.approx([float(value) for value in expected], abs=6e-4)
            if len(step.values) > 8:
                shown.locator("summary").click()
                expect(shown.locator("td")).to_have_count(len(step.values))
                written = [float(value) for value in shown.locator("td").all_inner_texts()]
                assert written == pytest.approx(step.values.tolist(), abs=6e-5)


def test_strips_are_blue_below_0_and_orange_above_and_deepest_at_the_largest(show, tiny_lab):
    walked = walk(tiny_lab, TEXT, 1, 2, 6)
    page = show(walked)
    choose(page, "q, k, v")
    values = walked.step("key").values
    pixels = np.array(page.locator("[data-step=key] canvas").evaluate(CELLS)).reshape(-1, 4)
    assert len(pixels) == len(values)
    np.testing.assert_allclose(pixels[:, 3] / 255, (values.abs() / values.abs().max()).numpy(), atol=0.005)
    strong = values.abs() > values.abs().max() / 4  # of faint cells the canvas keeps few digits of the colour
    warm = torch.tensor(pixels[:, 0] > pixels[:, 2])
    assert torch.equal(warm[strong], (values > 0)[strong])


def test_table_goes_from_the_products_to_the_weights(show, tiny_lab):
    walked = walk(tiny_lab, TEXT, 1, 2, 6)
    page = show(walked)  # the weights are shown first
    rows = cells(page)
    assert [row[0] for row in rows] == [f"{at} {walked.tokens[at]}" for at in range(8)]
    for at, (_, *numbers) in enumerate(rows):
        expected = [float(walked.step(name).values[at]) for name in ATTENTION]
        assert [number(text) for text in numbers] == pytest.approx(expected, abs=6e-5)
    assert rows[7][3] == "−∞"
    names = [walked.step(name).formula for name in ATTENTION]
    assert page.get_by_role("math").evaluate_all("all => all.map(one => one.getAttribute('aria-label'))") == names


@pytest.mark.parametrize(("position", "most"), [(59, 40), (5, 6)])
def test_of_a_long_text_the_tokens_read_most_are_listed(show, tiny_lab, position, most):
    walked = walk(tiny_lab, "x" * 60, 0, 0, position)
    page = show(walked)
    weights = walked.step("weights").values[: position + 1]
    expected = sorted({*weights.topk(most).indices.tolist(), position, *([position + 1] if position < 59 else [])})
    assert [int(row[0].split()[0]) for row in cells(page)] == expected
    expect(page.get_by_text("The 40 read most, of 60 tokens.")).to_have_count(int(position == 59))


def test_prediction_from_there(show, tiny_lab):
    walked = walk(tiny_lab, "x", 0, 0)
    page = show(walked)
    assert cells(page)[0][-1] == "1.0000"  # one token reads itself
    choose(page, re.compile("^prediction"))
    rows = page.locator(".g-predictions tbody tr").all()
    for row, (token, probability) in zip(rows, walked.predictions, strict=True):
        assert row.locator("th").inner_text() == token
        assert float(row.locator("td").first.inner_text()) == pytest.approx(probability, abs=6e-5)


def test_arrow_keys_go_from_step_to_step(show, tiny_lab):
    page = show(walk(tiny_lab, TEXT, 1, 2, 6))
    page.get_by_role("tab", name="weights").focus()
    for key, name in (("ArrowLeft", "q, k, v"), ("End", "prediction"), ("Home", "embedding")):
        page.keyboard.press(key)
        expect(page.get_by_role("tab", selected=True)).to_contain_text(name)
        expect(page.get_by_role("tab", selected=True)).to_be_focused()
        expect(page.get_by_role("tabpanel")).to_have_accessible_name(name)


def test_view_follows_the_selection_and_keeps_what_it_has_where_that_fails(visit_live, tiny_lab, seen):
    page = visit_live(Walkthrough(walk(tiny_lab, seen, 0, 0, 0), lab=tiny_lab, trace=seen))
    page.get_by_label("Token").select_option("4")
    page.get_by_label("Layer").select_option("1")
    page.get_by_label("Head").select_option("3")
    expect(page.locator(".g-weights tbody tr")).to_have_count(6)
    expect(page.locator(".g-panel")).to_have_attribute("aria-busy", "false")
    expected = walk(tiny_lab, seen, 1, 3, 4).step("weights").values[:6]
    assert [float(row[-1]) for row in cells(page)] == pytest.approx(expected.tolist(), abs=6e-5)
    before = cells(page)
    page.evaluate("() => { model.ask = async () => ({ error: 'The text is gone.' }); }")
    page.get_by_label("Head").select_option("1")
    expect(page.get_by_role("alert")).to_have_text("The text is gone.")
    assert cells(page) == before


def test_only_the_last_of_quick_selections_is_asked_and_the_old_is_dimmed_until_then(visit_live, tiny_lab, seen):
    page = visit_live(Walkthrough(walk(tiny_lab, seen, 0, 0, 0), lab=tiny_lab, trace=seen))
    expect(page.get_by_label("Token")).to_be_visible()
    page.evaluate(
        """() => { window.asked = []; const ask = model.ask;
        model.ask = (kind, options) => { asked.push(options); return new Promise((go) => { window.go = () => ask(kind, options).then(go); document.title = "asked"; }); };
        for (const position of [1, 2, 3, 4]) model.set("selection", { ...model.get("selection"), position }); }"""
    )
    expect(page).to_have_title("asked")
    assert page.evaluate("asked") == [{"layer": 0, "head": 0, "position": 4}]
    expect(page.locator(".g-panel")).to_have_attribute("aria-busy", "true")
    assert len(cells(page)) == 2
    page.evaluate("go()")
    expect(page.locator(".g-panel")).to_have_attribute("aria-busy", "false")
    assert len(cells(page)) == 6


def test_two_models_are_shown_one_below_the_other(visit_file, tmp_path, tiny_lab, random_lab):
    walks = [walk(lab, TEXT, 1, 2, 6) for lab in (tiny_lab, random_lab(seed=5))]
    widget = Walkthrough(walks[0])
    widget.data = {"sides": [Walkthrough(walked).data["sides"][0] for walked in walks]}
    widget.side = 2
    page = visit_file(widget.save(tmp_path / "two.html").as_uri())
    expect(page.get_by_role("tabpanel").get_by_role("heading")).to_have_text([walked.name for walked in walks])
    choose(page, "z")
    for shown, walked in zip(page.locator("[data-step=z] .g-numbers").all(), walks, strict=True):
        length = float(re.search(r"length (\S+):", shown.inner_text())[1])
        assert length == pytest.approx(float(walked.step("z").values.norm()), abs=6e-4)


def test_hostile_tokens_are_text(show, tiny_lab):
    walked = walk(tiny_lab, TEXT, 1, 2, 8)
    tokens = (*HOSTILE, *walked.tokens[len(HOSTILE) :])
    page = show(replace(walked, tokens=tokens, name="<i>name</i>", predictions=tuple((t, 0.1) for t in HOSTILE)))
    assert page.locator(".g-weights .g-token").all_text_contents()[: len(HOSTILE)] == list(HOSTILE)
    for part in (".g-weights .g-token", ".g-rail .g-token"):
        assert page.locator(part).first.evaluate("one => getComputedStyle(one).unicodeBidi") == "isolate"
    expect(page.locator(".g-note")).to_have_text(f"Token 8 \u2068{HOSTILE[8]}\u2069, layer 1, head 2 of <i>name</i>")
    choose(page, re.compile("^prediction"))
    assert page.locator(".g-predictions .g-token").all_text_contents() == list(HOSTILE)
    assert page.locator("img, i:not(.g-share i)").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_view_of_gpt2_small_s_shape_fits_a_phone_and_stays_short(visit_file, tmp_path, random_lab, scheme):
    lab = random_lab(n_layer=12, n_head=12, n_embd=384)
    address = Walkthrough(walk(lab, "x" * 60, 11, 11, 50)).save(tmp_path / "small.html").as_uri()
    page = visit_file(address, viewport={"width": 320, "height": 700}, color_scheme=scheme)
    for name in ("embedding", "weights", "mlp", "resid_post"):
        choose(page, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= 320
        assert page.evaluate("document.documentElement.scrollHeight") <= 1000
    ink = page.locator(".g-panel").evaluate("one => getComputedStyle(one).color")
    assert (sum(map(int, re.findall(r"\d+", ink)[:3])) > 382) == (scheme == "dark")

"""The ablation view in a real browser: its numbers against the package's, and what a reader can do with it."""

import re
from dataclasses import replace

import pytest
from playwright.sync_api import expect

from gpt2lab.inspection.ablation import ablate, sweep
from gpt2lab.inspection.patching import patching
from gpt2lab.inspection.trace import trace
from gpt2lab.widgets.ablation import TOP, Ablation
from gpt2lab.widgets.base import answered
from tests.traces import HOSTILE

TEXT, CORRUPTED = "The moon is a small world.", "The moon in a small world."
HELD = """() => { window.asked = []; const ask = model.ask; model.ask = (kind, options) => {
  asked.push([kind, options]);
  return new Promise((resolve) => { window.go = () => ask(kind, options).then(resolve); document.title = `asked ${asked.length}`; }); }; }"""
SWEEP = "Ablate every head alone"


@pytest.fixture(scope="module")
def seen(tiny_lab):
    return trace(tiny_lab, TEXT, residual=True)


@pytest.fixture
def live(visit_live, tiny_lab, seen):
    """A function: heads that are off at first → a page that can ask."""
    return lambda heads=(), **options: visit_live(
        Ablation(ablate(tiny_lab, TEXT, heads), lab=tiny_lab, trace=seen), **options
    )


@pytest.fixture(scope="module")
def widget(tiny_lab):
    found = ablate(tiny_lab, TEXT, [(1, 2), (0, 3)], mlps=[1])
    return Ablation(
        found,
        sweep=sweep(tiny_lab, TEXT),
        patching=patching(tiny_lab, TEXT, CORRUPTED, answer=65, against=66),
    )


def head(page, layer, head):
    return page.locator(f".g-heads [data-key='0.{layer}.{head}']")


def tokens(page):
    return page.locator(".g-costs [role=option]")


def signed(text):
    return float(text.replace("−", "-"))


def change_of(place):
    """The nats that a cell's or token's name reports."""
    return signed(re.search(r"([+−][\d.]+) nats", place.get_attribute("aria-label"))[1])


def losses(page):
    return [float(text) for text in page.locator(".g-loss b").all_inner_texts()]


def test_saved_view_has_the_package_s_losses_tokens_and_predictions(visit_file, tmp_path, tiny_lab, widget):
    found = widget.result
    page = visit_file(widget.save(tmp_path / "ablation.html").as_uri())
    assert losses(page) == pytest.approx([found.before.loss, found.after.loss], abs=6e-5)
    assert signed(page.locator(".g-chip").inner_text()) == pytest.approx(found.change, abs=6e-5)
    expect(page.locator(".g-loss")).to_contain_text("without 0.3, 1.2, 1.mlp")
    expected = found.before.change(found.after).tolist()
    shown = tokens(page).all()
    assert [one.inner_text() for one in shown] == list(found.before.tokens)
    assert [change_of(one) for one in shown[1:]] == pytest.approx(expected[1:], abs=6e-4)
    for one, value in zip(shown[1:], expected[1:]):
        cold = "37, 99, 235" in one.evaluate("one => getComputedStyle(one).backgroundColor")
        assert cold == (value < 0)
    shown[3].click()
    for name, side in (("before", found.before), ("after", found.after)):
        rows = page.get_by_role("list", name=f"Next prediction, {name}").locator("li:not(.g-soft)").all()
        for row, (_, word, probability) in zip(rows, side.top_predictions(4)[:TOP], strict=True):
            assert row.locator(".g-token").inner_text() == word
            assert float(row.locator("span").last.inner_text()) == pytest.approx(probability, abs=6e-4)
    expect(page.get_by_role("button", name=SWEEP)).to_be_hidden()
    expect(page.get_by_text("Other ablations need Python")).to_be_visible()


def test_saved_view_has_the_sweep_and_the_patching(visit_file, tmp_path, tiny_lab, widget):
    page = visit_file(widget.save(tmp_path / "ablation.html").as_uri())
    swept = sweep(tiny_lab, TEXT)
    for layer in range(2):
        for h in range(4):
            expected = float(swept.losses[layer, h] - swept.loss)
            assert change_of(head(page, layer, h)) == pytest.approx(expected, abs=7e-5)
    expected = patching(tiny_lab, TEXT, CORRUPTED, answer=65, against=66)
    rows = [row.locator("td").all_inner_texts() for row in page.locator(".g-patches tbody tr").all()]
    for row, recovered in zip(reversed(rows), expected.recovered.tolist(), strict=True):
        assert [signed(value) for value in row] == pytest.approx(recovered, abs=6e-3)
    assert page.locator(".g-patches tbody th").all_inner_texts() == ["layer 1", "layer 0", "embedding"]
    assert page.locator(".g-patches thead button").all_inner_texts() == list(expected.tokens)
    [differs] = [i for i, pair in enumerate(zip(expected.tokens, expected.clean_tokens)) if pair[0] != pair[1]]
    expect(page.locator(".g-patches thead th").nth(differs + 1).locator("small")).to_have_text(
        expected.clean_tokens[differs]
    )
    ends = re.findall(r"[+−]\d+\.\d+", page.locator(".g-patching p").last.inner_text())
    assert [signed(end) for end in ends] == pytest.approx([expected.clean, expected.corrupted], abs=6e-4)


def test_click_selects_and_shift_click_switches_off(live, tiny_lab):
    page = live()
    head(page, 1, 2).click()
    expect(head(page, 1, 2)).to_have_attribute("aria-selected", "true")
    expect(page.get_by_text("Nothing is switched off.")).to_be_visible()
    head(page, 0, 3).click(modifiers=["Shift"])
    page.get_by_role("button", name="Switch off the MLP of layer 1").click()
    expect(page.locator(".g-loss")).to_contain_text("without 0.3, 1.mlp")
    assert losses(page)[1] == pytest.approx(ablate(tiny_lab, TEXT, [(0, 3)], mlps=[1]).after.loss, abs=6e-5)
    page.get_by_label("Mean").check()
    expect(page.locator(".g-loss")).to_contain_text("mean of 0.3, 1.mlp")
    expected = ablate(tiny_lab, TEXT, [(0, 3)], mlps=[1], mean=True).after.loss
    assert losses(page)[1] == pytest.approx(expected, abs=6e-5)
    assert page.evaluate("model.get('selection').off") == [[0, 3]]
    page.get_by_role("button", name="Switch off layer 0, head 3").click()
    expect(page.locator(".g-loss")).to_contain_text("mean of 1.mlp")
    page.get_by_role("button", name="Switch everything on").click()
    expect(page.locator(".g-loss")).to_have_count(0)


def test_arrow_keys_move_over_heads_and_tokens(live):
    page = live([(0, 1)])
    expect(head(page, 0, 1)).to_have_attribute("aria-selected", "true")
    head(page, 0, 1).focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    expect(head(page, 1, 2)).to_be_focused()
    page.keyboard.press("Shift+Enter")
    assert page.evaluate("model.get('selection').off") == [[0, 1], [1, 2]]
    expect(page.locator(".g-loss")).to_contain_text("without 0.1, 1.2")
    tokens(page).last.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    expect(tokens(page).nth(1)).to_be_focused()
    assert page.evaluate("model.get('selection').position") == 1


def test_only_the_last_of_quick_changes_is_asked(live, tiny_lab):
    page = live()
    page.evaluate(HELD)
    for h in (0, 1, 2):
        head(page, 1, h).click(modifiers=["Shift"])
    expect(page).to_have_title("asked 1")
    assert page.evaluate("asked")[0][1] == {"off": [[1, 0], [1, 1], [1, 2]], "mlps": [], "mean": False}
    expect(page.locator(".g-panel")).to_have_attribute("aria-busy", "true")
    page.evaluate("() => { go(); }")
    expect(page.locator(".g-panel")).to_have_attribute("aria-busy", "false")
    expected = ablate(tiny_lab, TEXT, [(1, 0), (1, 1), (1, 2)]).after.loss
    assert losses(page)[1] == pytest.approx(expected, abs=6e-5)


def test_sweep_runs_layer_by_layer_and_other_views_get_it(live, tiny_lab):
    page = live()
    page.evaluate(HELD)
    page.get_by_role("button", name=SWEEP).click()
    expect(page).to_have_title("asked 1")
    expect(page.locator(".g-note [role=status]")).to_have_text("Layer 1 of 2")
    page.evaluate("() => { go(); }")
    expect(page).to_have_title("asked 2")
    expect(page.locator(".g-note [role=status]")).to_have_text(re.compile(r"^Layer 2 of 2, about \d+ s left$"))
    assert page.evaluate("model.get('data').sides[0].sweep") is None
    page.evaluate("() => { go(); }")
    expect(page.get_by_role("button", name=SWEEP)).to_be_visible()
    found, expected = page.evaluate("model.get('data').sides[0].sweep"), sweep(tiny_lab, TEXT)
    assert found["loss"] == pytest.approx(expected.loss, abs=1e-4) and found["mean"] is False
    for row, losses_ in zip(found["losses"], expected.losses.tolist(), strict=True):
        assert row == pytest.approx(losses_, abs=1e-4)
    assert change_of(head(page, 1, 3)) == pytest.approx(float(expected.losses[1, 3] - expected.loss), abs=2e-4)


def test_stop_ends_the_sweep(live):
    page = live()
    page.evaluate(HELD)
    page.get_by_role("button", name=SWEEP).click()
    expect(page).to_have_title("asked 1")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name=SWEEP)).to_be_focused()
    page.evaluate("async () => { await go(); }")
    page.wait_for_timeout(50)
    assert len(page.evaluate("asked")) == 1
    assert page.evaluate("model.get('data').sides[0].sweep") is None


def test_patching_asks_entry_by_entry_and_says_what_is_wrong(live, tiny_lab):
    page = live()
    prompt, go = page.get_by_label("Corrupted prompt", exact=True), page.get_by_role("button", name="Patch", exact=True)
    prompt.fill("x")
    go.click()
    expect(page.get_by_role("alert")).to_contain_text("12 tokens in the clean prompt and 1 in the corrupted one")
    prompt.fill(CORRUPTED)
    page.get_by_label("Answer; empty").fill("#65")
    page.get_by_label("Against; empty").fill("#66")
    prompt.press("Enter")
    expect(page.locator(".g-patches tbody tr")).to_have_count(3)
    expect(go).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)
    expected = patching(tiny_lab, TEXT, CORRUPTED, answer=65, against=66).recovered.tolist()
    rows = [row.locator("td").all_inner_texts() for row in page.locator(".g-patches tbody tr").all()]
    for row, recovered in zip(reversed(rows), expected, strict=True):
        assert [signed(value) for value in row] == pytest.approx(recovered, abs=6e-3)
    page.locator(".g-patches thead button").nth(4).click()
    assert page.evaluate("model.get('selection').position") == 4


def test_both_of_two_models_are_ablated_and_a_missing_head_is_said(visit_live, tiny_lab, random_lab, seen):
    shallow = random_lab(seed=2, n_layer=1)
    labs, traces = (tiny_lab, shallow), (seen, trace(shallow, TEXT, residual=True))
    widgets = [Ablation(ablate(lab, TEXT), lab=lab, trace=found) for lab, found in zip(labs, traces)]
    both = widgets[0]
    both.data = {"sides": [widget.data["sides"][0] for widget in widgets]}

    answers = [widget._answer for widget in widgets]
    both._answer = lambda kind, options: {
        "sides": [one.get("sides", [one])[0] for one in (answered(answer, kind, options) for answer in answers)]
    }
    page = visit_live(both)
    head(page, 0, 3).click(modifiers=["Shift"])
    expect(page.locator(".g-loss")).to_have_count(2)
    expected = [ablate(lab, TEXT, [(0, 3)]).after.loss for lab in labs]
    assert losses(page)[1::2] == pytest.approx(expected, abs=6e-5)
    head(page, 1, 0).click(modifiers=["Shift"])
    expect(page.get_by_role("alert")).to_contain_text("layer 1 is out of range")
    expect(page.locator(".g-loss").first).to_contain_text("without 0.3, 1.0")
    page.get_by_role("button", name=SWEEP).click()
    expect(page.get_by_role("button", name=SWEEP)).to_be_visible()
    assert [len(side["sweep"]["losses"]) for side in page.evaluate("model.get('data').sides")] == [2, 1]


def test_hostile_tokens_are_text(visit_file, tmp_path, widget):
    side = widget.data["sides"][0]
    words = [*HOSTILE, *side["tokens"][len(HOSTILE) :]]
    part = side["ablation"] | {"before": [[[word, 0, 0.1] for word in HOSTILE[:TOP]]] * len(words)}
    patches = side["patching"] | {"tokens": words, "words": HOSTILE[:2]}
    hostile = Ablation(replace(widget.result))
    hostile.data = {"sides": [side | {"tokens": words, "ablation": part, "patching": patches}]}
    page = visit_file(hostile.save(tmp_path / "hostile.html").as_uri())
    assert tokens(page).all_text_contents() == words
    assert page.locator(".g-patches thead button").all_text_contents() == words
    listed = page.get_by_role("list", name="Next prediction, before").locator(".g-token")
    assert listed.all_text_contents() == list(HOSTILE[:TOP])
    assert tokens(page).nth(5).evaluate("one => getComputedStyle(one).unicodeBidi") == "isolate"
    assert page.locator("img, b:not(.g-loss b)").count() == 0


@pytest.fixture(scope="module")
def large(random_lab):
    """GPT-2 small's layers and heads, and 128 tokens."""
    lab, text = random_lab(n_layer=12, n_head=12, n_embd=48, n_positions=128), "x" * 128
    return Ablation(
        ablate(lab, text, [(11, 11)]), sweep=sweep(lab, text), lab=lab, trace=trace(lab, text, residual=True)
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_view_of_gpt2_small_s_shape_fits_a_phone_and_follows_at_once(visit_live, large, scheme):
    page = visit_live(large, viewport={"width": 320, "height": 800}, color_scheme=scheme)
    expect(page.locator(".g-heads button")).to_have_count(144)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    took = page.evaluate(
        """() => [...Array(12).keys()].map((i) => { const began = performance.now();
        model.set("selection", { ...model.get("selection"), position: 9 * i, layer: i, head: i });
        document.body.getBoundingClientRect(); return performance.now() - began; }).sort((a, b) => a - b)[5]"""
    )
    assert took < 50
    ink = page.locator(".g-panel").evaluate("one => getComputedStyle(one).color")
    assert (sum(map(int, re.findall(r"\d+", ink)[:3])) > 382) == (scheme == "dark")

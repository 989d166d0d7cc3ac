"""The Explore tab in a real Chromium: drawn at once, one selection for all views, links, exports, bad input."""

import base64
import re
from urllib.parse import urlencode

import nbformat
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from nbclient import NotebookClient
from playwright.sync_api import expect

from gpt2lab.app.explore import EXAMPLES
from gpt2lab.inspection.exploration import exploration
from gpt2lab.model.lab import load_model
from gpt2lab.pages.explore import explore

PATIENCE = 120_000  # milliseconds
FIRST = next(iter(EXAMPLES.values()))
VIEWS = ("tokenstrip", "headgrid", "attention", "predictions", "lensgrid", "contributions", "ablation")
HOSTILE = '</script><img src=x onerror=alert(1)> & "quotes" é 👩‍🚀 $x$ שלום مرحبا'
SELECTION = "document.querySelector('#explore-page .gpt2lab').view.get('selection')"


@pytest.fixture(scope="module")
def lab():
    return load_model("builtin")


def place(page):
    return page.locator("#explore-page .gpt2lab")


def shown_text(page, text):
    page.wait_for_function(
        "text => document.querySelector('#explore-page .gpt2lab')?.dataset.text === text", arg=text, timeout=PATIENCE
    )


def run(page, text):
    """Run a text, and wait until it is drawn."""
    page.locator("#explore-text textarea").fill(text)
    page.locator("#explore-run").click()
    shown_text(page, text)


def tokens(page):
    return place(page).locator(".g-strip [role=option]")


def toast(page):
    return page.locator("[data-testid=toast-body]")


def test_page_opens_with_every_view_of_the_example(open_page, lab):
    page = open_page(viewport={"width": 1400, "height": 900})
    shown_text(page, FIRST)
    found = exploration(lab, FIRST)
    expect(tokens(page)).to_have_text(list(found.seen.tokens))
    for view in VIEWS:
        expect(place(page).locator(f".g-panel.g-{view}")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollHeight") <= 3000


def test_selection_moves_every_view_without_a_request(page, lab):
    run(page, FIRST)
    page.wait_for_timeout(1000)
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    found, at = exploration(lab, FIRST), 16
    tokens(page).nth(at).click()
    expect(tokens(page).nth(at)).to_have_attribute("aria-selected", "true")
    bars = place(page).locator(".g-predictions")
    for _, name, probability in found.lens.top_predictions(-1, at)[:3]:
        expect(bars).to_contain_text(name)
        expect(bars).to_contain_text(f"{100 * probability:.1f}")
    expect(place(page).locator(".g-attention")).to_contain_text(str(at))
    assert page.evaluate(SELECTION)["position"] == at
    page.wait_for_timeout(500)
    assert requests == []


def test_arrow_keys_move_the_selection(page):
    run(page, FIRST)
    tokens(page).nth(3).click()
    for key, at in (("ArrowRight", 4), ("ArrowLeft", 3), ("Home", 0), ("End", 25)):
        page.keyboard.press(key)
        at = min(at, tokens(page).count() - 1)
        expect(tokens(page).nth(at)).to_have_attribute("aria-selected", "true")
        expect(tokens(page).nth(at)).to_be_focused()


def test_link_opens_the_same_view(page, open_page):
    run(page, "a & b <i>c</i>?")
    tokens(page).nth(2).click()
    link = page.evaluate("document.querySelector('#explore-page .gpt2lab').view.get('data').subject.text")
    assert link == "a & b <i>c</i>?"
    other = open_page(query=f"?{urlencode({'text': link, 'model': 'builtin', 'position': 2, 'layer': 1, 'head': 3})}")
    shown_text(other, link)
    expect(tokens(other).nth(2)).to_have_attribute("aria-selected", "true")
    assert other.evaluate(SELECTION) | {"layer": 1, "head": 3} == other.evaluate(SELECTION)


def test_notebook_of_a_view_runs(page, tmp_path):
    run(page, "The moon is round.")
    tokens(page).nth(2).click()
    with page.expect_download() as download:
        place(page).get_by_role("button", name="As notebook").click()
    download.value.save_as(tmp_path / "explore.ipynb")
    notebook = nbformat.read(tmp_path / "explore.ipynb", as_version=4)
    nbformat.validate(notebook)
    notebook.cells[-1].source += "\nprint(page.selection.position, page.data['sides'][0]['name'])\npage"
    NotebookClient(notebook, timeout=300, store_widget_state=False).execute()
    outputs = notebook.cells[-1].outputs
    assert "2 builtin" in "".join(output.get("text", "") for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_python_lines_name_what_is_selected(page):
    run(page, 'Say "hi"\n\\n to {x}.')
    tokens(page).nth(1).click()
    place(page).get_by_role("button", name="As Python").click()
    code = place(page).locator("pre").text_content()
    assert 'explore(lab, "Say \\"hi\\"\\n\\\\n to {x}.")' in code
    assert re.search(r"page\.position, page\.layer, page\.head = 1, \d, \d", code)
    compile(code, "lines", "exec")


def test_part_is_saved_with_the_package_s_numbers(page, lab, tmp_path):
    run(page, "The keys are on the table.")
    place(page).get_by_label("Part to save").select_option("attention of the head")
    place(page).get_by_label("Format").select_option("npz")
    with page.expect_download() as download:
        place(page).get_by_role("button", name="Save", exact=True).click()
    download.value.save_as(tmp_path / "head.npz")
    at = page.evaluate(SELECTION)
    weights = np.load(tmp_path / "head.npz")["weights"][0, 0]
    seen = exploration(lab, "The keys are on the table.").seen
    np.testing.assert_allclose(weights, seen.attention(at["layer"], at["head"]), atol=1e-6)


def test_rollout_and_bertviz_are_drawn_when_asked_for(page, lab):
    text = "The sea follows the moon."
    run(page, text)
    place(page).get_by_role("button", name="Rollout").click()
    expect(place(page).locator(".g-out")).to_contain_text("20 largest shares", timeout=PATIENCE)
    assert base64.b64decode(place(page).locator(".g-out img").get_attribute("src").split(",")[1])[:4] == b"\x89PNG"
    place(page).get_by_label("bertviz view").select_option("head")
    frame = page.frame_locator("#explore-page iframe")
    expect(frame.locator("#vis text")).to_have_count(2 * len(lab.encode(text)), timeout=PATIENCE)


def test_bad_input_is_a_toast_and_what_was_there_stays(page):
    run(page, "A text to begin with.")
    for text, message in (("", "the text is empty"), ("x" * 20_001, "the limit is 20,000")):
        page.locator("#explore-text textarea").fill(text)
        page.locator("#explore-run").click()
        expect(toast(page).last).to_contain_text(message, timeout=PATIENCE)
        shown_text(page, "A text to begin with.")
        expect(page.locator("#explore-page").get_by_text("Error", exact=True)).to_have_count(0)
        tokens(page).nth(2).click()
        expect(tokens(page).nth(2)).to_have_attribute("aria-selected", "true")
    page.get_by_role("tab", name="Train").click()  # the views are drawn once more after it
    page.get_by_role("tab", name="Explore").click()
    expect(tokens(page).first).to_be_visible()


def test_beginning_of_a_long_text_is_shown_and_that_is_said(page, lab):
    run(page, "word " * 600)
    expect(tokens(page)).to_have_count(lab.context)
    expect(place(page).locator(".g-tokenstrip")).to_contain_text("The first 512 of")


def test_hostile_text_does_nothing(page):
    run(page, HOSTILE)
    expect(place(page).locator(".g-tokenstrip")).to_contain_text("img")
    assert place(page).locator("img").count() == 0


def test_lost_server_leaves_the_views_at_work(chromium, app_url):
    context = chromium.new_context()
    page = context.new_page()
    page.goto(app_url)
    shown_text(page, FIRST)
    context.set_offline(True)
    tokens(page).nth(4).click()
    expect(tokens(page).nth(4)).to_have_attribute("aria-selected", "true")
    place(page).get_by_role("button", name="Rollout").click()
    expect(place(page).locator(".g-out")).to_contain_text("The server does not answer", timeout=PATIENCE)
    context.close()


def test_saved_page_has_the_same_numbers_and_asks_nobody(visit_file, lab, tmp_path):
    page = visit_file(explore(lab, FIRST).save(tmp_path / "page.html").as_uri())
    found = exploration(lab, FIRST)
    options = page.locator(".g-strip [role=option]")
    expect(options).to_have_text(list(found.seen.tokens))
    options.nth(16).click()
    for _, name, probability in found.lens.top_predictions(-1, 16)[:3]:
        expect(page.locator(".g-predictions")).to_contain_text(f"{100 * probability:.1f}")
        expect(page.locator(".g-predictions")).to_contain_text(name)
    expect(page.get_by_role("button", name="Rollout")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_violation_of_accessibility(open_page, scheme):
    page = open_page(query=f"?__theme={scheme}", viewport={"width": 1400, "height": 900}, color_scheme=scheme)
    shown_text(page, FIRST)
    page.wait_for_timeout(500)
    found = Axe().run(page, context="#explore-page").response["violations"]
    serious = [
        (violation["id"], node["html"][:160])
        for violation in found
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"][:3]
    ]
    assert serious == []


@pytest.mark.parametrize("width", [320, 768, 1400])
def test_no_sideways_scroll(open_page, width):
    page = open_page(viewport={"width": width, "height": 900})
    shown_text(page, FIRST)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_no_panel_changes_its_height_as_the_selection_moves(open_page):
    heights = """() => [...document.querySelectorAll('#explore-page .g-panel')].map(panel => panel.offsetHeight)"""
    for width in (320, 390, 1400):
        page = open_page(viewport={"width": width, "height": 900})
        shown_text(page, FIRST)
        page.wait_for_function("document.querySelector('#explore-page .g-heatmap')?.offsetHeight > 150")
        first = page.evaluate(heights)
        for at in (0, 5, 11, 24):
            tokens(page).nth(at).click()
            assert page.evaluate(heights) == first


def test_link_to_another_model_keeps_its_place(open_page, runs_dir, lab):
    folder = runs_dir / "other" / "model"
    lab.model.save_pretrained(folder)
    lab.tokenizer.save_pretrained(folder)
    text = "The moon is round."
    place_of_link = {"position": 1, "layer": 1, "head": 3, "side": 2}
    page = open_page(query=f"?{urlencode({'text': text, 'model': 'other', 'compare': 'builtin'} | place_of_link)}")
    shown_text(page, text)
    page.wait_for_timeout(1500)  # the choice of the model runs the text again
    assert page.evaluate(SELECTION) | place_of_link == page.evaluate(SELECTION)


def test_sweep_of_another_text_is_not_shown(page):
    run(page, "The moon is round.")
    place(page).get_by_role("button", name="Ablate every head alone").click()
    expect(place(page).locator(".g-ablation .g-caption").first).to_contain_text(
        "Loss without each head", timeout=PATIENCE
    )
    run(page, "The sea is deep.")
    expect(place(page).locator(".g-ablation .g-caption").first).to_have_text("Heads, by layer")

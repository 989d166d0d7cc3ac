import numpy as np
import pytest
from playwright.sync_api import expect

from gpt2lab.app.learn import PLACES
from gpt2lab.figures.heads import head_map_cells
from gpt2lab.inspection.ablation import ablate, sweep
from gpt2lab.inspection.attribution import attribution
from gpt2lab.inspection.lens import logit_lens
from gpt2lab.inspection.patching import patching
from gpt2lab.inspection.surprisal import surprisal
from gpt2lab.inspection.walkthrough import walk
from gpt2lab.model.lab import load_model
from gpt2lab.results import cell_text

PATIENCE = 120_000  # milliseconds: the first model run imports torch
TEXT = "The moon is a small world."


@pytest.fixture(scope="module")
def lab():
    return load_model("builtin")


def open_tab(page, name):
    page.get_by_role("tab", name=name, exact=True).click()


def inspect(page, lab, text):
    """Inspect a text that costs something else than the one before, by which the answer is known."""
    open_tab(page, "Inside")
    page.locator("#inside-text textarea").fill(text)
    page.locator("#inside-look").click()
    expect_inspected(page, lab, text)


def expect_inspected(page, lab, text):
    cost = f"builtin: {surprisal(lab, text).loss:.3f} nats per token"
    expect(page.locator("#inside-note")).to_contain_text(cost, timeout=PATIENCE)


def unfold(page, name, title, within):
    """Open a part of the tab, unless an earlier test has."""
    if not page.locator(f"#inside-{within}").is_visible():
        page.locator(f"#inside-{name}").get_by_role("button", name=title).click()


def click_token(page, place):
    tokens = page.locator("#inside-tokens .token-container > *, #inside-tokens .textspan")
    expect(tokens.first).to_be_visible()
    tokens.nth(place).click()


def click_head(page, layer, head):
    x, y = head_map_cells(4, 6)[layer, head]
    picture = page.locator("#inside-map img")
    natural, shown = picture.evaluate("image => [image.naturalWidth, image.getBoundingClientRect().width]")
    picture.click(position={"x": x * shown / natural, "y": y * shown / natural})


def toast(page):
    return page.locator("[data-testid=toast-body]")


def test_click_on_a_token_shows_its_lens_and_what_adds_to_it(page, lab):
    inspect(page, lab, TEXT)
    expect(page.locator("#inside-lens img")).to_be_visible()
    click_token(page, 3)
    lens = logit_lens(lab, TEXT, next=True)
    expect(page.locator("#inside-summary")).to_contain_text("After token 2, ", timeout=PATIENCE)
    expect(page.locator("#inside-position input")).to_have_value("2")
    rows = page.locator("#inside-table tbody tr")
    expect(rows).to_have_count(len(lens.probability))
    for entry in range(len(lens.probability)):
        expect(rows.nth(entry)).to_contain_text(cell_text(float(lens.probability[entry, 2])))
    expect(page.locator("#inside-added img")).to_be_visible()
    unfold(page, "parts-all", "Every part", "parts")
    added = attribution(lab, TEXT, position=2, token=int(lens.targets[2]))
    expect(page.locator("#inside-parts")).to_contain_text(f"{added.total:+.4f}")
    picture = page.locator("#inside-lens img")
    before = picture.get_attribute("src")
    page.locator("#inside-measure").get_by_label("entropy").check()
    expect(picture).not_to_have_attribute("src", before, timeout=PATIENCE)
    page.locator("#inside-by").get_by_label("rank").check()
    expect(page.locator("#inside-scale")).to_contain_text("the logarithm of the rank", timeout=PATIENCE)


def test_head_that_is_clicked_on_the_map_is_ablated_and_the_loss_changes(page, lab):
    text = "The sea follows the moon."
    inspect(page, lab, text)
    page.locator("#inside-sweep").click()
    expect(page.locator("#inside-swept")).to_contain_text("Click a head", timeout=PATIENCE)
    losses = sweep(lab, text)
    for head, off in (((2, 3), [(2, 3)]), ((0, 1), [(2, 3), (0, 1)])):
        click_head(page, *head)
        found = ablate(lab, text, off)
        change = f"{found.before.loss:.3f} → {found.after.loss:.3f} nats per token"
        expect(page.locator("#inside-cost")).to_contain_text(change, timeout=PATIENCE)
        expect(page.locator("#inside-off")).to_contain_text("{}.{}".format(*head))
    unfold(page, "map-table", "Scores as a table", "losses")
    expect(page.locator("#inside-losses tbody tr")).to_have_count(len(losses.losses))
    alone = ablate(lab, text, [(2, 3)]).after.loss
    assert float(losses.losses[2, 3]) == pytest.approx(alone, abs=1e-4)
    click_head(page, 0, 1)
    expect(page.locator("#inside-cost")).to_contain_text(f"→ {alone:.3f} nats", timeout=PATIENCE)


def test_block_is_walked_through_every_formula(page, lab):
    text = "The blue whale eats small animals."
    inspect(page, lab, text)
    unfold(page, "walk", "The block, step by step", "page")
    page.locator("#inside-head input").fill("4")
    page.locator("#inside-layer input").fill("2")
    frame = page.frame_locator("#inside-page iframe")
    expect(frame.locator("h2")).to_contain_text("in layer 2, head 4 of builtin", timeout=PATIENCE)
    expected = walk(lab, text, 2, 4, int(page.locator("#inside-position input").input_value()))
    for step in expected.steps:
        expect(frame.locator("body")).to_contain_text(step.formula)
    weights = expected.step("weights").values.tolist()
    expect(frame.locator("body")).to_contain_text(f"{max(weights):.4f}")
    for field in ("position", "layer", "head"):
        for value, shown in (("77", "77"), ("", "None")):
            page.locator(f"#inside-{field} input").fill(value)
            expect(toast(page).last).to_contain_text(f"{field} {shown} is out of range", timeout=20_000)
        page.locator(f"#inside-{field} input").fill("1")


def test_clean_states_are_patched_into_the_corrupted_prompt(page, lab):
    clean, corrupted = "The river flows through", "The war flows through"
    inspect(page, lab, clean)
    page.locator("#inside-follow textarea, #inside-follow input").fill(" the")
    page.locator("#inside-against textarea, #inside-against input").fill(" a")
    unfold(page, "patching", "Activation patching", "corrupted")
    page.locator("#inside-corrupted textarea, #inside-corrupted input").fill(corrupted)
    page.locator("#inside-patch").click()
    found = patching(lab, clean, corrupted, answer=" the", against=" a")
    summary = f"clean {found.clean:+.3f}, corrupted {found.corrupted:+.3f}"
    expect(page.locator("#inside-patched")).to_contain_text(summary, timeout=PATIENCE)
    expect(page.locator("#inside-patches img")).to_be_visible()
    rows = page.locator("#inside-patch-table tbody tr")
    expect(rows).to_have_count(len(found.recovered))
    for entry, row in enumerate(found.recovered.tolist()):
        expect(rows.nth(entry)).to_contain_text("".join(map(cell_text, row)))


def test_part_is_saved_as_a_file_with_its_numbers(page, lab, tmp_path):
    text = "The keys are on the table."
    inspect(page, lab, text)
    page.locator("#inside-part").get_by_label("lens").check()
    page.locator("#inside-format").get_by_label("npz").check()
    page.locator("#inside-save").click()
    link = page.locator("#inside-file a").first
    expect(link).to_be_visible(timeout=PATIENCE)
    with page.expect_download() as download:
        link.click()
    download.value.save_as(tmp_path / "lens.npz")
    with np.load(tmp_path / "lens.npz") as found:
        np.testing.assert_allclose(found["probability"], logit_lens(lab, text, next=True).probability, atol=1e-6)


def test_text_of_another_tab_is_inspected(page, lab):
    open_tab(page, "Generate")
    page.locator("#generate-prompt textarea").fill("A prompt, where nothing is generated yet.")
    page.locator("#generate-inside").click()
    expect_inspected(page, lab, "A prompt, where nothing is generated yet.")
    open_tab(page, "Generate")
    page.locator("#generate-length input[type=number]").fill("12")
    page.locator("#generate-go").click()
    expect(page.locator("#generate-ending")).to_contain_text("the length asked for is reached", timeout=PATIENCE)
    text = page.locator("#generate-text textarea").input_value()
    page.locator("#generate-inside").click()
    expect(page.locator("#inside-text textarea")).to_have_value(text, timeout=PATIENCE)
    expect_inspected(page, lab, text)
    open_tab(page, "Attention")
    page.locator("#attention-text textarea").fill("A text whose attention is shown.")
    page.locator("#attention-inside").click()
    expect(page.locator("#inside-text textarea")).to_have_value("A text whose attention is shown.", timeout=PATIENCE)
    expect_inspected(page, lab, "A text whose attention is shown.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_tab_fits_a_phone_and_has_the_colours_of_the_system(open_page, lab, scheme):
    page = open_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme)
    paper = {"light": "rgb(255, 255, 255)", "dark": "rgb(24, 24, 27)"}[scheme]
    assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
    inspect(page, lab, "The moon is a small world that goes around the earth. " * 3)
    page.locator("#inside-sweep").click()
    expect(page.locator("#inside-swept")).to_contain_text("Click a head", timeout=PATIENCE)
    for name, title, within in (
        ("ranks", "Ranks and costs", "bars"),
        ("parts-all", "Every part", "parts"),
        ("walk", "The block, step by step", "page"),
        ("map-table", "Scores as a table", "losses"),
        ("patching", "Activation patching", "corrupted"),
    ):
        unfold(page, name, title, within)
    expect(page.locator("#inside-bars img")).to_be_visible()
    frame = page.frame_locator("#inside-page iframe")
    expect(frame.locator("body")).to_have_css("background-color", paper, timeout=PATIENCE)
    corner = page.locator("#inside-lens img").evaluate(
        """async image => { await image.decode(); const canvas = document.createElement("canvas");
        const context = canvas.getContext("2d"); context.drawImage(image, 0, 0);
        return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3); }"""
    )
    assert f"rgb({', '.join(map(str, corner))})" == paper
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 844})
        expect_fits(page, width, "Inside")
        assert frame.locator("html").evaluate("page => page.scrollWidth <= page.clientWidth"), width
    for name in ("Attention", "Fine-tune", "Evaluate", "Generate", "Tasks", "Learn"):
        tab = page.get_by_role("tab", name=name, exact=True)
        if tab.is_visible():
            tab.click()
        else:  # on a phone, not all fit in a row
            page.get_by_role("button", name="More tabs").click()
            page.get_by_role("button", name=name, exact=True).click()
        if name == "Attention":
            page.locator("#attention-show").click()
            expect(page.locator("#attention-note")).to_contain_text("Layer 0, head 0", timeout=PATIENCE)
        expect(page.locator(f"#tab-{name.lower().replace('-', '')}")).to_be_visible()
        expect_fits(page, 390, name)


def expect_fits(page, width, name):
    """A tab settles after it is shown; what is too wide stays so."""
    fits = f"document.documentElement.scrollWidth <= {width}"
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    page.wait_for_timeout(150)
    assert page.evaluate(fits), (name, width)


def test_bad_text_is_a_toast_and_leaves_what_is_there(page, lab):
    text = "A text that stays."
    inspect(page, lab, text)
    for bad, message in (("", "the text is empty"), ("x" * 20_001, "the limit is 20,000")):
        page.locator("#inside-text textarea").fill(bad)
        page.locator("#inside-look").click()
        expect(toast(page).last).to_contain_text(message, timeout=PATIENCE)
        expect_inspected(page, lab, text)
        expect(page.locator("#inside-lens img")).to_be_visible()
        assert page.locator("#tab-inside").get_by_text("Error", exact=True).count() == 0


def test_hostile_text_is_shown_and_does_nothing(page, lab):
    text = "</script><img src=x onerror=alert(1)> `$x$` <b>bold</b>"
    inspect(page, lab, text)
    for place in ("summary", "table", "parts", "tokens"):
        assert page.locator(f"#inside-{place} :is(img, b)").count() == 0
    unfold(page, "walk", "The block, step by step", "page")
    frame = page.frame_locator("#inside-page iframe")
    expect(frame.locator(".text")).to_contain_text("onerror", timeout=PATIENCE)
    assert frame.locator("b, img:not(.strip)").count() == 0


def test_learn_tab_says_what_gpt2_is_not_and_its_buttons_open_the_tabs(page):
    open_tab(page, "Learn")
    expect(page.get_by_text("not a masked language model")).to_be_visible()
    expect(page.locator("#learn-block svg")).to_be_visible()
    for place in PLACES:
        open_tab(page, "Learn")
        page.locator(f"#learn-{place}").click()
        expect(page.locator(f"#tab-{place}")).to_be_visible()
        expect(page.locator("#tab-learn")).to_be_hidden()

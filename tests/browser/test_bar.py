"""The bar over all tabs, in a real Chromium."""

import pytest
from playwright.sync_api import expect

from gpt2lab.app.language import catalogue
from gpt2lab.model.lab import load_model

PATIENCE = 60_000
TABS = ["Explore", "Generate", "Train", "Evaluate", "Learn"]


def toast(page):
    return page.locator("[data-testid=toast-body]")


def choose(page, elem_id, value):
    page.locator(f"#{elem_id} input").first.click()
    page.get_by_role("option", name=value, exact=True).click()


def test_status_describes_the_model(page):
    expect(page.locator("#status")).to_contain_text(load_model("builtin").shape, timeout=PATIENCE)


def test_choices_and_theme_are_there_on_the_next_visit(open_page):
    page = open_page()
    expect(page.locator("#status")).to_contain_text("builtin", timeout=PATIENCE)
    choose(page, "compare", "distilgpt2")
    expect(page.locator("#compare-download-line")).to_contain_text("distilgpt2 is not downloaded", timeout=PATIENCE)
    page.locator("#theme").click()
    assert page.evaluate("document.body.classList.contains('dark')")
    page.wait_for_function("localStorage.getItem('gpt2lab')?.length > 0")
    page.reload()
    expect(page.locator("#compare input")).to_have_value("distilgpt2", timeout=PATIENCE)
    expect(page.locator("#compare-download-line")).to_contain_text("distilgpt2 is not downloaded", timeout=PATIENCE)
    page.wait_for_function("document.body.classList.contains('dark')")
    expect(toast(page)).to_have_count(0)


@pytest.mark.parametrize(("locale", "first", "second"), [("en-US", "en", "zh"), ("zh-HK", "zh", "en")])
def test_browser_decides_the_language_and_the_switch_overrides_it(open_page, locale, first, second):
    page = open_page(locale=locale)

    def check(language):
        for tab in TABS:
            name = catalogue()[tab] if language == "zh" else tab
            expect(page.get_by_role("tab", name=name, exact=True)).to_be_visible(timeout=PATIENCE)
        page.locator("#explore-text textarea").fill("")
        page.locator("#explore-run").click()
        message = "the text is empty; type at least one character"
        expect(toast(page).last).to_contain_text(catalogue()[message] if language == "zh" else message)
        title, chinese = toast(page).last.locator(".toast-title"), catalogue()["Error"]
        shown = title.evaluate(
            "title => [getComputedStyle(title).fontSize, getComputedStyle(title, '::before').content]"
        )
        assert (shown == ["0px", f'"{chinese}"']) is (language == "zh"), shown

    check(first)
    page.locator("#language").click()
    check(second)


def test_every_tab_is_visible_on_a_phone(open_page):
    page = open_page(viewport={"width": 390, "height": 800})
    for tab in TABS:
        box = page.get_by_role("tab", name=tab, exact=True).bounding_box()
        assert box and box["x"] >= 0 and box["x"] + box["width"] <= 390
    assert page.evaluate("document.documentElement.scrollWidth") <= 390

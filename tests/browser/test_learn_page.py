"""The course in a real browser: steps, answers, progress that stays, and the way into the other tabs."""

import pytest
from playwright.sync_api import expect

from gpt2lab.learning.course import COURSE, TRANSLATION
from gpt2lab.model.lab import load_model

PATIENCE = 60_000  # milliseconds


@pytest.fixture(scope="module")
def lab():
    return load_model("builtin")


def open_course(page):
    page.get_by_role("tab", name="Learn").click()
    expect(page.locator("#learn-question")).not_to_be_empty(timeout=PATIENCE)


def jump(page, number):
    page.locator("#learn-steps input").click()
    page.get_by_role("option", name=f"{number + 1}. {COURSE[number].title}").click()
    expect(page.locator("#learn-place")).to_contain_text(f"{number + 1} of 12", timeout=PATIENCE)
    expect(page.locator("#learn-body")).to_contain_text(COURSE[number].title, timeout=PATIENCE)


def answer(page, question, given):
    if question.kind == "choice":
        page.locator("#learn-choices").get_by_label(str({v: k for k, v in question.choices}[given])).check()
    else:
        page.locator(f"#learn-{question.kind}").locator("input, textarea").fill(str(given))
    page.locator("#learn-check").click()


def test_every_step_is_shown_and_its_answer_checked(open_page, lab):
    page = open_page(viewport={"width": 1280, "height": 900})
    open_course(page)
    for number, step in enumerate(COURSE):
        question = step.question(lab)
        expect(page.locator("#learn-question")).to_contain_text(str(question.line), timeout=PATIENCE)
        expect(page.locator("#learn-view .g-panel").first).to_be_visible(timeout=PATIENCE)
        assert page.evaluate("document.documentElement.scrollHeight") < 1500
        answer(page, question, question.answer)
        expect(page.locator("#learn-result")).to_contain_text(f"✓ Right. {question.explanation}", timeout=PATIENCE)
        expect(page.locator("#learn-place")).to_contain_text(f"{number + 1} answered")
        page.locator("#learn-next").click()
    again = page.context.new_page()  # where the reader was, and what was answered, stays in the browser
    again.goto(page.url)
    open_course(again)
    expect(again.locator("#learn-place")).to_contain_text("12 of 12 · 12 answered", timeout=PATIENCE)


def test_wrong_and_missing_answers_and_another_text(page):
    open_course(page)
    jump(page, 0)
    page.locator("#learn-check").click()
    expect(page.locator("[data-testid=toast-body]")).to_contain_text("there is no answer yet", timeout=PATIENCE)
    expect(page.locator("#learn-result").get_by_text("Error", exact=True)).to_have_count(0)
    page.locator("#learn-number input").fill("3")
    page.locator("#learn-check").click()
    expect(page.locator("#learn-result")).to_contain_text("✗ Not quite. The text has 85 characters", timeout=PATIENCE)
    page.locator("#learn-text textarea").fill("<img src=x onerror=alert(1)> *moon*")
    page.locator("#learn-text textarea").press("Enter")
    expect(page.locator("#learn-view")).to_contain_text("onerror", timeout=PATIENCE)
    assert page.locator("#learn-view img, #learn-question img").count() == 0


def test_heads_are_coloured_by_the_score_of_the_question(page):
    open_course(page)
    for number, score in ((4, "induction"), (3, "previous_token"), (4, "induction")):
        jump(page, number)
        expect(page.locator("#learn-view").get_by_label("Colour by")).to_have_value(score, timeout=PATIENCE)


def test_buttons_show_the_state_in_explore_and_in_generate(page, lab):
    open_course(page)
    jump(page, 6)
    page.locator("#learn-there").click()
    expect(page.locator("#explore-text textarea")).to_have_value(COURSE[6].text, timeout=PATIENCE)
    expect(page.locator("#explore-page .g-ablation")).to_contain_text("without 2.3", timeout=PATIENCE)
    open_course(page)
    jump(page, 11)
    page.locator("#learn-there").click()
    expect(page.get_by_role("tab", name="Generate")).to_have_attribute("aria-selected", "true", timeout=PATIENCE)
    expect(page.locator("#generate-prompt textarea")).to_have_value(TRANSLATION)


def test_course_fits_a_phone_in_the_dark(open_page):
    page = open_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
    open_course(page)
    for number in (2, 3, 11):
        jump(page, number)
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, number
    for name, number in (("cost", 11), ("block", 3)):  # what is wider can be scrolled to its end
        jump(page, number)
        end = page.locator(f"#learn-{name}").evaluate(
            "box => (box.scrollLeft = 9999) && box.scrollLeft + box.clientWidth - box.scrollWidth"
        )
        assert abs(end) <= 1, name

"""The inside of runs and of the built-in model in the app: drawn on request, live, and in a run's report."""

import pytest
from playwright.sync_api import expect

from gpt2lab.pages.report import inside_section
from gpt2lab.training import runs
from gpt2lab.widgets.page import document
from tests.browser.test_timeline import HISTORY, check_views, slide, step
from tests.widgets.test_timeline import observe, some, write_run

SLOW = 60_000  # milliseconds


@pytest.fixture
def finished(runs_dir):
    """A finished run that was observed at three steps."""
    made = write_run(runs_dir, some(HISTORY, slice(0, 3)), "seen")
    runs.write_status(made, runs.RunStatus("finished", 2, 2, **runs.this_process()))
    return made


def test_train_tab_shows_a_run_and_what_it_observes_later(open_page, finished):
    page = open_page()
    assert page.locator("#train-inside .g-attention").count() == 0  # nothing is read before the tab is opened
    page.get_by_role("tab", name="Train").click()
    page.locator("#train-runs").get_by_role("button", name="seen", exact=True).click()
    timeline = page.locator("#train-inside .g-timeline")
    expect(timeline).to_have_attribute("data-step", "2", timeout=SLOW)
    expect(page.locator("#train-inside .g-overtime")).to_contain_text("3 steps of")
    observe(finished, HISTORY, 4)
    expect(timeline).to_have_attribute("data-step", "4", timeout=SLOW)  # at the last step, the view follows the run
    page.locator("#train-inside").get_by_role("button", name="Previous step").click()
    observe(finished, HISTORY, 8)
    expect(page.locator("#train-inside .g-overtime")).to_contain_text("5 steps of", timeout=SLOW)
    assert timeline.get_attribute("data-step") == "2"  # who looks back stays


def test_explore_tab_shows_how_the_heads_of_the_model_formed(open_page):
    page = open_page()
    assert page.locator("#explore-history .g-headgrid").count() == 0
    page.locator("#explore-inside button").first.click()
    timeline = page.locator("#explore-history .g-timeline")
    expect(timeline).to_have_attribute("data-step", str(HISTORY.steps[-1]), timeout=SLOW)
    page.locator("#explore-history .g-player input").evaluate(
        "(slider) => { slider.value = 0; slider.dispatchEvent(new Event('input')); }"
    )
    assert timeline.get_attribute("data-step") == "0"
    layer, head = HISTORY.top()
    value = HISTORY.head_scores["induction"][0, layer, head]
    assert f"Layer {layer}, head {head} {value:.2f}" in page.locator("#explore-history .g-values").last.inner_text()


def test_report_holds_the_figure_and_the_view(tmp_path, visit_file):
    page = visit_file(document("Report", inside_section(HISTORY)).save(tmp_path / "report.html").as_uri())
    assert page.locator("figure").count() == 1
    [_, frame] = page.frames
    frame.locator(".g-timeline[data-step]").wait_for()
    slide(frame, 0)
    assert step(frame) == 0
    check_views(frame, HISTORY, 0)

"""The timeline in a browser: a slider moves all views, whose numbers are the history's at that step."""

import numpy as np
import pytest

from gpt2lab.training.history import read_history
from gpt2lab.widgets import Timeline
from gpt2lab.widgets import timeline as timeline_module
from tests.widgets.test_timeline import some

HISTORY = read_history("builtin")
STEPS = HISTORY.steps.tolist()


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    return Timeline(HISTORY).save(tmp_path_factory.mktemp("timeline") / "builtin.html").as_uri()


@pytest.fixture
def view(address, visit_file):
    def open_one(**options):
        page = visit_file(address, **options)
        page.locator(".g-timeline[data-step]").wait_for()
        return page

    return open_one


def slide(page, index):
    page.locator(".g-player input").evaluate(
        "(slider, index) => { slider.value = index; slider.dispatchEvent(new Event('input')); }", index
    )


def step(page):
    return int(page.locator(".g-timeline").get_attribute("data-step"))


def seen(page, side=0):
    """What the views show: scores of heads, surprisal, ranks by layer, the attention of the selected head."""
    return page.evaluate(
        """(side) => {
          const of = (view) => document.querySelectorAll('.g-' + view)[side], number = (text) => Number(text.replaceAll(',', ''));
          return {
            scores: [...of('headgrid').querySelectorAll('.g-cell')].map((cell) => parseFloat(cell.title.match(/[\\d.]+ share/))),
            surprisal: [...of('tokenstrip').querySelectorAll('.g-strip button')].slice(1).map((token) => parseFloat(token.title.split(': ')[1])),
            ranks: [...of('lensgrid').querySelectorAll('tbody tr')].map((row) => [...row.querySelectorAll('td')].map((cell) => number(cell.textContent))),
            attention: [...of('attention').parentElement.view.matrix()],
          }; }""",
        side,
    )


def check_views(page, history, at, side=0, score="induction"):
    """The views of a side show a history's numbers at the step of an index."""
    shown = seen(page, side)
    L, H = history.n_layers, history.n_heads
    layer, head = HISTORY.top()
    grid = np.array(shown["scores"]).reshape(L, H)[::-1]  # the last layer is on top
    np.testing.assert_allclose(grid, history.head_scores[score][at], atol=6e-4)
    np.testing.assert_allclose(shown["surprisal"], history.surprisal[at, 1:], atol=6e-4)
    assert np.array_equal(shown["ranks"][::-1], history.lens_rank[at])
    rows, columns = np.tril_indices(len(history.tokens))
    expected = history.weights(int(history.steps[at]), layer, head)[rows, columns]
    np.testing.assert_allclose(shown["attention"], expected, atol=1e-6)


def test_slider_moves_all_views_to_the_numbers_of_the_step(view):
    page = view()
    assert step(page) == STEPS[-1]
    for at in (len(STEPS) - 1, 0, STEPS.index(2048), STEPS.index(512)):
        slide(page, at)
        assert step(page) == STEPS[at]
        check_views(page, HISTORY, at)
    slider = page.get_by_role("slider", name="Training step")
    assert slider.get_attribute("aria-valuetext") == "step 512"
    assert page.locator(".g-now").inner_text() == f"Step 512 of {STEPS[-1]:,}"


def test_another_score_and_another_head_are_followed(view):
    page = view()
    slide(page, STEPS.index(2048))
    page.locator(".g-headgrid select").select_option("previous_token")
    check_views(page, HISTORY, STEPS.index(2048), score="previous_token")
    chart = page.locator(".g-overtime canvas").last
    assert "previous token head forms at step 1,536" in chart.get_attribute("aria-label")
    page.locator(".g-headgrid .g-cell").nth(5 * 8 + 3).click()  # layer 0, head 3
    value = HISTORY.head_scores["previous_token"][STEPS.index(2048), 0, 3]
    assert f"Layer 0, head 3 {value:.2f}" in page.locator(".g-values").last.inner_text()
    page.get_by_text("Steps as a table").click()
    row = page.locator("tr[aria-current=step]")
    assert row.locator("th").inner_text() == "2,048"
    assert row.locator("td").last.inner_text() == f"{value:.3f}"
    assert row.locator("td").first.inner_text().startswith("0.3: ")


def test_keys_move_the_slider_and_buttons_step(view):
    page = view()
    slider = page.get_by_role("slider", name="Training step")
    slider.focus()
    last = STEPS[-1]
    for key, expected in (("ArrowLeft", STEPS[-2]), ("Home", 0), ("ArrowRight", 1), ("ArrowLeft", 0), ("End", last)):
        page.keyboard.press(key)
        assert step(page) == expected, key
    page.get_by_role("button", name="Previous step").click()
    page.get_by_role("button", name="Previous step").press("Enter")
    assert step(page) == STEPS[-3]
    page.get_by_role("button", name="Next step").click()
    assert step(page) == STEPS[-2]
    check_views(page, HISTORY, len(STEPS) - 2)


def test_play_goes_on_by_itself_pauses_and_ends_at_the_last_step(view):
    page = view()
    page.get_by_label("Speed").select_option("12")
    play = page.locator(".g-player button").nth(1)
    play.focus()
    page.keyboard.press("Space")  # at the end it begins again
    assert play.get_attribute("aria-label") == "Pause"
    page.locator(".g-timeline:not([data-step='0'])").wait_for()
    page.keyboard.press("Space")
    paused = step(page)
    assert play.get_attribute("aria-label") == "Play" and 0 < paused < STEPS[-1]
    page.wait_for_timeout(400)
    assert step(page) == paused
    check_views(page, HISTORY, STEPS.index(paused))
    page.keyboard.press("Space")
    page.locator(f".g-timeline[data-step='{STEPS[-1]}']").wait_for()
    assert page.get_by_role("button", name="Play").count() == 1


def test_play_works_with_reduced_motion(view):
    page = view()
    page.emulate_media(reduced_motion="reduce")
    page.reload()
    page.locator(".g-timeline[data-step]").wait_for()
    assert page.get_by_label("Speed").input_value() == "1"
    page.get_by_role("button", name="Play").click()
    page.locator(".g-timeline[data-step='1']").wait_for()
    page.emulate_media(reduced_motion="no-preference")


def test_click_on_the_curve_goes_to_the_nearest_step(view):
    page = view()
    box = page.locator(".g-overtime canvas").last.bounding_box()
    page.mouse.click(box["x"] + 41, box["y"] + 80)
    assert step(page) == 0
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 21, box["y"] + 80)
    page.mouse.up()
    assert step(page) == STEPS[-1]


def test_focus_and_fields_of_the_views_stay_from_step_to_step(view):
    page = view()
    page.locator(".g-strip button").nth(7).click()
    page.get_by_role("button", name="Lines", exact=True).click()
    page.locator(".g-strip button").nth(7).focus()
    slide(page, 3)
    assert page.evaluate("document.activeElement.textContent") == HISTORY.tokens[7]
    assert page.get_by_role("button", name="Lines", exact=True).get_attribute("aria-pressed") == "true"
    assert page.locator(".g-about").inner_text().startswith("Token 7")


def test_two_trainings_stand_side_by_side_with_one_slider(tmp_path, visit_file):
    early, late = some(HISTORY, slice(0, 10), name="</script>early"), some(HISTORY, slice(8, 21, 2), name="late")
    timeline = Timeline(early, late)
    timeline.layer, timeline.head = HISTORY.top()
    page = visit_file(timeline.save(tmp_path / "two.html").as_uri())
    page.locator(".g-timeline[data-step]").wait_for()
    assert page.locator(".g-run-name").all_inner_texts() == ["</script>early\nstep 128", "late\nstep 5,000"]
    check_views(page, early, 9, side=0)
    check_views(page, late, 6, side=1)
    slide(page, 0)
    assert page.locator(".g-run-name .g-soft").all_inner_texts() == ["step 0", "step 96"]
    check_views(page, early, 0, side=0)
    check_views(page, late, 0, side=1)
    page.locator(".g-headgrid select").first.select_option("previous_token")
    check_views(page, late, 0, side=1, score="previous_token")


@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (390, "dark"), (1600, "light")])
def test_it_fits_every_screen(view, width, scheme):
    page = view(viewport={"width": width, "height": 800}, color_scheme=scheme)
    slide(page, STEPS.index(2048))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    check_views(page, HISTORY, STEPS.index(2048))
    page.evaluate("window.scrollTo(0, 900)")
    assert page.locator(".g-player").bounding_box()["y"] == pytest.approx(0, abs=1)  # the slider stays in sight


def test_attention_of_a_step_that_was_left_out_is_the_nearest_and_says_so(tmp_path, visit_file, monkeypatch):
    each = HISTORY.n_layers * HISTORY.n_heads * len(HISTORY.tokens) * (len(HISTORY.tokens) + 1) // 2
    monkeypatch.setattr(timeline_module, "MAX_WEIGHTS", 5 * each)  # steps 0, 5, 10, 15 and 20 are kept
    page = visit_file(Timeline(some(HISTORY, slice(0, 21))).save(tmp_path / "few.html").as_uri())
    page.locator(".g-timeline[data-step]").wait_for()
    slide(page, 16)
    assert page.locator(".g-about").inner_text().startswith(f"The attention shown is that of step {STEPS[15]:,}. Token")
    rows, columns = np.tril_indices(len(HISTORY.tokens))
    expected = HISTORY.weights(STEPS[15], *HISTORY.top())[rows, columns]
    np.testing.assert_allclose(seen(page)["attention"], expected, atol=1e-6)
    slide(page, 15)
    assert page.locator(".g-about").inner_text().startswith("Token")
    check_views(page, HISTORY, 15)

import json
import re
from dataclasses import replace

import pytest
from playwright.sync_api import expect

from gpt2lab.generation.generate import generate
from gpt2lab.generation.sampling import Alternative, Sampling, redrawn
from gpt2lab.widgets.generation import GenerationView

OPTIONS = {"max_new_tokens": 12, "temperature": 0.8, "top_p": 0.9, "seed": 2}
HOSTILE = ("<script>alert(1)</script>", "<b>x</b>", "שלום", "🌙", "=1+1", "\x00\u200b", "</script>", "‮abc")
OPACITY = "[...document.querySelectorAll('[role=option]')].map(token => parseFloat(token.style.background.match(/([\\d.]+)\\)$/)[1]))"


@pytest.fixture(scope="module")
def text(tiny_lab):
    return generate(tiny_lab, "The moon", **OPTIONS)


@pytest.fixture(scope="module")
def view(tiny_lab, text):
    return GenerationView(tiny_lab, text)


@pytest.fixture
def page(view, tmp_path, visit_file):
    return visit_file(view.save(tmp_path / "text.html").as_uri())


def percent(text):
    return float(text.removeprefix("≥ ").removesuffix(" %")) / 100


def bars(page):
    """[(token, own probability, probability under the sampler)] as they stand on the page."""
    rows = page.evaluate(
        "[...document.querySelectorAll('.g-alternative')].map(row => [...row.querySelectorAll('.g-token, .g-value')].map(each => each.textContent))"
    )
    return [(token, percent(own), percent(drawn)) for token, own, drawn in rows]


def near(value):
    return pytest.approx(value, rel=0.06, abs=6e-4)


def test_tokens_and_their_numbers_are_the_package_s(page, view, text, tiny_lab):
    V = tiny_lab.model.config.vocab_size
    tokens = page.locator("[role=option]")
    shown = page.evaluate("document.querySelector('.g-flow').textContent")
    assert shown == "The moon" + "".join(view.texts[0].tokens).replace("⏎", "⏎\n")
    for i, step in enumerate(text.steps):
        title = tokens.nth(i).get_attribute("title")
        assert re.search(rf"token {i}: probability .*, rank {step.rank} of {V}, entropy {step.entropy:.3f} nats", title)
        assert percent(re.search(r"probability (.* %)", title)[1]) == near(step.probability)
    page.locator("summary").get_by_text("Token table").click()
    rows = page.locator(".g-steps tbody tr")
    for i, step in enumerate(text.steps):
        cells = rows.nth(i).locator("td, th").all_inner_texts()
        numbers = [f"{step.probability:.4f}", str(step.rank), f"{step.entropy:.3f}", f"{step.sampled_probability:.4f}"]
        assert cells[2:6] == numbers


@pytest.mark.parametrize("measure", ["probability", "rank", "entropy"])
def test_colours_deepen_with_the_value(page, text, measure):
    page.get_by_label("Colour by").select_option(measure)
    values = [getattr(step, measure) for step in text.steps]
    found = page.evaluate(OPACITY)
    assert [found[i] for i in sorted(range(12), key=values.__getitem__)] == sorted(found) and len(set(found)) > 5


def test_alternatives_of_a_token_are_its_step_s(page, text):
    for i in (0, 5, 11):
        page.locator("[role=option]").nth(i).click()
        step = text.steps[i]
        found = [(own, drawn) for _, own, drawn in bars(page)][:10]
        assert found == [(near(one.probability), near(one.sampled_probability)) for one in step.alternatives]
        chosen = page.locator(".g-is-chosen .g-value").all_inner_texts()
        assert [percent(one) for one in chosen] == [near(step.probability), near(step.sampled_probability)]


def test_a_file_shows_what_is_there_and_offers_nothing_that_needs_python(page):
    assert page.locator(".g-redraw").is_hidden() and page.get_by_text("Text statistics").is_hidden()
    page.locator(".g-alternative").nth(1).click(force=True)
    assert page.locator("[role=tree]").is_hidden() and page.locator("[role=option]").count() == 12


def test_keys_reach_every_token_its_alternatives_and_lead_back(page):
    page.locator("[role=option]").first.focus()
    at = "[...document.querySelectorAll('[role=option]')].indexOf(document.activeElement)"
    for key, to in (("ArrowRight", 1), ("End", 11), ("ArrowRight", 11), ("ArrowLeft", 10), ("Home", 0)):
        page.keyboard.press(key)
        assert page.evaluate(at) == to
        assert page.locator("[role=option][aria-selected=true]").count() == 1
        assert page.locator("[role=option]").nth(to).get_attribute("aria-selected") == "true"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.className").startswith("g-alternative")
    page.keyboard.press("Escape")
    assert page.evaluate(at) == 0
    assert page.locator("[role=option][tabindex='0']").count() == 1


def test_lines_are_walked_up_and_down(tiny_lab, tmp_path, visit_file):
    view = GenerationView(tiny_lab, generate(tiny_lab, "The", max_new_tokens=60, seed=1))
    page = visit_file(view.save(tmp_path / "long.html").as_uri(), {"width": 360, "height": 900})
    top = "document.activeElement.getClientRects()[0].top"
    page.locator("[role=option]").nth(2).click()
    first = page.evaluate(top)
    page.keyboard.press("ArrowDown")
    assert page.evaluate(top) > first
    page.keyboard.press("ArrowUp")
    assert page.evaluate(top) == first
    page.keyboard.press("ArrowUp")
    assert page.evaluate(top) == first


def test_bars_are_redrawn_with_other_settings(tiny_lab, text, visit_live):
    view = GenerationView(tiny_lab, text)
    page = visit_live(view)
    page.locator("[role=option]").nth(4).click()
    page.get_by_label("Temperature of the bars").fill("2")
    page.get_by_label("Top-k of the bars").fill("5")
    low, _ = redrawn(text.steps[4], Sampling(temperature=2, top_p=0.9, top_k=5), view.texts[0].V)
    expect(page.locator(".g-alternative").nth(6).locator(".g-value").last).to_have_text("0.0 %")
    assert [drawn for _, _, drawn in bars(page)][:10] == [near(value) for value in low[:10]]
    page.get_by_label("Top-p of the bars").fill("0")
    expect(page.locator(".g-choices .g-error")).to_contain_text("top_p 0 leaves no token")
    page.get_by_role("button", name="Reset").click()
    expect(page.locator(".g-choices .g-error")).to_be_hidden()
    assert [drawn for _, _, drawn in bars(page)][:10] == [
        near(one.sampled_probability) for one in text.steps[4].alternatives
    ]


def test_an_alternative_branches_and_the_tree_is_walked(tiny_lab, text, visit_live):
    view = GenerationView(tiny_lab, text)
    page = visit_live(view)
    assert page.locator("[role=tree]").is_hidden()
    others = [i for i, one in enumerate(text.steps[4].alternatives) if one.id != text.steps[4].id]
    for count, place in enumerate(others[:2], 2):
        page.locator("[role=option]").nth(4).click()
        page.locator(".g-alternative").nth(place).click()
        expect(page.locator("[role=treeitem]")).to_have_count(count)
        expect(page.locator(".g-flow")).to_contain_text(view.texts[-1].tokens[-1])
        if count == 2:
            page.locator("[role=treeitem]").first.click()
    assert page.locator(".g-chosen").inner_text() == view.texts[2].tokens[4]
    rows = page.locator("[role=treeitem]")
    assert [rows.nth(i).get_attribute("aria-level") for i in range(3)] == ["1", "2", "2"]
    assert [rows.nth(i).get_attribute("data-number") for i in range(3)] == ["1", "2", "3"]
    rows.first.click()
    for key, at in (("ArrowRight", 1), ("ArrowDown", 2), ("ArrowLeft", 0), ("End", 2), ("ArrowDown", 2), ("Home", 0)):
        page.keyboard.press(key)
        assert page.evaluate("[...document.querySelectorAll('[role=treeitem]')].indexOf(document.activeElement)") == at
        assert rows.nth(at).get_attribute("aria-selected") == "true"
        shown = view.texts[at].generation
        assert page.evaluate("document.querySelector('.gpt2lab').dataset.text") == shown.prompt + shown.text
    page.get_by_label("Text beside it").select_option("3")
    assert page.locator(".g-one").count() == 2


def test_statistics_are_computed_on_demand(tiny_lab, text, visit_live):
    page = visit_live(GenerationView(tiny_lab, text))
    page.get_by_text("Text statistics").click()
    page.get_by_role("button", name="Compute").click()
    cells = page.locator(".g-statistics td")
    expect(cells.first).to_have_text("12")
    assert cells.count() == 7


def test_two_texts_stand_side_by_side_and_below_each_other_on_a_phone(tiny_lab, random_lab, text, tmp_path, visit_file):
    other = random_lab(seed=5)
    view = GenerationView(tiny_lab, text, compare=(other, generate(other, "The moon", **OPTIONS)))
    path = view.save(tmp_path / "two.html")
    for width, scheme in ((1280, "light"), (320, "dark")):
        page = visit_file(path.as_uri(), {"width": width, "height": 900}, scheme)
        (left, top), (right, below) = page.evaluate(
            "[...document.querySelectorAll('.g-one')].map(one => [one.getBoundingClientRect().left, one.getBoundingClientRect().top])"
        )
        assert (right > left, below > top) == ((True, False) if width == 1280 else (False, True))
        assert page.evaluate("document.documentElement.scrollWidth") == width
    page.locator(".g-one").nth(1).locator("[role=option]").nth(3).click()
    assert page.locator(".g-choices").inner_text().count("rank") == 1
    step = view.texts[1].generation.steps[3]
    assert f"{step.entropy:.3f} nats" in page.locator(".g-facts").inner_text()


def test_hostile_tokens_are_text(tiny_lab, text, tmp_path, visit_file):
    steps = tuple(
        replace(step, token=word, alternatives=(Alternative(word, step.id, 0.5, 0.5), *step.alternatives[1:]))
        for step, word in zip(text.steps, HOSTILE)
    )
    view = GenerationView(tiny_lab, replace(text, prompt="<img src=x onerror=alert(1)>", steps=steps))
    view.texts = (view.texts[0]._replace(tokens=tuple(word.replace("\x00\u200b", "⟨00⟩") for word in HOSTILE)),)
    page = visit_file(view.save(tmp_path / "hostile.html").as_uri())
    shown = page.locator("[role=option]").all_inner_texts()
    assert list(shown) == [word.replace("\x00\u200b", "⟨00⟩") for word in HOSTILE]
    page.locator("summary").first.click()
    for i in range(len(HOSTILE)):
        page.locator("[role=option]").nth(i).click()
        assert page.locator(".g-alternative .g-token").first.inner_text()
    assert page.locator(".g-flow img, .g-flow script, .g-flow b").count() == 0


def test_a_moved_window_and_an_end_are_marked(tiny_lab, tmp_path, visit_file):
    view = GenerationView(tiny_lab, generate(tiny_lab, "x" * 60, max_new_tokens=10, window=20))
    page = visit_file(view.save(tmp_path / "window.html").as_uri())
    assert page.locator(".g-seam").count() == 1
    at = [step.window_shifted for step in view.texts[0].generation.steps].index(True)
    assert "The window moved here" in page.locator("[role=option]").nth(at).get_attribute("title")
    ended = replace(view.texts[0].generation, finish="end of text")
    page = visit_file(GenerationView(tiny_lab, ended).save(tmp_path / "end.html").as_uri())
    expect(page.locator(".g-about-text")).to_contain_text("the model ended the text")


def test_files_hold_every_token(page, text):
    page.locator("summary").first.click()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save JSON").click()
    found = json.loads(saved.value.path().read_text())
    assert [step["id"] for step in found["steps"]] == [step.id for step in text.steps]
    assert found["steps"][3]["probability"] == pytest.approx(text.steps[3].probability, rel=1e-5)
    assert (found["prompt"], found["text"], found["seed"]) == ("The moon", text.text, 2)
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save CSV").click()
    assert len(saved.value.path().read_text().splitlines()) == 13

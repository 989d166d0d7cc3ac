import json

import httpx
import numpy as np
import pytest
from gradio_client import Client
from playwright.sync_api import expect

from gpt2lab.app.attention import EXAMPLES
from gpt2lab.app.events import ALONE
from gpt2lab.app.tasks import EXAMPLES as TASK_EXAMPLES
from gpt2lab.figures.heads import head_map_cells
from gpt2lab.generation.tasks import translate
from gpt2lab.inspection.attention import largest_weights
from gpt2lab.inspection.trace import trace
from gpt2lab.model.lab import load_model

PATIENCE = 120_000  # milliseconds: the first model run imports torch


@pytest.fixture(scope="module")
def lab():
    return load_model("builtin")


def open_tab(page, name):
    tab = page.get_by_role("tab", name=name)
    if tab.count():
        tab.click()
    else:  # on a phone, not all fit in a row
        page.get_by_role("button", name="More tabs").click()
        page.get_by_role("button", name=name, exact=True).click()


def show_attention(page, text=None):
    open_tab(page, "Attention")
    if text is not None:
        page.locator("#attention-text textarea").fill(text)
    page.locator("#attention-show").click()


def explorer_in_view(page):
    """The explorer's frame: a browser draws nothing in one that is not in view."""
    expect(page.locator("#attention-note")).to_contain_text("Layer", timeout=PATIENCE)
    page.locator("#attention-explorer iframe").evaluate("frame => frame.scrollIntoView()")
    return page.frame_locator("#attention-explorer iframe")


def toast(page):
    return page.locator("[data-testid=toast-body]")


def test_the_first_page_says_what_is_loaded_and_why(page, lab):
    expect(page.locator("#status")).to_contain_text(lab.shape, timeout=PATIENCE)
    expect(page.locator("#status")).to_contain_text("builtin with sample (gpt2 is not downloaded")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_tab_is_wider_than_a_phone(open_page, scheme):
    page = open_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    assert page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
    show_attention(page)
    expect(page.locator("#attention-note")).to_contain_text("Layer 0, head 0", timeout=PATIENCE)
    for name in ("Attention", "Fine-tune", "Evaluate", "Generate", "Tasks"):
        open_tab(page, name)
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name


def test_attention_shows_the_weights_of_the_head_that_is_clicked(page, lab):
    show_attention(page)
    expect(page.locator("#attention-note")).to_contain_text("Layer 0, head 0", timeout=PATIENCE)
    seen = trace(lab, EXAMPLES["induction"])
    x, y = head_map_cells(seen.n_layers, seen.n_heads)[2, 3]
    picture = page.locator("#attention-map img")
    natural, shown = picture.evaluate("image => [image.naturalWidth, image.getBoundingClientRect().width]")
    picture.click(position={"x": x * shown / natural, "y": y * shown / natural})
    expect(page.locator("#attention-layer input")).to_have_value("2", timeout=PATIENCE)
    expect(page.locator("#attention-head input")).to_have_value("3")
    reads, i, read, j, weight = largest_weights(seen, 2, 3, 2)[1]
    for cell in (reads, str(i), read, str(j), f"{weight:g}"):
        expect(page.locator("#attention-table").get_by_role("row").nth(2)).to_contain_text(cell, timeout=PATIENCE)


def test_explorer_holds_the_head_that_is_chosen_and_answers_to_clicks(page, lab):
    show_attention(page)
    explorer = explorer_in_view(page)
    expect(explorer.locator("#shown")).to_have_text("Layer 0, head 0", timeout=PATIENCE)
    page.locator("#attention-head input").fill("3")
    expect(page.locator("#attention-note")).to_contain_text("Layer 0, head 3", timeout=PATIENCE)
    explorer = explorer_in_view(page)
    expect(explorer.locator("#shown")).to_have_text("Layer 0, head 3", timeout=PATIENCE)
    weights = trace(lab, EXAMPLES["induction"]).attention(0, 3)
    explorer.locator("#text span").nth(5).click()
    best = int(weights[5].argmax())
    expect(explorer.locator("#hover")).to_contain_text(f"attends to {best} ", timeout=PATIENCE)
    explorer.locator("#heads button").last.click()
    expect(explorer.locator("#shown")).to_contain_text("heads 0, 1, 2, 3, 4, 5 (mean)")
    expect(page.locator("#attention-layer input")).to_have_value("0")


def test_bertviz_tells_its_size_and_draws_a_line_per_pair_of_tokens(page, lab):
    show_attention(page)
    expect(page.locator("#attention-note")).to_contain_text("Layer 0, head 0", timeout=PATIENCE)
    page.locator("#attention-bertviz").get_by_role("button", name="bertviz").click()
    page.locator("#attention-size").click()
    expect(page.locator("#attention-plan")).to_contain_text("head view of layers 0-3 of 4, heads 0-5 of 6, about 0.")
    page.locator("#attention-draw").click()
    frame = page.frame_locator("#attention-lines iframe")
    n = len(lab.encode(EXAMPLES["induction"]))
    expect(frame.locator("#vis text")).to_have_count(2 * n, timeout=PATIENCE)
    expect(frame.locator("#attention line")).to_have_count(lab.model.config.n_head * n * n)


def test_two_texts_are_compared(page):
    open_tab(page, "Attention")
    page.locator("#attention-text textarea").fill("The moon is round.")
    page.get_by_role("button", name="Compare").click()
    page.locator("#attention-other-text textarea, #attention-other-text input").fill("The moon was round.")
    page.locator("#attention-show").click()
    explorer = explorer_in_view(page)
    expect(explorer.locator("#side option")).to_have_count(3, timeout=PATIENCE)
    explorer.locator("#side").select_option(index=2)
    expect(explorer.locator("#range")).to_contain_text("+")


def test_link_opens_the_same_view_in_a_new_page(page, open_page):
    show_attention(page, "a & b <i>c</i>?")
    expect(page.locator("#attention-note")).to_contain_text("Layer 0, head 0", timeout=PATIENCE)
    page.locator("#attention-head input").fill("2")
    expect(page.locator("#attention-note")).to_contain_text("Layer 0, head 2", timeout=PATIENCE)
    address = page.locator("#attention-note a").get_attribute("href")
    other = open_page(query=address)
    expect(other.locator("#attention-note")).to_contain_text("Layer 0, head 2", timeout=PATIENCE)
    assert other.locator("#attention-text textarea").input_value() == "a & b <i>c</i>?"


def test_hostile_text_is_shown_and_does_nothing(page):
    hostile = '</script><img src=x onerror=alert(1)> & "quotes" \'\u2028 <b>bold</b>'
    show_attention(page, hostile)
    explorer = explorer_in_view(page)
    expect(explorer.locator("#text")).to_contain_text("img", timeout=PATIENCE)
    page.locator("#attention-bertviz").get_by_role("button", name="bertviz").click()
    page.locator("#attention-draw").click()
    frame = page.frame_locator("#attention-lines iframe")
    expect(frame.locator("#left")).to_contain_text("img", timeout=PATIENCE)
    for place in (page.locator("#attention-lines"), page.locator("#attention-explorer"), frame, explorer):
        assert place.locator("img").count() == 0


def test_a_head_is_saved_as_a_file_with_its_weights(page, lab, tmp_path):
    show_attention(page)
    expect(page.locator("#attention-note")).to_contain_text("Layer 0, head 0", timeout=PATIENCE)
    page.locator("#attention-format").get_by_label("npz").check()
    page.locator("#attention-save").click()
    link = page.locator("#attention-file a").first
    expect(link).to_be_visible(timeout=PATIENCE)
    with page.expect_download() as download:
        link.click()
    download.value.save_as(tmp_path / "head.npz")
    weights = np.load(tmp_path / "head.npz")["weights"]
    np.testing.assert_allclose(weights[0, 0], trace(lab, EXAMPLES["induction"]).attention(0, 0), atol=1e-6)


@pytest.mark.parametrize(
    ("text", "layer", "message"),
    [
        ("", "0", "the text is empty"),
        ("x" * 1_000_001, "0", "the limit is 1,000,000"),
        ("fine", "77", "press Show attention first"),
    ],
)
def test_bad_attention_input_is_a_toast(page, text, layer, message):
    open_tab(page, "Attention")
    page.locator("#attention-text textarea").fill(text)
    if layer == "0":
        page.locator("#attention-show").click()
    else:
        page.locator("#attention-layer input").fill(layer)
    expect(toast(page).last).to_contain_text(message, timeout=PATIENCE)


def test_part_of_a_long_text_is_shown_and_that_is_said(page):
    show_attention(page, "word " * 600)
    expect(page.locator("#attention-note")).to_contain_text("Shown: the first 256 of", timeout=PATIENCE)


def test_layer_that_the_model_lacks_is_a_toast(page):
    show_attention(page)
    expect(page.locator("#attention-note")).to_contain_text("Layer 0, head 0", timeout=PATIENCE)
    page.locator("#attention-layer input").fill("77")
    expect(toast(page).last).to_contain_text("layer 77 is out of range", timeout=PATIENCE)


def test_what_is_shown_stays_while_another_text_is_typed(page, lab):
    show_attention(page)
    expect(page.locator("#attention-note")).to_contain_text("Layer 0, head 0", timeout=PATIENCE)
    page.locator("#attention-text textarea").fill("Something else.")
    page.locator("#attention-head input").fill("3")
    reads, i, read, j, _ = largest_weights(trace(lab, EXAMPLES["induction"]), 0, 3, 2)[1]
    for cell in (reads, str(i), read, str(j)):
        expect(page.locator("#attention-table").get_by_role("row").nth(2)).to_contain_text(cell, timeout=PATIENCE)


def test_tasks_are_done_by_the_package_s_recipes(page, lab):
    open_tab(page, "Tasks")
    page.locator("#tasks-task").get_by_label("translate").check()
    expect(page.locator("#tasks-examples textarea")).to_be_visible(timeout=PATIENCE)
    page.locator("#tasks-text textarea").fill("The moon is round.")
    page.locator("#tasks-go").click()
    expect(page.locator("#tasks-note")).to_contain_text("5 BLEU", timeout=PATIENCE)
    pairs = [tuple(line.split(" = ")) for line in TASK_EXAMPLES["translate"].splitlines()]
    expected = translate(lab, "The moon is round.", examples=pairs)
    assert page.locator("#tasks-result textarea").input_value() == expected.text
    assert page.locator("#tasks-whole textarea").input_value() == expected.prompts[0] + expected.generations[0].text
    page.locator("#tasks-text textarea").fill("two\nlines")
    page.locator("#tasks-go").click()
    expect(toast(page).last).to_contain_text("has several lines", timeout=PATIENCE)


GENERATE = {"label": "builtin", "other": ALONE, "prompt": "The", "count": 1, "by": "rank", "length": 5}
GENERATE |= {
    "temperature": 1,
    "top_p": 1,
    "top_k": 0,
    "seed": 0,
    "min_p": 0,
    "penalty": 1,
    "window": 0,
    "precision": "fp32",
}


@pytest.fixture(scope="module")
def client(app_url):
    return Client(app_url, verbose=False)


@pytest.mark.parametrize("label", ["/etc", "../../etc", "auto", "", None, "gpt2/../builtin"])
def test_no_client_names_a_model_that_is_not_offered(client, label):
    with pytest.raises(Exception, match=r"is unknown|not in the list"):
        client.predict(label, "text", ALONE, "", "entropy", 0, 0, False, api_name="/attention")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": -1}, "minimum value 0"),
        ({"top_p": 0}, "minimum value 0.05"),
        ({"top_k": -3}, "top_k"),
        ({"seed": -5}, "seed -5"),
        ({"prompt": "x" * 5000}, "the prompt has"),
        ({"length": 10**9}, "maximum value 512"),
        ({"min_p": 2}, "maximum value 1"),
        ({"penalty": 0}, "minimum value 0.5"),
        ({"window": 256}, "window 256 is out of range"),
        ({"by": "smell"}, "smell"),
        ({"count": 9}, "maximum value 8"),
        ({"other": "/etc"}, r"not in the list|is unknown"),
    ],
)
def test_bad_sampling_over_http_is_refused_with_the_value_s_name(client, change, message):
    with pytest.raises(Exception, match=message):
        client.predict(*(GENERATE | change).values(), api_name="/generate")


def test_a_value_that_is_not_a_number_is_refused(app_url):
    call = f"{app_url}gradio_api/call/generate"
    for temperature, ending in ((float("nan"), "event: error"), (0.5, "event: complete")):
        body = json.dumps({"data": list((GENERATE | {"temperature": temperature}).values())})
        event = httpx.post(call, content=body, headers={"Content-Type": "application/json"}).json()["event_id"]
        assert ending in httpx.get(f"{call}/{event}", timeout=60).text

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
    page.get_by_role("tab", name=name).click()


def show_attention(page, text, other=""):
    """Show a text's attention, and wait for the link of the answer: it names the texts that are shown."""
    open_tab(page, "Attention")
    page.locator("#attention-text textarea").fill(text)
    if not page.locator("#attention-other-text").is_visible():
        page.get_by_role("button", name="Compare").click()
    page.locator("#attention-other-text textarea, #attention-other-text input").fill(other)
    page.locator("#attention-show").click()
    page.wait_for_function(
        """texts => {
            const link = document.querySelector("#attention-note a"), query = new URLSearchParams(link ? link.search : "");
            return link && query.get("text") === texts[0] && (query.get("other_text") || "") === texts[1]; }""",
        arg=[text, other],
        timeout=PATIENCE,
    )


def choose_head(page, layer, head):
    page.locator("#attention-layer input").fill(str(layer))
    page.locator("#attention-head input").fill(str(head))
    expect(page.locator("#attention-note")).to_contain_text(f"Layer {layer}, head {head}", timeout=PATIENCE)


def explorer_in_view(page):
    """The explorer's frame: a browser draws nothing in one that is not in view."""
    page.locator("#attention-explorer iframe").evaluate("frame => frame.scrollIntoView()")
    return page.frame_locator("#attention-explorer iframe")


def draw_lines(page):
    """The frame of bertviz' view."""
    if not page.locator("#attention-draw").is_visible():
        page.locator("#attention-bertviz").get_by_role("button", name="bertviz").click()
    page.locator("#attention-draw").click()
    return page.frame_locator("#attention-lines iframe")


def toast(page):
    return page.locator("[data-testid=toast-body]")


def test_the_first_page_says_what_is_loaded_and_why(page, lab):
    expect(page.locator("#status")).to_contain_text(lab.shape, timeout=PATIENCE)
    expect(page.locator("#status")).to_contain_text("builtin with sample (gpt2 is not downloaded")


def test_attention_shows_the_weights_of_the_head_that_is_clicked(page, lab):
    text = EXAMPLES["induction"]
    show_attention(page, text)
    seen = trace(lab, text)
    x, y = head_map_cells(seen.n_layers, seen.n_heads)[2, 3]
    picture = page.locator("#attention-map img")
    natural, shown = picture.evaluate("image => [image.naturalWidth, image.getBoundingClientRect().width]")
    picture.click(position={"x": x * shown / natural, "y": y * shown / natural})
    expect(page.locator("#attention-layer input")).to_have_value("2", timeout=PATIENCE)
    expect(page.locator("#attention-head input")).to_have_value("3")
    row = page.locator("#attention-table").get_by_role("row").nth(2)
    reads, i, read, j, weight = largest_weights(seen, 2, 3, 2)[1]
    for cell in (reads, str(i), read, str(j), f"{weight:g}"):
        expect(row).to_contain_text(cell, timeout=PATIENCE)
    page.locator("#attention-text textarea").fill("Another text is typed, and what is shown stays.")
    choose_head(page, 0, 3)
    reads, i, read, j, _ = largest_weights(seen, 0, 3, 2)[1]
    for cell in (reads, str(i), read, str(j)):
        expect(row).to_contain_text(cell, timeout=PATIENCE)


def test_explorer_holds_the_head_that_is_chosen_and_answers_to_clicks(page, lab):
    text = EXAMPLES["sink"]
    show_attention(page, text)
    for head in (0, 3):
        choose_head(page, 0, head)
        explorer = explorer_in_view(page)
        expect(explorer.locator("#shown")).to_have_text(f"Layer 0, head {head}", timeout=PATIENCE)
    best = int(trace(lab, text).attention(0, 3)[5].argmax())
    explorer.locator("#text span").nth(5).click()
    expect(explorer.locator("#hover")).to_contain_text(f"attends to {best} ", timeout=PATIENCE)
    explorer.locator("#heads button").last.click()
    expect(explorer.locator("#shown")).to_contain_text("heads 0, 1, 2, 3, 4, 5, 6, 7 (mean)")
    expect(page.locator("#attention-layer input")).to_have_value("0")


def test_bertviz_shows_its_size_and_draws_a_line_per_pair_of_tokens(page, lab):
    text = "The sea follows the moon."
    show_attention(page, text)
    page.locator("#attention-bertviz").get_by_role("button", name="bertviz").click()
    page.locator("#attention-size").click()
    expect(page.locator("#attention-plan")).to_contain_text("head view of layers 0-5 of 6, heads 0-7 of 8, about 0.")
    frame, n = draw_lines(page), len(lab.encode(text))
    expect(frame.locator("#vis text")).to_have_count(2 * n, timeout=PATIENCE)
    expect(frame.locator("#attention line")).to_have_count(lab.model.config.n_head * n * n)


def test_two_texts_are_compared(page):
    show_attention(page, "The moon is round.", other="The moon was round.")
    explorer = explorer_in_view(page)
    expect(explorer.locator("#side option")).to_have_count(3, timeout=PATIENCE)
    explorer.locator("#side").select_option(index=2)
    expect(explorer.locator("#range")).to_contain_text("+")


def test_link_opens_the_same_view_in_a_new_page(page, open_page):
    text = "a & b <i>c</i>?"
    show_attention(page, text)
    choose_head(page, 0, 2)
    other = open_page(query=page.locator("#attention-note a").get_attribute("href"))
    expect(other.locator("#attention-note")).to_contain_text("Layer 0, head 2", timeout=PATIENCE)
    assert other.locator("#attention-text textarea").input_value() == text


def test_hostile_text_is_shown_and_does_nothing(page):
    show_attention(page, '</script><img src=x onerror=alert(1)> & "quotes" \'\u2028 <b>bold</b>')
    explorer = explorer_in_view(page)
    expect(explorer.locator("#text")).to_contain_text("img", timeout=PATIENCE)
    frame = draw_lines(page)
    expect(frame.locator("#left")).to_contain_text("img", timeout=PATIENCE)
    for place in (page.locator("#attention-lines"), page.locator("#attention-explorer"), frame, explorer):
        assert place.locator("img").count() == 0


def test_a_head_is_saved_as_a_file_with_its_weights(page, lab, tmp_path):
    text = "The keys are on the table."
    show_attention(page, text)
    choose_head(page, 1, 2)
    page.locator("#attention-format").get_by_label("npz").check()
    page.locator("#attention-save").click()
    link = page.locator("#attention-file a").first
    expect(link).to_be_visible(timeout=PATIENCE)
    with page.expect_download() as download:
        link.click()
    download.value.save_as(tmp_path / "head.npz")
    weights = np.load(tmp_path / "head.npz")["weights"]
    np.testing.assert_allclose(weights[0, 0], trace(lab, text).attention(1, 2), atol=1e-6)


def test_bad_attention_input_is_a_toast(page):
    show_attention(page, "A text to begin with.")
    page.locator("#attention-layer input").fill("77")
    expect(toast(page).last).to_contain_text("layer 77 is out of range", timeout=PATIENCE)
    page.locator("#attention-layer input").fill("0")
    page.locator("#attention-text textarea").fill("x" * 1_000_001)
    page.locator("#attention-show").click()
    expect(toast(page).last).to_contain_text("the limit is 1,000,000", timeout=PATIENCE)
    page.locator("#attention-layer input").fill("1")  # nothing is shown any more
    expect(toast(page).last).to_contain_text("press Show attention first", timeout=PATIENCE)


def test_part_of_a_long_text_is_shown_and_that_is_said(page):
    open_tab(page, "Attention")
    page.locator("#attention-text textarea").fill("word " * 600)
    page.locator("#attention-show").click()
    expect(page.locator("#attention-note")).to_contain_text("Shown: the first 512 of", timeout=PATIENCE)


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


def test_no_client_names_a_model_that_is_not_offered(client):
    for label in ("/etc", "../../etc", "auto", "", None, "gpt2/../builtin"):
        with pytest.raises(Exception, match=r"is unknown|not in the list"):
            pytest.fail(
                f"{label!r}: {client.predict(label, 'text', ALONE, '', 'entropy', 0, 0, False, api_name='/attention')}"
            )


def test_bad_sampling_over_http_is_refused_with_the_value_s_name(client):
    for change, message in (
        ({"top_p": 0}, "minimum value 0.05"),  # a slider's own limits
        ({"length": 10**9}, "maximum value 512"),
        ({"by": "smell"}, "smell"),
        ({"other": "/etc"}, "not in the list|is unknown"),
        ({"top_k": -3}, "top_k"),  # the package's
        ({"window": 512}, "window 512 is out of range"),
        ({"prompt": "x" * 5000}, "the prompt has"),
    ):
        with pytest.raises(Exception, match=message):
            pytest.fail(f"{change}: {client.predict(*(GENERATE | change).values(), api_name='/generate')}")


def test_a_value_that_is_not_a_number_is_refused(app_url):
    call = f"{app_url}gradio_api/call/generate"
    for temperature, ending in ((float("nan"), "event: error"), (0.5, "event: complete")):
        body = json.dumps({"data": list((GENERATE | {"temperature": temperature}).values())})
        event = httpx.post(call, content=body, headers={"Content-Type": "application/json"}).json()["event_id"]
        assert ending in httpx.get(f"{call}/{event}", timeout=60).text

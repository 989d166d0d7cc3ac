import json
import re
import secrets
import sys
import time

import httpx
import pytest
from playwright.sync_api import expect

import gpt2lab.generation.generate
from gpt2lab.app.events import ALONE
from gpt2lab.app.generate import FIRST
from gpt2lab.app.generate_presets import presets
from gpt2lab.generation.generate import generate
from gpt2lab.model.lab import load_model

PATIENCE = 60_000  # milliseconds: the first model run imports torch
OPTIONS = {"max_new_tokens": 12, "temperature": 0, "top_p": 0.95}
TEXT = "document.querySelector('#generate-page .gpt2lab').dataset.text"


@pytest.fixture(scope="module")
def lab():
    return load_model("builtin")


def open_tab(page):
    page.get_by_role("tab", name="Generate").click()
    expect(tokens(page).first).to_be_visible(timeout=PATIENCE)


def set_number(page, name, value):
    field = page.locator(f"#generate-{name} input[type=number]")
    field.fill(str(value))
    field.blur()


def write(page, length=12, temperature=0, prompt="The moon is"):
    open_tab(page)
    page.locator("#generate-prompt textarea").fill(prompt)
    set_number(page, "temp", temperature)
    set_number(page, "length", length)
    page.locator("#generate-go").click()


def status(page):
    return page.locator("#generate-status")


def tokens(page):
    return page.locator("#generate-page [role=option]")


def shows(page, text):
    page.wait_for_function(f"text => {TEXT} === text", arg=text, timeout=PATIENCE)


def toast(page):
    return page.locator("[data-testid=toast-body]").last


def generating():
    """Threads that are inside a generation, or a draw that a test has slowed down."""
    names = (gpt2lab.generation.generate.__file__, __file__)

    def frames(frame):
        while frame:
            yield frame.f_code
            frame = frame.f_back

    found = 0
    for top in sys._current_frames().values():
        codes = list(frames(top))
        found += any(code.co_filename in names and code.co_name in ("_generated", "slow") for code in codes)
    return found


@pytest.fixture
def drawn(monkeypatch):
    """The tokens drawn so far, each of which takes a fifth of a second."""
    found, draw = [], gpt2lab.generation.generate.draw

    def slow(*args, **options):
        time.sleep(0.2)
        step = draw(*args, **options)
        found.append(step.token)
        return step

    monkeypatch.setattr(gpt2lab.generation.generate, "draw", slow)
    return found


def test_the_tab_opens_with_a_text(page, lab):
    open_tab(page)
    expected = generate(lab, **FIRST)
    shows(page, expected.prompt + expected.text)
    expect(status(page)).to_contain_text("An example by the built-in model.")


def test_text_streams_and_is_the_package_s_own(page, lab, drawn):
    write(page, 12, 0.8)
    expect(status(page)).to_contain_text("Writing: ", timeout=PATIENCE)
    page.wait_for_function("0 < document.querySelectorAll('#generate-page [role=option]').length < 12")
    expected = generate(lab, "The moon is", **OPTIONS | {"temperature": 0.8})
    expect(status(page)).to_have_text("Finished: the length of 12 tokens is reached.", timeout=PATIENCE)
    shows(page, expected.prompt + expected.text)
    assert tokens(page).count() == 12


def test_an_alternative_is_continued_from_and_the_tree_leads_back(page, lab):
    write(page, prompt="The sea is")
    first = generate(lab, "The sea is", **OPTIONS)
    shows(page, "The sea is" + first.text)
    tokens(page).nth(4).click()
    expect(page.locator("#generate-page .g-facts")).to_contain_text(f"{first.steps[4].entropy:.3f} nats")
    page.locator("#generate-page .g-alternative").nth(2).click()
    after = (*first.steps[:4], first.steps[4].with_token(first.steps[4].alternatives[2].id))
    expected = generate(lab, "The sea is", **OPTIONS | {"max_new_tokens": 7}, after=after)
    shows(page, "The sea is" + expected.text)
    expect(status(page)).to_have_text("Finished: the length of 12 tokens is reached.")
    row = page.locator("#generate-page [role=treeitem][aria-selected=true]")
    assert row.get_attribute("aria-level") == "2"
    row.focus()
    page.keyboard.press("ArrowLeft")
    shows(page, "The sea is" + first.text)
    assert tokens(page).nth(4).get_attribute("aria-selected") == "true"  # another choice can be tried


def test_looking_asks_the_server_nothing(page):
    write(page)
    expect(status(page)).to_contain_text("Finished: ", timeout=PATIENCE)
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    for i in (0, 3, 5):
        tokens(page).nth(i).click()
    page.locator("#generate-page").get_by_label("Colour by").select_option("entropy")
    page.locator("#generate-page summary").get_by_text("Token table").click()
    page.locator("#generate-page [role=treeitem]").first.click()
    page.keyboard.press("ArrowDown")
    page.wait_for_timeout(500)
    assert [url for url in requests if "component_server" in url or "queue/join" in url] == []


def test_bars_are_redrawn_by_the_server(page):
    open_tab(page)
    tokens(page).nth(3).click()
    page.get_by_label("Temperature of the bars").fill("0")
    values = page.locator("#generate-page .g-alternative .g-value")
    expect(values.nth(1)).to_have_text("100.0 %", timeout=PATIENCE)
    page.get_by_role("button", name="Reset", exact=True).click()


def test_two_models_stream_beside_each_other_and_are_measured(open_page, runs_dir, lab):
    folder = runs_dir / "beside" / "model"
    changed = load_model("builtin")
    for weight in changed.model.transformer.h[0].parameters():
        weight.data.mul_(1.1)
    changed.model.save_pretrained(folder)
    changed.tokenizer.save_pretrained(folder)
    page = open_page(viewport={"width": 1280, "height": 900})
    open_tab(page)
    page.locator("#compare input").click()
    page.get_by_role("option", name="beside").click()
    write(page)
    expect(status(page)).to_contain_text("Finished: 2 texts, 24 tokens", timeout=PATIENCE)
    both = [generate(one, "The moon is", **OPTIONS) for one in (lab, changed)]
    shown = page.locator("#generate-page .g-one [role=listbox]").evaluate_all(
        "lists => lists.map(list => list.children.length)"
    )
    assert shown == [12, 12]
    shows(page, "The moon is" + both[0].text)
    page.locator("#generate-page .g-one").nth(1).locator("[role=option]").nth(2).click()
    expect(page.locator("#generate-page .g-facts")).to_contain_text(f"{both[1].steps[2].entropy:.3f} nats")
    page.locator("#generate-page summary").get_by_text("Text statistics").click()
    page.locator("#generate-page").get_by_role("button", name="Compute").click()
    measured = page.locator("#generate-page .g-statistics")
    for part in ("Distinct-2", "Longest copy", "Perplexity under builtin", "Perplexity under beside"):
        expect(measured).to_contain_text(part, timeout=PATIENCE)


def test_a_task_is_a_preset_of_the_prompt(page, lab):
    open_tab(page)
    one = presets()[-1]
    page.locator("#generate-presets").get_by_role("button", name=one.title).click()
    expect(page.locator("#generate-prompt textarea")).to_have_value(one.prompt, timeout=PATIENCE)
    expect(page.locator("#generate-preset-note")).to_contain_text("section 3.5")
    page.locator("#generate-go").click()
    expected = generate(lab, one.prompt, max_new_tokens=one.max_new_tokens, temperature=0, stop="\n", top_p=0.95)
    shows(page, one.prompt + expected.text)
    page.locator("#generate-presets").get_by_role("button", name="The moon is").click()
    expect(page.locator("#generate-preset-note")).to_be_hidden(timeout=PATIENCE)


def test_the_shown_text_is_explored(page, lab):
    write(page, prompt="The war is")
    text = "The war is" + generate(lab, "The war is", **OPTIONS).text
    shows(page, text)
    page.locator("#generate-explore").click()
    expect(page.locator("#explore-text textarea")).to_have_value(text, timeout=PATIENCE)
    expect(page.locator("#explore-page [role=option]").first).to_be_visible(timeout=PATIENCE)


def test_stop_reload_and_a_closed_page_end_the_work_within_a_few_tokens(chromium, app_url, drawn):
    page = chromium.new_page()  # its log is not checked: gradio's page complains of requests that a reload cuts off
    page.goto(app_url)
    for way in ("stop", "stop a branch", "reload", "close"):
        before = len(drawn)
        if way == "stop a branch":
            tokens(page).nth(0).click()
            page.locator("#generate-page .g-alternative[aria-disabled=false]").nth(1).click()
        else:
            write(page, 200, 0.8)
        wait_for(lambda before=before: len(drawn) > before + 3)
        wait_for(lambda: generating() == 1)
        {"close": page.close, "reload": page.reload}.get(way, page.locator("#generate-stop").click)()
        asked = len(drawn)
        if way.startswith("stop"):
            expect(status(page)).to_contain_text("Stopped after ", timeout=PATIENCE)
        wait_for(lambda: generating() == 0)
        count = len(drawn)
        time.sleep(0.6)  # of three tokens
        assert (len(drawn), generating()) == (count, 0), way
        assert count <= asked + 5, way  # 1 s: in it is what the browser and the server take to inform each other


def test_stop_again_and_again_leaves_what_was_written(page, drawn):
    open_tab(page)
    set_number(page, "length", 512)
    for i in range(3):
        page.locator("#generate-go").click()
        expect(status(page)).not_to_contain_text("Stopped", timeout=PATIENCE)
        if i:  # the first is stopped before it has begun
            expect(status(page)).to_contain_text("Writing: ", timeout=PATIENCE)
            page.wait_for_timeout(240 * i)
        page.locator("#generate-stop").click()
        expect(status(page)).to_contain_text("Stopped after ", timeout=PATIENCE)
        assert page.get_by_text("Error", exact=True).count() == 0
        if i:
            expect(page.locator("#generate-page .g-about-text")).to_contain_text("stopped")
            expect(tokens(page).first).to_be_visible()


def test_bad_input_leaves_the_text_that_is_there(page, lab):
    write(page, prompt="The war is")
    before = "The war is" + generate(lab, "The war is", **OPTIONS).text
    shows(page, before)
    page.locator("#generate-more").get_by_role("button").first.click()
    set_number(page, "top-k", 9999)
    page.locator("#generate-go").click()
    expect(toast(page)).to_contain_text("top_k 9,999 is past the vocabulary", timeout=PATIENCE)
    shows(page, before)
    assert page.get_by_text("Error", exact=True).count() <= 1  # the toast's own title
    set_number(page, "top-k", 0)


def test_a_phone_has_one_column(open_page):
    page = open_page(viewport={"width": 390, "height": 844})
    open_tab(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 390


SENT = {"key": None, "label": "builtin", "compare": ALONE, "prompt": "The", "count": 1, "line": False, "length": 5}
SENT |= {
    "temperature": 1,
    "seed": 0,
    "top_p": 1,
    "top_k": 0,
    "min_p": 0,
    "penalty": 1,
    "window": 0,
    "precision": "fp32",
}


def posted(app_url, values):
    """How an event of the Generate button ends that a client without a browser sends: its last message."""
    config = httpx.get(f"{app_url}config").json()
    [button] = [one["id"] for one in config["components"] if one["props"].get("elem_id") == "generate-go"]
    [event] = [
        one["id"]
        for one in config["dependencies"]  # the click also cancels the example
        if [button, "click"] in [list(each) for each in one["targets"]] and len(one["inputs"]) == len(values)
    ]
    visit = secrets.token_hex(4)
    body = json.dumps({"data": list(values.values()), "fn_index": event, "session_hash": visit})
    joined = httpx.post(f"{app_url}gradio_api/queue/join", content=body, headers={"Content-Type": "application/json"})
    if joined.status_code != 200:
        return joined.text
    with httpx.stream("GET", f"{app_url}gradio_api/queue/data?session_hash={visit}", timeout=60) as answer:
        messages = [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line.strip()]
    [end] = [one for one in messages if one["msg"] == "process_completed"]
    return json.dumps(end["output"]) if not end["success"] else "done"


def test_what_is_posted_without_a_browser_is_checked(app_url):
    assert posted(app_url, SENT) == "done"
    for change, message in (
        ({"top_p": 0}, "minimum value 0.05"),  # a slider's own limits
        ({"length": 10**9}, "maximum value 512"),
        ({"temperature": float("nan")}, "temperature nan is out of range"),  # the package's
        ({"compare": "/etc"}, "not in the list|is unknown"),
        ({"label": "../../etc"}, "not in the list|is unknown"),
        ({"top_k": -3}, "top_k"),
        ({"window": 512}, "window 512 is out of range"),
        ({"prompt": "x" * 5000}, "the prompt has"),
    ):
        found = posted(app_url, SENT | change)
        assert re.search(message, found), (change, found)


def wait_for(holds, seconds=30):
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)

import re
import sys
import time

import pytest
from playwright.sync_api import expect

import gpt2lab.generation.generate
from gpt2lab.generation.generate import generate
from gpt2lab.generation.sampling import Sampling, redrawn
from gpt2lab.model.lab import load_model

PATIENCE = 60_000  # milliseconds: the first model run imports torch
OPTIONS = {"max_new_tokens": 12, "temperature": 0, "top_p": 0.95}


@pytest.fixture(scope="module")
def lab():
    return load_model("builtin")


def open_tab(page):
    page.get_by_role("tab", name="Generate").click()


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


def done(page, end=""):
    expect(page.locator(f"#generate-ending{end}")).to_contain_text("the length asked for is reached", timeout=PATIENCE)


def text_of(page, end=""):
    return page.locator(f"#generate-text{end} textarea")


def token(page, place, end=""):
    tokens = page.locator(f"#generate-tokens{end} .token-container > *, #generate-tokens{end} .textspan")
    expect(tokens.first).to_be_visible()
    return tokens.nth(place)


def choose(page, name, option):
    page.locator(f"#generate-{name} input").click()
    page.get_by_role("option", name=option).click()


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
    tokens, draw = [], gpt2lab.generation.generate.draw

    def slow(*args, **options):
        time.sleep(0.2)
        step = draw(*args, **options)
        tokens.append(step.token)
        return step

    monkeypatch.setattr(gpt2lab.generation.generate, "draw", slow)
    return tokens


def test_text_streams_and_is_the_package_s_own(page, lab):
    write(page, 80, 0.8)
    expected = generate(lab, "The moon is", max_new_tokens=80, temperature=0.8, top_p=0.95, seed=0)
    expect(text_of(page)).to_have_value(expected.prompt + expected.text, timeout=PATIENCE)
    expect(page.locator("#generate-note")).to_contain_text("80 tokens, ")


def test_bars_of_a_token_are_redrawn_and_an_alternative_is_continued_from(page, lab):
    prompt = "The sea is"
    write(page, prompt=prompt)
    first = generate(lab, prompt, **OPTIONS)
    expect(text_of(page)).to_have_value(prompt + first.text, timeout=PATIENCE)
    token(page, 4).click()
    shown = page.locator("#generate-token")
    expect(shown).to_contain_text(f"rank 1, entropy {first.steps[4].entropy:.3f}", timeout=PATIENCE)
    bars = page.locator("#generate-choices")
    set_number(page, "redraw-temperature", 1)
    set_number(page, "redraw-top-p", 1)
    low, high = redrawn(first.steps[4], Sampling(), lab.model.config.vocab_size)
    expect(bars).to_contain_text(f"{round(100 * high[0])}%", timeout=PATIENCE)
    expect(bars).to_contain_text(f"{round(100 * low[0])}%")
    expect(shown).not_to_contain_text("not enough")
    set_number(page, "redraw-temperature", 2)
    expect(shown).to_contain_text("not enough", timeout=PATIENCE)
    low, high = redrawn(first.steps[4], Sampling(temperature=2), lab.model.config.vocab_size)
    expect(bars).to_contain_text(f"{low[0]:.3f} to {high[0]:.3f}")
    number = re.search(r"Token 4 of text (\d+)", shown.inner_text())[1]
    other = first.steps[4].alternatives[2]
    bars.get_by_text(f"({other.id}), ").click()
    after = (*first.steps[:4], first.steps[4].with_token(other.id))
    branch = generate(lab, prompt, **OPTIONS | {"max_new_tokens": 7}, after=after)
    expect(text_of(page)).to_have_value(prompt + branch.text, timeout=PATIENCE)
    expect(shown).to_contain_text(f"Token 4 of text {number}")  # another choice can be tried
    choose(page, "beside", f"{number}: builtin")
    expect(text_of(page, "-beside")).to_have_value(prompt + first.text, timeout=PATIENCE)
    choose(page, "which", f"{number}: builtin")
    expect(text_of(page)).to_have_value(prompt + first.text, timeout=PATIENCE)
    expect(text_of(page, "-beside")).to_have_value(prompt + first.text)
    choose(page, "beside", "nothing")


def test_two_models_stream_beside_each_other_and_are_measured(open_page, runs_dir, lab):
    folder = runs_dir / "beside" / "model"
    changed = load_model("builtin")
    for weight in changed.model.transformer.h[0].parameters():
        weight.data.mul_(1.1)
    changed.model.save_pretrained(folder)
    changed.tokenizer.save_pretrained(folder)
    page = open_page(viewport={"width": 1280, "height": 900})
    open_tab(page)
    page.locator("#generate-other input").click()
    page.get_by_role("option", name="beside").click()
    write(page)
    done(page), done(page, "-beside")
    both = [generate(one, "The moon is", **OPTIONS).text for one in (lab, changed)]
    assert [text_of(page).input_value(), text_of(page, "-beside").input_value()] == [
        f"The moon is{one}" for one in both
    ]
    page.locator("#generate-measures").get_by_role("button", name="Text statistics").click()
    page.locator("#generate-measure").click()
    measured = page.locator("#generate-measured")
    for part in ("distinct-2", "copied", "perplexity under builtin", "perplexity under beside"):
        expect(measured).to_contain_text(part, timeout=PATIENCE)


def test_stop_reload_and_a_closed_page_end_the_work_within_a_few_tokens(chromium, app_url, drawn):
    page = chromium.new_page()  # its log is not checked: gradio's page complains of requests that a reload cuts off
    page.goto(app_url)
    note = page.locator("#generate-note")
    for way in ("stop", "stop a branch", "reload", "close"):
        if way == "stop a branch":
            token(page, 0).click()
            page.locator("#generate-choices").get_by_text("the model's own").nth(1).click()
        else:
            write(page, 200, 0.8)
        before = len(drawn)
        wait_for(lambda before=before: len(drawn) > before + 3)
        wait_for(lambda: generating() == 1)
        {"close": page.close, "reload": page.reload}.get(way, page.locator("#generate-stop").click)()
        asked = len(drawn)
        if way.startswith("stop"):
            expect(note).to_contain_text("Stopped: ", timeout=PATIENCE)
        wait_for(lambda: generating() == 0)
        count = len(drawn)
        time.sleep(0.6)  # of three tokens
        assert (len(drawn), generating()) == (count, 0), way
        assert count <= asked + 5, way  # 1 s: in it is what the browser and the server take to inform each other


def test_stop_again_and_again_leaves_what_was_written(page, drawn):
    open_tab(page)
    set_number(page, "length", 512)
    note = page.locator("#generate-note")
    for i in range(3):
        page.locator("#generate-go").click()
        expect(note).not_to_contain_text("Stopped", timeout=PATIENCE)
        if i:  # the first is stopped before it has begun
            expect(note).to_contain_text("a second", timeout=PATIENCE)
            page.wait_for_timeout(240 * i)
        page.locator("#generate-stop").click()
        expect(note).to_contain_text("Stopped: ", timeout=PATIENCE)
        expect(page.locator("#generate-ending")).to_contain_text("; stopped.")
        assert page.get_by_text("Error", exact=True).count() == 0
        if i:
            expect(token(page, 0)).to_be_visible()


def test_bad_input_leaves_the_text_that_is_there(page, lab):
    write(page, prompt="The war is")
    before = f"The war is{generate(lab, 'The war is', **OPTIONS).text}"
    expect(text_of(page)).to_have_value(before, timeout=PATIENCE)
    set_number(page, "top-k", 9999)
    page.locator("#generate-go").click()
    expect(page.locator("[data-testid=toast-body]").last).to_contain_text(
        "top_k 9,999 is past the vocabulary", timeout=PATIENCE
    )
    assert text_of(page).input_value() == before
    assert page.get_by_text("Error", exact=True).count() <= 1  # the toast's own title
    set_number(page, "top-k", 0)


def wait_for(holds, seconds=30):
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)

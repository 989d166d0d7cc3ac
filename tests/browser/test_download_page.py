"""Downloads in the page, from a stand-in hub, in a real Chromium."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import expect

import gpt2lab
from tests.hub import Fault, Hub

ROOT = Path(gpt2lab.__file__).parents[1]
WEIGHTS = "model.safetensors"
SLOW = Fault(speed=2_000)  # a minute and a half for the weights: more than a test needs, also on a busy machine
PATIENCE = 30_000  # milliseconds


@pytest.fixture(scope="module")
def hub(tmp_path_factory, tiny_folder):
    folder = tmp_path_factory.mktemp("hub")
    for name in ("gpt2", "distilgpt2"):
        shutil.copytree(tiny_folder, folder / name)
    with Hub(folder) as running:
        yield running


@pytest.fixture(scope="module")
def served(hub, tmp_path_factory):
    """The page in a process that knows the stand-in hub alone, with an empty cache."""
    home = tmp_path_factory.mktemp("home")
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home / "hf"), "GPT2LAB_CACHE": str(home / "cache")}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "gpt2lab", "app", "--port", str(port), "--runs", str(home / "runs")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            url = next(found[0] for line in process.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
            httpx.get(url, timeout=60)
            yield url
        finally:
            process.terminate()


@pytest.fixture
def page(chromium, served):
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(served)
    expect(page.locator("#status")).to_contain_text("builtin", timeout=60_000)
    yield page
    context.close()


def choose(page, elem_id, value):
    page.locator(f"#{elem_id} input").first.click()
    page.get_by_role("option", name=value, exact=True).click()


def test_model_is_downloaded_when_asked_for_and_can_be_cancelled_and_resumed(page, hub):
    hub.faults[f"gpt2/{WEIGHTS}"] = SLOW
    choose(page, "model", "gpt2")
    line = page.locator("#model-download-line")
    expect(line).to_contain_text(re.compile(r"gpt2 is not downloaded: 0\.1\d MB to download"), timeout=PATIENCE)
    assert not hub.asked(WEIGHTS)
    page.locator("#model-download").click()
    bar = page.get_by_role("progressbar")
    expect(bar).to_be_visible(timeout=PATIENCE)
    expect(line).to_contain_text("MB/s", timeout=PATIENCE)
    assert 0 < float(bar.get_attribute("value")) < float(bar.get_attribute("max"))
    page.locator("#model-download-cancel").click()
    expect(page.locator("#model-download")).to_be_visible(timeout=PATIENCE)
    expect(line).to_contain_text("is not downloaded")
    time.sleep(2)  # the part that was under way is written
    hub.faults.clear()
    page.locator("#model-download").click()
    expect(page.locator("#status")).to_contain_text("gpt2: ", timeout=PATIENCE)
    expect(page.locator("#model-download-row")).to_be_hidden()
    page.wait_for_function("document.querySelector('#explore-page .view').view.get('data').sides[0].name === 'gpt2'")
    assert hub.asked(f"gpt2/resolve/main/{WEIGHTS}")[-1] is not None  # a range
    expect(page.locator("[data-testid=toast-body]")).to_have_count(0)


def test_other_visitors_continue_while_a_model_is_downloaded(page, chromium, served, hub):
    hub.faults[f"distilgpt2/{WEIGHTS}"] = SLOW
    choose(page, "model", "distilgpt2")
    page.locator("#model-download").click()
    expect(page.get_by_role("progressbar")).to_be_visible(timeout=PATIENCE)
    context = chromium.new_context()
    other = context.new_page()
    other.goto(served)
    other.get_by_role("tab", name="Generate").click()
    other.locator("#generate-length input[type=number]").fill("5")
    other.locator("#generate-go").click()
    expect(other.locator("#generate-status")).to_contain_text("5 tokens", timeout=PATIENCE)
    expect(page.get_by_role("progressbar")).to_be_visible()
    context.close()
    hub.faults.clear()


def test_refused_download_is_one_toast_and_the_page_stays(page, hub):
    choose(page, "model", "gpt2-xl")
    expect(page.locator("#model-download-line")).to_contain_text("was not found on the hub")
    page.locator("#model-download").click()
    expect(page.locator("[data-testid=toast-body]")).to_contain_text("'gpt2-xl' was not found on the hub")
    expect(page.locator("#model-download")).to_be_visible()
    choose(page, "model", "builtin")
    expect(page.locator("#status")).to_contain_text("builtin: ")
    expect(page.locator("#model-download-row")).to_be_hidden()


def test_training_with_a_model_that_is_not_downloaded_is_refused(page, hub):
    choose(page, "model", "gpt2-medium")
    page.get_by_role("tab", name="Train").click()
    page.locator("#finetune-start").click()
    expect(page.locator("[data-testid=toast-body]")).to_contain_text(
        "gpt2-medium is not downloaded; choose it as Model"
    )
    assert not hub.asked("gpt2-medium")[2:]  # but for its size

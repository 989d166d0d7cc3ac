"""A served page, and a real Chromium that looks at it."""

import os
import shutil

import pytest
from playwright.sync_api import sync_playwright

from gpt2lab.app import build_app, serve

FLAGS = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync"


@pytest.fixture(scope="session")
def runs_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def app_url(runs_dir):
    demo = build_app(runs_dir)
    yield serve(demo, block=False)
    demo.close(verbose=False)


@pytest.fixture(scope="session")
def chromium():
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        message = "no chromium on this machine; on Debian: apt install chromium"
        pytest.fail(message) if os.environ.get("GPT2LAB_REQUIRE_BROWSER") else pytest.skip(message)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium, app_url):
    """A function that opens the page; afterwards no request may have left the machine, and no error been logged."""
    contexts, requests, errors = [], [], []

    def open_one(query="", **options):
        context = chromium.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(f"{app_url}{query}")
        page.get_by_role("tab", name="Fine-tune").wait_for()
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert requests
    assert [url for url in requests if not url.startswith((app_url, "data:", "blob:", "about:"))] == []
    assert errors == []


@pytest.fixture
def page(open_page):
    return open_page(viewport={"width": 1280, "height": 900})

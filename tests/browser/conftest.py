"""A served page, and a real Chromium that opens it. Pages that were loaded once serve many tests."""

import itertools
import os
import shutil

import pytest
from playwright.sync_api import sync_playwright

from gpt2lab.app import build_app, serve
from gpt2lab.widgets.base import answered

FLAGS = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync"
OWN = ("data:", "blob:", "about:")  # addresses that no machine is asked for
FAILED = pytest.StashKey[bool]()


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


class Visit:
    """A page in a browser context of its own, with all that it requests, logs as an error and asks."""

    def __init__(self, chromium, levels=("error",), **options):
        self.requests, self.troubles = [], []
        self.context = chromium.new_context(**options)
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("console", lambda said: self.troubles.append(said.text) if said.type in levels else None)
        self.page.on("dialog", lambda dialog: (self.troubles.append(dialog.message), dialog.dismiss()))

    def check(self, *own):
        """Fail if anything but addresses that start with `own` was requested, or an error logged, since the last check."""
        foreign = [url for url in self.requests if not url.startswith(own)]
        troubles = list(self.troubles)
        self.requests.clear(), self.troubles.clear()
        assert foreign == []
        assert troubles == []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    item.stash.setdefault(FAILED, False)
    item.stash[FAILED] |= report.failed
    return report


class Shared:
    """A page for many tests, one after the other; after a test that failed, a new one."""

    def __init__(self, open_one, *own):
        self.open_one, self.own, self.visit = open_one, own, None

    def use(self, request):
        """Yield the page to a test, and check afterwards that it requested nothing foreign and logged no error."""
        self.visit = self.visit or self.open_one()
        try:
            yield self.visit.page
            if not request.node.stash.get(FAILED, False):
                self.visit.check(*self.own)
        finally:
            if request.node.stash.get(FAILED, False) or self.visit.troubles:
                self.close()

    def close(self):
        if self.visit:
            self.visit.context.close()
        self.visit = None


def load(visit, url):
    visit.page.goto(url)
    visit.page.get_by_role("tab").first.wait_for()
    return visit


@pytest.fixture
def open_page(chromium, app_url):
    """A function that opens the app; afterwards no request may have left the machine, and no error been logged."""
    visits = []

    def open_one(query="", **options):
        visits.append(Visit(chromium, **options))
        return load(visits[-1], f"{app_url}{query}").page

    yield open_one
    for visit in visits:
        visit.context.close()
    assert all(visit.requests for visit in visits)
    for visit in visits:
        visit.check(app_url, *OWN)


@pytest.fixture(scope="module")
def app_page(chromium, app_url):
    shared = Shared(lambda: load(Visit(chromium, viewport={"width": 1280, "height": 900}), app_url), app_url, *OWN)
    yield shared
    shared.close()


@pytest.fixture
def page(app_page, request):
    """The app, loaded once a module: what an earlier test typed and was shown is there, but for its toasts."""
    for found in app_page.use(request):
        found.evaluate("document.querySelectorAll('[data-testid=toast-close]').forEach(button => button.click())")
        yield found


@pytest.fixture(scope="session")
def blank_page(chromium):
    shared = Shared(lambda: Visit(chromium, levels=("error", "warning")), "file:", *OWN)
    yield shared
    shared.close()


@pytest.fixture
def visit_file(chromium, blank_page, request):
    """A function: address, width and height, colour scheme → a page at a file; only files may be asked for, nothing logged."""
    others = []

    def open_one(address, viewport=None, color_scheme="light"):
        if opened:
            others.append(Visit(chromium, levels=("error", "warning")))
        page = others[-1].page if others else shared
        opened.append(page)
        page.mouse.move(0, 0)
        page.set_viewport_size(viewport or {"width": 1280, "height": 1000})
        page.emulate_media(color_scheme=color_scheme)
        page.goto("about:blank")
        page.goto(address)
        return page

    opened = []
    for shared in blank_page.use(request):  # noqa: B007 (open_one reads it)
        yield open_one
        for visit in others:
            visit.context.close()
            visit.check("file:", *OWN)


FILE_MODEL = 'lib.fileModel(JSON.parse(document.getElementById("state").textContent))'
LIVE_MODEL = """window.model = Object.assign(FILE_MODEL, { ask: async (kind, options) => {
  while (!window.ANSWER) await new Promise((resolve) => setTimeout(resolve, 5));
  return window.ANSWER(kind, options); } })"""
ANSWERS = itertools.count()


@pytest.fixture
def visit_live(visit_file, tmp_path):
    """A function: widget → a page whose `model` asks the widget, as in a notebook; options as for `visit_file`."""

    def open_one(widget, **options):
        name, html = f"answer{next(ANSWERS)}", widget.page().html
        assert html.count(FILE_MODEL) == 1
        path = tmp_path / f"{name}.html"
        path.write_text(
            html.replace(FILE_MODEL, LIVE_MODEL.replace("FILE_MODEL", FILE_MODEL).replace("ANSWER", name)),
            encoding="utf-8",
        )
        page = visit_file(path.as_uri(), **options)
        page.expose_function(name, lambda kind, values: answered(widget._answer, kind, values))
        return page

    return open_one

"""The widgets in a real JupyterLab: clicks reach the kernel, and assignments in Python move the picture."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import nbformat
import pytest
from playwright.sync_api import expect

PATIENCE = 120_000  # milliseconds: a kernel that imports torch
CELLS = (
    "from gpt2lab import explore, load_model\n"
    "page = explore(load_model('builtin'), 'The moon is round and the moon is old.')\n"
    "page",
    "print('selected', page.selection.position, page.selection.layer, page.selection.head)",
    "page.position, page.layer, page.head = 3, 1, 2",
)


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory):
    """The address of a JupyterLab whose folder holds the notebook."""
    folder = tmp_path_factory.mktemp("jupyter")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "explore.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = {name: str(folder / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    options = ["--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1", "--IdentityProvider.token="]
    options += [f"--ServerApp.root_dir={folder}", "--ServerApp.port_retries=0", "--LabApp.news_url=None"]
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            env=os.environ | home | {"PYTHONPATH": path},
            stdout=log,
            stderr=log,
        )
        try:
            until = time.monotonic() + 60
            while True:
                try:
                    httpx.get(f"http://127.0.0.1:{port}/api", timeout=2)
                    break
                except httpx.HTTPError:
                    assert process.poll() is None and time.monotonic() < until, (folder / "log").read_text()
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def run_cell(page, index):
    page.locator(".jp-Cell").nth(index).locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")


def test_clicks_reach_the_kernel_and_assignments_move_the_picture(chromium, jupyter):
    context = chromium.new_context(viewport={"width": 1400, "height": 1000})
    page, requests = context.new_page(), []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(f"{jupyter}/lab/tree/explore.ipynb")
    page.get_by_text("| Idle").wait_for(timeout=PATIENCE)  # the kernel is there
    run_cell(page, 0)
    tokens = page.locator(".jp-OutputArea .gpt2lab .g-strip [role=option]")
    expect(tokens).to_have_count(10, timeout=PATIENCE)
    tokens.nth(5).click()
    page.locator(".jp-OutputArea .g-headgrid").get_by_role("gridcell", name="Layer 4, head 6").click()
    run_cell(page, 1)
    expect(page.locator(".jp-Cell").nth(1).locator(".jp-OutputArea")).to_contain_text(
        "selected 5 4 6", timeout=PATIENCE
    )
    run_cell(page, 2)
    expect(tokens.nth(3)).to_have_attribute("aria-selected", "true", timeout=PATIENCE)
    chosen = page.locator(".jp-OutputArea .g-headgrid").get_by_role("gridcell", name="Layer 1, head 2")
    expect(chosen).to_have_attribute("aria-selected", "true")
    context.close()
    assert [url for url in requests if not url.startswith((jupyter, "data:", "blob:"))] == []

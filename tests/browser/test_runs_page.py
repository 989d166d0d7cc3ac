"""Runs in the page: started, watched, reloaded, outliving their server, paused, resumed, used."""

import re
import socket
import subprocess
import sys
import time
import zipfile

import pytest
from gradio_client import Client
from playwright.sync_api import expect

from gpt2lab.training import jobs, runs

PATIENCE = 180_000  # milliseconds: a run's process imports torch


@pytest.fixture
def served(tmp_path):
    """(address, runs folder, restart): a server in a process of its own, which `restart` kills and starts again."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path / "runs"
    command = [sys.executable, "-m", "gpt2lab", "app", "--port", str(port), "--runs", str(folder)]
    processes = []

    def restart():
        if processes:
            processes[-1].kill()
            processes[-1].wait()
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert "gpt2lab is at" in processes[-1].stdout.readline()

    restart()
    yield f"http://127.0.0.1:{port}", folder, restart
    processes[-1].kill()
    processes[-1].wait()
    active = jobs.active_run(folder)
    if active:
        jobs.stop(active.folder, want="pause", seconds=20)


@pytest.fixture
def visit(chromium, served):
    """A function that opens the page in a browser context of its own."""
    contexts = []

    def open_one():
        contexts.append(chromium.new_context(viewport={"width": 1280, "height": 1000}))
        page = contexts[-1].new_page()
        page.goto(served[0])
        page.get_by_role("tab", name="Fine-tune").wait_for()
        return page

    yield open_one
    for context in contexts:
        context.close()


def start(page, steps, batch=1):
    page.locator("#finetune-steps input[type=number]").fill(str(steps))
    page.locator("#finetune-more button").first.click()
    page.locator("#finetune-batch_size input").fill(str(batch))
    page.locator("#finetune-start").click()


def state(page):
    return page.locator("#finetune-state")


def toast(page):
    return page.locator("[data-testid=toast-body]")


def test_run_outlives_page_and_server_and_its_model_is_used(visit, served):
    _, folder, restart = served
    page = visit()
    start(page, steps=120)
    expect(state(page)).to_contain_text(re.compile(r"running, step [1-9]"), timeout=PATIENCE)
    [run] = runs.list_runs(folder)
    page.reload()
    expect(state(page)).to_contain_text(f"{run.id}: running", timeout=PATIENCE)
    restart()
    other = visit()
    expect(state(other)).to_contain_text(f"{run.id}: running", timeout=PATIENCE)
    assert runs.read_status(run.folder).alive
    other.locator("#finetune-pause").click()
    expect(state(other)).to_contain_text("stopped, step", timeout=PATIENCE)
    expect(state(other)).to_contain_text("paused at step")
    paused_at = runs.read_status(run.folder).step
    assert 0 < paused_at < 120
    assert not (run.folder / "model").exists()
    other.locator("#finetune-resume").click()
    expect(state(other)).to_contain_text("finished, step 120 of 120", timeout=PATIENCE)
    expect(other.locator("#finetune-plot img")).to_be_visible()
    expect(other.locator("#finetune-texts")).to_contain_text("The Atlantic puffin is a small")
    losses = [metric.loss for metric in runs.read_metrics(run.folder) if metric.split == "validation"]
    assert len(losses) == 11
    assert min(losses) < losses[0]
    other.locator("#finetune-use").click()
    expect(other.locator("#model input")).to_have_value(run.id, timeout=PATIENCE)
    other.get_by_role("tab", name="Generate").click()
    other.locator("#generate-go").click()
    expect(other.locator("#generate-note")).to_contain_text(re.compile("ended|reached"), timeout=PATIENCE)


def test_of_two_starts_at_once_one_runs_and_one_is_refused(visit, served):
    pages = [visit(), visit()]
    for page in pages:
        page.locator("#finetune-steps input[type=number]").fill("100")
    for page in pages:
        page.locator("#finetune-start").click(no_wait_after=True)
    deadline = time.monotonic() + PATIENCE / 1000
    while not (refused := [page for page in pages if toast(page).count()]):
        assert time.monotonic() < deadline
        pages[0].wait_for_timeout(200)
    expect(toast(refused[0])).to_contain_text("is under way on this machine")
    [run] = runs.list_runs(served[1])
    for page in pages:
        page.reload()
        expect(state(page)).to_contain_text(run.id, timeout=PATIENCE)
    assert len(refused) == 1


def test_stop_keeps_a_model_that_can_be_taken_home(visit, served, tmp_path):
    page = visit()
    start(page, steps=2000)
    expect(state(page)).to_contain_text(re.compile(r"running, step [1-9]"), timeout=PATIENCE)
    page.locator("#finetune-stop").click()
    expect(state(page)).to_contain_text("stopped, step", timeout=PATIENCE)
    [run] = runs.list_runs(served[1])
    page.locator("#finetune-zip").click()
    link = page.locator("#finetune-file a").first
    expect(link).to_be_visible(timeout=PATIENCE)
    with page.expect_download() as download:
        link.click()
    download.value.save_as(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert archive.read("model.safetensors") == (run.folder / "model" / "model.safetensors").read_bytes()


def test_cost_is_told_before_the_start(visit, served):
    page = visit()
    page.locator("#finetune-price").click()
    expect(page.locator("#finetune-cost")).to_contain_text("peak memory", timeout=PATIENCE)
    expect(page.locator("#finetune-cost")).to_contain_text("2,615,424 of 2,615,424")
    assert runs.list_runs(served[1]) == []


@pytest.mark.parametrize("run", ["../../etc", "nowhere", "", "/etc/passwd", None, 7, ["x"]])
@pytest.mark.parametrize("act", ["stop", "pause", "resume", "use", "zip"])
def test_no_client_reaches_a_folder_that_is_no_run(app_url, act, run):
    client = Client(app_url, verbose=False)
    with pytest.raises(Exception, match=r"no run|is no run id|not in the list|choose one|choices"):
        client.predict([run], api_name=f"/finetune_{act}")

"""Runs in the page: started, watched, reloaded, outliving their server, paused, resumed, used."""

import re
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from dataclasses import asdict
from math import exp
from pathlib import Path

import psutil
import pytest
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
    clear(folder)


def clear(folder):
    """End a run that is at work, and remove all runs."""
    active = jobs.active_run(folder)
    if active:
        jobs.stop(active.folder, want="pause", seconds=20)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(exist_ok=True)


@pytest.fixture
def folder(runs_dir):
    """The runs folder of the server in this process, empty."""
    clear(runs_dir)
    yield runs_dir
    clear(runs_dir)


@pytest.fixture
def visit(chromium, app_url):
    """A function that opens the page in a browser context of its own."""
    contexts = []

    def open_one(url=app_url):
        contexts.append(chromium.new_context(viewport={"width": 1280, "height": 1000}))
        page = contexts[-1].new_page()
        page.goto(url)
        page.get_by_role("tab", name="Train").click()
        return page

    yield open_one
    for context in contexts:
        context.close()


@pytest.fixture
def leave_run(folder):
    """A function: id and validation losses → the folder of a run that was stopped after eight steps."""

    def leave(run, losses):
        made = runs.new_run(folder, {"model": "builtin", "data": "sample", "steps": 80}, run)
        for step, loss in zip((0, 8), losses):
            runs.append_line(made / "metrics.jsonl", asdict(runs.Metric(step, step, "validation", loss, 0.0, 1.0)))
        known = {"best_step": 8, "loss_before": losses[0], "loss_best": losses[1]}
        runs.write_status(made, runs.RunStatus("stopped", 8, 80, **runs.this_process(), **known))
        return made

    return leave


def set_up(page, steps, batch=1):
    page.locator("#finetune-steps input").fill(str(steps))
    page.locator("#finetune-more button").first.click()
    page.locator("#finetune-batch_size input").fill(str(batch))


def state(page):
    """The line of the first selected run."""
    return page.locator("#train-rundetails p[role=status]")


def row(page, run):
    return page.locator("#train-runs tbody tr").filter(has=page.get_by_role("button", name=run, exact=True))


def toast(page):
    return page.locator("[data-testid=toast-body]")


def test_of_two_starts_one_is_refused_and_the_run_outlives_page_and_server_and_its_model_is_used(
    visit, served, tmp_path
):
    url, folder, restart = served
    pages = [visit(url), visit(url)]
    for page in pages:
        set_up(page, steps=120)
    for page in pages:
        page.locator("#finetune-start").click(no_wait_after=True)
    wait_for(pages[0], lambda: [page for page in pages if toast(page).count()])
    [refused] = [page for page in pages if toast(page).count()]
    [page] = [page for page in pages if page is not refused]
    expect(toast(refused)).to_contain_text("is under way on this machine")
    refused.close()
    expect(state(page)).to_contain_text(re.compile(r"running, step [1-9]"), timeout=PATIENCE)
    [run] = runs.list_runs(folder)
    at_work = psutil.Process(runs.read_status(run.folder).pid)
    at_work.suspend()  # else a slow machine has done all steps before the server is back
    page.reload()
    page.get_by_role("tab", name="Train").click()
    expect(state(page)).to_contain_text(f"{run.id}: running", timeout=PATIENCE)
    restart()
    other = visit(url)
    expect(state(other)).to_contain_text(f"{run.id}: running", timeout=PATIENCE)
    assert runs.read_status(run.folder).alive
    at_work.resume()
    other.locator("#finetune-pause").click()
    expect(state(other)).to_contain_text("stopped, step", timeout=PATIENCE)
    expect(state(other)).to_contain_text("Paused at step")
    paused_at = runs.read_status(run.folder).step
    assert 0 < paused_at < 120
    assert not (run.folder / "model").exists()
    other.locator("#finetune-resume").click()
    expect(state(other)).to_contain_text(re.compile(r"running, step \d{2}"), timeout=PATIENCE)
    other.locator("#finetune-stop").click()
    expect(state(other)).to_contain_text("stopped, step", timeout=PATIENCE)
    assert paused_at <= runs.read_status(run.folder).step < 120
    expect(other.locator("#train-curves canvas")).to_be_visible()
    other.get_by_role("tab", name="Samples").click()
    expect(other.locator("#train-rundetails")).to_contain_text("The Atlantic puffin is a small")
    losses = [metric.loss for metric in runs.read_metrics(run.folder) if metric.split == "validation"]
    assert len(losses) >= 2
    listed = row(other, run.id)
    expect(listed).to_contain_text(re.compile(r"stopped \d+ of 120"))
    expect(listed).to_contain_text(f"{exp(losses[0]):.2f} → {exp(min(losses[1:])):.2f}")
    for name, possible in (
        ("stop", False),
        ("pause", False),
        ("resume", True),
        ("use", True),
        ("compare", True),
        ("rename", True),
        ("delete", True),
        ("report", True),
    ):
        expect(other.locator(f"#finetune-{name}")).to_be_enabled(enabled=possible)
    other.locator("#finetune-compare").click()
    expect(other.locator("#compare input")).to_have_value(run.id, timeout=PATIENCE)
    expect(other.locator("#model input")).to_have_value("builtin")
    other.locator("#finetune-use").click()
    expect(other.locator("#model input")).to_have_value(run.id, timeout=PATIENCE)
    expect(other.locator("#status")).to_contain_text(f"{run.id}: ", timeout=PATIENCE)
    other.get_by_role("tab", name="Generate").click()
    other.locator("#generate-go").click()
    expect(other.locator("#generate-status")).to_contain_text("Finished", timeout=PATIENCE)
    other.get_by_role("tab", name="Train").click()
    other.locator("#finetune-zip").click()
    link = other.locator("#finetune-file a").first
    expect(link).to_be_visible(timeout=PATIENCE)
    with other.expect_download() as download:
        link.click()
    download.value.save_as(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert archive.read("model.safetensors") == (run.folder / "model" / "model.safetensors").read_bytes()


def test_runs_are_selected_compared_and_read(visit, leave_run):
    older, newer = leave_run("older", losses=(4.0, 3.0)), leave_run("newer", losses=(4.0, 3.5))
    page = visit()
    expect(state(page)).to_contain_text("newer: stopped, step 8 of 80", timeout=PATIENCE)
    expect(state(page)).to_contain_text(f"Validation perplexity {exp(4.0):.2f} → {exp(3.5):.2f} at step 8.")
    row(page, "older").get_by_role("button").click()
    expect(state(page)).to_contain_text("older: stopped, step 8 of 80", timeout=PATIENCE)
    legend = page.locator("#train-curves .g-names button")
    expect(legend).to_have_text(["older"])
    page.get_by_label("Compare newer").check()
    expect(legend).to_have_text(["older", "newer"], timeout=PATIENCE)
    expect(state(page)).to_contain_text("older: stopped")  # of the one that was selected first
    expect(page.locator("#train-rundetails")).to_contain_text("All settings of these runs are the same.")
    assert not page.locator("#finetune-use").is_enabled()  # it has left no model
    runs.append_line(older / "metrics.jsonl", asdict(runs.Metric(16, 16, "validation", 2.5, 0.0, 2.0)))
    page.locator("#train-curves summary").click()
    expect(page.locator("#train-curves details")).to_contain_text("2.5", timeout=PATIENCE)  # live
    (older / "model").mkdir()
    (older / "model" / "config.json").write_text("{}")
    (older / "report.html").write_text("<p>the report</p>")
    runs.append_line(older / "samples.jsonl", {"step": 8, "prompt": "a", "text": "b"})
    expect(page.locator("#finetune-report")).to_be_enabled(timeout=PATIENCE)
    page.locator("#finetune-report").click()
    with page.expect_download() as download:
        page.locator("#finetune-file a").first.click()
    assert Path(download.value.path()).read_text() == "<p>the report</p>"
    (newer / "status.json").write_text("{")
    expect(row(page, "newer")).to_contain_text("failed", timeout=PATIENCE)
    row(page, "newer").get_by_role("button").click()
    expect(state(page)).to_contain_text("has no readable status.json", timeout=PATIENCE)
    shutil.rmtree(newer)
    expect(state(page)).to_contain_text("No run is selected.", timeout=PATIENCE)
    assert toast(page).count() == 0


def test_a_text_of_ones_own_is_previewed_trained_on_stopped_renamed_and_deleted(visit, folder, tmp_path):
    sentences = [f"The moon of planet {i} is a small world, and its sea follows it twice a day." for i in range(300)]
    (tmp_path / "moons.jsonl").write_text(
        "".join(f'{{"title": "{i}", "body": "{text}"}}\n' for i, text in enumerate(sentences))
    )
    page = visit()
    expect(page.locator("#finetune-preview")).to_contain_text("Honey·bee", timeout=PATIENCE)  # there from the start
    page.locator("#finetune-upload input[type=file]").set_input_files(tmp_path / "moons.jsonl")
    expect(page.locator("#finetune-data input")).to_have_value("moons.jsonl", timeout=PATIENCE)
    expect(page.locator("#finetune-preview")).to_contain_text("column 'body', 300 rows", timeout=PATIENCE)
    expect(page.locator("#finetune-preview tbody tr").first).to_contain_text("240")  # articles to train on
    expect(page.locator("#finetune-column input")).to_have_value("body")
    set_up(page, steps=400, batch=2)
    page.locator("#finetune-block_size input").fill("32")
    page.locator("#finetune-start").click()
    expect(state(page)).to_contain_text("is starting", timeout=PATIENCE)
    expect(state(page)).to_contain_text(re.compile(r"running, step [1-9]"), timeout=PATIENCE)
    [run] = runs.list_runs(folder)
    assert runs.read_config(run.folder)["column"] == "body" and Path(run.data).name == "moons.jsonl"
    for act in ("rename", "delete"):
        assert not page.locator(f"#finetune-{act}").is_enabled()
    expect(page.locator("#train-curves canvas")).to_be_visible(timeout=PATIENCE)
    page.locator("#finetune-stop").click()
    expect(state(page)).to_contain_text("stopped, step", timeout=PATIENCE)
    page.locator("#finetune-rename").click()
    page.locator("#finetune-rename-name input, #finetune-rename-name textarea").first.fill("../moons")
    page.locator("#finetune-rename-do").click()
    expect(toast(page)).to_contain_text("is not a valid run id", timeout=PATIENCE)
    page.locator("#finetune-rename-name input, #finetune-rename-name textarea").first.fill("moons")
    page.locator("#finetune-rename-do").click()
    expect(state(page)).to_contain_text("moons: stopped", timeout=PATIENCE)
    assert [each.id for each in runs.list_runs(folder)] == ["moons"]
    page.locator("#finetune-delete").click()
    expect(page.locator("#finetune-delete-question")).to_contain_text("Delete moons with its model", timeout=PATIENCE)
    page.locator("#finetune-delete-cancel").click()
    expect(page.locator("#finetune-delete-question")).to_be_hidden()
    assert runs.list_runs(folder)
    page.locator("#finetune-delete").click()
    page.locator("#finetune-delete-do").click()
    expect(state(page)).to_contain_text("No run is selected.", timeout=PATIENCE)
    assert runs.list_runs(folder) == []
    page.locator("#finetune-upload input[type=file]").set_input_files(
        {"name": "latin.txt", "mimeType": "text/plain", "buffer": "café ".encode("latin-1") * 50}
    )
    expect(toast(page).last).to_contain_text("latin.txt is not UTF-8 text", timeout=PATIENCE)
    expect(page.locator("#finetune-upload")).to_contain_text("Drop File Here")


def test_refused_start_leaves_no_run_nor_does_an_estimate_for_which_a_start_waits(visit, folder):
    page = visit()
    page.locator("#finetune-more button").first.click()
    page.locator("#finetune-block_size input").fill("4096")
    page.locator("#finetune-start").click()
    expect(toast(page)).to_contain_text("past the context of builtin", timeout=PATIENCE)
    assert runs.list_runs(folder) == []
    page.locator("#finetune-block_size input").fill("64")
    page.locator("#finetune-steps input").fill("2")
    page.locator("#finetune-price").click()
    wait_for(page, lambda: jobs.read_lock_note().get("preview"))
    assert runs.list_runs(folder) == []
    page.locator("#finetune-start").click()
    expect(page.locator("#finetune-cost")).to_contain_text("Peak memory", timeout=PATIENCE)
    expect(page.locator("#finetune-cost")).to_contain_text("6,967,296 of 6,967,296")
    expect(state(page)).to_contain_text("finished, step 2 of 2", timeout=PATIENCE)


def wait_for(page, holds):
    deadline = time.monotonic() + PATIENCE / 1000
    while not holds():
        assert time.monotonic() < deadline
        page.wait_for_timeout(100)

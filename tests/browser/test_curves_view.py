"""The curves of runs in a browser: the numbers on the page are those of metrics.jsonl."""

import csv
import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest

from gpt2lab.training import runs
from gpt2lab.training.runs import Metric
from gpt2lab.widgets import Curves

HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture
def folder(tmp_path):
    """Two runs; the second was begun before gradients, speed and the size of the text were recorded."""
    for k, name in enumerate(("first", "old")):
        made = runs.new_run(tmp_path, {"model": "builtin", "data": "sample", "steps": 40}, name)
        for step in range(0, 41, 4):
            if step:
                own = () if k else (2.0 / step, 1000.0 + step, 10**9, 0.25, None)
                metric = Metric(step, 100 * step, "train", 5 - step / 20 + (step % 8) / 40, 1e-3 / step, step / 2, *own)
                runs.append_line(made / "metrics.jsonl", asdict(metric))
            if step % 8 == 0:
                metric = Metric(step, 100 * step, "validation", 4.9 - k / 4 - step / 25, 0.0, step / 2)
                runs.append_line(made / "metrics.jsonl", asdict(metric))
    runs.write_json(tmp_path / "first" / "config.json", runs.read_config(tmp_path / "first") | {"train_tokens": 1000})
    return tmp_path


@pytest.fixture
def view(folder, tmp_path, visit_file):
    return lambda **options: visit_file(
        Curves(["first", "old"], folder).save(tmp_path / "curves.html").as_uri(), **options
    )


def table(page):
    """The table as {heading: {x: value}}."""
    if not page.locator("details").evaluate("node => node.open"):
        page.get_by_text("Table", exact=True).click()
        page.locator("details tr").first.wait_for()  # it is filled when it has opened
    head, *rows = page.evaluate(
        "[...document.querySelectorAll('details tr')].map(row => [...row.children].map(cell => cell.textContent))"
    )
    found = {name.replace("\u2068", "").replace("\u2069", ""): {} for name in head[1:]}
    for place, *values in rows:
        for name, value in zip(found, values):
            if value:
                found[name][float(place.replace(",", ""))] = float(value.replace(",", ""))
    return found


def expected(folder, run, split, value, x=lambda metric: metric.step):
    return {x(m): pytest.approx(value(m), rel=1e-5) for m in runs.read_metrics(folder / run) if m.split == split}


def reading(page):
    return page.locator(".g-reading").inner_text().replace("\u2068", "").replace("\u2069", "")


def test_the_numbers_are_those_of_the_metrics(view, folder):
    page = view()
    assert table(page) == {
        f"{run} {name}": expected(folder, run, split, lambda m: m.loss)
        for run in ("first", "old")
        for split, name in (("train", "training"), ("validation", "validation"))
    }
    page.get_by_label("Vertical axis").select_option("perplexity")
    assert table(page)["old validation"] == expected(folder, "old", "validation", lambda m: math.exp(m.loss))
    page.get_by_label("Horizontal axis").select_option("epoch")
    by_epoch = table(page)
    assert by_epoch["first training"] == expected(
        folder, "first", "train", lambda m: math.exp(m.loss), lambda m: m.tokens / 1000
    )
    assert set(by_epoch) == {"first training", "first validation"}  # the other did not record the size of its text
    for measure, value in (
        ("grad_norm", lambda m: m.grad_norm),
        ("memory", lambda m: m.memory / 1e9),
        ("cpu", lambda m: 100 * m.cpu),
    ):
        page.get_by_label("Vertical axis").select_option(measure)
        assert table(page) == {"first training": expected(folder, "first", "train", value, lambda m: m.tokens / 1000)}
    assert page.get_by_label("Vertical axis").locator("option[value=gpu]").count() == 0


def test_keys_read_zoom_and_show_all(view):
    page = view()
    page.locator("canvas").focus()
    page.keyboard.press("Home")
    assert reading(page) == "Optimizer steps 0: first validation 4.9; old validation 4.65"
    page.keyboard.press("ArrowRight")
    assert reading(page) == "Optimizer steps 4: first training 4.9; old training 4.9"
    for key in ("End", "+", "+"):
        page.keyboard.press(key)
    assert page.get_by_role("button", name="Show all").is_enabled()
    page.keyboard.press("Home")
    assert int(reading(page).split()[2].rstrip(":")) > 20
    page.keyboard.press("0")
    page.keyboard.press("Home")
    assert reading(page).startswith("Optimizer steps 0:") and page.get_by_role("button", name="Show all").is_disabled()


def test_dragging_and_the_wheel_zoom_and_a_double_click_shows_all(view):
    page = view()
    box = page.locator("canvas").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.5, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, middle, steps=4)
    page.mouse.up()
    assert page.get_by_role("button", name="Show all").is_enabled()
    page.locator("canvas").focus()
    page.keyboard.press("Home")
    low = int(reading(page).split()[2].rstrip(":"))
    page.keyboard.press("End")
    assert 12 <= low < int(reading(page).split()[2].rstrip(":")) <= 32
    page.mouse.wheel(0, 2000)
    page.locator("canvas").dblclick()
    assert page.get_by_role("button", name="Show all").is_disabled()
    page.mouse.wheel(0, -100)
    assert page.get_by_role("button", name="Show all").is_enabled()


def test_smoothing_forgets_the_past_and_leaves_the_table_and_validations(view, folder):
    page = view()
    before = table(page)
    page.get_by_label("Smoothing").evaluate("node => { node.value = 0.5; node.oninput(); }")
    assert table(page) == before
    page.locator("canvas").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    first, second = [m.loss for m in runs.read_metrics(folder / "first") if m.split == "train"][:2]
    mean = (0.25 * first + 0.5 * second) / 0.75
    assert f"first training {second:.5g} (smoothed {mean:.5g})" in reading(page)
    assert "validation 4.58 (" not in reading(page)


def test_the_picture_changes_with_scale_and_runs_can_be_hidden(view):
    page = view(color_scheme="dark", viewport={"width": 320, "height": 800})
    drawn = "document.querySelector('canvas').toDataURL()"
    linear = page.evaluate(drawn)
    page.get_by_label("Log scale").check()
    assert page.evaluate(drawn) != linear
    page.get_by_role("button", name="old").click()
    assert set(table(page)) == {"first training", "first validation"}
    page.get_by_role("button", name="first").click()
    assert reading(page) == "All runs are hidden."
    assert page.evaluate("document.documentElement.scrollWidth") == 320


def test_new_points_keep_what_the_reader_chose(folder, visit_live):
    widget = Curves(["first", "old"], folder)
    page = visit_live(widget)
    page.get_by_role("button", name="old").click()
    page.get_by_label("Vertical axis").select_option("perplexity")
    runs.append_line(folder / "first" / "metrics.jsonl", asdict(Metric(48, 4800, "validation", 2.5, 0.0, 24.0)))
    widget.update()
    page.evaluate("data => window.model.set('data', data)", widget.data)
    assert table(page)["first validation"] == expected(folder, "first", "validation", lambda m: math.exp(m.loss))
    assert set(table(page)) == {"first training", "first validation"}
    assert page.get_by_role("button", name="old").get_attribute("aria-pressed") == "false"


def test_saved_files_hold_every_record(view, folder, tmp_path):
    page = view()
    with page.expect_download() as saved:
        page.get_by_label("Save").select_option("csv")
    rows = list(csv.DictReader(Path(saved.value.path()).read_text().splitlines()))
    metrics = [m for run in ("first", "old") for m in runs.read_metrics(folder / run)]
    assert [(int(row["step"]), row["split"], float(row["loss"])) for row in rows] == [
        (m.step, m.split, pytest.approx(m.loss, rel=1e-6)) for m in metrics
    ]
    for format, start in (("png", b"\x89PNG"), ("svg", b"<svg")):
        with page.expect_download() as saved:
            page.get_by_label("Save").select_option(format)
        assert Path(saved.value.path()).read_bytes().startswith(start)


def test_a_hostile_name_is_text_and_a_run_without_losses_says_so(tmp_path, visit_file):
    folder = runs.new_run(tmp_path / "runs", {"model": "builtin", "data": "sample"}, "new")
    widget = Curves(folder)
    page = visit_file(widget.save(tmp_path / "empty.html").as_uri())
    assert reading(page) == "Nothing is measured yet: the first validation comes before training."
    data = json.loads(json.dumps(widget.data))
    data["runs"][0]["id"] = HOSTILE
    data["runs"][0]["columns"] |= {
        "step": [0],
        "tokens": [0],
        "split": ["validation"],
        "loss": [4.5],
        "lr": [0],
        "seconds": [1],
    }
    data["runs"][0]["columns"] |= {
        name: [None] for name in ("epoch", "grad_norm", "tokens_per_second", "memory", "cpu", "gpu")
    }
    widget.data = data
    page = visit_file(widget.save(tmp_path / "hostile.html").as_uri())
    assert page.locator(".g-id").inner_text() == HOSTILE and page.locator("img").count() == 0
    assert table(page) == {f"{HOSTILE} validation": {0: 4.5}}

"""The Explore page: seconds from opening the app to the drawn page, for a new text, for a selection; bytes.

    python benchmarks/explore.py [--repeat 5]

Of the app, served on this machine, in Chromium: the built-in model, and a model of GPT-2 small's shape with random
weights. The median of the repeats counts. A peer has none of these pages; the aims stand beside the figures.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

from attention import FLAGS, random_trace

LINE = "Marie Curie discovered polonium in Paris, and Marie Curie discovered radium in Paris."
ROW = "{:<64} {:>10} {:>10}"
# until the page of a text is drawn: all of its panels, and the attention on its canvas
DRAWN = """text => { const root = document.querySelector("#explore-page .gpt2lab");
    return root?.dataset.text === text && root.querySelector("[data-drawn]"); }"""
# milliseconds of the slowest of 20 selections, each until the next frame after it is drawn
SELECTIONS = """async () => {
    const tokens = [...document.querySelectorAll(".g-strip button")], times = [];
    for (let i = 0; i < 20; i++) {
        const began = performance.now();
        tokens[(7 * i) % tokens.length].click();
        await new Promise((next) => requestAnimationFrame(() => setTimeout(next)));
        times.push(performance.now() - began);
    }
    return times; }"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    from playwright.sync_api import sync_playwright

    from gpt2lab.app import build_app, serve

    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(ROW.format("", "ours", "aim"), flush=True)
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        save_small_shape(Path(folder) / "small" / "model")
        demo = build_app(folder)
        url = serve(demo, block=False)
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS.split())
        row(
            "Explore drawn after the page opens, builtin, s",
            median(opened(browser, url) for _ in range(repeat)),
            "≤ 1.5",
        )
        for label, aim in (("builtin", "≤ 1.0"), ("small", "≤ 2.5")):
            seconds, slowest, requests, size = texts(browser, url, label, repeat)
            row(f"new text of 64 tokens drawn, {label}, s", seconds, aim)
            row(f"  a selection redraws all panels, slowest of 20, {label}, ms", slowest, "≤ 100")
            row(f"  requests for 20 selections, {label}", requests, "0")
            row(f"  data of the page, {label}, MB", size, "≤ 2")
        saved(browser, Path(folder) / "page.html", repeat)
        browser.close()
        demo.close(verbose=False)
    print(f"load {os.getloadavg()[0]:.1f}")


def row(name: str, value: float, aim: str) -> None:
    print(ROW.format(name, f"{value:.2f}", aim), flush=True)


def save_small_shape(folder: Path) -> None:
    """A model of GPT-2 small's shape with random weights, as the model of a run."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from gpt2lab import load_model

    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
    load_model("builtin").tokenizer.save_pretrained(folder)


def opened(browser, url: str) -> float:
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    began = time.perf_counter()
    page.goto(url)
    page.wait_for_function(DRAWN, arg=LINE)
    seconds = time.perf_counter() - began
    page.close()
    return seconds


def texts(browser, url: str, label: str, repeat: int) -> tuple[float, float, int, float]:
    """(seconds until a new text is drawn, ms of the slowest selection, its requests, MB of the page's data)."""
    from gpt2lab import load_model

    lab, page, times, requests = (
        load_model("builtin"),
        browser.new_page(viewport={"width": 1400, "height": 900}),
        [],
        [],
    )
    page.on("request", lambda request: requests.append(request.url))
    page.goto(f"{url}?model={label}&text=The+moon")
    page.wait_for_function(DRAWN, arg="The moon", timeout=60_000)
    for i in range(repeat):
        text = lab.tokenizer.decode(lab.encode(f"{i}. {LINE * 4}")[:64])
        page.locator("#explore-text textarea").fill(text)
        began = time.perf_counter()
        page.locator("#explore-run").click()
        page.wait_for_function(DRAWN, arg=text, timeout=60_000)
        times.append(time.perf_counter() - began)
    page.wait_for_timeout(2000)
    requests.clear()
    slowest = max(page.evaluate(SELECTIONS))
    size = page.evaluate("JSON.stringify(document.querySelector('#explore-page .gpt2lab').view.get('data')).length")
    page.close()
    return median(times), slowest, len(requests), size / 1e6


def saved(browser, path: Path, repeat: int) -> None:
    """A saved page of 128 tokens and 144 heads: its size, and seconds to its first drawn picture."""
    from gpt2lab import explorer_page

    explorer_page(random_trace(12, 128)).save(path)
    times = []
    for _ in range(repeat):
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        began = time.perf_counter()
        page.goto(path.as_uri())
        page.locator("[data-drawn]").first.wait_for(state="attached")
        times.append(time.perf_counter() - began)
        page.close()
    row("saved attention page, 128 tokens × 144 heads, first paint, s", median(times), "≤ 0.5")
    row("  its size, MB", path.stat().st_size / 1e6, "≤ 1.5")


if __name__ == "__main__":
    main()

"""The attention page against bertviz' head view, and a trace against eager attention, side by side.

    python benchmarks/attention.py [--repeat 3] [--skip browser|trace]

Heads of GPT-2 small's shape with seeded random, uneven attention. Pages: their bytes, and how long Chromium takes from
opening one to having drawn it; ours and bertviz' take turns, each one's best counts. bertviz' page is made to work
offline first, by `gpt2lab.pages.bertviz` with its limits lifted. A long layer's page: also the longest time between
two frames until it is drawn, for which a reader would have waited. Traces of 1,024 tokens: each measurement is a
process of its own, so that its peak memory is its own.
"""

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from side_by_side import allocated_peak_mb

L, H, K, CONTEXT = 12, 12, 64, 1024
FLAGS = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update"
# the longest time between two frames, in ms, until the page says that it is drawn
FRAMES = """window.longestFrame = 0;
let last = performance.now();
const frame = (now) => {
    longestFrame = Math.max(longestFrame, now - last);
    last = now;
    if (!document.querySelector(".g-headgrid[data-drawn]")) requestAnimationFrame(frame);
};
requestAnimationFrame(frame);"""
ROW = "{:<44} {:>12} {:>12} {:>9} {:>8}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--skip", choices=("browser", "trace"), help="a half that is not measured")
    parser.add_argument("--measure", choices=tuple(TRACES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments)))
        return
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(ROW.format("", "ours", "peer", "ratio", "aim"), flush=True)
    if arguments.skip != "browser":
        compare_bytes()
        compare_drawing(arguments.repeat)
    if arguments.skip != "trace":
        compare_traces(arguments.repeat)
    print(f"load {os.getloadavg()[0]:.1f}")


def row(name: str, ours: float, peer: float | None = None, form: str = ".2f", aim: str = "") -> None:
    beside = ("", "") if peer is None else (f"{peer:{form}}", f"{ours / peer:.3f}×")
    print(ROW.format(name, f"{ours:{form}}", *beside, aim), flush=True)


def random_trace(layers: int, tokens: int):
    """A trace whose rows are neither uniform nor one-hot: scores of standard deviation 2."""
    import torch

    from gpt2lab.inspection.trace import Trace

    q, k = torch.randn(2, layers, H, tokens, K, generator=torch.Generator().manual_seed(0))
    names, scaling = tuple(f"·t{i}" for i in range(tokens)), (K**-0.5,) * layers
    return Trace("random", names, torch.arange(tokens), 2 * q, k, torch.zeros(1).expand_as(q), scaling)


# ---- pages ---------------------------------------------------------------------------------------------------------


def compare_bytes() -> None:
    from bertviz import head_view

    from gpt2lab.pages.explorer import explorer_page

    short = random_trace(L, 128)
    attention = [short.attention(layer)[None] for layer in range(L)]
    peer = head_view(attention, list(short.tokens), html_action="return").data
    ours = explorer_page(short).html
    row("page of 12 × 12 heads, 128 tokens, MB", megabytes(ours), megabytes(peer), aim="1.5 MB")
    row("page of 12 heads, 1,024 tokens, MB", megabytes(explorer_page(random_trace(1, CONTEXT)).html), aim="5 MB")


def megabytes(html: str) -> float:
    return len(html.encode()) / 1e6


def compare_drawing(repeat: int) -> None:
    from playwright.sync_api import sync_playwright

    from gpt2lab.pages.explorer import explorer_page

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS.split())
        for tokens in (32, 64, 128):
            short = random_trace(L, tokens)
            pages = {"ours": explorer_page(short)} | ({"peer": bertviz_page(short)} if tokens <= 64 else {})
            found = {side: [] for side in pages}
            for _ in range(repeat):
                for side, page in pages.items():
                    found[side].append(seconds_to_drawn(browser, page.save(Path(folder) / "page.html"), side)[0])
            best = {side: min(times) for side, times in found.items()}
            aim = "< 1 s" if tokens == 128 else ""
            row(f"12 × 12 heads, {tokens} tokens, s until drawn", best["ours"], best.get("peer"), aim=aim)
        long = explorer_page(random_trace(1, CONTEXT)).save(Path(folder) / "page.html")
        runs = [seconds_to_drawn(browser, long, "ours") for _ in range(repeat)]
        row("12 heads, 1,024 tokens, s until drawn", min(seconds for seconds, _ in runs))
        row("  longest time between two frames, ms", min(frame for _, frame in runs), form=".0f")
        browser.close()


def bertviz_page(trace):
    """bertviz' head view of all layers and heads, offline, of more tokens than gpt2lab shows in it."""
    from gpt2lab.pages import bertviz

    bertviz.MAX_TOKENS = bertviz.MAX_LINES = bertviz.MAX_NUMBERS = sys.maxsize
    return bertviz.head_view_page(trace)


def seconds_to_drawn(browser, path: Path, side: str) -> tuple[float, float]:
    """(seconds from opening a page until it is drawn and shown, the longest time between two frames in ms)."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    page = context.new_page()
    page.add_init_script(FRAMES)
    begun = time.perf_counter()
    page.goto(path.as_uri())
    page.locator(".g-headgrid[data-drawn]" if side == "ours" else "#attention line").first.wait_for(state="attached")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    took = time.perf_counter() - begun
    frame = page.evaluate("longestFrame")
    context.close()
    return took, frame


# ---- traces --------------------------------------------------------------------------------------------------------


def compare_traces(repeat: int) -> None:
    found = {side: [] for side in TRACES}
    for _ in range(repeat):
        for side in found:
            command = [sys.executable, __file__, *sys.argv[1:], "--measure", side]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[side].append(json.loads(done.stdout.splitlines()[-1]))

    def best(side: str, key: str) -> float:
        return min(run[key] for run in found[side])

    row("trace of 1,024 tokens, s", best("ours", "seconds"), best("peer", "seconds"), aim="1.0×")
    row("  peak of tensors above the model, MB", best("ours", "tensors"), best("peer", "tensors"), ".0f", "0.35×")
    row("  peak of the process above the model, MB", best("ours", "extra"), best("peer", "extra"), ".0f", "0.35×")
    row("trace and every weight, s", best("all", "seconds"), best("peer", "seconds"))
    row("  peak memory above the model, MB", best("all", "extra"), best("peer", "extra"), ".0f")
    row("trace against a peer without logits, s", best("ours", "seconds"), best("bare", "seconds"))
    row("  peak memory above the model, MB", best("ours", "extra"), best("bare", "extra"), ".0f")


def ours(lab, ids) -> None:
    from gpt2lab.inspection.trace import trace_ids

    trace_ids(lab, ids)


def every_weight(lab, ids) -> None:
    """The trace, and then each layer's weights in turn, as its pictures compute them."""
    from gpt2lab.inspection.trace import trace_ids

    seen = trace_ids(lab, ids)
    for layer in range(seen.n_layers):
        assert math.isclose(seen.attention(layer)[0, 0, 0], 1)


def peer(lab, ids) -> None:
    assert lab.model(ids[None], output_attentions=True).attentions[-1].shape == (1, H, len(ids), len(ids))


def bare_peer(lab, ids) -> None:
    assert lab.model.transformer(ids[None], output_attentions=True, use_cache=False).attentions[-1].shape[1] == H


TRACES = {"ours": ours, "all": every_weight, "peer": peer, "bare": bare_peer}


def measure(arguments) -> dict:
    """{"seconds": of a warm run, "extra": MB at the peak above what the loaded model and a short run take}."""
    import psutil
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

    from gpt2lab.data.sources import BUILTIN
    from gpt2lab.model.lab import Lab, with_fused_gelu

    torch.manual_seed(0)
    eager = arguments.measure in ("peer", "bare")
    model = GPT2LMHeadModel(GPT2Config(attn_implementation="eager" if eager else "sdpa")).eval()
    if not eager:
        with_fused_gelu(model)  # as load_model does
    tokenizer = GPT2Tokenizer.from_pretrained(
        BUILTIN / "checkpoint"
    )  # for the names of tokens; ids past it have numbers
    lab, ids = Lab(model, tokenizer, "random"), torch.randint(0, 50257, (CONTEXT,))
    with torch.no_grad():
        run = TRACES[arguments.measure]
        run(lab, ids[:16])
        before = psutil.Process().memory_info().rss / 1e6
        run(lab, ids)
        extra = peak_mb() - before
        begun = time.perf_counter()
        run(lab, ids)
        took = time.perf_counter() - begun
        tensors = allocated_peak_mb(lambda: run(lab, ids))
    return {"seconds": took, "extra": extra, "tensors": tensors}


def peak_mb() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


if __name__ == "__main__":
    main()

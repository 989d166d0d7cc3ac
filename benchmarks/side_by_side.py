"""What the benchmarks share: the machine, the texts there are, GPT-2 small's shape, turns, processes, memory and rows.

A benchmark runs in a fresh clone without arguments. The built-in tokenizer and sample text serve where GPT-2's tokenizer
and WikiText-2 are missing.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

DATA = Path(__file__).parents[2] / "shared" / "data"  # beside the repository
ROW = "{:<52} {:>12} {:>12} {:>9} {:>8}"


def parser(description: str) -> ArgumentParser:
    """Return a parser with the option that all benchmarks have."""
    made = ArgumentParser(description=description)
    made.add_argument(
        "--data",
        type=Path,
        default=DATA if DATA.is_dir() else None,
        help="a folder with wikitext-2-raw/ and gpt2-tokenizer/, or a text that gpt2lab loads (default: %(default)s)",
    )
    return made


def machine() -> str:
    """Describe what the figures depend on: cores, threads, bf16 units, load."""
    import torch

    from gpt2lab.model.precision import has_fast_bf16

    units = "yes" if has_fast_bf16(torch.device("cpu")) else "no"
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    return f"{os.cpu_count()} cores, {threads} threads, bf16 units: {units}, load {load:.1f}, torch {torch.__version__}"


def row(name: str, ours: float, peer: float | None, form: str = ".1f", aim: str = "") -> None:
    """Print a row: two figures, their ratio, the ratio aimed at."""
    sides = (f"{ours:{form}}", "", "") if peer is None else (f"{ours:{form}}", f"{peer:{form}}", f"{ours / peer:.2f}×")
    print(ROW.format(name, *sides, aim), flush=True)


def texts(data: Path | None) -> dict[str, tuple]:
    """Return the articles to measure on, by name: the sample's test split, and WikiText-2's or another one's."""
    from gpt2lab.data.text import load_text

    found = {"sample": load_text("sample").split("test")}
    if data:
        folder = data / "wikitext-2-raw"
        place = folder if folder.is_dir() else data
        found[place.name] = load_text(str(place)).split("test")
    return found


def tokenizer(data: Path | None):
    """Return GPT-2's tokenizer from a folder where it is there, else the built-in one."""
    from transformers import GPT2Tokenizer

    from gpt2lab.model.lab import load_model

    folder = data / "gpt2-tokenizer" if data else None
    if folder and folder.is_dir():
        return GPT2Tokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    return load_model("builtin", device="cpu").tokenizer


def gpt2_small(**changes):
    """Return transformers' GPT-2 in the small one's shape, with seeded random weights."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(attn_implementation="sdpa", **changes)).eval()


def take_turns(ways: dict[str, Callable], repeat: int) -> tuple[dict[str, float], dict]:
    """Run every way once to warm up and then in turns. Return the least seconds and the last result of each."""
    results = {name: way() for name, way in ways.items()}
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(repeat):
        for name, way in ways.items():
            began = time.perf_counter()
            results[name] = way()
            best[name] = min(best[name], time.perf_counter() - began)
    return best, results


def in_a_process(*arguments: str) -> dict:
    """Run the same benchmark with more arguments and an empty cache. Return the JSON on its last line."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, *sys.argv, *arguments]
        environment = {**os.environ, "GPT2LAB_CACHE": cache}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def memory_mb() -> float:
    """Return the memory this process holds now."""
    import psutil

    return psutil.Process().memory_info().rss / 1e6


def peak_mb() -> float:
    """Return the most memory this process has held."""
    kilobytes = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobytes / 1e6


def allocated_peak_mb(run: Callable) -> float:
    """Return the most memory that torch's CPU tensors take at a time while something runs, above what they took before.

    It counts allocations, so that neither the C library's reserves nor other libraries' buffers are in it.
    """
    import torch

    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        run()
    now = peak = 0
    changes = (event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")
    for change in sorted(changes, key=lambda event: event.start_ns()):
        now += change.nbytes()
        peak = max(peak, now)
    return peak / 1e6

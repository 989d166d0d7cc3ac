"""What a run costs against what `finetune --dry-run` said it would: time, peak memory, disk; each ratio should be near 1.

    python benchmarks/cost.py [--only builtin]

Every run is a process of its own, timed from its start until its status is "finished".
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BUILTIN = ["--model", "builtin", "--data", "sample", "--patience", "0"]
CASES = {  # name: options of the command
    "builtin": [*BUILTIN, "--steps", "80"],
    "builtin, short": [*BUILTIN, "--steps", "40", "--block-size", "64"],
    "builtin, LoRA": [*BUILTIN, "--steps", "60", "--method", "lora", "--grad-accum", "2", "--eval-every", "5"],
    "builtin, scratch": [*BUILTIN, "--steps", "60", "--method", "scratch", "--batch-size", "16", "--block-size", "128"],
    "GPT-2's shape": ["--data", "sample", "--steps", "20", "--patience", "0"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=CASES, help="one case")
    arguments = parser.parse_args()
    row = "{:<17} {:>9} {:>8} {:>6}   {:>9} {:>9} {:>6}   {:>9} {:>9} {:>6}"
    print(
        row.format("case", "told s", "took s", "ratio", "told MB", "took MB", "ratio", "told disk", "took MB", "ratio")
    )
    for case, options in CASES.items():
        if arguments.only in (None, case):
            with tempfile.TemporaryDirectory() as scratch:
                told, took = compare(options, Path(scratch))
            cells = [f(x) for a, b in zip(told, took) for f, x in (("{:,.0f}".format, a), ("{:,.0f}".format, b))]
            ratios = [f"{b / a:.2f}×" for a, b in zip(told, took)]
            print(row.format(case, *cells[:2], ratios[0], *cells[2:4], ratios[1], *cells[4:], ratios[2]), flush=True)


def compare(options: list[str], scratch: Path) -> tuple[list[float], list[float]]:
    """(seconds, memory in MB, disk in MB) as told, and as it came."""
    if "--model" not in options:
        options = [*options, "--model", str(gpt2_shaped(scratch / "model"))]
    command = [sys.executable, "-m", "gpt2lab", "finetune", *options, "--json", "--runs", str(scratch / "runs")]
    done = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, check=True)
    cost = json.loads(done.stdout)
    began, disk, status = time.monotonic(), 0, {}
    with subprocess.Popen([*command, "--run", "it"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        folder = scratch / "runs" / "it"
        while status.get("state") != "finished":
            if running.poll():
                raise SystemExit("the run failed")
            time.sleep(0.1)
            if (folder / "status.json").exists():
                status = json.loads((folder / "status.json").read_text())
                disk = max(disk, size(folder))
        seconds = time.monotonic() - began
    memory = json.loads((folder / "result.json").read_text())["memory"]
    return [cost["seconds"], cost["memory"] / 1e6, cost["disk"] / 1e6], [seconds, memory / 1e6, disk / 1e6]


def size(folder: Path) -> int:
    """Bytes of all files in a folder that others write and delete meanwhile."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.exists())


def gpt2_shaped(folder: Path) -> Path:
    """A checkpoint of GPT-2 small's shape with random weights, and the built-in tokenizer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from gpt2lab.model.lab import load_model

    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
    load_model("builtin").tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()

"""What it costs that a run observes itself: share of the training time, and bytes.

    python benchmarks/history.py [--steps 80] [--gpt2]

Fine-tunes the built-in model on the sample (with --gpt2, a model of GPT-2 small's shape with random weights) and times its
observations. The same run without them is the baseline: seconds are those of one run, with and without what observing took.
"""

import argparse
import tempfile
import time
from pathlib import Path

from transformers import GPT2Config, GPT2LMHeadModel

from gpt2lab import finetune, load_model
from gpt2lab.training.observation import MAX_BYTES, SHARE, Observer

ROW = "{:<52} {:>12} {:>12} {:>8}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--gpt2", action="store_true", help="a model of GPT-2 small's shape")
    options = parser.parse_args()
    times, counted = [], Observer.write

    def timed(self, step):
        began = time.perf_counter()
        counted(self, step)
        times.append(time.perf_counter() - began)

    Observer.write = timed
    with tempfile.TemporaryDirectory() as folder:
        model = gpt2_shaped(Path(folder) / "gpt2") if options.gpt2 else "builtin"
        settings = {"model": model, "data": "sample", "steps": options.steps, "runs_dir": folder, "run": "observed"}
        result = finetune(**settings)
        files = [*(result.folder / "history").iterdir()]
        size = sum(file.stat().st_size for file in files)
    observing, each = sum(times), sum(times) / len(times)
    print(ROW.format("", "observed", "without", "ratio"))
    total = result.seconds + observing
    print(ROW.format("training, s", f"{total:.1f}", f"{result.seconds:.1f}", f"{total / result.seconds:.3f}"))
    print(
        f"{len(times)} observations, {each:.2f} s each, {observing / result.seconds:.1%} of training (at most {SHARE:.0%})"
    )
    print(f"one takes as long as training on {each * result.tokens_per_second:,.0f} tokens")
    print(f"{size / 1e6:.2f} MB of history (at most {MAX_BYTES / 1e6:.0f})")


def gpt2_shaped(folder: Path) -> str:
    """Write a model of GPT-2 small's shape, with the built-in tokenizer."""
    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
    load_model("builtin").tokenizer.save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    main()

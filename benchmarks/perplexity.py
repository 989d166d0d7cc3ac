"""Sliding-window perplexity by gpt2lab against the loop that the Hugging Face guide documents, side by side.

    python benchmarks/perplexity.py [--windows 48] [--text FILE] [--tokenizer FOLDER]

GPT-2 small's shape, random weights, real text by GPT-2's tokenizer, context 1,024, stride 512. Each measurement is a
process of its own, so that its peak memory is its own; ours and the peer's take turns, twice. Prints tokens/s, peak
memory of the process and above the loaded model, the perplexity of both, and how long the same windows take again.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DATA = Path(__file__).parents[2] / "shared" / "data"
CONTEXT, STRIDE = 1024, 512
AIMS = {"speed": "1.3", "memory": "0.5", "again": "50"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=48)
    parser.add_argument("--text", default=str(DATA / "wikitext-2-raw" / "wiki.test.raw"), help="a text file")
    parser.add_argument("--tokenizer", default=str(DATA / "gpt2-tokenizer"), help="a folder, or gpt2 from the hub")
    parser.add_argument("--measure", choices=("ours", "peer"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments)))
        return
    found = {"ours": [], "peer": []}
    for _ in range(2):
        for side in found:
            found[side].append(in_a_process(side))
            print(side, json.dumps(found[side][-1]), flush=True)
    ours, peer = (
        max(mine, key=lambda m: m["speed"]) for mine in (found["ours"], found["peer"])
    )  # each one's better run
    row = "{:<34} {:>12} {:>12} {:>9} {:>6}"
    print(row.format("", "ours", "peer", "ratio", "aim"))
    print(row.format("tokens predicted per second", *two(ours, peer, "speed", ".1f"), f"{AIMS['speed']}×"))
    print(row.format("peak memory above the model, MB", *two(ours, peer, "extra", ".0f"), f"{AIMS['memory']}×"))
    print(row.format("peak memory of the process, MB", *two(ours, peer, "peak", ".0f"), ""))
    print(row.format("perplexity", *two(ours, peer, "perplexity", ".4f", ".7f"), "1e-4"))
    again = ours["seconds"] / ours["again"]
    print(
        row.format(
            "the same windows again, s",
            f"{ours['again']:.2f}",
            f"{ours['seconds']:.1f}",
            f"{again:.0f}×",
            f"{AIMS['again']}×",
        )
    )


def two(ours: dict, peer: dict, key: str, form: str, ratio: str = ".2f") -> tuple[str, str, str]:
    return f"{ours[key]:{form}}", f"{peer[key]:{form}}", f"{ours[key] / peer[key]:{ratio}}×"


def in_a_process(side: str) -> dict:
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, __file__, *sys.argv[1:], "--measure", side]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "GPT2LAB_CACHE": cache}
        )
    return json.loads(done.stdout.splitlines()[-1])


def measure(side: str, arguments) -> dict:
    """{"speed": tokens/s, "extra", "peak": MB, "perplexity"} and, of ours, {"seconds", "again"} of the windows."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

    from gpt2lab.model import Lab, with_fused_gelu
    from gpt2lab.scoring.perplexity import measured, read
    from gpt2lab.scoring.scorer import score
    from gpt2lab.text import Article

    torch.manual_seed(0)
    # weights larger than GPT-2's first ones, so that tokens differ in their loss as those of a trained model do
    model = GPT2LMHeadModel(GPT2Config(initializer_range=0.05, attn_implementation="sdpa")).eval()
    if side == "ours":
        with_fused_gelu(model)  # as load_model does
    lab = Lab(
        model.to("cuda" if torch.cuda.is_available() else "cpu"),
        gpt2_tokenizer(arguments.tokenizer, GPT2Tokenizer),
        "random",
    )
    text = Path(arguments.text).read_text(encoding="utf-8")
    n = CONTEXT + STRIDE * (arguments.windows - 1)
    text = lab.tokenizer.decode(lab.tokenizer(text, verbose=False)["input_ids"][:n])
    articles = (Article("", (text,)),)
    reading = read(lab, articles, context=CONTEXT, stride=STRIDE)
    ids = torch.from_numpy(reading.ids)
    before, begun = memory_mb(), time.perf_counter()
    if side == "peer":
        perplexity, scored = guide_loop(model, ids)
        took = time.perf_counter() - begun
        more = {}
    else:
        result = measured(score(lab, reading))
        took = time.perf_counter() - begun
        perplexity, scored = result.perplexity, result.n_scored
        begun = time.perf_counter()
        score(lab, read(lab, articles, context=CONTEXT, stride=STRIDE))
        more = {"seconds": took, "again": time.perf_counter() - begun}
    return {"speed": scored / took, "extra": peak_mb() - before, "peak": peak_mb(), "perplexity": perplexity, **more}


def guide_loop(model, ids) -> tuple[float, int]:
    """(perplexity, tokens predicted), window by window with labels, as the guide tells.

    Its sum takes each window's mean times one target fewer than it has; here by all of them, which changes the mean
    by less than 1e-4. Source: https://huggingface.co/docs/transformers/perplexity
    """
    import torch

    total, count, previous_end = 0.0, 0, 0
    for begin in range(0, len(ids), STRIDE):
        end = min(begin + CONTEXT, len(ids))
        inputs = ids[None, begin:end].to(model.device)
        labels = inputs.clone()
        labels[:, : -(end - previous_end)] = -100
        with torch.no_grad():
            loss = model(inputs, labels=labels).loss
        predicted = int((labels[:, 1:] != -100).sum())
        total, count, previous_end = total + float(loss) * predicted, count + predicted, end
        if end == len(ids):
            break
    return float(torch.tensor(total / count, dtype=torch.float64).exp()), count


def gpt2_tokenizer(where: str, kind):
    folder = Path(where)
    if folder.is_dir():
        return kind(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    return kind.from_pretrained(where)


def memory_mb() -> float:
    """Memory held now: of the GPU where there is one, else of this process."""
    import psutil
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 1e6
    return psutil.Process().memory_info().rss / 1e6


def peak_mb() -> float:
    """The most memory since then; of a process, since it began."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


if __name__ == "__main__":
    main()

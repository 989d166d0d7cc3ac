"""Sliding-window perplexity in fp32 and bf16 against the loop in the Hugging Face guide.

    python benchmarks/perplexity.py [--windows 48] [--data FOLDER]

GPT-2 small's shape, random weights, context 1,024, stride 512, on WikiText-2 by GPT-2's tokenizer or else on the sample
by the built-in one. Every measurement is a process of its own, with a peak memory of its own. The sides take turns,
twice, and the better run counts. In bf16, the windows that are scored again in fp32 are part of the time.
"""

import argparse
import json
import time

import side_by_side

CONTEXT, STRIDE = 1024, 512


def main() -> None:
    parser = side_by_side.parser(__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=48)
    parser.add_argument("--measure", choices=("peer", "fp32", "bf16"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(measure(asked)))
        return
    print(side_by_side.machine())
    found = {"peer": [], "fp32": [], "bf16": []}
    for _ in range(2):
        for side, runs in found.items():
            runs.append(side_by_side.in_a_process("--measure", side))
            print(side, json.dumps(runs[-1]), flush=True)
    peer, fp32, bf16 = (max(runs, key=lambda run: run["speed"]) for runs in found.values())
    print(side_by_side.ROW.format(f"{fp32['scored']:,} tokens of {fp32['text']}", "ours", "peer", "ratio", "aim"))
    side_by_side.row("tokens predicted per second, fp32", fp32["speed"], peer["speed"], aim="1.30×")
    side_by_side.row("tokens predicted per second, bf16", bf16["speed"], peer["speed"], aim="2.50×")
    side_by_side.row("peak memory above the model, MB, fp32", fp32["extra"], peer["extra"], ".0f", "0.50×")
    side_by_side.row("peak memory above the model, MB, bf16", bf16["extra"], peer["extra"], ".0f")
    side_by_side.row("peak memory of the process, MB, fp32", fp32["peak"], peer["peak"], ".0f")
    side_by_side.row("perplexity, fp32", fp32["perplexity"], peer["perplexity"], ".4f", "1e-4")
    side_by_side.row("perplexity, bf16", bf16["perplexity"], peer["perplexity"], ".4f", "1e-3")
    print(f"bf16: whole text {bf16['perplexity'] / fp32['perplexity'] - 1:+.4%}, stated {bf16['stated']:+.4%} "
          f"of {bf16['checked']:,} tokens")  # fmt: skip
    side_by_side.row("the same windows again, s", fp32["again"], fp32["seconds"], ".2f", "0.02×")
    print(side_by_side.machine())


def measure(asked) -> dict:
    """Return one side's speed (tokens/s), memory (MB) and perplexity."""
    import torch

    from gpt2lab.data.text import Article, original_text
    from gpt2lab.evaluation.perplexity import measured, read
    from gpt2lab.evaluation.scorer import score
    from gpt2lab.model.lab import Lab, with_fused_gelu

    # weights larger than GPT-2's first ones, so that tokens differ in their loss as those of a trained model do
    model = side_by_side.gpt2_small(initializer_range=0.05)
    if asked.measure != "peer":
        with_fused_gelu(model)  # as load_model does
    lab = Lab(model, side_by_side.tokenizer(asked.data), "random")
    name, articles = list(side_by_side.texts(asked.data).items())[-1]
    n = CONTEXT + STRIDE * (asked.windows - 1)
    ids = lab.tokenizer(original_text(articles), verbose=False)["input_ids"][:n]
    text = (Article("", (lab.tokenizer.decode(ids),)),)
    tokenized = read(lab, text, context=CONTEXT, stride=STRIDE)
    before, began = side_by_side.memory_mb(), time.perf_counter()
    if asked.measure == "peer":
        perplexity, scored = guide_loop(model, torch.from_numpy(tokenized.ids))
        seconds, more = time.perf_counter() - began, {}
    else:
        result = measured(score(lab, tokenized, precision=asked.measure))
        perplexity, scored = result.perplexity, result.n_scored
        seconds, began = time.perf_counter() - began, time.perf_counter()
        score(lab, read(lab, text, context=CONTEXT, stride=STRIDE), precision=asked.measure)
        more = {
            "again": time.perf_counter() - began,
            "stated": result.precision_difference,
            "checked": result.n_checked,
        }
    memory = {"extra": side_by_side.peak_mb() - before, "peak": side_by_side.peak_mb()}
    more |= {"text": name, "scored": scored, "seconds": seconds}
    return {"speed": scored / seconds, "perplexity": perplexity, **memory, **more}


def guide_loop(model, ids) -> tuple[float, int]:
    """Return (perplexity, tokens predicted), window by window with labels as in the guide.

    The guide multiplies each window's mean by one target fewer than it has. Here it is all of them, which changes the
    mean by less than 1e-4. Source: https://huggingface.co/docs/transformers/perplexity
    """
    import torch

    total, count, previous_end = 0.0, 0, 0
    for begin in range(0, len(ids), STRIDE):
        end = min(begin + CONTEXT, len(ids))
        inputs = ids[None, begin:end]
        labels = inputs.clone()
        labels[:, : -(end - previous_end)] = -100
        with torch.no_grad():
            loss = model(inputs, labels=labels).loss
        predicted = int((labels[:, 1:] != -100).sum())
        total, count, previous_end = total + float(loss) * predicted, count + predicted, end
        if end == len(ids):
            break
    return float(torch.tensor(total / count, dtype=torch.float64).exp()), count


if __name__ == "__main__":
    main()

"""The sweep over all heads against a forward pass per head, and the memory of a logit lens, side by side.

    python benchmarks/inside.py [--repeat 2] [--tokens 64]

GPT-2 small's shape, seeded random weights. Sweep: the loss of a text with each of the 144 heads switched off alone;
the peer runs the whole model once per head, with a hook that zeroes it, and both must give the same losses. Lens: 12
layers of 256 positions, in a process of its own, so that its peak memory is its own; the peer keeps all logits.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time

from side_by_side import allocated_peak_mb

ROW = "{:<68} {:>10} {:>10} {:>8} {:>9}"
POSITIONS = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--measure", choices=tuple(LENSES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(memory(LENSES[arguments.measure])))
        return
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(ROW.format("", "ours", "peer", "ratio", "aim"), flush=True)
    sweeps(arguments.tokens, arguments.repeat)
    lenses(arguments.repeat)
    print(f"load {os.getloadavg()[0]:.1f}")


def small():
    """A Lab in GPT-2 small's shape."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from gpt2lab.model.lab import Lab, load_model, with_fused_gelu

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval()
    model.loss_type = "ForCausalLM"
    return Lab(with_fused_gelu(model), load_model("builtin").tokenizer, "random")


def sweeps(tokens: int, repeat: int) -> None:
    import torch

    from gpt2lab.inspection.ablation import ablated, sweep_of_ids

    lab = small()
    ids = torch.randint(4000, (tokens,), generator=torch.Generator().manual_seed(1))
    heads = [(layer, head) for layer in range(12) for head in range(12)]

    def ours():
        return sweep_of_ids(lab, ids).losses.flatten()

    def peer():
        losses = []
        with torch.no_grad():
            for head in heads:
                with ablated(lab, [head]):
                    losses.append(float(lab.model(ids[None], labels=ids[None]).loss))
        return torch.tensor(losses)

    best, found = {}, {}
    for run in (ours, peer):
        run_once = [timed(run) for _ in range(repeat)]
        best[run], found[run] = min(seconds for seconds, _ in run_once), run_once[0][1]
    torch.testing.assert_close(found[ours], found[peer], atol=1e-5, rtol=0)
    ratio = f"{best[ours] / best[peer]:.2f}×"
    print(
        ROW.format(f"144 heads, {tokens} tokens, s", f"{best[ours]:.1f}", f"{best[peer]:.1f}", ratio, "≤ 0.5×"),
        flush=True,
    )
    difference = float((found[ours] - found[peer]).abs().max())
    print(ROW.format("  largest difference of a loss", f"{difference:.1e}", "", "", "1e-5"), flush=True)


def timed(run):
    """(seconds, what a run returns)."""
    began = time.perf_counter()
    result = run()
    return time.perf_counter() - began, result


def lenses(repeat: int) -> None:
    found = {}
    for side in LENSES:
        command = [sys.executable, __file__, "--measure", side]
        runs = [subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True) for _ in range(repeat)]
        found[side] = min((json.loads(run.stdout.splitlines()[-1]) for run in runs), key=lambda one: one["extra"])
    for what, key, form, aim in (
        ("peak of tensors above the model, MB", "tensors", ".0f", "≤ 300 MB"),
        ("peak of the process above the model, MB", "extra", ".0f", "≤ 300 MB"),
        ("s", "seconds", ".1f", ""),
    ):
        ours, peer = found["ours"][key], found["peer"][key]
        print(
            ROW.format(
                f"lens, 12 layers × {POSITIONS} positions, {what}",
                f"{ours:{form}}",
                f"{peer:{form}}",
                f"{ours / peer:.2f}×",
                aim,
            )
        )


def ours_lens(lab, ids) -> None:
    from gpt2lab.inspection.lens import logit_lens
    from gpt2lab.inspection.trace import trace_ids

    assert logit_lens(lab, trace_ids(lab, ids, residual=True)).rank.shape == (13, len(ids))


def peer_lens(lab, ids) -> None:
    """All logits of all layers at once, as the usual few lines do it."""
    import torch

    with torch.no_grad():
        states = lab.model(ids[None], output_hidden_states=True).hidden_states
        logits = torch.stack([lab.model.lm_head(lab.model.transformer.ln_f(state[0])) for state in states])
    assert logits.softmax(-1).topk(5).indices.shape == (13, len(ids), 5)


LENSES = {"ours": ours_lens, "peer": peer_lens}


def memory(run) -> dict:
    """{"seconds", "extra": MB at the peak above what the loaded model and a short run take}."""
    import torch

    lab = small()
    ids = torch.randint(4000, (POSITIONS,), generator=torch.Generator().manual_seed(1))
    run(lab, ids[:8])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, _ = timed(lambda: run(lab, ids))
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"seconds": seconds, "extra": extra, "tensors": allocated_peak_mb(lambda: run(lab, ids))}


if __name__ == "__main__":
    main()

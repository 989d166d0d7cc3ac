"""Generation against transformers' `generate`, side by side: full precision, and weights of 8 bits with their cost.

    python benchmarks/generation.py [--repeat 3] [--data FOLDER]

GPT-2 small's shape with seeded random weights, batch 1, 16 tokens in, 128 out, greedy; the two take turns, each
one's best counts. The peer makes no steps to look into; ours does, with 10 alternatives each. The cost of 8 bits is
measured with the built-in model, token by token in blocks, on the sample's test split and on the test split of
--data: difference of the NLL, and how often both have the same favourite. With the built-in model also the speed
at which the app can show text.
"""

import argparse
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from gpt2lab.blocks import pack, token_ids
from gpt2lab.decoding import Decoder
from gpt2lab.generation import Request, generate, steps_of
from gpt2lab.model import Lab, load_model, with_fused_gelu
from gpt2lab.sampling import Sampling
from gpt2lab.text import load_text

PROMPT, NEW = 16, 128
BLOCK, BLOCKS = 256, 80  # tokens of the cost's texts: 20,480
ROW = "{:<52} {:>12} {:>12} {:>9} {:>8}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--data", type=Path, help="WikiText-2, or any text with a test split")
    asked = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    print(ROW.format("", "ours", "peer", "ratio", "aim"))
    speed(asked.repeat)
    builtin = load_model("builtin", device="cpu")
    began = time.perf_counter()
    steps = len(generate(builtin, "The moon", max_new_tokens=200, temperature=0.8, top_p=0.95).steps)
    print(
        ROW.format("built-in model, sampled, tokens/s", f"{steps / (time.perf_counter() - began):.0f}", "", "", "150")
    )
    cost(builtin, "sample", "sample")
    if asked.data:
        cost(builtin, str(asked.data), asked.data.name)


def speed(repeat: int) -> None:
    """Tokens a second of both, and whether they are the same tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    peer = GPT2LMHeadModel(GPT2Config()).eval()
    ours = GPT2LMHeadModel(GPT2Config()).eval()
    ours.load_state_dict(peer.state_dict())
    tokenizer = load_model("builtin", device="cpu").tokenizer
    lab = Lab(with_fused_gelu(ours), tokenizer, "GPT-2 small's shape")
    ids = torch.randint(300, (1, PROMPT), generator=torch.Generator().manual_seed(1))

    def written(int8: bool) -> list[int]:
        asked = Request(lab, "", ids[0], Sampling(temperature=0), NEW, 10, (), (), None, int8)
        return [step.id for step in steps_of(asked)]

    def by_transformers() -> list[int]:
        with torch.inference_mode():
            return peer.generate(ids, max_new_tokens=NEW, do_sample=False, pad_token_id=0)[0, PROMPT:].tolist()

    ways = {"peer": by_transformers, "full": lambda: written(False), "int8": lambda: written(True)}
    best, tokens = dict.fromkeys(ways, 0.0), {}
    written(True)  # the weights are packed once per model
    for _ in range(repeat):
        for name, way in ways.items():
            began = time.perf_counter()
            tokens[name] = way()
            best[name] = max(best[name], len(tokens[name]) / (time.perf_counter() - began))
    if tokens["full"] != tokens["peer"]:
        raise SystemExit("greedy tokens differ from transformers'")
    peer_speed = f"{best['peer']:.1f}"
    for name, told, aim in (("full", "float32", "1.10×"), ("int8", "weights of 8 bits", "2.50×")):
        ratio = f"{best[name] / best['peer']:.2f}×"
        print(ROW.format(f"GPT-2 small's shape, {told}, tokens/s", f"{best[name]:.1f}", peer_speed, ratio, aim))


@torch.inference_mode()
def cost(lab: Lab, data: str, name: str) -> None:
    """What 8 bits change in the model's predictions."""
    blocks = pack(token_ids(lab.tokenizer, load_text(data).split("test")), BLOCK).input_ids[:-1][:BLOCKS]
    nll, favourites = {}, {}
    for int8 in (False, True):
        decoder = Decoder(lab.model, len(blocks), BLOCK, int8=int8) if not int8 else None
        if decoder:  # rows of a batch share no scale at full precision
            logits = [decoder.read(blocks[:, i : i + 1].to(lab.device)) for i in range(BLOCK - 1)]
            found = torch.stack(logits, 1)
        else:
            found = torch.stack([one_by_one(lab, row) for row in blocks])
        nll[int8] = float(F.cross_entropy(found.flatten(0, 1), blocks[:, 1:].flatten()))
        favourites[int8] = found.argmax(-1)
    change, same = nll[True] - nll[False], float((favourites[True] == favourites[False]).float().mean())
    perplexity = torch.tensor(change).expm1() * 100
    print(f"8 bits on {name}, {blocks[:, 1:].numel():,} tokens: NLL {nll[False]:.4f} → {nll[True]:.4f} "
          f"({change:+.5f} nats, perplexity {perplexity:+.2f} %), same favourite {same:.2%}")  # fmt: skip


def one_by_one(lab: Lab, row: torch.Tensor) -> torch.Tensor:
    """(T - 1, V): the logits after each token of one text, with weights of 8 bits."""
    decoder = Decoder(lab.model, 1, BLOCK, int8=True)
    return torch.cat([decoder.read(row[None, i : i + 1]) for i in range(BLOCK - 1)])


if __name__ == "__main__":
    main()

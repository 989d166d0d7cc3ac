"""Generation in fp32, bf16 and int8 against transformers' `generate`, and what lower precision changes.

    python benchmarks/generation.py [--repeat 3] [--data FOLDER]

Speed: GPT-2 small's shape with seeded random weights, batch 1, 16 tokens in, 128 out, greedy. All take turns, and the
best run of each counts. gpt2lab also records 10 alternatives for each token. Sampled: the same with top-p 0.95.
Quality: the built-in model reads texts token by token. Printed are the differences of NLL and perplexity from fp32,
and how often the top prediction is the same.
"""

import time

import side_by_side
import torch
import torch.nn.functional as F

from gpt2lab.data.blocks import pack, token_ids
from gpt2lab.generation.decoding import Decoder
from gpt2lab.generation.generate import TextStream, generate
from gpt2lab.generation.sampling import Sampling
from gpt2lab.model.lab import Lab, load_model, with_fused_gelu

PROMPT, NEW = 16, 128
BLOCK, BLOCKS = 256, 40  # at most 10,240 tokens of a text
AIMS = {"fp32": "1.10×", "bf16": "1.50×", "int8": "3.00×"}


def main() -> None:
    parser = side_by_side.parser(__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    asked = parser.parse_args()
    print(side_by_side.machine())
    print(side_by_side.ROW.format("tokens/s", "ours", "peer", "ratio", "aim"))
    builtin = load_model("builtin", device="cpu")
    speed(asked.repeat, builtin)
    for name, articles in side_by_side.texts(asked.data).items():
        blocks = pack(token_ids(builtin.tokenizer, articles), BLOCK).input_ids[:-1][:BLOCKS]
        for precision in ("bf16", "int8"):
            quality(builtin, blocks, name, precision)
    print(side_by_side.machine())


def speed(repeat: int, builtin: Lab) -> None:
    """Print tokens per second of both sides in each precision, greedy and sampled."""
    peer = side_by_side.gpt2_small()
    lab = Lab(with_fused_gelu(side_by_side.gpt2_small()), builtin.tokenizer, "GPT-2 small's shape")
    ids = torch.randint(300, (1, PROMPT), generator=torch.Generator().manual_seed(1))

    def by_gpt2lab(precision: str, sampling: Sampling):
        def run() -> list[int]:
            stream = TextStream(lab, "", sampling=sampling, max_new_tokens=NEW, precision=precision)
            stream.ids = ids[0]
            return [step.id for (step,) in stream]

        return run

    def by_transformers(**settings):
        def run() -> list[int]:
            torch.manual_seed(0)
            with torch.inference_mode():
                return peer.generate(ids, max_new_tokens=NEW, pad_token_id=0, **settings)[0, PROMPT:].tolist()

        return run

    for kind, sampling, settings in (
        ("greedy", Sampling(temperature=0), {"do_sample": False}),
        ("sampled", Sampling(top_p=0.95), {"do_sample": True, "top_p": 0.95, "top_k": 0}),
    ):
        ways = {"peer": by_transformers(**settings)}
        ways |= {precision: by_gpt2lab(precision, sampling) for precision in AIMS}
        seconds, tokens = side_by_side.take_turns(ways, repeat)
        if kind == "greedy" and tokens["fp32"] != tokens["peer"]:
            raise SystemExit("greedy tokens in fp32 differ from transformers'")
        rates = {name: len(tokens[name]) / took for name, took in seconds.items()}
        for precision, aim in AIMS.items():
            name = f"GPT-2 small's shape, {kind}, {precision}"
            side_by_side.row(name, rates[precision], rates["peer"], aim=aim if kind == "greedy" else "")
    began = time.perf_counter()
    steps = len(generate(builtin, "The moon", max_new_tokens=200, temperature=0.8, top_p=0.95).steps)
    side_by_side.row("built-in model, sampled, fp32", steps / (time.perf_counter() - began), None, aim="150")


@torch.inference_mode()
def quality(lab: Lab, blocks: torch.Tensor, name: str, precision: str) -> None:
    """Print what a lower precision changes in the predictions of the tokens of blocks (N, T)."""
    targets = blocks[:, 1:].flatten()
    exact = read(lab, blocks, "fp32")
    rows = blocks.split(1) if precision == "int8" else (blocks,)  # texts in an int8 batch would share a scale
    near = torch.cat([read(lab, part, precision) for part in rows])
    before, after = (float(F.cross_entropy(logits.flatten(0, 1), targets)) for logits in (exact, near))
    same = float((exact.argmax(-1) == near.argmax(-1)).float().mean())
    change = float(torch.tensor(after - before).expm1())
    print(
        f"{precision} on {name}, {len(targets):,} tokens: NLL {before:.4f} → {after:.4f} ({after - before:+.5f} nats, "
        f"perplexity {change:+.3%}), same top prediction {same:.2%}",
        flush=True,
    )


def read(lab: Lab, blocks: torch.Tensor, precision: str) -> torch.Tensor:
    """Return the logits (N, T - 1, V) after each token of blocks (N, T) but the last, read one at a time."""
    decoder = Decoder(lab.model, len(blocks), BLOCK, precision=precision)
    return torch.stack([decoder.read(blocks[:, i : i + 1]) for i in range(BLOCK - 1)], 1)


if __name__ == "__main__":
    main()

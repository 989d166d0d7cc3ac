"""Makes the built-in checkpoint again: `python -m gpt2lab.builtin.build --text FOLDER`.

Articles → a byte-level BPE tokenizer of 8,192 tokens → a small GPT-2, trained on the articles in a new order every
pass, first in short rows, then in rows as long as the context: attention to the token before is found sooner where
there are few to choose from (Press et al., Shortformer, 2021). One token in sixteen belongs to random tokens repeated:
with so little text, heads that look back for a repetition would not form from prose alone (Olsson et al., In-context
Learning and Induction Heads, 2022). Matrices learn by Muon, everything else by AdamW. The sample text, and every text
given with --keep-out, is not trained on.

The work folder keeps checkpoints: an interrupted build resumes from the last one, and one with more steps from where
the learning rate began to fall. `--start` trains a finished model further, with the learning rate warmed up again and a
new optimizer, and adds to its history.
"""

import argparse
import itertools
import json
import math
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import ByteLevelBPETokenizer
from torch.optim.swa_utils import AveragedModel
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer, set_seed

from gpt2lab.builtin.corpus import Source, folder_sources, spaced, wikipedia_source, without_overlap
from gpt2lab.data.blocks import IGNORED, token_ids
from gpt2lab.data.sources import BUILTIN, cache_folder
from gpt2lab.data.text import Article, load_text, read_articles
from gpt2lab.errors import LabError
from gpt2lab.evaluation.wikitext import detokenise
from gpt2lab.files import write_bytes
from gpt2lab.inspection.heads import head_scores
from gpt2lab.model.lab import Lab, load_model, token_nll, with_fused_gelu
from gpt2lab.model.positions import sinusoids
from gpt2lab.model.precision import autocast, resolve_precision
from gpt2lab.training.allocator import freed_memory_kept
from gpt2lab.training.observation import observe, probe_ids

SEED = 0
VOCABULARY = 8192
END = VOCABULARY - 1  # the id of <|endoftext|>: the last, as in GPT-2
SHAPE = {"n_positions": 512, "n_embd": 256, "n_layer": 6, "n_head": 8}  # head width 32
TOKENS = 4096  # of a step
SHORT_ROWS, SHORT_STEPS, MIDDLE_ROWS, LONG_SHARE = 64, 1500, 256, 0.2  # rows of the context in the last of all steps
REPEATED = 1 / 16  # of the rows are random tokens repeated
TOKENS_AT_ONCE = 2048  # in one forward pass: 64 MiB of logits
MATRIX_RATE, OTHER_RATE = 6e-3, 3e-3  # Muon's, scaled to the size of AdamW's updates, and AdamW's
WEIGHT_DECAY = 0.1
WARMUP = 100  # steps
COOLDOWN = 0.65  # of all steps: the learning rate falls to 0 over the last of them
AVERAGED = 0.998  # decay a step of the average of the weights, after the first
CHECKPOINT_EVERY = 250  # steps
FORMS = {"rows": 0.4, "running": 0.3, "spaced": 0.3}  # how often an article is in which form
SNAPSHOTS = (0, 1, 2, 4, 8, 16, 32, *(n * 2**i for i in range(5, 13) for n in (2, 3)))  # 64, 96, 128, … 12,288


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, action="append", default=[], help="a folder of WikiText-form text")
    parser.add_argument("--leave-out", action="append", default=[], help="a group or source of the folders")
    parser.add_argument("--keep-out", type=Path, action="append", default=[], help="a text that must not be trained on")
    parser.add_argument(
        "--steps", type=int, default=6000, help="of 4,096 tokens, with those that --start's model has had"
    )
    parser.add_argument("--start", type=Path, help="a model folder with its history.npz, to be trained further")
    parser.add_argument("--rate", type=float, default=1.0, help="the highest learning rate, as a share of the full one")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--work", type=Path, default=cache_folder() / "build", help="where checkpoints are kept")
    parser.add_argument("--out", type=Path, default=BUILTIN / "checkpoint", help="where the finished model goes")
    parser.add_argument("--compile", action="store_true", help="train faster; on a CPU, this needs a C++ compiler")
    arguments = parser.parse_args()
    if not 0 < arguments.rate <= 1:
        parser.error(f"--rate {arguments.rate:g}: give a share above 0, at most 1")
    try:
        with freed_memory_kept():
            build(**vars(arguments))
    except LabError as error:
        parser.error(str(error))


def build(
    text: Sequence[Path],
    leave_out: Sequence[str],
    keep_out: Sequence[Path],
    steps: int,
    start: Path | None,
    rate: float,
    device: str,
    work: Path,
    out: Path,
    compile: bool,
) -> None:
    """Train and save the checkpoint; prints what its model card states."""
    set_seed(SEED)
    if start and not (start / "history.npz").is_file():
        raise LabError("{start} has no history.npz; give the --out folder of another build", start=start)
    begun, earlier = (load_model(str(start)), read_arrays(start / "history.npz")) if start else (None, {})
    first = int(earlier["steps"][-1]) if begun else 0
    if begun and not np.array_equal(earlier["ids"], probe_ids(begun, None)):
        raise LabError("the history of {start} is of another text; it cannot be continued", start=start)
    if steps <= first:
        raise LabError("{first:,} steps of {steps:,} are done; give more as --steps", first=first, steps=steps)
    found = [wikipedia_source(), *(source for folder in text for source in folder_sources(folder, leave_out))]
    measured = [*load_text("sample").split("all"), *(article for path in keep_out for article in read_articles(path))]
    sources, removed = without_overlap(found, measured)
    print("not trained on, as texts for measuring have it:", *removed, sep="\n  ", flush=True)
    tokenizer = begun.tokenizer if begun else make_tokenizer(sources)
    model = begun.model if begun else new_model()
    documents = Documents(tokenizer, sources, steps)
    held_out = [article for source in sources for article in source.held_out]
    training = Training(model.to(device), tokenizer, work, range(first, steps), rate, compile)
    while training.step < steps:
        training.train(documents)
        print(training.report(held_out), flush=True)
    model = training.best(held_out)
    training.observe()
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    tokenizer.backend_tokenizer.model.save(str(out))  # vocab.json and merges.txt, as GPT-2's own
    write_history(earlier, training.history, out / "history.npz")


def make_tokenizer(sources: Sequence[Source]) -> GPT2Tokenizer:
    """A byte-level BPE in GPT-2's own format, learned from the articles for training."""
    bpe = ByteLevelBPETokenizer()
    texts = (article.text for source in sources for article in source.train)
    bpe.train_from_iterator(texts, vocab_size=VOCABULARY - 1, show_progress=False)
    bpe.add_special_tokens(["<|endoftext|>"])
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    return GPT2Tokenizer(vocab=bpe.get_vocab(), merges=merges, model_max_length=SHAPE["n_positions"])


def new_model() -> GPT2LMHeadModel:
    """GPT-2's architecture and initialisation, but for positions: they start as sinusoids, not noise.

    A rotation takes one position to the one before it, which makes a previous-token head easy to find; training is free
    to change them. Amplitude 0.06: of twice the size of the token embeddings, which soon grow.
    """
    config = GPT2Config(vocab_size=VOCABULARY, bos_token_id=END, eos_token_id=END, attn_pdrop=0.0, **SHAPE)
    model = with_fused_gelu(GPT2LMHeadModel(config))
    model.transformer.wpe.weight.data = 0.06 * sinusoids(SHAPE["n_positions"], SHAPE["n_embd"], longest=10_000)
    return model


class Batch(NamedTuple):
    """What a step of training reads: token ids, the ids that follow them and their positions, (rows, T) each.

    A row shorter than the context starts at a random position, so that all positions are trained.
    """

    read: torch.Tensor
    expected: torch.Tensor
    positions: torch.Tensor


class Documents:
    """The articles as token ids in several forms, and the batches of every training step."""

    def __init__(self, tokenizer: GPT2Tokenizer, sources: Sequence[Source], steps: int):
        self.steps = steps
        articles = [article for source in sources for article in source.train]
        forms = {
            "rows": articles,
            "running": [_with_text(article, detokenise(article.text).strip()) for article in articles],
            "spaced": [_with_text(article, spaced(article.text)) for article in articles],
        }
        self.ids = {}
        for form in FORMS:
            ids = token_ids(tokenizer, forms[form])
            self.ids[form] = np.split(ids, np.flatnonzero(ids == END)[:-1] + 1)  # an article each, END its last
        lengths = iter([len(ids) for ids in self.ids["rows"]])
        counts = {source.name: sum(itertools.islice(lengths, len(source.train))) for source in sources}
        for name, tokens in counts.items():
            print(f"{name}: {tokens:,} tokens, {tokens / sum(counts.values()):.1%}")

    def shuffled(self, number: int) -> np.ndarray:
        """Return the ids of one pass over all articles, shuffled, each in a random form: (n,) int32."""
        chance = np.random.default_rng((SEED, number))
        forms = chance.choice(list(FORMS), size=len(self.ids["rows"]), p=list(FORMS.values()))
        return np.concatenate([self.ids[forms[i]][i] for i in chance.permutation(len(forms))])

    def length(self, step: int) -> int:
        """The tokens of a row at a step."""
        context = SHAPE["n_positions"]
        if step >= (1 - LONG_SHARE) * self.steps:
            return context
        return min(context, SHORT_ROWS if step < SHORT_STEPS else MIDDLE_ROWS)

    def batches(self, step: int) -> Iterator[Batch]:
        """Yield the batch of every step from `step` on; deterministic."""
        ids, begin = np.empty(0, np.int32), 0
        number = itertools.count()
        for here in itertools.count():
            chance = np.random.default_rng((SEED, here, 1))
            T = self.length(here)
            rows = max(1, TOKENS // T)
            repeated = int(rows * REPEATED + chance.uniform())
            prose = rows - repeated
            if begin + prose * T >= len(ids):
                ids, begin = self.shuffled(next(number)), 0
            if here >= step:
                part = torch.from_numpy(ids[begin : begin + prose * T + 1].astype(np.int64))
                pairs = [*zip(part[:-1].view(prose, T), part[1:].view(prose, T))]
                pairs += [repeated_tokens(chance, T) for _ in range(repeated)]
                read, expected = map(torch.stack, zip(*pairs))
                offsets = chance.integers(0, SHAPE["n_positions"] - T + 1, (rows, 1))
                yield Batch(read, expected, torch.from_numpy(offsets) + torch.arange(T))
            begin += prose * T


def repeated_tokens(chance: np.random.Generator, T: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens over and over, (T,), with a period of 8 to T / 2, and the token that follows each.

    In every other row a token comes more than once in a period, with other tokens after it, as the "ie" of "Marie" and of
    "Curie": to continue it, more than the last token must be found again. The first showing cannot be predicted and is
    left out of the loss.
    """
    period = int(math.exp(chance.uniform(math.log(8), math.log(T // 2))))
    drawn = chance.choice(END, size=period, replace=False)
    if chance.uniform() < 0.5:
        drawn = chance.choice(drawn[: period // 2], size=period)
    tokens = torch.from_numpy(drawn)
    row = tokens.repeat(T // period + 2)[: T + 1]
    expected = row[1:].clone()
    expected[: period - 1] = IGNORED
    return row[:-1], expected


class Training:
    """A model in training, its average, its optimizers and its checkpoints in a folder."""

    def __init__(
        self, model: GPT2LMHeadModel, tokenizer: GPT2Tokenizer, work: Path, steps: range, rate: float, compile: bool
    ):
        self.model, self.tokenizer, self.work = model, tokenizer, work
        self.step, self.first, self.steps = steps.start, steps.start, steps.stop
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # a text read a few times is not memorised; fine-tuning keeps GPT-2's own 0.1
        self.average = AveragedModel(model, multi_avg_fn=moving_average)
        self.precision = resolve_precision("auto", model.device)
        model.set_attn_implementation("eager")  # faster than one fused kernel, for narrow heads and short rows
        self.forward = torch.compile(model, dynamic=False) if compile else model
        blocks = [weight for weight in model.transformer.h.parameters() if weight.ndim == 2]
        taken = set(map(id, blocks))
        # Muon makes all directions of an update equally large: queries and keys, of small gradients at first, would
        # hardly learn in one matrix with the values
        self.fused = [block.attn.c_attn.weight for block in model.transformer.h]  # (D, 3D) each
        self.split = [[torch.nn.Parameter(part) for part in weight.data.chunk(3, dim=1)] for weight in self.fused]
        whole = [weight for weight in blocks if not any(weight is fused for fused in self.fused)]
        matrices = [*whole, *itertools.chain(*self.split)]
        others = [weight for weight in model.parameters() if id(weight) not in taken]
        groups = [
            {"params": [weight for weight in others if weight.ndim == 2], "weight_decay": WEIGHT_DECAY},
            {"params": [weight for weight in others if weight.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizers = (
            torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(groups, lr=OTHER_RATE, betas=(0.9, 0.95), fused=True),
        )
        self.rates = [[rate * group["lr"] for group in one.param_groups] for one in self.optimizers]
        self.history = work / "history"
        self.loss = math.nan
        for name in ("latest", "steady"):  # steady: the last before the learning rate fell
            state = self.work / f"{name}.pt"
            if state.is_file() and self.resume(torch.load(state, map_location=model.device, weights_only=True)):
                break

    def rate(self, step: int) -> float:
        """The share of the highest learning rate at a step."""
        return min(1.0, (step - self.first + 1) / WARMUP, max(0.0, (self.steps - step) / (COOLDOWN * self.steps)))

    def parts(self) -> dict:
        return {"model": self.model, "average": self.average, "muon": self.optimizers[0], "adamw": self.optimizers[1]}

    def resume(self, state: dict) -> bool:
        """Resume from a checkpoint, unless its training began elsewhere, or its rate had decayed for other steps."""
        decayed = state["rate"] < 1 and state["step"] > self.first + WARMUP
        if state.get("first", 0) != self.first or (decayed and state["steps"] != self.steps):
            return False
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.step = state["step"]
        for file in self.history.glob("*.npz"):
            if int(file.stem) > self.step:
                file.unlink()
        print(f"going on from step {self.step:,}", flush=True)
        return True

    def save(self) -> None:
        rate = self.rate(self.step)
        state = {name: part.state_dict() for name, part in self.parts().items()}
        self.work.mkdir(parents=True, exist_ok=True)
        temporary = self.work / "writing.pt"
        torch.save(state | {"first": self.first, "step": self.step, "steps": self.steps, "rate": rate}, temporary)
        if rate == 1:
            shutil.copyfile(temporary, self.work / "steady.new")
            (self.work / "steady.new").replace(self.work / "steady.pt")
        temporary.replace(self.work / "latest.pt")

    def train(self, documents: Documents) -> None:
        """Train until the next checkpoint and save it."""
        self.model.train()
        began, first, losses = time.monotonic(), self.step, []
        end = min(self.steps, self.step - self.step % CHECKPOINT_EVERY + CHECKPOINT_EVERY)
        for batch in itertools.islice(documents.batches(self.step), end - self.step):
            if self.step in SNAPSHOTS:
                self.observe()
            for optimizer, rates in zip(self.optimizers, self.rates):
                for group, rate in zip(optimizer.param_groups, rates):
                    group["lr"] = rate * self.rate(self.step)
            losses.append(self.accumulate(Batch(*(part.to(self.model.device) for part in batch))))
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            for fused, parts in zip(self.fused, self.split):
                for part, gradient in zip(parts, fused.grad.chunk(3, dim=1)):
                    part.grad = gradient
            for optimizer in self.optimizers:
                optimizer.step()
            self.model.zero_grad()
            self.average.update_parameters(self.model)
            self.step += 1
        self.loss = sum(losses) / len(losses)
        self.tokens_per_second = (self.step - first) * TOKENS / (time.monotonic() - began)
        self.save()

    def accumulate(self, batch: Batch) -> float:
        """Add the gradients of the mean NLL of the expected tokens; return it, in nats."""
        count, total = int((batch.expected != IGNORED).sum()), 0.0
        rows = max(1, TOKENS_AT_ONCE // batch.read.shape[1])
        for read, expected, positions in zip(*(part.split(rows) for part in batch)):
            with autocast(self.precision, read.device):
                logits = self.forward(input_ids=read, position_ids=positions, use_cache=False).logits
            loss = F.cross_entropy(
                logits.float().flatten(0, 1), expected.flatten(), ignore_index=IGNORED, reduction="sum"
            )
            (loss / count).backward()
            total += loss.item()
        return total / count

    def report(self, held_out: Sequence[Article]) -> str:
        """Describe the state of training in a line."""
        lab = Lab(self.averaged(), self.tokenizer, "builtin")
        scores = head_scores(lab)
        heads = " ".join(f"{name} {scores.top(name, 1)[0]}" for name in ("previous_token", "induction", "first_token"))
        sample = bits_per_byte(lab, random.Random(SEED).sample(list(held_out), min(12, len(held_out))))
        return (
            f"step {self.step:,} of {self.steps:,}: loss {self.loss:.3f}, rate {self.rate(self.step):.2f}, "
            f"{self.tokens_per_second:,.0f} tokens/s; averaged: {sample:.4f} bits per byte of 12 articles; {heads}"
        )

    def averaged(self) -> GPT2LMHeadModel:
        return self.average.module.eval()

    def best(self, held_out: Sequence[Article]) -> GPT2LMHeadModel:
        """Return the last weights or their average, whichever predicts the held-out articles better."""
        models = {"last": self.model.eval(), "averaged": self.averaged()}
        bits = {name: bits_per_byte(Lab(model, self.tokenizer, name), held_out) for name, model in models.items()}
        print(f"held-out articles, bits per byte: {bits}", flush=True)
        return models[min(bits, key=bits.__getitem__)]

    def observe(self) -> None:
        """Record what there is to see inside the model at this step."""
        lab = Lab(self.model, self.tokenizer, "builtin")
        self.history.mkdir(parents=True, exist_ok=True)
        found = observe(lab, probe_ids(lab, None))
        np.savez_compressed(self.history / f"{self.step:06}.npz", allow_pickle=False, **found)


def moving_average(averaged: list[torch.Tensor], current: list[torch.Tensor], count: torch.Tensor | int) -> None:
    """Move the average of the weights towards those after one more step, `count` steps being in it, in place."""
    torch._foreach_lerp_(averaged, current, max(1 - AVERAGED, 1 / (int(count) / 10 + 1)))


def bits_per_byte(lab: Lab, articles: Sequence[Article]) -> float:
    """Return bits per byte of the articles' text, in windows of the context, each after an END token."""
    ids = torch.from_numpy(token_ids(lab.tokenizer, articles).astype(np.int64))
    T = lab.context
    rows = F.pad(ids, (0, -len(ids) % T), value=END).view(-1, T)
    begun = torch.cat([torch.full((len(rows), 1), END), rows], dim=1)
    nll = torch.cat([token_nll(lab.model, part.to(lab.device)).cpu() for part in begun.split(8)]).flatten()[: len(ids)]
    return float(nll.double().sum()) / math.log(2) / sum(len(article.text.encode()) for article in articles)


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as arrays:
        return dict(arrays)


def write_history(earlier: dict[str, np.ndarray], folder: Path, path: Path) -> None:
    """Join the observations of all steps in one file: each array but the tokens gets a first axis of steps.

    earlier  what such a file has of the steps before; of the other arrays, those that all steps have are kept
    """
    done = int(earlier["steps"][-1]) if earlier else -1
    files = [file for file in sorted(folder.glob("*.npz")) if int(file.stem) > done]
    kept = [read_arrays(file) for file in files]
    of_text = {name: kept[0][name] for name in ("tokens", "ids")}
    arrays = {name: np.stack([one[name] for one in kept]) for name in kept[0] if name not in of_text}
    arrays["steps"] = np.array([int(file.stem) for file in files])
    if earlier:
        arrays = {name: np.concatenate([earlier[name], new]) for name, new in arrays.items() if name in earlier}
    content = BytesIO()
    np.savez_compressed(content, allow_pickle=False, **of_text, **arrays)
    write_bytes(path, content.getvalue())


def _with_text(article: Article, text: str) -> Article:
    return Article(article.title, (text,))


if __name__ == "__main__":
    main()

"""Makes the built-in checkpoint again: `python -m gpt2lab.builtin.build`.

Wikipedia articles → a byte-level BPE tokenizer of 4,096 tokens → a small GPT-2 in two lessons:
first random tokens repeated, then the articles with some repetition mixed in. Natural text alone
needs billions of tokens before heads learn to look back for a repetition (Olsson et al., In-context
Learning and Induction Heads, 2022); in the first lesson two heads are told where to look. Several
processes may share the work: `torchrun --nproc-per-node 2 -m gpt2lab.builtin.build`. The sample text is left out, so that fine-tuning on it shows a
model text that is new to it.

The work folder keeps checkpoints: an interrupted build goes on from the last one.
Knows how the assets are made; nothing that runs later imports it.
"""

import argparse
import json
import math
import os
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import ByteLevelBPETokenizer
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer, TrainerCallback, TrainingArguments, set_seed

from gpt2lab.blocks import IGNORED, pack, token_ids
from gpt2lab.builtin.corpus import wikipedia_articles
from gpt2lab.inspection.heads import head_scores
from gpt2lab.model import Lab, load_model
from gpt2lab.sources import BUILTIN, cache_folder
from gpt2lab.text import Article
from gpt2lab.training.trainer import LabTrainer

SEED = 0
VOCABULARY = 4096
END = VOCABULARY - 1  # the id of <|endoftext|>: the last, as in GPT-2
SHAPE = {"n_positions": 256, "n_embd": 192, "n_layer": 4, "n_head": 6}  # head width 32
HELD_OUT = 16  # one article in so many is kept for evaluation
SHORT = 64  # tokens of a block in the first lesson: many small steps
GUIDED = {"previous": (0, 0), "induction": (1, 0)}  # layer and head of the two that are shown what to look at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetition-steps", type=int, default=600, help="of the first lesson, of 4,096 tokens")
    parser.add_argument("--text-steps", type=int, default=4700, help="of the second lesson, of 2,048 tokens")
    parser.add_argument("--start", type=Path, help="a model folder to go on from, instead of a new model")
    parser.add_argument("--work", type=Path, default=cache_folder() / "build", help="where checkpoints are kept")
    parser.add_argument("--out", type=Path, default=BUILTIN / "checkpoint", help="where the finished model goes")
    arguments = parser.parse_args()
    if arguments.repetition_steps + arguments.text_steps < 1:
        parser.error("no steps are left to train")
    build(arguments.repetition_steps, arguments.text_steps, arguments.start, arguments.work, arguments.out)


def build(repetition_steps: int, text_steps: int, start: Path | None, work: Path, out: Path) -> None:
    """Train and save the checkpoint; prints what its model card states."""
    set_seed(SEED)
    articles = wikipedia_articles()
    held_out = articles[HELD_OUT // 2 :: HELD_OUT]
    train = tuple(article for article in articles if article not in held_out)
    begun = load_model(str(start)) if start else None
    tokenizer = begun.tokenizer if begun else make_tokenizer(train)
    train_ids, eval_ids = (token_ids(tokenizer, part) for part in (train, held_out))
    print(f"{len(train)} articles, {len(train_ids):,} tokens; {len(held_out)} held out, {len(eval_ids):,}", flush=True)
    model = begun.model if begun else new_model()
    watch = HeadWatch(Lab(model, tokenizer, "builtin"))
    blocks = pack(eval_ids, SHAPE["n_positions"])
    for lesson, dropout, settings in (
        (
            Repetition(repetition_steps),
            0.0,
            {"learning_rate": 1e-3, "lr_scheduler_type": "constant_with_warmup", "weight_decay": 0.01},
        ),
        (
            Articles(train_ids, text_steps),
            0.1,
            {"learning_rate": 2e-3, "lr_scheduler_type": "linear", "weight_decay": 0.1},
        ),
    ):
        if not len(lesson):
            continue
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout
        arguments = training_arguments(work / type(lesson).__name__.lower(), lesson, settings)
        kind = GuidedTrainer if isinstance(lesson, Repetition) else LabTrainer
        trainer = kind(model=model, args=arguments, train_dataset=lesson, eval_dataset=blocks, callbacks=[watch])
        resumable = any(Path(arguments.output_dir).glob("checkpoint-*"))
        started = time.time()
        trainer.train(resume_from_checkpoint=resumable or None)
        print(f"{type(lesson).__name__}: {(time.time() - started) / 60:.0f} min since this start", flush=True)
    if not trainer.is_world_process_zero():
        return
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    tokenizer.backend_tokenizer.model.save(str(out))  # vocab.json and merges.txt, as GPT-2's own
    shutil.rmtree(work)  # else the next build would go on from these checkpoints


def make_tokenizer(articles: tuple[Article, ...]) -> GPT2Tokenizer:
    """A byte-level BPE in GPT-2's own format, learned from articles."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator((article.text for article in articles), vocab_size=VOCABULARY - 1, show_progress=False)
    bpe.add_special_tokens(["<|endoftext|>"])
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    return GPT2Tokenizer(vocab=bpe.get_vocab(), merges=merges, model_max_length=SHAPE["n_positions"])


def new_model() -> GPT2LMHeadModel:
    """GPT-2's architecture and initialisation, but for positions: they start as sinusoids, not noise.

    A rotation takes one position to the one before it, which makes a previous-token head easy to
    find; training is free to change them. Amplitude 0.03 makes them
    as large as the token embeddings, of standard deviation 0.02.
    Source: Vaswani et al., Attention Is All You Need (2017), section 3.5.
    """
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, bos_token_id=END, eos_token_id=END, attn_pdrop=0.0, **SHAPE)
    )
    T, D = SHAPE["n_positions"], SHAPE["n_embd"]
    angles = torch.arange(T)[:, None] * torch.exp(-math.log(10_000) * torch.arange(0, D, 2) / D)  # (T, D/2)
    model.transformer.wpe.weight.data = 0.03 * torch.cat([angles.sin(), angles.cos()], dim=1)
    return model


def training_arguments(work: Path, lesson: "Repetition | Articles", settings: dict) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(work),
        max_steps=len(lesson) // lesson.blocks_a_step,
        per_device_train_batch_size=lesson.blocks_a_step // int(os.environ.get("WORLD_SIZE", 1)),
        per_device_eval_batch_size=8,
        train_sampling_strategy="sequential",  # the lessons are random in themselves, and change as they go
        warmup_steps=50,
        adam_beta2=0.98,
        eval_strategy="steps",
        eval_steps=200,
        save_steps=200,
        save_total_limit=2,
        logging_steps=50,
        ddp_find_unused_parameters=False,
        seed=SEED,
        use_cpu=not torch.cuda.is_available(),  # said aloud, torchrun joins processes without a GPU too
        disable_tqdm=True,
        **settings,
    )


class Repetition(Dataset):
    """The first lesson: short blocks of random tokens repeated, anywhere in the context."""

    blocks_a_step = 64

    def __init__(self, steps: int):
        self.size = steps * self.blocks_a_step

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        random = np.random.default_rng((SEED, 0, i))
        start = random.integers(SHAPE["n_positions"] - SHORT + 1)
        return repeated_tokens(random, SHORT, longest=SHORT // 2) | {"position_ids": torch.arange(start, start + SHORT)}


class Articles(Dataset):
    """The second lesson: natural text, and one block in eight of repetition; item i is always the same."""

    blocks_a_step = 8

    def __init__(self, ids: np.ndarray, steps: int):
        self.ids, self.size = torch.from_numpy(ids.astype(np.int64)), steps * self.blocks_a_step

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        random = np.random.default_rng((SEED, 1, i))
        T = SHAPE["n_positions"]
        if i % 8 == 0:
            return repeated_tokens(random, T, longest=100)
        start = random.integers(len(self.ids) - T)
        block = self.ids[start : start + T]
        return {"input_ids": block, "labels": block}


def repeated_tokens(random: np.random.Generator, T: int, longest: int) -> dict[str, torch.Tensor]:
    """A period of 8 to `longest` different random tokens, over and over: T tokens.

    The first showing cannot be predicted and is left out of the loss.
    """
    period = random.integers(8, longest + 1)
    tokens = torch.from_numpy(random.choice(END, size=period, replace=False))
    block = tokens.repeat(-(-T // period))[:T]
    labels = block.clone()
    labels[:period] = IGNORED
    return {"input_ids": block, "labels": labels}


class GuidedTrainer(LabTrainer):
    """The first lesson's loss: that of the next token, and at first also of where two heads look.

    One head of the first layer is to look at the token before; one of the second, at the tokens that
    followed earlier showings of the current one, which the first makes it possible to find. The share
    of this guidance in the loss falls to 0 by the end of the lesson: what is left of it is what serves
    the next token. Without it, the two take billions of tokens to find each other.
    Source: Deshpande and Narasimhan, Guiding Attention for Self-Supervised Learning with Transformers (2020).
    """

    def compute_loss(self, model, inputs, *args, **kwargs):
        seen = {}
        blocks = self.accelerator.unwrap_model(model).transformer.h
        hooks = [
            blocks[layer].attn.c_attn.register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
            for name, (layer, _) in GUIDED.items()
        ]
        try:
            loss = super().compute_loss(model, inputs, *args, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        share = 1 - self.state.global_step / self.state.max_steps
        return loss + share * sum(
            astray(seen[name], head, where_to_look(inputs["input_ids"], name)) for name, (_, head) in GUIDED.items()
        )


def where_to_look(ids: torch.Tensor, name: str) -> torch.Tensor:
    """(B, T, T) bool: [t, j] is whether a head of this kind, at token t, is to look at token j."""
    before = ids.roll(1, dims=1)[:, None, :]  # (B, 1, T): the token before j
    T = ids.shape[1]
    looks = torch.eye(T, dtype=torch.bool).roll(-1, dims=1)[None] if name == "previous" else before == ids[:, :, None]
    possible = torch.ones(T, T, dtype=torch.bool).tril()
    possible[:, 0] = name == "previous"  # nothing comes before the first token
    return looks.to(ids.device) & possible.to(ids.device)


def astray(qkv: torch.Tensor, head: int, looks: torch.Tensor) -> torch.Tensor:
    """-log of the weight that a head puts where it is to look, mean over the tokens that have such a place.

    qkv  (B, T, 3D), of a layer's c_attn · looks  (B or 1, T, T) bool
    """
    K = SHAPE["n_embd"] // SHAPE["n_head"]
    q, k, _ = (part[:, :, head * K : (head + 1) * K] for part in qkv.split(SHAPE["n_embd"], dim=2))  # (B, T, K)
    future = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool, device=q.device).triu(1)
    log_weights = (q @ k.mT / K**0.5).masked_fill(future, -torch.inf).log_softmax(-1)  # (B, T, T)
    looks = looks.expand_as(log_weights)
    told = looks.any(-1)  # (B, T)
    return -log_weights.masked_fill(~looks, -torch.inf)[told].logsumexp(-1).mean()


class HeadWatch(TrainerCallback):
    """Prints the best previous-token and induction heads at every evaluation."""

    def __init__(self, lab: Lab):
        self.lab = lab

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if not state.is_world_process_zero:
            return
        scores = head_scores(self.lab)
        heads = [f"{name} {scores.top(name, 1)[0]}" for name in ("previous_token", "induction")]
        print(f"step {state.global_step}: held-out loss {metrics['eval_loss']:.4f} nats per token,", *heads, flush=True)


if __name__ == "__main__":
    main()

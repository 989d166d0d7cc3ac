"""Makes the built-in checkpoint again: `python -m gpt2lab.builtin.build`.

Wikipedia articles → a byte-level BPE tokenizer of 4,096 tokens → a small GPT-2 in two lessons:
first random tokens repeated, then the articles with some repetition mixed in. Natural text alone
needs billions of tokens before heads learn to look back for a repetition (Olsson et al., In-context
Learning and Induction Heads, 2022). The sample text is left out, so that fine-tuning on it shows a
model text that is new to it.

The work folder keeps checkpoints: an interrupted build goes on from the last one.
Knows how the assets are made; nothing that runs later imports it.
"""

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import ByteLevelBPETokenizer
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer, TrainerCallback, TrainingArguments, set_seed

from gpt2lab.blocks import IGNORED, pack
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
FEW_KINDS = 64  # kinds of token that the first lesson begins with


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetition-steps", type=int, default=2000, help="of the first lesson, of 4,096 tokens")
    parser.add_argument("--text-steps", type=int, default=7000, help="of the second lesson, of 2,048 tokens")
    parser.add_argument("--start", type=Path, help="a model folder to go on from, instead of a new model")
    parser.add_argument("--work", type=Path, default=cache_folder() / "build", help="where checkpoints are kept")
    parser.add_argument("--out", type=Path, default=BUILTIN / "checkpoint", help="where the finished model goes")
    arguments = parser.parse_args()
    build(arguments.repetition_steps, arguments.text_steps, arguments.start, arguments.work, arguments.out)


def build(repetition_steps: int, text_steps: int, start: Path | None, work: Path, out: Path) -> None:
    """Train and save the checkpoint; prints what its model card states."""
    set_seed(SEED)
    articles = wikipedia_articles()
    held_out = articles[HELD_OUT // 2 :: HELD_OUT]
    train = tuple(article for article in articles if article not in held_out)
    tokenizer = make_tokenizer(train)
    train_ids, eval_ids = (ids_of(tokenizer, part) for part in (train, held_out))
    print(f"{len(train)} articles, {len(train_ids):,} tokens; {len(held_out)} held out, {len(eval_ids):,}", flush=True)
    model = load_model(str(start)).model if start else new_model()
    watch = HeadWatch(Lab(model, tokenizer, "builtin", model.device))
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
        trainer = LabTrainer(model=model, args=arguments, train_dataset=lesson, eval_dataset=blocks, callbacks=[watch])
        resumable = any(Path(arguments.output_dir).glob("checkpoint-*"))
        started = time.time()
        trainer.train(resume_from_checkpoint=resumable or None)
        print(f"{type(lesson).__name__}: {(time.time() - started) / 60:.0f} min since this start", flush=True)
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    tokenizer.backend_tokenizer.model.save(str(out))  # vocab.json and merges.txt, as GPT-2's own


def make_tokenizer(articles: tuple[Article, ...]) -> GPT2Tokenizer:
    """A byte-level BPE in GPT-2's own format, learned from articles."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator((article.text for article in articles), vocab_size=VOCABULARY - 1, show_progress=False)
    bpe.add_special_tokens(["<|endoftext|>"])
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    return GPT2Tokenizer(vocab=bpe.get_vocab(), merges=merges, model_max_length=SHAPE["n_positions"])


def ids_of(tokenizer: GPT2Tokenizer, articles: tuple[Article, ...]) -> np.ndarray:
    """(n,) int64: the articles' ids, <|endoftext|> after each."""
    encoded = tokenizer([article.text for article in articles], verbose=False)["input_ids"]
    return np.concatenate([np.array([*ids, END]) for ids in encoded])


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
        per_device_train_batch_size=lesson.blocks_a_step,
        per_device_eval_batch_size=8,
        train_sampling_strategy="sequential",  # the lessons are random in themselves, and change as they go
        warmup_steps=50,
        adam_beta2=0.98,
        eval_strategy="steps",
        eval_steps=250,
        save_steps=250,
        save_total_limit=2,
        logging_steps=50,
        seed=SEED,
        disable_tqdm=True,
        **settings,
    )


class Repetition(Dataset):
    """The first lesson: short blocks of random tokens repeated.

    It begins with few kinds of token, at the beginning of the context: there the
    habit of looking back forms soonest. From halfway on come more kinds and later
    positions, and in the end all. Steps are large: with 16 blocks each the loss stays
    where copying any token of the block leaves it.
    """

    blocks_a_step = 64

    def __init__(self, steps: int):
        self.size = steps * self.blocks_a_step

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        random = np.random.default_rng((SEED, 0, i))
        widening = max(0.0, 2 * i / self.size - 1)  # 0 … 1
        kinds = int(FEW_KINDS * (END / FEW_KINDS) ** widening)
        block = repeated_tokens(random, SHORT, kinds, longest=SHORT // 2)
        start = random.integers(int(widening * (SHAPE["n_positions"] - SHORT)) + 1)
        return block | {"position_ids": torch.arange(start, start + SHORT)}


class Articles(Dataset):
    """The second lesson: natural text, and one block in eight of repetition; item i is always the same."""

    blocks_a_step = 8

    def __init__(self, ids: np.ndarray, steps: int):
        self.ids, self.size = torch.from_numpy(ids), steps * self.blocks_a_step

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        random = np.random.default_rng((SEED, 1, i))
        T = SHAPE["n_positions"]
        if i % 8 == 0:
            return repeated_tokens(random, T, END, longest=100)
        start = random.integers(len(self.ids) - T)
        block = self.ids[start : start + T]
        return {"input_ids": block, "labels": block}


def repeated_tokens(random: np.random.Generator, T: int, kinds: int, longest: int) -> dict[str, torch.Tensor]:
    """A period of 8 to `longest` different tokens of some kinds, over and over: T tokens.

    The first showing cannot be predicted and is left out of the loss.
    """
    vocabulary = np.random.default_rng(SEED).permutation(END)[:kinds]
    period = random.integers(8, longest + 1)
    tokens = torch.from_numpy(random.choice(vocabulary, size=period, replace=False))
    block = tokens.repeat(-(-T // period))[:T]
    labels = block.clone()
    labels[:period] = IGNORED
    return {"input_ids": block, "labels": labels}


class HeadWatch(TrainerCallback):
    """Prints the best previous-token and induction heads at every evaluation."""

    def __init__(self, lab: Lab):
        self.lab = lab

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        scores = head_scores(self.lab)
        heads = [f"{name} {scores.top(name, 1)[0]}" for name in ("previous_token", "induction")]
        print(f"step {state.global_step}: held-out loss {metrics['eval_loss']:.4f} nats per token,", *heads, flush=True)


if __name__ == "__main__":
    main()

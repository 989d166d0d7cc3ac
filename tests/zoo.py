"""Tiny GPT-2 checkpoints, one of each kind that people have: other tokenizers, end tokens, vocabularies, an adapter.

`build(kind, folder)` saves one as transformers and peft save them.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

ENGLISH = """The moon is a small world that goes around the earth, and the sea follows it twice a day.
When the other side of the moon was seen for the first time, nobody there could say what it would look like.
"""
CHINESE = "我们是朋友。月亮是一个小世界，它绕着地球转。"
SHAPE = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.25}


def byte_level(normalizer=None, special=("<|endoftext|>",), **settings) -> PreTrainedTokenizerFast:
    """GPT-2's own kind: bytes, a token brings the space before it along."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    train(tokenizer, trainers.BpeTrainer(vocab_size=330, special_tokens=list(special), initial_alphabet=alphabet))
    ends = {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"} if "<|endoftext|>" in special else {}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ends | settings)


def bert(folder: Path) -> BertTokenizer:
    """Chinese GPT-2s': a character a token, [CLS] and [SEP] around a text by default, no end token."""
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *sorted(set(CHINESE)),
        *"thmonsedaiyr.,",
        *SUFFIXES,
        "the",
        "moon",
    ]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(words)) + "\n", encoding="utf-8")
    return BertTokenizer.from_pretrained(folder)


SUFFIXES = [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]


def metaspace(post_processor=None, special=("<unk>",), **settings) -> PreTrainedTokenizerFast:
    """SentencePiece's kind: "▁" for a space, which the decoder drops at the beginning."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    train(tokenizer, trainers.BpeTrainer(vocab_size=200, special_tokens=list(special)))
    if post_processor:
        tokenizer.post_processor = post_processor
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **settings)


def byte_fallback() -> PreTrainedTokenizerFast:
    """Llama's kind: tokens reach over spaces, bytes stand for characters that are not in the vocabulary."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    train(tokenizer, trainers.BpeTrainer(vocab_size=400, special_tokens=special))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def word_level() -> PreTrainedTokenizerFast:
    """Whole words, joined by spaces, and no special token but that for unknown ones."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    train(tokenizer, trainers.WordLevelTrainer(special_tokens=["[UNK]"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def train(tokenizer: Tokenizer, trainer) -> None:
    tokenizer.train_from_iterator([ENGLISH, CHINESE], trainer)


def save(folder: Path, tokenizer, *, rows: int | None = None, ends=None, **config) -> None:
    """Save a model with random weights and a tokenizer; `ends` goes into generation_config.json."""
    settings = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    settings = {name: i for name, i in settings.items() if i is not None}  # else GPT-2's 50,256, as in many checkpoints
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=rows or len(tokenizer), **settings | SHAPE | config))
    if ends is not None:
        model.generation_config.eos_token_id = ends
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def added(folder: Path, *, resized: bool) -> None:
    """A byte-level checkpoint to whose tokenizer a pad token was added, with or without a row in the embedding."""
    tokenizer = byte_level()
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    save(folder, tokenizer, rows=rows + resized)


def chat(folder: Path) -> None:
    """A chat-tuned model: generation_config.json names its own end tokens, and of one of them the logits are raised."""
    tokenizer = byte_level(special=("<|endoftext|>", "<|bot|>", "<|user|>"))
    ends = tokenizer.convert_tokens_to_ids(["<|bot|>", "<|user|>"])
    save(folder, tokenizer, ends=ends)


def vocab_txt(folder: Path) -> None:
    """A BERT tokenizer as it was saved for years: vocab.txt alone, and no word on its class."""
    save(folder, bert(folder))
    (folder / "tokenizer.json").unlink(missing_ok=True)
    (folder / "tokenizer_config.json").unlink(missing_ok=True)


def adapter(folder: Path) -> None:
    """A folder with a LoRA adapter alone, beside its base model."""
    base = folder.parent / f"{folder.name}-base"
    save(base, byte_level())
    torch.manual_seed(1)
    settings = LoraConfig(
        r=4, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    get_peft_model(GPT2LMHeadModel.from_pretrained(base), settings).save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))


def begin_token() -> processors.PostProcessor:
    return processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])


KINDS: dict[str, Callable[[Path], None]] = {
    "byte-level": lambda folder: save(folder, byte_level()),
    "bert": lambda folder: save(folder, bert(folder)),
    "vocab.txt": vocab_txt,
    "metaspace": lambda folder: save(folder, metaspace()),
    "byte fallback": lambda folder: save(folder, byte_fallback()),
    "word-level": lambda folder: save(folder, word_level()),
    "lower-casing": lambda folder: save(folder, byte_level(normalizers.Lowercase(), clean_up_tokenization_spaces=True)),
    "beginning token": lambda folder: save(
        folder,
        metaspace(begin_token(), special=("<unk>", "<s>", "</s>"), bos_token="<s>", eos_token="</s>"),
    ),
    "added, resized": lambda folder: added(folder, resized=True),
    "added, not resized": lambda folder: added(folder, resized=False),
    "padded vocabulary": lambda folder: save(folder, byte_level(), rows=384),
    "several ends": chat,
    "adapter": adapter,
}


def build(kind: str, folder: Path) -> Path:
    """Save a checkpoint of a kind, and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    KINDS[kind](folder)
    return folder

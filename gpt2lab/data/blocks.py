"""Articles → token ids → (N, T) blocks for training."""

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from torch.utils.data import Dataset

from gpt2lab.data.sources import cache_folder
from gpt2lab.data.tokens import encode, pieces
from gpt2lab.errors import LabError, whole_number
from gpt2lab.files import write_bytes
from gpt2lab.results import Summary

IGNORED = -100  # the label that PyTorch's cross-entropy leaves out


@dataclass(frozen=True, eq=False, repr=False)
class Blocks(Summary, Dataset):
    """Packed text for a causal language model.

    input_ids  (N, T) int64; only the last block's tail is padding
    labels     (N, T) int64; the same ids, IGNORED on padding; the model shifts them itself
    n_tokens   tokens of text in it, padding not counted

    Every token is in exactly one block, but for a single one left over. The first token of a block
    has no token before it there, so a block of T tokens trains T - 1 predictions.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    n_tokens: int

    def __post_init__(self):
        if self.input_ids.ndim != 2 or self.input_ids.shape != self.labels.shape:
            raise ValueError(f"blocks of shape {tuple(self.input_ids.shape)}, labels {tuple(self.labels.shape)}")

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def digest(self) -> str:
        """A fingerprint of ids and block size: two sets of blocks that train differently have two."""
        return hashlib.sha256(self.labels.numpy().tobytes() + str(self.labels.shape).encode()).hexdigest()[:32]

    def __getitem__(self, i) -> dict[str, torch.Tensor]:
        return {"input_ids": self.input_ids[i], "labels": self.labels[i]}


def token_ids(tokenizer, articles) -> np.ndarray:
    """The ids of all articles, the tokenizer's end token (GPT-2's is `<|endoftext|>`) after each; none where it has none.

    returns  (n,) int32

    Tokenised once: the ids are kept under the hash of the tokenizer and the text, and read back
    from there; a damaged file is made again.
    """
    key = hashlib.sha256(f"{tokenizer.backend_tokenizer.to_str()} {tokenizer.eos_token_id}".encode())
    for article in articles:
        key.update(article.text.encode() + b"\0")
    path = cache_folder() / "ids" / f"{key.hexdigest()[:32]}.npy"
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        ids = _tokenise(tokenizer, articles)
    content = BytesIO()
    np.save(content, ids)
    with suppress(OSError):  # a cache that cannot be written is done without
        write_bytes(path, content.getvalue())
    return ids


def pack(ids: np.ndarray, block_size: int) -> Blocks:
    """Ids → blocks of `block_size` tokens, in order; the last one is padded.

    A single token left over is dropped: a block of it alone would predict nothing, and the mean
    loss of no prediction is not a number.

    Example: pack(np.arange(5), 3).labels.tolist() -> [[0, 1, 2], [3, 4, -100]]
    Raises: LabError for a block below 2 tokens, which predicts nothing, or a text that does not fill one block.
    """
    whole_number("block_size", block_size, 2, 10**6)
    if len(ids) < block_size:
        raise LabError(
            "the text has {count:,} tokens, less than one block of {block_size:,}; give more text or a smaller block",
            count=len(ids),
            block_size=block_size,
        )
    if len(ids) % block_size == 1:
        ids = ids[:-1]
    rows = -(-len(ids) // block_size)
    labels = np.full(rows * block_size, IGNORED, dtype=np.int64)
    labels[: len(ids)] = ids
    labels = torch.from_numpy(labels).view(rows, block_size)  # (N, T)
    padding = int(ids[-1])  # any id will do: causal attention keeps it from the tokens before it
    return Blocks(torch.where(labels == IGNORED, padding, labels), labels, len(ids))


def _tokenise(tokenizer, articles) -> np.ndarray:
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    parts = [np.empty(0, np.int32)]
    for article in articles:
        parts += [np.array(encode(tokenizer, piece), dtype=np.int32) for piece in pieces(tokenizer, article.text)]
        parts.append(np.array(end, dtype=np.int32))
    return np.concatenate(parts)

"""Load a model's own tokenizer, and convert text to token ids and back with it.

Every command, function and page reads text through `encode` or `tokens_and_starts`, which add no special tokens.
"""

import codecs
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase

from gpt2lab.data.sources import is_cached
from gpt2lab.errors import LabError

PIECE = 1 << 18  # characters tokenised at a time: tokenizers take up to 170 bytes of memory for each
GAP = re.compile(r"(?<=\S)(?=[ \n])")  # a space or newline after something else: no token of GPT-2's reaches over it
ANCHOR = 16  # tokens before a text that its decoding begins with: a token's spaces depend on those beside it
SPACE = "▁"  # what stands for a space in SentencePiece vocabularies
FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")  # a byte in SentencePiece vocabularies
VISIBLE = str.maketrans({" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"})
_kinds: WeakKeyDictionary[PreTrainedTokenizerBase, str] = WeakKeyDictionary()


def load_tokenizer(location: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder or of a hub repository in the cache. Raises: LabError for one written in Python."""
    tokenizer = AutoTokenizer.from_pretrained(location, local_files_only=True, trust_remote_code=False)
    folder = Path(location)
    has_words = (folder / "vocab.txt").is_file() if folder.is_dir() else is_cached(location, "vocab.txt")
    if len(tokenizer) < 2 and has_words:  # of BERT's kind, and not named as such
        tokenizer = BertTokenizer.from_pretrained(location, local_files_only=True, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise LabError(
            "{type} is written in Python and does not say where in a text a token begins; save the "
            "tokenizer as tokenizer.json",
            type=type(tokenizer).__name__,
        )
    if type(tokenizer.backend_tokenizer.model).__name__ == "BPE":
        tokenizer.clean_up_tokenization_spaces = False  # transformers ignores it for BPE, with a warning
    return tokenizer


def check_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
    """Raises: LabError for a tokenizer that is empty, or has tokens past the vocabulary that were in it from the start."""
    if len(tokenizer) < 2:
        raise LabError("the tokenizer of {name!r} is empty; save the model's own beside it", name=name)
    past = {i: token for token, i in tokenizer.get_vocab().items() if i >= vocabulary}
    if wrong := sorted(past.keys() - tokenizer.added_tokens_decoder.keys()):
        raise LabError(
            "the tokenizer of {name!r} has {count:,} tokens, as {past!r} with id {wrong:,}, but the model "
            "only {vocabulary:,}; save the tokenizer that the model was trained with beside it",
            name=name,
            count=len(tokenizer),
            past=past[wrong[0]],
            wrong=wrong[0],
            vocabulary=vocabulary,
        )


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Text → token ids, without the special tokens that some tokenizers add around a text.

    A special token written in the text, as "<|endoftext|>", is read as one token.
    Raises: LabError for what is no text, or has lone surrogates.
    """
    utf8(text)
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def start_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that a text without a prompt begins from: the tokenizer's beginning token, else its end token, else none."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def utf8(text: str) -> bytes:
    """The text's bytes. Raises: LabError for what is no text, or has lone surrogates."""
    if not isinstance(text, str):
        raise LabError("the text is of type {type}; give a string", type=type(text).__name__)
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise LabError(
            "the text contains half a character (a lone surrogate) at position {start}; remove it", start=error.start
        ) from error


def tokens_and_starts(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Text → token ids, without special tokens, and the character of the text at which each token begins.

    returns  (n,) int64 ids, (n,) int64 characters; tokens that share a character begin at the same one
    """
    ids, starts, offset = [], [], 0
    for piece in pieces(tokenizer, text):
        encoded = tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ids.append(np.array(encoded["input_ids"], dtype=np.int64))
        starts.append(np.array(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)[:, 0] + offset)
        offset += len(piece)
    return (np.concatenate(ids), np.concatenate(starts)) if ids else (np.empty(0, np.int64), np.empty(0, np.int64))


def pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> Iterator[str]:
    """Cut a text into pieces of about PIECE characters whose ids, one after the other, are those of the whole text.

    Only GPT-2's own kind of tokenizer allows that for certain; with others the text is one piece.
    """
    start = 0
    while start < len(text):
        gap = GAP.search(text, start + PIECE) if _reads_piecewise(tokenizer) else None
        end = gap.start() if gap else len(text)
        yield text[start:end]
        start = end


def _reads_piecewise(tokenizer: PreTrainedTokenizerBase) -> bool:
    backend = tokenizer.backend_tokenizer
    before = json.loads(backend.pre_tokenizer.__getstate__()) if backend.pre_tokenizer else {}
    plain = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    return backend.normalizer is None and {name: before.get(name) for name in plain} == plain


def text_after(tokenizer: PreTrainedTokenizerBase, before: Sequence[int], ids: Sequence[int]) -> str:
    """The text that tokens add to those before them: decode(before + ids) less decode(before).

    Ends in "\\ufffd" while a character is not whole. What a token adds depends on its neighbours: many tokenizers
    put a space before a token unless it begins the text.
    """
    start = list(before[-ANCHOR:])
    known, both = tokenizer.decode(start), tokenizer.decode(start + list(ids))
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(known, both))  # all of `known`, as a rule
    return both[sum(1 for _ in same) :]


class DecodeStream:
    """The text that tokens add to those before them, token by token, in time that is linear in their number."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, before: Sequence[int] = ()):
        self._tokenizer, self._before = tokenizer, list(before[-ANCHOR:])
        self._open: list[int] = []
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace") if _kind(tokenizer) == "bytes" else None

    def add(self, id: int) -> str:
        """The text that the token completes; "" while a character is not whole, which comes with its last token."""
        if self._utf8:
            return self._utf8.decode(token_bytes(self._tokenizer, id) or b"")
        self._open.append(id)
        if FALLBACK.fullmatch(self._tokenizer.convert_ids_to_tokens(id) or ""):
            return ""  # a run of bytes is decoded as a whole
        text = text_after(self._tokenizer, self._before, self._open)
        self._before = (self._before + self._open)[-ANCHOR:]
        self._open = []
        return text


def token_bytes(tokenizer: PreTrainedTokenizerBase, i: int) -> bytes | None:
    """The UTF-8 bytes that a token stands for, maybe a part of a character; None for an id without a token."""
    token = tokenizer.convert_ids_to_tokens(i)
    if token is None:  # vocabularies are padded at times
        return None
    kind = _kind(tokenizer)
    if kind == "bytes" and all(character in BYTES for character in token) and not _is_added(tokenizer, i):
        return bytes(BYTES[character] for character in token)
    if kind == "spaces":
        byte = FALLBACK.fullmatch(token)
        return bytes.fromhex(byte[1]) if byte else token.replace(SPACE, " ").encode()
    return token.encode()


def _kind(tokenizer: PreTrainedTokenizerBase) -> str:
    """How a vocabulary writes its tokens: "bytes" as GPT-2's, "spaces" with "▁" for a space, or "words" as they are."""
    if tokenizer not in _kinds:
        decoder = tokenizer.backend_tokenizer.decoder
        state = json.loads(decoder.__getstate__()) if decoder else {}
        steps = [state, *state.get("decoders", [])]
        types = {step.get("type") for step in steps}
        spaces = any(step.get("pattern") == {"String": SPACE} for step in steps)
        kind = "bytes" if "ByteLevel" in types else "spaces" if spaces or "Metaspace" in types else "words"
        _kinds[tokenizer] = kind
    return _kinds[tokenizer]


def has_spaces_in_tokens(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether tokens include their leading space, as " moon" in GPT-2's vocabulary."""
    return _kind(tokenizer) != "words"


def token_text(tokenizer: PreTrainedTokenizerBase, i: int) -> str:
    """A token's own text with its spaces; "⟨F0 9F⟩" for a part of a character, "⟨50300⟩" for an id without a token."""
    raw = token_bytes(tokenizer, i)
    if not raw:
        return f"⟨{i}⟩"
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return _hexadecimal(raw)


def display_token(tokenizer: PreTrainedTokenizerBase, i: int) -> str:
    """A token as a string to show; see `display_tokens`."""
    text = token_text(tokenizer, i)
    if text.translate(VISIBLE).isprintable() or _is_added(tokenizer, i) or _kind(tokenizer) == "words":
        return visible(text)
    return _hexadecimal(token_bytes(tokenizer, i) or b"")


def visible(text: str) -> str:
    """A token's text with every character visible. Example: " a\n" -> "·a⏎", "\u200b" -> "⟨U+200B⟩", "⟨F0 9F⟩" as it is."""
    if text.startswith("⟨") and text.endswith("⟩"):
        return text
    return "".join(c if c.isprintable() else f"⟨U+{ord(c):04X}⟩" for c in text.translate(VISIBLE))


def display_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, ...]:
    """Token ids → strings to show, one per id, none of them empty or invisible.

    A space is "·", a newline "⏎", a tab "⇥". A token that holds a part of a character is shown as its bytes in
    hexadecimal, after the character where its other parts stand beside it: "🌙⟨F0 9F⟩", one that cannot be seen as its
    bytes, an added token with its invisible characters as code points: "⟨U+200B⟩", an id without a token as itself:
    "⟨50300⟩". Word-level and WordPiece tokens are shown as their vocabularies write them: "##ing".

    Example: the ids of " a\\n" -> ("·a", "⏎")
    """
    shown = [display_token(tokenizer, i) for i in ids]
    raw = [token_bytes(tokenizer, i) if text.startswith("⟨") else None for i, text in zip(ids, shown)]
    for _, run in itertools.groupby(range(len(ids)), key=lambda at: raw[at] is not None):
        places = list(run)
        for at, character in characters_of([part for at in places if (part := raw[at]) is not None]).items():
            shown[places[at]] = character + shown[places[at]]
    return tuple(shown)


def token_names(tokenizer: PreTrainedTokenizerBase, *ids) -> dict[int, str]:
    """Display strings of all the ids in some tensors, by id; of -1, which is none, there is none."""
    each = {i for one in ids for i in one.unique().tolist() if i >= 0}
    return {i: display_token(tokenizer, i) for i in sorted(each)}


def characters_of(parts: list[bytes]) -> dict[int, str]:
    """The printable characters that neighbouring parts make, by the places of their parts. Example: [b"\\xc3", b"\\xa9"] -> {0: "é", 1: "é"}"""
    found: dict[int, str] = {}
    first, whole = 0, b""
    for at, part in enumerate(parts):
        whole += part
        try:
            text = whole.decode()
        except UnicodeDecodeError as error:
            if (
                error.reason != "unexpected end of data"
            ):  # no character begins like this: start again at what comes next
                first, whole = at + 1, b""
            continue
        if at > first and text.isprintable():
            found |= dict.fromkeys(range(first, at + 1), text)
        first, whole = at + 1, b""
    return found


def _is_added(tokenizer: PreTrainedTokenizerBase, i: int) -> bool:
    return i in tokenizer.added_tokens_decoder


def _hexadecimal(raw: bytes) -> str:
    return f"⟨{raw.hex(' ').upper()}⟩"


def _byte_of_character() -> dict[str, int]:
    """GPT-2's byte-level alphabet: printable bytes stand for themselves, the others for characters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTES = _byte_of_character()

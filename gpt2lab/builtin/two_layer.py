"""Make the files of the shape `two-layer` again: `python -m gpt2lab.builtin.two_layer`.

A GPT-2 of two layers, the fewest in which an induction head can form, and a tokenizer with one token per character
(Elhage et al., A Mathematical Framework for Transformer Circuits, 2021). It has no weights: it is trained from scratch.
"""

from pathlib import Path

from transformers import GPT2Config, GPT2Tokenizer

from gpt2lab.data.repeated import BLOCK, CHARACTERS
from gpt2lab.data.sources import SHAPES

END, SPACE = "<|endoftext|>", "Ġ"  # as GPT-2's vocabulary writes them
SHAPE = {"n_positions": BLOCK, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": 64}
# With only 64 numbers a vector, weights of 0.02 as in GPT-2 small would leave all heads alike for hundreds of steps.
SPREAD = 0.1
# A previous-token head finds its token by position. It forms later where position embeddings start as noise.
SINUSOIDS = 0.5


def two_layer_config() -> GPT2Config:
    """Return the configuration: without dropout, since the text is too random to be memorised."""
    end = len(CHARACTERS)
    dropout = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    return GPT2Config(
        vocab_size=end + 1,
        bos_token_id=end,
        eos_token_id=end,
        initializer_range=SPREAD,
        sinusoids=SINUSOIDS,
        **SHAPE,
        **dropout,
    )


def character_tokenizer() -> GPT2Tokenizer:
    """Return GPT-2's kind of tokenizer with a token for each character of the repeated text, and an end token."""
    letters = (SPACE if character == " " else character for character in CHARACTERS)
    vocabulary = {letter: i for i, letter in enumerate([*letters, END])}
    return GPT2Tokenizer(vocab=vocabulary, merges=[], model_max_length=BLOCK)


def build(folder: Path) -> None:
    """Write config.json and the tokenizer into a folder."""
    two_layer_config().save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)


if __name__ == "__main__":
    build(Path(SHAPES["two-layer"]))

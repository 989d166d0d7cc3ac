"""Fixtures for runs: a tiny model without dropout, and small texts in folders of splits."""

import pytest

SENTENCES = (
    "The moon is a small world that goes around the earth.",
    "The sea follows it twice a day, and nobody there could say why.",
    "When the other side was seen for the first time, it looked like the other one.",
    "A small world has a small moon, and a small moon has none.",
    "What the earth would look like from there could be seen in time.",
    "Twice a day the sea goes out, and twice a day it follows the moon.",
)


@pytest.fixture(scope="session")
def sentences():
    return SENTENCES


@pytest.fixture(scope="session")
def no_dropout_folder(tmp_path_factory, random_gpt2, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("no-dropout") / "model"
    random_gpt2(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory):
    """A function: the text of each split → the name of a folder that holds them."""

    def write(**splits):
        folder = tmp_path_factory.mktemp("text")
        for split, text in splits.items():
            (folder / f"{split}.txt").write_text(text, encoding="utf-8")
        return str(folder)

    return write


@pytest.fixture(scope="session")
def moon(text_folder):
    """Some 150 tokens to train on and 100 to validate on, neither a multiple of 16."""
    return text_folder(train=" ".join(SENTENCES[:4]), validation=" ".join(SENTENCES[4:]))

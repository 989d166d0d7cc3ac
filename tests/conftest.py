"""Fixtures: a tiny random GPT-2 with a tokenizer of its own, the real data where it is, no network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # a core each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import itertools
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

from gpt2lab import cli
from gpt2lab.model.lab import Lab, load_model

pytest_plugins = ["tests.traces"]
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"
VOCABULARY = 300
SHAPE = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
LONGEST = ("survival", "finetuning", "notebooks", "zoo", "cli", "runs_page", "inside_page")
WORDS = """The moon is a small world that goes around the earth, and the sea follows it twice a day.
When the other side of the moon was seen for the first time, nobody there could say what it would look like.
"""


def pytest_collection_modifyitems(items):
    """Put the longest files first: one that a worker began last would be waited for alone."""
    ranks = {f"test_{name}.py": rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


def pytest_collection_finish():
    """Spare what is imported by now from every collection of garbage, of which each run makes several."""
    gc.collect()
    gc.freeze()


CACHES = itertools.count()


@pytest.fixture(autouse=True)
def isolated_cache(tmp_path_factory, monkeypatch):
    """A cache of its own for each test, named but not made: `tmp_path` would make a folder for thousands of tests."""
    monkeypatch.setenv("GPT2LAB_CACHE", str(tmp_path_factory.getbasetemp() / "caches" / str(next(CACHES))))


@pytest.fixture(scope="session")
def shared_data():
    if SHARED_DATA.is_dir():
        return SHARED_DATA
    reason = f"the real data is not at {SHARED_DATA}"
    return pytest.fail(reason) if os.environ.get("GPT2LAB_REQUIRE_DATA") == "1" else pytest.skip(reason)


@pytest.fixture(scope="session")
def gpt2_tokenizer(shared_data):
    folder = shared_data / "gpt2-tokenizer"
    return GPT2Tokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory):
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([WORDS], vocab_size=VOCABULARY - 1, min_frequency=1, show_progress=False)
    vocab, merges = bpe.save_model(str(tmp_path_factory.mktemp("bpe")))
    tokenizer = GPT2Tokenizer(vocab=vocab, merges=merges)
    assert (len(tokenizer), tokenizer.eos_token_id) == (VOCABULARY, VOCABULARY - 1)
    return tokenizer


@pytest.fixture(scope="session")
def random_gpt2(tiny_tokenizer):
    """A function: configuration → seeded random GPT-2, with weights large enough for uneven distributions."""

    def make(seed=0, **changes):
        end = tiny_tokenizer.eos_token_id
        config = {"vocab_size": VOCABULARY, "bos_token_id": end, "eos_token_id": end, "initializer_range": 0.25}
        torch.manual_seed(seed)
        return GPT2LMHeadModel(GPT2Config(**config | SHAPE | changes)).eval()

    return make


@pytest.fixture(scope="session")
def random_lab(random_gpt2, tiny_tokenizer):
    return lambda seed=0, **changes: Lab(random_gpt2(seed, **changes), tiny_tokenizer, "random")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, random_gpt2, tiny_tokenizer):
    folder = tmp_path_factory.mktemp("tiny") / "model"
    random_gpt2().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_lab(tiny_folder):
    return load_model(str(tiny_folder), device="cpu")


@pytest.fixture
def small_pictures(monkeypatch):
    """Fewer dots to an inch, for tests that need no more to see that a picture is drawn, or which."""
    monkeypatch.setattr("gpt2lab.figures.drawing.DPI", 40)


@pytest.fixture
def run_cli(monkeypatch, capsys):
    """A function: arguments → (exit status, standard output, standard error) of the command in this process."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gpt2lab", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run

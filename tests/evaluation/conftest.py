"""Fixtures: the real files as GPT-2 reads them, and the loops that the protocols are named for, written out one window at a time."""

import copy
import functools

import numpy as np
import pytest
import torch

from gpt2lab.data.text import Article, original_text, read_articles, wikitext_article
from gpt2lab.evaluation.protocols import PROTOCOLS, Document, TokenizedText
from gpt2lab.evaluation.scorer import ScoredText
from gpt2lab.evaluation.wikitext import detokenise, pages

ROWS_OF_RUN_CLM = 1000
MOON = (
    (1, "", ["The moon goes around the earth , at 384 @,@ 400 km — and the sea follows it .", "It is small ."]),
    (2, "Other side", ["Nobody could say what it would look like ( when it was seen for the first time ) ."]),
)
SEA = ((1, "", ["The sea 's tide : twice a day ; café , 海 and 🌙 ."]), (2, "Tides", ["The moon pulls ."]))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Matrices this small are no faster on two threads, and far slower where something else runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def articles():
    """Three articles in WikiText form, with headings, blank rows and characters of up to four bytes."""
    return (wikitext_article("Moon", MOON), wikitext_article("Sea", SEA), wikitext_article("Moons", MOON[1:]))


@pytest.fixture(scope="session")
def letters():
    """A function: n → an article of n random letters, each of them one token of the tiny tokenizer."""

    def make(n, seed=0):
        return Article("", ("".join(np.random.default_rng(seed).choice(list("BCDEFGHJKLPQRXYZ"), n)),))

    return make


@pytest.fixture(scope="session")
def raw_test(shared_data):
    return read_articles(shared_data / "wikitext-2-raw" / "wiki.test.raw")


@pytest.fixture(scope="session")
def v1_test(shared_data):
    return read_articles(shared_data / "wikitext-2" / "wiki.test.tokens")


@pytest.fixture(scope="session")
def gpt2_reading(gpt2_tokenizer, raw_test):
    """A function: protocol, stride → WikiText-2's raw test split as GPT-2 reads it; each is made once."""
    return functools.cache(
        lambda protocol, stride=1024, context=1024: PROTOCOLS[protocol](gpt2_tokenizer, raw_test, context, stride)
    )


@pytest.fixture(scope="session")
def published_windows():
    """A function: protocol, tokenizer, articles, context, stride → (tokens fed, tokens scored) of each window.

    They are the published algorithms of the protocols, of which ours share no line but the detokeniser's.
    """
    loops = {"sliding": guide_windows, "lm-eval": harness_windows, "blocks": run_clm_windows}
    return lambda protocol, *arguments: loops[protocol](*arguments)


@pytest.fixture(scope="session")
def exact_nll():
    """A function: model, (tokens fed, tokens scored) of windows → their NLLs in float64, window by window."""

    def nll(model, windows):
        exact = copy.deepcopy(model).double().eval()
        found = []
        for fed, scored in windows:
            if scored:
                with torch.no_grad():
                    logits = exact(torch.tensor([fed])).logits[0, -len(scored) :]
                found += (-logits.log_softmax(-1))[range(len(scored)), scored].tolist()
        return np.array(found)

    return nll


def windows_of(nll):
    """One window that predicts all but the first token; or one for each token, where others have no prediction."""
    known = ~np.isnan(nll)
    if known[1:].all():
        return np.array([[0, 1, len(nll)]])
    return np.array([[i, i if has else i + 1, i + 1] for i, has in enumerate(known)])


@pytest.fixture(scope="session")
def made_scored():
    """A function: NLLs, and what is to be special of the text → a ScoredText, one character a token, one window by default."""

    def make(nll, document=None, *, model="m", vocabulary=300, **changes):
        n = len(nll)
        owner = np.zeros(n, int) if document is None else np.asarray(document)
        tokenized = {
            "protocol": "sliding",
            "context": 64,
            "stride": 64,
            "text": "x" * n,
            "ids": np.arange(n),
            "starts": np.arange(n),
            "document": owner,
            "windows": windows_of(np.asarray(nll, float)),
            "documents": tuple(Document(f"d{i}", 10, 100) for i in range(owner.max() + 1)),
        }
        arrays = {"ids", "starts", "windows"}
        changes = {name: np.asarray(value) if name in arrays else value for name, value in changes.items()}
        return ScoredText(TokenizedText(**tokenized | changes), np.asarray(nll, float), model, vocabulary)

    return make


def guide_windows(tokenizer, articles, context, stride):
    """Source: https://huggingface.co/docs/transformers/perplexity"""
    ids = tokenizer.encode("\n\n".join(row for article in articles for row in article.rows))
    windows, scored_to = [], 0
    for begin in range(0, len(ids), stride):
        end = min(begin + context, len(ids))
        labels = [token if begin + i >= scored_to else None for i, token in enumerate(ids[begin:end])]
        windows.append((ids[begin : end - 1], [label for label in labels[1:] if label is not None]))  # the model shifts
        scored_to = end
        if end == len(ids):
            break
    return windows


def harness_windows(tokenizer, articles, context, stride):
    """Rolling windows with a context of one token, made disjoint, as the harness gives them to a model that reads `context`.

    Source: get_rolling_token_windows and make_disjoint_window in https://github.com/EleutherAI/lm-evaluation-harness
    """
    windows = []
    for page in pages(original_text(articles)):
        tokens = tokenizer.encode(detokenise(page))
        scored = tokens[:context]
        pairs, done = [([tokenizer.eos_token_id, *scored[:-1]], scored)], len(scored)
        while done < len(tokens):
            scored = tokens[done : done + context]
            done += len(scored)
            pairs.append((tokens[done - 1 - context : done - 1], scored))
        for read, scored in pairs:
            before = read[: len(read) + 1 - len(scored)]
            windows.append(((before + scored)[-(context + 1) :][:-1], scored))
    return windows


def run_clm_windows(tokenizer, articles, context, stride):
    """Source: group_texts in https://github.com/huggingface/transformers/blob/main/examples/pytorch/language-modeling/run_clm.py"""
    rows = [row for article in articles for row in article.rows]
    windows = []
    for batch in range(0, len(rows), ROWS_OF_RUN_CLM):
        stream = [token for row in rows[batch : batch + ROWS_OF_RUN_CLM] for token in tokenizer.encode(row)]
        for number in range(len(stream) // context):
            block = stream[number * context :][:context]
            windows.append((block[:-1], block[1:]))
    return windows

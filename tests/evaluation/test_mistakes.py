"""Mistakes that are made with perplexities: each is made here, beside the right figure, to see by how much it is wrong."""

import math

import numpy as np
import pytest
import torch

from gpt2lab.data.text import Article
from gpt2lab.errors import LabError
from gpt2lab.evaluation.comparison import compare
from gpt2lab.evaluation.perplexity import measured, perplexity, read
from gpt2lab.evaluation.scorer import score
from gpt2lab.model.lab import Lab

STEPS, ROW, PADDING = 150, 32, 40


@pytest.fixture(scope="module")
def taught_text(letters):
    """120 random letters, each a token: to know the next one, a model has to look at more than the last."""
    return letters(120, seed=7).text


@pytest.fixture(scope="module")
def taught_lab(random_lab, taught_text, one_thread):
    """A model that has memorised the text, in pieces, and that padding follows its end."""
    lab = random_lab(initializer_range=0.1, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    end = lab.tokenizer.eos_token_id
    stream = torch.cat([lab.encode(taught_text), torch.full((PADDING,), end)])
    optimizer = torch.optim.Adam(lab.model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        begins = torch.randint(len(stream) - ROW, (16, 1), generator=generator)
        rows = stream[begins + torch.arange(ROW)]  # (16, ROW)
        lab.model(rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return lab


def nll_of(model, rows, labels=None):
    """(B, T - 1) nats of each next token of rows (B, T), or of other labels (B, T)."""
    with torch.no_grad():
        logits = model(rows).logits[:, :-1].double()
    return -logits.log_softmax(-1).gather(-1, (rows if labels is None else labels)[:, 1:, None])[..., 0]


def windows_of(ids, context, stride):
    """The guide's windows, (T,) each."""
    return [
        ids[begin : begin + context]
        for begin in range(0, max(1, len(ids) - context + stride), stride)
        if begin + 1 < len(ids)
    ]


def one(text):
    return (Article("", (text,)),)


# padding


def padded(lab, pieces):
    """(B, T) rows that end in `<|endoftext|>` where they are short, (B, T) which of them are of the pieces."""
    ids = [lab.encode(piece) for piece in pieces]
    rows = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=lab.tokenizer.eos_token_id)
    return rows, torch.arange(rows.shape[1]) < torch.tensor([[len(i)] for i in ids])


def test_padding_counted_as_tokens_gives_too_low_a_perplexity(taught_lab, taught_text):
    text = taught_text[-60:-40] + "XQXQZ" + taught_text[-40:]  # a few letters that are hard
    pieces = [text[-60:], text[-20:], text[-5:]]  # 60 tokens, and 40 and 55 places of padding
    results = [perplexity(taught_lab, one(piece)) for piece in pieces]
    total, n = sum(result.nll for result in results), sum(result.n_scored for result in results)
    right = math.exp(total / n)

    rows, real = padded(taught_lab, pieces)
    with torch.no_grad():
        wrong = math.exp(taught_lab.model(rows, labels=rows).loss)
        masked = math.exp(taught_lab.model(rows, labels=rows.where(real, -100)).loss)

    assert masked == pytest.approx(right, rel=1e-5)
    assert wrong < 0.8 * right
    nll = nll_of(taught_lab.model, rows)
    assert nll[real[:, 1:]].sum() == pytest.approx(total, rel=1e-5)  # padding on the right changes no other NLL
    assert math.log(wrong) == pytest.approx((total + nll[~real[:, 1:]].sum().item()) / (n + 95), rel=1e-5)


def test_padding_on_the_left_without_positions_gives_another_perplexity(taught_lab, taught_text):
    piece = taught_text[:20]
    ids = taught_lab.encode(piece)
    rows = torch.cat([torch.full((30,), taught_lab.tokenizer.eos_token_id), ids])[None]
    wrong = math.exp(nll_of(taught_lab.model, rows)[0, 30:].mean())
    assert wrong > 1.01 * perplexity(taught_lab, one(piece)).perplexity


# means of windows


def test_mean_of_window_perplexities_is_too_high(taught_lab, taught_text):
    text = taught_text[:96] + "XQZXQKZX" * 4  # three windows that are easy and one that is hard
    windows = windows_of(taught_lab.encode(text), 32, 32)
    losses = [nll_of(taught_lab.model, window[None]).mean().item() for window in windows]
    assert [len(window) for window in windows] == [32] * 4

    right = perplexity(taught_lab, one(text), context=32).perplexity
    wrong = np.mean(np.exp(losses))
    assert math.exp(np.mean(losses)) == pytest.approx(right, rel=1e-5)  # equal windows: only the exp comes too early
    assert wrong > 5 * right


def test_mean_of_window_losses_counts_a_short_last_window_as_a_whole(taught_lab, taught_text):
    text = taught_text[:96] + "XQZX"
    windows = windows_of(taught_lab.encode(text), 32, 32)
    losses = [nll_of(taught_lab.model, window[None]).mean().item() for window in windows]
    assert [len(window) for window in windows] == [32, 32, 32, 4]

    result = perplexity(taught_lab, one(text), context=32)
    wrong = math.exp(np.mean(losses))
    assert result.n_scored == 31 * 3 + 3
    assert math.log(result.perplexity) == pytest.approx((31 * sum(losses[:3]) + 3 * losses[3]) / 96, rel=1e-5)
    assert wrong > 2 * result.perplexity  # a quarter of the weight for 3 % of the tokens


def test_mean_of_window_losses_is_too_low_where_the_short_last_window_is_easy(taught_lab, taught_text):
    text = "XQZXQKZX" * 8 + taught_text[:20]
    windows = windows_of(taught_lab.encode(text), 32, 32)
    losses = [nll_of(taught_lab.model, window[None]).mean().item() for window in windows]
    assert [len(window) for window in windows] == [32, 32, 20]
    assert math.exp(np.mean(losses)) < 0.8 * perplexity(taught_lab, one(text), context=32).perplexity


# labels


def test_labels_shifted_twice_ask_for_the_token_after_next(taught_lab, taught_text):
    ids = taught_lab.encode(taught_text)
    total, n, hand = 0.0, 0, 0.0
    for window in windows_of(ids, 32, 32):
        rows = window[None]
        with torch.no_grad():
            loss = taught_lab.model(rows[:, :-1], labels=rows[:, 1:]).loss  # the model shifts them itself
        total += loss.item() * (len(window) - 2)
        n += len(window) - 2
        hand += nll_of(taught_lab.model, rows[:, :-1], rows[:, 1:]).sum().item()
    result = perplexity(taught_lab, one(taught_text), context=32)
    wrong = math.exp(total / n)

    assert total == pytest.approx(hand, rel=1e-5)
    assert n == result.n_scored - len(windows_of(ids, 32, 32))  # and of each window a token is lost
    assert result.perplexity < 3
    assert wrong > 20 * result.perplexity


# windows that overlap


def test_tokens_scored_in_every_window_they_are_in_give_too_high_a_perplexity(taught_lab, taught_text):
    windows = windows_of(taught_lab.encode(taught_text), 16, 4)
    nll = torch.cat([nll_of(taught_lab.model, window[None])[0] for window in windows])
    once = perplexity(taught_lab, one(taught_text), context=16, stride=4)
    disjoint = perplexity(taught_lab, one(taught_text), context=16)
    wrong = math.exp(nll.mean())

    assert (once.n_scored, once.windows) == (119, len(windows))
    assert len(nll) == 15 * len(windows) > 3 * 119  # nearly four times as many as there are
    assert math.log(wrong) > 1.5 * math.log(once.perplexity)  # most with less context than the stride is to give
    assert wrong == pytest.approx(
        disjoint.perplexity, rel=0.1
    )  # about what no overlap at all gives, for four times the work


def test_guides_own_count_of_overlapping_windows_is_a_token_short_in_each(taught_lab, taught_text):
    # https://huggingface.co/docs/transformers/perplexity takes one from the targets of every window, for the shift;
    # but with an overlap, the first of them has a token before it, and only the first window lacks one
    tokenized = read(taught_lab, one(taught_text), context=16, stride=4)
    scored = perplexity(taught_lab, one(taught_text), context=16, stride=4).n_scored
    ends = tokenized.windows[:, 2]
    targets = np.diff(ends, prepend=0)
    assert scored == targets.sum() - 1
    assert (targets - 1).sum() == scored - (len(targets) - 1)


# v1 against raw


@pytest.fixture(scope="module")
def first_articles(raw_test, v1_test):
    """WikiText-2's first test article, raw and in v1."""
    return raw_test[:1], v1_test[:1]


def test_v1_is_the_raw_text_with_rare_words_replaced(raw_test, v1_test):
    raw, v1 = (" ".join(article.text for article in articles).split() for articles in (raw_test, v1_test))
    assert len(raw) == len(v1) == 241_211
    replaced = [(word, instead) for word, instead in zip(raw, v1) if word != instead]
    assert {instead for _, instead in replaced} == {"<unk>"}
    assert "<unk>" not in raw
    assert 0.02 < len(replaced) / len(raw) < 0.08


def test_v1_has_other_token_counts_than_raw(gpt2_reading, gpt2_tokenizer, v1_test):
    lab = Lab(of_size(1024), gpt2_tokenizer, "of GPT-2's size")
    v1 = read(lab, v1_test)
    assert len(gpt2_reading("sliding").ids) == 287_644
    assert len(v1.ids) != 287_644
    assert v1.n_words == gpt2_reading("sliding").n_words  # so that they differ in bytes and tokens alone
    assert v1.n_bytes < gpt2_reading("sliding").n_bytes


def of_size(context):
    """What a text asks of a model."""

    class Model:
        class config:  # noqa: N801
            n_positions = context

    return Model


def fitted_to(tokenizer, random_gpt2, articles):
    """A model that gives every token its own share of a text, the best there is without a context."""
    model = random_gpt2(vocab_size=len(tokenizer), n_positions=1024, n_embd=2, n_layer=1, n_head=1)
    ids = tokenizer.encode("\n\n".join(row for article in articles for row in article.rows))
    shares = np.bincount(ids, minlength=len(tokenizer)) + 1e-9
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(torch.tensor([1.0, 0.0]))
        model.transformer.wte.weight[:, 0] = torch.from_numpy(np.log(shares / shares.sum()))
    return Lab(model, tokenizer, "unigram")


def test_v1_gives_a_lower_perplexity_than_raw_and_a_caution(first_articles, gpt2_tokenizer, random_gpt2):
    raw, v1 = first_articles
    scored = []
    for articles in (raw, v1):
        lab = fitted_to(gpt2_tokenizer, random_gpt2, articles)
        scored.append(score(lab, read(lab, articles, context=256)))
    of_raw, of_v1 = map(measured, scored)
    assert of_raw.n_words == of_v1.n_words
    assert of_v1.perplexity < 0.95 * of_raw.perplexity
    assert of_v1.word_perplexity < 0.95 * of_raw.word_perplexity
    assert any("<unk>" in caution for caution in of_v1.cautions)
    assert not any("<unk>" in caution for caution in of_raw.cautions)
    with pytest.raises(LabError, match="not scored on the same text"):
        compare(*scored)

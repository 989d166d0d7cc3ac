import contextlib
import dataclasses
import itertools
import os
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gpt2lab.data.sources import cache_folder
from gpt2lab.errors import LabError
from gpt2lab.evaluation import scorer
from gpt2lab.evaluation.protocols import PROTOCOLS
from gpt2lab.evaluation.scorer import ScoredText, score
from gpt2lab.model import lab as model_module
from gpt2lab.model.lab import Lab, token_nll
from gpt2lab.progress import finished

WINDOWS = [
    ("sliding", 64, 64),
    ("sliding", 64, 32),
    ("sliding", 32, 31),
    ("sliding", 16, 5),
    ("sliding", 9, 1),
    ("sliding", 2, 1),
    ("lm-eval", 64, 64),
    ("lm-eval", 16, 16),
    ("lm-eval", 7, 7),
    ("blocks", 64, 64),
    ("blocks", 10, 10),
]
SPLIT = 40  # tokens in a batch: small, so that a tokenized takes many


def read(lab, articles, protocol="sliding", context=16, stride=None):
    return PROTOCOLS[protocol](lab.tokenizer, articles, context, stride or context)


def cached_file():
    (path,) = (path for path in cache_folder().rglob("*") if path.is_file())
    return path


@pytest.fixture
def new_cache(tmp_path, monkeypatch):
    """A function that leaves what was cached behind."""
    numbers = itertools.count()
    return lambda: monkeypatch.setenv("GPT2LAB_CACHE", str(tmp_path / f"cache-{next(numbers)}"))


@pytest.fixture
def batches(monkeypatch):
    """The (B, T) and first scored position of each forward pass, as they are made."""
    seen = []

    def spy(model, input_ids, *, first=1):
        seen.append((tuple(input_ids.shape), first))
        return token_nll(model, input_ids, first=first)

    monkeypatch.setattr(scorer, "token_nll", spy)
    return seen


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(scorer, "TOKENS_AT_ONCE", {"cpu": SPLIT})


# the NLLs


@pytest.mark.parametrize(("protocol", "context", "stride"), WINDOWS)
@pytest.mark.parametrize("seed", [0, 1])
def test_nlls_equal_a_plain_loop_in_float64(
    random_lab, articles, published_windows, exact_nll, protocol, context, stride, seed
):
    lab, part = random_lab(seed), articles if context > 15 else articles[2:]
    windows = published_windows(protocol, lab.tokenizer, part, context, stride)
    scored = score(lab, read(lab, part, protocol, context, stride))
    assert scored.nll.dtype == np.float64
    np.testing.assert_allclose(scored.nll[scored.predicted], exact_nll(lab.model, windows), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(("protocol", "context", "stride"), WINDOWS)
def test_tokens_that_windows_score_are_predicted_and_no_others(tiny_lab, articles, protocol, context, stride):
    tokenized = read(tiny_lab, articles, protocol, context, stride)
    scored = score(tiny_lab, tokenized)
    expected = np.zeros(len(tokenized.ids), bool)
    for _, first, end in tokenized.windows.tolist():
        expected[first:end] = True
    assert (scored.predicted == expected).all()
    assert (scored.tokenized, scored.model, scored.vocabulary) == (tokenized, tiny_lab.name, 300)


@pytest.mark.parametrize("tokens", [1, SPLIT, 10_000])
@pytest.mark.parametrize(("protocol", "context", "stride"), [("sliding", 16, 5), ("lm-eval", 16, 16)])
def test_neither_batches_nor_the_order_of_windows_change_the_nlls(
    tiny_lab, articles, monkeypatch, new_cache, protocol, context, stride, tokens
):
    tokenized = read(tiny_lab, articles, protocol, context, stride)
    expected = score(tiny_lab, tokenized).nll
    shuffled = dataclasses.replace(tokenized, windows=np.random.default_rng(0).permutation(tokenized.windows))
    monkeypatch.setattr(scorer, "TOKENS_AT_ONCE", {"cpu": tokens})
    for again in (tokenized, shuffled):
        new_cache()
        np.testing.assert_allclose(score(tiny_lab, again).nll, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, SPLIT, 4096])
@pytest.mark.parametrize(("protocol", "context", "stride"), WINDOWS)
def test_batches_hold_windows_of_one_shape_each_once_and_no_more_than_fit(
    tiny_lab, articles, batches, monkeypatch, protocol, context, stride, tokens
):
    monkeypatch.setattr(scorer, "TOKENS_AT_ONCE", {"cpu": tokens})
    tokenized = read(tiny_lab, articles[2:], protocol, context, stride)
    score(tiny_lab, tokenized)
    shapes = [(end - start, first - start) for start, first, end in tokenized.windows.tolist() if first < end]
    assert sorted((length, first) for (rows, length), first in batches for _ in range(rows)) == sorted(shapes)
    assert all(rows == 1 or rows * length <= tokens for (rows, length), _ in batches)
    if tokens == 4096:
        assert len(batches) == len(set(shapes))  # nothing is split that need not be


@pytest.mark.parametrize(("protocol", "context", "stride"), WINDOWS)
def test_attention_is_called_without_a_mask(tiny_lab, articles, monkeypatch, protocol, context, stride):
    calls, attention = [], F.scaled_dot_product_attention

    def spy(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **others):
        calls.append((query.shape[-2], attn_mask, is_causal, dropout_p))
        return attention(query, key, value, attn_mask, dropout_p, is_causal, **others)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    score(tiny_lab, read(tiny_lab, articles[2:], protocol, context, stride))
    assert calls and all(mask is None and not dropout for _, mask, _, dropout in calls)
    assert all(causal for queries, _, causal, _ in calls if queries > 1)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_while_scoring_and_the_mode_is_as_before(random_lab, articles, new_cache, training):
    lab = random_lab(resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    tokenized = read(lab, articles)
    expected = score(lab, tokenized).nll
    lab.model.train(training)
    new_cache()
    for _ in score.steps(lab, tokenized):
        assert all(module.training == training for module in lab.model.modules())
    assert np.array_equal(score(lab, tokenized).nll, expected, equal_nan=True)
    assert all(module.training == training for module in lab.model.modules())


def test_mode_is_as_before_when_scoring_fails(random_lab, articles, monkeypatch):
    lab = random_lab()
    lab.model.train()
    monkeypatch.setattr(scorer, "token_nll", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        score(lab, read(lab, articles))
    assert lab.model.training


def test_scoring_leaves_ids_and_gradients_alone(tiny_lab, articles):
    tokenized = read(tiny_lab, articles)
    ids, windows = tokenized.ids.copy(), tokenized.windows.copy()
    score(tiny_lab, tokenized)
    assert np.array_equal(tokenized.ids, ids) and np.array_equal(tokenized.windows, windows)
    assert torch.is_grad_enabled()
    assert all(weight.grad is None for weight in tiny_lab.model.parameters())


@pytest.mark.parametrize(("context", "stride"), [(64, 64), (64, 32), (16, 16), (2, 2)])
def test_logits_held_at_a_time_are_limited(tiny_lab, letters, monkeypatch, context, stride):
    # the share of GPT-2's limit that a vocabulary of 300 has of its 50,257, so that batches are to it as GPT-2's are
    limit = model_module.LOGITS_AT_ONCE * 300 // 50_257
    monkeypatch.setattr(model_module, "LOGITS_AT_ONCE", limit)
    sizes = []
    hook = tiny_lab.model.lm_head.register_forward_hook(lambda *call: sizes.append(call[-1].numel()))
    with contextlib.closing(hook_removed(hook)):
        scored = score(tiny_lab, read(tiny_lab, (letters(5000),), "sliding", context, stride))
    assert sum(sizes) == 300 * scored.predicted.sum()  # and they are computed for scored positions alone
    assert max(sizes) <= limit


def hook_removed(hook):
    """Something to close that removes a hook."""
    hook.close = hook.remove
    return hook


def test_scored_of_another_length_than_its_reading_is_refused(tiny_lab, articles):
    tokenized = read(tiny_lab, articles)
    with pytest.raises(ValueError, match=r"nll of shape \(3,\), ids of"):
        ScoredText(tokenized, np.zeros(3), "m", 300)


# damaged weights


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_give_no_probability_are_refused_with_the_token(random_lab, articles, value):
    lab = random_lab()
    with torch.no_grad():
        lab.model.transformer.ln_f.bias[0] = value
    with pytest.raises(LabError, match=r"^random gives token 1 no finite probability; its weights are damaged"):
        score(lab, read(lab, articles))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_token_without_a_probability_is_named_by_its_place_in_the_text(tiny_lab, letters, monkeypatch, value):
    def nll(model, input_ids, *, first=1):
        found = token_nll(model, input_ids, first=first)
        return torch.where(input_ids[:, first:] == 41, value, found)  # "J"

    monkeypatch.setattr(scorer, "token_nll", nll)
    text = letters(1500).text.replace("J", "B")
    tokenized = read(tiny_lab, (dataclasses.replace(letters(1), rows=(text[:1234] + "J" + text[1235:],)),))
    with pytest.raises(LabError, match=r"gives token 1,234 no finite probability"):
        score(tiny_lab, tokenized)


@pytest.mark.usefixtures("small_batches")
def test_nlls_before_a_token_without_a_probability_are_kept_and_it_is_not(tiny_lab, articles, monkeypatch, batches):
    tokenized, calls = read(tiny_lab, articles), []
    spied = scorer.token_nll

    def third_fails(*args, **options):
        calls.append(1)
        return spied(*args, **options) + (float("nan") if len(calls) == 3 else 0)

    monkeypatch.setattr(scorer, "token_nll", third_fails)
    with pytest.raises(LabError, match="no finite probability"):
        score(tiny_lab, tokenized)
    assert next(score.steps(tiny_lab, tokenized))[0] == sum(rows for (rows, _), _ in batches[:2])


# the cache


@pytest.mark.parametrize(("protocol", "context", "stride"), WINDOWS)
def test_second_score_runs_no_forward_pass(tiny_lab, articles, batches, protocol, context, stride):
    first = score(tiny_lab, read(tiny_lab, articles[2:], protocol, context, stride))
    passes = len(batches)
    second = score(tiny_lab, read(tiny_lab, articles[2:], protocol, context, stride))
    assert len(batches) == passes > 0
    assert np.array_equal(first.nll, second.nll, equal_nan=True)


def test_nlls_are_kept_for_the_weights_and_not_for_the_name(tiny_lab, articles, batches):
    score(tiny_lab, read(tiny_lab, articles))
    passes = len(batches)
    twin = Lab(tiny_lab.model, tiny_lab.tokenizer, "another name")
    assert score(twin, read(twin, articles)).model == "another name"
    assert len(batches) == passes


@pytest.mark.parametrize("change", ["weights", "one weight", "ids", "context", "stride", "protocol"])
def test_nlls_of_anything_else_are_not_taken(random_lab, articles, batches, change):
    lab, tokenized = random_lab(), {"protocol": "sliding", "context": 16, "stride": 8}
    score(lab, read(lab, articles, **tokenized))
    if change == "weights":
        lab = random_lab(1)
    elif change == "one weight":
        with torch.no_grad():
            lab.model.transformer.h[1].mlp.c_fc.bias[3] += 1e-3
    elif change == "ids":  # as many, and the same windows
        articles = tuple(
            dataclasses.replace(article, rows=tuple(row.replace("=", "~") for row in article.rows))
            for article in articles
        )
    else:
        tokenized |= {"context": {"context": 15}, "stride": {"stride": 7}, "protocol": {"protocol": "lm-eval"}}[change]
    passes = len(batches)
    scored = score(lab, read(lab, articles, **tokenized))
    assert len(batches) > passes
    assert scored.predicted.sum() == sum(rows * (length - first) for (rows, length), first in batches[passes:])


@pytest.mark.parametrize(
    "changes",
    [
        {"activation_function": "relu"},
        {"activation_function": "gelu"},
        {"layer_norm_epsilon": 1e-2},
        {"n_head": 2},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
    ],
    ids=str,
)
def test_nlls_of_the_same_weights_computed_otherwise_are_not_taken(
    random_lab, articles, published_windows, exact_nll, changes
):
    plain, other = random_lab(), random_lab(**changes)
    other.model.load_state_dict(plain.model.state_dict())
    first, second = (score(lab, read(lab, articles)) for lab in (plain, other))
    windows = published_windows("sliding", other.tokenizer, articles, 16, 16)
    np.testing.assert_allclose(second.nll[second.predicted], exact_nll(other.model, windows), rtol=2e-5, atol=1e-5)
    assert not np.allclose(first.nll, second.nll, equal_nan=True)


def npz(**arrays):
    return lambda path: np.savez(path, **arrays)


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10  # amid the data
    path.write_bytes(content)


def cut(share):
    return lambda path: path.write_bytes(path.read_bytes()[: int(len(path.read_bytes()) * share)])


def infinite(path):
    with np.load(path) as file:
        nll = file["nll"]
    nll[5] = np.inf
    np.savez(path, nll=nll)


def in_float64(path):
    with np.load(path) as file:
        nll = file["nll"]
    np.savez(path, nll=nll.astype(np.float64) + 1)


def made_a_folder(path):
    path.unlink()
    path.mkdir()


def array_alone(path):
    with path.open("wb") as file:
        np.save(file, np.ones(3, np.float32))


def marked_in_the_archive(offset, bit):
    """One bit flipped in what the zip archive's directory says of its file."""

    def damage(path):
        content = bytearray(path.read_bytes())
        content[content.index(b"PK\x01\x02") + offset] ^= bit
        path.write_bytes(content)

    return damage


DAMAGES = {
    "cut short": cut(0.6),
    "cut by a byte": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "one byte flipped": flipped,
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(bytes(range(256)) * 40),
    "text": lambda path: path.write_text("not numpy"),
    "wrong shape": npz(nll=np.ones(7, np.float32)),
    "two axes": npz(nll=np.ones((2, 7), np.float32)),
    "a single number": npz(nll=np.float32(1)),
    "float64": in_float64,
    "another name": npz(loss=np.ones(7, np.float32)),
    "pickle": npz(nll=np.array([{}], dtype=object)),
    "array without an archive": array_alone,
    "archive that says it is encrypted": marked_in_the_archive(8, 1),
    "archive of an unknown compression": marked_in_the_archive(10, 1),
    "archive of another version": marked_in_the_archive(6, 128),
    "infinite": infinite,
    "a folder": made_a_folder,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_cache_is_computed_again(tiny_lab, articles, batches, damage):
    tokenized = read(tiny_lab, articles)
    first = score(tiny_lab, tokenized)
    passes = len(batches)
    damage(cached_file())
    again = score(tiny_lab, tokenized)
    assert len(batches) == 2 * passes
    assert np.array_equal(first.nll, again.nll, equal_nan=True)
    score(tiny_lab, tokenized)
    assert len(batches) == (3 if damage is made_a_folder else 2) * passes


def test_no_flipped_bit_of_the_cache_changes_a_score(tiny_lab, letters, monkeypatch):
    tokenized = read(tiny_lab, (letters(6),))
    first = score(tiny_lab, tokenized).nll
    path = cached_file()
    content = path.read_bytes()
    monkeypatch.setattr(scorer, "write_bytes", lambda *_: None)  # it would only be damaged again
    failed = set()
    for i in range(len(content)):
        damaged = bytearray(content)
        damaged[i] ^= 1 << random.Random(i).randrange(8)
        path.write_bytes(damaged)
        try:
            assert np.array_equal(score(tiny_lab, tokenized).nll, first, equal_nan=True), i
        except Exception as error:  # gathered, so that one run reports all of them
            failed.add(f"{type(error).__name__}: {error}")
    assert not failed


@pytest.mark.parametrize("place", ["file", "file/deeper"])
def test_cache_that_cannot_be_written_is_done_without(tiny_lab, articles, batches, tmp_path, monkeypatch, place):
    tokenized = read(tiny_lab, articles)
    expected = score(tiny_lab, tokenized).nll
    passes = len(batches)
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GPT2LAB_CACHE", str(tmp_path / place))
    assert np.array_equal(score(tiny_lab, tokenized).nll, expected, equal_nan=True)
    assert np.array_equal(score(tiny_lab, tokenized).nll, expected, equal_nan=True)
    assert len(batches) == 3 * passes
    assert (tmp_path / "file").read_text() == "in the way"


# broken off


class StoppedError(Exception):
    """What a caller stops with."""


def stop_after(calls):
    """A progress function that raises once it has been called so often."""
    seen = itertools.count(1)

    def on_progress(done, total):
        if next(seen) > calls:
            raise StoppedError

    return on_progress


@pytest.mark.usefixtures("small_batches")
def test_closed_scoring_keeps_what_it_did_and_the_next_runs_the_rest(tiny_lab, articles, batches, new_cache):
    tokenized = read(tiny_lab, articles)
    whole = score(tiny_lab, tokenized).nll
    total = len(batches)
    batches.clear()
    new_cache()
    steps = score.steps(tiny_lab, tokenized)
    done = [next(steps) for _ in range(4)][-1][0]
    steps.close()
    assert len(batches) == 3
    rest = score.steps(tiny_lab, tokenized)
    assert next(rest)[0] == done == sum(rows for (rows, _), _ in batches)
    rest.close()
    resumed = score(tiny_lab, tokenized)
    assert len(batches) == total
    np.testing.assert_allclose(resumed.nll, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("small_batches")
def test_stop_in_on_progress_keeps_what_was_done(tiny_lab, articles, batches, new_cache):
    tokenized = read(tiny_lab, articles)
    whole = score(tiny_lab, tokenized).nll
    total = len(batches)
    batches.clear()
    new_cache()
    with pytest.raises(StoppedError) as stopped:
        score(tiny_lab, tokenized, on_progress=stop_after(3))
    assert len(batches) == 3
    resumed = score(tiny_lab, tokenized)
    assert stopped.value.__traceback__ is not None  # at hand as sys.last_value is in a notebook: nothing is freed yet
    assert len(batches) == total
    np.testing.assert_allclose(resumed.nll, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("small_batches")
def test_error_in_a_forward_pass_keeps_what_was_done(tiny_lab, articles, batches, monkeypatch):
    tokenized, spied = read(tiny_lab, articles), scorer.token_nll

    def out_of_memory(*args, **options):
        if len(batches) == 2:
            raise MemoryError
        return spied(*args, **options)

    monkeypatch.setattr(scorer, "token_nll", out_of_memory)
    with pytest.raises(MemoryError):
        score(tiny_lab, tokenized)
    assert next(score.steps(tiny_lab, tokenized))[0] == sum(rows for (rows, _), _ in batches)


@pytest.mark.usefixtures("small_batches")
def test_scoring_saves_along_the_way(tiny_lab, articles, monkeypatch):
    monkeypatch.setattr(scorer, "SAVE_SECONDS", 0)
    tokenized = read(tiny_lab, articles)
    steps = score.steps(tiny_lab, tokenized)
    for done, _ in itertools.islice(steps, 4):
        if done:
            with np.load(cached_file()) as file:  # as it lies there were the process killed now
                saved = file["nll"]
            assert (~np.isnan(saved)).sum() == done * 15
    steps.close()


@pytest.mark.usefixtures("small_batches")
def test_scoring_does_not_save_after_every_batch(tiny_lab, articles, monkeypatch):
    saves = []
    monkeypatch.setattr(scorer, "write_bytes", lambda *_: saves.append(1))
    score(tiny_lab, read(tiny_lab, articles))
    assert len(saves) == 1


def test_scoring_that_found_everything_kept_does_not_save(tiny_lab, articles, monkeypatch):
    score(tiny_lab, read(tiny_lab, articles))
    saves = []
    monkeypatch.setattr(scorer, "write_bytes", lambda *_: saves.append(1))
    score(tiny_lab, read(tiny_lab, articles))
    assert not saves


# progress


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize(("protocol", "context", "stride"), WINDOWS)
def test_progress_rises_from_nothing_to_all_windows(tiny_lab, articles, batches, protocol, context, stride):
    tokenized, seen = read(tiny_lab, articles[2:], protocol, context, stride), []
    score(tiny_lab, tokenized, on_progress=lambda *progress: seen.append(progress))
    total = int((tokenized.windows[:, 1] < tokenized.windows[:, 2]).sum())
    assert {of for _, of in seen} == {total}
    rows = [rows for (rows, _), _ in batches]
    assert [done for done, _ in seen] == [0, *itertools.accumulate(rows)]
    assert seen[-1] == (total, total)


def test_window_with_nothing_to_score_is_neither_run_nor_counted(tiny_lab, letters, batches):
    tokenized, seen = read(tiny_lab, (letters(9),), "sliding", 4), []
    assert tokenized.windows[-1].tolist() == [8, 9, 9]
    score(tiny_lab, tokenized, on_progress=lambda *progress: seen.append(progress))
    assert (seen, batches) == ([(0, 2), (2, 2)], [((2, 4), 1)])


@pytest.mark.usefixtures("small_batches")
def test_progress_starts_at_what_is_kept(tiny_lab, articles):
    tokenized, seen = read(tiny_lab, articles), []
    steps = score.steps(tiny_lab, tokenized)
    for _ in range(3):
        done, total = next(steps)
    steps.close()
    score(tiny_lab, tokenized, on_progress=lambda *progress: seen.append(progress))
    assert (seen[0], seen[-1]) == ((done, total), (total, total))
    seen.clear()
    score(tiny_lab, tokenized, on_progress=lambda *progress: seen.append(progress))
    assert seen == [(total, total)]


def test_scorings_of_the_same_at_the_same_time_keep_what_both_have_done(tiny_lab, articles, batches):
    tokenized = read(tiny_lab, articles)
    slow, quick = score.steps(tiny_lab, tokenized), score.steps(tiny_lab, tokenized)
    next(slow), next(slow)  # has begun, and done one batch
    whole = finished(quick)
    slow.close()  # what it keeps now is less than what the quick one has kept
    batches.clear()
    assert np.array_equal(score(tiny_lab, tokenized).nll, whole.nll, equal_nan=True)
    assert batches == []


def test_oldest_scorings_make_room_for_the_newest(tiny_lab, articles, monkeypatch):
    readings = [read(tiny_lab, articles, context=context) for context in (8, 9, 10)]
    score(tiny_lab, readings[0])
    folder, room = cached_file().parent, cached_file().stat().st_size * 2
    os.utime(cached_file(), (1, 1))
    (oldest,) = folder.iterdir()
    monkeypatch.setattr(scorer, "CACHE_BYTES", room + 400)
    score(tiny_lab, readings[1])
    assert len(list(folder.iterdir())) == 2
    score(tiny_lab, readings[2])
    assert len(list(folder.iterdir())) == 2
    assert not oldest.exists()


# precision


@pytest.mark.filterwarnings("ignore:bf16 is slow")
@pytest.mark.parametrize("order", [("fp32", "bf16"), ("bf16", "fp32")])
def test_each_precision_has_scores_of_its_own(tiny_lab, articles, batches, new_cache, order):
    tokenized = read(tiny_lab, articles)
    alone = {}
    for name in order:
        new_cache()
        alone[name] = score(tiny_lab, tokenized, precision=name)
    new_cache()
    found = {name: score(tiny_lab, tokenized, precision=name) for name in order}
    batches.clear()
    again = {name: score(tiny_lab, tokenized, precision=name) for name in order}
    assert not batches  # all of it was cached
    for name in order:
        assert again[name].precision == name
        for other in (found[name], again[name]):
            np.testing.assert_allclose(other.nll, alone[name].nll, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found["bf16"].nll, found["fp32"].nll, atol=0.3)
    assert np.nanmax(np.abs(found["bf16"].nll - found["fp32"].nll)) > 1e-3


@pytest.mark.filterwarnings("ignore:bf16 is slow")
@pytest.mark.parametrize(("n", "checked"), [(1, 1), (2, 2), (30, 2), (100, 5), (400, 8)])
def test_bf16_scores_some_windows_in_fp32_too_spread_over_the_text(tiny_lab, letters, n, checked):
    tokenized, seen = read(tiny_lab, (letters(8 * n),), context=8), []
    scored = score(tiny_lab, tokenized, on_progress=lambda *progress: seen.append(progress), precision="bf16")
    exact = score(tiny_lab, tokenized)
    both = ~np.isnan(scored.exact)
    assert both.sum() == 7 * checked
    np.testing.assert_allclose(scored.exact[both], exact.nll[both], rtol=1e-5, atol=1e-5)
    parts = np.flatnonzero(both) * checked // (8 * n)
    assert np.unique(parts).tolist() == list(range(checked))  # one in each equal part of the text
    assert (seen[0], seen[-1]) == ((0, n + checked), (n + checked, n + checked))
    assert exact.exact is None


def test_unknown_precision_is_refused(tiny_lab, articles):
    with pytest.raises(LabError, match="precision 'int8' is unknown; use fp32, bf16"):
        score(tiny_lab, read(tiny_lab, articles), precision="int8")

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from gpt2lab.errors import LabError
from gpt2lab.inspection import surprisal as module
from gpt2lab.inspection.surprisal import MAX_CHARACTERS, surprisal, surprisal_of_ids
from gpt2lab.progress import finished

TEXT = "The moon is a small world that goes around the earth, and the sea follows it twice."


@torch.no_grad()
def logits_of(lab, ids):
    return lab.model(ids[None]).logits[0]


def test_surprisal_is_the_cross_entropy_and_rank_that_of_a_full_sort(tiny_lab):
    found, ids = surprisal(tiny_lab, TEXT, top=6), tiny_lab.encode(TEXT)
    logits = logits_of(tiny_lab, ids)
    expected = F.cross_entropy(logits[:-1], ids[1:], reduction="none")
    torch.testing.assert_close(found.nll[1:], expected, atol=1e-5, rtol=1e-4)
    order = logits[:-1].sort(descending=True).indices
    assert found.rank[1:].tolist() == [1 + row.tolist().index(i) for row, i in zip(order, ids[1:].tolist())]
    own = logits.softmax(-1)
    torch.testing.assert_close(found.entropy[1:], -(own * own.log()).sum(-1), atol=1e-5, rtol=1e-4)
    assert torch.equal(found.top[1:], own.topk(6).indices)
    torch.testing.assert_close(found.top_probability[1:], own.topk(6).values, atol=1e-6, rtol=1e-4)
    assert found.loss == pytest.approx(float(expected.mean()), rel=1e-5)
    torch.testing.assert_close(found.bits[1:], expected / math.log(2), atol=1e-5, rtol=1e-4)


def test_first_token_has_no_prediction(tiny_lab):
    found = surprisal(tiny_lab, TEXT)
    assert math.isnan(found.nll[0]) and found.rank[0] == 0 and math.isnan(found.entropy[0])
    assert found.top[0].tolist() == [-1] * 10 and bool(found.top_probability[0].isnan().all())
    one = surprisal(tiny_lab, "x")
    assert (one.tokens, one.top.shape, math.isnan(one.loss)) == (("x",), (2, 10), True)


@pytest.mark.parametrize("n", [63, 64, 65, 96, 97, 150])
def test_window_moves_on_by_half_a_context_and_each_token_sees_the_most_it_can(tiny_lab, n, monkeypatch):
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 300 * 7)
    ids = torch.randint(299, (n,), generator=torch.Generator().manual_seed(n))
    steps = surprisal_of_ids.steps(tiny_lab, ids)
    steps_seen = []
    found = finished(steps, lambda *progress: steps_seen.append(progress))
    assert steps_seen[-1] == (n, n) and [done for done, _ in steps_seen] == sorted(done for done, _ in steps_seen)
    begin = 0
    for t in range(1, n):
        if t > begin + 64:
            begin += 32
        own = logits_of(tiny_lab, ids[begin:t])[-1].log_softmax(-1)
        assert float(found.nll[t]) == pytest.approx(-float(own[ids[t]]), rel=1e-3, abs=1e-4)
        assert t - begin >= 32 or begin == 0


def test_buckets_count_every_predicted_token_once(tiny_lab):
    found = surprisal(tiny_lab, TEXT)
    ranks = found.rank[1:].tolist()
    counts = dict(replace(found, limits=(1, 10, 100)).buckets)
    expected = {
        "1": sum(r == 1 for r in ranks),
        "2 to 10": sum(1 < r <= 10 for r in ranks),
        "11 to 100": sum(10 < r <= 100 for r in ranks),
        "past 100": sum(r > 100 for r in ranks),
    }
    assert counts == expected and sum(counts.values()) == len(ranks)
    assert surprisal(tiny_lab, "x", limits=(1,)).buckets == [("1", 0), ("past 1", 0)]


@pytest.mark.parametrize("limits", [(), (10, 10), (10, 1), (0,), (1.5,), ("1",)])
def test_bad_limits_of_buckets_are_refused(tiny_lab, limits):
    with pytest.raises(LabError, match=r"do not rise|limit .* is out of range"):
        surprisal(tiny_lab, "xy", limits=limits)


def test_change_is_the_second_less_the_first(tiny_lab, random_lab):
    first, second = surprisal(tiny_lab, TEXT), surprisal(random_lab(seed=4), TEXT)
    torch.testing.assert_close(first.change(second)[1:], (second.nll - first.nll)[1:])
    with pytest.raises(LabError, match="read other tokens"):
        first.change(surprisal(tiny_lab, "The sea"))


def test_names_hold_every_top_prediction_as_it_is_shown(tiny_lab):
    found = surprisal(tiny_lab, TEXT)
    assert set(found.names) == set(found.top[1:].unique().tolist())
    assert all(found.names.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the text is empty"),
        ("x" * (MAX_CHARACTERS + 1), "the limit is 200,000: take a part of it"),
        ("\ud800", "lone surrogate"),
        (None, "NoneType"),
    ],
)
def test_bad_text_is_refused_at_once(tiny_lab, text, message):
    with pytest.raises(LabError, match=message):
        surprisal.steps(tiny_lab, text)


def test_top_out_of_range_is_refused(tiny_lab):
    with pytest.raises(LabError, match="top 0 is out of range"):
        surprisal(tiny_lab, "x", top=0)

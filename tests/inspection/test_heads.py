import pytest
import torch

from gpt2lab.errors import LabError
from gpt2lab.inspection.heads import (
    HeadScores,
    head_scores,
    induction_score,
    previous_token_score,
)
from gpt2lab.inspection.trace import Trace, trace_ids

LARGE = 100.0


def trace_of(q, k, ids=None):
    """A trace with given q and k (L, H, T, K), and zeros elsewhere."""
    L, _, T, _ = q.shape
    ids = torch.arange(T) if ids is None else ids
    return Trace(
        name="constructed",
        tokens=tuple("t" * T),
        ids=ids,
        logits=torch.zeros(T, 3),
        residual=torch.zeros(L + 1, T, 2),
        q=q,
        k=k,
        v=torch.zeros_like(q),
        scaling=(1.0,) * L,
    )


def looking_back(T, distance):
    """q (T, T) with which token i reads token i - distance; the first tokens read themselves."""
    return LARGE * torch.eye(T)[[i - distance if i >= distance else i for i in range(T)]]


def heads(*rows):
    """q of one layer with a head for each of `rows`, and a k of one-hot positions."""
    q = torch.stack(rows)[None]  # (1, H, T, T)
    return q, torch.eye(q.shape[2]).expand_as(q)


def shown_twice(n):
    return torch.arange(n).repeat(2)


def test_perfect_previous_token_head_scores_1_and_others_0():
    scores = previous_token_score(trace_of(*heads(looking_back(9, 1), looking_back(9, 0), looking_back(9, 2))))
    torch.testing.assert_close(scores, torch.tensor([[1.0, 0.0, 0.0]]))


def test_perfect_induction_head_scores_1_and_others_0():
    n = 6
    q, k = heads(looking_back(2 * n, n - 1), looking_back(2 * n, n), looking_back(2 * n, 1))
    scores = induction_score(trace_of(q, k, shown_twice(n)))
    torch.testing.assert_close(scores, torch.tensor([[1.0, 0.0, 0.0]]))


@pytest.mark.parametrize("T", [2, 3, 10])
def test_uniform_attention_has_the_closed_form_of_its_previous_token_score(T):
    scores = previous_token_score(trace_of(torch.zeros(2, 3, T, 4), torch.zeros(2, 3, T, 4)))
    torch.testing.assert_close(scores, torch.full((2, 3), sum(1 / (i + 1) for i in range(1, T)) / (T - 1)))


@pytest.mark.parametrize("n", [2, 5, 20])
def test_uniform_attention_has_the_closed_form_of_its_induction_score(n):
    zeros = torch.zeros(2, 3, 2 * n, 4)
    scores = induction_score(trace_of(zeros, zeros, shown_twice(n)))
    torch.testing.assert_close(scores, torch.full((2, 3), sum(1 / (i + 1) for i in range(n, 2 * n)) / n))


def test_scores_equal_sums_over_the_attention_of_each_head(tiny_lab):
    n = 11
    traced = trace_ids(tiny_lab, torch.randint(300, (n,), generator=torch.Generator().manual_seed(0)).repeat(2))
    previous, induction = previous_token_score(traced), induction_score(traced)
    for layer in range(traced.n_layers):
        for head in range(traced.n_heads):
            weights = traced.attention(layer, head)
            backward = sum(weights[i, i - 1] for i in range(1, 2 * n)) / (2 * n - 1)
            repeated = sum(weights[i, i - n + 1] for i in range(n, 2 * n)) / n
            torch.testing.assert_close(previous[layer, head], backward)
            torch.testing.assert_close(induction[layer, head], repeated)


def test_head_scores_are_shares_for_every_head_and_the_same_each_time(tiny_lab):
    first, again, other = head_scores(tiny_lab, seed=1), head_scores(tiny_lab, seed=1), head_scores(tiny_lab, seed=2)
    for name in ("previous_token", "induction"):
        scores = getattr(first, name)
        assert scores.shape == (2, 4)
        assert 0 < scores.min() < scores.max() < 1
        assert torch.equal(scores, getattr(again, name))
        assert not torch.equal(scores, getattr(other, name))


def test_head_scores_leave_the_global_random_state_alone(tiny_lab):
    before = torch.random.get_rng_state()
    head_scores(tiny_lab)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_head_scores_find_a_head_made_to_look_at_the_token_before(random_lab):
    lab = random_lab(n_embd=64, n_head=2, n_layer=1)
    make_previous_token_head(lab.model, head=1)
    scores = head_scores(lab)
    assert scores.top("previous_token", 1)[0][:2] == (0, 1)
    assert scores.previous_token[0, 1] > 0.9 > scores.previous_token[0, 0]
    assert scores.induction[0, 1] < 0.1


def make_previous_token_head(gpt2, head):
    """Positions become one-hot, and one head's keys of position j meet the queries of j + 1."""
    block, width = gpt2.transformer.h[0], 32
    with torch.no_grad():
        gpt2.transformer.wte.weight.zero_()
        gpt2.transformer.wpe.weight.copy_(torch.eye(64))
        block.attn.c_attn.bias.zero_()
        shift = torch.randn(65, width, generator=torch.Generator().manual_seed(0))
        block.attn.c_attn.weight[:, head * width : (head + 1) * width] = shift[:64]
        block.attn.c_attn.weight[:, 64 + head * width : 64 + (head + 1) * width] = shift[1:]


def test_top_lists_heads_from_the_highest():
    scores = HeadScores(torch.tensor([[0.1, 0.9], [0.5, 0.2]]), torch.tensor([[0.4, 0.3], [0.2, 0.6]]))
    assert [(layer, head) for layer, head, _ in scores.top("previous_token", 3)] == [(0, 1), (1, 0), (1, 1)]
    assert [score for *_, score in scores.top("previous_token", 3)] == pytest.approx([0.9, 0.5, 0.2])
    assert [(layer, head) for layer, head, _ in scores.top("induction", 99)] == [(1, 1), (0, 0), (0, 1), (1, 0)]
    assert len(scores.top("induction")) == 3


def test_unknown_score_is_refused_with_the_known_ones():
    scores = HeadScores(torch.zeros(1, 1), torch.zeros(1, 1))
    with pytest.raises(LabError, match=r"'tokens' is unknown; use previous_token or induction"):
        scores.top("tokens")


def test_scores_of_shapes_that_disagree_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 2\) and \(2, 1\)"):
        HeadScores(torch.zeros(1, 2), torch.zeros(2, 1))


def test_one_token_has_no_previous_token_score():
    with pytest.raises(LabError, match=r"no token before it; give at least 2"):
        previous_token_score(trace_of(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2)))


@pytest.mark.parametrize("ids", [[1, 2, 1, 3], [1, 2, 1], [1, 1], [1]])
def test_sequence_that_is_not_shown_twice_has_no_induction_score(ids):
    zeros = torch.zeros(1, 1, len(ids), 2)
    with pytest.raises(LabError, match=rf"{len(ids)} tokens are not a sequence shown twice"):
        induction_score(trace_of(zeros, zeros, torch.tensor(ids)))

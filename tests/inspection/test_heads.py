import re
from dataclasses import fields, replace
from math import lgamma, log

import pytest
import torch

from gpt2lab.errors import LabError
from gpt2lab.inspection.heads import (
    KINDS,
    REPEATED_SEQUENCES,
    ROLLOUT_CAVEAT,
    SCORES,
    STANDS_OUT,
    TEXT_SCORES,
    HeadScores,
    describe_head,
    head_scores,
    random_tokens_twice,
    rollout,
    trace_scores,
)
from gpt2lab.inspection.trace import Trace, trace, trace_ids

LARGE = 100.0
REPEATING, ONCE = "The moon and the moon and the sea", "The earth"


def trace_of(q, k, ids=None):
    """A trace with given q and k (L, H, T, K), and zeros elsewhere."""
    L, _, T, _ = q.shape
    ids = torch.arange(T) if ids is None else torch.as_tensor(ids)
    return Trace(
        name="constructed",
        tokens=tuple("t" * T),
        ids=ids,
        q=q,
        k=k,
        v=torch.zeros_like(q),
        scaling=(1.0,) * L,
    )


def looking_back(T, distance):
    """q (T, T) with which token i reads token i - distance; the first tokens read themselves."""
    return LARGE * torch.eye(T)[[i - distance if i >= distance else i for i in range(T)]]


def looking_at(places):
    """q (T, T) with which token i reads the token at places[i]."""
    return LARGE * torch.eye(len(places))[places]


def heads(*rows):
    """q of one layer with a head for each of `rows`, and a k of one-hot positions."""
    q = torch.stack(rows)[None]  # (1, H, T, T)
    return q, torch.eye(q.shape[2]).expand_as(q)


def uniform(T, ids=None, L=2, H=3):
    """A trace in which token i reads each of the tokens 0…i with weight 1 / (i + 1)."""
    return trace_of(torch.zeros(L, H, T, 4), torch.zeros(L, H, T, 4), ids)


def shown_twice(n):
    return torch.arange(n).repeat(2)


def scores_of(**known):
    """HeadScores of one layer, or of the shape of those known; the others are 0."""
    shape = next(iter(known.values())).shape
    return HeadScores(**{name: known.get(name, torch.zeros(shape)) for name in SCORES})


def test_perfect_previous_token_head_scores_1_and_others_0():
    scores = trace_scores(trace_of(*heads(looking_back(9, 1), looking_back(9, 0), looking_back(9, 2))))
    torch.testing.assert_close(scores["previous_token"], torch.tensor([[1.0, 0.0, 0.0]]))
    torch.testing.assert_close(scores["distance"], torch.tensor([[8 / 9, 0.0, 14 / 9]]))
    torch.testing.assert_close(scores["entropy"], torch.zeros(1, 3))


def test_perfect_induction_head_scores_1_and_others_0():
    n = 6
    q, k = heads(looking_back(2 * n, n - 1), looking_back(2 * n, n), looking_back(2 * n, 1))
    scores = trace_scores(trace_of(q, k, shown_twice(n)), ["induction", "duplicate_token"])
    torch.testing.assert_close(scores["induction"], torch.tensor([[1.0, 0.0, 0.0]]))
    torch.testing.assert_close(scores["duplicate_token"], torch.tensor([[0.0, 1.0, 0.0]]))


def test_perfect_first_token_head_scores_1_and_one_that_reads_itself_0():
    scores = trace_scores(trace_of(*heads(looking_at([0] * 7), looking_back(7, 0))))
    torch.testing.assert_close(scores["first_token"], torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(scores["distance"], torch.tensor([[3.0, 0.0]]))


@pytest.mark.parametrize(
    ("places", "score"),
    [
        ([0, 1, 0, 3, 2, 1], 1.0),  # each repeated token reads an earlier occurrence of itself
        ([0, 0, 2, 1, 4, 5], 0.0),  # itself does not count, and neither do tokens that are not repeated
        ([0, 1, 0, 3, 3, 5], 1 / 3),
        ([0, 1, 2, 3, 0, 3], 1 / 3),
    ],
)
def test_duplicate_token_score_counts_earlier_occurrences_of_repeated_tokens_only(places, score):
    traced = trace_of(*heads(looking_at(places)), ids=[5, 7, 5, 8, 5, 7])
    torch.testing.assert_close(trace_scores(traced)["duplicate_token"], torch.tensor([[score]]))


def test_text_without_a_repeated_token_has_no_duplicate_token_score():
    scores = trace_scores(uniform(4))
    assert scores["duplicate_token"].shape == (2, 3)
    assert scores["duplicate_token"].isnan().all()
    assert all(scores[name].isfinite().all() for name in TEXT_SCORES if name != "duplicate_token")


@pytest.mark.parametrize("T", [2, 3, 10, 300])
def test_uniform_attention_has_the_closed_forms_of_its_scores(T):
    ids = [0] * T  # every token but the first is repeated, with i earlier occurrences
    scores = trace_scores(uniform(T, ids))
    harmonic = sum(1 / (i + 1) for i in range(1, T)) / (T - 1)
    expected = {
        "previous_token": harmonic,
        "first_token": harmonic,
        "duplicate_token": 1 - harmonic,
        "entropy": lgamma(T + 1) / T,  # Σ ln(i + 1) = ln T!
        "distance": sum(i / 2 for i in range(T)) / T,
    }
    assert set(scores) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(
            scores[name], torch.full((2, 3), value), msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("n", [2, 5, 20])
def test_uniform_attention_has_the_closed_form_of_its_induction_score(n):
    scores = trace_scores(uniform(2 * n, shown_twice(n)), ["induction"])["induction"]
    torch.testing.assert_close(scores, torch.full((2, 3), sum(1 / (i + 1) for i in range(n, 2 * n)) / n))


def by_hand(weights, ids, n):
    """Every score of one head, by plain loops over its weights (T, T); n tokens were shown twice."""
    T, w = len(ids), weights.tolist()
    earlier = {i: [j for j in range(i) if ids[j] == ids[i]] for i in range(T)}
    repeated = [i for i in range(T) if earlier[i]]
    return {
        "previous_token": sum(w[i][i - 1] for i in range(1, T)) / (T - 1),
        "duplicate_token": sum(w[i][j] for i in repeated for j in earlier[i]) / len(repeated),
        "induction": sum(w[i][i - n + 1] for i in range(n, T)) / n,
        "first_token": sum(w[i][0] for i in range(1, T)) / (T - 1),
        "entropy": sum(-w[i][j] * log(w[i][j]) for i in range(T) for j in range(i + 1) if w[i][j] > 0) / T,
        "distance": sum(w[i][j] * (i - j) for i in range(T) for j in range(i + 1)) / T,
    }


def test_scores_equal_sums_over_the_attention_of_each_head(tiny_lab):
    n = 11
    ids = torch.randint(8, (n,), generator=torch.Generator().manual_seed(0)).repeat(2)  # few: repeated within a half
    traced = trace_ids(tiny_lab, ids)
    scores = trace_scores(traced, tuple(SCORES))
    for layer in range(traced.n_layers):
        for head in range(traced.n_heads):
            expected = by_hand(traced.attention(layer, head), ids.tolist(), n)
            assert {name: float(scores[name][layer, head]) for name in SCORES} == pytest.approx(expected, rel=1e-4)


def test_scoring_leaves_the_trace_as_it_was():
    q, k = torch.randn(2, 1, 2, 6, 4, generator=torch.Generator().manual_seed(0))
    traced = trace_of(q.clone(), k.clone(), shown_twice(3))
    trace_scores(traced, tuple(SCORES))
    rollout(traced)
    assert torch.equal(traced.q, q)
    assert torch.equal(traced.k, k)
    assert torch.equal(traced.ids, shown_twice(3))


def test_weights_are_computed_one_layer_at_a_time(tiny_lab, monkeypatch):
    asked, attention = [], Trace.attention

    def counted(self, layer, head=None, **options):
        asked.append(layer)
        return attention(self, layer, head, **options)

    monkeypatch.setattr(Trace, "attention", counted)
    trace_scores(trace(tiny_lab, ONCE))
    assert asked == [0, 1]


def test_head_scores_are_in_range_for_every_head_and_the_same_each_time(tiny_lab):
    first, again, other = head_scores(tiny_lab, seed=1), head_scores(tiny_lab, seed=1), head_scores(tiny_lab, seed=2)
    for name in SCORES:
        scores = getattr(first, name)
        assert scores.shape == (2, 4)
        assert 0 < scores.min() < scores.max() < (1 if name in KINDS else log(64) if name == "entropy" else 32)
        assert torch.equal(scores, getattr(again, name))
        assert not torch.equal(scores, getattr(other, name))


def test_head_scores_without_texts_are_means_over_random_tokens_shown_twice(tiny_lab):
    sequences = random_tokens_twice(tiny_lab, seed=3)
    assert len(sequences) == REPEATED_SEQUENCES
    assert all(len(ids) == 64 and torch.equal(ids[:32], ids[32:]) for ids in sequences)  # the context is 64
    each = [trace_scores(trace_ids(tiny_lab, ids), tuple(SCORES)) for ids in sequences]
    scores = head_scores(tiny_lab, seed=3)
    for name in SCORES:
        mean = sum(found[name] for found in each) / len(each)
        torch.testing.assert_close(getattr(scores, name), mean, atol=1e-4, rtol=1e-4)


def test_head_scores_of_texts_are_means_over_them_and_induction_is_not_theirs(tiny_lab):
    scores, random = head_scores(tiny_lab, [REPEATING, ONCE], seed=3), head_scores(tiny_lab, seed=3)
    long, short = (trace_scores(trace(tiny_lab, text)) for text in (REPEATING, ONCE))
    assert short["duplicate_token"].isnan().all()
    for name in ("previous_token", "first_token", "entropy", "distance"):
        torch.testing.assert_close(getattr(scores, name), (long[name] + short[name]) / 2)
    torch.testing.assert_close(scores.duplicate_token, long["duplicate_token"])
    torch.testing.assert_close(scores.induction, random.induction)


def test_head_scores_of_texts_that_repeat_nothing_have_no_duplicate_token_score(tiny_lab):
    scores = head_scores(tiny_lab, (ONCE,))
    assert scores.duplicate_token.isnan().all()
    assert scores.top("duplicate_token") == []
    assert scores.first_token.isfinite().all()


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("The moon", r"texts is a single text, 'The moon'; give a list of texts, \[text\]"),
        ([], "the list of texts is empty; give at least 1 text"),
        (["The moon", ""], "the prompt is empty"),
        (["The moon", "a"], "the text 'a' has 1 token, and none before it; give at least 2"),
        ([REPEATING * 20], "reads at most 64"),
    ],
)
def test_texts_that_cannot_be_scored_are_refused_in_one_line(tiny_lab, texts, message):
    with pytest.raises(LabError, match=message) as refused:
        head_scores(tiny_lab, texts)
    assert "\n" not in str(refused.value)


def test_head_scores_leave_the_global_random_state_alone(tiny_lab):
    before = torch.random.get_rng_state()
    head_scores(tiny_lab)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_head_scores_find_a_head_made_to_look_at_the_token_before(random_lab):
    lab = random_lab(n_embd=64, n_head=2, n_layer=1)
    make_previous_token_head(lab.model, head=1)
    for texts in (None, [REPEATING]):
        scores = head_scores(lab, texts)
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
    scores = scores_of(
        previous_token=torch.tensor([[0.1, 0.9], [0.5, 0.2]]), distance=torch.tensor([[4.0, 3.0], [2.0, 6.0]])
    )
    assert [(layer, head) for layer, head, _ in scores.top("previous_token", 3)] == [(0, 1), (1, 0), (1, 1)]
    assert [score for *_, score in scores.top("previous_token", 3)] == pytest.approx([0.9, 0.5, 0.2])
    assert scores.top("distance", 99) == [(1, 1, 6.0), (0, 0, 4.0), (0, 1, 3.0), (1, 0, 2.0)]
    assert len(scores.top("distance")) == 3


def test_top_leaves_out_heads_without_a_score():
    scores = scores_of(duplicate_token=torch.tensor([[torch.nan, 0.25], [0.5, torch.nan]]))
    assert scores.top("duplicate_token") == [(1, 0, 0.5), (0, 1, 0.25)]


def test_unknown_score_is_refused_with_the_known_ones():
    with pytest.raises(LabError, match=r"'tokens' is unknown; use previous_token, duplicate_token, induction, first"):
        scores_of(induction=torch.zeros(1, 1)).top("tokens")


def test_every_score_has_a_title_a_unit_and_one_sentence():
    assert [field.name for field in fields(HeadScores)] == [*SCORES, "name"]
    for title, unit, definition in SCORES.values():
        assert title
        assert re.fullmatch(r"share of attention, 0 to 1|nats, 0 to ln T|tokens", unit)
        assert definition.endswith(".")
        assert definition.count(".") == 1
    assert SCORES["previous_token"].title == "previous token"


@pytest.mark.parametrize("name", SCORES)
def test_scores_of_shapes_that_disagree_are_refused(name):
    with pytest.raises(ValueError, match=rf"'{name}': \(2, 1\).*; all are \(L, H\)"):
        replace(scores_of(induction=torch.zeros(1, 2)), **{name: torch.zeros(2, 1)})


def test_scores_without_layers_and_heads_are_refused():
    with pytest.raises(ValueError, match=r"all are \(L, H\)"):
        scores_of(induction=torch.zeros(3))


def test_one_token_has_no_scores():
    with pytest.raises(LabError, match=r"no token before it; give at least 2"):
        trace_scores(uniform(1))


@pytest.mark.parametrize("ids", [[1, 2, 1, 3], [1, 2, 1], [1, 1]])
def test_sequence_that_is_not_shown_twice_has_no_induction_score(ids):
    with pytest.raises(LabError, match=rf"{len(ids)} tokens are not a sequence shown twice"):
        trace_scores(uniform(len(ids), ids), ["induction"])


def grid(value, L=2, H=4, rest=0.0):
    """(L, H) of `rest`, with a value at layer 1, head 2."""
    values = torch.full((L, H), rest)
    values[1, 2] = value
    return values


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("previous_token", "a previous-token head: 0.83 of its attention goes to the token before"),
        ("duplicate_token", "a duplicate-token head: 0.83 of the attention of a token that occurred before"),
        ("induction", "an induction head: 0.83 of its attention goes to what followed the same token the first time"),
        ("first_token", "a first-token head: 0.83 of its attention goes to the first token"),
    ],
)
def test_head_above_the_threshold_is_named_for_what_it_does(name, kind):
    sentence = describe_head(scores_of(**{name: grid(0.83), "distance": grid(1.44, rest=2.0)}), 1, 2)
    assert sentence.startswith(f"Layer 1, head 2 is most of all {kind}")
    assert "(rank 1 of 8 among all heads)" in sentence
    assert sentence.endswith("looks 1.4 tokens back (rank 8 of 8), with an entropy of 0.00 nats (rank 1 of 8).")


def test_description_ranks_a_head_among_all_and_shows_its_second_kind():
    previous = torch.tensor([[0.9, 0.95, 0.1], [0.2, 0.3, 0.6]])
    first = torch.tensor([[0.0, 0.6, 0.7], [0.8, 0.9, 0.55]])
    sentence = describe_head(scores_of(previous_token=previous, first_token=first), 1, 2)
    assert (
        "a previous-token head: 0.60 of its attention goes to the token before (rank 3 of 6 among all heads)"
        in sentence
    )
    assert "; 0.55 of its attention goes to the first token (rank 5 of 6)." in sentence


def test_head_of_no_known_kind_is_described_as_such_with_its_largest_share():
    sentence = describe_head(scores_of(previous_token=grid(0.12), first_token=grid(STANDS_OUT, rest=0.7)), 1, 2)
    assert sentence.startswith(
        "Layer 1, head 2 follows no known pattern that stands out: "
        "at most, 0.50 of its attention goes to the first token (rank 8 of 8 among all heads)."
    )
    assert "most of all" not in sentence


@pytest.mark.parametrize("T", [2, 3, 20])
def test_uniform_attention_is_of_no_known_kind_however_short_the_text(T):
    scores = trace_scores(uniform(T))
    sentence = describe_head(HeadScores(**scores, induction=torch.zeros(2, 3)), 0, 1)
    assert "no known pattern that stands out" in sentence


def test_description_says_where_a_score_is_unknown():
    known = scores_of(first_token=grid(0.9))
    unknown = replace(known, duplicate_token=torch.full((2, 4), torch.nan))
    assert "duplicate score is unknown" not in describe_head(known, 1, 2)
    sentence = describe_head(unknown, 1, 2)
    assert sentence.endswith("No token was repeated, so that its duplicate score is unknown.")
    assert "nan" not in sentence


@pytest.mark.parametrize(("layer", "head", "message"), [(2, 0, "layer 2"), (-1, 0, "layer -1"), (0, 4, "head 4")])
def test_head_that_does_not_exist_cannot_be_described(layer, head, message):
    with pytest.raises(LabError, match=f"{message} is out of range"):
        describe_head(scores_of(first_token=grid(0.9)), layer, head)


def test_rollout_equals_a_plain_loop(tiny_lab):
    traced = trace(tiny_lab, REPEATING)
    T, L, H = len(traced.tokens), traced.n_layers, traced.n_heads
    flow = [[float(i == j) for j in range(T)] for i in range(T)]
    for layer in range(L):
        weights = [traced.attention(layer, head).tolist() for head in range(H)]
        step = [[0.5 * sum(w[i][j] for w in weights) / H + 0.5 * (i == j) for j in range(T)] for i in range(T)]
        flow = [[sum(step[i][m] * flow[m][j] for m in range(T)) for j in range(T)] for i in range(T)]
    torch.testing.assert_close(rollout(traced).weights, torch.tensor(flow))


def test_rows_of_rollout_sum_to_1_and_nothing_comes_from_ahead(tiny_lab):
    mixed = rollout(trace(tiny_lab, REPEATING)).weights
    torch.testing.assert_close(mixed.sum(-1), torch.ones(len(mixed)))
    assert torch.equal(mixed, mixed.tril())


def test_rollout_through_heads_that_read_the_token_before_is_binomial():
    q, k = (part.expand(3, -1, -1, -1) for part in heads(looking_back(6, 1)))  # three layers
    torch.testing.assert_close(rollout(trace_of(q, k)).weights[5], torch.tensor([0, 0, 1, 3, 3, 1]) / 8)


def test_rollout_multiplies_later_layers_from_the_left():
    back, to_first = heads(looking_back(3, 1)), heads(looking_at([0, 0, 0]))
    q, k = (torch.cat(parts) for parts in zip(back, to_first))
    torch.testing.assert_close(rollout(trace_of(q, k)).weights[2], torch.tensor([0.5, 0.25, 0.25]))


def test_caveat_of_rollout_is_reported():
    assert "early tokens" in ROLLOUT_CAVEAT
    assert "no causal evidence" in ROLLOUT_CAVEAT

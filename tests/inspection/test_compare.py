from dataclasses import replace

import pytest
import torch

from gpt2lab.errors import LabError
from gpt2lab.inspection.compare import DISTANCE, Comparison, compare
from gpt2lab.inspection.trace import Trace, trace, trace_ids

LARGE = 100.0
TEXT = "The moon is a small world"


def reading(*heads, name="made", ids=None):
    """A trace of one layer, whose head h reads, from token i, the token at heads[h][i]."""
    T = len(heads[0])
    q = LARGE * torch.stack([torch.eye(T)[list(places)] for places in heads])[None]
    return Trace(
        name=name,
        tokens=tuple("t" * T),
        ids=torch.arange(T) if ids is None else torch.tensor(ids),
        q=q,
        k=torch.eye(T).expand_as(q),
        v=torch.zeros_like(q),
        scaling=(1.0,),
    )


@pytest.fixture(scope="module")
def two(tiny_lab, random_lab):
    """Two models on one text."""
    return trace(tiny_lab, TEXT), trace(random_lab(seed=1), TEXT)


def test_identical_traces_have_distance_0_everywhere(two):
    comparison = compare(two[0], two[0])
    assert torch.equal(comparison.total_variation, torch.zeros(2, 4))
    assert torch.equal(comparison.difference(1), torch.zeros(4, *comparison.difference(1, 0).shape))


def test_disjoint_attention_has_distance_1():
    comparison = compare(reading([0, 1, 2, 3], [0, 0, 0, 0]), reading([0, 0, 1, 2], [0, 0, 0, 0]))
    torch.testing.assert_close(comparison.total_variation, torch.tensor([[1.0, 0.0]]))


def test_distance_is_the_mean_over_tokens_that_have_a_choice():
    comparison = compare(reading([0, 1, 2, 3]), reading([0, 1, 0, 3]))
    torch.testing.assert_close(comparison.total_variation, torch.tensor([[1 / 3]]))


@pytest.mark.parametrize("T", [2, 5, 40])
def test_uniform_attention_against_a_head_that_reads_itself_has_a_closed_form(T):
    itself = reading(range(T))
    uniform = replace(itself, q=torch.zeros_like(itself.q))
    expected = sum(i / (i + 1) for i in range(1, T)) / (T - 1)
    torch.testing.assert_close(compare(uniform, itself).total_variation, torch.tensor([[expected]]))


def test_distance_equals_a_plain_loop_and_is_symmetric(two):
    comparison, T = compare(*two), len(two[0].tokens)
    for layer in range(2):
        for head in range(4):
            p, q = (each.attention(layer, head).tolist() for each in two)
            rows = [sum(abs(p[i][j] - q[i][j]) for j in range(T)) / 2 for i in range(1, T)]
            assert float(comparison.total_variation[layer, head]) == pytest.approx(sum(rows) / (T - 1), rel=1e-5)
    torch.testing.assert_close(compare(*reversed(two)).total_variation, comparison.total_variation)
    assert 0 < comparison.total_variation.min() < comparison.total_variation.max() < 1


def test_difference_is_the_second_less_the_first(two):
    comparison = compare(*two)
    for layer in range(2):
        every = comparison.difference(layer)
        torch.testing.assert_close(every, two[1].attention(layer) - two[0].attention(layer))
        torch.testing.assert_close(comparison.difference(layer, 3), every[3])
        torch.testing.assert_close(every.sum(-1), torch.zeros(every.shape[:2]), atol=1e-5, rtol=0)
        assert -1 <= every.min() < 0 < every.max() <= 1


def test_difference_keeps_its_sign_and_its_place():
    change = compare(reading([0, 1, 2]), reading([0, 1, 0])).difference(0, 0)
    torch.testing.assert_close(change, torch.tensor([[0.0, 0, 0], [0, 0, 0], [1, 0, -1]]))


def test_top_lists_the_heads_that_differ_most(two):
    comparison = compare(*two)
    top = comparison.top(5)
    assert [value for *_, value in top] == sorted(comparison.total_variation.flatten().tolist(), reverse=True)[:5]
    assert all(float(comparison.total_variation[layer, head]) == value for layer, head, value in top)
    assert len(comparison.top(99)) == 8


def test_prompt_pair_on_one_model_is_compared_token_by_token(tiny_lab):
    ids = torch.tensor([5, 6, 7, 8])
    pair = trace_ids(tiny_lab, ids), trace_ids(tiny_lab, torch.tensor([5, 6, 9, 8]))
    comparison = compare(*pair)
    assert not comparison.same_text
    assert comparison.total_variation.shape == (2, 4)
    assert comparison.total_variation.min() > 0
    torch.testing.assert_close(comparison.difference(0)[:, :2], torch.zeros(4, 2, 4), atol=1e-6, rtol=0)


def test_two_models_on_one_text_have_the_same_text(two):
    assert compare(*two).same_text


def test_comparison_keeps_both_traces_and_changes_neither(two):
    before = [(t.q.clone(), t.k.clone(), t.ids.clone()) for t in two]
    comparison = compare(*two)
    comparison.difference(0)
    assert (comparison.base, comparison.other) == two
    for traced, kept in zip(two, before):
        assert all(torch.equal(now, then) for now, then in zip((traced.q, traced.k, traced.ids), kept))


def test_weights_are_computed_one_layer_at_a_time(two, monkeypatch):
    asked, attention = [], Trace.attention

    def counted(self, layer, head=None, **options):
        asked.append(layer)
        return attention(self, layer, head, **options)

    monkeypatch.setattr(Trace, "attention", counted)
    compare(*two)
    assert asked == [0, 0, 1, 1]


def test_texts_of_different_lengths_are_refused_with_both_counts():
    with pytest.raises(
        LabError,
        match=r"^3 tokens in the first text \(first\) and 4 in the second \(second\) do not pair up; lengthen or shorten",
    ) as no:
        compare(reading([0, 1, 2], name="first"), reading([0, 1, 2, 3], name="second"))
    assert "\n" not in str(no.value)


def test_models_of_different_shapes_are_refused_with_both(two, random_lab):
    deeper = trace(random_lab(n_layer=3), TEXT)
    with pytest.raises(LabError, match=r"has 2 layers of 4 heads and random has 3 layers of 4 heads; compare models"):
        compare(two[0], deeper)
    fewer = trace(random_lab(n_head=2), TEXT)
    with pytest.raises(
        LabError, match=r"random has 2 layers of 2 heads and .* has 2 layers of 4 heads; compare models"
    ):
        compare(fewer, two[0])


def test_one_token_cannot_be_compared():
    with pytest.raises(LabError, match=r"^a single token attends only to itself; compare texts of at least 2 tokens$"):
        compare(reading([0]), reading([0]))


@pytest.mark.parametrize(("layer", "head", "message"), [(2, None, "layer 2"), (0, 4, "head 4"), (0, -1, "head -1")])
def test_difference_of_a_head_that_does_not_exist_is_refused(two, layer, head, message):
    with pytest.raises(LabError, match=f"{message} is out of range"):
        compare(*two).difference(layer, head)


def test_distances_that_do_not_fit_the_heads_are_refused(two):
    with pytest.raises(ValueError, match=r"distances of shape \(4, 2\); the heads ask for \(2, 4\)"):
        Comparison(*two, torch.zeros(4, 2))


def test_measure_has_its_name_and_range():
    assert DISTANCE.title == "total variation distance"
    assert DISTANCE.unit.endswith("0 to 1")
    assert DISTANCE.definition.endswith(".")

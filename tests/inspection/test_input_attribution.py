import numpy as np
import pytest
import torch

from gpt2lab.data.tokens import tokens_and_starts
from gpt2lab.errors import LabError
from gpt2lab.inspection import input_attribution as module
from gpt2lab.inspection.input_attribution import METHODS, UNITS, input_attribution
from gpt2lab.inspection.trace import trace
from gpt2lab.pages.export import FORMATS, export

TEXT = "The moon is small. It is  a world\nof rock."


def predicted(lab, ids, token, against=None):
    """Log-probability of a token after some ids, less that of another, by a forward pass of its own."""
    with torch.no_grad():
        logs = lab.model(ids[None]).logits[0, -1].log_softmax(-1)
    return float(logs[token] - (0 if against is None else logs[against]))


@pytest.fixture(params=[None, 7])
def against(request):
    return request.param


def test_leaving_out_equals_a_forward_pass_of_its_own(tiny_lab, monkeypatch, against):
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 90)  # two texts at once
    found = input_attribution(tiny_lab, TEXT, token=5, against=against, method="leave-one-out")
    ids = tiny_lab.encode(TEXT)
    assert found.total == pytest.approx(predicted(tiny_lab, ids, 5, against), abs=1e-5)
    for i, value in enumerate(found.values.tolist()):
        without = predicted(tiny_lab, torch.cat([ids[:i], ids[i + 1 :]]), 5, against)
        assert value == pytest.approx(found.total - without, abs=2e-5), i


def test_gradient_x_input_equals_differences_of_the_prediction(random_lab):
    lab = random_lab(seed=3, n_layer=2)
    lab.model.double()
    found = input_attribution(lab, "The moon", token=5, method="gradient-x-input")
    embedded = lab.model.transformer.wte(lab.encode("The moon")).detach()

    def at(inputs):
        with torch.no_grad():
            return float(lab.model(inputs_embeds=inputs[None]).logits[0, -1].log_softmax(-1)[5])

    for t in range(len(embedded)):
        step = torch.zeros_like(embedded)
        step[t] = 1e-5 * embedded[t]
        slope = (at(embedded + step) - at(embedded - step)) / 2e-5
        assert float(found.values[t]) == pytest.approx(slope, rel=1e-4, abs=1e-6), t


def test_integrated_gradients_add_up_to_what_the_text_changes_and_points_are_added_until_they_do(random_lab, against):
    lab = random_lab(seed=3)
    found = input_attribution(lab, TEXT, token=5, against=against)
    nothing = torch.zeros_like(lab.model.transformer.wte(lab.encode(TEXT)))
    with torch.no_grad():
        logs = lab.model(inputs_embeds=nothing[None]).logits[0, -1].log_softmax(-1)
    begin = float(logs[5] - (0 if against is None else logs[against]))
    change = found.total - begin
    assert abs(float(found.values.sum()) - change) <= 0.01 * abs(change) + 1e-5
    assert found.completeness_error <= 0.01
    assert input_attribution(lab, TEXT, token=5, against=against, points=6).completeness_error > 0.01


def test_middle_of_the_path_is_weighted_as_by_many_small_steps(random_lab):
    lab = random_lab(seed=3, n_layer=2)
    ids = lab.encode("The moon")
    n = 2000
    many = module._gradients(lab, ids, (5, None), (torch.arange(n) + 0.5) / n)[0].mean(0)
    found = input_attribution(lab, "The moon", token=5).values
    torch.testing.assert_close(found, many, atol=0.02 * float(many.abs().max()), rtol=0)


@pytest.mark.parametrize(
    ("unit", "units"),
    [
        ("word", ["The", " moon", " is", " small.", " It", " is", "  a", " world", "\nof", " rock."]),
        ("sentence", ["The moon is small.", " It is  a world\nof rock."]),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_words_and_sentences_are_whole_and_lose_no_token(tiny_lab, unit, units, method):
    found = input_attribution(tiny_lab, TEXT, token=5, unit=unit, method=method)
    ids = tiny_lab.encode(TEXT)
    assert [tiny_lab.tokenizer.decode(ids[first:end]) for first, end in found.spans] == units
    if method != "leave-one-out":
        single = input_attribution(tiny_lab, TEXT, token=5, method=method).values
        sums = torch.stack([single[first:end].sum() for first, end in found.spans])
        torch.testing.assert_close(found.values, sums)
    else:
        first, end = found.spans[1]
        without = predicted(tiny_lab, torch.cat([ids[:first], ids[end:]]), 5)
        assert float(found.values[1]) == pytest.approx(found.total - without, abs=2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_curves_leave_out_and_keep_the_most_important_first(tiny_lab, method):
    found = input_attribution(tiny_lab, TEXT, token=5, unit="word", method=method)
    ids, n = tiny_lab.encode(TEXT), len(found.spans)
    order = found.values.argsort(descending=True).tolist()
    start = torch.tensor([tiny_lab.start_id])
    assert found.share.tolist() == pytest.approx([count / n for count in range(n + 1)])
    for count in range(n + 1):
        for name, gone in (("deletion", order[:count]), ("insertion", order[count:])):
            kept = [ids[first:end] for i, (first, end) in enumerate(found.spans) if i not in gone]
            expected = predicted(tiny_lab, torch.cat(kept) if kept else start, 5)
            assert float(getattr(found, name)[count]) == pytest.approx(expected, abs=2e-5), (name, count)


def test_rule_integrates_polynomials_exactly():
    nodes, weights = module._rule(8)
    for power in range(9):
        assert float((weights * nodes**power).sum()) == pytest.approx(1 / (power + 1), abs=1e-12)


@pytest.mark.parametrize("unit", UNITS)
def test_a_trace_is_read_as_its_text_is_up_to_where_it_was_cut(tiny_lab, unit):
    long = "The moon is small. 🌙 follows\nthe sea." * 5
    seen = trace(tiny_lab, long, cut=True)
    assert seen.left_out
    found = input_attribution(tiny_lab, seen, position=20, unit=unit, method="gradient-x-input", curves=False)
    _, starts = tokens_and_starts(tiny_lab.tokenizer, long)
    expected = input_attribution(tiny_lab, long[: starts[21]], unit=unit, method="gradient-x-input", curves=False)
    assert found.spans == expected.spans and found.tokens == expected.tokens
    torch.testing.assert_close(found.values, expected.values)
    assert len(found.deletion) == len(found.insertion) == len(found.share) == 0


def test_curves_of_a_long_text_have_at_most_21_points(tiny_lab):
    found = input_attribution(tiny_lab, "x" * 60, method="gradient-x-input")
    assert len(found.deletion) == len(found.insertion) == len(found.share) == 21
    assert (found.share[0], found.share[-1]) == (0, 1)


def test_the_prediction_is_that_at_the_position_and_the_top_one_if_none_is_named(tiny_lab):
    ids = tiny_lab.encode(TEXT)
    found = input_attribution(tiny_lab, TEXT, position=8, method="gradient-x-input")
    with torch.no_grad():
        top = int(tiny_lab.model(ids[None]).logits[0, 8].argmax())
    assert (found.token, len(found.tokens)) == (top, 9)
    assert found.total == pytest.approx(predicted(tiny_lab, ids[:9], top), abs=1e-5)


@pytest.mark.parametrize("text", ["x", "\n", "$x$ </script> 🌙 é"])
@pytest.mark.parametrize("unit", UNITS)
def test_any_text_has_units_a_picture_and_every_format(tiny_lab, text, unit):
    found = input_attribution(tiny_lab, text, unit=unit, method="gradient-x-input")
    assert found.spans[0][0] == 0 and found.spans[-1][1] == len(found.tokens)
    assert all(export(found, form) for form in FORMATS)
    assert "<script> 🌙" not in export(found, "html").decode()


def test_work_shows_its_progress_and_the_model_is_as_before(tiny_lab):
    tiny_lab.model.train()
    seen = [*input_attribution.steps(tiny_lab, "The moon", method="leave-one-out")]
    assert tiny_lab.model.training
    tiny_lab.model.eval()
    assert seen[-1][0] == seen[-1][1] and seen == sorted(seen)
    assert all(weight.grad is None for weight in tiny_lab.model.parameters())


def test_figure_and_table_have_the_values(tiny_lab):
    found = input_attribution(tiny_lab, TEXT, token=5, against=7, unit="word", method="gradient-x-input")
    rows = export(found, "csv").decode().splitlines()
    assert rows[0] == 'at,word,"adds, nats"' and len(rows) == 1 + len(found.spans)
    record = found.record()["why"]
    np.testing.assert_allclose([unit["nats"] for unit in record["units"]], found.values.numpy())
    assert record["completeness_error"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "guess"}, "method 'guess' is unknown; use integrated-gradients, gradient-x-input, leave-one-out"),
        ({"unit": "letter"}, "unit 'letter' is unknown; use token, word, sentence"),
        ({"points": 4}, "points 4 is out of range; use a whole number from 6 to 192"),
        ({"position": 99}, "position 99 is out of range"),
        ({"token": 5, "against": 5}, "token 5 against itself is 0"),
        ({"token": 300}, "token 300 is out of range"),
    ],
)
def test_bad_input_is_refused(tiny_lab, options, message):
    with pytest.raises(LabError, match=message):
        input_attribution(tiny_lab, TEXT, **options)

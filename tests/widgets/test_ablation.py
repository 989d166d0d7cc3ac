import pytest

from gpt2lab.errors import LabError
from gpt2lab.inspection.ablation import ablate, sweep
from gpt2lab.inspection.patching import patching
from gpt2lab.inspection.trace import trace
from gpt2lab.widgets.ablation import (
    TOP,
    Ablation,
    answer_ablate,
    answer_patch,
    answer_sweep,
    patching_part,
    sweep_part,
)

TEXT, CORRUPTED = "The moon is a small world.", "The moon in a small world."
ANSWERS = {"answer": 65, "against": 66}


@pytest.fixture(scope="module")
def seen(tiny_lab):
    return trace(tiny_lab, TEXT, residual=True)


@pytest.mark.parametrize("mean", [False, True])
def test_answer_has_the_losses_of_the_ablation_and_what_each_token_costs_more(tiny_lab, seen, mean):
    expected = ablate(tiny_lab, TEXT, [(1, 2), (0, 3)], mlps=[1], mean=mean)
    found = answer_ablate(tiny_lab, seen, {"off": [[1, 2], [0, 3]], "mlps": [1], "mean": mean})
    assert found["loss"] == pytest.approx(expected.before.loss, abs=1e-5)
    assert found["loss_ablated"] == pytest.approx(expected.after.loss, abs=1e-5)
    assert found["change"][0] is None
    assert sum(found["change"][1:]) / (len(found["change"]) - 1) == pytest.approx(expected.change, abs=1e-3)
    assert (found["off"], found["mlps"], found["mean"]) == ([[0, 3], [1, 2]], [1], mean)
    for name, side in (("before", expected.before), ("after", expected.after)):
        assert len(found[name]) == len(seen.tokens)
        for position, predicted in enumerate(found[name]):
            words = [(word, i) for i, word, _ in side.top_predictions(position + 1)[:TOP]]
            assert [(word, i) for word, i, _ in predicted] == words


@pytest.mark.parametrize("mean", [False, True])
def test_layers_asked_for_one_by_one_are_the_sweep(tiny_lab, seen, mean):
    expected = sweep_part(sweep(tiny_lab, TEXT, mean=mean))
    rows = [answer_sweep(tiny_lab, seen, {"layer": layer, "mean": mean}) for layer in range(2)]
    for row, losses in zip(rows, expected["losses"], strict=True):
        assert row["losses"] == pytest.approx(losses, abs=2e-5)
        assert row["loss"] == pytest.approx(expected["loss"], abs=1e-5)


def test_entries_asked_for_one_by_one_are_the_patching(tiny_lab, seen):
    expected = patching_part(patching(tiny_lab, TEXT, CORRUPTED, **ANSWERS))
    options = {"corrupted": CORRUPTED, "token": 65, "against": 66}
    rows = [answer_patch(tiny_lab, seen, options | {"layer": entry}) for entry in range(3)]
    for row, recovered in zip(rows, expected["recovered"], strict=True):
        assert row["recovered"] == pytest.approx(recovered, abs=1e-3)
        assert (row["tokens"], row["clean_tokens"], row["words"]) == tuple(
            expected[name] for name in ("tokens", "clean_tokens", "words")
        )
        assert row["clean"] == pytest.approx(expected["clean"], abs=1e-4)


@pytest.mark.parametrize(
    ("answer", "options", "message"),
    [
        (answer_ablate, {"off": [[2, 0]]}, "layer 2 is out of range"),
        (answer_ablate, {"off": [[0]]}, "a head that is off must be"),
        (answer_ablate, {"off": "0.1"}, "off must be a list"),
        (answer_ablate, {"mlps": 1}, "mlps must be a list of layers; got '1'"),
        (answer_ablate, {"mlps": ["x"]}, "mlp 'x' is out of range"),
        (answer_ablate, {"mean": "yes"}, "mean must be true or false; got 'yes'"),
        (answer_sweep, {"layer": 2}, "layer 2 is out of range"),
        (answer_sweep, {"layer": 0, "mean": 1}, "mean must be true or false; got '1'"),
        (answer_patch, {"layer": 0}, "corrupted must be a text; got 'None'"),
        (answer_patch, {"corrupted": "x"}, "tokens in the clean prompt and 1 in the corrupted one"),
        (answer_patch, {"corrupted": CORRUPTED, "token": [1]}, "token \\[1\\] is out of range"),
        (answer_patch, {"corrupted": CORRUPTED, "token": 65, "against": 66, "layer": 3}, "entry 3 is out of range"),
    ],
)
def test_what_a_browser_may_send_is_checked(tiny_lab, seen, answer, options, message):
    with pytest.raises(LabError, match=message):
        answer(tiny_lab, seen, options)


def test_widget_selects_what_is_ablated_and_answers_for_its_model(tiny_lab, seen):
    widget = Ablation(ablate(tiny_lab, TEXT, [(1, 2)]), lab=tiny_lab, trace=seen)
    assert widget.off == ((1, 2),) and (widget.layer, widget.head) == (1, 2)
    [found] = widget._answer("ablate", {"off": [[1, 2]]})["sides"]
    assert found["loss_ablated"] == pytest.approx(widget.data["sides"][0]["ablation"]["loss_ablated"], abs=1e-5)
    with pytest.raises(LabError, match="kind 'save' is unknown; use ablate, sweep, patch"):
        widget._answer("save", {})

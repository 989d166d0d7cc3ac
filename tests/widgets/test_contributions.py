import base64

import numpy as np
import pytest

from gpt2lab.errors import LabError
from gpt2lab.inspection.attribution import attribution
from gpt2lab.inspection.contributions import contributions
from gpt2lab.inspection.input_attribution import METHODS, UNITS, input_attribution
from gpt2lab.inspection.trace import trace
from gpt2lab.widgets.base import STATIC
from gpt2lab.widgets.contributions import Contributions, answer_contributions, answer_why

TEXT = "The moon is small. It is a world."


@pytest.fixture(scope="module")
def seen(tiny_lab):
    return trace(tiny_lab, TEXT, residual=True)


def test_data_are_the_contributions_of_every_position(tiny_lab, seen):
    found = contributions(tiny_lab, seen)
    part = Contributions(found).data["sides"][0]["contributions"]
    values = np.frombuffer(base64.b64decode(part["values"]), "<f4")
    np.testing.assert_array_equal(values.reshape(found.values.shape), found.values.numpy())
    assert part["token_id"] == found.tokens.tolist()
    assert [*zip(part["token"], part["against"])] == [*found.words]
    with pytest.raises(LabError, match="contributions at 2 of"):
        Contributions(contributions(tiny_lab, seen, positions=slice(0, 2)))


@pytest.mark.parametrize(("token", "against"), [(None, None), (7, None), ("#7", "#9"), ("m", None), ("", "x")])
def test_answer_is_the_attribution_at_a_position(tiny_lab, seen, token, against):
    found = answer_contributions(tiny_lab, seen, {"position": 3, "token": token, "against": against})
    wanted = int(seen.ids[4]) if token in (None, "") else token
    expected = attribution(tiny_lab, seen, position=3, token=wanted, against=against)
    assert (found["token_id"], found["against_id"]) == (expected.token, expected.against)
    assert (found["token"], found["against"]) == expected.words
    assert found["total"] == pytest.approx(expected.total, abs=1e-4)
    assert found["values"] == pytest.approx([value for _, value in expected.parts], abs=1e-5)


def test_answer_is_the_input_attribution_of_the_token_that_follows_or_that_is_named(tiny_lab, seen):
    options = {"position": 6, "method": "gradient-x-input", "unit": "word"}
    found = answer_why(tiny_lab, seen, options)
    expected = input_attribution(tiny_lab, seen, token=int(seen.ids[7]), curves=False, **options)
    assert found["units"] == [[*span, value] for span, value in zip(expected.spans, expected.values.tolist())]
    assert (found["token"], found["against"], found["total"]) == (*expected.words, expected.total)
    assert found["share"] == found["deletion"] == []
    named = answer_why(tiny_lab, seen, {"position": 6, "token": "#7", "against": "#9", "curves": True})
    expected = input_attribution(tiny_lab, seen, position=6, token=7, against=9)
    assert named["completeness_error"] == expected.completeness_error
    assert named["deletion"] == expected.deletion.tolist()


def test_a_long_text_has_fewer_points_on_the_path_unless_it_shall_be_precise(tiny_lab, seen, monkeypatch):
    points = []
    monkeypatch.setattr(
        "gpt2lab.widgets.contributions.input_attribution",
        lambda *given, **options: points.append(options["points"]) or input_attribution(*given, **options),
    )
    monkeypatch.setattr("gpt2lab.widgets.contributions.POINTS_READ", 320)
    for options in ({}, {"precise": True}, {"precise": "yes"}):
        answer_why(tiny_lab, seen, {"position": 9, **options})
    assert points == [32, 192, 32]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "position None is out of range"),
        ({"position": 1e3}, "position 1000.0 is out of range"),
        ({"position": True}, "position True is out of range"),
        ({"position": 2, "token": "#300"}, "token 300 is out of range"),
        ({"position": 2, "token": [1]}, "token \\[1\\] is out of range"),
        ({"position": 2, "token": "x" * 101}, "a token of 101 characters; the limit is 100"),
        ({"position": 2, "token": "\ud800"}, "half a character"),
        ({"position": 2, "token": "#5", "against": 5}, "against itself is 0; give two tokens"),
    ],
)
def test_bad_requests_are_refused(tiny_lab, seen, options, message):
    for answer in (answer_contributions, answer_why):
        with pytest.raises(LabError, match=message):
            answer(tiny_lab, seen, options)


def test_method_and_unit_are_checked(tiny_lab, seen):
    for name in ("method", "unit"):
        with pytest.raises(LabError, match=f"{name} 'guess' is unknown"):
            answer_why(tiny_lab, seen, {"position": 2, name: "guess"})
    with pytest.raises(LabError, match=r"method \['x'\] is unknown"):
        answer_why(tiny_lab, seen, {"position": 2, "method": ["x"]})


def test_the_view_offers_the_package_s_methods_and_units():
    source = (STATIC / "contributions.js").read_text(encoding="utf-8")
    assert all(f'["{name}", ' in source for name in (*METHODS, *UNITS))


def test_a_widget_with_a_model_answers_and_one_without_does_not_offer_to(tiny_lab, seen, monkeypatch):
    found = contributions(tiny_lab, seen)
    assert not Contributions(found).answers
    widget, sent = Contributions(found, lab=tiny_lab), []
    monkeypatch.setattr(widget, "send", lambda message: sent.append(message))
    assert widget.answers
    for kind in ("contributions", "other"):
        widget._handle_custom_msg({"id": kind, "kind": kind, "options": {"position": 1}}, [])
    assert sent[0]["answer"]["sides"] == [answer_contributions(tiny_lab, seen, {"position": 1})]
    assert sent[1] == {"id": "other", "answer": {"error": "request 'other' is unknown; use contributions, why"}}


def test_notebook_without_a_kernel_has_the_figure(tiny_lab, seen, small_pictures):
    content = Contributions(contributions(tiny_lab, seen))._repr_mimebundle_()
    assert (content[0] if isinstance(content, tuple) else content)["image/png"]

import csv
import io
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from gpt2lab.errors import LabError
from gpt2lab.figures.inside import LENS, entry_name
from gpt2lab.figures.tables import safe
from gpt2lab.inspection.lens import attribution, logit_lens
from gpt2lab.inspection.patching import patching
from gpt2lab.inspection.surprisal import surprisal
from gpt2lab.inspection.walk import walk
from gpt2lab.pages.export import FORMATS
from gpt2lab.pages.inside_export import attribution_file, lens_file, patching_file, surprisal_file, walk_file

TEXT, CORRUPTED = "The moon is a small world.", "The moon is a small world!"
HOSTILE = ("$x$", "<b>bold</b>", "</script>", "=1+1", "'\"&", "月" * 30, "🌙", "-2", "\\frac", "@x", "a_b^c")
LIMITS = (10, 100)


@pytest.fixture(scope="module")
def found(tiny_lab, random_lab):
    """One of each, by part; "change" is the surprisal of a second model."""
    return {
        "lens": logit_lens(tiny_lab, TEXT, next=True),
        "surprisal": surprisal(tiny_lab, TEXT),
        "change": surprisal(random_lab(seed=9), TEXT),
        "attribution": attribution(tiny_lab, TEXT),
        "patching": patching(tiny_lab, TEXT, CORRUPTED),
        "walk": walk(tiny_lab, TEXT, 1, 2),
    }


@pytest.fixture(scope="module")
def hostile(found):
    """The same with tokens and names that would be markup, formulas, or are not in a picture's font."""
    tokens = (HOSTILE * 2)[: len(found["surprisal"].tokens)]
    lens, walked, name = found["lens"], found["walk"], "<img src=x>$m$"
    names = {i: tokens[i % len(tokens)] for i in lens.names}
    costs = {
        part: replace(
            found[part], tokens=tokens, name=name, names={i: tokens[i % len(tokens)] for i in found[part].names}
        )
        for part in ("surprisal", "change")
    }
    predictions = tuple((token, p) for token, (_, p) in zip(tokens, walked.predictions))
    return costs | {
        "lens": replace(lens, names=names, trace=replace(lens.trace, tokens=tokens, name=name)),
        "attribution": replace(found["attribution"], words=("<b>x</b>", "$月$"), name=name),
        "patching": replace(
            found["patching"], tokens=tokens, clean_tokens=tokens[::-1], words=("<b>x</b>", "$月$"), name=name
        ),
        "walk": replace(walked, tokens=tokens, name=name, predictions=predictions),
    }


WRITTEN = {
    "lens": lambda found, form: lens_file(found["lens"], form),
    "surprisal": lambda found, form: surprisal_file(found["surprisal"], None, form, limits=LIMITS),
    "change": lambda found, form: surprisal_file(found["surprisal"], found["change"], form, limits=LIMITS),
    "attribution": lambda found, form: attribution_file(found["attribution"], form),
    "patching": lambda found, form: patching_file(found["patching"], form),
    "walk": lambda found, form: walk_file(found["walk"], form),
}
PICTURED = [part for part in WRITTEN if part != "walk"]


def rows(content):
    return list(csv.reader(io.StringIO(content.decode(), newline="")))


def arrays(content):
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return dict(file)


def numbers(column):
    """What a spreadsheet reads in a column of numbers; a quote before one makes it text."""
    column = list(column)
    assert not [cell for cell in column if cell.startswith("'")]
    return [float(cell) for cell in column]


@pytest.mark.parametrize("which", ["found", "hostile"])
@pytest.mark.parametrize("part", PICTURED)
def test_pictures_are_pictures_whatever_the_tokens(request, part, which):
    each = request.getfixturevalue(which)
    assert WRITTEN[part](each, "png").startswith(b"\x89PNG\r\n\x1a\n")
    svg = WRITTEN[part](each, "svg")
    assert svg.startswith(b"<?xml") and ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.parametrize("part", WRITTEN)
def test_format_that_is_unknown_is_refused_with_those_there_are(found, part):
    for form in ("pdf", "", None, "PNG", ["png"]):
        with pytest.raises(LabError, match=r"is unknown; end the file's name in \.html, \.png, \.svg, \.csv, \.npz"):
            WRITTEN[part](found, form)


@pytest.mark.parametrize("form", ["png", "svg"])
def test_walk_has_no_picture(found, form):
    with pytest.raises(LabError, match=f"a walked block is a page, no .{form} file; use .html, .csv or .npz"):
        walk_file(found["walk"], form)


@pytest.mark.parametrize("form", FORMATS)
def test_lens_of_an_unknown_measure_is_refused(found, form):
    with pytest.raises(LabError, match="measure 'loss' is unknown; use rank, probability, entropy, divergence"):
        lens_file(found["lens"], form, measure="loss")


def test_measures_have_pictures_of_their_own(found):
    pictures = {lens_file(found["lens"], "png", measure=measure) for measure in LENS}
    assert len(pictures) == len(LENS)


def test_lens_csv_has_every_measure_at_every_place(found):
    lens = found["lens"]
    head, *lines = rows(lens_file(lens, "csv"))
    assert head == ["entry", "at", "token", "top prediction", *LENS]
    T = len(lens.trace.tokens)
    assert [(int(line[0]), int(line[1])) for line in lines] == [(i, t) for i in range(3) for t in range(T)]
    assert [line[2] for line in lines] == [*lens.trace.tokens] * 3
    assert [line[3] for line in lines] == [safe(lens.names[i]) for i in lens.top[..., 0].flatten().tolist()]
    for column, name in enumerate(LENS, 4):
        expected = getattr(lens, name).flatten().tolist()
        assert numbers(line[column] for line in lines) == pytest.approx(expected, rel=1e-5)


def test_lens_npz_has_the_lens(found):
    lens, file = found["lens"], arrays(lens_file(found["lens"], "npz"))
    assert set(file) == {"targets", "top", "top_probability", "tokens", *LENS}
    for name in set(file) - {"tokens"}:
        np.testing.assert_array_equal(file[name], getattr(lens, name))
    assert tuple(file["tokens"]) == lens.trace.tokens


def test_surprisal_csv_has_what_each_token_cost(found):
    one = found["surprisal"]
    head, *lines = rows(surprisal_file(one, None, "csv", limits=LIMITS))
    assert head[:6] == ["at", "token", "nats", "bits", "rank", "entropy, nats"]
    assert [line[1] for line in lines] == list(one.tokens)
    assert lines[0][2:6] == [""] * 4
    for column, values in ((2, one.nll), (3, one.bits), (4, one.rank), (5, one.entropy)):
        expected = values[1 : len(one.tokens)].tolist()
        assert numbers(line[column] for line in lines[1:]) == pytest.approx(expected, abs=6e-4)
    assert [line[6].split()[0] for line in lines[1:]] == [safe(one.names[i]) for i in one.top[1:-1, 0].tolist()]


def test_surprisal_csv_of_two_models_has_the_change_as_a_number(found):
    one, other = found["surprisal"], found["change"]
    head, *lines = rows(surprisal_file(one, other, "csv", limits=LIMITS))
    assert head[-1] == "change, nats" and lines[0][-1] == ""
    expected = (other.nll - one.nll)[1:].tolist()
    assert numbers(line[-1] for line in lines[1:]) == pytest.approx(expected, abs=6e-4)


def test_surprisal_npz_has_one_model_or_two(found):
    one, other = found["surprisal"], found["change"]
    alone, both = (arrays(surprisal_file(one, second, "npz", limits=LIMITS)) for second in (None, other))
    fields = {"nll", "rank", "entropy", "top"}
    assert set(alone) == {"tokens", "ids", *fields}
    assert set(both) == set(alone) | {f"other_{name}" for name in fields}
    for name in fields:
        np.testing.assert_array_equal(both[name], getattr(one, name))
        np.testing.assert_array_equal(both[f"other_{name}"], getattr(other, name))
    np.testing.assert_array_equal(alone["ids"], one.ids)
    assert tuple(alone["tokens"]) == one.tokens


@pytest.mark.parametrize("form", ["html", "csv"])
def test_surprisals_of_other_tokens_are_not_compared(found, tiny_lab, form):
    with pytest.raises(LabError, match="read other tokens"):
        surprisal_file(found["surprisal"], surprisal(tiny_lab, CORRUPTED), form, limits=LIMITS)


def test_attribution_csv_has_every_part_as_a_number(found):
    one = found["attribution"]
    head, *lines = rows(attribution_file(one, "csv"))
    assert head == ["part", "logits"]
    assert [line[0] for line in lines] == [name for name, _ in one.parts]
    assert numbers(line[1] for line in lines) == pytest.approx([value for _, value in one.parts], rel=1e-5)
    assert min(value for _, value in one.parts) < 0


def test_attribution_npz_has_every_part(found):
    one, file = found["attribution"], arrays(attribution_file(found["attribution"], "npz"))
    np.testing.assert_array_equal(file["heads"], one.heads)
    np.testing.assert_array_equal(file["mlps"], one.mlps)
    assert dict(zip(file["parts"].tolist(), file["values"].tolist())) == dict(one.parts)
    assert file["values"].sum() == pytest.approx(one.total, abs=1e-4)


def test_patching_csv_has_the_shares_as_numbers(found):
    one = found["patching"]
    one = replace(one, values=2 * one.corrupted - one.values)  # as far away from the clean answer
    head, *lines = rows(patching_file(one, "csv"))
    assert head == ["state after", *one.tokens]
    assert [line[0] for line in lines] == [entry_name(i) for i in range(3)]
    for line, expected in zip(lines, one.recovered.tolist()):
        assert numbers(line[1:]) == pytest.approx(expected, abs=6e-3)
    assert float(one.recovered.min()) < -0.9


def test_patching_npz_has_logits_shares_and_both_prompts(found):
    one, file = found["patching"], arrays(patching_file(found["patching"], "npz"))
    np.testing.assert_array_equal(file["values"], one.values)
    np.testing.assert_array_equal(file["recovered"], one.recovered)
    assert (tuple(file["tokens"]), tuple(file["clean_tokens"])) == (one.tokens, one.clean_tokens)
    assert file["recovered"][-1, -1] == pytest.approx(1, abs=1e-5)


def test_walk_csv_has_every_number_of_every_step(found):
    one = found["walk"]
    head, *lines = rows(walk_file(one, "csv"))
    assert head == ["step", "formula", "at", "value"]
    for step in one.steps:
        mine = [line for line in lines if line[0] == step.name]
        assert [int(line[2]) for line in mine] == list(range(len(step.values)))
        assert {line[1] for line in mine} == {step.formula}
        assert numbers(line[3] for line in mine) == pytest.approx(step.values.tolist(), rel=1e-5)
    assert len(lines) == sum(len(step.values) for step in one.steps)


def test_walk_npz_has_an_array_per_step(found):
    one, file = found["walk"], arrays(walk_file(found["walk"], "npz"))
    assert set(file) == {step.name for step in one.steps} | {"tokens"}
    for step in one.steps:
        np.testing.assert_array_equal(file[step.name], step.values)
    assert tuple(file["tokens"]) == one.tokens


@pytest.mark.parametrize("part", WRITTEN)
def test_no_cell_is_run_as_a_formula_by_a_spreadsheet(hostile, part):
    for line in rows(WRITTEN[part](hostile, "csv")):
        for cell in line:
            if cell.startswith(("=", "@", "+", "-", "\t", "\r")):
                float(cell)  # a number is none


@pytest.mark.parametrize("part", WRITTEN)
def test_page_reaches_nothing_and_holds_no_markup_of_the_text_s(read_html, hostile, part):
    page = WRITTEN[part](hostile, "html").decode()
    found = read_html(page)
    [policy] = [attributes["content"] for tag, attributes in found.tags if "http-equiv" in attributes]
    assert policy.startswith("default-src 'none'")
    assert found.count("b") == found.count("script") == 0
    assert all(address.startswith("data:image/png;base64,") for address in found.attributes("src", "srcset", "href"))
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]


@pytest.mark.parametrize("part", ["surprisal", "change", "walk"])
def test_page_holds_the_text_as_it_is(read_html, hostile, part):
    found = read_html(WRITTEN[part](hostile, "html").decode())
    for token in hostile["surprisal"].tokens:
        assert " ".join(token.split()) in found.text


def test_page_of_a_figure_has_it_light_and_dark_with_its_numbers(read_html, found):
    page = read_html(attribution_file(found["attribution"], "html").decode())
    light, dark = page.attributes("src") + page.attributes("srcset")
    assert light != dark
    for name, value in found["attribution"].parts:
        assert name in page.text and f"{value:+.4f}" in page.text
    page = read_html(patching_file(found["patching"], "html").decode())
    assert all(f"{value:.2f}" in page.text for value in found["patching"].recovered.flatten().tolist())
    page, lens = read_html(lens_file(found["lens"], "html").decode()), found["lens"]
    assert all(lens.names[i] in page.text for i in lens.top[..., 0].flatten().tolist())

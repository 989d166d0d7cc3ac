import csv
import io
import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from gpt2lab.errors import LabError
from gpt2lab.figures.lens import LENS
from gpt2lab.figures.tables import safe
from gpt2lab.inspection.ablation import ablate, sweep
from gpt2lab.inspection.attribution import attribution
from gpt2lab.inspection.heads import SCORES, head_scores
from gpt2lab.inspection.lens import entry_name, logit_lens
from gpt2lab.inspection.patching import patching
from gpt2lab.inspection.surprisal import SurprisalChange, surprisal
from gpt2lab.inspection.walkthrough import walk
from gpt2lab.pages.export import export
from gpt2lab.results import Table, cell_text

pytestmark = pytest.mark.usefixtures("small_pictures")
TEXT, CORRUPTED = "The moon is a small world.", "The moon is a small world!"
HOSTILE = ("$x$", "<b>bold</b>", "</script>", "=1+1", "'\"&", "月" * 30, "🌙", "-2", "\\frac", "@x", "a_b^c")


@pytest.fixture(scope="module")
def found(tiny_lab, random_lab):
    """A result of each kind."""
    first = surprisal(tiny_lab, TEXT)
    return {
        "lens": logit_lens(tiny_lab, TEXT, next=True),
        "surprisal": first,
        "change": SurprisalChange(first, surprisal(random_lab(seed=9), TEXT)),
        "attribution": attribution(tiny_lab, TEXT),
        "patching": patching(tiny_lab, TEXT, CORRUPTED),
        "walk": walk(tiny_lab, TEXT, 1, 2),
        "heads": head_scores(tiny_lab, [TEXT]),
        "sweep": sweep(tiny_lab, TEXT),
        "ablation": ablate(tiny_lab, TEXT, [(1, 2)], mlps=[0]),
    }


@pytest.fixture(scope="module")
def hostile(found):
    """The same with tokens and names that would be markup, formulas, or are not in a picture's font."""
    tokens = (HOSTILE * 2)[: len(found["surprisal"].tokens)]
    lens, walked, name = found["lens"], found["walk"], "<img src=x>$m$"
    names = {i: tokens[i % len(tokens)] for i in lens.names}
    costs = [
        replace(one, tokens=tokens, name=name, names={i: tokens[i % len(tokens)] for i in one.names})
        for one in (found["surprisal"], found["change"].after)
    ]
    predictions = tuple((token, p) for token, (_, p) in zip(tokens, walked.predictions))
    return {
        "surprisal": costs[0],
        "change": SurprisalChange(*costs),
        "ablation": replace(found["ablation"], before=costs[0], after=costs[1]),
        "heads": found["heads"],
        "sweep": replace(found["sweep"], name=name),
        "lens": replace(lens, names=names, trace=replace(lens.trace, tokens=tokens, name=name)),
        "attribution": replace(found["attribution"], words=("<b>x</b>", "$月$"), name=name),
        "patching": replace(
            found["patching"], tokens=tokens, clean_tokens=tokens[::-1], words=("<b>x</b>", "$月$"), name=name
        ),
        "walk": replace(walked, tokens=tokens, name=name, predictions=predictions),
    }


PARTS = ("lens", "surprisal", "change", "attribution", "patching", "walk", "heads", "sweep", "ablation")


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


@pytest.mark.parametrize("part", [part for part in PARTS if part != "walk"])
def test_pictures_are_pictures_whatever_the_tokens(hostile, part):
    result = hostile[part]
    assert export(result, "png").startswith(b"\x89PNG\r\n\x1a\n")
    svg = export(result, "svg")
    assert svg.startswith(b"<?xml") and ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"


def test_format_that_is_unknown_is_refused_with_those_there_are(found):
    for result in found.values():
        for form in ("pdf", "", None, "PNG", ["png"]):
            with pytest.raises(
                LabError, match=r"is unknown; end the file's name in \.html, \.png, \.svg, \.csv, \.npz"
            ):
                export(result, form)


def test_walk_has_no_picture(found):
    for form in ("png", "svg"):
        with pytest.raises(LabError, match="a Walkthrough has no picture; use html, csv, npz or json"):
            export(found["walk"], form)


@pytest.mark.parametrize("form", ["html", "png", "svg"])
def test_lens_of_an_unknown_measure_is_refused(found, form):
    with pytest.raises(LabError, match="measure 'loss' is unknown; use rank, probability, entropy, divergence"):
        export(found["lens"], form, measure="loss")


@pytest.mark.parametrize("part", PARTS)
def test_json_is_the_record(found, part):
    """JSON has no infinity: what is masked before a softmax is null."""
    record = json.loads(export(found[part], "json"), parse_constant=lambda name: pytest.fail(name))
    assert set(record) == set(found[part].record())


def test_cells_as_text():
    table = Table(["a", "b", "c", "d"], iter([["x", 12345, 0.123456, None]]))
    assert table.text() == (["a", "b", "c", "d"], [["x", "12,345", "0.1235", ""]])
    assert cell_text(float("nan")) == "none"


def test_measures_have_pictures_of_their_own(found):
    pictures = {export(found["lens"], "png", measure=measure) for measure in LENS}
    assert len(pictures) == len(LENS)


def test_lens_csv_has_every_measure_at_every_position(found):
    lens = found["lens"]
    head, *lines = rows(export(lens, "csv"))
    assert head[:7] == ["after", "at", "token", "top predictions", "followed token", "its rank", "its probability"]
    T = len(lens.trace.tokens)
    assert [(line[0], int(line[1])) for line in lines] == [(entry_name(i), t) for i in range(3) for t in range(T)]
    assert [line[2] for line in lines] == [*lens.trace.tokens] * 3
    best = [
        f"{lens.names[i]} {p:.3f}"
        for i, p in zip(lens.top[..., 0].flatten().tolist(), lens.top_probability[..., 0].flatten().tolist())
    ]
    assert all(line[3].startswith(safe(word)) for line, word in zip(lines, best))
    assert [line[4] for line in lines] == [safe(lens.names[i]) for i in lens.targets.tolist()] * 3
    for column, name in enumerate(LENS, 5):
        expected = getattr(lens, name).flatten().tolist()
        assert numbers(line[column] for line in lines) == pytest.approx(expected, rel=1e-5)
    at_one = [line for line in lines if line[1] == str(T - 2)]
    head, rows_of_one = lens.table(position=-2)
    assert [[str(cell) for cell in row[:5]] for row in rows_of_one] == [line[:5] for line in at_one]
    with pytest.raises(LabError, match=f"position {T} is out of range; use a whole number from -{T} to {T - 1}"):
        lens.table(position=T)


def test_lens_npz_has_the_lens(found):
    lens, file = found["lens"], arrays(export(found["lens"], "npz"))
    assert set(file) == {"targets", "top", "top_probability", "tokens", *LENS}
    for name in set(file) - {"tokens"}:
        np.testing.assert_array_equal(file[name], getattr(lens, name))
    assert tuple(file["tokens"]) == lens.trace.tokens


def test_surprisal_csv_has_what_each_token_cost(found):
    one = found["surprisal"]
    head, *lines, last = rows(export(one, "csv"))
    assert head == ["at", "token", "nats", "bits", "rank", "entropy, nats", "top predictions"]
    assert [line[1] for line in lines] == list(one.tokens)
    assert lines[0][2:6] == [""] * 4
    for column, values in ((2, one.nll), (3, one.bits), (4, one.rank), (5, one.entropy)):
        expected = values[1 : len(one.tokens)].tolist()
        assert numbers(line[column] for line in lines[1:]) == pytest.approx(expected, rel=1e-5)
    assert [line[6].split()[0] for line in lines[1:]] == [safe(one.names[i]) for i in one.top[1:-1, 0].tolist()]
    assert last[:5] == [str(len(one.tokens)), "", "", "", ""]
    assert (float(last[5]), last[6].split()[0]) == (
        pytest.approx(float(one.entropy[-1])),
        safe(one.names[int(one.top[-1, 0])]),
    )


@pytest.mark.parametrize("part", ["change", "ablation"])
def test_csv_of_two_surprisals_has_both_and_the_change(found, part):
    change = found[part]
    head, *lines = rows(export(change, "csv"))
    assert head[-1] == "change, nats" and lines[0][-1] == lines[-1][-1] == ""
    columns = dict(zip(head, zip(*lines[1:-1])))
    assert numbers(columns["nats"]) == pytest.approx(change.before.nll[1:].tolist(), rel=1e-5)
    assert numbers(columns["nats after"]) == pytest.approx(change.after.nll[1:].tolist(), rel=1e-5)
    expected = (change.after.nll - change.before.nll)[1:].tolist()
    assert numbers(columns["change, nats"]) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert (
        f"{change.before.loss:.4f}" in change.title
        and f"{change.after.loss:.4f} ({change.change:+.4f})" in change.title
    )


def test_surprisal_npz_has_one_model_or_two(found):
    one, change = found["surprisal"], found["change"]
    alone, both = arrays(export(one, "npz")), arrays(export(change, "npz"))
    fields = {"nll", "rank", "entropy", "top", "ids"}
    assert set(alone) == {"tokens", *fields}
    assert set(both) == set(alone) | {f"other_{name}" for name in alone}
    for name in fields:
        np.testing.assert_array_equal(both[name], getattr(one, name))
        np.testing.assert_array_equal(both[f"other_{name}"], getattr(change.after, name))
    assert tuple(alone["tokens"]) == one.tokens


def test_surprisals_of_other_tokens_are_not_compared(found, tiny_lab):
    with pytest.raises(LabError, match="read other tokens"):
        SurprisalChange(found["surprisal"], surprisal(tiny_lab, CORRUPTED))


def test_head_scores_and_sweep_have_a_row_per_head(found):
    scores, ablated = found["heads"], found["sweep"]
    head, *lines = rows(export(scores, "csv"))
    assert head == ["layer", "head", *SCORES]
    assert [(int(line[0]), int(line[1])) for line in lines] == [
        (layer, head) for layer in range(2) for head in range(4)
    ]
    for column, name in enumerate(SCORES, 2):
        expected = getattr(scores, name).flatten().tolist()
        assert [float(line[column]) for line in lines] == pytest.approx(expected, rel=1e-5, nan_ok=True)
        np.testing.assert_array_equal(arrays(export(scores, "npz"))[name], getattr(scores, name))
    head, *lines = rows(export(ablated, "csv"))
    assert numbers(line[2] for line in lines) == pytest.approx(ablated.losses.flatten().tolist(), rel=1e-5)
    changes = (ablated.losses - ablated.loss).flatten().tolist()
    assert numbers(line[3] for line in lines) == pytest.approx(changes, rel=1e-3, abs=1e-6)
    assert export(scores, "png") != export(scores, "png", score="entropy")


def test_attribution_csv_has_every_part_the_largest_first_and_the_sum_last(found):
    one = found["attribution"]
    head, *lines, last = rows(export(one, "csv"))
    assert head == ["part", "logits"]
    values = numbers(line[1] for line in lines)
    assert dict(zip((line[0] for line in lines), values)) == pytest.approx(dict(one.parts), rel=1e-5)
    assert [abs(value) for value in values] == sorted(map(abs, values), reverse=True) and min(values) < 0
    assert last[0] == "sum: the logit difference" and float(last[1]) == pytest.approx(sum(values), abs=1e-4)


def test_attribution_npz_has_every_part(found):
    one, file = found["attribution"], arrays(export(found["attribution"], "npz"))
    np.testing.assert_array_equal(file["heads"], one.heads)
    np.testing.assert_array_equal(file["mlps"], one.mlps)
    assert dict(zip(file["parts"].tolist(), file["values"].tolist())) == dict(one.parts)
    assert file["values"].sum() == pytest.approx(one.total, abs=1e-4)


def test_patching_csv_has_the_shares_as_numbers(found):
    one = found["patching"]
    one = replace(one, values=2 * one.corrupted - one.values)  # as far away from the clean answer
    head, *lines = rows(export(one, "csv"))
    assert head == ["state after", *one.tokens]
    assert [line[0] for line in lines] == [entry_name(i) for i in range(3)]
    for line, expected in zip(lines, one.recovered.tolist()):
        assert numbers(line[1:]) == pytest.approx(expected, rel=1e-5)
    assert float(one.recovered.min()) < -0.9


def test_patching_npz_has_logits_shares_and_both_prompts(found):
    one, file = found["patching"], arrays(export(found["patching"], "npz"))
    np.testing.assert_array_equal(file["values"], one.values)
    np.testing.assert_array_equal(file["recovered"], one.recovered)
    assert (tuple(file["tokens"]), tuple(file["clean_tokens"])) == (one.tokens, one.clean_tokens)
    assert file["recovered"][-1, -1] == pytest.approx(1, abs=1e-5)


def test_walk_csv_has_every_number_of_every_step(found):
    one = found["walk"]
    head, *lines = rows(export(one, "csv"))
    assert head == ["step", "formula", "at", "value"]
    for step in one.steps:
        mine = [line for line in lines if line[0] == step.name]
        assert [int(line[2]) for line in mine] == list(range(len(step.values)))
        assert {line[1] for line in mine} == {step.formula}
        assert numbers(line[3] for line in mine) == pytest.approx(step.values.tolist(), rel=1e-5)
    assert len(lines) == sum(len(step.values) for step in one.steps)


def test_walk_npz_has_an_array_per_step(found):
    one, file = found["walk"], arrays(export(found["walk"], "npz"))
    assert set(file) == {step.name for step in one.steps} | {"tokens"}
    for step in one.steps:
        np.testing.assert_array_equal(file[step.name], step.values)
    assert tuple(file["tokens"]) == one.tokens


@pytest.mark.parametrize("part", PARTS)
def test_no_cell_is_run_as_a_formula_by_a_spreadsheet(hostile, part):
    for line in rows(export(hostile[part], "csv")):
        for cell in line:
            if cell.startswith(("=", "@", "+", "-", "\t", "\r")):
                float(cell)  # a number is none


@pytest.mark.parametrize("part", PARTS)
def test_page_reaches_nothing_and_holds_no_markup_of_the_text_s(read_html, hostile, part):
    page = export(hostile[part], "html").decode()
    found = read_html(page)
    [policy] = [attributes["content"] for tag, attributes in found.tags if "http-equiv" in attributes]
    assert policy.startswith("default-src 'none'")
    assert found.count("b") == 0
    assert found.count("script") == (2 if part == "walk" else 0)  # an interactive view: its data and its code
    assert all(address.startswith("data:image/png;base64,") for address in found.attributes("src", "srcset", "href"))
    assert not [name for _, attributes in found.tags for name in attributes if name.startswith("on")]


@pytest.mark.parametrize("part", ["surprisal", "change"])
def test_page_holds_the_text_as_it_is(read_html, hostile, part):
    found = read_html(export(hostile[part], "html").decode())
    for token in hostile["surprisal"].tokens:
        assert " ".join(token.split()) in found.text


def test_page_of_a_figure_has_it_light_and_dark_with_its_numbers(read_html, found):
    page = read_html(export(found["attribution"], "html").decode())
    light, dark = page.attributes("src") + page.attributes("srcset")
    assert light != dark
    for name, value in found["attribution"].parts:
        assert name in page.text and f"{value:.4g}" in page.text
    page = read_html(export(found["patching"], "html").decode())
    assert all(f"{value:.4g}" in page.text for value in found["patching"].recovered.flatten().tolist())
    page, lens = read_html(export(found["lens"], "html").decode()), found["lens"]
    assert all(lens.names[i] in page.text for i in lens.top[..., 0].flatten().tolist())

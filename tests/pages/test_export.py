import csv
import io
import json
import math
import re
from itertools import product
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from gpt2lab.errors import LabError
from gpt2lab.figures.attention import attention_grid, attention_heatmap
from gpt2lab.figures.drawing import figure, figure_bytes
from gpt2lab.figures.heads import comparison_heatmaps, rollout_heatmap
from gpt2lab.inspection import attention
from gpt2lab.inspection.attention import Attention, largest_weights
from gpt2lab.inspection.compare import compare
from gpt2lab.inspection.heads import HeadMap, rollout
from gpt2lab.inspection.trace import Trace, trace
from gpt2lab.pages.export import FORMATS, bertviz_options, export, format_of

pytestmark = pytest.mark.usefixtures("small_pictures")
PARTS = {
    "everything": ({}, [0, 1], [0, 1, 2, 3]),
    "a layer": ({"layer": 1}, [1], [0, 1, 2, 3]),
    "a head": ({"layer": 1, "head": 2}, [1], [2]),
    "the first head": ({"layer": 0, "head": 0}, [0], [0]),
}
each_part = pytest.mark.parametrize("part", PARTS)
SVG = "{http://www.w3.org/2000/svg}svg"


@pytest.fixture(scope="module")
def other_trace(random_lab):
    return trace(random_lab(seed=9), "The moon is a small world.")


def attention_file(seen, format, **part):
    return export(Attention(seen, **part), format)


def arrays(content):
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return dict(file)


@each_part
def test_npz_holds_the_weights_of_the_part_and_says_which(tiny_trace, part):
    options, layers, heads = PARTS[part]
    found = arrays(attention_file(tiny_trace, "npz", **options))
    n = len(tiny_trace.tokens)
    assert set(found) == {"weights", "layers", "heads", "tokens", "ids"}
    assert (found["weights"].shape, found["weights"].dtype) == ((len(layers), len(heads), n, n), np.float32)
    assert (found["layers"].tolist(), found["heads"].tolist()) == (layers, heads)
    for (i, layer), (j, head) in product(enumerate(layers), enumerate(heads)):
        np.testing.assert_array_equal(found["weights"][i, j], tiny_trace.attention(layer, head).numpy())
    assert tuple(found["tokens"]) == tiny_trace.tokens
    assert found["ids"].tolist() == tiny_trace.ids.tolist()


@pytest.mark.parametrize("token", ["月🌙", "</script>", "a,b\"c'd\n"])
def test_arrays_and_tables_keep_any_token(random_trace, token):
    seen = random_trace(1, 1, 2, ("a", token))
    assert arrays(attention_file(seen, "npz"))["tokens"].tolist() == ["a", token]
    text = attention_file(seen, "csv").decode()
    assert [row["query_token"] for row in csv.DictReader(io.StringIO(text, newline=""))] == ["a", token, token]


@pytest.mark.parametrize(
    ("token", "cell"),
    [("=1+1", "'=1+1"), ("+a", "'+a"), ("-", "'-"), ("@x", "'@x"), ("·=", "·="), ("'", "'"), ("a-b", "a-b")],
)
def test_table_holds_no_token_that_a_spreadsheet_runs(random_trace, token, cell):
    text = attention_file(random_trace(1, 1, 2, (token, "b")), "csv").decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [(row["query_token"], row["key_token"]) for row in rows] == [(cell, cell), ("b", cell), ("b", "b")]


def test_table_past_the_limit_is_refused_with_both_numbers(tiny_trace, monkeypatch):
    n = len(tiny_trace.tokens)
    rows = 8 * n * (n + 1) // 2
    monkeypatch.setattr(attention, "MAX_ROWS", rows - 1)
    with pytest.raises(LabError, match=rf"{rows:,} rows is past {rows - 1:,}; name a layer and a head, or use \.npz"):
        attention_file(tiny_trace, "csv")
    assert attention_file(tiny_trace, "csv", layer=1)
    monkeypatch.setattr(attention, "MAX_ROWS", rows)
    assert attention_file(tiny_trace, "csv").count(b"\n") == rows + 1


@pytest.mark.parametrize("format", ["csv", "npz"])
def test_file_of_one_head_computes_that_head_alone(tiny_trace, monkeypatch, format):
    asked, n = [], len(tiny_trace.tokens)
    monkeypatch.setattr(Trace, "attention", lambda seen, *part: asked.append(part) or torch.zeros(n, n))
    attention_file(tiny_trace, format, layer=1, head=2)
    assert asked == [(1, 2)]


@each_part
def test_csv_has_a_line_for_every_weight_that_is_not_ahead(tiny_trace, part):
    options, layers, heads = PARTS[part]
    content = attention_file(tiny_trace, "csv", **options).decode("utf-8")
    rows = list(csv.DictReader(io.StringIO(content, newline="")))
    n, names = len(tiny_trace.tokens), tiny_trace.tokens
    places = [(layer, head, i, j) for layer, head in product(layers, heads) for i in range(n) for j in range(i + 1)]
    assert [tuple(int(row[name]) for name in ("layer", "head", "query", "key")) for row in rows] == places
    assert [(row["query_token"], row["key_token"]) for row in rows] == [(names[i], names[j]) for *_, i, j in places]
    for row, (layer, head, i, j) in zip(rows, places):
        assert float(row["weight"]) == pytest.approx(float(tiny_trace.attention(layer, head)[i, j]), rel=1e-5)


@each_part
def test_pictures_are_of_the_grid_or_of_the_head(tiny_trace, part):
    options = PARTS[part][0]
    expected = attention_heatmap(tiny_trace, **options) if "head" in options else attention_grid(tiny_trace, **options)
    png, svg = (attention_file(tiny_trace, format, **options) for format in ("png", "svg"))
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert png == figure_bytes(expected, "png")
    assert ElementTree.fromstring(svg).tag == SVG


def test_pictures_of_different_parts_differ(tiny_trace):
    contents = {attention_file(tiny_trace, "svg", **options) for options, *_ in PARTS.values()}
    assert len(contents) == len(PARTS)


@each_part
def test_page_shows_the_part_first(tiny_trace, part):
    options, layers, heads = PARTS[part]
    page = attention_file(tiny_trace, "html", **options).decode("utf-8")
    assert page.startswith("<!doctype html>")
    state = json.loads(re.search('id="state">(.*?)</script>', page, re.DOTALL).group(1))
    [side], selection = state["data"]["sides"], state["selection"]
    assert (side["attention"]["layers"], selection["layer"], state["data"]["chosen"]) == (layers, layers[0], heads)


@each_part
def test_tables_and_arrays_of_two_traces_hold_both(tiny_trace, other_trace, part):
    options = PARTS[part][0]
    found = arrays(attention_file(compare(tiny_trace, other_trace), "npz", **options))
    alone = [arrays(attention_file(one, "npz", **options)) for one in (tiny_trace, other_trace)]
    for name in ("weights", "tokens", "ids"):
        np.testing.assert_array_equal(found[name], alone[0][name])
        np.testing.assert_array_equal(found[f"other_{name}"], alone[1][name])
    content = attention_file(compare(tiny_trace, other_trace), "csv", **options).decode("utf-8")
    rows = list(csv.DictReader(io.StringIO(content, newline="")))
    tables = [attention_file(one, "csv", **options).decode("utf-8") for one in (tiny_trace, other_trace)]
    first, second = (list(csv.DictReader(io.StringIO(table, newline=""))) for table in tables)
    for row, one, other in zip(rows, first, second, strict=True):
        theirs = {f"other_{name}": other[name] for name in ("query_token", "key_token", "weight")}
        assert row == one | theirs


def test_pictures_of_two_traces_are_of_their_distance_or_of_both_heads(tiny_trace, other_trace):
    comparison = compare(tiny_trace, other_trace)
    for options, expected in [
        ({}, figure(comparison)),
        ({"layer": 1}, figure(comparison.map(1))),
        ({"layer": 1, "head": 2}, comparison_heatmaps(comparison, 1, 2)),
    ]:
        assert attention_file(comparison, "png", **options) == figure_bytes(expected, "png")


def test_map_of_distances_of_one_layer_leaves_the_others_blank(tiny_trace, other_trace):
    comparison = compare(tiny_trace, other_trace)
    shown = figure(comparison.map(1)).axes[0].images[0].get_array()
    assert shown.mask[0].all()
    np.testing.assert_allclose(shown[1], comparison.total_variation[1])


def test_map_of_heads_has_every_format():
    values = torch.tensor([[0.5, math.nan], [1 / 3, 1.0]])
    shown = HeadMap(values, "induction: $x$ <b>", "share")
    rows = list(csv.reader(io.StringIO(export(shown, "csv").decode())))
    assert rows[0] == ["layer", "head", "induction: $x$ <b> (share)"]
    assert rows[1:] == [["0", "0", "0.5"], ["0", "1", "nan"], ["1", "0", "0.333333"], ["1", "1", "1.0"]]
    assert export(shown, "png") == figure_bytes(figure(shown), "png")
    assert ElementTree.fromstring(export(shown, "svg")).tag == SVG
    np.testing.assert_array_equal(arrays(export(shown, "npz"))["values"], values.numpy())
    page = export(shown, "html").decode()
    assert "<h1>induction: $x$ &lt;b&gt;</h1>" in page and "<b>" not in page
    assert re.findall("<td>(.*?)</td>", page) == ["layer 0", "0.50", "none", "layer 1", "0.33", "1.00"]


def test_map_s_table_has_numbers_that_spreadsheets_read():
    rows = export(HeadMap(torch.tensor([[-1.5, math.inf]]), "t", "u"), "csv").decode().splitlines()
    assert rows[1:] == ["0,0,-1.5", "0,1,inf"]


def test_rollout_has_every_format(tiny_trace):
    found = rollout(tiny_trace)
    n = len(tiny_trace.tokens)
    rows = list(csv.DictReader(io.StringIO(export(found, "csv").decode())))
    assert len(rows) == n * (n + 1) // 2
    for row in rows:
        i, j = int(row["query"]), int(row["key"])
        assert float(row["share"]) == pytest.approx(float(found.weights[i, j]), rel=1e-5)
        assert row["key_token"].lstrip("'") == tiny_trace.tokens[j].lstrip("'")
    assert export(found, "png") == figure_bytes(rollout_heatmap(found), "png")
    assert ElementTree.fromstring(export(found, "svg")).tag == SVG
    np.testing.assert_array_equal(arrays(export(found, "npz"))["shares"], found.weights.numpy())
    page = export(found, "html").decode()
    best = f"{float(found.weights.max()):g}"
    assert re.search("<td>(.*?)</td>" * 5, page).groups()[1::2] == ("0", "0") and best == "1"


@pytest.mark.parametrize("format", ["jpg", "", None, "PNG"])
def test_numbers_of_heads_have_no_other_format(tiny_trace, format):
    for made in (
        lambda: export(HeadMap(torch.zeros(1, 1), "", ""), format),
        lambda: export(rollout(tiny_trace), format),
    ):
        with pytest.raises(LabError, match=r"format .* is unknown; end the file's name in \.html, \.png"):
            made()


@pytest.mark.parametrize(
    ("view", "given", "options"),
    [
        ("head", (None, None), {"layer": 0, "head": None}),
        ("head", (1, 2), {"layer": 1, "head": 2}),
        ("neuron", (None, None), {"layer": 0, "head": 0}),
        ("model", (None, None), {"layers": None, "heads": None}),
        ("model", (0, 0), {"layers": [0], "heads": [0]}),
    ],
)
def test_views_of_bertviz_take_the_part_asked_for(view, given, options):
    assert bertviz_options(view, *given) == options


@pytest.mark.parametrize("view", ["head", "model", "neuron"])
def test_head_without_its_layer_is_refused_for_the_views_too(view):
    with pytest.raises(LabError, match=r"head 3 needs a layer"):
        bertviz_options(view, None, 3)


@pytest.mark.parametrize("format", ["jpg", "", "PNG", ".png", None])
def test_unknown_format_is_refused_with_the_known_ones(tiny_trace, format):
    with pytest.raises(LabError, match=r"is unknown; end the file's name in \.html, \.png, \.svg, \.csv, \.npz"):
        attention_file(tiny_trace, format)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": 1}, r"head 1 needs a layer"),
        ({"head": 0}, r"head 0 needs a layer"),
        ({"layer": 2}, r"layer 2 is out of range; use a whole number from 0 to 1"),
        ({"layer": -1}, r"layer -1 is out of range"),
        ({"layer": 0, "head": 4}, r"head 4 is out of range; use a whole number from 0 to 3"),
    ],
)
def test_part_that_does_not_exist_is_refused_in_every_format(tiny_trace, format, options, message):
    with pytest.raises(LabError, match=message):
        attention_file(tiny_trace, format, **options)


@pytest.mark.parametrize(
    ("name", "format"), [("a.html", "html"), ("dir.csv/b.PNG", "png"), ("a.b.npz", "npz"), ("/x/a.Svg", "svg")]
)
def test_name_of_a_file_tells_its_format(name, format):
    assert format_of(name) == format


@pytest.mark.parametrize("name", ["a", "a.jpg", "png", ".png", "a.png.txt", "a.png/", "a.html.", ""])
def test_name_of_no_known_format_is_refused_with_the_known_ones(name):
    if name == "a.png/":
        assert format_of(name) == "png"
        return
    with pytest.raises(
        LabError, match=r"is unknown; end the file's name in \.html, \.png, \.svg, \.csv, \.npz, \.json"
    ):
        format_of(name)


def test_largest_weights_come_in_order_with_their_tokens_and_places(tiny_trace):
    weights = tiny_trace.attention(1, 2)
    n = len(weights)
    rows = largest_weights(tiny_trace, 1, 2, 5)
    expected = sorted(((float(weights[i, j]), i, j) for i in range(n) for j in range(i + 1)), reverse=True)[:5]
    names = tiny_trace.tokens
    assert rows == [(names[i], i, names[j], j, round(w, 4)) for w, i, j in expected]


def test_largest_weights_are_all_there_and_none_twice_where_more_are_asked_for(tiny_trace):
    n = len(tiny_trace.tokens)
    rows = largest_weights(tiny_trace, 0, 0, 10_000)
    assert {(i, j) for _, i, _, j, _ in rows} == {(i, j) for i in range(n) for j in range(i + 1)}
    assert len(rows) == n * (n + 1) // 2
    assert sum(row[-1] for row in rows) == pytest.approx(n, abs=1e-2)


def test_largest_weights_never_name_a_token_ahead(made_trace):
    sharp = torch.zeros(1, 1, 6, 6)
    sharp[..., 0] = 1000.0  # every token reads the first one, with weight 1 to the last bit
    rows = largest_weights(made_trace(sharp, torch.eye(6).expand(1, 1, 6, 6)), 0, 0, 100)
    assert [row[-1] for row in rows[:6]] == [1.0] * 6
    assert all(j <= i for _, i, _, j, _ in rows)


@pytest.mark.parametrize(("layer", "head"), [(2, 0), (0, 4), (-1, 0)])
def test_largest_weights_of_a_head_that_does_not_exist_are_refused(tiny_trace, layer, head):
    with pytest.raises(LabError, match="is out of range"):
        largest_weights(tiny_trace, layer, head, 3)

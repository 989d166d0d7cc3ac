import inspect
import warnings
from dataclasses import replace
from io import BytesIO
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from gpt2lab.errors import LabError
from gpt2lab.figures import heads as maps
from gpt2lab.figures.drawing import DPI, LINES, MAX_LABELS, PAPER, figure_bytes
from gpt2lab.figures.heads import (
    MISSING,
    comparison_heatmaps,
    head_map,
    head_map_rows,
    rollout_heatmap,
)
from gpt2lab.inspection.compare import compare
from gpt2lab.inspection.heads import ROLLOUT_CAVEAT, rollout

HOSTILE = ("$\\frac$", "$", "_a^{", "</script>", "$$", "\\$", "a$b_c", "&<>\"'")
VALUES = torch.tensor([[0.0, 0.25, 0.5], [0.75, 1.0, 0.1]])
SHAPES = [(1, 1), (2, 4), (12, 12), (6, 13), (48, 25)]


def drawn(values=VALUES, **options):
    return head_map(values, **{"title": "previous token", "unit": "share of attention, 0 to 1"} | options)


def pixels(figure):
    return imread(BytesIO(figure_bytes(figure, "png")))[..., :3]  # (height, width, 3)


def head_map_cells(L, H):
    """The centre of each head's cell in the picture, by (layer, head): (x from the left, y from the top), in pixels."""
    pitch = maps._pitch(L, H)
    places = [(layer, head) for layer in range(L) for head in range(H)]
    return {
        (layer, head): ((maps.LEFT + (head + 0.5) * pitch) * DPI, (maps.TOP + (layer + 0.5) * pitch) * DPI)
        for layer, head in places
    }


def words(figure):
    """All text that is drawn, in one string, as it is stored."""
    return "\n".join(text.get_text() for text in figure.findobj(mpl.text.Text))


def numbers(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def without_warnings(draw):
    """A figure that was drawn as both kinds of file, small ones."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("error")
        patch.setattr("gpt2lab.figures.drawing.DPI", 20)
        figure = draw()
        ElementTree.fromstring(figure_bytes(figure, "svg"))
        assert figure_bytes(figure, "png").startswith(b"\x89PNG")
    return figure


@pytest.fixture(scope="module")
def other_trace(tiny_trace):
    return replace(tiny_trace, name="tuned", k=-tiny_trace.k)


@pytest.fixture(scope="module")
def comparison(tiny_trace, other_trace):
    return compare(tiny_trace, other_trace)


def pictures(comparison):
    return {
        "map": lambda **options: drawn(**options),
        "comparison": lambda **options: comparison_heatmaps(comparison, 1, 2, **options),
        "rollout": lambda **options: rollout_heatmap(rollout(comparison.base), **options),
    }


each_picture = pytest.mark.parametrize("picture", ["map", "comparison", "rollout"])


@each_picture
def test_picture_made_twice_gives_the_same_bytes_on_white_or_dark_and_leaves_pyplot_alone(comparison, picture):
    make, before = pictures(comparison)[picture], dict(mpl.rcParams)
    light, again, dark = (figure_bytes(make(dark=dark), "png") for dark in (False, False, True))
    assert light == again
    assert len(light) > 1000
    for content, colour in ((light, "#ffffff"), (dark, PAPER)):
        shown = imread(BytesIO(content))[..., :3]
        for corner in ((0, 0), (-1, -1), (0, -1)):
            np.testing.assert_allclose(shown[corner], to_rgb(colour), atol=1 / 255)
    assert pyplot.get_fignums() == []
    assert dict(mpl.rcParams) == before


def test_views_of_maps_never_import_pyplot():
    assert "pyplot" not in inspect.getsource(maps).replace("pyplot's global state", "")


@each_picture
def test_drawing_leaves_what_is_drawn_as_it_was(comparison, picture):
    kept = [part.clone() for part in (VALUES, comparison.total_variation, comparison.base.q, comparison.other.k)]
    pictures(comparison)[picture]()
    now = (VALUES, comparison.total_variation, comparison.base.q, comparison.other.k)
    assert all(torch.equal(one, two) for one, two in zip(kept, now))


def test_map_holds_the_values_layers_down_and_heads_across():
    figure = drawn()
    [shown] = figure.axes[0].images
    np.testing.assert_allclose(shown.get_array(), VALUES.numpy())
    assert shown.origin == "upper"
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["layer 0", "layer 1"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["0", "1", "2"]
    assert figure.axes[0].get_xlabel() == "head"


def test_map_has_its_title_its_unit_and_its_scale():
    figure = drawn(vmin=-1, vmax=2)
    assert "previous token" in words(figure)
    assert figure.axes[1].get_ylabel() == "share of attention, 0 to 1"
    assert figure.axes[0].images[0].get_clim() == (-1, 2)
    assert drawn().axes[0].images[0].get_clim() == (0, 1)


def test_every_cell_of_a_small_map_has_its_number():
    assert numbers(drawn()) == ["0.00", "0.25", "0.50", "0.75", "1.00", "0.10"]
    places = [text.get_position() for text in drawn().axes[0].texts]
    assert places == [(head, layer) for layer in range(2) for head in range(3)]


@pytest.mark.parametrize(("L", "H", "written"), [(12, 12, 144), (12, 13, 0), (13, 12, 0)])
def test_map_of_many_heads_has_no_numbers(L, H, written):
    assert len(numbers(drawn(torch.rand(L, H, generator=torch.Generator().manual_seed(0))))) == written


@pytest.mark.parametrize(
    ("largest", "number"),
    [(1.0, "-0.12"), (9.99, "-0.12"), (9.996, "-0.1"), (10.0, "-0.1"), (99.9, "-0.1"), (100.0, "0"), (1234.0, "0")],
)
def test_numbers_have_three_digits_of_the_largest(largest, number):
    assert numbers(drawn(torch.tensor([[-0.123, largest]])))[0] == number


def test_number_that_rounds_to_zero_has_no_sign():
    assert numbers(drawn(torch.tensor([[-0.001, 0.001]]))) == ["0.00", "0.00"]


def luminance(rgb):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


@pytest.mark.parametrize("dark", [False, True])
def test_ink_can_be_read_on_every_colour_of_the_scale(dark):
    values = torch.linspace(0, 1, 144).view(12, 12)
    texts = drawn(values, dark=dark).axes[0].texts
    for text, value in zip(texts, values.flatten().tolist()):
        ink, paper = luminance(to_rgb(text.get_color())), luminance(mpl.colormaps["viridis"](value)[:3])
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 4.5  # WCAG 2.1, AA


@pytest.mark.parametrize("dark", [False, True])
def test_cell_without_a_value_is_hatched_and_said(dark):
    paper, lines = to_rgb(PAPER if dark else "white"), to_rgb(LINES if dark else "0.4")
    values = VALUES.clone()
    values[0, 1], values[1, 2] = torch.nan, torch.inf
    figure = drawn(values, dark=dark)
    assert numbers(figure) == ["0.00", "0.50", "0.75", "1.00"]
    assert MISSING in words(figure)
    shown, cells = pixels(figure), head_map_cells(2, 3)
    for cell in ((0, 1), (1, 2)):
        x, y = (round(place) for place in cells[cell])
        around = shown[y - 30 : y + 30, x - 30 : x + 30].reshape(-1, 3)
        for colour in (paper, lines):
            assert (np.abs(around - colour).max(-1) < 0.05).mean() > 0.05


def test_map_with_all_its_values_has_no_hatches():
    figure = drawn()
    assert MISSING not in words(figure)
    assert len(figure.axes[0].patches) == 0


def test_scale_is_that_of_the_values_there_are():
    figure = drawn(torch.tensor([[torch.nan, 3.0], [5.0, -torch.inf]]))
    assert figure.axes[0].images[0].get_clim() == (3, 5)


@pytest.mark.parametrize(
    "values", [torch.full((2, 3), torch.nan), torch.zeros(1, 1), torch.full((2, 2), 7.5), torch.tensor([[torch.nan]])]
)
def test_map_of_nothing_or_of_one_value_is_drawn_without_a_warning(values):
    low, high = without_warnings(lambda: drawn(values)).axes[0].images[0].get_clim()
    assert low < high


@pytest.mark.parametrize("shape", [(3,), (2, 2, 2), (0, 3), (3, 0)])
def test_values_that_are_no_layers_and_heads_are_refused(shape):
    for draw in (drawn, head_map_rows):
        with pytest.raises(ValueError, match=r"needs \(L, H\)"):
            draw(torch.zeros(shape))


@pytest.mark.parametrize(("L", "H"), SHAPES)
def test_centres_of_the_cells_lie_where_the_picture_shows_each_head(L, H):
    values = torch.rand(L, H, generator=torch.Generator().manual_seed(0))
    picture, cells = pixels(drawn(values, vmin=0, vmax=1)), head_map_cells(L, H)
    assert list(cells) == [(layer, head) for layer in range(L) for head in range(H)]
    half = 40 if max(L, H) <= 12 else 18  # pixels, a little less than to the next cell, and past the number
    for (layer, head), (x, y) in cells.items():
        colour = mpl.colormaps["viridis"](float(values[layer, head]))[:3]
        for right, down in ((-half, -half), (half, -half), (-half, half), (half, half)):
            np.testing.assert_allclose(picture[round(y) + down, round(x) + right], colour, atol=0.01)


def boxes_of_words(figure):
    """Where each text lies in the picture, in its pixels, all of them inside it: text → box."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # which places the labels
    renderer = canvas.get_renderer()
    width, height = renderer.get_canvas_width_height()
    ticks = {label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for label in axis.get_ticklabels()}
    texts = [text for text in figure.findobj(mpl.text.Text) if text.get_text() and text not in ticks]
    boxes = {text.get_text(): text.get_window_extent(renderer) for text in texts}
    for text, box in boxes.items():
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= width, text
        assert box.y1 <= height, text
    return boxes


@pytest.mark.parametrize(("L", "H"), SHAPES)
def test_every_word_lies_inside_the_picture_and_the_title_above_the_map(L, H):
    values = torch.zeros(L, H)
    values[0, 0] = torch.nan  # which is said below the map
    for title in ("runs/" * 60, *(["short", "words of a title " * 12] if L == 1 else [])):
        boxes = boxes_of_words(drawn(values, title=title))
        [heading] = [box for text, box in boxes.items() if text.startswith(title[:5])]
        assert heading.y0 >= boxes["head"].y1, title
        assert MISSING in boxes


@pytest.mark.parametrize("n", [2, MAX_LABELS, 70])
def test_long_names_stay_inside_the_picture_and_apart(random_trace, n):
    trace, words, path = random_trace(1, 1, n), "words of a name " * 12, "runs/" * 60
    boxes_of_words(rollout_heatmap(rollout(replace(trace, name=path))))
    for names in ((words, path), *([(path, "gpt2"), ("gpt2", words)] if n == 2 else [])):
        base, other = (replace(trace, name=name) for name in names)
        boxes = boxes_of_words(comparison_heatmaps(compare(base, other), 0, 0))
        titles = [next(box for text, box in boxes.items() if text.startswith(first)) for first in ("base:", "other:")]
        assert titles[0].x1 < titles[1].x0, names
        assert titles[1].x1 < boxes["other − base"].x0, names


def test_title_and_unit_of_a_user_are_drawn_as_plain_text():
    titles = [*HOSTILE, "", "a\nb", "月\ud800", "x" * 999, "$" * 99, "costs $5 or $6_7"]
    for title, unit in zip(titles, [*titles[1:], titles[0]]):  # each as the one and the other
        figure = without_warnings(lambda title=title, unit=unit: drawn(VALUES[:1, :1], title=title, unit=unit))
        texts = [*figure.texts, figure.axes[1].yaxis.label]
        assert not any(text.get_parse_math() for text in texts if "$" in text.get_text()), title
        assert all(text.get_text() == given for text, given in zip(texts, (title, unit)) if given in HOSTILE)


def test_characters_without_a_glyph_are_drawn_as_code_points():
    assert "⟨U+6708⟩" in words(drawn(title="月"))


def test_long_title_is_cut_after_three_lines():
    [title, *_] = drawn(title="runs/" * 99).texts
    assert title.get_text().count("\n") == 2
    assert title.get_text().endswith("…")


def test_rows_say_what_the_map_shows():
    values = torch.tensor([[0.125, torch.nan], [-0.001, 1.0]])
    assert head_map_rows(values) == [("layer 0", "0.12", "none"), ("layer 1", "0.00", "1.00")]
    assert head_map_rows(torch.full((1, 2), torch.nan)) == [("layer 0", "none", "none")]
    rows = head_map_rows(VALUES)
    assert [cell for row in rows for cell in row[1:]] == numbers(drawn())


def panels(figure):
    """The three heatmaps, without the colour bars."""
    return figure.axes[:3]


def test_comparison_shows_both_heads_and_their_difference(comparison):
    figure = comparison_heatmaps(comparison, 1, 2)
    parts = [axes.images[0].get_array() for axes in panels(figure)]
    base, other = (each.attention(1, 2).numpy() for each in (comparison.base, comparison.other))
    for part, expected in zip(parts, (base, other, other - base)):
        np.testing.assert_array_equal(part, expected)
    assert np.abs(other - base).max() > 0.01


def test_first_two_share_a_scale_and_the_difference_is_centred_at_0(comparison):
    figure = comparison_heatmaps(comparison, 1, 2)
    one, two, change = (axes.images[0] for axes in panels(figure))
    parts = [axes.images[0].get_array() for axes in panels(figure)]
    assert one.get_clim() == two.get_clim() == (0, 1)
    low, high = change.get_clim()
    assert (-low, high) == (np.abs(parts[2]).max(),) * 2
    assert change.get_cmap().name == "PuOr_r"
    assert f"difference: {parts[2].min():+.3f} to {parts[2].max():+.3f}" in words(figure)


def test_more_attention_is_orange_and_less_is_purple(made_trace):
    zeros, towards = torch.zeros(1, 1, 2, 1), torch.tensor([0.0, 9.0]).view(1, 1, 2, 1)
    base, other = made_trace(zeros + 1, zeros), made_trace(zeros + 1, towards)
    [*_, change] = panels(comparison_heatmaps(compare(base, other), 0, 0))
    less, more = (change.images[0].to_rgba(value)[:3] for value in (-0.4, 0.4))
    assert less[2] > less[0] > less[1]
    assert more[0] > more[1] > more[2]
    np.testing.assert_allclose(change.images[0].to_rgba(0.0)[:3], (0.97, 0.97, 0.97), atol=0.01)


def test_titles_of_a_comparison_name_traces_head_and_distance(tiny_trace, other_trace):
    comparison = compare(replace(tiny_trace, name="gpt2"), other_trace)
    figure = comparison_heatmaps(comparison, 1, 2)
    assert [axes.get_title() for axes in panels(figure)] == ["base: gpt2", "other: tuned", "other − base"]
    distance = float(comparison.total_variation[1, 2])
    assert f"layer 1, head 2: total variation distance {distance:.3f} (share of attention, 0 to 1)" in words(figure)


def test_tokens_that_differ_are_both_named_beside_the_difference(tiny_trace):
    changed = ("Some", *tiny_trace.tokens[1:])
    figure = comparison_heatmaps(compare(tiny_trace, replace(tiny_trace, tokens=changed)), 0, 0)
    for axes, first in zip(panels(figure), (tiny_trace.tokens[0], "Some", f"{tiny_trace.tokens[0]} / Some")):
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            assert tuple(text.get_text() for text in labels) == (first, *tiny_trace.tokens[1:])


def test_comparison_of_a_trace_with_itself_is_drawn_without_a_warning(tiny_trace):
    figure = without_warnings(lambda: comparison_heatmaps(compare(tiny_trace, tiny_trace), 0, 0))
    assert panels(figure)[2].images[0].get_clim() == (-1, 1)
    assert "difference: +0.000 to +0.000" in words(figure)


@pytest.mark.parametrize(("layer", "head"), [(2, 0), (-1, 0), (0, 4), (0, -1)])
def test_head_that_does_not_exist_cannot_be_compared(comparison, layer, head):
    with pytest.raises(LabError, match="is out of range"):
        comparison_heatmaps(comparison, layer, head)


def named(random_trace, *names, tokens=("a", "b")):
    """Traces with these names, no two with the same attention."""
    trace = random_trace(1, 1, len(tokens), tokens)
    return [replace(trace, name=name, k=trace.k * (1 - 2 * i)) for i, name in enumerate(names)]


def test_hostile_names_and_tokens_are_drawn_as_they_are(random_trace):
    names = [*HOSTILE, "", "月", "runs/" * 99]
    for base, other in zip(names, [*names[1:], names[0]]):
        tokens = HOSTILE if base == HOSTILE[0] else ("a", "b")
        one, two = named(random_trace, base, other, tokens=tokens)
        two = replace(two, tokens=two.tokens[::-1])  # the difference has both
        compared = without_warnings(lambda one=one, two=two: comparison_heatmaps(compare(one, two), 0, 0))
        flow = without_warnings(lambda one=one: rollout_heatmap(rollout(one)))
        for axes, trace in zip([*compared.axes[:2], flow.axes[0]], (one, two, one)):
            assert not axes.title.get_parse_math(), trace.name
            if trace.name in HOSTILE:
                assert axes.title.get_text().endswith(f": {trace.name}")
            shown = [text.get_text().replace(r"\$", "$") for text in axes.get_xticklabels()]
            assert shown == list(trace.tokens)


def test_names_are_no_markup_in_the_svg(random_trace):
    names = ("</svg><script>alert(1)</script>", "--><script>alert(1)</script>", "]]><script>")
    one, two, three = named(random_trace, *names)
    compared = [comparison_heatmaps(compare(*pair), 0, 0) for pair in ((one, two), (three, one))]
    flows = [rollout_heatmap(rollout(trace)) for trace in (one, two, three)]
    for figure in (*compared, *flows, *(drawn(VALUES[:1, :1], title=name) for name in names)):
        tags = {
            element.tag.rpartition("}")[2] for element in ElementTree.fromstring(figure_bytes(figure, "svg")).iter()
        }
        assert "path" in tags
        assert "script" not in tags


@pytest.mark.parametrize(("n", "labelled"), [(MAX_LABELS, True), (MAX_LABELS + 1, False)])
def test_labels_too_many_to_read_are_left_out(random_trace, n, labelled):
    trace = random_trace(1, 1, n)
    for figure in (comparison_heatmaps(compare(trace, trace), 0, 0), rollout_heatmap(rollout(trace))):
        shown = tuple(text.get_text() for text in figure.axes[0].get_xticklabels())
        assert (shown == trace.tokens) == labelled


def test_rollout_is_drawn_with_its_caveat(tiny_trace):
    figure = rollout_heatmap(rollout(tiny_trace))
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), rollout(tiny_trace).weights.numpy())
    assert figure.axes[0].images[0].get_clim()[0] == 0
    assert ROLLOUT_CAVEAT in " ".join(words(figure).split())


def test_rollout_of_one_token_can_be_drawn(random_trace):
    figure = without_warnings(lambda: rollout_heatmap(rollout(random_trace(2, 2, 1))))
    assert figure.axes[0].images[0].get_array().tolist() == [[1.0]]

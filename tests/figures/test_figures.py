import resource
import threading
import warnings
from dataclasses import replace
from io import BytesIO
from itertools import product
from math import exp, log
from types import SimpleNamespace
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from gpt2lab.errors import LabError
from gpt2lab.figures import attention
from gpt2lab.figures.attention import MAX_SIDE, attention_grid, attention_heatmap, shrunk
from gpt2lab.figures.drawing import DPI, MAX_LABELS, figure_bytes
from gpt2lab.figures.training import loss_curve
from gpt2lab.inspection.attention import Attention
from gpt2lab.inspection.trace import Trace
from gpt2lab.pages.export import export
from gpt2lab.training.runs import Metric
from tests.processes import Command

METRICS = tuple(
    Metric(step, 64 * step, split, loss, 1e-3, float(step))
    for step, split, loss in [
        (0, "validation", 6.5),
        (1, "train", 6.25),
        (2, "train", 5.0),
        (2, "validation", 5.5),
        (3, "train", 4.75),
        (3, "validation", 5.25),
    ]
)
HOSTILE = ("$\\frac$", "$", "_a^{", "</script>", "$$", "\\$", "a$b_c", "&<>\"'")


def pixels(figure):
    return imread(BytesIO(figure_bytes(figure, "png")))[..., :3]  # (height, width, 3)


def line_points(figure, label):
    [line] = [line for line in figure.axes[0].lines if line.get_label() == label]
    return list(zip(*line.get_data()))


def pictures(trace):
    return {
        "loss curve": lambda **options: loss_curve(METRICS, **options),
        "grid": lambda **options: attention_grid(trace, **options),
        "heatmap": lambda **options: attention_heatmap(trace, 1, 2, **options),
    }


each_picture = pytest.mark.parametrize("picture", ["loss curve", "grid", "heatmap"])


def test_loss_curve_draws_exactly_the_losses_of_each_split():
    figure = loss_curve(METRICS)
    for split in ("train", "validation"):
        assert line_points(figure, split) == [(m.step, m.loss) for m in METRICS if m.split == split]
    assert figure.axes[0].get_ylabel() == "loss (nats per token)"


def test_baseline_is_level_at_the_first_validation_loss():
    assert {y for _, y in line_points(loss_curve(METRICS), "before training")} == {6.5}


def test_axis_on_the_right_reads_losses_as_perplexities():
    figure = loss_curve(METRICS)
    figure.draw_without_rendering()
    [right] = figure.axes[0].child_axes
    assert right.get_ylabel() == "perplexity"
    assert right.get_ylim() == pytest.approx([exp(y) for y in figure.axes[0].get_ylim()])


@pytest.mark.parametrize("split", ["train", "validation"])
def test_loss_curve_of_one_split_alone_draws_it(split):
    metrics = tuple(metric for metric in METRICS if metric.split == split)
    figure = loss_curve(metrics)
    assert line_points(figure, split) == [(m.step, m.loss) for m in metrics]
    assert any(line.get_label() == "before training" for line in figure.axes[0].lines) == (split == "validation")
    assert figure_bytes(figure, "png").startswith(b"\x89PNG")


@pytest.mark.parametrize("metrics", [(), (METRICS[0],), (replace(METRICS[0], loss=800.0), METRICS[1])])
def test_loss_curve_of_little_or_huge_losses_can_be_drawn_without_a_warning(metrics):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert figure_bytes(loss_curve(metrics), "png").startswith(b"\x89PNG")


def test_heatmap_holds_the_attention_of_its_head(tiny_trace):
    for layer, head in ((0, 0), (1, 3)):
        figure = attention_heatmap(tiny_trace, layer, head)
        [image] = figure.axes[0].images
        np.testing.assert_array_equal(image.get_array(), tiny_trace.attention(layer, head).numpy())
        assert figure.axes[0].get_title() == f"layer {layer}, head {head}"


def test_heatmap_labels_rows_and_columns_with_the_tokens(tiny_trace):
    axes = attention_heatmap(tiny_trace, 0, 0).axes[0]
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert tuple(label.get_text() for label in labels) == tiny_trace.tokens


def test_heatmap_draws_the_first_token_at_the_top_left(made_trace):
    identity = 100 * torch.eye(4).expand(1, 1, 4, 4)
    axes = attention_heatmap(made_trace(identity, identity), 0, 0).axes[0]
    assert axes.images[0].origin == "upper"
    assert axes.get_ylim() == (3.5, -0.5)


@pytest.mark.parametrize(("n", "labelled"), [(MAX_LABELS, True), (MAX_LABELS + 1, False)])
def test_heatmap_leaves_out_labels_too_many_to_read(random_trace, n, labelled):
    axes = attention_heatmap(random_trace(1, 1, n), 0, 0).axes[0]
    assert (tuple(label.get_text() for label in axes.get_xticklabels()) == tuple(f"t{i}" for i in range(n))) == labelled


def test_tokens_that_look_like_formulas_or_markup_are_drawn_as_they_are(random_trace):
    figure = attention_heatmap(random_trace(1, 1, len(HOSTILE), HOSTILE), 0, 0)
    drawn = [label.get_text().replace(r"\$", "$") for label in figure.axes[0].get_xticklabels()]
    assert drawn == list(HOSTILE)
    ElementTree.fromstring(figure_bytes(figure, "svg"))
    assert figure_bytes(figure, "png").startswith(b"\x89PNG")


@pytest.mark.parametrize("token", ["·a", "⏎", "⇥", "␍", "⟨F0 9F⟩", "⟨⟩", "é", "ж", "月"])
def test_token_of_any_script_is_drawn_without_a_warning(random_trace, token):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure_bytes(attention_heatmap(random_trace(1, 1, 2, ("a", token)), 0, 0), "png")


def test_longest_token_of_gpt2_leaves_room_for_the_picture(random_trace):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure_bytes(attention_heatmap(random_trace(1, 1, 2, ("a", "=" * 64)), 0, 0), "png")


def thumbnails(figure, L, H, n):
    """(L, H, n, n): what the grid shows of each head."""
    [axes] = figure.axes
    [image] = axes.images
    mosaic = image.get_array()
    tiles = [np.split(row, H, axis=1) for row in np.split(mosaic, L)]
    [side] = {round(tile.count() ** 0.5) for row in tiles for tile in row}
    shown = np.array([[tile.compressed().reshape(side, side) for tile in row] for row in tiles])
    small = shown[..., :: side // n, :: side // n]
    np.testing.assert_array_equal(small.repeat(side // n, 2).repeat(side // n, 3), shown)
    return small


def labels_of(axis):
    return [(label.get_text(), place) for label, place in zip(axis.get_ticklabels(), axis.get_ticklocs())]


def test_grid_has_the_attention_of_every_head_in_order(tiny_trace):
    figure, n = attention_grid(tiny_trace), len(tiny_trace.tokens)
    shown = thumbnails(figure, 2, 4, n)
    for layer, head in product(range(2), range(4)):
        np.testing.assert_array_equal(shown[layer, head], tiny_trace.attention(layer, head).numpy())
    axes = figure.axes[0]
    assert labels_of(axes.xaxis) == [("head 0", 0.5), ("head 1", 1.5), ("head 2", 2.5), ("head 3", 3.5)]
    assert labels_of(axes.yaxis) == [("layer 0", 0.5), ("layer 1", 1.5)]
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 4), (2, 0))


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 127, 128])
def test_gaps_between_thumbnails_are_thin_and_even(random_trace, n):
    mosaic = attention_grid(random_trace(2, 3, n)).axes[0].images[0].get_array()
    empty = np.ma.getmaskarray(mosaic)
    assert mosaic.shape[0] / 2 == mosaic.shape[1] / 3
    np.testing.assert_array_equal(empty, empty[::-1, ::-1])
    assert 0.92 < 1 - empty.all(axis=1).mean() < 0.96
    np.testing.assert_array_equal(~empty, np.outer(~empty.all(axis=1), ~empty.all(axis=0)))


def test_grid_of_one_layer_has_its_heads_alone(tiny_trace):
    figure = attention_grid(tiny_trace, layer=1)
    np.testing.assert_array_equal(thumbnails(figure, 1, 4, len(tiny_trace.tokens))[0], tiny_trace.attention(1).numpy())
    assert labels_of(figure.axes[0].yaxis) == [("layer 1", 0.5)]


@pytest.mark.parametrize(("layer", "head"), [(2, 0), (-1, 0), (0, 4), (0, -1)])
def test_head_that_does_not_exist_cannot_be_drawn(tiny_trace, layer, head):
    with pytest.raises(LabError, match="is out of range"):
        attention_heatmap(tiny_trace, layer, head)
    if head == 0:
        with pytest.raises(LabError, match=f"layer {layer} is out of range"):
            attention_grid(tiny_trace, layer=layer)


def test_matrix_that_fits_is_drawn_as_it_is():
    weights = np.random.default_rng(0).random((MAX_SIDE, MAX_SIDE))
    np.testing.assert_array_equal(shrunk(weights), weights)


@pytest.mark.parametrize("n", [129, 600, 1024])
def test_larger_matrix_is_drawn_as_means_of_its_parts(n):
    weights = np.random.default_rng(0).random((n, n)).astype(np.float32)
    small = shrunk(weights)
    assert small.shape == (MAX_SIDE, MAX_SIDE)
    edges = [i * n // MAX_SIDE for i in range(MAX_SIDE + 1)]
    for i, j in [(0, 0), (1, 126), (100, 31), (126, 3), (127, 127)]:
        part = weights[edges[i] : edges[i + 1], edges[j] : edges[j + 1]]
        assert small[i, j] == pytest.approx(part.mean(dtype=np.float64), rel=1e-5)


def test_mean_of_a_matrix_survives_shrinking():
    rows = np.random.default_rng(0).random(1024)
    weights = np.outer(rows, rows)
    np.testing.assert_allclose(shrunk(weights).mean(), weights.mean())


def test_grid_of_a_long_text_shows_means(random_trace):
    trace = random_trace(1, 2, 600)
    shown = thumbnails(attention_grid(trace), 1, 2, MAX_SIDE)[0]
    for head in range(2):
        means = shrunk(trace.attention(0, head).numpy())
        np.testing.assert_allclose(shown[head], means / means.max(), rtol=1e-6)
        assert shown[head].max() == 1


@each_picture
def test_picture_made_twice_gives_the_same_bytes_on_white_or_dark_and_leaves_pyplot_alone(tiny_trace, picture):
    make, before = pictures(tiny_trace)[picture], dict(mpl.rcParams)
    light, again, dark = (figure_bytes(make(dark=dark), "png") for dark in (False, False, True))
    assert light == again
    assert len(light) > 1000
    for content, colour in ((light, "#ffffff"), (dark, "#18181b")):
        shown = imread(BytesIO(content))[..., :3]
        for corner in ((0, 0), (-1, -1), (0, -1)):
            np.testing.assert_allclose(shown[corner], to_rgb(colour), atol=1 / 255)
    assert pyplot.get_fignums() == []
    assert dict(mpl.rcParams) == before


def test_png_has_the_resolution_that_is_stated():
    figure = loss_curve(METRICS)
    height, width, _ = pixels(figure).shape
    assert (width, height) == tuple(round(inches * DPI) for inches in (7, 3.6))


def test_pictures_drawn_at_the_same_time_keep_their_own_colours(tiny_trace):
    inside, go_on, dark = threading.Event(), threading.Event(), []

    def attention(layer):
        inside.set()
        go_on.wait(60)
        return tiny_trace.attention(layer)

    slow = SimpleNamespace(n_layers=2, n_heads=4, tokens=tiny_trace.tokens, attention=attention)
    thread = threading.Thread(target=lambda: dark.append(attention_grid(slow, dark=True)))
    thread.start()
    inside.wait(60)
    light = loss_curve(METRICS)
    go_on.set()
    thread.join()
    assert to_rgb(light.get_facecolor()) == to_rgb("#ffffff")
    assert to_rgb(dark[0].get_facecolor()) == to_rgb("#18181b")


def test_colour_scale_begins_at_zero(tiny_trace):
    [grid] = attention_grid(tiny_trace).axes[0].images
    image = attention_heatmap(tiny_trace, 0, 1).axes[0].images[0]
    assert grid.get_clim() == (0, 1)
    assert image.get_clim() == (0, pytest.approx(float(tiny_trace.attention(0, 1).max())))


def test_perplexity_axis_stands_a_loss_of_zero():
    figure = loss_curve((replace(METRICS[1], loss=0.0), replace(METRICS[2], loss=log(2))))
    assert figure_bytes(figure, "png").startswith(b"\x89PNG")


def measure_grid_of_gpt2_xl():
    q, k, v = torch.randn(3, 48, 25, 128, 64)
    trace = Trace("xl", ("a",) * 128, torch.zeros(128, dtype=torch.long), q, k, v, (0.125,) * 48)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(export(Attention(trace), "png")) > 1e6
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)


@pytest.mark.slow
def test_grid_of_1200_heads_takes_at_most_500_megabytes(tmp_path):
    done = Command(tmp_path / "command", main=measure_grid_of_gpt2_xl).finish()
    assert int(done.stdout) <= 500, done.stderr


def test_grid_of_many_layers_is_drawn_in_parts_without_a_seam(tiny_trace, monkeypatch):
    whole = pixels(attention_grid(tiny_trace))
    monkeypatch.setattr(attention, "DRAWN_AT_ONCE", 1)
    parts = attention_grid(tiny_trace)
    assert len(parts.axes[0].images) == 2
    np.testing.assert_array_equal(pixels(parts), whole)

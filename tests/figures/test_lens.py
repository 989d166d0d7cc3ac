from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import LogNorm, to_hex, to_rgb

from gpt2lab.errors import LabError
from gpt2lab.figures.drawing import INK, PAPER, RUN_COLOURS, figure_bytes, label
from gpt2lab.figures.lens import LENS, MAX_WORD, MAX_WORDS, lens_figure, patching_figure
from gpt2lab.figures.surprisal import BINS, rank_figure
from gpt2lab.inspection.lens import logit_lens
from gpt2lab.inspection.patching import patching
from gpt2lab.inspection.surprisal import surprisal

pytestmark = pytest.mark.usefixtures("small_pictures")
TEXT, CORRUPTED = "The moon is a small world.", "The moon is a small world!"
HOSTILE = ("$x$", "<b>", "a" * 300, "$\\frac$", "_x", "{", "\\", "月", "🌙", "%", "^2", "·$")
ENTRIES = ["embedding", "layer 0", "layer 1"]


@pytest.fixture(scope="module")
def lens(tiny_lab):
    return logit_lens(tiny_lab, TEXT, next=True)


@pytest.fixture(scope="module")
def found(tiny_lab):
    return surprisal(tiny_lab, TEXT)


@pytest.fixture(scope="module")
def other(random_lab):
    return surprisal(random_lab(seed=9), TEXT)


@pytest.fixture(scope="module")
def patched(tiny_lab):
    return patching(tiny_lab, TEXT, CORRUPTED)


def labels(axis):
    return [one.get_text() for one in axis.get_ticklabels()]


@pytest.mark.parametrize("measure", LENS)
def test_lens_figure_has_the_numbers_of_its_measure(lens, measure):
    axes, bar = lens_figure(lens, measure).axes
    [image] = axes.images
    np.testing.assert_allclose(image.get_array(), getattr(lens, measure).double())
    assert labels(axes.yaxis) == ENTRIES
    assert labels(axes.xaxis) == [label(token) for token in lens.trace.tokens]
    assert image.origin == "lower" and isinstance(image.norm, LogNorm) == (measure == "rank")
    assert " ".join(axes.get_title().split()).startswith(LENS[measure].title)
    assert bar.get_ylabel() == LENS[measure].unit


def test_each_layer_s_top_prediction_stands_in_its_cell(lens):
    texts = lens_figure(lens).axes[0].texts
    places = {tuple(map(int, text.get_position())): text.get_text() for text in texts}
    assert len(places) == 3 * len(lens.trace.tokens)
    for (at, entry), word in places.items():
        assert word == label(lens.names[int(lens.top[entry, at, 0])])


def luminance(colour):
    """Relative luminance (WCAG 2.1)."""
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour))
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("measure", LENS)
def test_words_in_cells_can_be_read_on_their_colours(lens, measure, dark):
    axes = lens_figure(lens, measure, dark=dark).axes[0]
    [image] = axes.images
    for text in axes.texts:
        at, entry = map(int, text.get_position())
        paper = image.to_rgba(image.get_array()[entry, at])[:3]
        low, high = sorted(luminance(colour) for colour in (paper, text.get_color()))
        assert (high + 0.05) / (low + 0.05) >= 4.5  # WCAG 2.1, 1.4.3


def test_long_word_is_cut(lens):
    long = replace(lens, names=dict.fromkeys(lens.names, "x" * 30))
    assert {text.get_text() for text in lens_figure(long).axes[0].texts} == {"x" * (MAX_WORD - 1) + "…"}


@pytest.mark.parametrize(
    ("T", "written", "labelled"), [(MAX_WORDS, True, True), (MAX_WORDS + 1, False, True), (49, False, False)]
)
def test_long_text_has_colours_alone(tiny_lab, T, written, labelled):
    lens = logit_lens(tiny_lab, "x" * T)
    axes = lens_figure(lens).axes[0]
    assert len(lens.trace.tokens) == T == axes.images[0].get_array().shape[1]
    assert bool(axes.texts) == written
    assert (labels(axes.xaxis) == ["x"] * T) == labelled


def test_one_token_has_a_picture_too(tiny_lab, found):
    lens = logit_lens(tiny_lab, "x")
    for measure in LENS:
        assert figure_bytes(lens_figure(lens, measure), "png")
    alone = surprisal(tiny_lab, "x")
    assert [bar.get_height() for bar in rank_figure([replace(alone, limits=(10,))]).axes[0].patches] == [0, 0]


@pytest.mark.parametrize("measure", ["loss", "", "Rank", None, 3])
def test_unknown_measure_is_refused_with_those_there_are(lens, measure):
    with pytest.raises(LabError, match="is unknown; use rank, probability, entropy, divergence"):
        lens_figure(lens, measure)


def test_patching_figure_has_the_shares_recovered(patched):
    axes, bar = patching_figure(patched).axes
    [image] = axes.images
    np.testing.assert_allclose(image.get_array(), patched.recovered.double())
    assert labels(axes.yaxis) == ENTRIES
    pairs = zip(patched.tokens, patched.clean_tokens)
    assert labels(axes.xaxis) == [one if one == clean else f"{one}/{clean}" for one, clean in pairs]
    assert labels(axes.xaxis)[-1] == "!/."
    assert image.norm.vcenter == 0 and image.norm.vmax == -image.norm.vmin >= 1
    assert bar.get_ylabel() == "0 as corrupted, 1 as clean"


@pytest.mark.parametrize("limits", [(10,), (1, 10, 100), (2, 250)])
def test_rank_figure_counts_ranks_and_costs_of_each_model(found, other, limits):
    found, other = replace(found, limits=limits), replace(other, limits=limits)
    ranks, costs = rank_figure([found, other]).axes
    heights = [bar.get_height() for bar in ranks.patches]
    n = len(limits) + 1
    assert heights == [count for one in (found, other) for _, count in one.buckets]
    assert sum(heights[:n]) == sum(heights[n:]) == len(found.tokens) - 1
    assert heights[0] == int((found.rank[1:] <= limits[0]).sum())
    assert labels(ranks.xaxis) == [name for name, _ in found.buckets]
    nll = [one.nll[1:].numpy() for one in (found, other)]
    for outline, values in zip(costs.patches, nll):
        counts, _ = np.histogram(values, BINS, (0, max(map(np.max, nll))))
        assert outline.get_xy()[1:-1:2, 1].tolist() == counts.tolist()


def test_bars_of_two_models_stand_beside_each_other_in_their_colours(found, other):
    figure = rank_figure([replace(one, limits=(10, 100)) for one in (found, replace(other, name="second"))])
    first, second = (figure.axes[0].patches[i : i + 3] for i in (0, 3))
    for one, two in zip(first, second):
        assert one.get_x() + one.get_width() == pytest.approx(two.get_x())
        assert (to_hex(one.get_facecolor()), to_hex(two.get_facecolor())) == RUN_COLOURS[:2]
    [legend] = figure.legends
    assert [text.get_text().strip() for text in legend.get_texts()] == [found.name, "second"]
    assert not rank_figure([found]).legends


@pytest.mark.parametrize("name", ["$x$", "$\\frac$", "_hidden", "月"])
def test_model_s_name_is_drawn_as_it_is(found, other, name):
    figure = rank_figure([replace(found, name=name), other])
    assert figure_bytes(figure, "png")
    [legend] = figure.legends
    assert len(legend.get_texts()) == 2


def test_dark_figures_have_light_ink_on_dark_paper(lens, patched, found, other):
    for draw in (
        lambda **options: lens_figure(lens, **options),
        lambda **options: patching_figure(patched, **options),
        lambda **options: rank_figure([found, other], **options),
    ):
        light, dark = draw(), draw(dark=True)
        assert to_hex(light.get_facecolor()) == "#ffffff"
        assert to_hex(dark.get_facecolor()) == PAPER
        for axes in dark.axes:
            assert to_hex(axes.get_facecolor()) == PAPER
            assert to_hex(axes.xaxis.label.get_color()) == to_hex(axes.title.get_color()) == INK
        assert figure_bytes(light, "png") != figure_bytes(dark, "png")


def test_hostile_tokens_are_drawn_as_themselves(lens, patched):
    tokens = HOSTILE[: len(lens.trace.tokens)]
    names, name = {i: tokens[i % len(tokens)] for i in lens.names}, "".join(HOSTILE)
    one = lens_figure(replace(lens, names=names, trace=replace(lens.trace, tokens=tokens, name=name)))
    assert labels(one.axes[0].xaxis) == [label(token) for token in tokens]
    two = patching_figure(replace(patched, tokens=tokens, clean_tokens=tokens, words=tokens[:2], name=name))
    assert figure_bytes(one, "png") and figure_bytes(two, "png")

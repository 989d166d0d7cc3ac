import base64
import csv
import io
from dataclasses import replace
from math import exp, inf, log
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.image import imread

from gpt2lab.evaluation.breakdown import Share
from gpt2lab.evaluation.evaluate import Evaluation
from gpt2lab.evaluation.perplexity import Perplexity
from gpt2lab.evaluation.protocols import Document, TokenizedText
from gpt2lab.evaluation.published import Published
from gpt2lab.evaluation.scorer import ScoredText
from gpt2lab.figures import drawing
from gpt2lab.figures import evaluation as figures
from gpt2lab.figures.drawing import INK, PAPER, figure_bytes
from gpt2lab.figures.evaluation import (
    BY,
    MEANINGS,
    SHARE_HEAD,
    meaning_lines,
    result_figure,
    result_table,
    results_csv,
    share_rows,
    shares_csv,
    shares_figure,
    tokens_csv,
)
from gpt2lab.pages import evaluation as pages
from gpt2lab.pages.evaluation import evaluation_body, evaluation_page
from gpt2lab.widgets.page import POLICY

HOSTILE = "</td></table><script>alert(1)</script><img src=http://x.y/z onerror=alert(2)> & \"'"
ONE = Perplexity(
    protocol="sliding",
    context=1024,
    stride=512,
    n_scored=12_345,
    n_words=2_345,
    n_bytes=45_678,
    windows=1_024,
    nll=43_210.5,
    interval=(31.25, 1035.5),
    word_interval=(98_765.4, 123_456.7),
    bits_interval=(1.3, 1.4567),
    n_tokens=12_346,
    n_documents=1_012,
    described="windows in words",
)
TWO = Perplexity(
    protocol="blocks",
    context=8,
    stride=8,
    n_scored=10,
    n_words=0,
    n_bytes=20,
    windows=2,
    nll=7100.0,  # a loss per token of 710 nats: past floats
    n_tokens=12,
    n_documents=1,
    described="blocks in words",
)
NAMES = [
    "perplexity",
    "… 95 % interval",
    "word perplexity",
    "… 95 % interval",
    "byte perplexity",
    "bits per byte",
    "… 95 % interval",
    "tokens predicted",
    "words, bytes",
    "documents",
    "windows",
    "total loss (nats)",
]
GUIDE = Published("gpt2", "sliding", 1024, 1024, "perplexity", 29.94, "https://a.b/c")
HARNESS = Published("gpt2-xl", "lm-eval", 1024, 1024, "word_perplexity", 37.5, "a run of it")
SHARES = (Share("prose", 6, 15.0), Share("title", 2, 4.0), Share("heading", 2, 1.0))
OTHERS = (Share("prose", 6, 12.0), Share("heading", 2, 7.0), Share("caption", 1, 0.5))


def made_evaluation(losses, titles=("Moon", "Sea"), protocol="sliding", source="abcdef"):
    """Models by name, with the loss of each of six tokens, in as many documents as there are titles."""
    n = len(next(iter(losses.values())))
    ids, owner = np.arange(n), np.arange(n) * len(titles) // n
    documents = tuple(Document(title, 4, 20) for title in titles)
    reading = TokenizedText(protocol, n, n, source.ljust(n, "x"), ids, ids, owner, np.array([[0, 1, n]]), documents)
    return Evaluation(tuple(ScoredText(reading, np.array(nll, float), name, 300) for name, nll in losses.items()))


@pytest.fixture
def evaluation():
    return made_evaluation({"before": [np.nan, 2, 3, 1, 2, 4], "after": [np.nan, 2, 3, 1, 2, 0]})


@pytest.fixture
def sketched(monkeypatch, read_html):
    """A function: what `evaluation_page` takes → the page as a parser reads it, with its pictures left empty."""
    monkeypatch.setattr(drawing, "figure_bytes", lambda figure, format: b"")
    for name in ("result_figure", "shares_figure"):
        monkeypatch.setattr(pages, name, lambda *args, dark: None)
    return lambda *texts: read_html(evaluation_page(*texts).html)


def parsed(content):
    return list(csv.DictReader(io.StringIO(content.decode("utf-8"), newline="")))


def ticks(figure):
    return [text.get_text() for text in figure.axes[0].get_yticklabels()]


def bar_sets(figure):
    """The lengths of the bars of each model, and their colour."""
    return [([bar.get_width() for bar in bars], to_hex(bars[0].get_facecolor())) for bars in figure.axes[0].containers]


def png(figure):
    return imread(io.BytesIO(figure_bytes(figure, "png")))[..., :3]  # (height, width, 3)


# tables


def test_every_row_shows_the_figure_that_it_is_named_for():
    assert result_table([("m", ONE)])[1] == [
        ("perplexity", f"{exp(43_210.5 / 12_345):.2f}"),
        ("… 95 % interval", "31.2 to 1,035.5"),
        ("word perplexity", f"{exp(43_210.5 / 2_345):,.2f}"),
        ("… 95 % interval", "98,765 to 123,457"),
        ("byte perplexity", f"{exp(43_210.5 / 45_678):.4f}"),
        ("bits per byte", f"{43_210.5 / 45_678 / log(2):.4f}"),
        ("… 95 % interval", "1.300 to 1.457"),
        ("tokens predicted", "12,345 of 12,346"),
        ("words, bytes", "2,345, 45,678"),
        ("documents", "1,012"),
        ("windows", "1,024 of 1,024, every 512"),
        ("total loss (nats)", "43,210.5"),
    ]


def test_protocols_of_one_model_have_a_column_each_in_the_order_given():
    alone = {r.protocol: [row[1] for row in result_table([("m", r)])[1]] for r in (ONE, TWO)}
    head, rows = result_table([("m", TWO), ("m", ONE)])
    assert head == ["", "blocks", "sliding"]
    assert [list(column) for column in zip(*rows)] == [NAMES, alone["blocks"], alone["sliding"]]


def test_several_models_have_a_column_each_and_protocols_follow_each_other():
    alone = {r.protocol: [row[1] for row in result_table([("m", r)])[1]] for r in (ONE, TWO)}
    head, rows = result_table([("m", TWO), ("n", TWO), ("m", ONE), ("n", ONE)])
    assert head == ["", "m", "n"]
    names, *columns = (list(column) for column in zip(*rows))
    assert names == [f"{protocol}: {name}" for protocol in ("blocks", "sliding") for name in NAMES]
    assert columns == [alone["blocks"] + alone["sliding"]] * 2


def test_interval_that_there_is_none_of_and_a_perplexity_past_floats_are_shown_as_such():
    cells = [cell for _, cell in result_table([("m", TWO)])[1]]
    assert [cell for name, cell in zip(NAMES, cells) if "interval" in name] == ["none"] * 3
    assert [cell for name, cell in zip(NAMES, cells) if name in ("perplexity", "word perplexity")] == ["inf"] * 2
    assert cells[NAMES.index("bits per byte")] == f"{7100 / 20 / log(2):.4f}"


def test_interval_that_ends_past_floats_is_reported():
    [row] = [row for row in result_table([("m", replace(ONE, word_interval=(5e300, inf)))])[1] if "inf" in row[1]]
    assert row[1].endswith(" to inf")


def test_row_of_a_share_shows_its_loss_and_what_it_is_of_the_whole():
    assert share_rows(SHARES) == [
        ("prose", "6", f"{exp(2.5):.1f}", "2.500", "75.0%"),
        ("title", "2", f"{exp(2):.1f}", "2.000", "20.0%"),
        ("heading", "2", f"{exp(0.5):.1f}", "0.500", "5.0%"),
    ]
    assert len(SHARE_HEAD) == 5


def test_large_numbers_of_a_share_are_cut_into_thousands():
    assert share_rows([Share("a", 12_345, 12_345 * 8.0)]) == [("a", "12,345", "2,981.0", "8.000", "100.0%")]


def test_share_of_a_text_that_costs_nothing_is_left_blank():
    assert share_rows([Share("a", 3, 0.0)]) == [("a", "3", "1.0", "0.000", "")]


# what the figures mean


def test_protocol_is_described_once_for_all_models_and_says_that_nothing_is_published():
    assert meaning_lines([("a", ONE), ("b", ONE), ("a", TWO)]) == [
        "sliding: windows in words; no published figure is known for this text in these windows.",
        "blocks: blocks in words; no published figure is known for this text in these windows.",
    ]


def test_published_figure_is_reported_once_with_its_quantity_windows_and_source():
    known, also = replace(ONE, published=(GUIDE,)), replace(ONE, published=(GUIDE, HARNESS))
    assert meaning_lines([("a", known), ("b", also)]) == [
        "sliding: windows in words.",
        "sliding: published for gpt2: perplexity 29.94 (context 1,024, stride 1,024; https://a.b/c)",
        "sliding: published for gpt2-xl: word perplexity 37.5 (context 1,024, stride 1,024; a run of it)",
    ]


def test_caution_of_all_models_is_reported_once_and_one_of_a_single_model_with_its_name():
    one, two = (
        replace(ONE, cautions=("few documents", "a sample")),
        replace(ONE, cautions=("few documents", "untrained")),
    )
    assert meaning_lines([("a", one), ("b", two)])[1:] == [
        "sliding: few documents.",
        "sliding, a: a sample.",
        "sliding, b: untrained.",
    ]
    assert meaning_lines([("a", one)])[1:] == ["sliding: few documents.", "sliding: a sample."]


def test_caution_is_reported_of_the_protocol_that_it_belongs_to():
    lines = meaning_lines(
        [("a", replace(ONE, cautions=("x",))), ("a", TWO), ("b", ONE), ("b", replace(TWO, cautions=("y",)))]
    )
    assert [line for line in lines if "published" not in line] == ["sliding, a: x.", "blocks, b: y."]


# figures


def test_figure_has_a_point_per_result_at_its_bits_with_its_interval():
    cheap, dear = replace(ONE, bits_interval=(0.5, 0.75)), replace(TWO, nll=20 * log(2) * 3.0)
    figure = result_figure([("a", ONE), ("a", dear), ("b", cheap)])
    assert ticks(figure) == ["a, sliding", "b, sliding", "a, blocks"]
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in figure.axes[0].lines]
    assert [line for line in lines if len(line[0]) == 1] == [
        ([ONE.bits_per_byte], [0]),
        ([ONE.bits_per_byte], [1]),
        ([pytest.approx(3.0)], [2]),
    ]
    assert [line for line in lines if len(line[0]) == 2] == [([1.3, 1.4567], [0, 0]), ([0.5, 0.75], [1, 1])]
    bottom, top = figure.axes[0].get_ylim()
    assert top < 0 < 2 < bottom  # the first one is uppermost
    assert figure.axes[0].get_xlabel() == "bits per byte, 95 % interval over documents"


def test_model_has_one_colour_in_all_protocols_and_no_other_model_has_it():
    figure = result_figure([("a", ONE), ("b", ONE), ("a", TWO), ("b", TWO)])
    a, b, a_again, b_again = [line.get_color() for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    assert (a, b) == (a_again, b_again)
    assert a != b
    assert {line.get_color() for line in figure.axes[0].lines if list(line.get_ydata()) == [0, 0]} == {a}


def test_bars_are_as_long_as_the_losses_of_their_parts_in_every_model():
    figure = shares_figure("part", {"a": SHARES, "b": OTHERS})
    assert ticks(figure) == ["prose", "title", "heading", "caption"]
    (lengths, colour), (other_lengths, other_colour) = bar_sets(figure)
    assert lengths == [2.5, 2.0, 0.5, 0.0]
    assert other_lengths == [2.0, 0.0, 3.5, 0.5]
    assert colour != other_colour
    assert (figure.axes[0].get_title(), figure.axes[0].get_xlabel()) == (BY["part"], "loss (nats per token)")


def test_bars_of_a_part_lie_side_by_side_about_its_name_the_first_model_s_above():
    figure = shares_figure("part", {"a": SHARES, "b": OTHERS})
    first, second = figure.axes[0].containers
    for y, (above, below) in enumerate(zip(first, second)):
        assert above.get_y() + above.get_height() == pytest.approx(below.get_y()) == pytest.approx(y)
    bottom, top = figure.axes[0].get_ylim()
    assert top < 0 < 3 < bottom


def test_models_are_named_where_there_are_several():
    assert shares_figure("part", {"a": SHARES}).legends == []
    [legend] = shares_figure("part", {"a": SHARES, "b": OTHERS}).legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]


def test_no_more_bars_are_drawn_than_a_page_has_rows(monkeypatch):
    monkeypatch.setattr(figures, "MAX_ROWS", 2)
    figure = shares_figure("part", {"a": SHARES})
    assert ticks(figure) == ["prose", "title"]
    assert bar_sets(figure)[0][0] == [2.5, 2.0]


def test_documents_of_one_title_have_a_row_and_a_bar_each():
    made = made_evaluation({"a": [np.nan, 2, 2, 1, 1, 1]}, ("Moon", "Moon")).shares("document", "sliding")
    [(lengths, _)] = bar_sets(shares_figure("document", made))
    assert lengths == [2, 1]
    assert len({row[0] for row in share_rows(made["a"])}) == 2
    assert all(row[0].startswith("Moon") for row in share_rows(made["a"]))


@pytest.mark.parametrize("by", BY)
def test_every_breakdown_has_a_title_of_its_own(by):
    assert shares_figure(by, {"a": SHARES}).axes[0].get_title() == BY[by]
    assert len(set(BY.values())) == len(BY)


@pytest.mark.parametrize("kind", ["results", "shares"])
def test_dark_figure_is_light_ink_on_dark_paper_and_has_the_same_marks(kind):
    def draw(**options):
        if kind == "results":
            return result_figure([("a", ONE), ("b", TWO)], **options)
        return shares_figure("part", {"a": SHARES, "b": OTHERS}, **options)

    light, dark = draw(), draw(dark=True)
    assert ticks(light) == ticks(dark)
    assert bar_sets(light) == bar_sets(dark)
    assert {text.get_color() for text in dark.axes[0].get_yticklabels()} == {INK}
    white, black = png(light), png(dark)
    assert white.shape == black.shape
    np.testing.assert_allclose(white[0, 0], 1)
    np.testing.assert_allclose(black[0, 0], to_rgb(PAPER), atol=0.01)
    assert np.median(white) > 0.9
    assert np.median(black) < 0.2


@pytest.mark.parametrize(
    "name", ["$\\frac", "$", "a$b_c$", "<b>&", "_tuned", "x" * 500, "\\", "a\nb", "月" * 20, "🌙" * 30]
)
def test_any_name_is_drawn_and_leaves_room_for_the_marks(name):
    for figure in (
        result_figure([(name, ONE), ("b", ONE)]),
        shares_figure("document", {name: (Share(name, 2, 3.0),), "b": (Share(name, 2, 1.0),)}),
    ):
        assert png(figure).min() < 0.9  # a warning in the package is an error here
        figure.draw_without_rendering()
        assert figure.axes[0].get_window_extent().width > 0.3 * figure.bbox.width
        assert all(text.get_window_extent().x0 >= 0 for text in figure.axes[0].get_yticklabels())
        assert all(len(legend.get_texts()) == 2 for legend in figure.legends)


def test_long_name_of_a_model_is_reported_by_its_end():
    first, second = ticks(result_figure([("a-very-long-path-to/run-1", ONE), ("a-very-long-path-to/run-2", ONE)]))
    assert first.startswith("…")
    assert first.endswith("to/run-1, sliding")
    assert second.endswith("to/run-2, sliding")


# files to take away


def test_results_come_out_of_their_file_to_the_last_digit():
    found = SimpleNamespace(
        results=(('a, "b"\nc', ONE), ("=m", replace(TWO, sample=(3, 7), cautions=("odd", "old")))),
        models=['a, "b"\nc', "=m"],
        verdicts=[("blocks", "=m is better")],
    )
    rows = parsed(results_csv(found, "+moon, test split"))
    assert [row["model"] for row in rows] == ['a, "b"\nc', "'=m"]
    assert {row["text"] for row in rows} == {"'+moon, test split"}
    for row, result in zip(rows, (ONE, TWO)):
        assert row["protocol"] == result.protocol
        for name in ("context", "stride", "n_scored", "n_tokens", "n_words", "n_bytes", "n_documents", "windows"):
            assert int(row[name]) == getattr(result, name)
        for name in ("nll", "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"):
            assert float(row[name]) == getattr(result, name)
    for name in ("interval", "word_interval", "bits_interval"):
        assert (float(rows[0][f"{name}_low"]), float(rows[0][f"{name}_high"])) == getattr(ONE, name)
        assert (rows[1][f"{name}_low"], rows[1][f"{name}_high"]) == ("", "")
    texts = ("articles", "of_articles", "cautions", "comparison")
    assert [rows[1][name] for name in texts] == ["3", "7", "odd; old", "'=m is better"]
    assert [rows[0][name] for name in texts if name != "cautions"] == ["", "", ""]


def test_shares_come_out_of_their_file_to_the_last_digit():
    shares = {"a": (Share("Moon", 3, 1 / 3, 7), Share("=Sea", 2, 4.0, 9)), "@b": (Share('a,\n"b"', 1, 0.1),)}
    found = SimpleNamespace(protocols=["sliding", "blocks"], shares=lambda by, protocol: shares if by == "part" else {})
    rows = parsed(shares_csv(found, "part"))
    assert [row["protocol"] for row in rows] == ["sliding"] * 3 + ["blocks"] * 3
    assert [(row["model"], row["part"]) for row in rows] == [("a", "Moon"), ("a", "'=Sea"), ("'@b", 'a,\n"b"')] * 2
    for row, share in zip(rows, [share for mine in shares.values() for share in mine]):
        assert int(row["n_scored"]) == share.n_scored
        assert [float(row[name]) for name in ("nll", "loss", "perplexity")] == [share.nll, share.loss, share.perplexity]
    assert [row["bits_per_byte"] for row in rows[:3]] == [repr(1 / 3 / 7 / log(2)), repr(4 / 9 / log(2)), ""]


def test_pieces_come_out_of_their_file_in_order_with_their_losses():
    documents = [
        ("m", "Moon", [("The", None), (" moon,\n", 0.12345649), ('"', 12.0)]),
        ("=n", "+Sea", [("=1", 0.0), ("月", 1e-9)]),
    ]
    rows = parsed(tokens_csv(documents))
    assert [tuple(row.values()) for row in rows] == [
        ("m", "Moon", "0", "The", ""),
        ("m", "Moon", "1", " moon,\n", "0.123456"),
        ("m", "Moon", "2", '"', "12.000000"),
        ("'=n", "'+Sea", "0", "'=1", "0.000000"),
        ("'=n", "'+Sea", "1", "月", "0.000000"),
    ]
    assert list(rows[0]) == ["model", "document", "piece", "text", "nll"]


# the page


def test_page_shows_every_figure_verdict_and_meaning_of_an_evaluation(sketched, evaluation):
    text = sketched("On the moon", evaluation).text
    assert text.startswith("On the moon On the moon before after sliding: perplexity")  # in its head, and at its top
    for cells in result_table(evaluation.results)[1]:
        assert " ".join(" ".join(cells).split()) in text
    [comparison] = evaluation.comparisons
    assert f"sliding: {comparison}" in text
    for line in (*meaning_lines(evaluation.results), *MEANINGS.values()):
        assert text.count(line) == 1


def test_page_shows_where_the_text_is_hard_by_the_first_protocol(sketched, evaluation):
    both = Evaluation((*evaluation.scored, *made_evaluation({"before": [5.0] * 6}, protocol="blocks").scored))
    read = sketched("t", both, ["document", "part"])
    assert "Where it is hard, by sliding" in read.text
    places = []
    for by in ("document", "part"):
        assert f"Loss {BY[by]}." in read.text
        for name, mine in both.shares(by, "sliding").items():
            rows = " ".join(" ".join(row) for row in share_rows(mine))
            head = f"{name} tokens perplexity nats per token of all loss {rows}"
            assert head in read.text
            places.append(read.text.index(head))
    assert places == sorted(places)
    assert (read.count("figure"), read.count("table")) == (3, 5)


def test_page_without_breakdowns_has_no_heading_for_them(sketched, evaluation):
    read = sketched("t", evaluation)
    assert "Where it is hard" not in read.text
    assert (read.count("figure"), read.count("table"), read.count("h3")) == (1, 1, 0)


def test_page_of_one_model_has_no_verdict(sketched):
    text = sketched("t", made_evaluation({"alone": [np.nan, 2, 3, 1, 2, 4]})).text
    assert text.startswith("t t sliding perplexity")
    assert "better" not in text.replace("or more are better", "").replace("lower is better", "")


def test_page_of_more_documents_than_it_has_rows_says_so(sketched, monkeypatch):
    monkeypatch.setattr(pages, "MAX_ROWS", 2)
    losses = {"m": [np.nan, 2.0, 3.0, 4.0, 5.0, 6.0]}
    cut = sketched("t", made_evaluation(losses, ("one", "two", "three")), ["document"])
    assert "The first 2." in cut.text
    assert all(row in cut.text for row in ("three 2", "two 2"))
    assert "one 1" not in cut.text
    whole = sketched("t", made_evaluation(losses, ("one", "two")), ["document"])
    assert "The first" not in whole.text


def test_pictures_are_those_of_the_evaluation_in_light_and_in_dark(read_html, evaluation):
    read = read_html(evaluation_page("t", evaluation, ["part"]).html)
    shares = evaluation.shares("part", "sliding")
    for dark, (tag, source) in enumerate((("img", "src"), ("source", "srcset"))):
        found = [attributes[source].partition("base64,")[2] for name, attributes in read.tags if name == tag]
        assert [base64.b64decode(content, validate=True) for content in found] == [
            figure_bytes(result_figure(evaluation.results, dark=bool(dark)), "png"),
            figure_bytes(shares_figure("part", shares, dark=bool(dark)), "png"),
        ]


def test_page_needs_no_network_and_runs_no_script(sketched, evaluation):
    read = sketched("t", evaluation, list(BY))
    assert any(attributes.get("content") == POLICY for _, attributes in read.tags)
    assert all(value.startswith("data:") for value in read.attributes("src", "srcset", "href", "action", "data"))
    assert [read.count(tag) for tag in ("script", "link", "iframe", "object", "form", "base")] == [0] * 6
    assert (read.count("html"), read.count("body")) == (1, 1)


@pytest.mark.parametrize("place", ["title", "first model", "second model", "document"])
def test_hostile_text_of_an_evaluation_is_shown_and_not_obeyed(sketched, place):
    def page(text):
        texts = {"title": "t", "first model": "a", "second model": "b", "document": "Moon"} | {place: text}
        losses = {texts["first model"]: [np.nan, 2, 3, 1, 2, 4], texts["second model"]: [np.nan, 2, 3, 1, 2, 0]}
        return sketched(texts["title"], made_evaluation(losses, (texts["document"], "Sea")), list(BY))

    plain, hostile = page("harmless"), page(HOSTILE)
    assert [(tag, list(attributes)) for tag, attributes in hostile.tags] == [
        (tag, list(attributes)) for tag, attributes in plain.tags
    ]
    assert HOSTILE in hostile.text


@pytest.mark.parametrize("field", ["described", "source", "caution", "verdict"])
def test_hostile_words_of_a_result_are_shown_and_not_obeyed(sketched, field):
    def page(text):
        changes = {
            "described": {"described": text},
            "source": {"published": (replace(GUIDE, source=text),)},
            "caution": {"cautions": (text,)},
            "verdict": {},
        }
        results, verdicts = [("m", replace(ONE, **changes[field]))], [("sliding", text if field == "verdict" else "")]
        return sketched("t", SimpleNamespace(results=results, protocols=["sliding"], verdicts=verdicts))

    plain, hostile = page("harmless"), page(HOSTILE)
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert HOSTILE in hostile.text


def test_body_is_part_of_a_page_and_not_one_itself(read_html, sketched, evaluation):
    body = read_html(evaluation_body(evaluation))
    assert [body.count(tag) for tag in ("html", "head", "body", "h1", "style")] == [0] * 5
    assert body.text in sketched("t", evaluation).text

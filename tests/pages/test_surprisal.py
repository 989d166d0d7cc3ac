import html
import random
import re
from math import exp, nextafter

import pytest
from matplotlib.colors import to_rgb

from gpt2lab.data.text import articles_of
from gpt2lab.evaluation.breakdown import surprisals
from gpt2lab.evaluation.evaluate import evaluate
from gpt2lab.pages import surprisal
from gpt2lab.pages.surprisal import CHANGES, HARDEST, LIMITS, STYLE, change_page, surprisal_page
from gpt2lab.widgets.page import POLICY, THEMES

HOSTILE = "</span></div><script>alert(1)</script><img src=http://x.y/z onerror=alert(2)> & \"'"
PIECES = [("The", None), (" moon", 2.0), (" &", 0.25), ("\n\n", 9.0), ("  ", 3.5), ("<b>", 12.0), ("月🌙 é\n", 1.0)]
TEXT = "The moon &\n\n  <b>月🌙 é\n"
SPAN = re.compile(r'<span class="(\w+)" title="([^"]*)">([^<]*)</span>')


def spans(page):
    """(class, what hovering shows, text as shown) of each piece."""
    body = page.html.partition('<div class="text">')[2].partition("</div>")[0]
    assert SPAN.sub("", body) == ""
    return [tuple(map(html.unescape, found)) for found in SPAN.findall(body)]


def rows(page):
    lines = re.findall(r"<tr>(.*?)</tr>", page.html, re.DOTALL)
    return [tuple(map(html.unescape, re.findall(r"<t[hd]>(.*?)</t[hd]>", line, re.DOTALL))) for line in lines]


def kinds(page):
    return [kind for kind, _, _ in spans(page)]


def whole(page):
    """The text of all spans, without the marks for newlines."""
    return "".join(text for *_, text in spans(page)).replace("⏎\n", "\n")


# how little each piece was expected


def test_spans_put_together_are_the_text():
    page = surprisal_page("t", PIECES)
    assert [text for *_, text in spans(page)] == ["The", " moon", " &", "⏎\n⏎\n", "  ", "<b>", "月🌙 é⏎\n"]
    assert whole(page) == TEXT


def test_text_of_a_scored_document_is_shown_whole(tiny_lab):
    text = "\n = Moon & sea = \n \n The moon's <b> tide; 月🌙 é  \n and\ttwo  spaces . \n"
    [article] = articles_of(text, "t")
    [scored] = evaluate(tiny_lab, (article,), "sliding", context=16).scored
    pieces = surprisals(scored, 0)
    page = surprisal_page("t", pieces)
    assert whole(page) == scored.tokenized.text
    assert kinds(page)[0] == "none"
    assert sum(kind == "none" for kind in kinds(page)) == sum(nll is None for _, nll in pieces) > 1
    costs = [float(texts.split(" nats")[0]) for kind, texts, _ in spans(page) if kind != "none"]
    assert sum(costs) == pytest.approx(float(scored.nll[scored.predicted].sum()), abs=0.005 * len(costs))


def test_hovering_shows_nats_and_probability():
    assert [texts for _, texts, _ in spans(surprisal_page("t", PIECES))] == [
        "no prediction",
        f"2.00 nats, probability {exp(-2):.2g}",
        f"0.25 nats, probability {exp(-0.25):.2g}",
        f"9.00 nats, probability {exp(-9):.2g}",
        f"3.50 nats, probability {exp(-3.5):.2g}",
        f"12.00 nats, probability {exp(-12):.2g}",
        f"1.00 nats, probability {exp(-1):.2g}",
    ]


@pytest.mark.parametrize(("level", "limit"), [*enumerate(LIMITS)])
def test_shade_deepens_exactly_at_its_limit(level, limit):
    page = surprisal_page("t", [("below", nextafter(limit, 0)), ("at", limit), ("above", nextafter(limit, 99))])
    assert kinds(page) == [f"s{level}", f"s{level + 1}", f"s{level + 1}"]


def test_certain_piece_has_the_first_shade_and_a_hopeless_one_the_last():
    assert kinds(surprisal_page("t", [("a", 0.0), ("b", 700.0)])) == ["s0", f"s{len(LIMITS)}"]
    assert surprisal_page("t", [("b", 1e6)])  # exp(-1e6) is 0


def test_every_shade_is_deeper_than_the_one_before_and_the_first_is_none():
    for letter, count in (("s", len(LIMITS)), ("w", len(CHANGES)), ("b", len(CHANGES))):
        shades = re.findall(rf"\.{letter}(\d+) {{ background: rgb\(([\d ]+) / ([\d.]+)\); }}", STYLE)
        assert [int(number) for number, *_ in shades] == list(range(count + 1))
        depths = [float(depth) for *_, depth in shades]
        assert depths[0] == 0
        assert depths == sorted(set(depths))
        assert len({colour for _, colour, _ in shades}) == 1


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_is_legible_on_every_shade(theme):
    """A contrast of 4.5 at least. Source: WCAG 2.2, success criterion 1.4.3, and its definition of relative luminance."""

    def luminance(colour):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear))

    ink, paper = (to_rgb(re.search(rf"--{name}: (#\w+)", THEMES[theme])[1]) for name in ("ink", "paper"))
    poor = {}
    for name, *rgb, depth in re.findall(r"\.([swb]\d) { background: rgb\((\d+) (\d+) (\d+) / ([\d.]+)\)", STYLE):
        shade = [float(depth) * int(c) / 255 + (1 - float(depth)) * below for c, below in zip(rgb, paper)]
        dark, light = sorted((luminance(shade), luminance(ink)))
        poor |= {name: round((light + 0.05) / (dark + 0.05), 2)} if (light + 0.05) / (dark + 0.05) < 4.5 else {}
    assert poor == {}


def test_key_names_the_range_of_every_shade(read_html):
    read = read_html(surprisal_page("t", []).html)
    assert (
        "nats: 0 to 0.5 0.5 to 1 1 to 2 2 to 3 3 to 4.5 4.5 to 6 6 to 8 8 to 10 10 and more least expected" in read.text
    )
    keyed = [attributes["class"] for tag, attributes in read.tags if tag == "span"]
    assert keyed == [f"s{i}" for i in range(len(LIMITS) + 1)]


def test_table_holds_the_pieces_that_cost_most_the_dearest_first():
    assert rows(surprisal_page("t", PIECES)) == [
        ("least expected", "nats", "probability"),
        ("'<b>'", "12.00", f"{exp(-12):.2g}"),
        (r"'\n\n'", "9.00", f"{exp(-9):.2g}"),
        ("'  '", "3.50", f"{exp(-3.5):.2g}"),
        ("' moon'", "2.00", f"{exp(-2):.2g}"),
        (r"'月🌙 é\n'", "1.00", f"{exp(-1):.2g}"),
        ("' &'", "0.25", f"{exp(-0.25):.2g}"),
    ]


def test_table_holds_no_more_than_its_rows_and_leaves_the_cheapest_out():
    pieces = [(f"p{i}", float(i * 7 % 31)) for i in range(31)]
    found = [float(nats) for _, nats, _ in rows(surprisal_page("t", pieces))[1:]]
    assert found == [float(nats) for nats in range(30, 30 - HARDEST, -1)]


def test_page_past_its_limit_is_cut_and_says_so_and_its_table_is_of_all(monkeypatch, read_html):
    monkeypatch.setattr(surprisal, "MAX_PIECES", 3)
    page = surprisal_page("t", PIECES)
    assert whole(page) == "The moon &"
    assert "The first 3 of 7 pieces." in read_html(page.html).text
    assert rows(page)[1][0] == "'<b>'"


def test_page_at_its_limit_is_not_cut(monkeypatch, read_html):
    monkeypatch.setattr(surprisal, "MAX_PIECES", len(PIECES))
    for page in (surprisal_page("t", PIECES), change_page("t", PIECES, PIECES, ("a", "b"))):
        assert whole(page) == TEXT
        assert "The first" not in read_html(page.html).text


def test_numbers_of_a_cut_page_have_their_thousands_apart(monkeypatch, read_html):
    monkeypatch.setattr(surprisal, "MAX_PIECES", 1_000)
    page = surprisal_page("t", [("a", 1.0)] * 1_001)
    assert len(spans(page)) == 1_000
    assert "The first 1,000 of 1,001 pieces." in read_html(page.html).text


def test_document_without_pieces_is_an_empty_page(read_html):
    page = surprisal_page("Nothing", [])
    assert spans(page) == []
    assert rows(page) == [("least expected", "nats", "probability")]
    assert "Nothing" in read_html(page.html).text


# what a second model expected better


def test_piece_that_the_second_model_expects_better_is_blue_and_worse_is_orange():
    before = [("a", 1.0), ("b", 1.0), ("c", 1.0), ("d", None), ("e", 1.0)]
    after = [("a", 0.5), ("b", 1.5), ("c", 1.0), ("d", 2.0), ("e", None)]
    assert spans(change_page("t", before, after, ("old", "new"))) == [
        ("b2", "1.00 to 0.50 nats (-0.50)", "a"),
        ("w2", "1.00 to 1.50 nats (+0.50)", "b"),
        ("b0", "1.00 to 1.00 nats (+0.00)", "c"),
        ("none", "no prediction", "d"),
        ("none", "no prediction", "e"),
    ]
    colours = {
        letter: re.search(rf"\.{letter}1 {{ background: rgb\((\d+) (\d+) (\d+)", STYLE).groups() for letter in "bw"
    }
    red, _, blue = map(int, colours["b"])
    assert blue > red
    red, _, blue = map(int, colours["w"])
    assert red > blue


@pytest.mark.parametrize(("level", "limit"), [*enumerate(CHANGES)])
def test_shade_of_a_change_deepens_exactly_at_its_limit(level, limit):
    none, below, at = [("x", 0.0)], [("x", nextafter(limit, 0))], [("x", limit)]
    for letter, one, two in (("w", none, below), ("b", below, none)):
        assert kinds(change_page("t", one, two, ("a", "b"))) == [f"{letter}{level}"]
    for letter, one, two in (("w", none, at), ("b", at, none)):
        assert kinds(change_page("t", one, two, ("a", "b"))) == [f"{letter}{level + 1}"]


def test_key_of_a_change_names_the_second_model_as_the_better(read_html):
    read = read_html(change_page("t", PIECES, PIECES, ("old", "new")).html)
    assert "better under new worse from 0.1 nats on, deepest from 2" in read.text
    keyed = [attributes["class"] for tag, attributes in read.tags if tag == "span"][:2]
    assert keyed == [f"b{len(CHANGES)}", f"w{len(CHANGES)}"]


def test_spans_of_a_change_put_together_are_the_text():
    after = [(text, nll and nll / 2) for text, nll in PIECES]
    assert whole(change_page("t", PIECES, after, ("a", "b"))) == TEXT


def test_table_of_a_change_goes_from_the_most_improved_to_the_most_worsened():
    before = [(f"p{i}", 3.0) for i in range(4)] + [("x", None)]
    after = [("p0", 4.0), ("p1", 0.5), ("p2", 3.0), ("p3", 5.5), ("x", 1.0)]
    assert rows(change_page("t", before, after, ("old", "new"))) == [
        ("changed most", "old", "new", "nats"),
        ("'p1'", "3.00", "0.50", "-2.50"),
        ("'p2'", "3.00", "3.00", "+0.00"),
        ("'p0'", "3.00", "4.00", "+1.00"),
        ("'p3'", "3.00", "5.50", "+2.50"),
    ]


@pytest.mark.parametrize("n", [HARDEST - 1, HARDEST, HARDEST + 1, 2 * HARDEST, 2 * HARDEST + 5])
def test_table_of_a_change_holds_both_ends_and_no_piece_twice(n):
    changes = [float(change - n // 2) for change in random.Random(0).sample(range(n), n)]
    before = [(f"p{i}", 100.0) for i in range(n)]
    after = [(f"p{i}", 100.0 + change) for i, change in enumerate(changes)]
    found = rows(change_page("t", before, after, ("a", "b")))[1:]
    ordered = sorted(changes)
    ends = ordered if n <= 2 * HARDEST else ordered[:HARDEST] + ordered[-HARDEST:]
    assert [float(row[3]) for row in found] == ends
    assert len({row[0] for row in found}) == len(found)


def test_change_past_its_limit_is_cut_and_says_so_and_its_table_is_of_all(monkeypatch, read_html):
    monkeypatch.setattr(surprisal, "MAX_PIECES", 3)
    after = [(text, nll and nll + i) for i, (text, nll) in enumerate(PIECES)]
    page = change_page("t", PIECES, after, ("a", "b"))
    assert whole(page) == "The moon &"
    assert "The first 3 of 7 pieces." in read_html(page.html).text
    assert rows(page)[-1] == (r"'月🌙 é\n'", "1.00", "7.00", "+6.00")


@pytest.mark.parametrize("after", [PIECES[:-1], [*PIECES, ("x", 1.0)], [("x", 1.0), *PIECES[1:]], []])
def test_pieces_of_different_texts_are_refused_with_both_numbers(after):
    with pytest.raises(ValueError, match=rf"{len(PIECES)} pieces and {len(after)} are not of the same text"):
        change_page("t", PIECES, after, ("a", "b"))


# any text


@pytest.mark.parametrize("place", ["title", "piece"])
def test_hostile_text_is_shown_and_not_obeyed(read_html, place):
    def page(text):
        title, piece = (text, "x") if place == "title" else ("t", text)
        return read_html(surprisal_page(title, [(piece, 1.0), (piece, None)]).html)

    plain, hostile = page("harmless"), page(HOSTILE)
    assert [(tag, list(attributes)) for tag, attributes in hostile.tags] == [
        (tag, list(attributes)) for tag, attributes in plain.tags
    ]
    assert HOSTILE in hostile.texts
    assert place == "title" or repr(HOSTILE) in hostile.texts


@pytest.mark.parametrize("place", ["title", "piece", "first name", "second name"])
def test_hostile_text_of_a_change_is_shown_and_not_obeyed(read_html, place):
    def page(text):
        texts = {"title": "t", "piece": "x", "first name": "a", "second name": "b"} | {place: text}
        before, after = [(texts["piece"], 1.0)], [(texts["piece"], 2.0)]
        names = texts["first name"], texts["second name"]
        return read_html(change_page(texts["title"], before, after, names).html)

    plain, hostile = page("harmless"), page(HOSTILE)
    assert [(tag, list(attributes)) for tag, attributes in hostile.tags] == [
        (tag, list(attributes)) for tag, attributes in plain.tags
    ]
    assert HOSTILE in hostile.text


@pytest.mark.parametrize(("theme", "schemes"), [("light", ["light"]), ("dark", ["dark"]), ("auto", ["light", "dark"])])
def test_page_is_one_offline_document_in_the_theme_asked_for(read_html, theme, schemes):
    pages = surprisal_page("t", PIECES, theme=theme), change_page("t", PIECES, PIECES, ("a", "b"), theme=theme)
    for page in pages:
        read = read_html(page.html)
        assert re.findall(r"color-scheme: (\w+);", page.html) == schemes
        assert any(attributes.get("content") == POLICY for _, attributes in read.tags)
        assert read.attributes("src", "href", "srcset") == []
        assert (read.count("html"), read.count("script"), read.count("link")) == (1, 0, 0)


def test_pages_say_their_texts_in_the_readers_language():
    def say(line):
        return f"<{line.template}>"

    page = change_page("T", [("a", 3.0), ("b", None)], [("a", 1.0), ("b", None)], ("one", "two"), say=say)
    for text in ("better under {model}", "worse", "no prediction", "changed most"):
        assert f"&lt;{text}&gt;" in page.html, text
    page = surprisal_page("T", [("a", 3.0)], say=say)
    for text in ("{low} to {high}", "{low} and more", "least expected", "{nll:.2f} nats, probability {p:.2g}"):
        assert f"&lt;{text}&gt;" in page.html, text

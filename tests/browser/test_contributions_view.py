import itertools

import pytest

from gpt2lab.inspection.attribution import attribution
from gpt2lab.inspection.contributions import contributions
from gpt2lab.inspection.input_attribution import input_attribution
from gpt2lab.inspection.trace import trace
from gpt2lab.widgets.base import Selection, answered, widget_page
from gpt2lab.widgets.contributions import ANSWERS, Contributions
from gpt2lab.widgets.data import contributions_part, side_of
from gpt2lab.widgets.page import Page

TEXT = "The moon is a small world, </script> 🌙 שלום $x$"
ROWS = "[...document.querySelectorAll('.g-parts tr')].map(row => [row.cells[0].textContent, row.cells[2].textContent])"
NAMES = (f"contributions{i}" for i in itertools.count())  # a function of a page cannot be replaced


@pytest.fixture(scope="module")
def seen(tiny_lab):
    return trace(tiny_lab, TEXT, residual=True)


@pytest.fixture(scope="module")
def found(tiny_lab, seen):
    return contributions(tiny_lab, seen)


def signed(value, digits=3):
    return f"{value:+.{digits}f}".replace("-", "\u2212")


def bars(parts, total):
    """The largest parts, all others and the sum, as they are read."""
    order = sorted(parts, key=lambda part: -abs(part[1]))
    shown, others = order[:12], order[12:]
    rest = [(f"{len(others)} other parts", sum(value for _, value in others))] if others else []
    return [*shown, *rest, ("sum", total)]


def check_bars(page, parts, total):
    rows = page.evaluate(ROWS)
    expected = bars(parts, total)
    assert [name for name, _ in rows] == [name for name, _ in expected]
    values = [float(text.replace("\u2212", "-")) for _, text in rows]
    assert values == pytest.approx([value for _, value in expected], abs=1e-3)


@pytest.fixture
def live(tiny_lab, seen, found, tmp_path, visit_file):
    """A function: selection, width -> the page of the view, whose requests this process answers; and what was asked."""

    def open_one(selection, width=1280):
        asked, name = [], next(NAMES)

        def answer(kind, options):
            asked.append((kind, options))
            return {"sides": [answered(lambda kind, options: ANSWERS[kind](tiny_lab, seen, options), kind, options)]}

        data = {"sides": [side_of(seen, contributions=contributions_part(found))]}
        html = widget_page("contributions", data, selection, title="live").html
        with_python = html.replace("model: lib.fileModel(", "model: withPython(lib.fileModel(", 1).replace(
            ")), el:", "))), el:", 1
        )
        script = f"<script>const withPython = (model) => (window.view = {{ ...model, ask: window.{name} }});</script>"
        with_python = with_python.replace("<body>", f"<body>{script}", 1)
        assert with_python != html
        page = visit_file("about:blank")
        page.expose_function(name, answer)
        page.set_viewport_size({"width": width, "height": 1000})
        page.goto(Page(with_python).save(tmp_path / "live.html").as_uri())
        return page, asked

    return open_one


def test_bars_are_the_largest_parts_and_a_click_selects_a_head(found, tmp_path, visit_file):
    page = visit_file(Contributions(found, Selection(position=4)).save(tmp_path / "parts.html").as_uri())
    check_bars(page, [*zip(found.parts, found.values[4].tolist())], float(found.total[4]))
    button = page.get_by_role("button", name="layer 1, head").first
    name = button.inner_text()
    button.click()
    pressed = page.locator("button[aria-pressed=true]")
    assert pressed.inner_text() == name
    page.get_by_label("View").select_option("grid")
    table = page.evaluate(
        "[...document.querySelectorAll('.g-part-grid tr')].map(row => [...row.cells].map(cell => cell.textContent))"
    )
    values = dict(zip(found.parts, found.values[4].tolist()))
    assert table[0] == ["head", "0", "1", "2", "3", "MLP", "bias"]
    for layer, row in zip((1, 0), table[1:]):
        names = [*(f"head {head}" for head in range(4)), "MLP", "attention's bias"]
        assert row == [f"layer {layer}", *(signed(values[f"layer {layer}, {part}"], 2) for part in names)]
    assert pressed.get_attribute("aria-label").startswith(f"{name}: {signed(values[name], 4)}")
    pressed.focus()
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    assert pressed.get_attribute("aria-label").startswith("layer 0, head 3")


def test_a_file_asks_nothing_of_python_and_says_so(found, tmp_path, visit_file):
    page = visit_file(Contributions(found, Selection(position=4)).save(tmp_path / "parts.html").as_uri())
    assert not page.get_by_label("Token").is_visible() and not page.get_by_text("Compute").is_visible()
    assert page.get_by_text("Needs Python").is_visible()
    page = visit_file(
        Contributions(found, Selection(position=4, token=7)).save(tmp_path / "parts.html").as_uri(),
        {"width": 320, "height": 900},
        "dark",
    )
    assert page.get_by_text("Other tokens need Python").is_visible()
    check_bars(page, [*zip(found.parts, found.values[4].tolist())], float(found.total[4]))
    assert page.evaluate("document.documentElement.scrollWidth") == 320


def test_tokens_that_are_selected_or_typed_are_asked_for_and_an_error_leaves_what_was_there(
    tiny_lab, seen, found, live
):
    page, asked = live(Selection(position=4, token=7))
    single = attribution(tiny_lab, seen, position=4, token=7)
    page.get_by_text(f"{signed(single.total, 2)} logits").wait_for()
    check_bars(page, single.parts, single.total)
    page.get_by_label("Contrast with").fill("x")
    page.keyboard.press("Enter")
    single = attribution(tiny_lab, seen, position=4, token=7, against="x")
    page.get_by_text(f"{signed(single.total, 2)} logits").wait_for()
    check_bars(page, single.parts, single.total)
    page.get_by_label("Token").fill("xyzq")
    page.keyboard.press("Enter")
    page.get_by_text("'xyzq' is 4 tokens").wait_for()
    check_bars(page, single.parts, single.total)
    page.get_by_label("Token").fill("")
    page.keyboard.press("Enter")
    page.get_by_text("'xyzq' is 4 tokens").wait_for(state="hidden")
    check_bars(page, single.parts, single.total)
    assert asked == [
        ("contributions", {"position": 4, "token": token, "against": against})
        for token, against in (("#7", None), ("#7", "x"), ("xyzq", "x"))
    ]


def test_input_tokens_are_computed_on_request_and_say_of_which_position_they_are(tiny_lab, seen, live):
    page, asked = live(Selection(position=6), width=320)
    page.get_by_label("Unit").select_option("word")
    page.get_by_label("Curves").check()
    assert asked == []
    page.get_by_role("button", name="Compute").click()
    page.locator(".g-why").wait_for()
    why = input_attribution(tiny_lab, seen, position=6, token=int(seen.ids[7]), unit="word")
    shown = page.evaluate("[...document.querySelectorAll('.g-units span')].map(unit => [unit.textContent, unit.title])")
    assert shown == [[text, f"{signed(value)} nats"] for text, value in zip(why.units, why.values.tolist())]
    said = page.locator(".g-why").inner_text()
    assert "position 6" in said and f"{signed(why.total, 2)} nats" in said
    assert f"completeness error {100 * why.completeness_error:.1f} %" in said
    for name in ("deletion", "insertion"):
        points = page.locator(f".g-{name}").get_attribute("points").split()
        heights = [float(point.split(",")[1]) for point in points]
        values = getattr(why, name).tolist()
        both = [*why.deletion.tolist(), *why.insertion.tolist()]
        expected = [8 + (max(both) - value) / (max(both) - min(both)) * 102 for value in values]
        assert heights == pytest.approx(expected, abs=0.1), name
    assert page.evaluate("document.documentElement.scrollWidth") == 320


def test_a_result_stays_when_the_selection_moves_and_the_button_offers_the_new_position(seen, live):
    page, asked = live(Selection(position=6))
    page.get_by_label("Method").select_option("gradient-x-input")
    button = page.get_by_role("button", name="Compute")
    button.click()
    page.locator(".g-why").wait_for()
    assert button.is_disabled()
    page.evaluate("view.set('selection', { ...view.get('selection'), position: 8 })")
    assert "position 6" in page.locator(".g-why").inner_text()
    assert button.inner_text() == f"Compute for \u2068{seen.tokens[8]}\u2069, position 8"
    button.click()
    page.get_by_text("position 8:").wait_for()
    assert [options["position"] for kind, options in asked if kind == "why"] == [6, 8]


def test_a_token_selected_elsewhere_takes_the_place_of_a_typed_one(tiny_lab, seen, live):
    page, asked = live(Selection(position=4))
    page.get_by_label("Token").fill("x")
    page.keyboard.press("Enter")
    page.evaluate("view.set('selection', { ...view.get('selection'), token: 9 })")
    single = attribution(tiny_lab, seen, position=4, token=9)
    page.get_by_text(f"{signed(single.total, 2)} logits").wait_for()
    assert page.get_by_label("Token").input_value() == ""
    assert [options["token"] for _, options in asked] == ["x", "#9"]

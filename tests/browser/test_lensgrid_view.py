import pytest

from gpt2lab.inspection.lens import logit_lens
from gpt2lab.widgets.base import Selection, widget_page
from gpt2lab.widgets.data import lens_parts, side_of
from gpt2lab.widgets.lensgrid import LensGrid
from gpt2lab.widgets.page import Page

TEXT = "The moon is a small world, </script> 🌙 e\u0301 שלום $x$ <b>."
COLUMN = "[...document.querySelectorAll('.g-on')].map(cell => cell.textContent)"

INSIDE = """() => {
  const frame = document.querySelector('.g-scroll').getBoundingClientRect(), on = document.querySelector('td.g-on').getBoundingClientRect();
  return on.left >= frame.left + 40 && on.right <= frame.right;
}"""


@pytest.fixture(scope="module")
def lens(tiny_lab):
    return logit_lens(tiny_lab, TEXT, next=True)


def column(lens, position):
    return [
        lens.trace.tokens[position],
        *(lens.top_predictions(entry, position)[0][1] for entry in reversed(range(len(lens.rank)))),
    ]


def test_cells_show_the_lens_and_a_click_and_keys_select_a_position(lens, tmp_path, visit_file):
    page = visit_file(LensGrid(lens, Selection(position=3)).save(tmp_path / "lens.html").as_uri())
    rows = page.evaluate(
        "[...document.querySelectorAll('tr')].map(row => [...row.cells].map(cell => cell.textContent))"
    )
    T, L = len(lens.targets), len(lens.rank)
    assert rows[0] == ["after", *lens.trace.tokens]
    assert rows[1:] == [
        [f"layer {entry - 1}" if entry else "embedding", *(lens.top_predictions(entry, t)[0][1] for t in range(T))]
        for entry in reversed(range(L))
    ]
    assert page.evaluate(COLUMN) == column(lens, 3)
    page.locator("tbody tr").nth(1).locator("td").nth(5).click()
    assert page.evaluate(COLUMN) == column(lens, 5)
    for key, position in (
        ("ArrowRight", 6),
        ("ArrowUp", 6),
        ("End", T - 1),
        ("ArrowRight", T - 1),
        ("Home", 0),
        ("ArrowLeft", 0),
    ):
        page.keyboard.press(key)
        assert page.evaluate(COLUMN) == column(lens, position), key
    assert page.evaluate("[document.activeElement.parentElement.rowIndex, document.activeElement.cellIndex]") == [1, 1]
    assert page.locator("td[tabindex='0']").count() == 1
    title = page.locator("tbody tr").first.locator("td").nth(4).get_attribute("title")
    assert f"{100 * float(lens.probability[-1, 4]):.1f} %, rank {int(lens.rank[-1, 4]):,}" in title
    assert f"entropy {float(lens.entropy[-1, 4]):.3f} nats" in title


def test_colours_follow_the_measure(lens, tmp_path, visit_file):
    page = visit_file(LensGrid(lens).save(tmp_path / "lens.html").as_uri())
    alpha = "[...document.querySelectorAll('tbody tr:first-child td')].map(cell => Number(cell.style.background.match(/[\\d.]+(?=\\)$)/)[0]))"
    most = {
        "rank": float(lens.rank.double().log10().max()),
        "entropy": float(lens.entropy.max()),
        "divergence": float(lens.divergence.max()),
    }
    values = {
        "top_probability": lens.top_probability[-1, :, 0],
        "rank": lens.rank[-1].double().log10(),
        **{name: getattr(lens, name)[-1] for name in ("probability", "entropy", "divergence")},
    }
    for name, row in values.items():
        page.get_by_label("Colour by").select_option(name)
        assert page.evaluate(alpha) == pytest.approx(
            [0.04 + 0.81 * v / most.get(name, 1) for v in row.tolist()], abs=2e-3
        ), name


def test_difference_colours_second_less_first_and_shows_the_second_s_words(lens, random_lab, tmp_path, visit_file):
    other = logit_lens(random_lab(seed=5), TEXT, next=True)
    data = {"sides": [side_of(each.trace, lens=lens_parts(each)["lens"]) for each in (lens, other)]}
    page = visit_file(
        widget_page("lensgrid", data, Selection(side=2, position=2), title="two").save(tmp_path / "two.html").as_uri()
    )
    assert page.evaluate(COLUMN) == column(other, 2)
    difference = other.top_probability[..., 0] - lens.top_probability[..., 0]
    most = float(difference.abs().max())
    cells = page.evaluate(
        "[...document.querySelectorAll('tbody tr:first-child td')].map(cell => cell.style.background)"
    )
    for cell, value in zip(cells, difference[-1].tolist()):
        assert ("--g-hot" in cell) == (value >= -1e-5)
        assert float(cell.rsplit(" ", 1)[1].rstrip(")")) == pytest.approx(0.04 + 0.81 * abs(value) / most, abs=2e-3)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_page_scrolls_only_the_table_to_the_selected_column(lens, tmp_path, visit_file, scheme):
    path = LensGrid(lens, Selection(position=len(lens.targets) - 3)).save(tmp_path / "lens.html")
    page = visit_file(path.as_uri(), {"width": 320, "height": 300}, scheme)
    assert page.evaluate("[document.documentElement.scrollWidth, scrollX, scrollY]") == [320, 0, 0]
    assert page.evaluate(INSIDE)
    paper = page.evaluate("getComputedStyle(document.querySelector('.g-panel')).backgroundColor")
    assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(24, 24, 27)")


def test_a_table_that_was_hidden_shows_the_selected_column_when_it_appears(lens, tmp_path, visit_file):
    html = LensGrid(lens, Selection(position=len(lens.targets) - 3)).page().html
    hidden = html.replace('id="root"', 'id="root" style="display: none"', 1)
    page = visit_file(Page(hidden).save(tmp_path / "hidden.html").as_uri(), {"width": 320, "height": 600})
    page.evaluate("document.querySelector('#root').style.display = ''")
    page.wait_for_function("document.querySelector('.g-scroll').scrollLeft > 0")
    assert page.evaluate(INSIDE)

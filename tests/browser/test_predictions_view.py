import pytest
import torch

from gpt2lab.inspection.lens import logit_lens
from gpt2lab.widgets.base import Selection, widget_page
from gpt2lab.widgets.data import lens_parts, side_of
from gpt2lab.widgets.predictions import Predictions

TEXT = "The moon is a small world, </script> 🌙 שלום $x$"
BARS = """[...document.querySelectorAll('ul')].map(list => [...list.querySelectorAll('button')].map(button =>
  [button.querySelector('.g-token').textContent, button.querySelector('.g-value').textContent, button.className.includes('g-follows')]))"""


def bars(lens, position, n):
    """What a reader shall see of a model after a position, with the text's own token last where it is not among the top n."""
    ids, tokens = lens.trace.ids.tolist(), lens.trace.tokens
    follows = ids[position + 1] if position + 1 < len(ids) else None
    rows = [(token, word, p) for token, word, p in lens.top_predictions(-1, position)[:n]]
    if follows is not None and all(token != follows for token, _, _ in rows):
        rows.append((follows, tokens[position + 1], float(lens.probability[-1, position])))
    return [(word, pytest.approx(100 * p, abs=0.06), token == follows) for token, word, p in rows]


def read(page):
    """The same as it stands on the page, for each model."""
    number = {"< 0.1 %": "0"}
    return [
        [(word, float(number.get(text, text).removesuffix(" %")), follows) for word, text, follows in rows]
        for rows in page.evaluate(BARS)
    ]


@pytest.fixture(scope="module")
def lens(tiny_lab):
    return logit_lens(tiny_lab, TEXT, next=True, top=10)


def test_bars_are_the_predictions_and_the_token_that_follows_is_marked(lens, tmp_path, visit_file):
    path = tmp_path / "next.html"
    for position in (0, 7, len(lens.targets) - 1):
        page = visit_file(Predictions(lens, Selection(position=position)).save(path).as_uri())
        assert read(page) == [bars(lens, position, 10)]
        page.get_by_label("Number of tokens").select_option("5")
        assert read(page) == [bars(lens, position, 5)]
        others = float(page.locator("div.g-choice .g-value").inner_text().removesuffix(" %"))
        assert others == pytest.approx(100 - sum(p for _, p, _ in read(page)[0]), abs=0.4)


def test_a_click_selects_a_token_a_second_one_none_and_keys_reach_every_bar(lens, tmp_path, visit_file):
    page = visit_file(Predictions(lens, Selection(position=2)).save(tmp_path / "next.html").as_uri())
    pressed = (
        "[...document.querySelectorAll('ul button')].map(button => button.getAttribute('aria-pressed') === 'true')"
    )
    page.locator("ul button").nth(1).click()
    n = page.locator("ul button").count()
    assert page.evaluate(pressed) == [i == 1 for i in range(n)]
    assert page.locator("ul button[tabindex='0']").count() == 1
    for key, at in (("ArrowDown", 2), ("End", n - 1), ("ArrowDown", n - 1), ("Home", 0)):
        page.keyboard.press(key)
        assert page.evaluate("[...document.querySelectorAll('ul button')].indexOf(document.activeElement)") == at
    page.keyboard.press("Enter")
    assert page.evaluate(pressed) == [i == 0 for i in range(n)]
    page.keyboard.press("Enter")
    assert not any(page.evaluate(pressed))


def test_two_models_stand_side_by_side_on_one_scale(lens, random_lab, tmp_path, visit_file):
    other = logit_lens(random_lab(seed=5), TEXT, next=True, top=10)
    parts = [lens_parts(each) for each in (lens, other)]
    data = {
        "sides": [
            side_of(each.trace, surprisal=part["surprisal"], next=part["next"])
            for each, part in zip((lens, other), parts)
        ]
    }
    path = widget_page("predictions", data, Selection(position=4, side=2), title="two").save(tmp_path / "two.html")
    page = visit_file(path.as_uri(), {"width": 320, "height": 900}, "dark")
    assert read(page) == [bars(each, 4, 10) for each in (lens, other)]
    widths = page.evaluate(
        "[...document.querySelectorAll('ul')].map(list => parseFloat(list.querySelector('i').style.width))"
    )
    first = torch.tensor([float(each.top_probability[-1, 4, 0]) for each in (lens, other)])
    assert widths == pytest.approx((100 * first / first.max()).tolist(), abs=0.02)
    assert page.evaluate("document.documentElement.scrollWidth") == 320

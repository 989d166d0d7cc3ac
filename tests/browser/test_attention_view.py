"""Views of attention in a real browser: their numbers against the trace's, and what a reader can do with them."""

import base64
import csv
import io
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import expect

from gpt2lab.inspection.compare import compare
from gpt2lab.inspection.trace import Trace, trace
from gpt2lab.model.lab import load_model
from gpt2lab.pages.explorer import explorer_page
from gpt2lab.widgets.attention import Attention, answer_for, attention_data
from gpt2lab.widgets.base import Selection, answered

TEXT = "The moon is a small world that goes around the earth.\nThe sea follows it."
HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    '<svg onload="alert(2)">',
    "&lt;b&gt;",
    "\"quo'tes`",
    "\u2028",
    "🌙⟨F0 9F⟩",
    "·שלום",
    "مرحبا",
    "=1+1",
)
VIEW = "document.getElementById('root').view"
SHOWN = f"[...{VIEW}.matrix()]"
HEATMAP, LINES, TITLE, HOVER = "canvas.g-heatmap", ".g-lines canvas", ".g-title", ".g-hover"
FORMULA, WORDS, SUMMARY = ".g-pair p", ".g-text span", ".g-attention > .g-body > .g-hidden"


@pytest.fixture(scope="module")
def lab():
    return load_model("builtin")


@pytest.fixture(scope="module")
def seen(lab):
    return trace(lab, TEXT)


@pytest.fixture(scope="module")
def tuned(seen):
    """The same text by another model: keys moved by seeded noise."""
    noise = torch.randn(seen.k.shape, generator=torch.Generator().manual_seed(1))
    return replace(seen, name="tuned", k=seen.k + noise)


@pytest.fixture(scope="module")
def made():
    """A function: L, H, and T or tokens → a trace with seeded random attention."""

    def make(L, H, T=None, tokens=None):
        tokens = tokens or tuple(f"t{i}" for i in range(T))
        q, k, v = torch.randn(3, L, H, len(tokens), 8, generator=torch.Generator().manual_seed(0))
        return Trace("made", tuple(tokens), torch.arange(len(tokens)), q, k, v, (1.0,) * L)

    return make


@pytest.fixture
def visit(visit_file):
    """A function that opens an address, and waits until the page shows what its address asks for."""

    def open_one(address, drawn="body[data-ready=true]", **options):
        page = visit_file(address, **options)
        if drawn:
            page.locator(drawn).first.wait_for(state="attached")
        return page

    return open_one


@pytest.fixture
def explore(visit, tmp_path):
    """A function: a trace or two, and what `explorer_page` and a browser take → the page, drawn."""

    def open_one(*traces, hash="", layer=0, head=None, **options):
        path = explorer_page(traces[0] if len(traces) == 1 else compare(*traces), layer=layer, head=head).save(
            tmp_path / "page.html"
        )
        return visit(f"{path.as_uri()}#{hash}", **options)

    return open_one


def triangle(matrix):
    """The rows of (T, T), each up to its own token, as one list."""
    matrix = np.asarray(matrix, dtype=np.float64)
    return matrix[np.tril_indices(len(matrix))]


def stored(page, side, layer, head):
    return np.array(page.evaluate(f"place => [...{VIEW}.weights(...place)]", [side, layer, head]))


def bound(*traces):
    return max(side["attention"]["bound"] for one in traces for side in attention_data(one)["sides"]) + 1e-6


def state(page, *names):
    """What the page shows: values of these names."""
    found = page.evaluate(f"{VIEW}.state()")
    return [found[name] for name in names]


def change(page, **part):
    page.evaluate(f"part => {VIEW}.change(part)", part)


def last_number(page, place):
    return float(page.locator(place).inner_text().rsplit(": ", 1)[1])


def cell(page, query, key):
    """The middle of a weight on the heatmap, {x, y}."""
    return page.evaluate(f"([query, key]) => {VIEW}.cellAt(query, key)", [query, key])


def options_of(page):
    page.locator(".g-options > summary").click()
    return page.locator(".g-options")


# ---- numbers ------------------------------------------------------------------------------------------------------


def test_weights_read_back_are_the_trace_s_within_the_bound(explore, seen):
    page = explore(seen)
    for layer, head in ((0, 0), (1, 5), (3, 2)):
        weights = stored(page, 0, layer, head)
        assert np.abs(weights - triangle(seen.attention(layer, head))).max() <= bound(seen)
        starts = np.cumsum(np.arange(len(seen.tokens)))
        np.testing.assert_allclose(np.add.reduceat(weights, starts), 1, atol=1e-5)


def test_weights_of_carried_q_and_k_are_exact(explore, seen):
    page = explore(seen, layer=2, head=4)
    rows = page.evaluate(f"{VIEW}.current().tokens.map((_, i) => {VIEW}.exactRow({VIEW}.vectors(0, 2, 4), i).weights)")
    np.testing.assert_allclose(np.concatenate(rows), triangle(seen.attention(2, 4)), atol=1e-5)
    change(page, position=9, other=3)
    expect(page.locator(HOVER)).to_contain_text(f"attends to 3 “\u2068{seen.tokens[3]}\u2069”: 0.")
    assert last_number(page, HOVER) == pytest.approx(seen.attention(2, 4)[9, 3].item(), abs=1e-5)


def test_weights_without_q_and_k_are_reported_with_their_bound(explore, seen):
    page = explore(seen, hash="layer=1&heads=0,1&position=9&other=3")
    value, error = page.locator(HOVER).inner_text().rsplit(": ", 1)[1].split(" ± ")
    assert abs(float(value) - seen.attention(1)[:2, 9, 3].mean().item()) <= float(error) + 5e-5
    assert bound(seen) - 1e-6 <= float(error)  # never rounded down
    expect(page.locator(".g-about-page")).to_contain_text(f"stored weights are within {error} of the model's")


@pytest.mark.parametrize("query", [5, 15])
def test_bound_holds_without_the_first_token_too(explore, seen, query):
    page = explore(seen, hash="layer=1&heads=2,3&first=1")
    expected = renormalised(seen, 1)[2:4].mean(0)
    for key in range(query + 1):
        found = page.evaluate(f"([query, key]) => {VIEW}.weightAt(query, key)", [query, key])
        assert abs(found["value"] - expected[query, key]) <= found["error"] + 1e-6


def test_products_of_q_and_k_are_the_trace_s(explore, seen):
    page = explore(seen, hash="layer=1&heads=2&position=8&other=3")
    q, k = seen.q[1, 2, 8].double(), seen.k[1, 2, 3].double()
    rows = page.locator(".g-pair tr").all_inner_texts()
    cells = np.array([row.split("\t") for row in rows[1:]], dtype=float)
    assert rows[0].split("\t") == ["dimension", "q", "k", "q × k"]
    order = cells[:, 0].astype(int)
    assert sorted(order) == list(range(len(q)))
    np.testing.assert_allclose(cells[:, 1:], torch.stack([q, k, q * k], 1)[order], atol=5.1e-5)
    assert (np.diff(np.abs(cells[:, 3])) <= 0).all()
    formula, score = page.locator(FORMULA), (q @ k).item()
    expect(formula).to_contain_text(f"= {score:.4f}; × {seen.scaling[1]:.4f}")
    expect(formula).to_contain_text("softmax over the 9 tokens up to it: ")
    assert last_number(page, FORMULA) == pytest.approx(seen.attention(1, 2)[8, 3].item(), abs=1e-5)


def test_products_of_two_models_of_different_width_are_each_one_s_own(explore, seen, made):
    other = replace(made(seen.n_layers, seen.n_heads, len(seen.tokens)), name="narrow")
    page = explore(seen, other, hash="side=1&layer=1&heads=2&position=8&other=3")
    dot = (other.q[1, 2, 8].double() @ other.k[1, 2, 3].double()).item()
    expect(page.locator(FORMULA)).to_contain_text(f"= {dot:.4f}; × 1.0000 (as the model's configuration says)")
    expect(page.locator(".g-pair tr")).to_have_count(8 + 1)


@pytest.mark.parametrize(("together", "reduce"), [("mean", np.mean), ("max", np.max)])
def test_heads_together_are_numpy_s(explore, seen, together, reduce):
    page = explore(seen, hash=f"layer=1&heads=0,2,3&together={together}")
    expected = triangle(reduce(seen.attention(1).numpy()[[0, 2, 3]], axis=0))
    np.testing.assert_allclose(page.evaluate(SHOWN), expected, atol=bound(seen))


def renormalised(trace, layer):
    """(H, T, T): the weights without the first token, each row's others summing to 1; row 0 has none."""
    weights = trace.attention(layer).double().numpy().copy()
    weights[..., 0] = 0
    weights[:, 1:] /= weights[:, 1:].sum(-1, keepdims=True)
    return weights


def test_first_token_hidden_and_the_rest_renormalised(explore, seen):
    page = explore(seen, hash="layer=0&heads=2")
    options_of(page).get_by_label("Hide first token").check()
    shown = np.zeros((len(seen.tokens),) * 2)
    shown[np.tril_indices(len(shown))] = page.evaluate(SHOWN)
    assert (shown[:, 0] == 0).all()
    np.testing.assert_allclose(shown[1:].sum(1), 1, atol=1e-5)
    rest = 1 - seen.attention(0, 2)[:, 0].double().numpy()
    allowed = 2 * bound(seen) / np.maximum(rest - bound(seen), 1e-3)
    assert (np.abs(shown - renormalised(seen, 0)[2])[1:] <= allowed[1:, None]).all()
    change(page, position=7, other=4)
    assert last_number(page, HOVER) == pytest.approx(renormalised(seen, 0)[2][7, 4], abs=1e-5)  # from q and k
    change(page, position=3, other=0)
    expect(page.locator(HOVER)).to_have_text("The first token is hidden.")
    change(page, position=3, other=None)
    expect(page.locator(HOVER)).to_contain_text("attends to ")
    expect(page.locator(HOVER)).not_to_contain_text(" 0 “")


def test_difference_is_the_second_less_the_first(explore, seen, tuned):
    page = explore(seen, tuned, hash="side=2&layer=2&heads=3")
    expected = triangle(tuned.attention(2, 3) - seen.attention(2, 3))
    np.testing.assert_allclose(page.evaluate(SHOWN), expected, atol=2 * bound(seen, tuned))
    expect(page.locator(TITLE)).to_have_text("Layer 2, head 3, tuned less builtin")
    page.get_by_label("Shown").select_option("tuned")
    np.testing.assert_allclose(page.evaluate(SHOWN), triangle(tuned.attention(2, 3)), atol=bound(tuned))


def test_largest_difference_of_several_heads_keeps_its_sign_and_is_bounded_in_size(explore, seen, tuned):
    page = explore(seen, tuned, hash="side=2&layer=2&heads=0,1&position=5&other=2")
    expect(page.locator(HOVER)).not_to_contain_text("in size")
    options_of(page).get_by_label("Combine").last.select_option("max")
    expect(page.locator(HOVER)).to_contain_text("in size")
    moved, error = (tuned.attention(2) - seen.attention(2)).numpy()[:2], bound(seen, tuned)
    expected = np.take_along_axis(moved, np.abs(moved).argmax(0)[None], 0)[0]
    shown = np.array(page.evaluate(SHOWN))
    clear = triangle(np.abs(np.abs(moved[0]) - np.abs(moved[1]))) > 4 * error
    np.testing.assert_allclose(shown[clear], triangle(expected)[clear], atol=2 * error)
    assert (shown < 0).any()


def test_table_has_the_weights_of_the_selected_token(explore, seen):
    page = explore(seen, layer=1, head=2, hash="position=9")
    page.get_by_text("Weights as a table").click()
    cells = [row.split("\t") for row in page.locator(".g-tall tr").all_inner_texts()[1:]]
    weights = seen.attention(1, 2)[9, :10]
    assert [int(place) for place, _, _ in cells] == weights.argsort(descending=True).tolist()
    np.testing.assert_allclose([float(weight) for *_, weight in cells], weights.sort(descending=True)[0], atol=1e-5)


# ---- what the reader does -----------------------------------------------------------------------------------------


def test_pointer_previews_a_head_and_a_click_selects_it(explore, seen):
    page = explore(seen)
    title, head = page.locator(TITLE), page.get_by_role("gridcell", name="Layer 2, head 3", exact=True)
    before = title.inner_text()
    head.hover()
    expect(title).to_have_text("Layer 2, head 3")
    page.mouse.move(1200, 5)
    expect(title).to_have_text(before)
    head.click()
    page.mouse.move(1200, 5)
    expect(title).to_have_text("Layer 2, head 3")
    expect(page.get_by_label("Layer", exact=True)).to_have_value("2")


def test_buttons_show_heads_together_and_another_selection_ends_that(explore, seen):
    page = explore(seen, hash="layer=1&heads=0")
    title, buttons = page.locator(TITLE), page.get_by_role("group", name="Heads of this layer")
    for head in (4, 2):
        buttons.get_by_role("button", name=f"Head {head}").click()
    expect(title).to_have_text("Layer 1, heads 0, 2, 4 (mean)")
    buttons.get_by_role("button", name="Head 0").click()
    expect(title).to_have_text("Layer 1, heads 2, 4 (mean)")
    buttons.get_by_role("button", name="Head 2").click()
    buttons.get_by_role("button", name="Head 4").click()
    expect(title).to_have_text("Layer 1, head 4")  # one at least stays
    buttons.get_by_role("button", name="All heads").click()
    assert state(page, "heads") == [list(range(seen.n_heads))]
    page.get_by_role("gridcell", name="Layer 1, head 5", exact=True).click()
    assert state(page, "heads") == [[5]]
    page.get_by_label("Layer", exact=True).select_option("3")
    expect(title).to_have_text("Layer 3, head 5")


def pixels(page, canvas):
    """(height, width, 3): what a canvas shows."""
    address = page.locator(canvas).evaluate("canvas => canvas.toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).convert("RGB"))


def colours(page, canvas=HEATMAP):
    """How many colours a canvas has."""
    return len(np.unique(pixels(page, canvas).astype(int) @ [1 << 16, 1 << 8, 1]))


def pixel(page, position, canvas=HEATMAP):
    return pixels(page, canvas)[int(position["y"]), int(position["x"])].tolist()


def frame(page):
    """Wait until what was asked for is drawn."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_threshold_leaves_out_lighter_weights(explore, seen):
    page, weights = explore(seen, hash="layer=0&heads=0&all=1"), seen.attention(0, 0)
    light = divmod(int(torch.where(weights > 0, weights, 1).argmin()), len(weights))
    assert pixel(page, cell(page, *light)) != [255, 255, 255]
    options_of(page).get_by_label("Minimum weight").fill("0.5")
    expect(page.locator(".g-options output")).to_have_text("0.50")
    assert pixel(page, cell(page, *light)) == [255, 255, 255]
    assert pixel(page, cell(page, 0, 0)) != [255, 255, 255]  # it has all of its token's attention
    page.get_by_role("button", name="Lines").click()
    count = int((weights >= 0.5).sum())
    assert count
    expect(page.locator(LINES)).to_have_attribute("data-lines", str(count))


def test_lines_are_those_of_the_weights_from_a_hundredth_on(explore, made):
    one = made(1, 2, 12)  # all in sight
    page, lines = explore(one, hash="view=lines&all=1"), LINES
    heads = [np.split(stored(page, 0, 0, head), np.cumsum(np.arange(1, 12))) for head in range(2)]
    count = sum(weight >= 0.01 for rows in heads for row in rows for weight in row)
    expect(page.locator(lines)).to_have_attribute("data-lines", str(count))
    assert colours(page, lines) > 10
    change(page, position=5, heads=[1], all=False)
    read = sum(weight >= 0.01 for weight in heads[1][5])
    expect(page.locator(lines)).to_have_attribute("data-lines", str(read))
    page.get_by_label("Direction").select_option("by")
    readers = sum(row[5] >= 0.01 for row in heads[1][5:])
    expect(page.locator(lines)).to_have_attribute("data-lines", str(readers))


def test_lines_of_a_long_text_are_the_heaviest_of_those_in_sight(explore, made):
    page = explore(made(1, 12, 400), hash="view=lines&all=1")
    expect(page.locator(LINES)).to_have_attribute("data-lines", "8000")


def test_lines_of_a_difference_have_the_colours_of_their_sign(explore, made):
    base = made(1, 2, 6)
    page = explore(base, replace(base, name="other", q=-base.q), hash="side=2&view=lines&all=1")
    drawn = np.unique(pixels(page, LINES).reshape(-1, 3), axis=0).astype(int)
    assert (drawn[:, 0] > drawn[:, 2] + 60).any()  # orange
    assert (drawn[:, 2] > drawn[:, 0] + 60).any()  # blue


def coloured(page):
    """The places of the text's tokens with a colour."""
    return page.locator(WORDS).evaluate_all("spans => spans.flatMap((span, i) => span.style.background ? [i] : [])")


def test_text_is_coloured_by_what_a_token_attends_to_or_what_attends_to_it(explore, seen):
    page = explore(seen, hash="layer=3&heads=1")
    words, hover, T = page.locator(WORDS), page.locator(HOVER), len(seen.tokens)
    words.nth(9).click()
    rows = np.zeros((T, T))
    rows[np.tril_indices(T)] = stored(page, 0, 3, 1)
    assert set(coloured(page)) >= {j for j, weight in enumerate(rows[9]) if weight > 1e-6}
    assert max(coloured(page)) == 9
    most = int(np.argmax(rows[9]))
    expect(hover).to_contain_text(
        f"9 “\u2068{seen.tokens[9]}\u2069” attends to {most} “\u2068{seen.tokens[most]}\u2069”"
    )
    page.get_by_label("Direction").select_option("by")
    assert coloured(page) == [i for i in range(9, T) if rows[i, 9] > 1e-9]
    reader = int(np.argmax(rows[:, 9]))
    expect(hover).to_contain_text(f"9 “\u2068{seen.tokens[9]}\u2069” is attended to by {reader} “")
    assert state(page, "position", "other") == [9, None]


def test_pointer_over_the_text_previews_and_leaves(explore, seen):
    page = explore(seen, hash="position=7")
    page.locator(WORDS).nth(4).hover()
    expect(page.locator(HOVER)).to_contain_text("4 “")
    page.mouse.move(1200, 5)
    expect(page.locator(HOVER)).to_contain_text("7 “")


def test_click_on_a_weight_selects_it_and_shows_its_products_while_the_pointer_moves_on(explore, seen):
    page = explore(seen, hash="layer=1&heads=2")
    page.locator(HEATMAP).click(position=cell(page, 12, 7))
    assert state(page, "position", "other") == [12, 7]
    page.locator(HEATMAP).hover(position=cell(page, 15, 2))
    expect(page.locator(HOVER)).to_contain_text("15 “")
    expect(page.locator(FORMULA)).to_contain_text("q of 12 “")
    page.mouse.move(1200, 5)
    expect(page.locator(HOVER)).to_contain_text("12 “")
    page.get_by_label("Direction").select_option("by")
    expect(page.locator(".g-pair")).to_be_hidden()
    page.locator(HEATMAP).click(position=cell(page, 12, 7))
    assert state(page, "position", "other") == [7, 12]
    expect(page.locator(FORMULA)).to_contain_text("q of 12 “")


def test_search_marks_every_match_and_selects_the_first(explore, seen):
    page = explore(seen)
    field = options_of(page).get_by_label("Find token")
    field.fill("the")
    matches = [i for i, token in enumerate(seen.tokens) if "the" in token.lower()]
    assert len(matches) >= 2
    expect(page.locator(".g-text .g-found")).to_have_count(len(matches))
    assert state(page, "position") == [matches[0]]
    for key, places in (("Enter", [*matches[1:], matches[0]]), ("Shift+Enter", [matches[-1], matches[-2]])):
        for place in places:
            page.keyboard.press(key)
            assert state(page, "position") == [place]
    field.fill("zebra")
    expect(page.locator(".g-text .g-found")).to_have_count(0)
    page.keyboard.press("Enter")
    assert state(page, "position") == [matches[-2]]


def walk(page, place, keys):
    page.locator(place).first.focus()
    for key in keys.split():
        page.keyboard.press(key)


def test_keys_walk_from_token_to_token(explore, seen):
    page, n = explore(seen, head=1), len(seen.tokens)
    for place, mode, keys, selected in (
        (HEATMAP, "to", "ArrowUp", [3, None]),
        (HEATMAP, "to", "ArrowRight ArrowRight ArrowDown", [5, 1]),
        (HEATMAP, "to", "ArrowLeft", [4, 4]),
        (HEATMAP, "to", "ArrowLeft ArrowRight ArrowRight ArrowUp", [3, 3]),  # nothing ahead is read
        (HEATMAP, "to", "End ArrowDown Home", [0, None]),
        (HEATMAP, "to", "ArrowRight Escape", [4, None]),
        (HEATMAP, "by", "ArrowDown ArrowDown ArrowLeft", [3, 5]),
        (HEATMAP, "by", "ArrowUp", [4, n - 1]),
        (HEATMAP, "by", "ArrowDown ArrowRight", [5, 5]),
        (HEATMAP, "by", "End", [n - 1, None]),
        (LINES, "to", "ArrowDown ArrowRight ArrowUp", [5, None]),
        (f"{WORDS}[tabindex='0']", "to", "ArrowRight ArrowRight", [6, None]),
        (f"{WORDS}[tabindex='0']", "by", "End ArrowRight ArrowLeft", [n - 2, None]),
        (f"{WORDS}[tabindex='0']", "to", "End Home ArrowDown", [1, None]),
    ):
        change(page, position=4, other=None, mode=mode, view="lines" if place == LINES else "heatmap")
        walk(page, place, keys)
        assert state(page, "position", "other") == selected, (place, mode, keys)


def test_what_is_selected_is_said_to_screen_readers(explore, seen):
    page, summary = explore(seen, head=1, hash="position=0"), SUMMARY
    assert page.locator(summary).get_attribute("aria-live") == "polite"
    walk(page, f"{WORDS}[tabindex='0']", "ArrowRight")
    weight = seen.attention(0, 1)[1].max()
    expect(page.locator(summary)).to_contain_text(f"Layer 0, head 1. 1 “\u2068{seen.tokens[1]}\u2069” attends to ")
    expect(page.locator(summary)).to_contain_text(f"{weight:.3f}")
    walk(page, HEATMAP, "ArrowRight ArrowRight")
    expect(page.locator(summary)).to_contain_text(f"attends to 1 “\u2068{seen.tokens[1]}\u2069”: ")


def test_lines_follow_the_keys_out_of_sight(explore, lab):
    page = explore(trace(lab, TEXT * 4), head=1, hash="view=lines&position=0")
    walk(page, LINES, "End")
    frame(page)
    top, height, room = page.locator(".g-lines").evaluate("box => [box.scrollTop, box.clientHeight, box.scrollHeight]")
    assert top + height == pytest.approx(room, abs=25)


# ---- address ------------------------------------------------------------------------------------------------------

STATE = {
    "side": 2, "layer": 3, "heads": [1, 4], "together": "max", "threshold": 0.2, "first": True, "root": False,
    "view": "lines", "mode": "by", "position": 9, "other": 12, "all": True,
}  # fmt: skip


def test_address_reopened_gives_the_same_state(explore, visit, seen, tuned):
    page = explore(seen, tuned)
    change(page, **STATE)
    page.wait_for_url("**layer=3**")
    again = visit(page.url)
    assert again.evaluate(f"{VIEW}.state()") == page.evaluate(f"{VIEW}.state()") == STATE
    assert again.locator(LINES).get_attribute("data-lines") == page.locator(LINES).get_attribute("data-lines")
    assert again.locator(TITLE).inner_text() == page.locator(TITLE).inner_text()


def test_address_pasted_into_an_open_page_is_followed(explore, seen):
    page = explore(seen, hash="layer=1&heads=2&position=9&other=8")
    page.evaluate("location.hash = 'layer=2&heads=3&position=4&other=8'")  # 8 is ahead of 4
    expect(page.locator(TITLE)).to_have_text("Layer 2, head 3")
    assert state(page, "position", "other") == [4, None]


@pytest.mark.parametrize(
    "hash",
    [
        "layer=99&heads=77,-1,x&together=min&threshold=NaN&view=3d&mode=at&position=9999&other=1&side=1",
        "layer=-1&heads=&threshold=-1&position=1e1&side=x",
        "layer=1.5&threshold=2&position=-3&other=x",
        "%%%&=&&layer",
        "<img src=x onerror=alert(1)>",
        "__proto__=1&constructor=2",
    ],
)
def test_nonsense_in_the_address_is_passed_over(explore, seen, hash):
    page = explore(seen, layer=1, head=2, hash=hash)
    expected = {
        "side": 0, "layer": 1, "heads": [2], "together": "mean", "threshold": 0, "view": "heatmap", "mode": "to",
        "position": len(seen.tokens) - 1,
    }  # fmt: skip
    found = page.evaluate(f"{VIEW}.state()")
    assert expected == {name: found[name] for name in expected}
    expect(page.locator(TITLE)).to_have_text("Layer 1, head 2")


# ---- files --------------------------------------------------------------------------------------------------------


def saved(page, button, tmp_path):
    with page.expect_download() as download:
        options_of(page).get_by_role("button", name=button).click()
    download.value.save_as(tmp_path / "saved")
    return download.value.suggested_filename, (tmp_path / "saved").read_bytes()


def csv_rows(text):
    return list(csv.DictReader(io.StringIO(text.decode(), newline="")))


def test_csv_holds_the_matrix_that_is_shown(explore, seen, tuned, tmp_path):
    page = explore(seen, tuned, hash="side=2&layer=1&heads=0,3")
    name, text = saved(page, "CSV", tmp_path)
    assert name == "attention-layer1-heads0-3-mean-difference.csv"
    rows = csv_rows(text)
    queries, keys = np.tril_indices(len(seen.tokens))
    assert [(int(row["query"]), int(row["key"])) for row in rows] == list(zip(queries.tolist(), keys.tolist()))
    assert [(row["query_token"], row["key_token"]) for row in rows[:3]] == [
        (seen.tokens[i], seen.tokens[j]) for i, j in zip(queries[:3], keys[:3])
    ]
    np.testing.assert_allclose([float(row["difference"]) for row in rows], page.evaluate(SHOWN), rtol=6e-4)
    moved = (tuned.attention(1) - seen.attention(1))[[0, 3]].mean(0).numpy()[queries, keys]
    assert all(abs(float(row["difference"]) - x) <= float(row["error"]) for row, x in zip(rows, moved))


def test_csv_of_a_head_whose_q_and_k_are_there_is_exact_and_leaves_out_what_is_hidden(explore, seen, tmp_path):
    page = explore(seen, hash="layer=1&heads=2&first=1")
    name, text = saved(page, "CSV", tmp_path)
    assert name == "attention-layer1-heads2-without-first.csv"
    rows = csv_rows(text)
    weights = seen.attention(1, 2).double()[1:, 1:]
    weights /= weights.sum(-1, keepdim=True)
    places = np.tril_indices(len(weights))
    assert [(int(row["query"]) - 1, int(row["key"]) - 1) for row in rows] == list(zip(*map(np.ndarray.tolist, places)))
    np.testing.assert_allclose([float(row["weight"]) for row in rows], weights.numpy()[places], rtol=1e-4, atol=1e-7)
    assert {row["error"] for row in rows} == {"0"}


@pytest.mark.parametrize("first", [0, 1])
def test_csv_of_a_difference_is_exact_where_both_sides_q_and_k_are_there(explore, seen, tuned, tmp_path, first):
    page = explore(seen, tuned, hash=f"side=2&layer=1&heads=2&first={first}")
    rows = csv_rows(saved(page, "CSV", tmp_path)[1])
    base, other = (one.attention(1, 2).double()[first:, first:] for one in (seen, tuned))
    moved = other / other.sum(-1, keepdim=True) - base / base.sum(-1, keepdim=True)
    found = [float(row["difference"]) for row in rows]
    np.testing.assert_allclose(found, moved.numpy()[np.tril_indices(len(moved))], atol=2e-6)
    assert {row["error"] for row in rows} == {"0"}


def test_csv_holds_the_weights_from_the_threshold_on_and_no_formulas(explore, made, tmp_path):
    page = explore(made(1, 1, tokens=HOSTILE), hash="threshold=0.25")
    name, text = saved(page, "CSV", tmp_path)
    rows = csv_rows(text)
    assert len(rows) == sum(weight >= 0.25 for weight in page.evaluate(SHOWN))
    assert name == "attention-layer0-heads0-from0.25.csv"
    tokens = {row["query_token"] for row in rows}
    assert "'=1+1" in tokens
    assert tokens - {"'=1+1"} <= set(HOSTILE)


@pytest.mark.parametrize(("view", "canvas"), [("heatmap", HEATMAP), ("lines", LINES)])
def test_png_is_the_picture_on_its_paper(explore, seen, tmp_path, view, canvas):
    page = explore(seen, hash=f"view={view}", color_scheme="dark")
    name, data = saved(page, "PNG", tmp_path)
    assert name.endswith(".png")
    image = Image.open(io.BytesIO(data))
    assert image.format == "PNG"
    assert image.size == tuple(page.locator(canvas).evaluate("canvas => [canvas.width, canvas.height]"))
    assert image.convert("RGBA").getpixel((image.width - 3, 3)) == (24, 24, 27, 255)


@pytest.mark.parametrize("view", ["heatmap", "lines"])
def test_svg_is_the_whole_view_with_tokens_as_they_are(explore, made, tmp_path, view):
    tokens = (*HOSTILE, "bell\x07", *(f"t{i}" for i in range(30)))
    page = explore(made(1, 2, tokens=tokens), hash=f"view={view}&heads=1&all=1")
    name, data = saved(page, "SVG", tmp_path)
    assert name == "attention-layer0-heads1.svg"
    picture = ElementTree.fromstring(data.decode())
    parts = [part.tag.removeprefix("{http://www.w3.org/2000/svg}") for part in picture.iter()]
    assert set(parts) == {"svg", "title", "rect", "text"} | ({"image"} if view == "heatmap" else {"path"})
    texts = [part.text for part in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert len(texts) == 2 * len(tokens)
    assert {"t29", "🌙⟨F0 9F⟩", "bell\ufffd", "=1+1"} <= set(texts)
    if view == "lines":
        assert float(picture.get("height")) == 20 * len(tokens) + 12
        assert parts.count("path") == sum(weight >= 0.01 for weight in page.evaluate(SHOWN))
    else:
        [image] = picture.iter("{http://www.w3.org/2000/svg}image")
        assert Image.open(io.BytesIO(base64.b64decode(image.get("href").partition(",")[2]))).size == (40, 40)


# ---- texts that are not meant well --------------------------------------------------------------------------------


def assert_shown_as_is(place):
    expect(place.locator(WORDS)).to_have_text([token.replace("·", " ") for token in HOSTILE])
    assert place.locator("img, svg, iframe, b").count() == 0


def test_hostile_tokens_are_shown_and_do_nothing(explore, made):
    page = explore(made(1, 2, tokens=HOSTILE), hash="position=8&other=0")
    assert_shown_as_is(page)
    expect(page.locator(HOVER)).to_contain_text(f"0 “\u2068{HOSTILE[0]}\u2069”")
    page.get_by_text("Weights as a table").click()
    page.get_by_role("button", name="Lines").click()
    walk(page, LINES, "Home ArrowDown ArrowDown")
    assert_shown_as_is(page)


def test_hostile_tokens_in_a_frame_do_nothing(visit, made, tmp_path):
    frame_of_page = explorer_page(made(1, 2, tokens=HOSTILE)).iframe()
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html><meta charset=utf-8><h1>notebook</h1>{frame_of_page}", encoding="utf-8")
    page = visit(path.as_uri(), drawn=None)
    inside = page.frame_locator("iframe")
    inside.locator("body[data-ready=true]").wait_for()
    assert_shown_as_is(inside)
    inside.locator(WORDS).nth(3).click()
    expect(inside.locator(HOVER)).to_contain_text("3 “")
    expect(inside.get_by_role("button", name="Copy link")).to_be_hidden()  # it has no address of its own
    assert page.locator("h1").inner_text() == "notebook"


def test_two_texts_are_named_by_their_own_tokens(explore, made):
    first = made(1, 2, tokens=("a", "b⏎", "c"))
    second = replace(first, tokens=("x", "y", "z"), ids=first.ids + 1, q=-first.q)
    page = explore(first, second, hash="position=2&other=1")
    expect(page.locator(".g-about-page")).to_contain_text("first text and second text")
    expect(page.locator(WORDS)).to_have_text(["a", "b⏎", "c"])
    page.get_by_label("Shown").select_option("second text")
    expect(page.locator(WORDS)).to_have_text(["x", "y", "z"])
    expect(page.locator(HOVER)).to_contain_text("2 “\u2068z\u2069” attends to 1 “\u2068y\u2069”")


# ---- screens ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("view", "canvas"), [("heatmap", HEATMAP), ("lines", LINES)])
def test_pictures_are_redrawn_when_the_reader_s_colours_change(explore, seen, view, canvas):
    page = explore(seen, hash=f"view={view}", color_scheme="light")
    corner = page.locator(canvas).evaluate("canvas => ({x: canvas.width - 3, y: 3})")
    assert pixel(page, corner, canvas) == [255, 255, 255]
    page.emulate_media(color_scheme="dark")
    frame(page)
    assert pixel(page, corner, canvas) == [24, 24, 27]


@pytest.mark.parametrize(
    "hash", ["", "view=lines", "side=2&position=12&other=3", "side=0&layer=1&heads=2&position=12&other=3"]
)
def test_page_is_no_wider_than_a_phone(explore, seen, tuned, hash):
    page = explore(seen, tuned, hash=hash, viewport={"width": 320, "height": 700})
    options_of(page)
    page.get_by_text("Weights as a table").click()
    frame(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_page_fits_a_window_that_becomes_narrow(explore, seen):
    page = explore(seen)
    page.set_viewport_size({"width": 390, "height": 844})
    frame(page)
    assert page.locator(HEATMAP).bounding_box()["width"] <= 390 - 2 * 12
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator(HEATMAP).click(position=cell(page, 9, 4))
    assert state(page, "position", "other") == [9, 4]


@pytest.mark.parametrize("hash", ["", "view=lines", "first=1", "first=1&position=0&other=0"])
def test_smallest_traces_are_drawn(explore, made, hash):
    page = explore(made(1, 1, 1), hash=hash)
    expect(page.locator(".g-about-page")).to_contain_text("1 layer × 1 head, 1 token · ")
    assert stored(page, 0, 0, 0).tolist() == [1]


def test_a_whole_context_is_drawn(explore, lab):
    whole = trace(lab, TEXT * 40, cut=True)
    assert len(whole.tokens) == lab.context
    page = explore(whole, layer=2, head=3)
    for view, canvas in (("heatmap", HEATMAP), ("lines", LINES)):
        change(page, view=view, all=True)
        assert colours(page, canvas) > 20, view
    expect(page.locator(".g-about-page")).to_contain_text(f"The first {lab.context} of")
    assert np.abs(stored(page, 0, 3, 5) - triangle(whole.attention(3, 5))).max() <= bound(whole)


def test_a_lone_weight_of_a_long_text_is_seen(explore, made):
    """More tokens than the picture has pixels: a block of weights has the colour of its largest."""
    T = 700
    q, k = torch.zeros(2, 1, 1, T, 4)
    q[0, 0, 601, 0], k[0, 0, 301, 0] = 10, 10
    base = made(1, 1, T)
    page = explore(replace(base, q=q, k=k, v=torch.zeros(1, 1, T, 4)))
    assert pixel(page, cell(page, 601, 301))[2] < 100  # the full orange


# ---- the view alone -----------------------------------------------------------------------------------------------


@pytest.fixture
def alone(visit, tmp_path):
    """A function: what `Attention` takes → the page of the widget alone."""

    def open_one(*arguments, **options):
        return visit(Attention(*arguments, **options).save(tmp_path / "view.html").as_uri(), "[data-drawn=true]")

    return open_one


def test_text_is_a_view_of_the_widget(alone, seen):
    page = alone(seen, Selection(9, 1, 2))
    expect(page.locator(TITLE)).to_have_text("Layer 1, head 2")
    expect(page.locator(".g-text")).to_be_hidden()
    page.get_by_role("button", name="Text").click()
    expect(page.locator(HEATMAP)).to_be_hidden()
    page.locator(WORDS).nth(5).click()
    expect(page.locator(HOVER)).to_contain_text("5 “")
    expect(options_of(page).get_by_role("button", name="PNG")).to_be_hidden()


def test_layer_that_is_not_in_a_file_is_said_to_be_missing(alone, seen):
    page = alone(seen, Selection(9, 1, 2), layers=[1])
    page.get_by_label("Layer", exact=True).select_option("2")
    expect(page.locator(TITLE)).to_have_text("Layer 2: not in this page.")
    expect(page.locator(HEATMAP)).to_be_hidden()
    page.get_by_label("Layer", exact=True).select_option("1")
    expect(page.locator(HOVER)).to_contain_text("9 “")


def test_layer_and_q_and_k_that_were_not_sent_are_asked_for_once(visit, tmp_path, seen):
    """A page whose model asks a function of the page, as Gradio's does."""
    path = explorer_page(seen, layer=1, head=2, layers=[1]).save(tmp_path / "page.html")
    page, answer = visit(path.as_uri()), answer_for(seen)
    page.expose_function("python", lambda kind, options: answered(answer, kind, options))
    page.evaluate("""async () => {
        const state = JSON.parse(document.getElementById("state").textContent), root = document.createElement("div");
        const code = [...document.scripts].at(-1).textContent.split("view.render(")[0];
        const { lib, view } = new Function(`${code}; return { lib, view };`)();
        document.getElementById("root").replaceWith(Object.assign(root, { id: "root", className: "gpt2lab" }));
        state.data.sides[0].attention.places = [];
        window.asked = [];
        const model = { ...lib.fileModel(state), ask: (kind, options) => { asked.push(kind); return python(kind, options); } };
        view.render({ model, el: root });
    }""")
    thumbnails = page.locator(".g-cell canvas")
    expect(thumbnails).to_have_count(seen.n_heads)
    page.get_by_role("gridcell", name="Layer 3, head 2:").click()
    expect(page.locator(TITLE)).to_have_text("Layer 3, head 2")
    expect(thumbnails).to_have_count(2 * seen.n_heads)
    assert np.abs(np.array(page.evaluate(SHOWN)) - triangle(seen.attention(3, 2))).max() <= 0.01
    change(page, position=8, other=3)
    expect(page.locator(FORMULA)).to_contain_text("softmax over")
    assert last_number(page, FORMULA) == pytest.approx(seen.attention(3, 2)[8, 3].item(), abs=1e-5)
    assert page.evaluate("asked") == ["attention", "qk"]

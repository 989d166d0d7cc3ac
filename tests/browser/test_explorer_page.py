"""The attention explorer in a real browser: its numbers against the trace's, and what a reader can do with it."""

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
ROWS = """([side, layer, head]) => {
    const triangle = explorer.weightsOf(side, layer, head), rows = [];
    for (let i = 0; i < explorer.data.tokens; i++)
        rows.push([...triangle.slice(i * (i + 1) / 2, (i + 1) * (i + 2) / 2)]);
    return rows; }"""
SHOWN = "[...explorer.shownMatrix(explorer.state.layer, explorer.state.heads)]"


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
    """A function that opens an address, and waits until the explorer is drawn."""

    def open_one(address, drawn="body[data-drawn=true]", **options):
        page = visit_file(address, **options)
        if drawn:
            page.locator(drawn).wait_for(state="attached")
        return page

    return open_one


@pytest.fixture
def explore(visit, tmp_path):
    """A function: a trace, and what `explorer_page` and a browser take → the page, drawn."""

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


def bound(page):
    return page.evaluate("explorer.data.error") + 1e-6


def last_number(page, place):
    return float(page.locator(place).inner_text().rsplit(": ", 1)[1])


def cell(page, query, key):
    """The middle of a weight on the heatmap, {x, y}, which has its labels on the left and below."""
    return page.evaluate("([query, key]) => explorer.cellAt(query, key)", [query, key])


def thumbnail(page, layer, head):
    """The middle of a head's thumbnail on the overview, {x, y}."""
    return page.evaluate("([layer, head]) => explorer.thumbnailAt(layer, head)", [layer, head])


# ---- numbers ------------------------------------------------------------------------------------------------------


def test_weights_read_back_are_the_trace_s_within_the_bound(explore, seen):
    page = explore(seen)
    for layer, head in ((0, 0), (1, 5), (3, 2)):
        rows = page.evaluate(ROWS, [0, layer, head])
        assert [len(row) for row in rows] == list(range(1, len(seen.tokens) + 1))
        np.testing.assert_allclose([sum(row) for row in rows], 1, atol=1e-5)
        error = np.abs(np.concatenate(rows) - triangle(seen.attention(layer, head))).max()
        assert error <= bound(page)


def test_weights_of_carried_q_and_k_are_exact(explore, seen):
    page = explore(seen, layer=2, head=4)
    rows = page.evaluate(
        "Array.from({length: explorer.data.tokens}, (_, i) => explorer.exactRow(explorer.vectors(0, 2, 4), i).weights)"
    )
    expected = seen.attention(2, 4)
    np.testing.assert_allclose(np.concatenate(rows), triangle(expected), atol=1e-5)
    page.evaluate("explorer.change({query: 9, key: 3})")
    expect(page.locator("#hover")).to_contain_text(f"attends to 3 “\u2068{seen.tokens[3]}\u2069”: 0.")
    assert last_number(page, "#hover") == pytest.approx(expected[9, 3].item(), abs=1e-5)


def test_weights_without_q_and_k_are_reported_with_their_bound(explore, seen):
    page = explore(seen, hash="layer=1&heads=0,1&query=9&key=3")
    value, error = page.locator("#hover").inner_text().rsplit(": ", 1)[1].split(" ± ")
    assert abs(float(value) - seen.attention(1)[:2, 9, 3].mean().item()) <= float(error) + 5e-5
    assert page.evaluate("explorer.data.error") <= float(error)  # never rounded down


@pytest.mark.parametrize("query", [5, 15])
def test_bound_holds_without_the_first_token_too(explore, seen, query):
    page = explore(seen, hash="layer=1&heads=2,3&first=1")
    expected = renormalised(seen, 1)[2:4].mean(0)
    for key in range(query + 1):
        found = page.evaluate("([query, key]) => explorer.weightAt(query, key)", [query, key])
        assert abs(found["value"] - expected[query, key]) <= found["error"] + 1e-6


def test_products_of_q_and_k_are_the_trace_s(explore, seen):
    page = explore(seen, hash="layer=1&heads=2&query=8&key=3")
    q, k = seen.q[1, 2, 8].double(), seen.k[1, 2, 3].double()
    rows = page.locator("#products tr").all_inner_texts()
    cells = np.array([row.split("\t") for row in rows[1:]], dtype=float)
    assert rows[0].split("\t") == ["dimension", "q", "k", "q × k"]
    order = cells[:, 0].astype(int)
    assert sorted(order) == list(range(len(q)))
    np.testing.assert_allclose(cells[:, 1:], torch.stack([q, k, q * k], 1)[order], atol=5.1e-5)
    assert (np.diff(np.abs(cells[:, 3])) <= 0).all()
    formula, score = page.locator("#formula"), (q @ k).item()
    expect(formula).to_contain_text(f"= {score:.4f}; × {seen.scaling[1]:.4f}")
    expect(formula).to_contain_text("softmax over the 9 tokens up to it: ")
    assert last_number(page, "#formula") == pytest.approx(seen.attention(1, 2)[8, 3].item(), abs=1e-5)


def test_products_of_two_models_of_different_width_are_each_one_s_own(explore, seen, made):
    other = replace(made(seen.n_layers, seen.n_heads, len(seen.tokens)), name="narrow")
    page = explore(seen, other, hash="side=1&layer=1&heads=2&query=8&key=3")
    dot = (other.q[1, 2, 8].double() @ other.k[1, 2, 3].double()).item()
    expect(page.locator("#formula")).to_contain_text(f"= {dot:.4f}; × 1.0000 (as the model's configuration says)")
    expect(page.locator("#products tr")).to_have_count(8 + 1)


@pytest.mark.parametrize(("together", "reduce"), [("mean", np.mean), ("max", np.max)])
def test_heads_together_are_numpy_s(explore, seen, together, reduce):
    page = explore(seen, hash=f"layer=1&heads=0,2,3&together={together}")
    expected = triangle(reduce(seen.attention(1).numpy()[[0, 2, 3]], axis=0))
    np.testing.assert_allclose(page.evaluate(SHOWN), expected, atol=bound(page))


def renormalised(trace, layer):
    """(H, T, T): the weights without the first token, each row's others summing to 1; row 0 has none."""
    weights = trace.attention(layer).double().numpy().copy()
    weights[..., 0] = 0
    weights[:, 1:] /= weights[:, 1:].sum(-1, keepdims=True)
    return weights


def test_first_token_hidden_and_the_rest_renormalised(explore, seen):
    page = explore(seen, hash="layer=0&heads=2")
    page.get_by_label("hide the first token").check()
    shown = np.zeros((len(seen.tokens),) * 2)
    shown[np.tril_indices(len(shown))] = page.evaluate(SHOWN)
    assert (shown[:, 0] == 0).all()
    np.testing.assert_allclose(shown[1:].sum(1), 1, atol=1e-5)
    rest = 1 - seen.attention(0, 2)[:, 0].double().numpy()
    allowed = 2 * bound(page) / np.maximum(rest - bound(page), 1e-3)
    assert (np.abs(shown - renormalised(seen, 0)[2])[1:] <= allowed[1:, None]).all()
    page.evaluate("explorer.change({query: 7, key: 4})")
    expect(page.locator("#hover")).to_contain_text("7 “")
    assert last_number(page, "#hover") == pytest.approx(renormalised(seen, 0)[2][7, 4], abs=1e-5)  # from q and k


def test_difference_is_the_other_less_the_first(explore, seen, tuned):
    page = explore(seen, tuned, hash="side=2&layer=2&heads=3")
    expected = triangle(tuned.attention(2, 3) - seen.attention(2, 3))
    np.testing.assert_allclose(page.evaluate(SHOWN), expected, atol=2 * bound(page))
    expect(page.locator("#shown")).to_have_text("Layer 2, head 3, tuned less builtin")
    page.locator("#side").select_option("tuned")
    np.testing.assert_allclose(page.evaluate(SHOWN), triangle(tuned.attention(2, 3)), atol=bound(page))


def test_largest_difference_of_several_heads_keeps_its_sign(explore, seen, tuned):
    page = explore(seen, tuned, hash="side=2&layer=2&heads=0,1&together=max")
    moved = (tuned.attention(2) - seen.attention(2)).numpy()[:2]
    expected = np.take_along_axis(moved, np.abs(moved).argmax(0)[None], 0)[0]
    shown = np.array(page.evaluate(SHOWN))
    clear = triangle(np.abs(np.abs(moved[0]) - np.abs(moved[1]))) > 4 * bound(page)
    np.testing.assert_allclose(shown[clear], triangle(expected)[clear], atol=2 * bound(page))
    assert (shown < 0).any()


# ---- what the reader does -----------------------------------------------------------------------------------------


def test_pointer_previews_a_head_and_a_click_holds_it(explore, seen):
    page, overview = explore(seen), "#overview"
    shown = page.locator("#shown")
    before = shown.inner_text()
    page.locator(overview).hover(position=thumbnail(page, 2, 3))
    expect(shown).to_have_text("Layer 2, head 3")
    page.mouse.move(1200, 5)
    expect(shown).to_have_text(before)
    page.locator(overview).click(position=thumbnail(page, 2, 3))
    page.mouse.move(1200, 5)
    expect(shown).to_have_text("Layer 2, head 3")
    expect(page.locator("#layer")).to_have_value("2")


def test_shift_click_and_buttons_show_heads_together(explore, seen):
    page = explore(seen, hash="layer=1&heads=0")
    shown, buttons = page.locator("#shown"), page.get_by_role("group", name="Heads")
    page.locator("#overview").click(position=thumbnail(page, 1, 4), modifiers=["Shift"])
    expect(shown).to_have_text("Layer 1, heads 0, 4 (mean)")
    buttons.get_by_role("button", name="head 2").click()
    page.get_by_label("together").select_option("max")
    page.mouse.move(1200, 5)
    expect(shown).to_have_text("Layer 1, heads 0, 2, 4 (max)")
    np.testing.assert_allclose(page.evaluate(SHOWN), triangle(seen.attention(1)[[0, 2, 4]].amax(0)), atol=bound(page))
    for head in (0, 2, 4):
        buttons.get_by_role("button", name=f"head {head}").click()
    expect(shown).to_have_text("Layer 1, head 4")  # one at least stays
    buttons.get_by_role("button", name="all").click()
    assert page.evaluate("explorer.state.heads") == list(range(seen.n_heads))


def pixels(page, canvas):
    """(height, width, 3): what a canvas shows."""
    address = page.locator(canvas).evaluate("canvas => canvas.toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).convert("RGB"))


def colours(page, canvas="#heatmap"):
    """How many colours a canvas has."""
    return len(np.unique(pixels(page, canvas).astype(int) @ [1 << 16, 1 << 8, 1]))


def pixel(page, position, canvas="#heatmap"):
    return pixels(page, canvas)[int(position["y"]), int(position["x"])].tolist()


def frame(page):
    """Wait until what was asked for is drawn."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_threshold_leaves_out_lighter_weights(explore, seen):
    page, weights = explore(seen, hash="layer=0&heads=0"), seen.attention(0, 0)
    light = divmod(int(torch.where(weights > 0, weights, 1).argmin()), len(weights))
    frame(page)
    assert pixel(page, cell(page, *light)) != [255, 255, 255]
    page.get_by_label("from weight").fill("0.5")
    frame(page)
    expect(page.locator("#least")).to_have_text("0.50")
    assert pixel(page, cell(page, *light)) == [255, 255, 255]
    assert pixel(page, cell(page, 0, 0)) != [255, 255, 255]  # it has all of its token's attention
    page.get_by_role("button", name="Lines").click()
    count = int((weights >= 0.5).sum())
    assert count
    expect(page.locator("#lines")).to_have_attribute("data-lines", str(count))


def test_lines_are_those_of_the_weights_from_a_hundredth_on(explore, made):
    one = made(1, 2, 12)  # all in sight
    page = explore(one, hash="view=lines")
    stored = np.array([page.evaluate(ROWS, [0, 0, head]) for head in range(2)], dtype=object)
    count = sum(weight >= 0.01 for rows in stored for row in rows for weight in row)
    expect(page.locator("#lines")).to_have_attribute("data-lines", str(count))
    assert colours(page, "#lines") > 10
    page.evaluate("explorer.change({query: 5, heads: [1]})")
    held = sum(weight >= 0.01 for weight in stored[1][5])
    expect(page.locator("#lines")).to_have_attribute("data-lines", str(held))
    page.evaluate("explorer.change({query: null, key: 5})")
    read = sum(row[5] >= 0.01 for row in stored[1][5:])
    expect(page.locator("#lines")).to_have_attribute("data-lines", str(read))


def test_lines_of_a_long_text_are_the_heaviest_of_those_in_sight(explore, made):
    page = explore(made(1, 12, 400), hash="view=lines")
    expect(page.locator("#lines")).to_have_attribute("data-lines", "8000")


def test_lines_of_a_difference_have_the_colours_of_their_sign(explore, made):
    base = made(1, 2, 6)
    page = explore(base, replace(base, name="other", q=-base.q), hash="side=2&view=lines")
    drawn = np.unique(pixels(page, "#lines").reshape(-1, 3), axis=0).astype(int)
    orange = (drawn[:, 0] > drawn[:, 1] + 60) & (drawn[:, 1] > drawn[:, 2] + 60)
    purple = (drawn[:, 2] > drawn[:, 0] + 30) & (drawn[:, 0] > drawn[:, 1])
    assert orange.any()
    assert purple.any()


def coloured(page):
    """The places of the text's tokens with a colour."""
    return page.locator("#text span").evaluate_all(
        "spans => spans.flatMap((span, i) => span.style.background ? [i] : [])"
    )


def test_text_is_coloured_by_what_a_token_attends_to_or_what_attends_to_it(explore, seen):
    page, n = explore(seen, hash="layer=3&heads=1"), len(seen.tokens)
    words, hover = page.locator("#text span"), page.locator("#hover")
    assert coloured(page) == []
    words.nth(9).click()
    rows = page.evaluate(ROWS, [0, 3, 1])
    assert coloured(page) == [j for j, weight in enumerate(rows[9]) if weight > 1e-9]
    most = int(np.argmax(rows[9]))
    expect(hover).to_contain_text(
        f"9 “\u2068{seen.tokens[9]}\u2069” attends to {most} “\u2068{seen.tokens[most]}\u2069”"
    )
    page.get_by_label("Colour the text by").select_option("by")
    words.nth(9).click()
    column = [row[9] for row in rows[9:]]
    assert coloured(page) == [9 + i for i, weight in enumerate(column) if weight > 1e-9]
    reader = 9 + int(np.argmax(column))
    expect(hover).to_contain_text(f"Attended to: 9 “\u2068{seen.tokens[9]}\u2069”, most by {reader} “")
    assert page.evaluate("[explorer.state.query, explorer.state.key]") == [None, 9]
    assert max(coloured(page)) < n


def test_pointer_over_the_text_previews_and_leaves(explore, seen):
    page = explore(seen)
    page.locator("#text span").nth(4).hover()
    expect(page.locator("#hover")).to_contain_text("4 “")
    page.mouse.move(1200, 5)
    expect(page.locator("#hover")).to_contain_text("Point at a weight")


def test_click_on_a_weight_holds_it_and_shows_its_products_while_the_pointer_moves_on(explore, seen):
    page = explore(seen, hash="layer=1&heads=2")
    page.locator("#heatmap").click(position=cell(page, 12, 7))
    assert page.evaluate("[explorer.state.query, explorer.state.key]") == [12, 7]
    page.locator("#heatmap").hover(position=cell(page, 15, 2))
    expect(page.locator("#hover")).to_contain_text("15 “")
    expect(page.locator("#pair")).to_be_visible()
    expect(page.locator("#formula")).to_contain_text("q of 12 “")
    page.mouse.move(1200, 5)
    expect(page.locator("#hover")).to_contain_text("12 “")


def test_search_marks_every_match_and_holds_the_first(explore, seen):
    page = explore(seen)
    page.get_by_label("Find a token").fill("the")
    matches = [i for i, token in enumerate(seen.tokens) if "the" in token.lower()]
    assert len(matches) >= 2
    expect(page.locator("#text .found")).to_have_count(len(matches))
    assert page.evaluate("explorer.state.query") == matches[0]
    for key, places in (("Enter", [*matches[1:], matches[0]]), ("Shift+Enter", [matches[-1], matches[-2]])):
        for place in places:
            page.keyboard.press(key)
            assert page.evaluate("explorer.state.query") == place
    held = page.evaluate("explorer.state.query")
    page.get_by_label("Find a token").fill("zebra")
    expect(page.locator("#text .found")).to_have_count(0)
    page.keyboard.press("Enter")
    assert page.evaluate("explorer.state.query") == held


def walk(page, place, keys):
    page.locator(place).focus()
    for key in keys.split():
        page.keyboard.press(key)


def test_arrow_keys_walk_from_head_to_head(explore, seen):
    page = explore(seen, head=0)
    for keys, place in (
        ("ArrowRight", [0, 1]),
        ("ArrowDown ArrowDown ArrowRight", [2, 1]),
        ("ArrowDown ArrowUp ArrowUp", [0, 0]),
        (" ".join(["ArrowDown"] * 9), [seen.n_layers - 1, 0]),
        ("ArrowLeft", [0, 0]),
    ):
        page.evaluate("explorer.change({layer: 0, heads: [0]})")
        walk(page, "#overview", keys)
        assert page.evaluate("[explorer.state.layer, explorer.state.heads[0]]") == place, keys
        if keys != "ArrowLeft":  # where nothing changed, nothing is said
            expect(page.locator("#summary")).to_have_text("Layer {}, head {}.".format(*place))


def test_keys_walk_from_token_to_token(explore, seen):
    page, n = explore(seen, head=1), len(seen.tokens)
    for canvas, keys, held in (
        ("#heatmap", "ArrowDown", [0, 0]),
        ("#heatmap", "ArrowDown ArrowDown ArrowDown ArrowRight", [2, 1]),
        ("#heatmap", "ArrowDown ArrowRight", [0, 0]),  # nothing ahead is read
        ("#heatmap", "ArrowDown ArrowDown ArrowRight ArrowUp", [0, 0]),
        ("#heatmap", "End", [n - 1, 0]),
        ("#heatmap", "End ArrowDown Home", [0, 0]),
        ("#heatmap", "End Escape", [None, None]),
        ("#text", "ArrowRight ArrowRight ArrowRight", [2, None]),
        ("#text", "End ArrowRight ArrowLeft", [n - 2, None]),
        ("#text", "End Home ArrowDown", [1, None]),
        ("#text", "ArrowRight Escape", [None, None]),
    ):
        page.evaluate("explorer.change({query: null, key: null})")
        walk(page, canvas, keys)
        assert page.evaluate("[explorer.state.query, explorer.state.key]") == held, (canvas, keys)


def test_keys_walk_the_text_by_what_attends_to_a_token(explore, seen):
    page = explore(seen, head=1, hash="mode=by")
    walk(page, "#text", "ArrowRight ArrowRight")
    assert page.evaluate("[explorer.state.query, explorer.state.key]") == [None, 1]


def test_what_is_held_is_said_to_screen_readers(explore, seen):
    page, summary = explore(seen, head=1), "#summary"
    assert page.locator(summary).get_attribute("aria-live") == "polite"
    walk(page, "#text", "ArrowRight ArrowRight")
    weight = seen.attention(0, 1)[1].max()
    expect(page.locator(summary)).to_contain_text(f"Layer 0, head 1. 1 “\u2068{seen.tokens[1]}\u2069” attends to ")
    expect(page.locator(summary)).to_contain_text(f"{weight:.3f}")
    walk(page, "#heatmap", "ArrowRight")
    expect(page.locator(summary)).to_contain_text(f"attends to 1 “\u2068{seen.tokens[1]}\u2069”: ")


def test_lines_follow_the_keys_out_of_sight(explore, lab):
    page = explore(trace(lab, TEXT * 4), head=1, hash="view=lines")
    walk(page, "#lines", "End")
    frame(page)
    top, height, room = page.locator("#scroll").evaluate("box => [box.scrollTop, box.clientHeight, box.scrollHeight]")
    assert top + height == pytest.approx(room, abs=25)


# ---- address ------------------------------------------------------------------------------------------------------

STATE = {
    "side": 2, "layer": 3, "heads": [1, 4], "together": "max", "threshold": 0.2, "first": True, "root": False,
    "view": "lines", "mode": "by", "query": 9, "key": 2,
}  # fmt: skip


def test_address_reopened_gives_the_same_state(explore, visit, seen, tuned):
    page = explore(seen, tuned)
    page.evaluate("state => explorer.change(state)", STATE)
    page.wait_for_url("**layer=3**")
    again = visit(page.url)
    assert again.evaluate("explorer.state") == page.evaluate("explorer.state") == STATE
    assert again.locator("#lines").get_attribute("data-lines") == page.locator("#lines").get_attribute("data-lines")
    assert again.locator("#shown").inner_text() == page.locator("#shown").inner_text()


def test_address_pasted_into_an_open_page_is_followed(explore, seen):
    page = explore(seen, hash="layer=1&heads=2&query=9&key=8")
    page.evaluate("location.hash = 'layer=2&heads=3&query=4&key=8'")  # 8 is ahead of 4
    expect(page.locator("#shown")).to_have_text("Layer 2, head 3")
    assert page.evaluate("[explorer.state.query, explorer.state.key]") == [4, None]
    page.evaluate("location.hash = 'query=&key='")
    expect(page.locator("#hover")).to_contain_text("Point at a weight")


@pytest.mark.parametrize(
    "hash",
    [
        "layer=99&heads=77,-1,x&together=min&threshold=NaN&view=3d&mode=at&query=9999&key=1&side=1",
        "layer=-1&heads=&threshold=-1&query=1e1&side=x",
        "layer=1.5&threshold=2&query=-3",
        "%%%&=&&layer",
        "<img src=x onerror=alert(1)>",
        "__proto__=1&constructor=2",
    ],
)
def test_nonsense_in_the_address_is_passed_over(explore, seen, hash):
    page = explore(seen, layer=1, head=2, hash=hash)
    state = page.evaluate("explorer.state")
    expected = {
        "side": 0,
        "layer": 1,
        "heads": [2],
        "together": "mean",
        "threshold": 0,
        "view": "heatmap",
        "mode": "to",
    }
    assert expected | {"query": None, "key": None} == {name: state[name] for name in (*expected, "query", "key")}
    expect(page.locator("#shown")).to_have_text("Layer 1, head 2")


# ---- files --------------------------------------------------------------------------------------------------------


def saved(page, button, tmp_path):
    with page.expect_download() as download:
        page.get_by_role("button", name=button).click()
    download.value.save_as(tmp_path / "saved")
    return download.value.suggested_filename, (tmp_path / "saved").read_bytes()


def test_csv_holds_the_matrix_that_is_shown(explore, seen, tuned, tmp_path):
    page = explore(seen, tuned, hash="side=2&layer=1&heads=0,3")
    name, text = saved(page, "CSV", tmp_path)
    assert name == "attention-layer1-heads0-3-mean-difference.csv"
    rows = list(csv.DictReader(io.StringIO(text.decode(), newline="")))
    queries, keys = np.tril_indices(len(seen.tokens))
    assert [(int(row["query"]), int(row["key"])) for row in rows] == list(zip(queries.tolist(), keys.tolist()))
    assert [(row["query_token"], row["key_token"]) for row in rows[:3]] == [
        (seen.tokens[i], seen.tokens[j]) for i, j in zip(queries[:3], keys[:3])
    ]
    np.testing.assert_allclose([float(row["difference"]) for row in rows], page.evaluate(SHOWN), rtol=6e-4)
    change = (tuned.attention(1) - seen.attention(1))[[0, 3]].mean(0).numpy()[queries, keys]
    assert all(abs(float(row["difference"]) - x) <= float(row["error"]) for row, x in zip(rows, change))


def test_csv_of_a_head_whose_q_and_k_are_there_is_exact_and_leaves_out_what_is_hidden(explore, seen, tmp_path):
    page = explore(seen, hash="layer=1&heads=2&first=1")
    name, text = saved(page, "CSV", tmp_path)
    assert name == "attention-layer1-heads2-without-first.csv"
    rows = list(csv.DictReader(io.StringIO(text.decode(), newline="")))
    weights = seen.attention(1, 2).double()[1:, 1:]
    weights /= weights.sum(-1, keepdim=True)
    places = np.tril_indices(len(weights))
    assert [(int(row["query"]) - 1, int(row["key"]) - 1) for row in rows] == list(zip(*map(np.ndarray.tolist, places)))
    np.testing.assert_allclose([float(row["weight"]) for row in rows], weights.numpy()[places], rtol=1e-4, atol=1e-7)
    assert {row["error"] for row in rows} == {"0"}


@pytest.mark.parametrize("first", [0, 1])
def test_csv_of_a_difference_is_exact_where_both_sides_q_and_k_are_there(explore, seen, tuned, tmp_path, first):
    page = explore(seen, tuned, hash=f"side=2&layer=1&heads=2&first={first}")
    _, text = saved(page, "CSV", tmp_path)
    rows = list(csv.DictReader(io.StringIO(text.decode(), newline="")))
    base, other = (one.attention(1, 2).double()[first:, first:] for one in (seen, tuned))
    change = other / other.sum(-1, keepdim=True) - base / base.sum(-1, keepdim=True)
    found = [float(row["difference"]) for row in rows]
    np.testing.assert_allclose(found, change.numpy()[np.tril_indices(len(change))], atol=2e-6)
    assert {row["error"] for row in rows} == {"0"}


def test_first_token_that_is_hidden_has_no_weight_to_tell(explore, seen):
    page = explore(seen, hash="layer=1&heads=2&first=1&query=3&key=0")
    expect(page.locator("#hover")).to_have_text("The first token is hidden.")
    page.evaluate("explorer.change({query: 3, key: null})")
    expect(page.locator("#hover")).to_contain_text("attends to ")
    expect(page.locator("#hover")).not_to_contain_text(" 0 “")


def test_thumbnails_of_a_difference_without_the_first_token_keep_to_their_scale(explore, made):
    q = torch.zeros(1, 2, 3, 8)
    k = torch.zeros(1, 2, 3, 8)
    base = replace(made(1, 2, tokens=("a", "b", "c")), q=q, k=k)
    k = k.clone()
    q = q + 1
    k[0, 0, 1], k[0, 1, 1] = 0.05, 2.0
    page = explore(base, replace(base, name="tuned", q=q, k=k), hash="side=2&first=1")
    greatest = page.evaluate("[0, 1].map((head) => Math.max(...explorer.headMatrix(0, head).map(Math.abs)))")
    assert greatest[0] < 0.5 * greatest[1]
    assert page.evaluate("explorer.mostChanged()") == pytest.approx(greatest[1])


def test_csv_holds_the_weights_from_the_threshold_on_and_no_formulas(explore, made, tmp_path):
    page = explore(made(1, 1, tokens=HOSTILE), hash="threshold=0.25")
    name, text = saved(page, "CSV", tmp_path)
    rows = list(csv.DictReader(io.StringIO(text.decode(), newline="")))
    assert len(rows) == sum(weight >= 0.25 for weight in page.evaluate(SHOWN))
    assert name == "attention-layer0-heads0-from0.25.csv"
    tokens = {row["query_token"] for row in rows}
    assert "'=1+1" in tokens
    assert tokens - {"'=1+1"} <= set(HOSTILE)


@pytest.mark.parametrize("view", ["heatmap", "lines"])
def test_png_is_the_picture_on_its_paper(explore, seen, tmp_path, view):
    page = explore(seen, hash=f"view={view}", color_scheme="dark")
    name, data = saved(page, "PNG", tmp_path)
    assert name.endswith(".png")
    image = Image.open(io.BytesIO(data))
    assert image.format == "PNG"
    assert image.size == tuple(page.locator(f"#{view}").evaluate("canvas => [canvas.width, canvas.height]"))
    assert image.convert("RGBA").getpixel((image.width - 3, image.height - 3)) == (24, 24, 27, 255)


@pytest.mark.parametrize("view", ["heatmap", "lines"])
def test_svg_is_the_whole_view_with_tokens_as_they_are(explore, made, tmp_path, view):
    tokens = (*HOSTILE, "bell\x07", *(f"t{i}" for i in range(30)))
    page = explore(made(1, 2, tokens=tokens), hash=f"view={view}&heads=1")
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
        weights = page.evaluate(SHOWN)
        assert parts.count("path") == sum(weight >= 0.01 for weight in weights)
    else:
        [image] = picture.iter("{http://www.w3.org/2000/svg}image")
        assert Image.open(io.BytesIO(base64.b64decode(image.get("href").partition(",")[2]))).size == (40, 40)


def test_largest_of_opposite_differences_is_bounded_in_size(explore, seen, tuned):
    page = explore(seen, tuned, hash="side=2&layer=1&heads=0,3&query=5&key=2")
    expect(page.locator("#hover")).not_to_contain_text("in size")
    page.get_by_label("together").select_option("max")
    expect(page.locator("#hover")).to_contain_text("in size")


# ---- texts that are not meant well --------------------------------------------------------------------------------


def assert_shown_as_is(place):
    expect(place.locator("#text span")).to_have_text([token.replace("·", " ") for token in HOSTILE])
    assert place.locator("img, svg, iframe, b").count() == 0


def test_hostile_tokens_are_shown_and_do_nothing(explore, made):
    page = explore(made(1, 2, tokens=HOSTILE), hash="query=8&key=0")
    assert_shown_as_is(page)
    expect(page.locator("#hover")).to_contain_text(f"0 “\u2068{HOSTILE[0]}\u2069”")
    page.get_by_role("button", name="Lines").click()
    walk(page, "#lines", "Home ArrowDown ArrowDown")


def test_hostile_tokens_in_a_frame_do_nothing(visit, made, tmp_path):
    frame_of_page = explorer_page(made(1, 2, tokens=HOSTILE)).iframe()
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html><meta charset=utf-8><h1>notebook</h1>{frame_of_page}", encoding="utf-8")
    page = visit(path.as_uri(), drawn=None)
    inside = page.frame_locator("iframe")
    inside.locator("body[data-drawn=true]").wait_for()
    assert_shown_as_is(inside)
    inside.locator("#text span").nth(3).click()
    expect(inside.locator("#hover")).to_contain_text("3 “")
    expect(inside.get_by_role("button", name="Copy link")).to_be_hidden()  # it has no address of its own
    assert page.locator("h1").inner_text() == "notebook"


def test_two_texts_are_named_by_their_own_tokens(explore, made):
    first = made(1, 2, tokens=("a", "b⏎", "c"))
    page = explore(first, replace(first, tokens=("x", "y", "z"), ids=first.ids + 1, q=-first.q), hash="query=2&key=1")
    expect(page.locator("#about")).to_contain_text("first text and second text")
    expect(page.locator("#text span")).to_have_text(["a", "b⏎", "c"])
    page.locator("#side").select_option("second text")
    expect(page.locator("#text span")).to_have_text(["x", "y", "z"])
    expect(page.locator("#hover")).to_contain_text("2 “\u2068z\u2069” attends to 1 “\u2068y\u2069”")


# ---- screens ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["heatmap", "lines"])
def test_page_is_redrawn_when_the_reader_s_colours_change(explore, seen, view):
    page = explore(seen, hash=f"view={view}", color_scheme="light")
    frame(page)
    corner = page.locator(f"#{view}").evaluate("canvas => ({x: canvas.width - 3, y: canvas.height - 3})")
    assert pixel(page, corner, f"#{view}") == [255, 255, 255]
    page.emulate_media(color_scheme="dark")
    frame(page)
    assert pixel(page, corner, f"#{view}") == [24, 24, 27]
    assert pixel(page, {"x": 3, "y": 3}, "#overview") == [24, 24, 27]
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(24, 24, 27)"


@pytest.mark.parametrize("hash", ["", "view=lines", "side=2&query=12&key=3", "side=0&layer=1&heads=2&query=12&key=3"])
def test_page_is_no_wider_than_a_phone(explore, seen, tuned, hash):
    page = explore(seen, tuned, hash=hash, viewport={"width": 390, "height": 844})
    frame(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_many_heads_fit_a_phone_and_are_hit_where_they_are_drawn(explore, made):
    page = explore(made(2, 25, 6), head=0, viewport={"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#overview").click(position=thumbnail(page, 1, 24))
    expect(page.locator("#shown")).to_have_text("Layer 1, head 24")


def test_page_fits_a_window_that_becomes_narrow(explore, seen):
    page = explore(seen)
    page.set_viewport_size({"width": 390, "height": 844})
    frame(page)
    box = page.locator("#heatmap").bounding_box()
    assert box["width"] == box["height"] <= 390
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("hash", ["", "view=lines", "first=1", "first=1&query=0&key=0"])
def test_smallest_traces_are_drawn(explore, made, hash):
    page = explore(made(1, 1, 1), hash=hash)
    expect(page.locator("#about")).to_contain_text("1 layer × 1 head, 1 token · ")
    assert page.evaluate(ROWS, [0, 0, 0]) == [[1]]


def test_one_token_attends_to_itself(explore, lab):
    page = explore(trace(lab, "a"))
    page.locator("#text span").click()
    expect(page.locator("#hover")).to_contain_text("attends to 0 “\u2068a\u2069” 1.000")


def test_a_whole_context_is_drawn(explore, lab):
    whole = trace(lab, TEXT * 40, cut=True)
    assert len(whole.tokens) == lab.context
    page = explore(whole, layer=2, head=3)
    for view in ("heatmap", "lines"):
        page.evaluate("view => explorer.change({view})", view)
        frame(page)
        assert colours(page, f"#{view}") > 20, view
    expect(page.locator("#about")).to_contain_text(f"the first {lab.context} of")
    error = np.abs(np.concatenate(page.evaluate(ROWS, [0, 3, 5])) - triangle(whole.attention(3, 5))).max()
    assert error <= bound(page)


def test_a_lone_weight_of_a_long_text_is_seen(explore, made):
    """More tokens than the picture has pixels: a block of weights has the colour of its largest."""
    T = 700
    q, k = torch.zeros(2, 1, 1, T, 4)
    q[0, 0, 601, 0], k[0, 0, 301, 0] = 10, 10
    base = made(1, 1, T)
    page = explore(replace(base, q=q, k=k, v=torch.zeros(1, 1, T, 4)))
    frame(page)
    assert pixel(page, cell(page, 601, 301))[0] > 200  # the yellow end of the map

"""Perplexity in the page: asked for, read, seen word by word, stopped, saved as files."""

import csv
import io
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from gradio_client import Client
from playwright.sync_api import expect

from gpt2lab.app.evaluate import BREAKDOWNS
from gpt2lab.data.sources import cache_folder
from gpt2lab.data.text import articles_of, load_text
from gpt2lab.evaluation.breakdown import surprisals
from gpt2lab.evaluation.evaluate import evaluate
from gpt2lab.evaluation.perplexity import perplexity
from gpt2lab.figures.evaluation import result_table, share_rows
from gpt2lab.model.lab import load_model

PATIENCE = 120_000  # milliseconds: the first model run imports torch
PROTOCOLS = ("sliding", "lm-eval", "blocks")
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"
OWN = f"""
 = {HOSTILE} =

 The emperor penguin is the tallest of living penguins , and it breeds on the sea ice in winter .

 = Tea =

 Tea is made from the leaves of a shrub . It is drunk all over the world , twice a day or more often .
"""


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """The builtin model, what the package makes of the sample's test split, and the cache that it left."""
    cache = tmp_path_factory.mktemp("known")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT2LAB_CACHE", str(cache))
        lab = replace(load_model("builtin"), name="builtin")
        yield SimpleNamespace(lab=lab, cache=cache, evaluation=evaluate(lab, load_text("sample").test, PROTOCOLS))


@pytest.fixture
def scored(known, monkeypatch):
    """The page finds the sample scored, so that it answers at once."""
    monkeypatch.setenv("GPT2LAB_CACHE", str(known.cache))
    return known.evaluation


def open_tab(page):
    page.get_by_role("tab", name="Evaluate").click()


def press(page):
    """Ask, and wait until the note of what was asked before is gone."""
    page.evaluate(
        """() => {
            const note = document.querySelector("#evaluate-note"), before = note.textContent;
            window.noteChanged = !before.trim();
            new MutationObserver((changes, observer) => {
                if (note.textContent === before) return;
                window.noteChanged = true;
                observer.disconnect();
            }).observe(note, {childList: true, subtree: true, characterData: true}); }"""
    )
    page.locator("#evaluate-go").click()
    page.wait_for_function("window.noteChanged", timeout=PATIENCE)


def choose(page, name, option):
    page.locator(f"#evaluate-{name} input").click()
    page.get_by_role("option", name=option).click()


def only(page, *protocols):
    """Check these protocols and no others."""
    for protocol in PROTOCOLS:
        page.locator("#evaluate-protocols").get_by_label(protocol).set_checked(protocol in protocols)


def settings(page, **values):
    if not page.locator("#evaluate-context").is_visible():
        page.locator("#evaluate-more button").first.click()
        page.wait_for_timeout(500)  # fields that have just been made are given their values once more
    for name, value in values.items():
        field = page.locator(f"#evaluate-{name} input, #evaluate-{name} textarea")
        field.fill(value)
        field.blur()
        expect(field).to_have_value(value)


def expect_note(page, pattern):
    """The note's own text: gradio's status beside it is hidden, and after a stop may say "Error" there."""
    expect(page.locator("#evaluate-note [data-testid=markdown]")).to_contain_text(re.compile(pattern), timeout=PATIENCE)


def evaluated(page):
    """Evaluate the sample by all protocols, and wait until the last view is there."""
    open_tab(page)
    only(page, *PROTOCOLS)
    choose(page, "data", "sample")
    settings(page, stride="0", quick="0", context="0")
    press(page)
    expect_note(page, "builtin on sample, test split, scored in")
    expect(page.locator("#evaluate-words iframe").first).to_be_visible(timeout=PATIENCE)


def table(page, name):
    """The head and the rows of a table, as text."""
    lines = page.locator(f"#evaluate-{name}").get_by_role("row").all()
    cells = "[role=columnheader], [role=gridcell]"
    return [[cell.inner_text().strip("⋮ \n") for cell in line.locator(cells).all()] for line in lines]


def expect_rows(page, name, rows):
    """Wait until a table holds these rows, and no others, below its head."""
    wanted = [[cell.strip() for cell in row] for row in rows]
    deadline = time.monotonic() + PATIENCE / 1000
    while (found := table(page, name)[1:]) != wanted and time.monotonic() < deadline:
        page.wait_for_timeout(100)
    assert found == wanted


def frame_text(page):
    return page.frame_locator("#evaluate-words iframe").first.locator(".text")


def shown(text):
    """A document's text as a frame shows it, all white space alike."""
    return " ".join(text.replace("⏎", " ").split())


def document_text(evaluation, protocol, number):
    return shown("".join(piece for piece, _ in surprisals(evaluation.of(protocol)[0], number)))


def picture_size(page, name):
    picture = page.locator(f"#evaluate-{name} img")
    picture.evaluate("image => image.scrollIntoView()")  # a picture out of view is not loaded
    expect(picture).to_be_visible(timeout=PATIENCE)
    page.wait_for_function(
        "name => document.querySelector(`#evaluate-${name} img`).naturalWidth > 0", arg=name, timeout=PATIENCE
    )
    return picture.evaluate("image => [image.naturalWidth, image.naturalHeight]")


def corner(page, name):
    """The brightness of the first pixel of a picture, 0 to 255."""
    picture_size(page, name)
    return page.locator(f"#evaluate-{name} img").evaluate(
        """async image => {
            await image.decode();
            const canvas = document.createElement("canvas");
            canvas.width = canvas.height = 1;
            const context = canvas.getContext("2d");
            context.drawImage(image, 0, 0, 1, 1, 0, 0, 1, 1);
            return context.getImageData(0, 0, 1, 1).data[0];
        }"""
    )


def toast(page):
    return page.locator("[data-testid=toast-body]")


def test_evaluate_shows_the_package_s_own_numbers(page, known):
    assert cache_folder() != known.cache  # the page scores for itself
    evaluated(page)
    results = [("builtin", perplexity(known.lab, load_text("sample").test, protocol=name)) for name in PROTOCOLS]
    expect_rows(page, "table", result_table(results)[1])
    assert f"{known.evaluation.results[0][1].perplexity:.2f}" in table(page, "table")[1]
    assert table(page, "table")[0][1:] == list(PROTOCOLS)
    for _, result in results:
        expect(page.locator("#evaluate-meaning")).to_contain_text(f"{result.protocol}: {result.described}")
    width, height = picture_size(page, "figure")
    assert width > 500
    assert height > 200
    picture_size(page, "shares")
    shares = known.evaluation.shares("part", "sliding")["builtin"]
    assert len(shares) == 3
    expect_rows(page, "share-table", share_rows(shares))
    assert page.locator("#evaluate-words iframe").get_attribute("sandbox") == "allow-scripts allow-downloads"
    assert shown(frame_text(page).inner_text()) == document_text(known.evaluation, "sliding", 0)
    frame = page.frame_locator("#evaluate-words iframe")
    assert frame.locator(".text span.none").count() > 1
    dearest = max((nll for _, nll in surprisals(known.evaluation.scored[0], 0) if nll is not None))
    expect(frame.locator("td").nth(1)).to_have_text(f"{dearest:.2f}")


def test_documents_protocols_breakdowns_and_files_are_those_asked_for(page, scored):
    evaluated(page)
    page.locator("#evaluate-protocol").get_by_label("sliding").check()
    for number, title in ((3, "Windmill"), (0, "Emperor penguin")):
        choose(page, "document", title)
        expect(frame_text(page)).to_contain_text(f"= {title} =", timeout=PATIENCE)
        assert shown(frame_text(page).inner_text()) == document_text(scored, "sliding", number)
    page.locator("#evaluate-protocol").get_by_label("lm-eval").check()
    expect_rows(page, "share-table", share_rows(scored.shares("part", "lm-eval")["builtin"]))
    expect(frame_text(page)).to_contain_text("= Emperor penguin =", timeout=PATIENCE)
    assert shown(frame_text(page).inner_text()) == document_text(scored, "lm-eval", 0)
    for label, name in BREAKDOWNS.items():
        before = page.locator("#evaluate-shares img").get_attribute("src")
        if label == "Part":
            continue
        page.locator("#evaluate-by").get_by_label(label).check()
        expect_rows(page, "share-table", share_rows(scored.shares(name, "lm-eval")["builtin"]))
        expect(page.locator("#evaluate-shares img")).not_to_have_attribute("src", before, timeout=PATIENCE)
    page.locator("#evaluate-by").get_by_label("Part").check()
    assert_files(page, scored)
    page.locator("#evaluate-stop").click()  # says nothing where nothing is under way
    page.wait_for_timeout(300)
    expect_note(page, "builtin on sample, test split, scored in")


def assert_files(page, scored):
    """Every kind of file holds the numbers of the evaluation."""
    files = {}
    for kind, name in (
        ("figures, CSV", "perplexity.csv"),
        ("figures, JSON", "perplexity.json"),
        ("loss of every token, CSV", "perplexity.tokens.csv"),
        ("all on a page", "perplexity.html"),
    ):
        page.locator("#evaluate-kind").get_by_label(kind).check()
        page.locator("#evaluate-save").click()
        box = page.locator("#evaluate-file")
        expect(box.locator(f'a[download="{name}"]').first).to_be_visible(timeout=PATIENCE)
        with page.expect_download() as download:
            box.locator("a").first.click()
        files[name] = Path(download.value.path()).read_text(encoding="utf-8")
    results = scored.results
    rows = list(csv.DictReader(io.StringIO(files["perplexity.csv"])))
    assert [(row["protocol"], float(row["perplexity"])) for row in rows] == [
        (name, pytest.approx(result.perplexity)) for name, (_, result) in zip(PROTOCOLS, results)
    ]
    record = json.loads(files["perplexity.json"])
    assert record["data"] == "sample, test split"
    assert [line["nll"] for line in record["results"]] == [pytest.approx(result.nll) for _, result in results]
    tokens = list(csv.DictReader(io.StringIO(files["perplexity.tokens.csv"])))
    assert sum(float(row["nll"] or 0) for row in tokens) == pytest.approx(results[1][1].nll, rel=1e-5)
    assert list(dict.fromkeys(row["document"] for row in tokens)) == [a.title for a in load_text("sample").test]
    assert f"<td>{results[2][1].perplexity:.2f}</td>" in files["perplexity.html"]


def test_own_text_is_evaluated_and_nothing_in_it_is_obeyed(page, known):
    open_tab(page)
    only(page, "lm-eval")
    choose(page, "data", "your own text")
    settings(page, text=OWN)
    press(page)
    expect_note(page, "scored in")
    result = perplexity(known.lab, articles_of(OWN, "your own text"), protocol="lm-eval")
    expect_rows(page, "table", result_table([("builtin", result)])[1])
    expect(frame_text(page)).to_contain_text(f"= {HOSTILE} =", timeout=PATIENCE)
    page.locator("#evaluate-by").get_by_label("Document").check()
    expect(page.locator("#evaluate-share-table")).to_contain_text(HOSTILE, timeout=PATIENCE)
    assert page.locator("#evaluate-share-table img, #evaluate-words img, #evaluate-document img").count() == 0
    assert page.frame_locator("#evaluate-words iframe").locator("img, script").count() == 0
    page.locator("#evaluate-document input").click()
    expect(page.get_by_role("option", name="Tea")).to_be_visible()
    assert page.get_by_role("option").locator("img").count() == 0


def test_stop_says_so_keeps_what_was_scored_and_frees_the_button(page):
    open_tab(page)
    only(page, "sliding")
    choose(page, "data", "sample")
    settings(page, stride="1", quick="0")
    press(page)
    expect_note(page, r"builtin, sliding: [\d,]*[1-9][\d,]* of 5,\d+ windows, .* left")
    assert not list(cache_folder().rglob("*.npz"))
    page.locator("#evaluate-stop").click()
    expect_note(page, r"^\s*Stopped\. Finished windows are stored")
    page.wait_for_timeout(700)
    expect_note(page, r"^\s*Stopped\.")
    assert (
        page.locator("#evaluate-note [data-testid=status-tracker]").evaluate("e => getComputedStyle(e).opacity") == "0"
    )
    assert page.get_by_test_id("toast-body").count() == 0
    assert len(list(cache_folder().rglob("*.npz"))) == 1
    page.locator("#evaluate-stride input").fill("0")
    page.locator("#evaluate-quick input").fill("1")
    press(page)
    expect_note(page, "scored in")
    expect(page.locator("#evaluate-meaning")).to_contain_text("a sample of 1 of 6 articles")


def test_bad_input_is_one_toast_with_the_package_s_line(page):
    open_tab(page)
    choose(page, "data", "sample")
    settings(page, stride="0", context="4096")
    only(page, "sliding")
    for change, message in (
        (lambda: None, "context 4096 is out of range; use a whole number from 2 to 512"),
        (
            lambda: choose(page, "other", "builtin"),
            "models builtin, builtin: give one, or two different ones to compare",
        ),
    ):
        change()
        page.locator("#evaluate-go").click()
        expect(toast(page).last).to_contain_text(message, timeout=PATIENCE)
        page.wait_for_timeout(300)
        assert toast(page).get_by_text(message).count() == 1, message
        expect(page.locator("#evaluate-note")).not_to_contain_text("Reading the text")
    choose(page, "other", "no second model")
    settings(page, context="0")


def test_figures_and_words_have_the_colours_of_a_dark_page_and_fit_a_phone(open_page, scored):
    page = open_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
    open_tab(page)
    press(page)
    expect_note(page, "scored in")
    for by in ("Part", "Document"):
        page.locator("#evaluate-by").get_by_label(by).check()
        expect(page.locator("#evaluate-share-table")).to_contain_text({"Part": "heading", "Document": "Windmill"}[by])
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, by
    for name in ("figure", "shares"):
        assert corner(page, name) < 60, name
        box = page.locator(f"#evaluate-{name} img").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    paper = page.frame_locator("#evaluate-words iframe").locator("body")
    colour = paper.evaluate("body => getComputedStyle(body).backgroundColor")
    assert int(re.search(r"\d+", colour)[0]) < 60
    assert paper.evaluate("body => body.scrollWidth <= body.clientWidth + 1")


@pytest.fixture(scope="module")
def client(app_url):
    return Client(app_url, verbose=False)


def test_bad_question_over_http_is_refused(client):
    good = {"model": "builtin", "dark": False, "other": "no second model", "data": "sample", "split": "test"}
    good |= {
        "protocols": ["sliding"],
        "context": 0,
        "stride": 0,
        "quick": 1,
        "seed": 0,
        "text": "",
        "precision": "fp32",
    }
    for change, message in (
        ({"model": "/etc"}, "not in the list|is unknown"),
        ({"other": "../../x"}, "not in the list|is unknown"),
        ({"data": "/etc/passwd"}, "not in the list|is unknown"),
        ({"split": "nope"}, "not in the list|unknown"),
        ({"protocols": ["sliding", "x"]}, "not in the list|unknown"),
        ({"quick": -1}, "quick -1 is out of range"),
    ):
        with pytest.raises(Exception, match=message):
            pytest.fail(f"{change}: {client.predict(*(good | change).values(), api_name='/evaluate')}")


def test_nobody_sees_an_evaluation_that_is_not_their_own(client, page, scored):
    evaluated(page)
    for name, values in (
        ("hard_0", ["sliding", "Part", False]),
        ("by", ["sliding", "Part", False]),
        ("words", ["sliding", None, False]),
        ("file", ["sliding", "Part", "figures, CSV"]),
    ):
        with pytest.raises(Exception, match=r"no evaluation here|not in the list"):
            client.predict(*values, api_name=f"/evaluate_{name}")

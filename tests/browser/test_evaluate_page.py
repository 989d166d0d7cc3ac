"""Perplexity in the page: asked for, read, seen word by word, stopped, saved as files."""

import csv
import io
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import expect

from gpt2lab.data.sources import cache_folder
from gpt2lab.data.text import articles_of, load_text
from gpt2lab.evaluation.breakdown import surprisals
from gpt2lab.evaluation.evaluate import evaluate
from gpt2lab.evaluation.perplexity import perplexity
from gpt2lab.figures.evaluation import result_table, share_rows
from gpt2lab.model.lab import load_model

PATIENCE = 120_000  # milliseconds: the first model run imports torch
PROTOCOLS = ("sliding", "lm-eval", "blocks")
BREAKDOWNS = {"Position in the window": "position", "Frequency": "frequency", "Document": "document", "Part": "part"}
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
    """Open the tab; when it is opened for the first time, wait until the example is there."""
    page.get_by_role("tab", name="Evaluate").click()
    expect_note(page, r"scored in|Stopped|^\s*$")


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
    page.locator(f"#{name} input").click()
    page.get_by_role("option", name=option, exact=True).click()


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
    choose(page, "evaluate-data", "sample")
    settings(page, stride="0", quick="0", context="0")
    press(page)
    expect_note(page, "builtin on sample, test split, scored in")
    expect(page.locator("#evaluate-words iframe").first).to_be_visible(timeout=PATIENCE)


def table(page, name):
    """The rows of a table below its head, as text."""
    lines = page.locator(f"#evaluate-{name} table").first.locator("tbody tr").all()
    return [line.locator("th, td").all_inner_texts() for line in lines]


def expect_rows(page, name, rows):
    """Wait until a table holds these rows, and no others, below its head."""
    wanted = [[cell.strip() for cell in row] for row in rows]
    deadline = time.monotonic() + PATIENCE / 1000
    while (found := table(page, name)) != wanted and time.monotonic() < deadline:
        page.wait_for_timeout(100)
    assert found == wanted


def expect_figures(page, results):
    """Wait until the table on top has the numbers of these results, a row each."""
    for row, result in enumerate(results):
        cells = page.locator("#evaluate-table tbody tr").nth(row)
        for number in (f"{result.perplexity:,.2f}", f"{result.word_perplexity:,.2f}", f"{result.bits_per_byte:.4f}"):
            expect(cells).to_contain_text(number, timeout=PATIENCE)
        expect(cells).to_contain_text(result.described)


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
    expect_figures(page, [perplexity(known.lab, load_text("sample").test, protocol=name) for name in PROTOCOLS])
    assert page.locator("#evaluate-table tbody tr").count() == len(PROTOCOLS)
    page.locator("#evaluate-details button").first.click()
    width, height = picture_size(page, "figure")
    assert width > 500
    assert height > 200
    expect_rows(page, "details", result_table(known.evaluation.results)[1])
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
        choose(page, "evaluate-document", title)
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
        ("Figures, CSV", "perplexity.csv"),
        ("Figures, JSON", "perplexity.json"),
        ("Loss of every token, CSV", "perplexity.tokens.csv"),
        ("Everything, HTML page", "perplexity.html"),
    ):
        choose(page, "evaluate-kind", kind)
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
    choose(page, "evaluate-data", "Your own text")
    settings(page, text=OWN)
    press(page)
    expect_note(page, "scored in")
    result = perplexity(known.lab, articles_of(OWN, "your own text"), protocol="lm-eval")
    expect_figures(page, [result])
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
    choose(page, "evaluate-data", "sample")
    settings(page, stride="1", quick="0")
    press(page)
    expect_note(page, r"builtin, sliding: [\d,]*[1-9][\d,]* of 5,\d+ windows, .* left")
    before = len(list(cache_folder().rglob("*.npz")))
    page.locator("#evaluate-stop").click()
    expect_note(page, r"^\s*Stopped\. Finished windows are stored")
    page.wait_for_timeout(700)
    expect_note(page, r"^\s*Stopped\.")
    assert (
        page.locator("#evaluate-note [data-testid=status-tracker]").evaluate("e => getComputedStyle(e).opacity") == "0"
    )
    assert page.get_by_test_id("toast-body").count() == 0
    assert len(list(cache_folder().rglob("*.npz"))) == before + 1
    page.locator("#evaluate-stride input").fill("0")
    page.locator("#evaluate-quick input").fill("1")
    press(page)
    expect_note(page, "scored in")
    expect(page.locator("#evaluate-table")).to_contain_text("a sample of 1 of 6 articles")


def test_bad_input_is_one_toast_with_the_package_s_line(page):
    open_tab(page)
    choose(page, "evaluate-data", "sample")
    settings(page, stride="0", context="4096")
    only(page, "sliding")
    for change, message in (
        (lambda: None, "context 4096 is out of range; use a whole number from 2 to 512"),
        (lambda: settings(page, context="0", quick="-1"), "quick -1 is out of range; use a whole number from 1 to"),
    ):
        change()
        page.locator("#evaluate-go").click()
        expect(toast(page).last).to_contain_text(message, timeout=PATIENCE)
        page.wait_for_timeout(300)
        assert toast(page).get_by_text(message).count() == 1, message
        expect(page.locator("#evaluate-note")).not_to_contain_text("Reading the text")
    settings(page, quick="0")


def test_the_same_model_chosen_twice_is_one(page, scored):
    open_tab(page)
    choose(page, "compare", "builtin")
    evaluated(page)
    expect_figures(page, [result for _, result in scored.results])
    assert page.locator("#evaluate-table tbody tr").count() == len(PROTOCOLS)
    expect(page.locator("#evaluate-verdict")).to_be_hidden()
    choose(page, "compare", "no second model")


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
    page.locator("#evaluate-details button").first.click()
    for name in ("figure", "shares"):
        assert corner(page, name) < 60, name
        box = page.locator(f"#evaluate-{name} img").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    paper = page.frame_locator("#evaluate-words iframe").locator("body")
    colour = paper.evaluate("body => getComputedStyle(body).backgroundColor")
    assert int(re.search(r"\d+", colour)[0]) < 60
    assert paper.evaluate("body => body.scrollWidth <= body.clientWidth + 1")


def post(url, session, fn_index, data):
    """What the server answers to a handler called by its number, as a script would: {"success": …, "output": …}."""
    body = json.dumps({"data": data, "fn_index": fn_index, "session_hash": session}).encode()
    request = Request(f"{url}gradio_api/queue/join", body, {"Content-Type": "application/json"})
    urlopen(request).read()
    with urlopen(f"{url}gradio_api/queue/data?session_hash={session}") as stream:
        for line in stream:
            message = json.loads(line.removeprefix(b"data: ")) if line.startswith(b"data: ") else {}
            if message.get("msg") in ("process_completed", "unexpected_error"):
                return message
    return {}


def handler(url, elem_id, event="click"):
    """The number of the handler of a component's event."""
    config = json.load(urlopen(f"{url}config"))
    [component] = [c["id"] for c in config["components"] if c["props"].get("elem_id") == elem_id]
    return next(d["id"] for d in config["dependencies"] if [component, event] in d["targets"] and d["backend_fn"])


def test_bad_question_over_http_is_refused(app_url):
    good = {"model": "builtin", "compare": "no second model", "dark": False, "data": "sample", "split": "test"}
    good |= {"protocols": ["sliding"]} | dict.fromkeys(("context", "stride", "seed"), 0)
    good |= {"quick": 1, "precision": "fp32", "text": ""}
    order = "model compare dark data split protocols context stride quick seed precision text".split()
    number = handler(app_url, "evaluate-go")
    for change, message in (
        ({"model": "/etc"}, "not in the list|is unknown"),
        ({"compare": "../../x"}, "not in the list|is unknown"),
        ({"data": "/etc/passwd"}, "not in the list|is unknown"),
        ({"split": "nope"}, "not in the list|unknown"),
        ({"protocols": ["sliding", "x"]}, "not in the list|unknown"),
        ({"quick": -1}, "quick -1 is out of range"),
    ):
        answer = post(app_url, f"stranger-{next(iter(change))}", number, [(good | change)[name] for name in order])
        assert not answer["success"], change
        assert re.search(message, answer["output"]["error"]), (change, answer)


def test_nobody_sees_an_evaluation_that_is_not_their_own(app_url, page, scored):
    evaluated(page)
    answer = post(app_url, "stranger", handler(app_url, "evaluate-save"), [None, None, "part", "csv"])
    assert not answer["success"]
    assert re.search("no evaluation here|not in the list", answer["output"]["error"])

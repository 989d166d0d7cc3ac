import csv
import html
import io
import json
import re
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Tokenizer

from gpt2lab.app import evaluate as tab_module
from gpt2lab.app import evaluate_content, evaluate_scoring
from gpt2lab.app.bar import build_bar
from gpt2lab.app.download import Downloads
from gpt2lab.app.evaluate import PROTOCOLS, build_evaluate_tab
from gpt2lab.app.evaluate_content import BREAKDOWNS, FILES, verdict_lines
from gpt2lab.app.evaluate_scoring import OWN, progress_lines
from gpt2lab.app.events import ALONE, escaped
from gpt2lab.app.models import ModelStore
from gpt2lab.app.results import ResultCache
from gpt2lab.data.sources import DATA, cache_folder
from gpt2lab.data.text import articles_of, load_text
from gpt2lab.evaluation import scorer
from gpt2lab.evaluation.breakdown import surprisals
from gpt2lab.evaluation.comparison import Comparison
from gpt2lab.evaluation.evaluate import evaluate
from gpt2lab.figures.evaluation import meaning_lines, result_table, share_rows
from gpt2lab.model.lab import Lab

TEXT = """
 = Moon =
 \n The moon goes around the earth , and the sea follows it twice a day .
 \n = = Other side = =
 \n Nobody could say what it would look like ( when it was seen for the first time ) .
 \n = Sea =
 \n The sea 's tide : twice a day ; and the moon pulls .
 \n = Earth =
 \n It was a small world .
"""
TEXT = "".join(f"{line} \n" if line.strip() else " \n" for line in TEXT.splitlines())  # as in WikiText's files
TITLES = ["Moon", "Sea", "Earth"]
SHARES = ["Part", "Tokens", "Perplexity", "Nats per token", "Share of the loss"]
PLACES = ("key", "running", "note", "verdict", "table", "views", "protocol", "file", "figure", "details")
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> & \"'"
GOOD = {
    "data": OWN,
    "split": "test",
    "protocols": ["sliding"],
    "context": 16,
    "stride": 0,
    "quick": 0,
    "seed": 0,
    "text": TEXT,
    "precision": "fp32",
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Matrices this small are no faster on two threads, and far slower where something else runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def labs(tiny_lab, random_lab, random_gpt2, tmp_path_factory):
    """Models by the label that they are offered under; distilgpt2's has a tokenizer of its own."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["some other words of another kind"], vocab_size=270, min_frequency=1, show_progress=False)
    vocab, merges = bpe.save_model(str(tmp_path_factory.mktemp("other")))
    other = GPT2Tokenizer(vocab=vocab, merges=merges)
    return {
        "builtin": tiny_lab,
        "gpt2": random_lab(1),
        "distilgpt2": Lab(random_gpt2(2, vocab_size=len(other)), other, "random"),
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(page, results): a page takes a while to build."""
    results = ResultCache(ModelStore(tmp_path_factory.mktemp("built") / "runs"))
    with gr.Blocks(analytics_enabled=False) as demo:
        bar = build_bar(demo, results.store, Downloads())
        with gr.Tab("Evaluate") as tab:
            build_evaluate_tab(tab, results, bar, Downloads())
    return demo, results


@pytest.fixture
def drawn():
    """For tests of pictures: `tab` draws none for the others, whose evaluations would take most of their time for it."""


@pytest.fixture
def tab(tmp_path, monkeypatch, labs, built, request):
    """The tab, its results empty, with tiny models; `run` asks for GOOD with changes, `keep` runs it and gives its key."""
    if "drawn" not in request.fixturenames:
        for module in (tab_module, evaluate_content):
            monkeypatch.setattr(module, "as_image", lambda figure: None)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setattr("gpt2lab.app.models.load_model", lambda location: labs.get(location, labs["gpt2"]))
    demo, results = built
    results.__init__(ModelStore(tmp_path / "runs"))
    events = {event.fn.__name__: event for event in demo.fns.values() if event.fn}
    names = {component: name for name, component in zip(PLACES, events["evaluate"].outputs)}

    def run(label="builtin", dark=False, other=ALONE, **changes):
        asked = GOOD | changes
        values = [asked[component.elem_id.removeprefix("evaluate-")] for component in events["evaluate"].inputs[3:]]
        for step in events["evaluate"].fn(label, other, dark, *values):
            yield {names[place]: value for place, value in step.items()}

    def example(key=None, running=False, label="builtin", compare=ALONE):
        return [
            {names[place]: value for place, value in step.items()}
            for step in events["example"].fn(key, running, label, compare, False)
        ]

    def result(*asked, **changes):
        *_, last = run(*asked, **changes)
        return last

    def keep(*asked, **changes):
        return result(*asked, **changes)["key"]

    def make_file(key, protocol, kind, by="part"):
        return events["make_file"].fn(key, protocol, by, kind)

    handlers = {"hard": "show_shares", "hard_by": "show_breakdown", "words": "show_document"}
    handlers = {name: events[end].fn for name, end in handlers.items()}
    return SimpleNamespace(
        results=results,
        events=events,
        run=run,
        example=example,
        result=result,
        keep=keep,
        make_file=make_file,
        **handlers,
    )


@pytest.fixture
def slow(monkeypatch):
    """A window at a time, and every one of them shown."""
    monkeypatch.setattr(scorer, "TOKENS_AT_ONCE", {"cpu": 16})
    monkeypatch.setattr(evaluate_scoring, "DRAW_SECONDS", -1.0)


def expected(labs, *labels, text=TEXT, protocols=("sliding",), context=16, **options):
    """What the package itself makes of GOOD."""
    named = [replace(labs[label], name=label) for label in labels]
    return evaluate(named, articles_of(text, "your own text"), protocols, context=context, **options)


def cells(source):
    """Head and rows of the first table of some HTML, as text."""
    lines = re.findall("<tr>(.*?)</tr>", source.partition("</table>")[0])
    head, *rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in lines]
    return head, [[html.unescape(cell) for cell in row] for row in rows]


def assert_figures(source, results, several=False):
    """The table on top has each number of the results, its interval below it, and what it means at the head."""
    text = " ".join(html.unescape(re.sub("<[^>]*>", " ", source)).split())
    assert "exp of the mean loss per token" in text
    for model, r in results:
        low, high = r.interval
        shown = f"{r.perplexity:,.2f} {low:,.1f} to {high:,.1f} {r.word_perplexity:,.2f}"
        assert (f"{model} {shown}" if several else f"{r.protocol} {shown}") in text
        assert all(line in text for line in (r.described, *r.cautions))


def meanings(step):
    return [html.unescape(line) for line in re.findall("<li>(.*?)</li>", step["details"])]


def scored_text(iframes):
    """The text of each frame, without marks for newlines, and its heading."""
    found = []
    for source in re.findall(r'<iframe sandbox="allow-scripts allow-downloads" srcdoc="([^"]*)"', iframes):
        document = html.unescape(source)
        body = document.partition('<div class="text">')[2].partition("</div>")[0]
        text = html.unescape(re.sub(r"<[^>]*>", "", body)).replace("⏎\n", "\n")
        found.append((html.unescape(re.search("<h3>(.*?)</h3>", document, re.DOTALL)[1]), text))
    return found


@contextmanager
def refused(line):
    """What is done here ends in a toast with this short line."""
    with pytest.raises(gr.Error) as caught:
        yield
    assert re.search(line, caught.value.message)
    assert len(caught.value.message) < 300
    assert caught.value.print_exception is False


def content_of(component):
    return Path(component.value["path"]).read_bytes()


def corner(picture):
    return picture.convert("L").getpixel((0, 0))


# evaluating


def test_progress_is_shown_window_by_window_and_then_the_result(tab, labs, slow):
    start, *progress, last = tab.run()
    windows = len(expected(labs, "builtin").scored[0].tokenized.windows)
    assert windows > 5
    assert all(set(step) == {"note"} for step in progress)
    notes = [step["note"] for step in progress]
    assert set(start) == {"note", "running", "file"}  # what was there before stays until there is something new
    assert (start["note"], start["running"]) == ("Reading the text …", True)
    matches = [re.fullmatch(r"builtin, sliding: (\d+) of (\d+) windows(, \d+ s left)?", note) for note in notes]
    assert [int(match[1]) for match in matches] == list(range(windows + 1))
    assert {int(match[2]) for match in matches} == {windows}
    assert [bool(match[3]) for match in matches] == [False, *[True] * (windows - 1), False]
    assert re.fullmatch(r"\*\*builtin on your own text\*\*, scored in \d+ s\.", last["note"])
    assert (set(last), last["running"]) == (set(PLACES) - {"file"}, False)


def test_opened_tab_scores_the_built_in_model_on_the_sample_once(tab, monkeypatch):
    monkeypatch.setattr(
        evaluate_scoring, "load_text", lambda name: replace(load_text(name), test=load_text(name).test[:2])
    )
    *_, last = tab.example()
    assert "builtin on sample, test split" in last["note"]
    assert last["protocol"].value == "sliding"
    for changed in ({"key": last["key"]}, {"running": True}, {"label": "gpt2"}, {"compare": "builtin"}):
        assert tab.example(**changed) == [{"note": gr.skip()}]  # all views stay
    assert tab.result(other="builtin")["note"].startswith("**builtin on")  # the same model twice is one model
    assert tab.hard(None, "sliding", "part", False) == (gr.skip(),) * 3
    assert tab.words(None, "sliding", 0, False) == gr.skip()


def test_model_runs_with_the_lock_held_and_visitors_get_their_turn_between(tab, slow, monkeypatch):
    held, real = [], scorer.token_nll
    monkeypatch.setattr(
        scorer,
        "token_nll",
        lambda *args, **options: held.append(tab.results.store.lock.locked()) or real(*args, **options),
    )
    for _ in tab.run():
        assert not tab.results.store.lock.locked()
    assert len(held) > 5
    assert all(held)


def test_table_and_meanings_are_those_of_the_evaluation(tab, labs):
    last = tab.result(protocols=["sliding", "blocks"], stride=8)
    results = expected(labs, "builtin", protocols=["sliding", "blocks"], stride=8).results
    head, rows = cells(last["details"])
    assert head == ["", "sliding", "blocks"]
    assert rows == [list(row) for row in result_table(results)[1]]
    assert rows[0][:2] == ["perplexity", f"{results[0][1].perplexity:,.2f}"]
    assert meanings(last) == list(meaning_lines(results))
    assert not last["verdict"].visible
    assert_figures(last["table"], results)
    assert last["views"].visible
    assert [value for _, value in last["protocol"].choices] == ["sliding", "blocks"]
    assert last["protocol"].value == "sliding"


def test_every_protocol_is_scored_in_the_order_asked(tab):
    last = tab.result(protocols=["blocks", "lm-eval", "sliding"])
    head, _ = cells(last["details"])
    assert head == ["", "blocks", "lm-eval", "sliding"]


def test_second_model_is_compared_with_the_first(tab, labs):
    last = tab.result(other="gpt2", protocols=["sliding", "lm-eval"])
    made = expected(labs, "builtin", "gpt2", protocols=["sliding", "lm-eval"])
    lines = last["verdict"].value.split("\n\n")
    assert lines == verdict_lines(made).split("\n\n")
    assert [re.match(r"\*\*(.*?)\*\*", line)[1] for line in lines] == [c.protocol for c in made.comparisons]
    assert len(made.comparisons) == 2
    assert_figures(last["table"], made.results, several=True)
    head, rows = cells(last["details"])
    assert head == ["", "builtin", "gpt2"]
    assert rows == [list(row) for row in result_table(made.results)[1]]
    assert made.results[0][1].perplexity != made.results[1][1].perplexity


def test_model_of_a_run_is_compared_and_its_name_is_no_markdown(tab, labs):
    folder = tab.results.store.runs_dir / "a_run_of_mine" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    last = tab.result(other="a_run_of_mine")
    [comparison] = expected(labs | {"a_run_of_mine": labs["gpt2"]}, "builtin", "a_run_of_mine").comparisons
    assert f"{comparison.better_in:,} of {comparison.n_documents:,} documents" in last["verdict"].value
    assert r"a\_run\_of\_mine" in last["verdict"].value
    assert cells(last["details"])[0][2] == "a_run_of_mine"  # a table shows text as it is


def test_defaults_of_the_page_evaluate_the_sample_s_test_split(tab, labs, monkeypatch):
    defaults = {c.elem_id.removeprefix("evaluate-"): c.value for c in tab.events["evaluate"].inputs[3:]}
    assert defaults | {"text": TEXT, "data": OWN, "protocols": ["sliding"], "context": 16} == GOOD
    assert (defaults["data"], defaults["protocols"]) == ("sample", list(PROTOCOLS))
    key = tab.keep(**defaults | {"protocols": ["lm-eval"]})
    _, _, documents = tab.hard(key, "lm-eval", "part", False)
    assert [title for title, _ in documents.choices] == [article.title for article in load_text("sample").test]


@pytest.mark.parametrize("split", ["validation", "train"])
def test_split_that_is_asked_for_is_the_one_that_is_read(tab, labs, split):
    key = tab.keep(data="sample", split=split, quick=1, seed=3)
    [document] = tab.results.evaluation(key).evaluation.scored[0].tokenized.documents
    assert document.title in [article.title for article in load_text("sample").split(split)]


def test_sample_of_articles_is_drawn_by_its_seed_and_said(tab):
    drawn = {}
    for seed in (0, 1, 2, 3):
        last = tab.result(quick=2, seed=seed)
        documents = [d.title for d in tab.results.evaluation(last["key"]).evaluation.scored[0].tokenized.documents]
        assert "a sample of 2 of 3 articles" in last["table"]
        assert documents == sorted(set(documents), key=TITLES.index)
        assert len(documents) == 2
        drawn[seed] = documents
    assert len(set(map(tuple, drawn.values()))) > 1
    assert "a sample of" not in tab.result()["table"]


def test_figure_is_dark_on_a_dark_page(drawn, tab):
    light, dark = (tab.result(dark=dark)["figure"] for dark in (False, True))
    assert corner(light) == 255
    assert corner(dark) < 50
    assert light.size == dark.size


@pytest.mark.parametrize("dark", [None, "yes", 1, [True]])
def test_only_true_is_dark(drawn, tab, dark):
    assert corner(tab.result(dark=dark)["figure"]) == 255


# what is refused


REFUSED = {
    "unknown model": ({"label": "../secret"}, r"model '\.\./secret' is unknown; use builtin, gpt2"),
    "no model": ({"label": None}, r"model None is unknown"),
    "unknown second model": ({"other": "/etc"}, r"model '/etc' is unknown"),
    "list of models": ({"other": ["gpt2"]}, r"is unknown"),
    "unknown text": ({"data": "/etc/passwd"}, r"text '/etc/passwd' is unknown; use sample, repeated, wikitext"),
    "no text": ({"data": None}, r"text None is unknown"),
    "text that load_text knows": ({"data": "auto"}, r"text 'auto' is unknown"),
    "long name of a text": ({"data": "x" * 9999}, r"^text 'x{79} is unknown"),
    "unknown split": ({"data": "sample", "split": "nope"}, r"split 'nope' is unknown; use train, validation, test"),
    "no split": ({"data": "sample", "split": None}, r"split None is unknown"),
    "unknown protocol": ({"protocols": ["sliding", "mine"]}, r"protocol 'mine' is unknown; use sliding, lm-eval, blocks"),
    "no protocol": ({"protocols": []}, r"no protocol is named; use sliding, lm-eval, blocks or all"),
    "stride without sliding": ({"protocols": ["lm-eval"], "stride": 4}, r"stride 4 is of sliding windows, and lm-eval has none"),
    "stride past the context": ({"stride": 17}, r"stride 17 is out of range; use a whole number from 1 to 16"),
    "context past the model's": ({"context": 65}, r"context 65 is out of range; use a whole number from 2 to 64"),
    "context of one": ({"context": 1}, r"context 1 is out of range"),
    "empty text": ({"text": ""}, r"your own text is empty; type or paste some under More settings"),
    "blank text": ({"text": " \n\t "}, r"your own text is empty"),
    "text that is none": ({"text": None}, r"your own text is empty"),
    "text of bytes": ({"text": b"The moon"}, r"your own text is empty"),
    "text of lines": ({"text": ["The moon"]}, r"your own text is empty"),
    "long text": ({"text": "a" * 1_000_001}, r"your own text has 1,000,001 characters; the limit is 1,000,000"),
    "one token": ({"text": "a"}, r"the text has only 1 of the 2 tokens that perplexity needs"),
    "half a character": ({"text": "The moon \ud83c is small."}, r"half a character|lone surrogate"),
    "text shorter than a block": ({"text": "The moon", "protocols": ["blocks"]}, r"no 1,000 rows of it a block of 16"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_question_is_answered_with_the_package_s_own_line(tab, case):
    changes, line = REFUSED[case]
    with refused(line):
        tab.result(**changes)
    assert not tab.results.store.lock.locked()


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), 1.5, "x", True, [4], 2**70])
@pytest.mark.parametrize("name", ["context", "stride", "quick", "seed"])
def test_number_that_is_nonsense_is_refused_by_its_name(tab, name, value):
    sampled = {"quick": 1} if name == "seed" else {}
    with refused(rf"^{name} {re.escape(repr(value))} is out of range; use a whole number from"):
        tab.result(**sampled | {name: value})


@pytest.mark.parametrize("nothing", [0, None, ""])
def test_number_left_at_nothing_is_the_package_s_own_choice(tab, labs, nothing):
    last = tab.result(**dict.fromkeys(("context", "stride", "quick", "seed"), nothing))
    assert cells(last["details"])[1] == [
        list(row) for row in result_table(expected(labs, "builtin", context=None).results)[1]
    ]
    assert cells(last["details"])[1][-2][1].endswith("of 64, every 64")


def test_models_of_different_tokenizers_are_all_scored_and_compared_where_they_can_be(tab):
    last = tab.result(other="distilgpt2", protocols=["blocks", "lm-eval", "sliding"])
    verdicts = dict(line.split(": ", 1) for line in last["verdict"].value.split("\n\n"))
    assert list(verdicts) == ["**blocks**", "**lm-eval**", "**sliding**"]
    for protocol in ("**blocks**", "**sliding**"):
        assert verdicts[protocol].startswith("not compared: their tokenizers differ")
    assert "byte perplexity" in verdicts["**lm-eval**"]
    assert cells(last["details"])[0] == ["", "builtin", "distilgpt2"]


def test_models_of_different_tokenizers_are_compared_in_overlapping_windows(tab):
    text = TEXT * 40  # so long that the first token, which has no prediction, does not matter
    last = tab.result(other="distilgpt2", context=64, stride=32, text=text)
    assert "byte perplexity" in last["verdict"].value


def test_protocol_that_the_text_is_too_short_for_is_said_and_leaves_the_others(tab):
    last = tab.result(text="The moon is a small world.", context=64, protocols=["blocks", "sliding"])
    assert re.fullmatch(
        r"\*\*blocks\*\*: not scored: the text has \d+ tokens, and no .*", last["verdict"].value.replace("\\", "")
    )
    assert cells(last["details"])[0] == ["", "sliding"]
    assert (last["protocol"].value, [value for _, value in last["protocol"].choices]) == ("sliding", ["sliding"])


def test_refusal_leaves_no_note_and_nothing_under_way(tab):
    steps = []
    with refused("context 65 is out of range"):
        steps.extend(tab.run(context=65))
    assert [(step["note"], step["running"]) for step in steps] == [("Reading the text …", True), ("", False)]


# your own text


def test_own_text_in_wikitext_form_is_read_article_by_article(tab, labs):
    key = tab.keep()
    _, _, documents = tab.hard(key, "sliding", "document", False)
    assert documents.choices == [(title, i) for i, title in enumerate(TITLES)]
    assert documents.value == 0


def test_own_plain_text_is_one_document_of_that_name(tab):
    text = "The moon is a small world.\n\nIt goes around the earth."
    key = tab.keep(text=text)
    _, _, documents = tab.hard(key, "sliding", "document", False)
    assert documents.choices == [("your own text", 0)]
    assert [shown for _, shown in scored_text(tab.words(key, "sliding", 0, False))] == [text]


def test_own_text_with_windows_line_ends_is_the_same_text(tab):
    same, other = (tab.result(text=text) for text in (TEXT, TEXT.replace("\n", "\r\n")))
    assert cells(other["details"]) == cells(same["details"])


def test_own_text_is_not_read_where_another_text_is_chosen(tab):
    for text in ("", HOSTILE, None):
        assert tab.result(data="sample", text=text, quick=1, context=64)["key"]


def test_hostile_own_text_is_shown_and_not_obeyed(tab):
    text = TEXT.replace("Moon", HOSTILE)
    key = tab.keep(text=text)
    frames = tab.words(key, "sliding", 0, False)
    assert (
        re.sub(r'<iframe sandbox="allow-scripts allow-downloads" srcdoc="[^"<>]*" [^<>]*></iframe>', "", frames) == ""
    )
    [(heading, shown)] = scored_text(frames)
    assert HOSTILE in heading
    assert HOSTILE in shown
    _, table, documents = tab.hard(key, "sliding", "document", False)
    assert HOSTILE in [row[0] for row in cells(table)[1]]
    assert documents.choices[0] == (HOSTILE, 0)


def test_document_without_a_title_has_one_name_in_list_table_and_frame(tab):
    key = tab.keep(text=f"Before any title .\n{TEXT}")
    _, table, documents = tab.hard(key, "sliding", "document", False)
    assert [title for title, _ in documents.choices] == ["document 1", *TITLES]
    assert sorted(row[0] for row in cells(table)[1]) == sorted(["document 1", *TITLES])
    [(heading, _)] = scored_text(tab.words(key, "sliding", 0, False))
    assert "document 1" in heading


# where it is hard


@pytest.mark.parametrize("name", BREAKDOWNS)
@pytest.mark.parametrize("protocol", ["sliding", "lm-eval"])
def test_table_of_a_breakdown_is_that_of_the_evaluation(tab, labs, name, protocol):
    key = tab.keep(protocols=["sliding", "lm-eval"])
    shares = expected(labs, "builtin", protocols=["sliding", "lm-eval"]).shares(name, protocol)["builtin"]
    for _, table, *_ in (tab.hard(key, protocol, name, False), tab.hard_by(key, protocol, name, False)):
        assert cells(table) == (SHARES, [list(row) for row in share_rows(shares)])


def test_breakdown_of_two_models_names_each_one(tab, labs):
    key = tab.keep(other="gpt2")
    shares = expected(labs, "builtin", "gpt2").shares("part", "sliding")
    head, rows = cells(tab.hard_by(key, "sliding", "part", False)[1])
    assert head == [*SHARES, "Model"]
    assert rows == [[*row, model] for model in ("builtin", "gpt2") for row in share_rows(shares[model])]


def test_breakdowns_differ_in_their_pictures_and_are_dark_on_a_dark_page(drawn, tab):
    key = tab.keep()
    pictures = {label: tab.hard_by(key, "sliding", label, False)[0] for label in BREAKDOWNS}
    assert len({picture.tobytes() for picture in pictures.values()}) == len(BREAKDOWNS)
    for ask in (tab.hard, tab.hard_by):
        assert corner(ask(key, "sliding", "part", False)[0]) == 255
        assert corner(ask(key, "sliding", "part", True)[0]) < 50


def test_table_of_many_documents_is_cut_for_each_model(tab, monkeypatch):
    monkeypatch.setattr(evaluate_content, "MAX_ROWS", 2)
    _, rows = cells(tab.hard_by(tab.keep(other="gpt2"), "sliding", "document", False)[1])
    assert [row[-1] for row in rows] == ["builtin"] * 2 + ["gpt2"] * 2


def test_documents_offered_are_those_of_the_protocol(tab):
    formula = " \n = x + 1 = \n It is shown so . \n"  # a page for lm-eval, no article
    key = tab.keep(text=TEXT + formula, protocols=["sliding", "lm-eval"])
    sliding, pages = (tab.hard(key, protocol, "part", False)[2] for protocol in ("sliding", "lm-eval"))
    assert [title for title, _ in sliding.choices] == TITLES
    assert [title for title, _ in pages.choices] == [*TITLES, "x + 1"]


# word for word


@pytest.mark.parametrize("number", [0, 1, 2])
def test_document_is_shown_whole_with_its_title(tab, labs, number):
    key = tab.keep(protocols=["sliding", "lm-eval"])
    for protocol, scored in zip(
        ("sliding", "lm-eval"), expected(labs, "builtin", protocols=["sliding", "lm-eval"]).scored
    ):
        [(heading, text)] = scored_text(tab.words(key, protocol, number, False))
        assert heading == f"{TITLES[number]}, builtin"
        assert text == "".join(piece for piece, _ in surprisals(scored, number))
        assert TITLES[number] in text


def test_no_document_chosen_yet_is_the_first(tab):
    key = tab.keep()
    assert tab.words(key, "sliding", None, False) == tab.words(key, "sliding", 0, False)
    assert tab.words(key, "sliding", 0, False) != tab.words(key, "sliding", 1, False)


def test_two_models_that_read_alike_are_shown_as_a_change(tab):
    frames = tab.words(tab.keep(other="gpt2"), "sliding", 1, False)
    [(heading, text)] = scored_text(frames)
    assert heading == "Sea"
    assert "twice a day" in text
    assert "better under gpt2" in html.unescape(frames)


def test_two_models_that_read_differently_are_shown_one_after_the_other(tab):
    frames = scored_text(tab.words(tab.keep(other="distilgpt2"), "sliding", 1, False))
    assert [heading for heading, _ in frames] == ["Sea, builtin", "Sea, distilgpt2"]
    assert frames[0][1] == frames[1][1]


@pytest.mark.parametrize(("dark", "scheme"), [(True, "dark"), (False, "light"), (None, "light")])
def test_frame_has_the_theme_of_the_page(tab, dark, scheme):
    frames = html.unescape(tab.words(tab.keep(), "sliding", 0, dark))
    assert re.findall(r"color-scheme: (\w+);", frames) == [scheme]


@pytest.mark.parametrize("number", [-1, 3, 10**9, "x", 0.5, float("nan"), True, [0]])
def test_document_that_there_is_none_of_is_refused(tab, number):
    with refused(r"^document .* is out of range; use a whole number from 0 to 2"):
        tab.words(tab.keep(), "sliding", number, False)


@pytest.mark.parametrize("protocol", ["lm-eval", "", None, "x" * 9999])
def test_protocol_that_was_not_scored_is_refused(tab, protocol):
    key = tab.keep()
    for ask in (
        lambda: tab.hard(key, protocol, "part", False),
        lambda: tab.hard_by(key, protocol, "part", False),
        lambda: tab.words(key, protocol, 0, False),
        lambda: tab.make_file(key, protocol, "tokens.csv"),
    ):
        with refused(r"nothing was scored by protocol .*; there is sliding"):
            ask()


@pytest.mark.parametrize("by", ["Letters", "", None, 7, "__class__"])
def test_breakdown_that_is_unknown_is_refused(tab, by):
    key = tab.keep()
    for ask in (tab.hard, tab.hard_by):
        with refused(r"breakdown .* is unknown; use document, position, frequency, part"):
            ask(key, "sliding", by, False)


# keys


@pytest.mark.parametrize("key", ["", "0" * 16, 0, "../../etc"])
def test_without_an_evaluation_an_error_says_what_to_press(tab, key):
    tab.keep()
    for ask in (
        lambda: tab.hard(key, "sliding", "part", False),
        lambda: tab.hard_by(key, "sliding", "part", False),
        lambda: tab.words(key, "sliding", 0, False),
        lambda: tab.make_file(key, "sliding", "csv"),
    ):
        with refused("There is no evaluation here any more; press Evaluate"):
            ask()


@pytest.mark.parametrize(
    ("differences", "words"),
    [((-0.2, -0.3, -0.1), "b is better than a: its perplexity is 18.1% [9.5%, 25.9%] lower"),
     ((0.2, 0.1, 0.3), "b is worse than a: its perplexity is 22.1% [10.5%, 35.0%] higher"),
     ((-0.1, -0.3, 0.1), "undecided whether b is better than a: -9.5% [-25.9%, +10.5%] perplexity"),
     ((-0.1, None, None), "b has -9.5% perplexity against a; a single document has no interval")],
)  # fmt: skip
def test_verdict_is_in_words_and_in_percent_of_perplexity(differences, words):
    difference, low, high = differences
    interval = None if low is None else (low, high)
    verdict = "cannot tell" if low is None or low < 0 < high else "better" if high < 0 else "worse"
    made = Comparison("a", "b", difference, "nats per token", interval, 9, 7, verdict, "sliding")
    assert evaluate_content.verdict(made).startswith(f"**sliding**: {words}")
    in_bits = replace(made, difference=difference / np.log(2), unit="bits per byte")
    in_bits = in_bits if low is None else replace(in_bits, interval=(low / np.log(2), high / np.log(2)))
    assert evaluate_content.verdict(in_bits).startswith(
        f"**sliding**: {words}".replace("perplexity", "byte perplexity")
    )


def test_two_visitors_who_evaluate_at_once_each_see_their_own(tab, labs, slow):
    asked = {"text": "The moon is a small world. " * 8}, {"text": "It was seen for the first time. " * 12}
    visits, last = [tab.run(**changes) for changes in asked], [{}, {}]
    while not all(seen.get("key") for seen in last):
        for number, visit in enumerate(visits):
            assert not tab.results.store.lock.locked()  # else the other one waits for ever
            last[number] = next(visit, last[number])
    assert last[0]["key"] != last[1]["key"]
    for changes, seen in zip(asked, last):
        made = expected(labs, "builtin", **changes)
        assert cells(seen["details"])[1] == [list(row) for row in result_table(made.results)[1]]
        [(_, text)] = scored_text(tab.words(seen["key"], "sliding", 0, False))
        assert text == changes["text"]
        [row] = parsed_csv(tab.make_file(seen["key"], "sliding", "csv"))
        assert float(row["nll"]) == made.results[0][1].nll


def test_nothing_but_evaluate_reads_the_questions(tab):
    state, *_ = tab.events["evaluate"].outputs
    assert isinstance(state, gr.State)
    asked = {component.elem_id for component in tab.events["evaluate"].inputs if component.elem_id}
    views = ("show_shares", "show_breakdown", "show_document", "make_file")
    for name in views:
        inputs = tab.events[name].inputs
        assert inputs[0] is state
        assert not {component.elem_id for component in inputs} & asked


def test_offered_are_the_known_texts(tab):
    choices = {c.elem_id: [v for _, v in c.choices] for c in tab.events["evaluate"].inputs if hasattr(c, "choices")}
    assert choices["evaluate-data"] == [*DATA, OWN]
    assert sorted(choices["evaluate-split"]) == ["test", "train", "validation"]


# files to take away


def parsed_csv(component):
    return list(csv.DictReader(io.StringIO(content_of(component).decode("utf-8"), newline="")))


def strict_json(content):
    def refuse(constant):
        raise ValueError(f"{constant} is no JSON")

    return json.loads(content, parse_constant=refuse)


def test_figures_come_out_of_their_csv_file(tab, labs):
    key = tab.keep(other="gpt2", protocols=["sliding", "lm-eval"])
    rows = parsed_csv(tab.make_file(key, "lm-eval", "csv"))
    results = expected(labs, "builtin", "gpt2", protocols=["sliding", "lm-eval"]).results
    assert [(row["model"], row["protocol"], float(row["perplexity"]), float(row["bits_per_byte"])) for row in rows] == [
        (name, r.protocol, r.perplexity, r.bits_per_byte) for name, r in results
    ]


def test_figures_come_out_of_their_json_file(tab, labs):
    text = TEXT.replace("Moon", "Mond 月")
    key = tab.keep(text=text, protocols=["sliding", "blocks"])
    found = strict_json(content_of(tab.make_file(key, "sliding", "json")))
    made = expected(labs, "builtin", text=text, protocols=["sliding", "blocks"])
    assert found["model"] == "builtin"
    assert found["results"] == [json.loads(json.dumps(result.record())) for _, result in made.results]
    assert [line["perplexity"] for line in found["results"]] == [result.perplexity for _, result in made.results]
    assert "compare" not in found


def test_json_file_of_two_models_holds_both_and_their_comparison(tab, labs):
    key = tab.keep(other="gpt2", protocols=["sliding", "lm-eval"])
    found = strict_json(content_of(tab.make_file(key, "sliding", "json")))
    made = expected(labs, "builtin", "gpt2", protocols=["sliding", "lm-eval"])
    assert (found["model"], found["compare"]) == ("builtin", "gpt2")
    for model, lines in (("builtin", found["results"]), ("gpt2", found["compare_results"])):
        assert [line["nll"] for line in lines] == [result.nll for name, result in made.results if name == model]
    assert [(c["protocol"], c["difference"], c["verdict"]) for c in found["comparisons"]] == [
        (c.protocol, c.difference, c.verdict) for c in made.comparisons
    ]


def test_file_names_the_text_and_not_its_place_on_the_page(tab):
    sample = strict_json(content_of(tab.make_file(tab.keep(data="sample", quick=1), "sliding", "json")))
    assert sample["data"] == "sample, test split"
    own = strict_json(content_of(tab.make_file(tab.keep(), "sliding", "json")))
    assert own["data"].startswith("your own text")
    assert "below" not in own["data"]


def test_infinite_figure_is_null_in_json_and_still_shown(tab):
    key = tab.keep(text="moon" * 400)  # a single word: its loss is past what exp can hold
    found = strict_json(content_of(tab.make_file(key, "sliding", "json")))
    assert found["results"][0]["n_words"] == 1
    assert found["results"][0]["word_perplexity"] is None


@pytest.mark.parametrize("protocol", ["sliding", "lm-eval"])
def test_losses_of_every_token_come_out_of_their_file(tab, labs, protocol):
    key = tab.keep(protocols=["sliding", "lm-eval"])
    rows = parsed_csv(tab.make_file(key, protocol, "tokens.csv"))
    [scored] = expected(labs, "builtin", protocols=["sliding", "lm-eval"]).of(protocol)
    assert list(dict.fromkeys(row["document"] for row in rows)) == TITLES
    for i, title in enumerate(TITLES):
        mine = [row for row in rows if row["document"] == title]
        assert [int(row["piece"]) for row in mine] == list(range(len(mine)))
        assert {row["model"] for row in mine} == {"builtin"}
        assert [row["text"].removeprefix("'") for row in mine] == [
            piece.removeprefix("'") for piece, _ in surprisals(scored, i)
        ]
    nll = np.array([float(row["nll"] or "nan") for row in rows])
    assert np.nansum(nll) == pytest.approx(np.nansum(scored.nll), abs=1e-6 * len(nll))
    assert np.isnan(nll).any() == (protocol == "sliding")


def test_losses_of_every_token_are_there_of_both_models(tab, labs):
    rows = parsed_csv(tab.make_file(tab.keep(other="gpt2"), "sliding", "tokens.csv"))
    made = expected(labs, "builtin", "gpt2")
    for model, result in made.results:
        mine = [float(row["nll"] or 0) for row in rows if row["model"] == model]
        assert sum(mine) == pytest.approx(result.nll, abs=1e-6 * len(mine))
    assert made.results[0][1].nll != made.results[1][1].nll


def test_page_to_take_away_holds_every_breakdown_and_needs_no_network(tab, labs):
    text = content_of(tab.make_file(tab.keep(other="gpt2"), "sliding", "html")).decode()
    assert text.startswith("<!doctype html>")
    made = expected(labs, "builtin", "gpt2")
    [comparison] = made.comparisons
    assert html.escape(str(comparison)) in text
    for by in BREAKDOWNS:
        for mine in made.shares(by, "sliding").values():
            for row in share_rows(mine):
                assert "".join(f"<td>{html.escape(cell)}</td>" for cell in row) in text
    assert all(source.startswith("data:") for source in re.findall(r'(?:src|srcset|href)="([^"]*)"', text))
    assert "<script" not in text


@pytest.mark.parametrize("kind", FILES)
def test_file_is_named_for_what_it_is_and_lies_in_a_folder_of_its_own(tab, tmp_path, kind):
    key = tab.keep()
    made = [tab.make_file(key, "sliding", kind) for _ in range(2)]
    paths = [Path(component.value["path"]) for component in made]
    assert [path.name for path in paths] == [f"perplexity.{kind}"] * 2
    assert len({path.parent for path in paths}) == 2
    assert all(path.is_relative_to(tmp_path / "gradio") for path in paths)
    assert all(component.visible for component in made)
    if paths[0].suffix == ".csv":
        assert len(parsed_csv(made[0])) >= 1
        assert all(None not in row and None not in row.values() for row in parsed_csv(made[0]))
    elif paths[0].suffix == ".json":
        assert strict_json(content_of(made[0]))
    else:
        assert content_of(made[0]).startswith(b"<!doctype html>")


@pytest.mark.parametrize("kind", ["pdf", "", None, "../x", 3])
def test_kind_of_file_that_is_unknown_is_refused(tab, kind):
    with refused(r"format .* is unknown; use csv, json, parts.csv, tokens.csv, html"):
        tab.make_file(tab.keep(), "sliding", kind)


# stopping


def test_stop_keeps_what_was_scored_and_evaluating_again_continues_from_there(tab, labs, slow):
    steps = tab.run(stride=1)
    for step in steps:
        if re.search(r"sliding: 5 of", step["note"]):
            break
    steps.close()
    assert not tab.results.store.lock.locked()
    [kept] = (cache_folder() / "nll").glob("*.npz")
    with np.load(kept) as file:
        assert int((~np.isnan(file["nll"])).sum()) >= 5
    _, first, *_, last = tab.run(stride=1)
    assert re.match(r"builtin, sliding: 5 of", first["note"])
    assert cells(last["details"])[1] == [
        list(row) for row in result_table(expected(labs, "builtin", stride=1).results)[1]
    ]
    _, first, *_ = tab.run(stride=1)
    done, total = re.match(r"builtin, sliding: (\d+) of (\d+)", first["note"]).groups()
    assert done == total


def test_stop_before_the_first_window_leaves_nothing_behind(tab):
    steps = tab.run()
    next(steps)
    steps.close()
    assert not tab.results.store.lock.locked()
    assert not list(cache_folder().rglob("*.npz"))


def test_model_that_breaks_midway_is_reported_and_leaves_the_lock_free(tab, labs, slow, monkeypatch):
    calls, real = [], scorer.token_nll

    def broken(model, tokens, *, first):
        calls.append(1)
        nll = real(model, tokens, first=first)
        return nll * float("nan") if len(calls) == 3 else nll

    monkeypatch.setattr(scorer, "token_nll", broken)
    with refused("builtin gives token .* no finite probability; its weights are damaged"):
        tab.result()
    assert not tab.results.store.lock.locked()


# progress in words


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still; `tick(seconds)` moves it."""
    clock = SimpleNamespace(now=1000.0)
    clock.tick = lambda seconds: setattr(clock, "now", clock.now + seconds)
    monkeypatch.setattr(evaluate_scoring, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_time_left_is_reckoned_from_what_was_done_since_the_beginning(clock):
    def steps():
        for done in (40, 42, 45):  # 40 of them were kept from before
            yield "m, sliding", done, 50
            clock.tick(done)  # 40 s for two windows, 42 s for the next three
        yield "m, blocks", 0, 8
        clock.tick(10)
        yield "m, blocks", 1, 8
        return "the end"

    def collect():
        returned.append((yield from progress_lines(steps())))

    returned = []
    assert list(collect()) == [
        "m, sliding: 40 of 50 windows",
        "m, sliding: 42 of 50 windows, 3 min left",
        "m, sliding: 45 of 50 windows, 82 s left",
        "m, blocks: 0 of 8 windows",
        "m, blocks: 1 of 8 windows, 70 s left",
    ]
    assert returned == ["the end"]


def test_progress_is_not_updated_faster_than_it_can_be_read(clock):
    def steps():
        for done in range(10):
            yield "m, sliding", done, 10_000
            clock.tick(evaluate_scoring.DRAW_SECONDS / 2)

    windows = [note.split(":")[1].split(" of ")[0] for note in progress_lines(steps())]
    assert windows == [" 0", " 3", " 6", " 9"]
    assert "of 10,000 windows" in next(progress_lines(steps()))


def test_text_for_markdown_has_no_mark_left_that_means_anything():
    text = "a_b *c* `d` <img> [x](y) #1 ~z~ |p| $q$ {r} \\s"
    assert re.sub(r"\\(.)", r"\1", escaped(text)) == text
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*_\[\]<>#|~$]", escaped(text))


@pytest.mark.filterwarnings("ignore:bf16 is slow")
def test_bf16_is_stated_beside_the_figures(tab):
    assert "scored in bf16; on " in tab.result(precision="bf16")["table"]
    assert "bf16" not in tab.result()["table"]

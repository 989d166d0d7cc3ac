import base64
from dataclasses import replace
from functools import partial
from io import BytesIO
from math import exp
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from gpt2lab.evaluation.evaluate import Evaluation
from gpt2lab.evaluation.protocols import Document, TokenizedText
from gpt2lab.evaluation.scorer import ScoredText
from gpt2lab.figures import drawing
from gpt2lab.figures.attention import attention_heatmap
from gpt2lab.figures.drawing import figure_bytes, image
from gpt2lab.figures.evaluation import result_figure, shares_figure
from gpt2lab.figures.tables import table
from gpt2lab.figures.training import loss_curve, validation_rows
from gpt2lab.inspection.heads import HeadScores
from gpt2lab.pages import evaluation as evaluation_module
from gpt2lab.pages import report as report_module
from gpt2lab.pages.history import history_page
from gpt2lab.pages.report import (
    Sample,
    changed_rows,
    head_rows,
    result_rows,
    run_report,
    sample_rows,
    setting_rows,
)
from gpt2lab.training.history import read_history
from gpt2lab.training.result import FinetuneResult
from gpt2lab.training.runs import Metric
from gpt2lab.training.validation import Change
from gpt2lab.widgets.page import POLICY

HOSTILE = "</p><script>alert(1)</script><img src=http://x.y/z onerror=alert(2)> & \"'"
RESULT = FinetuneResult(
    run="20260131-tiny-moon",
    folder=Path("runs/x"),
    model_dir=Path("runs/x/model"),
    steps=1234,
    best_step=1234,
    tokens=56789,
    seconds=12.0,
    memory=1_500_000_000,
    val_loss_before=3.25,
    val_loss_after=2.5,
    text_before=" rose in the west",
    text_after=" rose in the east",
    prompt="The moon",
    stopped=False,
    precision="bf16",
    validation=Change(before=3.25, after=2.5, tokens=900, split_tokens=9000, low=0.4, high=0.6),
)
CONFIG = {"model": "builtin", "data": "sample", "learning_rate": 0.00075, "seed": 17, "machine": {"device": "cpu"}}
METRICS = (
    Metric(0, 0, "validation", 3.25, 0.0, 0.5),
    Metric(1, 10, "train", 3.0, 1e-3, 1.0),
    Metric(1234, 56789, "validation", 2.5, 1e-3, 2.0),
)
UNSEEN = dict.fromkeys(("duplicate_token", "first_token", "entropy", "distance"), torch.zeros(2, 4))
SCORES = HeadScores(
    previous_token=torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.9, 0.6, 0.7]]),
    induction=torch.tensor([[0.05, 0.15, 0.8, 0.25], [0.35, 0.45, 0.55, 0.65]]),
    **UNSEEN,
)
SCORES_BEFORE = HeadScores(
    previous_token=torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.4, 0.6, 0.7]]),
    induction=torch.tensor([[0.05, 0.15, 0.1, 0.25], [0.35, 0.45, 0.85, 0.65]]),
    **UNSEEN,
)
SAMPLES = (
    Sample(0, " rose in the west", "", 0),
    Sample(617, " set in the sea twice a day", " the sea twice a day", 5),
    Sample(1234, " rose in the east", " rose", 1),
)


HEADS = {"scores_before": SCORES_BEFORE, "scores_after": SCORES}


@pytest.fixture(scope="module")
def evaluation():
    """Two models on two documents of three tokens each; the second model is certain of the last."""
    ids, windows = np.arange(6), np.array([(0, 1, 3), (3, 4, 6)])
    documents = (Document("Moon", 4, 20), Document("Sea", 4, 20))
    reading = TokenizedText("sliding", 3, 3, "abcdef", ids, ids, ids // 3, windows, documents)
    losses = {"before": [np.nan, 2, 3, np.nan, 2, 4], "after": [np.nan, 2, 3, np.nan, 2, 0]}
    return Evaluation(tuple(ScoredText(reading, np.array(nll, float), name, 300) for name, nll in losses.items()))


@pytest.fixture(scope="module")
def report(tiny_trace, evaluation, read_html):
    """The report of RESULT, as a parser reads it."""
    shown = {"trace": tiny_trace, "evaluation": evaluation, **HEADS}
    return read_html(run_report(RESULT, CONFIG, METRICS, SAMPLES, **shown, split="test").html)


@pytest.fixture
def sketched(monkeypatch, tiny_trace, evaluation, read_html):
    """A function: changes → the report as a parser reads it, with its pictures left empty."""
    monkeypatch.setattr(drawing, "figure_bytes", lambda figure, format: b"")
    for name in ("loss_curve", "attention_grid", "attention_heatmap"):
        monkeypatch.setattr(report_module, name, lambda *args, dark: None)
    for name in ("result_figure", "shares_figure"):
        monkeypatch.setattr(evaluation_module, name, lambda *args, dark: None)

    def make(config=CONFIG, trace=tiny_trace, samples=SAMPLES, history=None, **changes):
        result = replace(RESULT, **changes)
        shown = {"trace": trace, "evaluation": evaluation, "history": history, **HEADS}
        return read_html(run_report(result, config, METRICS, samples, **shown, split="test").html)

    return make


def pictures(read, tag="img", source="src"):
    sources = [attributes[source] for name, attributes in read.tags if name == tag]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    return [base64.b64decode(source.partition(",")[2], validate=True) for source in sources]


def test_what_the_run_saw_of_its_inside_is_a_section_with_its_view(sketched, monkeypatch):
    assert "Inside over time" not in sketched().text
    monkeypatch.setattr(report_module, "figure", lambda history, dark: None)
    history = read_history("builtin")
    read = sketched(history=history)
    [frame] = [attributes for name, attributes in read.tags if name == "iframe"]
    assert "Inside over time" in read.text and "allow-same-origin" not in frame["sandbox"]
    assert frame["srcdoc"] == history_page(history).html
    monkeypatch.setattr(report_module, "MAX_VIEW", 1000)
    assert "iframe" not in {name for name, _ in sketched(history=history).tags}  # it would be too large


def test_numbers_of_the_result_appear(report):
    text = report.text
    assert "builtin fine-tuned on sample: 1,234 steps, 56,789 tokens. The model is that of step 1,234," in text
    assert "training 12 s with validations, texts and checkpoints" in text
    assert "tokens per second of training 4,732 peak memory 1.50 GB" in text
    assert "validation loss (nats per token) 3.2500 2.5000" in text
    assert f"Validation perplexity {RESULT.validation}." in text
    assert "on 900 of 9,000 tokens" in text
    assert "Matrix products in bf16, weights in fp32." in text
    assert f"validation perplexity {exp(3.25):.2f} {exp(2.5):.2f}" in text
    assert f"1,234 2.5000 {exp(2.5):.2f}" in text


def test_perplexities_of_both_models_appear_with_what_they_mean_and_where_it_is_hard(report):
    text = report.text
    assert "Perplexity by named protocols, on the test split" in text
    assert f"perplexity {exp(11 / 4):.2f} {exp(7 / 4):.2f}" in text
    assert "-1.0000 nats per token" in text and "lower in 1 of 2 documents" in text
    assert "sliding: rows joined by blank lines; windows of 3 tokens, disjoint" in text
    assert f"before tokens perplexity nats per token of all loss prose 4 {exp(11 / 4):.1f} 2.750 100.0%" in text
    assert "once 4" in text and "2 2" in text


def test_texts_of_the_result_appear_under_their_headings(report):
    text = report.text
    assert "before The moon rose in the west" in text
    assert "after The moon rose in the east" in text
    assert text.index("rose in the west") < text.index("rose in the east")
    assert "Fine-tuning run 20260131-tiny-moon" in text


def test_texts_over_time_appear_in_order_with_what_was_memorised(report):
    assert (
        "0 rose in the west 0 617 set in the sea twice a day the sea twice a day 5 1,234 rose in the east rose 1"
    ) in report.text


def test_every_setting_appears(report):
    text = report.text
    for line in ("learning_rate 0.00075", "seed 17", "model builtin", "data sample", "device cpu"):
        assert line in text
    assert "machine" not in text


def test_best_heads_appear_with_their_scores(report):
    text = report.text
    assert "previous-token 1 1 0.900 previous-token 1 3 0.700 previous-token 1 2 0.600" in text
    assert "induction 0 2 0.800 induction 1 3 0.650 induction 1 2 0.550" in text


def test_heads_that_changed_most_appear_with_both_scores(report):
    changes = "induction 0 2 0.100 0.800 +0.700 previous-token 1 1 0.400 0.900 +0.500 induction 1 2 0.850 0.550 -0.300"
    assert f"before after change {changes}" in report.text


def test_pictures_are_embedded_and_are_those_of_the_run(report, tiny_trace, evaluation):
    curve, bits, *hard, grid, previous, induction = pictures(report)
    assert bits == figure_bytes(result_figure(evaluation.results), "png")
    assert hard == [
        figure_bytes(shares_figure(by, evaluation.shares(by, "sliding")), "png")
        for by in ("part", "frequency", "position")
    ]
    assert curve == figure_bytes(loss_curve(METRICS), "png")
    assert previous == figure_bytes(attention_heatmap(tiny_trace, 1, 1), "png")
    assert induction == figure_bytes(attention_heatmap(tiny_trace, 0, 2), "png")
    assert imread(BytesIO(grid)).ndim == 3
    dark, *others = pictures(report, "source", "srcset")
    assert dark == figure_bytes(loss_curve(METRICS, dark=True), "png")
    assert len(others) == 7
    assert {attributes["media"] for tag, attributes in report.tags if tag == "source"} == {
        "(prefers-color-scheme: dark)"
    }


def test_every_picture_says_in_words_what_it_shows(report):
    captions = [attributes["alt"] for tag, attributes in report.tags if tag == "img"]
    assert all(caption in report.text for caption in captions)
    assert captions[6:] == [
        "The most previous-token-like head, layer 1, head 1: score 0.90.",
        "The most induction-like head, layer 0, head 2: score 0.80.",
    ]


def test_page_needs_no_network_and_runs_no_script(report):
    assert all(value.startswith("data:") for value in report.attributes("src", "href"))
    assert report.count("script") == report.count("link") == 0
    assert any(attributes.get("content") == POLICY for _, attributes in report.tags)


@pytest.mark.parametrize("field", ["prompt", "text_before", "text_after", "run"])
def test_hostile_text_of_a_result_is_shown_and_not_obeyed(sketched, field):
    plain, hostile = sketched(), sketched(**{field: HOSTILE})
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert HOSTILE in hostile.text


@pytest.mark.parametrize("field", ["text", "verbatim"])
def test_hostile_text_of_a_sample_is_shown_and_not_obeyed(sketched, field):
    plain = sketched(samples=(Sample(3, "a", "b", 1),))
    hostile = sketched(samples=(replace(Sample(3, "a", "b", 1), **{field: HOSTILE}),))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert HOSTILE in hostile.text


def test_report_of_a_stopped_run_says_so_and_leaves_out_what_was_not_used(sketched):
    text = sketched(stopped=True, config=CONFIG | {"method": "full", "lora_rank": 8, "machine": "mine"}).text
    assert "It was stopped before its last step. The model is that of step 1,234" in text
    assert "lora_rank" not in text
    assert "lora_rank 8" in sketched(config=CONFIG | {"method": "lora", "lora_rank": 8}).text


def test_hostile_machine_is_shown_and_not_obeyed(sketched):
    read = sketched(config=CONFIG | {"machine": {HOSTILE: HOSTILE}})
    assert (read.count("script"), read.count("img")) == (0, 8)
    assert HOSTILE in read.text


@pytest.mark.parametrize("key", ["model", "data", "seed", HOSTILE])
def test_hostile_setting_is_shown_and_not_obeyed(sketched, key):
    plain, hostile = sketched(config=CONFIG | {"x": 1}), sketched(config=CONFIG | {"x": 1, key: HOSTILE})
    assert {tag for tag, _ in hostile.tags} == {tag for tag, _ in plain.tags}
    assert hostile.count("img") == plain.count("img") == 8
    assert HOSTILE in hostile.text


def test_hostile_token_is_shown_and_not_obeyed(sketched, random_trace):
    read = sketched(trace=random_trace(2, 4, 2, ("a", HOSTILE)))
    assert (read.count("script"), read.count("img")) == (0, 8)
    assert HOSTILE in read.text


def test_inspected_tokens_appear_in_order(report, tiny_trace):
    assert " ".join(tiny_trace.tokens) in report.text


def test_rows_of_the_result_read_before_and_after():
    assert result_rows(RESULT) == [
        ("validation loss (nats per token)", "3.2500", "2.5000"),
        ("validation perplexity", f"{exp(3.25):.2f}", f"{exp(2.5):.2f}"),
    ]


def test_rows_of_validation_leave_the_training_losses_out():
    assert validation_rows(METRICS) == [
        ("0", "3.2500", f"{exp(3.25):.2f}"),
        ("1,234", "2.5000", f"{exp(2.5):.2f}"),
    ]
    assert validation_rows(METRICS[1:2]) == []


def test_rows_of_heads_name_kind_layer_head_and_score():
    best = {"previous_token": [(1, 2, 0.98765)], "induction": [(3, 11, 0.5), (0, 0, 0.25)]}
    assert head_rows(best) == [
        ("previous-token", "1", "2", "0.988"),
        ("induction", "3", "11", "0.500"),
        ("induction", "0", "0", "0.250"),
    ]


def test_rows_of_changed_heads_are_the_largest_changes_of_either_kind_first():
    assert changed_rows(SCORES_BEFORE, SCORES, count=2) == [
        ("induction", "0", "2", "0.100", "0.800", "+0.700"),
        ("previous-token", "1", "1", "0.400", "0.900", "+0.500"),
    ]
    every = changed_rows(SCORES_BEFORE, SCORES, count=100)
    assert len(every) == 16
    assert every[2] == ("induction", "1", "2", "0.850", "0.550", "-0.300")
    assert {row[5] for row in every[3:]} == {"+0.000"}


def test_rows_of_samples_are_their_fields_in_words():
    assert sample_rows(SAMPLES[1:2]) == [("617", " set in the sea twice a day", " the sea twice a day", "5")]
    assert sample_rows((Sample(12345, "a", "", 0),)) == [("12,345", "a", "", "0")]


def test_rows_of_settings_leave_out_what_was_not_set_and_spread_the_machine():
    config = {"model": "gpt2", "epochs": None, "compile": False, "machine": {"device": "cpu", "threads": 2}}
    assert setting_rows(config) == [("model", "gpt2"), ("compile", "False"), ("device", "cpu"), ("threads", "2")]
    assert setting_rows({"model": "gpt2"}) == [("model", "gpt2")]


def test_table_keeps_order_and_escapes_every_cell(read_html):
    read = read_html(table(["a", HOSTILE], [("1", "2"), (HOSTILE, "4")]))
    assert read.texts == ["a", HOSTILE, "1", "2", HOSTILE, "4"]
    assert [tag for tag, _ in read.tags] == [
        "div",
        "table",
        "thead",
        "tr",
        "th",
        "th",
        "tbody",
        *["tr", "td", "td"] * 2,
    ]


def test_image_holds_the_figure_and_its_caption_twice(read_html):
    read = read_html(image(partial(loss_curve, METRICS), HOSTILE))
    assert [tag for tag, _ in read.tags] == ["figure", "picture", "source", "img", "figcaption"]
    assert read.attributes("alt") == read.texts == [HOSTILE]
    [content] = pictures(read)
    assert imread(BytesIO(content)).shape[2] == 4

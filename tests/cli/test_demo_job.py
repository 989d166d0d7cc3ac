import html
import json
from dataclasses import replace

import pytest
import torch

from gpt2lab import cli
from gpt2lab.cli import demo_job as demo
from gpt2lab.data.text import load_text
from gpt2lab.errors import LabError
from gpt2lab.evaluation.perplexity import perplexity
from gpt2lab.inspection.heads import head_scores
from gpt2lab.inspection.trace import trace
from gpt2lab.model.lab import load_model
from gpt2lab.pages import run_report as reports
from gpt2lab.training import finetuning, validation
from gpt2lab.training.runs import read_metrics, read_status


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The demo, two steps long, at a learning rate that suits any checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT2LAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(demo, "EPOCHS", 0.1)
        patch.setattr(demo, "LEARNING_RATE", 2e-4)
        patch.setattr(validation, "EVALUATIONS", 1)
        patch.setattr(finetuning, "SAMPLE_TOKENS", 10)
        return demo.run_demo(tmp_path_factory.mktemp("out") / "runs")


@pytest.mark.parametrize("stopped", [None, "paused"])
def test_demo_whose_run_left_no_model_says_so(monkeypatch, done, stopped):
    monkeypatch.setattr(demo, "finetune", lambda **settings: stopped and replace(done.result, model_dir=None))
    with pytest.raises(LabError, match=r"^the demo's run has left no model; let it run to its end, in one process$"):
        demo.run_demo()


def test_demo_learns_something_from_the_sample(done):
    assert 1 < done.result.val_perplexity_after < done.result.val_perplexity_before < 4096
    assert read_status(done.result.folder).state == "finished"


def test_demo_trains_the_builtin_model_on_the_sample_as_its_constants_say(done):
    config = json.loads((done.result.folder / "config.json").read_text(encoding="utf-8"))
    assert (config["model"], config["data"]) == ("builtin", "sample")
    assert config["learning_rate"] == 2e-4
    assert 1 <= config["steps"] == done.result.steps < 10


def test_demo_writes_its_report_into_the_run_folder(done):
    assert done.report == done.result.folder / "report.html"
    page = done.report.read_text(encoding="utf-8")
    assert page.count('<img src="data:image/png;base64,') == 10
    tokens = " ".join(trace(load_model(str(done.result.model_dir), device="cpu"), reports.TEXT).tokens)
    for text in (done.result.run, f"{done.result.val_perplexity_after:.2f}", tokens):
        assert html.escape(text) in page
    tuned = load_model(str(done.result.model_dir), device="cpu")
    assert f"<td>{perplexity(tuned, load_text('sample').test, protocol='lm-eval').word_perplexity:,.2f}</td>" in page
    for metric in read_metrics(done.result.folder):
        assert metric.split != "validation" or f"<td>{metric.loss:.4f}</td>" in page


def test_demo_scores_the_heads_of_the_tuned_model(done):
    scores = head_scores(load_model(str(done.result.model_dir), device="cpu"))
    torch.testing.assert_close(done.scores.previous_token, scores.previous_token)
    torch.testing.assert_close(done.scores.induction, scores.induction)


def test_command_prints_what_the_demo_came_to(done, monkeypatch, capsys, tmp_path):
    asked = []
    monkeypatch.setattr("gpt2lab.cli.finetune.run_demo", lambda out: asked.append(out) or done)
    monkeypatch.setattr("sys.argv", ["gpt2lab", "demo", "--out", str(tmp_path)])
    cli.main()
    printed = capsys.readouterr().out
    result = done.result
    assert asked == [tmp_path]
    assert f"{result.val_perplexity_before:.2f} → {result.val_perplexity_after:.2f}" in printed
    assert f"(-{1 - result.val_perplexity_after / result.val_perplexity_before:.0%})" in printed
    assert f"prompt  {result.prompt}\nbefore {' '.join(result.text_before.split())}\n" in printed
    for name in ("previous_token", "induction"):
        for layer, head, score in done.scores.top(name):
            assert f"layer {layer} head {head} ({score:.2f})" in printed
    assert printed.endswith(f"model   {result.model_dir}\nreport  {done.report}\n")


def test_command_says_how_far_perplexity_rose_where_it_did(done, monkeypatch, capsys):
    worse = replace(done.result, val_loss_before=1.0, val_loss_after=2.0)
    monkeypatch.setattr("gpt2lab.cli.finetune.run_demo", lambda out: replace(done, result=worse))
    monkeypatch.setattr("sys.argv", ["gpt2lab", "demo"])
    cli.main()
    assert "2.72 → 7.39  (+172%)" in capsys.readouterr().out

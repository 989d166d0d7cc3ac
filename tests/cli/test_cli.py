import csv
import importlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import asdict
from math import exp, log
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from gpt2lab import cli
from gpt2lab.cli.runs import RunCommands
from gpt2lab.data.text import load_text, read_articles
from gpt2lab.errors import LabError
from gpt2lab.evaluation import scorer
from gpt2lab.evaluation.perplexity import perplexity
from gpt2lab.generation.generate import beam_search, best_of, generate, generate_batch
from gpt2lab.generation.tasks import TASKS, answer, summarize
from gpt2lab.inspection.heads import head_scores
from gpt2lab.inspection.trace import trace
from gpt2lab.model.lab import load_model
from gpt2lab.training import jobs, runs, worker
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.runs import read_metrics, read_status
from tests.processes import ROOT, Command

TEXT = """The moon is a small world that goes around the earth, and the sea follows it twice a day.
When the other side of the moon was seen for the first time, nobody there could say what it would look like.
"""
FINETUNE_KEYS = (
    "run model_dir steps tokens seconds tokens_per_second val_loss_before val_loss_after "
    "val_perplexity_before val_perplexity_after"
)
PERPLEXITY_KEYS = (
    "protocol context stride n_scored n_words n_bytes windows nll perplexity word_perplexity byte_perplexity "
    "bits_per_byte interval"
)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory with a model's texts beside it, not in it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture(autouse=True)
def own_signals():
    """A run started from the command line heeds signals; the tests have theirs back afterwards."""
    heeded = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in heeded.items():
        signal.signal(number, handler)


@pytest.fixture
def call(here, run_cli):
    """A function: arguments → (exit status, standard output, standard error) of the command, in a folder of its own."""
    return run_cli


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder with texts of all kinds."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "splits").mkdir(parents=True)
    for split in ("train", "validation", "test"):
        (folder / "splits" / f"{split}.txt").write_text(TEXT, encoding="utf-8")
    (folder / "articles").mkdir()
    for number, split in enumerate(("train", "validation", "test")):
        (folder / "articles" / f"wiki.{split if split != 'validation' else 'valid'}.raw").write_text(
            "".join(
                f" \n = Moon {i} = \n \n = = Sea {number} = = \n \n {TEXT.strip()} {i * 'More of it . '}\n"
                for i in range(4)
            ),
            encoding="utf-8",
        )
    (folder / "lines.txt").write_text("".join(f"Line {i} of the moon.\n" for i in range(20)), encoding="utf-8")
    (folder / "empty.txt").write_text("")
    (folder / "binary.txt").write_bytes(bytes(range(256)))
    (folder / "zeros.txt").write_bytes(b"moon\0moon")
    (folder / "short.txt").write_text("Moon.\n" * 10)
    (folder / "nothing").mkdir()
    return folder


def one_object(out):
    """The JSON object that is all of standard output."""
    assert out.endswith("\n")
    assert out.count("\n") == 1
    return json.loads(out)


def tune(folder, texts, *more):
    settings = ["--steps", 3, "--block-size", 16, "--batch-size", 4, "--json"]
    return ["finetune", "--model", folder, "--data", texts / "splits", *settings, *more]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, tiny_folder, texts):
    """(The finished command, the folder of its run.)"""
    folder = tmp_path_factory.mktemp("tuned")
    arguments = tune(tiny_folder, texts, "--steps", 8, "--lr", "1e-2", "--run", "my-run", "--runs", folder / "runs")
    done = Command(folder / "command", *arguments, GPT2LAB_CACHE=str(folder / "cache")).finish()
    return done, folder / "runs" / "my-run"


def test_finetune_prints_what_the_run_came_to(tuned):
    done, folder = tuned
    found = one_object(done.stdout)
    assert done.returncode == 0
    assert set(FINETUNE_KEYS.split()) <= set(found)
    assert (found["run"], found["steps"]) == ("my-run", 8)
    assert Path(found["model_dir"]).resolve() == folder / "model"
    validation = [metric.loss for metric in read_metrics(folder) if metric.split == "validation"]
    assert [found["val_loss_before"], found["val_loss_after"]] == [validation[0], validation[-1]]
    assert found["val_perplexity_before"] == exp(validation[0]) > found["val_perplexity_after"]
    assert found["tokens_per_second"] == pytest.approx(found["tokens"] / found["seconds"])
    assert read_status(folder).state == "finished"
    assert "8/8" in done.stderr


def test_finetune_passes_every_option_on(call, tiny_folder, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "write_report", lambda folder: None)
    options = "--epochs 0.5 --block-size 8 --batch-size 3 --grad-accum 2 --lr 0.002 --seed 9 --eval-every 2"
    arguments = ["--model", tiny_folder, "--data", texts / "splits", *options.split(), "--runs", tmp_path / "elsewhere"]
    status, out, _ = call("finetune", *arguments, "--json")
    config = json.loads((tmp_path / "elsewhere" / one_object(out)["run"] / "config.json").read_text())
    assert status == 0
    expected = {"block_size": 8, "batch_size": 3, "grad_accum": 2, "learning_rate": 0.002, "seed": 9, "eval_every": 2}
    assert {name: config[name] for name in expected} == expected
    assert config["steps"] == one_object(out)["steps"] < 3


def test_finetune_writes_the_report_of_its_run(tuned):
    assert "Fine-tuning run my-run" in (tuned[1] / "report.html").read_text(encoding="utf-8")


def test_run_whose_report_cannot_be_written_is_as_good_without(call, here, monkeypatch, tiny_folder, texts):
    def refuse(folder):
        raise LabError("the disk is full")

    monkeypatch.setattr(worker, "write_report", refuse)
    options = ["--model", tiny_folder, "--data", f"{texts}/splits", "--steps", 1, "--block-size", 16, "--run", "mine"]
    status, out, err = call("finetune", *options, "--json")
    assert (status, one_object(out)["run"]) == (0, "mine")
    assert "there is no report.html (the disk is full); `gpt2lab runs report mine --runs runs` writes it" in err


def test_what_a_tracker_prints_is_no_output_of_the_command(tiny_folder, texts, tmp_path):
    options = ["--model", tiny_folder, "--data", texts / "splits", "--steps", 2, "--block-size", 16]
    options += ["--report-to", "trackio", "--runs", tmp_path / "runs", "--run", "tracked", "--json"]
    done = Command(tmp_path / "command", "finetune", *options, TRACKIO_DIR=str(tmp_path / "trackio")).finish()
    assert one_object(done.stdout)["run"] == "tracked"
    assert "Trackio" in done.stderr
    with closing(sqlite3.connect(tmp_path / "trackio" / "gpt2lab.db")) as database:
        sent = database.execute("select metrics from metrics where run_name = 'tracked' order by step").fetchall()
    found = [json.loads(line) for (line,) in sent]
    assert [line["eval/loss"] for line in found if "eval/loss" in line] == [
        m.loss for m in read_metrics(tmp_path / "runs" / "tracked") if m.split == "validation"
    ]


def test_finetuned_model_goes_into_the_other_commands(call, tuned):
    model = one_object(tuned[0].stdout)["model_dir"]
    status, out, _ = call("generate", "--model", model, "--prompt", "The moon", "--max-new-tokens", 2, "--json")
    assert (status, len(one_object(out)["steps"])) == (0, 2)


def test_perplexity_prints_counts_and_every_normalisation(call, tiny_folder, tiny_lab, texts):
    status, out, _ = call("perplexity", "--model", tiny_folder, "--data", texts / "lines.txt", "--stride", 32, "--json")
    found = one_object(out)
    assert (status, found["model"], found["data"]) == (0, str(tiny_folder), str(texts / "lines.txt"))
    assert found["split"] == "test"
    [result] = found["results"]
    assert set(PERPLEXITY_KEYS.split()) <= set(result)
    expected = perplexity(tiny_lab, load_text(str(texts / "lines.txt")).test, stride=32)
    assert result["nll"] == pytest.approx(expected.nll)
    assert (result["protocol"], result["context"], result["stride"]) == ("sliding", 64, 32)
    text = "Line 18 of the moon.\nLine 19 of the moon.\n"
    assert (result["n_words"], result["n_bytes"]) == (len(text.split()), len(text))
    assert result["n_scored"] == len(tiny_lab.encode(text)) - 1
    assert result["perplexity"] == pytest.approx(exp(result["nll"] / result["n_scored"]))
    assert result["word_perplexity"] == pytest.approx(exp(result["nll"] / result["n_words"]))
    assert result["byte_perplexity"] == pytest.approx(exp(result["nll"] / result["n_bytes"]))
    assert result["bits_per_byte"] == pytest.approx(result["nll"] / result["n_bytes"] / log(2))
    assert result["interval"] is None


def test_perplexity_by_all_protocols_is_each_one_by_itself(call, tiny_folder, tiny_lab, texts):
    data = texts / "articles"
    status, out, _ = call(
        "perplexity",
        "--model",
        tiny_folder,
        "--data",
        data,
        "--protocol",
        "all",
        "--context",
        16,
        "--stride",
        4,
        "--json",
    )
    found, articles = one_object(out)["results"], load_text(str(data)).test
    assert (status, [result["protocol"] for result in found]) == (0, ["sliding", "lm-eval", "blocks"])
    assert [result["stride"] for result in found] == [4, 16, 16]
    for result in found:
        options = {"stride": 4} if result["protocol"] == "sliding" else {}
        expected = perplexity(tiny_lab, articles, protocol=result["protocol"], context=16, **options)
        assert result == json.loads(json.dumps(expected.record()))


def test_perplexity_for_a_reader_is_a_table_with_what_the_figures_mean(call, tiny_folder, tiny_lab, texts):
    asked = [
        "--model",
        tiny_folder,
        "--data",
        texts / "articles",
        "--split",
        "validation",
        "--protocol",
        "sliding,lm-eval",
    ]
    status, out, _ = call("perplexity", *asked, "--by", "part")
    expected = [
        perplexity(tiny_lab, load_text(str(texts / "articles")).validation, protocol=protocol)
        for protocol in ("sliding", "lm-eval")
    ]
    lines = [line.split() for line in out.splitlines()]
    assert status == 0
    assert out.startswith(f"{tiny_folder} on {texts / 'articles'}, validation split\n\n")
    assert ["sliding", "lm-eval"] in lines
    assert ["perplexity", *(f"{result.perplexity:,.2f}" for result in expected)] in lines
    assert ["bits", "per", "byte", *(f"{result.bits_per_byte:.4f}" for result in expected)] in lines
    assert all(f"{result.protocol}: {result.described}" in out for result in expected)
    assert f"{tiny_folder}, lm-eval, by part" in out
    assert {line[0] for line in lines if line} >= {"prose", "title", "heading"}


def test_perplexity_of_a_lone_file_says_which_part_of_it_is_scored_and_takes_all_when_asked_to(
    call, tiny_folder, tiny_lab, texts
):
    file, asked = texts / "lines.txt", ["perplexity", "--model", tiny_folder, "--data", texts / "lines.txt"]
    assert "lines.txt, test split: the last 10.2 % of the file; 'all' is all of it\n" in call(*asked)[1]
    [result] = one_object(call(*asked, "--split", "all", "--json")[1])["results"]
    assert result["n_bytes"] == file.stat().st_size
    assert result["nll"] == perplexity(tiny_lab, read_articles(file)).nll
    assert "lines.txt, all of it\n" in call(*asked, "--split", "all")[1]


def test_perplexity_compares_two_models_on_the_same_text(call, tiny_folder, texts, tuned):
    other = one_object(tuned[0].stdout)["model_dir"]
    asked = ["--model", tiny_folder, "--compare", other, "--data", texts / "articles", "--protocol", "sliding"]
    found = one_object(call("perplexity", *asked, "--json")[1])
    [before], [after], [verdict] = found["results"], found["compare_results"], found["comparisons"]
    assert found["compare"] == other
    assert verdict["unit"] == "nats per token"
    difference = after["nll"] / after["n_scored"] - before["nll"] / before["n_scored"]
    assert verdict["difference"] == pytest.approx(difference)
    assert verdict["ratio"] == pytest.approx(after["perplexity"] / before["perplexity"])
    low, high = verdict["interval"]
    assert low <= difference <= high
    assert f"{difference:+.4f} nats per token" in call("perplexity", *asked)[1]


def test_perplexity_of_a_sample_of_articles_says_so(call, tiny_folder, texts):
    asked = ["perplexity", "--model", tiny_folder, "--data", texts / "articles", "--quick", 2, "--json"]
    first, again, *others = (one_object(call(*asked, "--seed", seed)[1])["results"][0] for seed in (1, 1, 2, 3, 4))
    assert first["sample"] == [2, 4]
    assert first == again
    assert any(other["nll"] != first["nll"] for other in others)
    assert "a sample of 2 of 4 articles" in first["cautions"][0]


def test_perplexity_files_hold_figures_page_and_the_loss_of_every_token(call, here, tiny_folder, texts):
    asked = ["perplexity", "--model", tiny_folder, "--data", texts / "articles", "--json"]
    result = one_object(call(*asked, "--out", "found.csv", "--tokens", "tokens.csv")[1])["results"][0]
    call(*asked, "--by", "frequency", "--out", "found.html")
    [row] = csv.DictReader((here / "found.csv").read_text(encoding="utf-8").splitlines())
    assert float(row["nll"]) == result["nll"]
    with (here / "tokens.csv").open(encoding="utf-8", newline="") as file:
        losses = [float(row["nll"]) for row in csv.DictReader(file) if row["nll"]]
    assert sum(losses) == pytest.approx(result["nll"], rel=1e-6)
    page = (here / "found.html").read_text(encoding="utf-8")
    assert f"{result['perplexity']:,.2f}" in page
    assert "by how often a token stands in the text" in page


def test_perplexity_whose_file_cannot_be_written_says_which(call, tiny_folder, texts):
    out = texts / "empty.txt" / "found.csv"
    status, _, err = call("perplexity", "--model", tiny_folder, "--data", texts / "articles", "--out", out)
    assert (status, err.count("\n")) == (2, 1)  # before anything is scored
    assert err.startswith(f"gpt2lab: {out} cannot be written: {out.parent} is not a folder or not writable")


def test_perplexity_that_is_broken_off_resumes_where_it_was(call, tiny_folder, texts, monkeypatch):
    asked = [
        "perplexity",
        "--model",
        tiny_folder,
        "--data",
        texts / "articles",
        "--context",
        16,
        "--stride",
        2,
        "--json",
    ]
    monkeypatch.setattr(scorer, "TOKENS_AT_ONCE", {"cpu": 16})
    forward, calls = scorer.token_nll, []

    def until(limit):
        def token_nll(*args, **kwargs):
            calls.append(1)
            if len(calls) > limit:
                raise KeyboardInterrupt
            return forward(*args, **kwargs)

        return token_nll

    monkeypatch.setattr(scorer, "token_nll", until(5))
    status, out, err = call(*asked)
    assert (status, out) == (130, "")
    assert "interrupted; scored windows are kept" in err
    calls.clear()
    monkeypatch.setattr(scorer, "token_nll", until(10**9))
    result = one_object(call(*asked)[1])["results"][0]
    assert len(calls) == result["windows"] - 5


def test_generate_prints_every_step_with_its_alternatives(call, tiny_folder, tiny_lab):
    options = ["--max-new-tokens", 5, "--temperature", 0.7, "--top-k", 50, "--top-p", 0.9, "--seed", 4]
    status, out, _ = call("generate", "--model", tiny_folder, "--prompt", "The moon", *options, "--json")
    found = one_object(out)
    expected = generate(tiny_lab, "The moon", max_new_tokens=5, temperature=0.7, top_k=50, top_p=0.9, seed=4)
    assert (status, found["prompt"], found["text"], found["seed"]) == (0, "The moon", expected.text, 4)
    assert [step["id"] for step in found["steps"]] == [step.id for step in expected.steps]
    for step, other in zip(found["steps"], expected.steps):
        assert {"token", "id", "probability", "rank", "entropy", "alternatives"} <= set(step)
        assert step["probability"] == pytest.approx(other.probability)
        assert (step["rank"], step["entropy"]) == (other.rank, pytest.approx(other.entropy))
        assert {"token", "id", "probability"} <= set(step["alternatives"][0])
        assert step["alternatives"][0]["probability"] >= step["probability"]
    assert "compare" not in found


def written(lab, seed, **changes):
    """What `generate` writes by default after "The moon", 8 tokens long."""
    settings = {"max_new_tokens": 8, "temperature": 0.8, "top_p": 0.95} | changes
    return generate(lab, "The moon", **settings, seed=seed).text


def seed_with(broken, *labs, **changes):
    """A seed for which the text of each lab ends within a character, or none does."""
    texts = ([written(lab, seed, **changes) for lab in labs] for seed in range(100))
    return next(seed for seed, all in enumerate(texts) if {text.endswith("\ufffd") for text in all} == {broken})


@pytest.mark.parametrize("ends_within_a_character", [False, True])
def test_generate_for_a_reader_is_the_prompt_and_all_that_follows(call, tiny_folder, tiny_lab, ends_within_a_character):
    seed = seed_with(ends_within_a_character, tiny_lab, temperature=5.0)
    options = ["--max-new-tokens", 8, "--temperature", 5, "--seed", seed]
    status, out, _ = call("generate", "--model", tiny_folder, "--prompt", "The moon", *options)
    assert (status, out) == (0, f"The moon{written(tiny_lab, seed, temperature=5.0)}\n")


def test_generate_takes_every_way_of_drawing(call, tiny_folder, tiny_lab):
    options = {"min_p": 0.1, "repetition_penalty": 1.3, "window": 20, "max_new_tokens": 70, "seed": 2}
    arguments = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    _, out, _ = call("generate", "--model", tiny_folder, "--prompt", "The moon", *arguments, "--json")
    expected = generate(tiny_lab, "The moon", temperature=0.8, top_p=0.95, **options)
    assert json.loads(out)["text"] == expected.text
    assert [step["window_shifted"] for step in json.loads(out)["steps"]].count(True) == 1


def test_generate_without_a_prompt_says_where_the_model_begins(call, tiny_folder, tiny_lab):
    status, out, err = call("generate", "--model", tiny_folder, "--prompt", "", "--max-new-tokens", 4)
    assert (status, err) == (0, "no prompt: the model begins from <|endoftext|>\n")
    assert out == generate(tiny_lab, "", max_new_tokens=4, temperature=0.8, top_p=0.95).text + "\n"


def test_generate_prints_nothing_of_a_stop_string(call, tiny_folder, tiny_lab):
    settings = {"max_new_tokens": 20, "temperature": 0.8, "top_p": 0.95}
    stop = generate(tiny_lab, "The moon", **settings).text[4:7]
    expected = generate(tiny_lab, "The moon", stop=stop, **settings)
    arguments = ["--prompt", "The moon", "--max-new-tokens", 20, "--stop", stop, "--stop", "never there"]
    _, out, _ = call("generate", "--model", tiny_folder, *arguments)
    assert expected.finish == "stop string" and out == f"The moon{expected.text}\n"


def test_generate_gives_several_texts_and_the_most_probable(call, tiny_folder, tiny_lab):
    shared = ["--model", tiny_folder, "--prompt", "The moon", "--max-new-tokens", 5]
    _, out, _ = call("generate", *shared, "--count", 3, "--seed", 4, "--json")
    found = json.loads(out)
    expected = generate_batch(tiny_lab, "The moon", 3, seed=4, max_new_tokens=5, temperature=0.8, top_p=0.95)
    assert [found["text"], *(one["text"] for one in found["others"])] == [one.text for one in expected]
    _, out, _ = call("generate", *shared, "--count", 3, "--seed", 4, "--best")
    assert out == f"The moon{best_of(expected).text}\n"
    status, out, err = call("generate", *shared, "--best")
    assert (status, out) == (2, "") and "--best chooses among several continuations; give --count" in err
    _, out, _ = call("generate", *shared, "--beams", 3)
    assert out == f"The moon{beam_search(tiny_lab, 'The moon', beams=3, max_new_tokens=5).text}\n"


@pytest.mark.skipif(torch.backends.quantized.engine == "qnnpack", reason="no int8 kernels")
def test_generate_with_weights_of_8_bits_is_a_little_off(call, tiny_folder):
    arguments = ["--model", tiny_folder, "--prompt", "The moon", "--max-new-tokens", 1, "--json"]
    exact, near = (json.loads(call("generate", *arguments, *more)[1]) for more in ([], ["--int8"]))
    assert exact["steps"] == near["steps"]  # the prompt is read at full precision
    arguments[5] = 6
    exact, near = (json.loads(call("generate", *arguments, *more)[1]) for more in ([], ["--int8"]))
    assert exact["steps"][1] != near["steps"][1]
    assert exact["steps"][1]["entropy"] == pytest.approx(near["steps"][1]["entropy"], rel=0.02)


@pytest.mark.filterwarnings("ignore:bf16 is slow")
def test_generate_takes_a_precision_or_its_shorthand(call, tiny_folder):
    arguments = ["--model", tiny_folder, "--prompt", "The moon", "--max-new-tokens", 3, "--json"]
    fp32, bf16 = (json.loads(call("generate", *arguments, *more)[1]) for more in ([], ["--precision", "bf16"]))
    assert (fp32["precision"], bf16["precision"]) == ("fp32", "bf16")
    assert fp32["steps"][0]["entropy"] != bf16["steps"][0]["entropy"]
    for more, message in (
        (["--int8", "--precision", "bf16"], "--int8 and --precision bf16 contradict each other; give one of them"),
        (["--precision", "fp16"], "precision 'fp16' is unknown; use fp32, bf16, int8"),
        (["--precision", "bf16", "--beams", 2], "leave --precision bf16 out"),
    ):
        status, out, err = call("generate", *arguments, *more)
        assert (status, out) == (2, "") and message in err and len(err.splitlines()) == 1


@pytest.mark.filterwarnings("ignore:bf16 is slow")
def test_perplexity_in_bf16_states_the_difference(call, tiny_folder):
    arguments = ["--model", tiny_folder, "--data", "sample", "--quick", 1, "--precision", "bf16"]
    _, out, _ = call("perplexity", *arguments)
    assert "sliding: scored in bf16; on " in out and "perplexity differs by " in out
    found = json.loads(call("perplexity", *arguments, "--json")[1])["results"][0]
    assert found["precision"] == "bf16" and found["n_checked"] > 0 and abs(found["precision_difference"]) < 0.01
    status, _, err = call("perplexity", *arguments[:-1], "half")
    assert status == 2 and "precision 'half' is unknown; use fp32, bf16" in err


def test_generate_measures_its_texts(call, here, tiny_folder, random_gpt2, tiny_tokenizer):
    other = here / "other"
    random_gpt2(seed=5).save_pretrained(other)
    tiny_tokenizer.save_pretrained(other)
    arguments = ["--model", tiny_folder, "--compare", other, "--prompt", "The moon", "--measure", "sample"]
    _, out, _ = call("generate", *arguments, "--max-new-tokens", 6, "--json")
    found = json.loads(out)
    for one in (found, found["compare"]):
        assert one["measures"]["tokens"] == 6 and one["measures"]["copied"] >= 1
        assert list(one["measures"]["perplexity"]) == [str(tiny_folder), str(other)]
    _, out, _ = call("generate", *arguments, "--max-new-tokens", 6)
    assert out.count("distinct-2") == out.count("copied") == 2 and out.count("perplexity under") == 4
    status, _, err = call("generate", *arguments[:-1], "/nowhere", "--max-new-tokens", 6)
    assert status == 2 and err.count("\n") == 1


def test_tasks_print_what_came_of_them_and_what_to_expect(call, here):
    lab = load_model("builtin", device="cpu")
    (here / "moon.txt").write_text("The moon is round. It is far.")
    shared = ["--model", "builtin"]
    status, out, err = call("task", "summarize", *shared, "--file", "moon.txt", "--max-new-tokens", 10, "--seed", 2)
    assert (status, out) == (0, f"{summarize(lab, 'The moon is round. It is far.', max_new_tokens=10, seed=2).text}\n")
    assert "Barely better than 3 random sentences" in err and "Expect less of smaller models" in err
    arguments = ["--text", "The sea.", "--example", "a = b", "--example", "c = d = e"]
    _, out, _ = call("task", "translate", *shared, *arguments, "--json")
    assert json.loads(out)["prompts"] == ["a = b\nc = d = e\nThe sea. ="]
    _, out, _ = call("task", "answer", *shared, "--document", "The moon is round.", "--question", "What is?", "--json")
    found, expected = json.loads(out), answer(lab, "The moon is round.", "What is?")
    assert (found["task"], found["text"], found["prompts"]) == ("answer", expected.text, list(expected.prompts))
    assert found["source"] == TASKS["answer"].source


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["summarize"], "give the text as --text or as --file, one of them"),
        (["summarize", "--text", "a", "--file", "b"], "give the text as --text or as --file, one of them"),
        (["summarize", "--file", "nowhere.txt"], "nowhere.txt cannot be read (No such file"),
        (["summarize", "--file", "latin.txt"], "latin.txt is not UTF-8 text"),
        (["summarize", "--file", "large.txt"], "large.txt has 1,000,001 bytes; the limit is 1,000,000"),
        (["summarize", "--file", "."], ". cannot be read (Is a directory)"),
        (["summarize", "--text", "a", "--prompt", "b"], "the prompt 'b' has {text} 0 times; write it once"),
        (["translate", "--text", "a", "--example", "b"], "example 'b' is no pair; write it as 'one = other'"),
        (["translate"], "Missing option '--text'"),
        (["answer", "--document", "a"], "Missing option '--question'"),
        (["sing"], "No such command 'sing'"),
    ],
)
def test_bad_task_ends_with_2_and_one_line(call, here, arguments, message):
    (here / "latin.txt").write_bytes("Où".encode("latin-1"))
    (here / "large.txt").write_bytes(b"a" * 1_000_001)
    status, out, err = call("task", *arguments, "--model", "builtin") if arguments != ["sing"] else call("task", "sing")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_generate_compares_two_models_on_the_same_prompt_and_seed(
    call, tiny_folder, random_gpt2, tiny_tokenizer, tmp_path
):
    other = tmp_path / "other"
    random_gpt2(seed=1).save_pretrained(other)
    tiny_tokenizer.save_pretrained(other)
    labs = [load_model(str(name), device="cpu") for name in (tiny_folder, other)]
    seed = seed_with(False, *labs)
    texts = [written(lab, seed) for lab in labs]
    arguments = ["--model", tiny_folder, "--compare", other, "--prompt", "The moon"]
    arguments += ["--max-new-tokens", 8, "--seed", seed]
    status, out, _ = call("generate", *arguments, "--json")
    found = one_object(out)
    assert (status, [found["text"], found["compare"]["text"]]) == (0, texts)
    assert texts[0] != texts[1]
    assert [found["model"], found["compare"]["model"]] == [str(tiny_folder), str(other)]
    assert call("generate", *arguments)[1] == f"[{tiny_folder}] The moon{texts[0]}\n[{other}] The moon{texts[1]}\n"


def test_attention_writes_arrays_of_every_head(call, here, tiny_folder, tiny_lab):
    status, out, _ = call("attention", "--model", tiny_folder, "--text", "The moon", "--out", "a.npz")
    traced = trace(tiny_lab, "The moon")
    with np.load(here / "a.npz", allow_pickle=False) as found:
        assert found["weights"].shape == (2, 4, len(traced.tokens), len(traced.tokens))
        np.testing.assert_allclose(found["weights"], torch.stack([traced.attention(i) for i in range(2)]), atol=1e-6)
        assert tuple(found["tokens"]) == traced.tokens
        assert found["ids"].tolist() == traced.ids.tolist()
    assert status == 0
    assert out == f"a.npz  {(here / 'a.npz').stat().st_size:,} bytes\n"


@pytest.mark.parametrize(
    "command",
    [
        ["attention", "--text", "The moon", "--out", "OUT.png"],
        ["inspect", "--text", "The moon", "--out", "OUT.csv"],
        ["perplexity", "--data", "sample", "--out", "OUT.html"],
        ["perplexity", "--data", "sample", "--tokens", "OUT.csv"],
    ],
    ids=lambda command: f"{command[0]} {command[3]}",
)
@pytest.mark.parametrize("place", ["no/such/folder/x", "a-file/x", "folder/taken"])
def test_file_needs_a_folder_that_is_there_and_is_refused_before_a_model_is_loaded(call, here, command, place):
    (here / "a-file").write_text("")
    for suffix in ("png", "csv", "html"):
        (here / "folder" / f"taken.{suffix}").mkdir(parents=True)
    before = sorted(here.rglob("*"))
    status, out, err = call(*(part.replace("OUT", place) for part in command), "--model", "no-such-model")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "cannot be written" in err or "is a folder; name a file in it" in err
    assert sorted(here.rglob("*")) == before


def test_attention_writes_the_part_asked_for(call, here, tiny_folder, tiny_lab):
    arguments = ["--model", tiny_folder, "--text", "The moon", "--layer", 1, "--head", 3]
    assert call("attention", *arguments, "--out", "a.npz")[0] == call("attention", *arguments, "--out", "a.csv")[0] == 0
    weights = trace(tiny_lab, "The moon").attention(1, 3).numpy()
    with np.load(here / "a.npz", allow_pickle=False) as found:
        assert (found["layers"].tolist(), found["heads"].tolist()) == ([1], [3])
        np.testing.assert_allclose(found["weights"][0, 0], weights, atol=1e-6)
    rows = list(csv.DictReader((here / "a.csv").open(encoding="utf-8", newline="")))
    assert float(rows[-1]["weight"]) == pytest.approx(float(weights[-1, -1]), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "start"),
    [("a.png", b"\x89PNG"), ("A.SVG", b"<?xml"), ("a.html", b"<!doctype html>"), ("a.csv", b"layer,")],
)
def test_attention_writes_the_format_that_the_name_asks_for(call, here, tiny_folder, name, start):
    status, _, _ = call("attention", "--model", tiny_folder, "--text", "The moon", "--out", name)
    assert status == 0
    assert (here / name).read_bytes().startswith(start)


def test_attention_says_which_part_of_a_long_text_it_shows(call, here, tiny_folder):
    status, _, err = call("attention", "--model", tiny_folder, "--text", "x" * 65, "--out", "a.npz")
    assert status == 0
    assert "the first 64 of 65 tokens; the rest does not fit the model\n" in err
    with np.load(here / "a.npz", allow_pickle=False) as found:
        assert found["tokens"].shape == (64,)


def test_attention_compares_two_models_and_two_texts(call, here, tiny_folder, tiny_lab, random_gpt2, tiny_tokenizer):
    other = here / "other"
    random_gpt2(seed=5).save_pretrained(other)
    tiny_tokenizer.save_pretrained(other)
    first = trace(tiny_lab, "the sea.").attention(1).numpy()
    for option, value in (("--compare", other), ("--compare-text", "the sea!")):
        arguments = ["--model", tiny_folder, "--text", "the sea.", option, value]
        assert call("attention", *arguments, "--layer", 1, "--out", "a.npz")[0] == 0
        with np.load(here / "a.npz", allow_pickle=False) as found:
            np.testing.assert_allclose(found["weights"][0], first, atol=1e-6)
            assert np.abs(found["other_weights"][0] - first).max() > 1e-3
        assert call("attention", *arguments, "--out", "a.html")[0] == 0
        state = re.search('id="state">(.*?)</script>', (here / "a.html").read_text(), re.DOTALL).group(1)
        assert len(json.loads(state)["data"]["sides"]) == 2


def test_attention_maps_a_score_of_every_head(call, here, tiny_folder, tiny_lab):
    arguments = ["--model", tiny_folder, "--text", "The moon is round.", "--score", "previous_token"]
    assert call("attention", *arguments, "--out", "a.csv")[0] == call("attention", *arguments, "--out", "a.png")[0] == 0
    rows = list(csv.reader((here / "a.csv").open(encoding="utf-8", newline="")))
    expected = head_scores(tiny_lab, ["The moon is round."]).previous_token.flatten().tolist()
    assert [float(row[-1]) for row in rows[1:]] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("view", ["head", "model", "neuron"])
def test_attention_writes_the_views_of_bertviz_and_says_their_size_first(call, here, tiny_folder, view):
    arguments = ["--model", tiny_folder, "--text", "The moon", "--out", "a.html", "--view", view]
    status, _, err = call("attention", *arguments)
    assert status == 0
    assert f"{view} view of layers 0-1 of 2, heads 0-3 of 4, about 0." in err
    assert "bertviz" in (here / "a.html").read_text()


@pytest.mark.parametrize(
    ("name", "start"), [("a.png", b"\x89PNG"), ("a.html", b"<!doctype html>"), ("a.csv", b"query,query_token,key")]
)
def test_attention_follows_attention_through_all_layers(call, here, tiny_folder, name, start):
    arguments = ["--model", tiny_folder, "--text", "The moon", "--view", "rollout", "--out", name]
    assert call("attention", *arguments)[0] == 0
    assert (here / name).read_bytes().startswith(start)


def test_app_serves_the_page_at_the_address_given(call, monkeypatch, tmp_path):
    calls = []
    command = importlib.import_module("gpt2lab.cli.app")
    monkeypatch.setattr(command, "build_app", lambda runs: ("app", runs))
    monkeypatch.setattr(command, "serve", lambda app, **where: calls.append((app, where)))
    assert call("app", "--port", 0, "--host", "127.0.0.2", "--runs", tmp_path)[0] == 0
    assert call("app")[0] == 0
    assert calls == [
        (("app", tmp_path), {"host": "127.0.0.2", "port": 0, "mcp": False}),
        (("app", Path("runs")), {"host": "127.0.0.1", "port": 7860, "mcp": False}),
    ]


USUAL = {
    "finetune": {"--model": "TINY", "--data": "TEXTS/splits", "--steps": 2, "--block-size": 16},
    "perplexity": {"--model": "TINY", "--data": "TEXTS/splits"},
    "generate": {"--model": "TINY", "--prompt": "The moon", "--max-new-tokens": 2},
    "attention": {"--model": "TINY", "--text": "The moon", "--out": "a.npz"},
}
BAD = [
    ("finetune", {"--model": "/no/model"}, "no model '/no/model': no such folder"),
    ("finetune", {"--model": "TEXTS/nothing"}, "has no config.json; give a folder written by save_pretrained()"),
    ("finetune", {"--data": "no.txt"}, "no text 'no.txt': no such file or folder; use sample"),
    ("finetune", {"--data": "TEXTS/empty.txt"}, "empty.txt is empty; give a file with text"),
    ("finetune", {"--data": "TEXTS/binary.txt"}, "binary.txt is not UTF-8 text (byte 128); save it as UTF-8"),
    ("finetune", {"--data": "TEXTS/zeros.txt"}, "zeros.txt is binary (a zero byte at 4); give a text file"),
    ("finetune", {"--data": "TEXTS/nothing"}, "has no train, validation or test file"),
    ("finetune", {"--data": "TEXTS/short.txt"}, "less than one block of 16; give more text or a smaller block"),
    ("finetune", {"--steps": 0}, "steps 0 is out of range; use a whole number from 1"),
    ("finetune", {"--steps": "many"}, "'--steps': Input should be a valid integer"),
    ("finetune", {"--steps": 1.5}, "'--steps': Input should be a valid integer"),
    ("finetune", {"--epochs": 1}, "steps 2 and epochs 1.0 are both given; give one of them"),
    ("finetune", {"--steps": None, "--epochs": "nan"}, "epochs nan is out of range"),
    ("finetune", {"--steps": None, "--epochs": 0}, "epochs 0 trains nothing; use a number above 0"),
    ("finetune", {"--lr": 0}, "learning_rate 0 trains nothing"),
    ("finetune", {"--lr": "inf"}, "learning_rate inf is out of range"),
    ("finetune", {"--block-size": 65}, "a block of 65 tokens is past the context of"),
    ("finetune", {"--block-size": 1}, "block_size 1 is out of range; use a whole number from 2"),
    ("finetune", {"--batch-size": 0}, "batch_size 0 is out of range"),
    ("finetune", {"--seed": -1}, "seed -1 is out of range"),
    ("finetune", {"--run": "../x"}, "'../x' is not a valid run id"),
    ("finetune", {"--run": ""}, "'' is not a valid run id"),
    ("finetune", {"--runs": "TEXTS/empty.txt"}, "empty.txt cannot be written"),
    ("finetune", {"--method": "half"}, "method 'half' is unknown; use full, lora, scratch"),
    ("finetune", {"--lora-rank": 0}, "lora_rank 0 is out of range"),
    ("finetune", {"--patience": -1}, "patience -1 is out of range"),
    ("finetune", {"--save-every": 0}, "save_every 0 is out of range"),
    ("finetune", {"--precision": "fp8"}, "precision 'fp8' is unknown; use auto, fp32, bf16"),
    ("finetune", {"--report-to": "paper"}, "report_to 'paper' is unknown; use none, tensorboard, trackio"),
    ("finetune", {"--prompt": "x" * 65}, "the prompt has 65 tokens;"),
    ("finetune", {"--resume": "../x"}, "'../x' is not a valid run id"),
    ("finetune", {"--resume": "nobody"}, "there is no run 'nobody' in runs"),
    ("perplexity", {"--model": "/no/model"}, "no model '/no/model'"),
    ("perplexity", {"--data": "no.txt"}, "no text 'no.txt'"),
    ("perplexity", {"--split": "dev"}, "split 'dev' is unknown; use train, validation, test, all"),
    ("perplexity", {"--protocol": "magic"}, "protocol 'magic' is unknown; use sliding, lm-eval, blocks, all"),
    ("perplexity", {"--protocol": "sliding,,"}, "protocol '' is unknown"),
    ("perplexity", {"--protocol": "lm-eval", "--stride": 8}, "stride 8 is of sliding windows, and lm-eval has none"),
    ("perplexity", {"--by": "colour"}, "breakdown 'colour' is unknown; use document, position, frequency, part"),
    ("perplexity", {"--quick": 0}, "quick 0 is out of range; use a whole number from 1"),
    ("perplexity", {"--seed": -1}, "seed -1 is out of range"),
    ("perplexity", {"--compare": "TINY"}, "give one, or two different ones to compare"),
    ("perplexity", {"--compare": "/no/model"}, "no model '/no/model'"),
    ("perplexity", {"--out": "found.pdf"}, "'found.pdf' ends in no format known here; use .html or .csv"),
    ("perplexity", {"--tokens": "tokens.txt"}, "'tokens.txt' ends in no format known here; use .csv"),
    (
        "perplexity",
        {"--tokens": "tokens.csv", "--protocol": "all"},
        "--tokens is of one protocol, and 'all' is several",
    ),
    ("perplexity", {"--data": "TEXTS/binary.txt"}, "is not UTF-8 text"),
    (
        "perplexity",
        {"--data": "TEXTS/short.txt", "--split": "train", "--protocol": "blocks"},
        "a block of 64; give more text",
    ),
    ("perplexity", {"--context": 65}, "65 is out of range; use a whole number from 2 to 64"),
    ("perplexity", {"--context": 0}, "0 is out of range; use a whole number from 2 to 64"),
    ("perplexity", {"--stride": 0}, "stride 0 is out of range; use a whole number from 1 to 64"),
    ("generate", {"--model": "/no/model"}, "no model '/no/model'"),
    ("generate", {"--compare": "/no/model"}, "no model '/no/model'"),
    ("generate", {"--min-p": 2}, "min_p 2.0 is out of range"),
    ("generate", {"--repetition-penalty": 0}, "repetition_penalty 0 divides by zero; use 1 for none"),
    ("generate", {"--window": 0}, "window 0 is out of range; use a whole number from 1 to 63"),
    ("generate", {"--stop": ""}, "stop ('',) is refused; give up to 16 strings, none of them empty"),
    ("generate", {"--count": 0}, "count 0 is out of range"),
    ("generate", {"--beams": 1}, "beams 1 is out of range"),
    (
        "generate",
        {"--beams": 2, "--count": 3, "--top-k": 5},
        "--beams 2 searches for one text within the context and draws none; leave --top-k, --count out",
    ),
    ("generate", {"--prompt": "x" * 65}, "the prompt has 65 tokens;"),
    (
        "generate",
        {"--prompt": "moon \udcff"},
        "the text contains half a character (a lone surrogate) at position 5; remove it",
    ),
    ("generate", {"--prompt": None}, "Missing option '--prompt'"),
    ("generate", {"--temperature": "nan"}, "temperature nan is out of range; use a number from 0 to 100"),
    ("generate", {"--temperature": -1}, "temperature -1.0 is out of range"),
    ("generate", {"--temperature": "hot"}, "'--temperature': Input should be a valid number"),
    ("generate", {"--top-k": 0}, "top_k 0 is out of range"),
    ("generate", {"--top-k": 301}, "top_k 301 is past the vocabulary"),
    ("generate", {"--top-p": 0}, "top_p 0 leaves no token"),
    ("generate", {"--top-p": 1.5}, "top_p 1.5 is out of range"),
    ("generate", {"--max-new-tokens": 0}, "max_new_tokens 0 is out of range"),
    ("generate", {"--seed": -1}, "seed -1 is out of range"),
    ("attention", {"--text": ""}, "is empty; type at least one character"),
    ("attention", {"--text": "x" * 1_000_001}, "the text has 1,000,001 characters; the limit is 1,000,000"),
    ("attention", {"--compare-text": "The"}, "do not pair up; lengthen or shorten a text"),
    ("attention", {"--compare": "nowhere"}, "no model 'nowhere'"),
    ("attention", {"--score": "", "--out": "a.png"}, "score '' is unknown; use previous_token, "),
    ("attention", {"--score": "sink", "--out": "a.png"}, "score 'sink' is unknown; use previous_token, "),
    ("attention", {"--score": "entropy", "--layer": 0}, "--score entropy is of all heads of one model and text"),
    ("attention", {"--score": "entropy", "--text": "x", "--out": "a.csv"}, "one token has no token before it"),
    ("attention", {"--view": "head"}, "bertviz' head view is a page, no .npz file; end the file's name in .html"),
    ("attention", {"--view": "rollout", "--layer": 0}, "--view rollout is of all heads of one model and text"),
    ("attention", {"--view": "rollout", "--compare-text": "a"}, "--view rollout is of one model and one text"),
    ("attention", {"--view": "both", "--out": "a.html"}, "view 'both' is unknown; use explorer, rollout, head, "),
    (
        "attention",
        {"--out": "a.jpg"},
        "format 'jpg' is unknown; end the file's name in .html, .png, .svg, .csv, .npz, .json",
    ),
    ("attention", {"--out": "a"}, "format '' is unknown"),
    ("attention", {"--out": None}, "Missing option '--out'"),
    ("attention", {"--out": "TEXTS/empty.txt/a.png"}, "empty.txt"),
    ("attention", {"--head": 0}, "head 0 needs a layer; give the layer too"),
    ("attention", {"--layer": 2}, "layer 2 is out of range; "),
    ("attention", {"--layer": 0, "--head": 4}, "head 4 is out of range; "),
    ("attention", {"--text": "x" * 49, "--out": "a.html", "--view": "head"}, "head view of 49 tokens would freeze"),
    ("attention", {"--nonsense": 1}, "No such option: --nonsense"),
    ("finetune", {"--nonsense": 1}, "No such option: --nonsense"),
]


def arguments_of(command, changes, names):
    options = {name: value for name, value in (USUAL[command] | changes).items() if value is not None}
    arguments = [str(argument) for option in options.items() for argument in option]
    for short, full in names.items():
        arguments = [argument.replace(short, str(full)) for argument in arguments]
    return [command, *arguments]


def files_below(folder):
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize(("command", "changes", "message"), BAD, ids=[f"{one[0]} {one[1]}"[:60] for one in BAD])
def test_bad_input_ends_with_2_and_one_line_and_writes_nothing(
    call, tmp_path, tiny_folder, texts, command, changes, message
):
    before = files_below(tmp_path), files_below(texts)
    status, out, err = call(*arguments_of(command, changes, {"TINY": tiny_folder, "TEXTS": texts}))
    assert status == 2
    assert message in err
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("gpt2lab: ")
    assert (files_below(tmp_path), files_below(texts)) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["--nonsense"], "No such option: --nonsense"),
        (["app", "--port", "65536"], "'--port': Input should be less than or equal to 65535"),
        (["app", "--port", "x"], "'--port': Input should be a valid integer"),
        ([], "Missing command"),
    ],
)
def test_bad_usage_ends_with_2_and_one_line_that_points_to_the_help(call, arguments, message):
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.startswith("gpt2lab: ")
    assert err.endswith("; see --help\n")
    assert err.count("\n") == 1


def test_output_that_is_a_folder_is_refused_by_name(call, here, tiny_folder):
    (here / "a.png").mkdir()
    status, out, err = call("attention", "--model", tiny_folder, "--text", "The moon", "--out", "a.png")
    assert (status, out) == (2, "")
    assert "a.png" in err
    assert [path.name for path in here.iterdir()] == ["a.png"]


def test_message_of_many_lines_is_reported_in_one(capsys):
    with pytest.raises(SystemExit) as end:
        cli.fail("one\n  two\tthree")
    assert (end.value.code, capsys.readouterr().err) == (2, "gpt2lab: one two three\n")


def test_taken_run_is_refused_and_kept(call, tiny_folder, texts, tuned):
    folder = tuned[1].parent
    before = {path: path.read_bytes() for path in files_below(folder) if path.is_file()}
    status, out, err = call(*tune(tiny_folder, texts, "--run", "my-run", "--runs", folder, "--seed", 1))
    assert (status, out) == (2, "")
    assert f"run 'my-run' is already there in {folder}; choose another id" in err
    assert {path: path.read_bytes() for path in files_below(folder) if path.is_file()} == before


def test_fault_is_not_hidden_as_bad_input(call, monkeypatch, tiny_folder):
    def broken(name):
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr("gpt2lab.cli.models.load_model", broken)
    with pytest.raises(RuntimeError, match="the disk is on fire"):
        call("generate", "--model", tiny_folder, "--prompt", "The moon")


def test_interrupt_ends_with_130(call, monkeypatch, tiny_folder):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("gpt2lab.cli.models.load_model", interrupted)
    assert call("generate", "--model", tiny_folder, "--prompt", "The moon")[0] == 130


@pytest.mark.parametrize("command", ["demo", "finetune", "runs", "perplexity", "generate", "task", "attention", "app"])
def test_every_command_explains_itself(call, command):
    status, out, _ = call(command, "--help")
    assert (status, command in out) == (0, True)


def process(*arguments, **variables):
    command = [sys.executable, "-m", "gpt2lab", *map(str, arguments)]
    options = {"cwd": ROOT, "env": os.environ | variables, "text": True, "encoding": "utf-8", "timeout": 300}
    return subprocess.run(command, capture_output=True, check=False, **options)


def test_one_of_several_processes_ends_with_its_own_status_and_all_it_has_said(tmp_path):
    variables = {"WORLD_SIZE": "2", "RANK": "0"}
    done = process("runs", "list", "--runs", tmp_path, "--json", **variables)
    assert (done.returncode, json.loads(done.stdout)["runs"]) == (0, [])
    done = process("runs", "show", "nothing", "--runs", tmp_path, **variables)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_module_run_as_a_process_lists_its_commands():
    done = process("--help")
    assert done.returncode == 0
    for command in ("demo", "finetune", "runs", "perplexity", "generate", "task", "attention", "app"):
        assert command in done.stdout


def test_process_prints_json_alone_on_standard_output(tiny_folder, tiny_lab, tmp_path):
    arguments = ["generate", "--model", tiny_folder, "--prompt", "The moon", "--max-new-tokens", 3, "--json"]
    done = Command(tmp_path / "command", *arguments).finish()
    expected = generate(tiny_lab, "The moon", max_new_tokens=3, temperature=0.8, top_p=0.95, seed=0)
    assert done.returncode == 0
    assert one_object(done.stdout)["text"] == expected.text


def test_process_ends_with_2_on_bad_input():
    done = process("finetune", "--steps", 0)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "gpt2lab: steps 0 is out of range; use a whole number from 1 to 10,000,000\n"


EVERY_OPTION = {
    "--model": "some model",
    "--data": "some text",
    "--method": "lora",
    "--lora-rank": 3,
    "--steps": 57,
    "--block-size": 33,
    "--batch-size": 5,
    "--grad-accum": 6,
    "--lr": 0.002,
    "--seed": 9,
    "--eval-every": 11,
    "--patience": 2,
    "--save-every": 13,
    "--precision": "fp32",
    "--report-to": "tensorboard",
    "--prompt": "the moon",
}
SETTINGS = {"learning_rate" if name == "--lr" else name[2:].replace("-", "_"): v for name, v in EVERY_OPTION.items()}


@pytest.fixture
def spawned(monkeypatch):
    """The (run, whether it may wait) of every process that would have been started."""
    asked = []
    monkeypatch.setattr(jobs, "spawn", lambda folder, queue: asked.append((folder.name, queue)))
    return asked


def test_detached_finetune_is_a_run_with_every_option_and_its_id_in_json(call, here, spawned):
    options = [argument for option in EVERY_OPTION.items() for argument in option]
    switches = ["--gradient-checkpointing", "--compile", "--detach", "--queue", "--json"]
    status, out, err = call("finetune", *options, *switches, "--run", "mine")
    found = one_object(out)
    assert (status, err) == (0, "")
    assert (found["run"], found["state"]) == ("mine", "queued")
    assert Path(found["folder"]).resolve() == here / "runs" / "mine"
    config = json.loads((here / "runs" / "mine" / "config.json").read_text(encoding="utf-8"))
    assert SETTINGS.items() <= config.items()
    assert config["gradient_checkpointing"] is config["compile"] is True
    assert spawned == [("mine", True)]


def test_second_detached_finetune_is_refused_while_the_first_is_at_work(call, here, spawned):
    assert call("finetune", "--model", "builtin", "--data", "sample", "--detach", "--run", "one")[0] == 0
    status, out, err = call("finetune", "--model", "builtin", "--data", "sample", "--detach", "--run", "two")
    assert (status, out) == (2, "")
    assert err == "gpt2lab: run 'one' is under way on this machine; stop it, wait, or queue this run\n"
    assert spawned == [("one", False)]
    assert [path.name for path in (here / "runs").iterdir()] == ["one"]


def test_dry_run_says_what_a_run_would_cost_and_leaves_nothing(call, here, tiny_folder, texts, monkeypatch):
    monkeypatch.setattr("gpt2lab.training.cost.import_seconds", lambda: 5.0)
    status, out, _ = call(*tune(tiny_folder, texts, "--dry-run"))
    found = one_object(out)
    assert status == 0
    parameters = 300 * 32 + 64 * 32 + 2 * (12 * 32 * 32 + 13 * 32) + 2 * 32
    assert (found["parameters"], found["trained"]) == (parameters, parameters)
    assert (found["steps"], found["tokens"]) == (3, 3 * 4 * 16)
    for key in ("seconds", "seconds_doubt", "memory", "disk", "disk_free"):
        assert found[key] > 0
    assert found["in_words"]["Parameters trained"] == f"{parameters:,} of {parameters:,}"
    assert [*here.iterdir()] == []
    status, out, _ = call(*(argument for argument in tune(tiny_folder, texts, "--dry-run") if argument != "--json"))
    assert status == 0
    assert "Peak memory" in out


def test_dry_run_of_bad_settings_ends_with_2_and_one_line(call, here, tiny_folder, texts):
    status, out, err = call(*tune(tiny_folder, texts, "--dry-run", "--method", "half"))
    assert (status, out, err) == (2, "", "gpt2lab: method 'half' is unknown; use full, lora, scratch\n")


def leave(folder, run, state, *, created="2026-01-01", **changes):
    """The folder of a run that this process has left in a state."""
    made = runs.new_run(folder, asdict(TrainConfig(model="builtin", data="sample", steps=7)), run)
    runs.write_json(made / "config.json", runs.read_config(made) | {"created": created})
    runs.write_status(made, runs.RunStatus(state, 3, 7, **runs.this_process(), **changes))
    return made


def test_list_of_runs_has_what_others_rely_on_newest_first(call, here):
    leave(here / "runs", "old", "finished", created="2026-01-01")
    leave(here / "runs", "new", "failed", created="2026-02-01", message="the disk is on fire")
    (leave(here / "runs", "half", "stopped", created="2025-01-01") / "status.json").write_text("{")
    status, out, _ = call("runs", "list", "--json")
    first, second, third = one_object(out)["runs"]
    assert status == 0
    keys = ("id", "state", "step", "total_steps", "model", "data", "created")
    assert [first[key] for key in keys] == ["new", "failed", 3, 7, "builtin", "sample", "2026-02-01"]
    assert [second[key] for key in keys] == ["old", "finished", 3, 7, "builtin", "sample", "2026-01-01"]
    assert (third["id"], third["state"]) == ("half", "failed")
    assert first["message"] == "the disk is on fire"
    status, shown, _ = call("runs", "list")
    assert [line.split()[:3] for line in shown.splitlines()] == [
        ["new", "failed", "3/7"],
        ["old", "finished", "3/7"],
        ["half", "failed", "0/?"],
    ]
    assert call("runs")[1] == shown


def test_options_of_runs_may_stand_before_the_word(call, here):
    leave(here / "elsewhere", "mine", "stopped", created="2026-01-01")
    for arguments in (["list"], []):
        status, out, _ = call("runs", "--runs", "elsewhere", "--json", *arguments)
        assert (status, [run["id"] for run in one_object(out)["runs"]]) == (0, ["mine"])
    status, out, _ = call("runs", "--runs", "elsewhere", "show", "mine", "--json")
    assert (status, one_object(out)["id"]) == (0, "mine")
    assert call("runs", "--runs", "elsewhere", "list", "--runs", "nowhere")[1] == "no runs in nowhere\n"


@pytest.mark.parametrize("arguments", [["runs", "list", "--json"], ["runs", "--json"]])
def test_list_of_no_runs_is_empty(call, arguments):
    status, out, _ = call(*arguments)
    assert (status, one_object(out)) == (0, {"runs": []})
    assert call("runs", "list")[:2] == (0, "no runs in runs\n")


def test_show_has_status_settings_losses_texts_and_log_of_a_run(call, here):
    folder = leave(here / "runs", "mine", "stopped", message="enough", tokens_per_second=12.5)
    metric = {"step": 3, "tokens": 96, "split": "validation", "loss": 2.5, "lr": 1e-3, "seconds": 0.5}
    runs.append_line(folder / "metrics.jsonl", metric)
    runs.append_line(folder / "samples.jsonl", {"step": 3, "prompt": "The", "text": " moon é 🌙"})
    (folder / "log.txt").write_text("a bar: 1%\ra bar: 2%\n")
    status, out, _ = call("runs", "show", "mine", "--json")
    found = one_object(out)
    assert (status, found["id"], found["state"], found["message"]) == (0, "mine", "stopped", "enough")
    assert (found["step"], found["total_steps"], found["tokens_per_second"]) == (3, 7, 12.5)
    assert found["config"]["model"] == "builtin"
    assert [metric.items() <= one.items() for one in found["metrics"]] == [True]
    assert found["samples"] == [{"step": 3, "prompt": "The", "text": " moon é 🌙"}]
    assert found["log"] == "a bar: 2%\n"
    status, shown, _ = call("runs", "show", "mine")
    assert status == 0
    for words in ("mine", "stopped", "enough", "step      3  validation loss 2.5000  perplexity 12.18", "a bar: 2%"):
        assert words in shown


@pytest.mark.parametrize("want", ["stop", "pause"])
def test_run_at_work_is_asked_to_end_and_its_last_status_is_printed(call, here, want):
    folder = leave(here / "runs", "mine", "running")
    asked = []

    def end_when_asked():
        deadline = time.monotonic() + 30
        while not runs.requested_action(folder) and time.monotonic() < deadline:
            time.sleep(0.01)
        asked.append(runs.requested_action(folder))
        status = runs.RunStatus("stopped", 5, 7, **runs.this_process(), message="its last word")
        runs.write_status(folder, status)

    running = threading.Thread(target=end_when_asked)
    running.start()
    status, out, _ = call("runs", want, "mine", "--json")
    running.join()
    assert (status, asked) == (0, [want])
    assert one_object(out) == {"id": "mine", "state": "stopped", "step": 5, "message": "its last word"}


@pytest.mark.parametrize(
    ("command", "state", "message"),
    [
        ("stop", "stopped", "run 'mine' is stopped; there is nothing to stop"),
        ("pause", "finished", "run 'mine' is finished; there is nothing to stop"),
        ("resume", "finished", "run 'mine' is finished; start a new run to train on"),
        ("resume", "running", "run 'mine' is running; there is nothing to resume"),
        ("report", "failed", "run 'mine' has left no model yet, so there is nothing to report"),
    ],
)
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_wish_that_a_run_cannot_be_granted_ends_with_2_and_one_line(call, here, command, state, message, as_json):
    folder = leave(here / "runs", "mine", state)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    status, out, err = call("runs", command, "mine", *as_json)
    assert (status, out, err) == (2, "", f"gpt2lab: {message}\n")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("as_json", [[], ["--json"]])
@pytest.mark.parametrize("run", ["nobody", "../x", "..", "/etc", "A", "a" * 81])
@pytest.mark.parametrize("command", ["show", "stop", "pause", "resume", "report"])
def test_unknown_run_ends_with_2_and_one_line(call, here, command, run, as_json):
    leave(here / "runs", "mine", "stopped")
    leave(here, "x", "stopped")
    status, out, err = call("runs", command, run, *as_json)
    assert (status, out) == (2, "")
    what = (
        "there is no run 'nobody' in runs; `runs list` shows"
        if run == "nobody"
        else f"'{run}' is not a valid run id; use"
    )
    assert err.startswith(f"gpt2lab: {what}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["show", "stop", "pause", "resume", "report"])
def test_run_of_which_nothing_can_be_read_ends_with_2_and_one_line(call, here, command):
    folder = leave(here / "runs", "mine", "stopped")
    for path in folder.iterdir():
        path.write_bytes(b"{\xff")
    status, out, err = call("runs", command, "mine")
    assert (status, out, err.count("\n")) == (2, "", 1)


def test_paused_run_is_resumed_in_the_foreground_and_reported(call, here, tiny_folder, texts, monkeypatch):
    monkeypatch.setattr(worker, "write_report", lambda folder: (folder / "report.html").write_text(""))
    settings = {"model": str(tiny_folder), "data": str(texts / "splits"), "block_size": 16, "batch_size": 4, "steps": 3}
    folder = runs.new_run(here / "runs", asdict(TrainConfig(**settings)), "mine")
    runs.write_status(folder, runs.RunStatus("stopped", 0, 3, **runs.this_process()))
    runs.request_action(folder, "pause")
    status, out, _ = call("runs", "resume", "mine", "--json")
    found = one_object(out)
    assert status == 0
    assert set(FINETUNE_KEYS.split()) <= set(found)
    assert (found["run"], found["steps"], found["stopped"]) == ("mine", 3, False)
    assert read_status(folder).state == "finished"
    (folder / "report.html").unlink()
    status, out, _ = call("runs", "report", "mine", "--json")
    assert (status, one_object(out)) == (0, {"run": "mine", "report": "runs/mine/report.html"})
    assert "Fine-tuning run mine" in (folder / "report.html").read_text(encoding="utf-8")


def test_run_resumed_detached_is_reported_in_json(call, here, spawned):
    folder = leave(here / "runs", "mine", "stopped")
    status, out, _ = call("runs", "resume", "mine", "--detach", "--queue", "--json")
    found = one_object(out)
    assert (status, found["run"], found["state"]) == (0, "mine", "queued")
    assert Path(found["folder"]).resolve() == folder
    assert spawned == [("mine", True)]


def test_run_detached_by_one_process_continues_to_its_end_without_it(call, tiny_folder, texts, tmp_path):
    arguments = tune(tiny_folder, texts, "--run", "mine", "--runs", tmp_path / "runs", "--detach")
    done = Command(tmp_path / "command", *arguments).finish()
    assert (done.returncode, done.stderr) == (0, "")
    found = one_object(done.stdout)
    assert (found["run"], found["state"]) == ("mine", "queued")
    folder, deadline = tmp_path / "runs" / "mine", time.monotonic() + 120
    while read_status(folder).alive and time.monotonic() < deadline:
        time.sleep(0.2)
    status = read_status(folder)
    assert (status.state, status.step) == ("finished", 3), runs.log_tail(folder)
    assert status.pid != os.getpid()
    shown = one_object(call("runs", "show", "mine", "--runs", tmp_path / "runs", "--json")[1])
    assert (shown["state"], len(shown["samples"])) == ("finished", 4)
    assert "3/3" in shown["log"]
    while psutil.pid_exists(status.pid) and time.monotonic() < deadline:  # it writes its report last
        time.sleep(0.2)
    assert (folder / "report.html").exists(), runs.log_tail(folder)
    log = runs.log_tail(folder)
    assert log.startswith(f"run mine in {tmp_path / 'runs'}\n")
    assert log.endswith(f"\nfinished: {status.message}\n")
    shutil.rmtree(folder)
    assert one_object(call("runs", "list", "--runs", tmp_path / "runs", "--json")[1]) == {"runs": []}


@pytest.mark.parametrize("group", [cli.Commands, RunCommands], ids=["gpt2lab", "runs"])
def test_a_command_that_is_imported_when_called_has_the_help_that_is_listed(group):
    commands = group(name="group")
    for name, (_, help) in group.places.items():
        assert commands.imported(name).help.splitlines()[0] == help

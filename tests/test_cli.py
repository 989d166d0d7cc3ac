import csv
import json
import subprocess
import sys
from math import exp, log
from pathlib import Path

import numpy as np
import pytest
import torch

import gpt2lab
from gpt2lab import cli
from gpt2lab.inspection.trace import trace
from gpt2lab.model import load_model
from gpt2lab.sampling import generate
from gpt2lab.scoring import perplexity
from gpt2lab.text import load_text
from gpt2lab.training.runs import read_metrics, read_status

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


@pytest.fixture
def call(here, monkeypatch, capsys):
    """A function: arguments → (exit status, standard output, standard error) of the command in this process."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gpt2lab", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def texts(tmp_path):
    """The name of a folder with texts of all kinds."""
    folder = tmp_path / "texts"
    (folder / "splits").mkdir(parents=True)
    for split in ("train", "validation", "test"):
        (folder / "splits" / f"{split}.txt").write_text(TEXT, encoding="utf-8")
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


def test_finetune_prints_what_the_run_came_to(call, here, tiny_folder, texts):
    status, out, err = call(*tune(tiny_folder, texts, "--run", "my-run", "--lr", "1e-2"))
    found = one_object(out)
    assert status == 0
    assert set(FINETUNE_KEYS.split()) <= set(found)
    folder = here / "runs" / "my-run"
    assert (found["run"], found["steps"]) == ("my-run", 3)
    assert Path(found["model_dir"]).resolve() == folder / "model"
    validation = [metric.loss for metric in read_metrics(folder) if metric.split == "validation"]
    assert [found["val_loss_before"], found["val_loss_after"]] == [validation[0], validation[-1]]
    assert found["val_perplexity_before"] == exp(validation[0]) > found["val_perplexity_after"]
    assert found["tokens_per_second"] == pytest.approx(found["tokens"] / found["seconds"])
    assert read_status(folder).state == "finished"
    assert "3/3" in err


def test_finetune_passes_every_option_on(call, tiny_folder, texts, tmp_path):
    options = "--epochs 0.5 --block-size 8 --batch-size 3 --grad-accum 2 --lr 0.002 --seed 9 --eval-every 2"
    arguments = ["--model", tiny_folder, "--data", texts / "splits", *options.split(), "--runs", tmp_path / "elsewhere"]
    status, out, _ = call("finetune", *arguments, "--json")
    config = json.loads((tmp_path / "elsewhere" / one_object(out)["run"] / "config.json").read_text())
    assert status == 0
    expected = {"block_size": 8, "batch_size": 3, "grad_accum": 2, "learning_rate": 0.002, "seed": 9, "eval_every": 2}
    assert {name: config[name] for name in expected} == expected
    assert config["steps"] == one_object(out)["steps"] < 3


def test_finetuned_model_goes_into_the_other_commands(call, tiny_folder, texts):
    model = one_object(call(*tune(tiny_folder, texts))[1])["model_dir"]
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


def test_perplexity_for_a_reader_is_a_line_for_each_value(call, tiny_folder, texts):
    status, out, _ = call("perplexity", "--model", tiny_folder, "--data", texts / "splits", "--split", "validation")
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert status == 0
    assert lines["split"] == "validation"
    assert lines["n_bytes"] == str(len(TEXT))
    assert float(lines["bits_per_byte"]) == pytest.approx(
        float(lines["nll"].replace(",", "")) / len(TEXT) / log(2), rel=1e-3
    )


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
    status, out, _ = call("attention", "--model", tiny_folder, "--text", "The moon", "--out", "new/a.npz")
    traced = trace(tiny_lab, "The moon")
    with np.load(here / "new" / "a.npz", allow_pickle=False) as found:
        assert found["weights"].shape == (2, 4, len(traced.tokens), len(traced.tokens))
        np.testing.assert_allclose(found["weights"], torch.stack([traced.attention(i) for i in range(2)]), atol=1e-6)
        assert tuple(found["tokens"]) == traced.tokens
        assert found["ids"].tolist() == traced.ids.tolist()
    assert status == 0
    assert out == f"new/a.npz  {(here / 'new' / 'a.npz').stat().st_size:,} bytes\n"


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


def test_app_serves_the_page_where_it_was_told_to(call, monkeypatch, tmp_path):
    calls = []
    ui = type(sys)("gpt2lab.ui")
    ui.build_app = lambda runs: ("app", runs)
    ui.serve = lambda app, **where: calls.append((app, where))
    monkeypatch.setitem(sys.modules, "gpt2lab.ui", ui)
    assert call("app", "--port", 0, "--host", "127.0.0.2", "--runs", tmp_path)[0] == 0
    assert call("app")[0] == 0
    assert calls == [
        (("app", tmp_path), {"host": "127.0.0.2", "port": 0}),
        (("app", Path("runs")), {"host": "127.0.0.1", "port": 7860}),
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
    ("finetune", {"--run": "../x"}, "run '../x' is no run id"),
    ("finetune", {"--run": ""}, "run '' is no run id"),
    ("finetune", {"--runs": "TEXTS/empty.txt"}, "empty.txt cannot be written"),
    ("perplexity", {"--model": "/no/model"}, "no model '/no/model'"),
    ("perplexity", {"--data": "no.txt"}, "no text 'no.txt'"),
    ("perplexity", {"--split": "dev"}, "split 'dev' is unknown; use one of train, validation, test"),
    ("perplexity", {"--protocol": "magic"}, "protocol 'magic' is unknown; use sliding"),
    ("perplexity", {"--context": 65}, "65 is out of range; use a whole number from 2 to 64"),
    ("perplexity", {"--context": 0}, "0 is out of range; use a whole number from 2 to 64"),
    ("perplexity", {"--stride": 0}, "stride 0 is out of range; use a whole number from 1 to 64"),
    ("generate", {"--model": "/no/model"}, "no model '/no/model'"),
    ("generate", {"--compare": "/no/model"}, "no model '/no/model'"),
    ("generate", {"--prompt": ""}, "the prompt is empty; type at least one character"),
    ("generate", {"--prompt": "x" * 65}, "the prompt has 65 tokens;"),
    ("generate", {"--prompt": "moon \udcff"}, "the text has half a character (a lone surrogate) at 5; remove it"),
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
    ("attention", {"--text": "x" * 65}, "has 65 tokens;"),
    ("attention", {"--out": "a.jpg"}, "'a.jpg' ends in no format known here; use .html, .png, .svg, .csv, .npz"),
    ("attention", {"--out": "a"}, "'a' ends in no format known here"),
    ("attention", {"--out": None}, "Missing option '--out'"),
    ("attention", {"--out": "TEXTS/empty.txt/a.png"}, "empty.txt"),
    ("attention", {"--head": 0}, "head 0 of which layer? give the layer too, 0 to 1"),
    ("attention", {"--layer": 2}, "layer 2 does not exist; "),
    ("attention", {"--layer": 0, "--head": 4}, "head 4 does not exist; "),
    ("attention", {"--text": "x" * 49, "--out": "a.html"}, "head view of 49 tokens would freeze the browser"),
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
    return sorted(path for path in folder.rglob("*") if "gpt2lab-cache" not in path.parts)


@pytest.mark.parametrize(("command", "changes", "message"), BAD, ids=[f"{one[0]} {one[1]}"[:60] for one in BAD])
def test_bad_input_ends_with_2_and_one_line_and_writes_nothing(
    call, tmp_path, tiny_folder, texts, command, changes, message
):
    before = files_below(tmp_path)
    status, out, err = call(*arguments_of(command, changes, {"TINY": tiny_folder, "TEXTS": texts}))
    assert status == 2
    assert message in err
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("gpt2lab: ")
    assert files_below(tmp_path) == before


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


def test_message_of_many_lines_is_told_in_one(capsys):
    with pytest.raises(SystemExit) as end:
        cli.fail("one\n  two\tthree")
    assert (end.value.code, capsys.readouterr().err) == (2, "gpt2lab: one two three\n")


def test_taken_run_is_refused_and_kept(call, here, tiny_folder, texts):
    assert call(*tune(tiny_folder, texts, "--run", "mine"))[0] == 0
    before = {path: path.read_bytes() for path in files_below(here) if path.is_file()}
    status, out, err = call(*tune(tiny_folder, texts, "--run", "mine", "--seed", 1))
    assert (status, out) == (2, "")
    assert "run 'mine' is already there in runs; choose another id" in err
    assert {path: path.read_bytes() for path in files_below(here) if path.is_file()} == before


def test_fault_is_not_hidden_as_bad_input(call, monkeypatch, tiny_folder):
    def broken(name):
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr("gpt2lab.model.load_model", broken)
    with pytest.raises(RuntimeError, match="the disk is on fire"):
        call("generate", "--model", tiny_folder, "--prompt", "The moon")


def test_interrupt_ends_with_130(call, monkeypatch, tiny_folder):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("gpt2lab.model.load_model", interrupted)
    assert call("generate", "--model", tiny_folder, "--prompt", "The moon")[0] == 130


@pytest.mark.parametrize("command", ["demo", "finetune", "perplexity", "generate", "attention", "app"])
def test_every_command_explains_itself(call, command):
    status, out, _ = call(command, "--help")
    assert (status, command in out) == (0, True)


def process(*arguments):
    root = Path(gpt2lab.__file__).parents[1]
    command = [sys.executable, "-m", "gpt2lab", *map(str, arguments)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, encoding="utf-8", timeout=300, check=False)


def test_module_run_as_a_process_lists_its_commands():
    done = process("--help")
    assert done.returncode == 0
    for command in ("demo", "finetune", "perplexity", "generate", "attention", "app"):
        assert command in done.stdout


def test_process_prints_json_alone_on_standard_output(tiny_folder, tiny_lab):
    done = process("generate", "--model", tiny_folder, "--prompt", "The moon", "--max-new-tokens", 3, "--json")
    expected = generate(tiny_lab, "The moon", max_new_tokens=3, temperature=0.8, top_p=0.95, seed=0)
    assert done.returncode == 0
    assert one_object(done.stdout)["text"] == expected.text


def test_process_ends_with_2_on_bad_input():
    done = process("finetune", "--steps", 0)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "gpt2lab: steps 0 is out of range; use a whole number from 1 to 10,000,000\n"

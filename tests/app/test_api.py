"""The public endpoints: their names, what they answer, what they refuse, and the examples of the documentation."""

import json
import re
import shutil
import subprocess
import time

import pytest
from gradio_client import Client

from gpt2lab import ablate, generate, head_scores, load_model, load_text, logit_lens, perplexity, surprisal, trace
from gpt2lab.app import api, build_app, serve
from gpt2lab.app.api_runs import RunsApi, training_by_default
from gpt2lab.app.models import ModelStore
from gpt2lab.errors import LabError
from gpt2lab.results import finite
from gpt2lab.training import jobs, runs
from tests.processes import PATIENCE, ROOT, Worker

TEXT = "Marie Curie discovered polonium in Paris, and Marie Curie discovered radium in Paris."
ENDPOINTS = ["perplexity", "surprisal", "attention", "head_scores", "logit_lens", "generate", "ablate"]
ENDPOINTS += ["estimate", "start_run", "run_status"]
DOCS = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def app(runs_dir):
    demo = build_app(runs_dir, training=True)
    demo.url = serve(demo, block=False)
    yield demo
    demo.close(verbose=False)


@pytest.fixture(scope="module")
def ask(app):
    client = Client(app.url, verbose=False)
    return lambda name, *given, **named: client.predict(*given, **named, api_name=f"/{name}")


@pytest.fixture(scope="module")
def lab():
    return load_model("builtin", device="cpu")


@pytest.fixture
def forked_runs(monkeypatch, tmp_path):
    """Runs in forked processes, which have imported everything."""
    monkeypatch.setenv("GPT2LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(jobs.subprocess, "Popen", Worker)


def test_the_ten_functions_alone_are_public_and_their_parameters_have_names(app):
    public = {f"/{one.api_name}" for one in app.fns.values() if one.api_visibility == "public"}
    assert public == {f"/{name}" for name in ENDPOINTS}
    for name, endpoint in app.get_api_info()["named_endpoints"].items():
        function = getattr(api.Api, name[1:], None) or getattr(RunsApi, name[1:])
        names = [one["parameter_name"] for one in endpoint["parameters"]]
        assert names == list(function.__annotations__)[:-1]
        described = re.findall(r"^ {12}(\w+): \S", function.__doc__, re.MULTILINE)
        assert described[: len(names)] == names, name
        assert "Returns:" in function.__doc__


def test_answers_are_those_of_the_package(ask, lab):
    ids = lab.encode(TEXT).tolist()
    seen = trace(lab, TEXT)
    scored = ask("perplexity", quick=2, seed=3)
    assert scored["perplexity"] == perplexity(lab, load_text("sample").test, quick=2, seed=3).perplexity
    found = ask("surprisal", TEXT)
    expected = surprisal(lab, TEXT)
    assert (found["ids"], found["tokens"], found["loss"]) == (ids, list(seen.tokens), expected.loss)
    assert {name: found[name] for name in ("surprisal", "ranks")} == expected.record()
    assert [one["id"] for one in found["next"]] == expected.top[-1].tolist()
    assert ask("attention", TEXT, layer=2, head=3)["weights"][0][0] == seen.attention(2, 3).tolist()
    assert len(ask("attention", TEXT)["weights"]) == seen.n_layers
    assert ask("head_scores", [TEXT, "A b A b."])["heads"] == finite(
        head_scores(lab, [TEXT, "A b A b."]).record()["heads"]
    )
    assert ask("head_scores", seed=1)["heads"] == finite(head_scores(lab, seed=1).record()["heads"])
    assert (
        ask("logit_lens", TEXT, top=2, target=" the")["lens"]
        == logit_lens(lab, TEXT, top=2, target=" the").record()["lens"]
    )
    written = ask("generate", "The moon", max_new_tokens=8, seed=5, top_k=20, stop=["zzz"])
    expected = generate(lab, "The moon", max_new_tokens=8, seed=5, top_k=20)
    assert (written["text"], written["finish"]) == (expected.text, expected.finish)
    assert [step["probability"] for step in written["steps"]] == [step.probability for step in expected.steps]
    found = ask("ablate", TEXT, heads=[[2, 3], [0, 1]], mlps=[1], mean=True)
    assert found["ablate"] == ablate(lab, TEXT, [(2, 3), (0, 1)], mlps=[1], mean=True).record()["ablate"]


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("perplexity", {"data": "/etc"}, "data '/etc' is unknown"),
        ("perplexity", {"model": "../x"}, "is unknown; use builtin"),
        ("perplexity", {"data": "sample", "split": "all", "stride": 16}, "the limit is 100,000"),
        ("perplexity", {"text": "x" * 20_001}, "20,001 characters"),
        ("surprisal", {"text": ""}, "the text is empty"),
        ("surprisal", {"text": TEXT, "top": 101}, "top 101"),
        ("attention", {"text": TEXT * 15}, "the limit is 200,000"),
        ("attention", {"text": TEXT, "head": 1}, "needs a layer"),
        ("attention", {"text": TEXT, "layer": 6, "head": 1}, "layer 6"),
        ("head_scores", {"texts": []}, "list of 1 to 16"),
        ("head_scores", {"texts": ["a b"] * 17}, "list of 1 to 16"),
        ("logit_lens", {"text": TEXT * 15, "top": 100}, "the limit is 200,000"),
        ("generate", {"prompt": "The", "max_new_tokens": 513}, "max_new_tokens 513"),
        ("ablate", {"text": TEXT, "heads": [[1, 2, 3]]}, r"\[layer, head\]"),
        ("ablate", {"text": TEXT, "heads": [[6, 0]]}, "layer 6"),
        ("start_run", {"steps": 2001}, "steps 2001"),
        ("start_run", {"method": "x"}, "method 'x'"),
        ("run_status", {"run": "../x"}, "there is no run"),
    ],
)
def test_what_is_out_of_bounds_is_refused_in_a_line(ask, runs_dir, name, given, message):
    with pytest.raises(Exception, match=message):
        pytest.fail(str(ask(name, **given))[:200])
    assert not any(runs_dir.iterdir()) or name != "start_run"


def test_runs_and_estimates_are_refused_where_training_is_off(tmp_path):
    off = RunsApi(ModelStore(tmp_path), False)
    for function in (off.start_run, off.estimate):
        with pytest.raises(LabError, match="training is off on this server"):
            function()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("variables", "allowed"),
    [
        ({}, True),
        ({"SPACE_ID": "someone/gpt2lab"}, False),
        ({"SPACE_ID": "someone/gpt2lab", "GPT2LAB_TRAINING": "1"}, True),
        ({"GPT2LAB_TRAINING": "0"}, False),
    ],
)
def test_training_is_off_by_default_on_a_shared_space(monkeypatch, variables, allowed):
    for name in ("SPACE_ID", "GPT2LAB_TRAINING"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert training_by_default() is allowed


@pytest.mark.slow
def test_examples_of_the_documentation_run(app, runs_dir, forked_runs, monkeypatch, capsys):
    monkeypatch.setattr(
        jobs, "cost_in_worker", lambda *_: {"seconds": 1.0, "memory": 1, "in_words": {}}
    )  # has its tests
    blocks = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    assert [f"/{name}" for name in ENDPOINTS] == re.findall(r'api_name="(/\w+)"', "".join(blocks))
    names: dict = {}
    for block in blocks:
        exec(block.replace("http://127.0.0.1:7860", app.url.rstrip("/")), names)
        assert capsys.readouterr().out.strip() or block is blocks[0]
    run = names["started"]["run"]
    until = time.monotonic() + PATIENCE
    while (status := names["client"].predict(run, api_name="/run_status"))["state"] in runs.ALIVE:
        assert time.monotonic() < until
        time.sleep(0.2)
    assert (status["state"], status["step"], status["has_model"]) == ("finished", 2, True)
    assert names["client"].predict("The", model=run, api_name="/surprisal")["model"] == run


def test_the_example_over_http_runs(app):
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    [block] = [one for one in re.findall(r"```bash\n(.*?)```", DOCS, re.DOTALL) if "gradio_api/call" in one]
    script = block.replace("http://127.0.0.1:7860", app.url.rstrip("/"))
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=PATIENCE)
    event, data = done.stdout.strip().splitlines()[-2:]
    assert event == "event: complete"
    [answer] = json.loads(data.removeprefix("data: "))
    assert len(answer["next"]) == 5

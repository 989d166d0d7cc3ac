"""Downloads through the real loading code, from a stand-in hub with faults."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import huggingface_hub.constants
import pyarrow
import pyarrow.parquet
import pytest
import torch

from gpt2lab.data import hub as downloads
from gpt2lab.data import sources
from gpt2lab.data.hub import (
    Download,
    Progress,
    download,
    download_steps,
    find_download,
    is_downloaded,
    require_downloaded,
)
from gpt2lab.data.sources import auto_choice
from gpt2lab.data.text import load_text
from gpt2lab.errors import LabError
from gpt2lab.model.lab import load_model, random_model
from tests.hub import Fault, Hub
from tests.processes import ROOT, Command
from tests.zoo import build

pytestmark = pytest.mark.slow  # processes and servers
WEIGHTS = "model.safetensors"
ROWS = ["", " = Moon = \n", "", " The moon is round . \n"]


@pytest.fixture(scope="module")
def repositories(tmp_path_factory, tiny_folder):
    """Folders of a hub: models gpt2, someone/tiny (in shards), and some that are refused; WikiText."""
    folder = tmp_path_factory.mktemp("hub")
    shutil.copytree(tiny_folder, folder / "gpt2")
    (folder / "gpt2" / "pytorch_model.bin").write_bytes(b"pickled" * 1000)
    shutil.copytree(tiny_folder, folder / "someone" / "bert")
    config = json.loads((tiny_folder / "config.json").read_text())
    (folder / "someone" / "bert" / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    shutil.copytree(tiny_folder, folder / "someone" / "pickled")
    (folder / "someone" / "pickled" / WEIGHTS).rename(folder / "someone" / "pickled" / "pytorch_model.bin")
    lab = load_model(str(tiny_folder))
    lab.model.save_pretrained(folder / "someone" / "shards", max_shard_size="40KB")
    lab.tokenizer.save_pretrained(folder / "someone" / "shards")
    build("vocab.txt", folder / "someone" / "chinese")
    build("adapter", folder / "someone" / "adapter")
    for split in ("train", "validation", "test"):
        path = folder / "datasets" / "Salesforce" / "wikitext" / "wikitext-2-raw-v1" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.table({"text": [*ROWS, f" {split} \n"]}), path)
    return folder


def settings(url, cache):
    """What the libraries have as constants of their hub."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    return {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(cache),
    }


def use_hub(constants):
    """Take a stand-in hub for the libraries' own, in another process."""
    for name, value in constants.items():
        setattr(huggingface_hub.constants, name, value)


@pytest.fixture
def server(repositories, tmp_path, monkeypatch):
    """The stand-in hub, which the libraries of this process take for theirs; their cache is empty."""
    with Hub(repositories) as running:
        for name, value in settings(running.url, tmp_path / "hf").items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.setitem(sources._answer, "until", -float("inf"))
        monkeypatch.setattr(downloads, "SHOW_SECONDS", 0.0)
        yield running


def size_of(repositories, *paths):
    return sum((repositories / path).stat().st_size for path in paths)


def parts(tmp_path):
    return [*(tmp_path / "hf").rglob("*.part")]


def test_sizes_are_known_before_and_pickles_are_not_fetched(server, repositories):
    found = find_download("gpt2")
    assert dict(found.files) == {path: size_of(repositories / "gpt2", path) for path, _ in found.files}
    assert found.files[0][0] == "config.json"
    assert found.files[-1][0] == WEIGHTS
    assert not any(path.endswith(".bin") for path, _ in found.files)
    assert found.n_bytes == sum(size for _, size in found.files)
    assert server.sent < 5000  # nothing but the listing was sent


def test_model_is_downloaded_once_and_computes_the_same(server, tiny_lab):
    assert not is_downloaded("gpt2")
    seen = []
    lab = load_model("gpt2", device="cpu", on_progress=seen.append)
    total = seen[-1].total
    assert [step.done for step in seen] == sorted(step.done for step in seen)
    assert (seen[-1].done, len({step.total for step in seen})) == (total, 1)
    ids = tiny_lab.encode("The moon is round")
    with torch.no_grad():
        assert lab.model(ids[None]).logits.equal(tiny_lab.model(ids[None]).logits)
    assert lab.encode("The moon is round").equal(ids)
    assert is_downloaded("gpt2")
    asked = len(server.requests)
    load_model("gpt2")
    assert len(server.requests) == asked
    assert not server.asked("pytorch_model.bin")


def test_vocabulary_of_words_is_downloaded_and_read(server):
    lab = load_model("someone/chinese", on_progress=lambda step: None)
    assert lab.tokenizer.convert_ids_to_tokens(lab.encode("我们是").tolist()) == ["我", "们", "是"]
    assert is_downloaded("someone/chinese")


def test_adapter_on_the_hub_is_refused_with_the_way_to_load_it(server):
    with pytest.raises(LabError, match="holds an adapter alone; download it with hf download someone/adapter"):
        load_model("someone/adapter")


def test_text_is_downloaded_and_read(server, repositories):
    found = find_download("wikitext-2")
    assert found.n_bytes == sum(path.stat().st_size for path in (repositories / "datasets").rglob("*.parquet"))
    assert not is_downloaded("wikitext-2")
    text = load_text("wikitext-2")
    assert [article.title for article in text.train] == ["Moon"]
    assert text.test[0].rows == (*ROWS, " test \n")
    assert is_downloaded("wikitext-2")


def test_weights_in_shards_count_as_downloaded_when_all_of_them_are(server, tiny_lab):
    name = "someone/shards"
    found = find_download(name)
    shards = [path for path, _ in found.files if path.startswith("model-")]
    assert len(shards) > 1
    server.faults[shards[-1]] = Fault(status=500)
    with pytest.raises(LabError):
        download(name, on_progress=lambda step: None)
    assert not sources.is_model_cached(name)
    server.faults.clear()
    ids = tiny_lab.encode("The moon")[None]
    with torch.no_grad():
        assert load_model(name, device="cpu").model(ids).logits.allclose(tiny_lab.model(ids).logits)
    assert sources.is_model_cached(name)


def test_shape_alone_needs_no_weights(server):
    random_model("gpt2")
    assert not server.asked(WEIGHTS)


@pytest.mark.parametrize("fault", [Fault(cut=60_000, times=1), Fault(hang=60_000, times=1)])
def test_download_that_breaks_off_is_resumed_where_it_ended(server, repositories, tmp_path, monkeypatch, fault):
    monkeypatch.setattr(downloads, "STALL_SECONDS", 0.5)
    server.faults[WEIGHTS] = fault
    with pytest.raises(LabError, match="'gpt2' has not arrived whole: the hub stopped answering; download again to"):
        load_model("gpt2")
    assert not is_downloaded("gpt2")
    [part] = parts(tmp_path)
    have, whole = part.stat().st_size, size_of(repositories / "gpt2", WEIGHTS)
    assert 0 < have < whole
    rest = find_download("gpt2")
    assert (rest.n_bytes, rest.total) == (whole - have, whole)
    room = shutil._ntuple_diskusage(10**9, 10**9, whole - have + 1)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda path: room)  # what is here needs no room again
    before, seen = server.sent, []
    load_model("gpt2", on_progress=seen.append)
    assert seen[0].done >= have
    assert seen[0].speed == 0  # what was here has not arrived now
    assert server.asked(WEIGHTS) == [None, f"bytes={have}-"]
    assert server.sent - before < whole
    assert parts(tmp_path) == []


def test_cancelled_download_ends_at_once_and_keeps_what_it_has(server, tmp_path):
    server.faults[WEIGHTS] = Fault(speed=200_000)
    steps = download_steps(find_download("gpt2"))
    for step in steps:
        if step.done > 60_000 and parts(tmp_path):
            break
    began = time.monotonic()
    steps.close()
    assert time.monotonic() - began < 1
    assert not is_downloaded("gpt2")
    assert parts(tmp_path)
    server.faults.clear()
    download("gpt2", on_progress=lambda step: None)  # the lock is free again
    assert is_downloaded("gpt2")


def test_speed_and_time_left_follow_from_what_arrives(server):
    server.faults[WEIGHTS] = Fault(speed=100_000)
    steps = [step for step in download_steps(find_download("gpt2")) if step.speed]
    assert 50_000 < steps[-1].speed < 150_000
    assert steps[0].seconds_left > steps[-1].seconds_left >= 0
    assert Progress(5, 10, 0.0).seconds_left is None


REFUSED = "was not found on the hub: misspelt, or private"


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (401, REFUSED),
        (403, "is gated on the hub"),
        (404, REFUSED),
        (429, "limits the number of requests"),
        (503, "503"),
    ],
)
@pytest.mark.parametrize("where", ["api/gpt2", WEIGHTS])
def test_refusal_is_one_line_and_nothing_counts_as_downloaded(server, monkeypatch, status, line, where):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # it tries again for a while
    server.faults[where] = Fault(status=status)
    with pytest.raises(LabError, match=line) as caught:
        load_model("gpt2")
    assert "\n" not in str(caught.value)
    assert not is_downloaded("gpt2")


def test_misspelt_name_is_refused(server):
    with pytest.raises(LabError, match=f"'someone/gtp2' {REFUSED}"):
        load_model("someone/gtp2")


@pytest.mark.parametrize(
    ("name", "line"), [("someone/bert", "model of type 'bert'"), ("someone/pickled", "has no safetensors on the hub")]
)
def test_repository_that_is_no_gpt2_is_refused_before_its_weights_are_fetched(server, name, line):
    with pytest.raises(LabError, match=line):
        load_model(name)
    assert not server.asked("model.safetensors")
    assert not server.asked("pytorch_model.bin")


def test_damaged_weights_are_noticed_and_deleted(server, tmp_path):
    server.faults[WEIGHTS] = Fault(damage=True)
    with pytest.raises(LabError, match=f"{WEIGHTS} has arrived damaged and was deleted"):
        load_model("gpt2")
    assert not is_downloaded("gpt2")
    assert parts(tmp_path) == []


def test_full_disk_is_noticed_before_and_during_a_download(server, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(downloads.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
        with pytest.raises(LabError, match=r"'?gpt2'? needs .* 1e-03 MB are free|gpt2 needs .* are free; make room"):
            load_model("gpt2")
    assert not server.asked(WEIGHTS)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(downloads, "_receive", full)
    with pytest.raises(LabError, match=r"no space left in .*; make room and download again to continue"):
        load_model("gpt2")


def test_two_downloads_of_one_model_do_not_mix(server):
    server.faults[WEIGHTS] = Fault(speed=200_000)
    first = download_steps(find_download("gpt2"))
    next(first)
    with pytest.raises(LabError, match="gpt2 is being downloaded by another process"):
        load_model("gpt2")
    for _ in first:
        pass
    assert is_downloaded("gpt2")


def test_hub_that_is_unreachable_is_known_in_two_seconds(server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(LabError, match=r"'gpt2' is not in the local cache .* does not answer"):
        load_model("gpt2")
    assert time.monotonic() - began < 3


def test_nothing_to_download_asks_for_nothing(server):
    asked = len(server.requests)
    assert [*download_steps(Download("x", "x", "model", ()))] == []
    assert is_downloaded("builtin")
    assert is_downloaded("sample")
    assert len(server.requests) == asked
    with pytest.raises(LabError, match="gpt2 is not downloaded; choose it as Model and press Download"):
        require_downloaded("gpt2")


def test_auto_looks_at_what_is_downloaded_and_fetches_nothing(server):
    assert (auto_choice().model, auto_choice().data) == ("builtin", "sample")
    assert "gpt2 is not downloaded" in auto_choice().reason
    load_model("gpt2")
    asked = len(server.requests)
    assert (auto_choice().model, auto_choice().data) == ("gpt2", "sample")
    assert auto_choice(training=True).model == "builtin"
    assert load_model("auto").name == "gpt2"
    assert len(server.requests) == asked


def test_command_downloads_with_a_bar_on_standard_error_and_json_alone_on_the_other(run_cli, server):
    text = ("--prompt", "The moon", "--max-new-tokens", 3, "--json")
    status, out, err = run_cli("generate", "--model", "gpt2", *text)
    assert status == 0, err
    assert json.loads(out)["prompt"] == "The moon"
    assert "download gpt2: 100%" in err
    _, auto, err = run_cli("generate", *text)
    assert "auto: gpt2 (gpt2 is downloaded)" in err
    assert json.loads(auto)["text"] == json.loads(out)["text"]
    server.faults["api/"] = Fault(status=404)
    status, out, err = run_cli("attention", "--model", "someone/gtp2", "--text", "a", "--out", "x.png")
    assert (status, out) == (2, "")
    assert [line for line in err.splitlines() if line] == [
        f"gpt2lab: 'someone/gtp2' {REFUSED}; if it is private, log in with: hf auth login."
    ]


def test_interrupted_command_says_how_to_continue(run_cli, server, tmp_path):
    server.faults[WEIGHTS] = Fault(speed=40_000)
    words = ("generate", "--model", "gpt2", "--prompt", "a", "--max-new-tokens", 1)
    running = Command(tmp_path / "command", *words, before=(use_hub, settings(server.url, tmp_path / "hf")))
    # the parts of smaller files are gone once the weights are asked for
    wait_for(lambda: server.asked(WEIGHTS) and any(path.stat().st_size for path in parts(tmp_path)))
    os.kill(running.pid, signal.SIGINT)
    done = running.finish(30)
    assert done.returncode == 130
    assert "gpt2: cancelled; download again to continue from" in done.stderr
    assert "Traceback" not in done.stderr
    server.faults.clear()
    assert run_cli(*words)[0] == 0
    assert any(server.asked(WEIGHTS)[1:])  # a range


def test_process_downloads_model_and_text_before_it_trains(server, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}  # and so knows the stand-in hub alone
    options = ["--method", "lora", "--steps", "1", "--block-size", "8", "--batch-size", "2", "--json"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "gpt2lab",
            "finetune",
            "--model",
            "gpt2",
            "--data",
            "wikitext-2",
            *options,
            "--runs",
            str(tmp_path),
        ],
        env=environment,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 1
    assert "Warning" not in done.stderr  # not even of an import
    for name in ("gpt2", "wikitext-2"):
        assert f"download {name}: 100%" in done.stderr


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from math import inf
from pathlib import Path
from socketserver import TCPServer
from types import SimpleNamespace
from unittest.mock import Mock

import httpx
import httpx2
import pyarrow
import pytest
import requests
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, OfflineModeIsEnabled
from pyarrow import parquet
from transformers import BertConfig

from gpt2lab.data import sources
from gpt2lab.data.hub import hub_error
from gpt2lab.data.sources import (
    HUB_SECONDS,
    auto_choice,
    cache_folder,
    hub_reachable,
    is_cached,
    is_connection_error,
    model_source,
    resolve_auto,
    wikitext_files,
)
from gpt2lab.data.text import load_text
from gpt2lab.errors import LabError
from gpt2lab.model import lab as model
from gpt2lab.model.lab import load_model, token_nll

REPOSITORY = Path(__file__).parents[2]
REVISION = "0123456789abcdef0123456789abcdef01234567"
HUB_ROWS = {
    "train": ["", " = Moon = \n", "", " The moon . \n", "", " = Sea = \n", "", " The sea . \n"],
    "validation": ["", " = Earth = \n", "", " The earth . \n"],
    "test": ["", " = Day = \n", "", " A day . \n"],
}
FROM_THE_CACHE = """
import dataclasses, json, torch
from gpt2lab.model.lab import load_model, token_nll
from gpt2lab.data.sources import hub_reachable, model_source
from gpt2lab.data.text import load_text

lab = load_model("gpt2", device="cpu")
splits = load_text("wikitext-2")
print(json.dumps({
    "source": dataclasses.asdict(model_source("gpt2")),
    "reachable": hub_reachable(),
    "ids": lab.encode("The moon").tolist(),
    "nll": token_nll(lab.model, torch.arange(20)[None]).tolist(),
    "titles": {split: [article.title for article in splits.split(split)] for split in ("train", "validation", "test")},
    "rows": {
        split: [row for article in splits.split(split) for row in article.rows]
        for split in ("train", "validation", "test")
    },
}))
"""
BROKEN_FOLDERS = {
    "no config": (r"has no config\.json; give a folder", lambda folder: (folder / "config.json").unlink()),
    "half a config": (
        r"config\.json is not a model configuration",
        lambda folder: (folder / "config.json").write_text("{"),
    ),
    "a list for a config": (
        r"config\.json is not a model configuration",
        lambda folder: (folder / "config.json").write_text("[]"),
    ),
    "another model": (
        r"holds a model of type 'bert'; gpt2lab reads 'gpt2'",
        lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'),
    ),
    "pickled weights alone": (
        r"has no model\.safetensors; pickled weights .* are never loaded",
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
    ),
    "no tokenizer": (
        r"has no tokenizer \(tokenizer\.json, vocab\.json and merges\.txt, .*\); save the tokenizer",
        lambda folder: (folder / "tokenizer.json").unlink(),
    ),
}


@pytest.fixture
def online(monkeypatch):
    """As if HF_HUB_OFFLINE were not set, without proxies, and the hub never asked; a function that lets time pass."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(sources, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(sources, "_answer", {"reachable": False, "until": -inf})
    monkeypatch.setattr(sources.constants, "HF_HUB_OFFLINE", False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return lambda seconds: setattr(clock, "now", clock.now + seconds)


@pytest.fixture
def stuck_resolver(monkeypatch):
    """Looking up a host name takes 15 seconds: a mock with the events `asked` and `done`."""
    asked, done, release = threading.Event(), threading.Event(), threading.Event()

    def getaddrinfo(*args, **kwargs):
        asked.set()
        release.wait(15)
        done.set()
        raise socket.gaierror("no answer")

    resolver = Mock(side_effect=getaddrinfo, asked=asked, done=done)
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    yield resolver
    release.set()


@pytest.fixture
def hub_that_answers(monkeypatch):
    """A function: HTTP status → a hub of our own that answers with it, as a mock that counts the requests."""
    servers = []

    def serve(status):
        def answer(request, *_):
            request.recv(4096)
            request.sendall(f"HTTP/1.1 {status} Answer\r\nContent-Length: 0\r\n\r\n".encode())

        handler = Mock(side_effect=answer)
        server = TCPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        monkeypatch.setattr(sources.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return handler

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def nothing_cached(monkeypatch):
    monkeypatch.setattr(sources, "is_cached", lambda *_: False)
    monkeypatch.setattr(sources, "hub_reachable", lambda: False)


@pytest.fixture(scope="module")
def from_the_cache(tmp_path_factory, tiny_folder):
    """What a process without network finds in a hub cache that holds a tiny `gpt2` and a few rows of WikiText-2."""
    home = tmp_path_factory.mktemp("hf-home")
    shutil.copytree(tiny_folder, snapshot(home, "models--gpt2"))
    for split, file in wikitext_files("wikitext-2").items():
        path = snapshot(home, "datasets--Salesforce--wikitext") / file
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.table({"text": HUB_ROWS[split]}), path)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment = kept | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", FROM_THE_CACHE]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def snapshot(home, repository):
    folder = home / "hub" / repository
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(REVISION)
    return folder / "snapshots" / REVISION


@pytest.mark.parametrize("name", ["gpt2", "wikitext-2"])
def test_folder_of_the_same_name_is_named_where_the_hub_is_out_of_reach(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "is_cached", lambda *_: False)
    monkeypatch.setattr(sources, "hub_reachable", lambda: False)
    load = load_text if name == "wikitext-2" else sources.model_source
    with pytest.raises(LabError) as without:
        load(name)
    (tmp_path / name).mkdir()
    with pytest.raises(LabError, match=rf", or \./{name} for the folder of that name$") as beside:
        load(name)
    assert str(beside.value).startswith(str(without.value))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("no json", "cannot be read"),
        ("{}", "names no base_model_name_or_path"),
        ('{"base_model_name_or_path": ""}', "names no base_model_name_or_path"),
        ('{"base_model_name_or_path": "ADAPTER"}', "is itself an adapter"),
        ('{"base_model_name_or_path": "/no/such/model"}', "no model '/no/such/model'"),
        ('{"base_model_name_or_path": "builtin"}', "cannot be merged into 'builtin'"),
    ],
)
def test_adapter_that_cannot_be_merged_is_refused_in_one_line(tmp_path, config, message):
    (tmp_path / "adapter_config.json").write_text(config.replace("ADAPTER", str(tmp_path)))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(LabError, match=message) as caught:
        load_model(str(tmp_path))
    assert "\n" not in str(caught.value)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(LabError, match=r"no adapter_model\.safetensors; pickled weights"):
        load_model(str(tmp_path))


def test_hub_is_given_up_while_its_name_is_still_looked_up(online, stuck_resolver):
    assert HUB_SECONDS <= 2
    assert hub_reachable() is False
    assert not stuck_resolver.done.is_set()
    assert stuck_resolver.asked.wait(60)
    assert "huggingface.co" in str(stuck_resolver.call_args)


def test_hub_that_does_not_answer_is_left_alone_for_a_minute(online, stuck_resolver):
    assert hub_reachable() is False
    assert stuck_resolver.asked.wait(60)
    online(59)
    assert hub_reachable() is False
    assert stuck_resolver.call_count == 1


def test_hub_that_answers_again_is_reachable_after_a_minute(online, hub_that_answers):
    hub_that_answers(503)
    assert hub_reachable() is False
    hub_that_answers(200)
    online(61)
    assert hub_reachable() is True


def test_hub_that_answers_is_reachable_and_asked_once(online, hub_that_answers):
    handler = hub_that_answers(200)
    assert hub_reachable() is True
    online(10**6)
    assert hub_reachable() is True
    assert handler.call_count == 1


def test_visitors_who_come_at_once_ask_the_hub_once(online, hub_that_answers):
    handler, together = hub_that_answers(200), threading.Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: (together.wait(), hub_reachable())[1], range(8)))
    assert answers == [True] * 8
    assert handler.call_count == 1


@pytest.mark.parametrize("status", [403, 407, 503])
def test_proxy_that_answers_for_the_hub_with_an_error_is_not_the_hub(online, hub_that_answers, status):
    hub_that_answers(status)
    assert hub_reachable() is False


def test_hub_that_refuses_the_connection_is_not_reachable(online, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(sources.constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert hub_reachable() is False


def test_offline_variable_answers_without_a_look_up(online, stuck_resolver, monkeypatch):
    monkeypatch.setattr(sources.constants, "HF_HUB_OFFLINE", True)
    assert hub_reachable() is False
    assert stuck_resolver.call_count == 0


def test_gpt2_out_of_reach_is_reported_in_one_line_that_names_builtin(nothing_cached):
    with pytest.raises(
        LabError, match=r"^'gpt2' is not in the local cache .* does not answer; .* use 'builtin'"
    ) as caught:
        load_model("gpt2")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gtp2", "someone/else"])
def test_unknown_id_out_of_reach_is_named_with_the_known_ones(nothing_cached, name):
    with pytest.raises(LabError, match=rf"no model '{name}'.*known names are auto, builtin, gpt2, distilgpt2"):
        model_source(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a/b/c",
        "/no/such/folder",
        "a b",
        "-x",
        "a\0b",
        "\ud800",
        "~nobody-of-that-name",
        "n" * 300,
        "n" * 5000,
        "foo--bar",
        "a..b",
        "x.git",
        "gpt2-",
        "gpté",
        "-x/y",
        ".x",
    ],
)
@pytest.mark.parametrize("reachable", [False, True])
def test_name_that_can_be_no_model_is_refused_with_what_works(monkeypatch, name, reachable):
    monkeypatch.setattr(sources, "hub_reachable", lambda: reachable)
    with pytest.raises(LabError, match=r"builtin' or 'gpt2'$|use auto, builtin, gpt2"):
        model_source(name)


@pytest.mark.parametrize("name", [None, 7, b"gpt2"])
def test_model_name_that_is_no_text_is_refused(name):
    with pytest.raises(LabError, match=r"no model .*; use auto, builtin"):
        model_source(name)


def test_reachable_hub_is_a_source_without_its_cache(monkeypatch):
    monkeypatch.setattr(sources, "is_cached", lambda *_: False)
    monkeypatch.setattr(sources, "hub_reachable", lambda: True)
    source = model_source("gpt2")
    assert (source.kind, source.location, source.cached) == ("hub", "gpt2", False)


def test_hub_model_whose_tokenizer_is_not_cached_is_completed_from_the_hub(monkeypatch):
    monkeypatch.setattr(sources, "is_cached", lambda repo, file, *_: file in ("config.json", "model.safetensors"))
    monkeypatch.setattr(sources, "hub_reachable", lambda: True)
    assert model_source("gpt2").cached is False


def test_folder_named_like_a_hub_model_does_not_stand_in_for_it(tiny_folder, tmp_path, monkeypatch, nothing_cached):
    shutil.copytree(tiny_folder, tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LabError, match=r"not in the local cache"):
        model_source("gpt2")
    assert model_source("./gpt2").kind == "folder"


@pytest.mark.parametrize("fault", BROKEN_FOLDERS)
def test_folder_that_holds_no_safe_gpt2_is_refused_by_name(tiny_folder, tmp_path, fault):
    message, spoil = BROKEN_FOLDERS[fault]
    folder = shutil.copytree(tiny_folder, tmp_path / "spoiled")
    spoil(folder)
    with pytest.raises(LabError, match=rf"{folder}.*{message}|{folder}/{message}"):
        load_model(str(folder))


HUB_ERRORS = {
    "httpx": (httpx.ConnectTimeout("slow"), True),
    "the hub's own library": (httpx2.ConnectError("no route"), True),
    "sockets": (ConnectionResetError("reset"), True),
    "requests": (requests.exceptions.ConnectionError("refused"), True),
    "offline": (OfflineModeIsEnabled("HF_HUB_OFFLINE"), True),
    "not found locally": (LocalEntryNotFoundError("no connection"), True),
    "no such file in the repository": (EntryNotFoundError("no safetensors here"), False),
    "full disk": (OSError(28, "No space left on device"), False),
}
each_hub_error = pytest.mark.parametrize(("cause", "connection"), HUB_ERRORS.values(), ids=HUB_ERRORS)


def failing_with(cause):
    """A function that fails with an OSError of several lines which `cause` led to."""

    def fail(*_, **__):
        raise OSError("what went wrong\nand more") from cause

    return fail


@each_hub_error
def test_lost_connection_is_named_and_other_failures_keep_their_own_words(cause, connection):
    with pytest.raises(OSError, match="what went wrong") as caught:
        failing_with(cause)()
    line = str(hub_error("gpt2", caught.value))
    expected = "has not arrived whole: the hub stopped answering" if connection else "cannot be downloaded: what went"
    assert line.startswith(f"'gpt2' {expected}")
    assert "\n" not in line


def test_error_raised_on_purpose_without_its_cause_is_no_connection_error():
    try:
        try:
            raise ConnectionError("refused")
        except ConnectionError:
            raise OSError("the disk is full") from None
    except OSError as error:
        assert not is_connection_error(error)


def test_hub_model_of_another_type_is_refused_like_a_folder(monkeypatch, tmp_path):
    BertConfig().save_pretrained(tmp_path)
    monkeypatch.setattr(model, "model_source", lambda name: sources.ModelSource(name, "hub", str(tmp_path)))
    with pytest.raises(
        LabError, match=r"^someone/bert holds a model of type 'bert'; gpt2lab reads 'gpt2' checkpoints$"
    ):
        load_model("someone/bert")


def test_whole_folder_is_a_source(tiny_folder):
    source = model_source(str(tiny_folder))
    assert (source.kind, source.location, source.cached) == ("folder", str(tiny_folder), True)


def test_cached_gpt2_is_loaded_without_network(from_the_cache, tiny_lab):
    assert from_the_cache["source"] == {"name": "gpt2", "kind": "hub", "location": "gpt2", "cached": True}
    assert from_the_cache["reachable"] is False
    assert from_the_cache["ids"] == tiny_lab.encode("The moon").tolist()
    nll = torch.tensor(from_the_cache["nll"])
    torch.testing.assert_close(nll, token_nll(tiny_lab.model, torch.arange(20)[None]))


def test_cached_wikitext_is_read_without_network(from_the_cache):
    assert from_the_cache["rows"] == HUB_ROWS
    assert from_the_cache["titles"] == {"train": ["Moon", "Sea"], "validation": ["Earth"], "test": ["Day"]}


def test_nothing_is_cached_in_an_empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.constants, "HF_HUB_CACHE", str(tmp_path))
    assert not is_cached("gpt2", "config.json")


@pytest.mark.parametrize(
    ("gpu", "cached", "reachable", "model", "data", "reason"),
    [
        (False, True, True, "builtin", "sample", "needs a GPU"),
        (True, True, False, "gpt2", "wikitext-2", "both are downloaded"),
        (True, False, True, "gpt2", "wikitext-2", "hub answers"),
        (True, False, False, "builtin", "sample", "hub is unreachable"),
    ],
)
def test_training_takes_gpt2_where_there_is_a_gpu(monkeypatch, gpu, cached, reachable, model, data, reason):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(sources, "is_cached", lambda *_: cached)
    monkeypatch.setattr(sources, "hub_reachable", lambda: reachable)
    choice = auto_choice(training=True)
    assert (choice.model, choice.data) == (model, data)
    assert reason in choice.reason


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize(
    ("cached", "model", "data"),
    [
        ({"gpt2", sources.WIKITEXT_REPO}, "gpt2", "wikitext-2"),
        ({"gpt2"}, "gpt2", "sample"),
        ({sources.WIKITEXT_REPO}, "builtin", "wikitext-2"),
        (set(), "builtin", "sample"),
    ],
)
def test_looking_takes_what_is_downloaded_and_asks_no_hub(monkeypatch, gpu, cached, model, data):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(sources, "is_cached", lambda repo, *_: repo in cached)
    monkeypatch.setattr(sources, "hub_reachable", lambda: pytest.fail("asked"))
    choice = auto_choice()
    assert (choice.model, choice.data) == (model, data)
    assert choice.reason.startswith("gpt2 is downloaded" if model == "gpt2" else "gpt2 is not downloaded")
    assert model_source("auto").kind == ("hub" if model == "gpt2" else "builtin")


OTHER_TOKENIZERS = ("tokenizer.json", "vocab.txt", "tokenizer.model", "spiece.model")  # than GPT-2's two files


@pytest.mark.parametrize("missing", ["test-", "config.json", "model.safetensors", "vocab.json"])
def test_auto_needs_every_file_of_model_and_text_in_the_cache(monkeypatch, nothing_cached, missing):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        sources, "is_cached", lambda repo, file, *_: missing not in file and file not in OTHER_TOKENIZERS
    )
    assert auto_choice(training=True).model == "builtin"


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (("auto", "auto"), ("chosen model", "chosen data")),
        (("auto", "b"), ("chosen model", "b")),
        (("a", "auto"), ("a", "chosen data")),
        (("a", "b"), ("a", "b")),
    ],
)
def test_resolve_auto_replaces_auto_alone(monkeypatch, asked, answer, training):
    def choose(*, training: bool):
        purposes.append(training)
        return sources.Choice("chosen model", "chosen data", "a test")

    purposes = []
    monkeypatch.setattr(sources, "auto_choice", choose)
    assert resolve_auto(*asked, training=training) == answer
    assert set(purposes) <= {training}


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"GPT2LAB_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/gpt2lab"),
        ({"HOME": "/c"}, "/c/.cache/gpt2lab"),
    ],
)
def test_cache_folder_follows_the_environment(monkeypatch, variables, folder):
    for name in ("GPT2LAB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(folder)

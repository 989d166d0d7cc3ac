"""Every handler of the page, and every function that its views call, with values that no browser would send.

What there is to call is read from the served page, so that new handlers are tried too.
"""

import itertools
import os
import re
import shutil
from pathlib import Path

import httpx
import pytest

from gpt2lab.training import runs
from tests.processes import ROOT
from tests.serving import free_port, served

pytestmark = pytest.mark.slow  # hundreds of requests to a process
ENDPOINTS = ["perplexity", "surprisal", "attention", "head_scores", "logit_lens", "generate", "ablate"]
ENDPOINTS += ["estimate", "start_run", "run_status"]
HALF = "\ud800"  # of a character
DEEP: list = []
for _ in range(200):
    DEEP = [DEEP]
HOSTILE = [
    None,
    float("nan"),
    float("inf"),
    1e308,
    -1,
    True,
    [],
    [None],
    {},
    "",
    "x" * 30_000,
    HALF,
    "../../etc/passwd",
    "<script>alert(1)</script>",
    {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
    {"__type__": "update", "value": "/etc"},
    [[1, 2], ["a"]],
    10**400,
    DEEP,
    "\x00",
    2.5,
]
EVENT_DATA = [
    None,
    {"index": None, "value": None},
    {"index": -1, "value": "x", "row_value": []},
    {"index": 10**9, "value": [], "row_value": ["../../etc"]},
    {"index": "a", "value": {}, "row_value": None},
    {"index": [0, 10**9], "value": 1, "row_value": 3},
]
PER_PARAMETER = (
    3  # hostile values that each parameter of an endpoint gets, of those in turn; those of other handlers get one
)
PAGE = "visitor"  # its session
AT_ONCE = 20  # events of a page under way; the queue holds 32
TOO_LARGE = 17 << 20  # bytes
FRAME = re.compile(
    rf'File "{re.escape(str(ROOT))}/(gpt2lab/\S+)", line (\d+), in (?!__call__)(\S+)'
)  # middleware passes on
OUTSIDE = ("/etc/passwd", "../../etc/passwd", str(ROOT / "README.md"), "gpt2lab/app/app.py")
OPTIONS = (
    "position token against method unit layer head heads mlps mean corrupted answer rival part format selection asked"
)
OPTIONS = (*OPTIONS.split(), "off", "dark", "view", "layers", "include", "side", "pair")
KINDS = re.compile(r"use ([\w, -]+)$")


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory, tiny_folder):
    """A run that has finished, with a model and a report."""
    folder = tmp_path_factory.mktemp("hostile") / "runs"
    run = runs.new_run(folder, {"model": "builtin", "data": "sample", "steps": 4}, "done")
    runs.write_status(run, runs.RunStatus("finished", 4, 4, **runs.this_process()))
    shutil.copytree(tiny_folder, run / "model")
    (run / "report.html").write_text("<p>report</p>")
    (run / "log.txt").write_text("log\n")
    return folder


@pytest.fixture(scope="module")
def server(runs_dir):
    command = ("-m", "tests.serving", runs_dir, free_port())
    with served(runs_dir.parent / "server", *command, HF_HUB_OFFLINE="1") as one:
        yield one


def listing(*folders):
    """What is in folders: size and time of every file."""
    files = {}
    for folder in folders:
        for here, inner, names in os.walk(folder):
            inner[:] = [name for name in inner if not name.startswith(".") and name != "__pycache__"]
            files |= {path: path.stat()[6:9:2] for path in (Path(here, name) for name in names)}
    return files


def usual(server, event):
    """What a browser would send for a handler's inputs: what the page begins with, the least of each slider."""
    info = server.endpoints.get(f"/{event['api_name']}", {}).get("parameters", [])
    required = [not one["parameter_has_default"] for one in info]
    values = []
    for at, number in enumerate(event["inputs"]):
        component = server.components[number]
        props = component["props"]
        value = props.get("minimum") if component["type"] == "slider" else props.get("value")
        values.append("The moon is round." if component["type"] == "api" and required[at] else value)
    return values


def hostile(server, event, turn):
    """Bodies of requests to a handler."""
    data, count = usual(server, event), PER_PARAMETER if event["api_name"] in ENDPOINTS else 1
    for at, number in enumerate(event["inputs"]):
        kind = server.components[number]["type"]
        if kind != "state":  # which no client sends
            for value in itertools.islice(turn, count):
                if kind == "number" and value in (True, 2.5):
                    continue  # 1 and 2 to gradio: valid, and as the stride of windows minutes of work
                yield {"data": [*data[:at], value, *data[at + 1 :]]}
    for wrong in ([], [*data, "more"], [None] * len(data), [{}] * len(data))[: 4 if data else 2]:
        yield {"data": wrong}
    if "select" in {name for _, name in event["targets"]}:
        for chosen in EVENT_DATA:
            yield {"data": data, "event_data": chosen}


def send(server, session, requests, *, cut=False):
    """Send (handler, body) pairs as one page does; return what each ended with, or the status of a refusal.

    cut  whether the answer may break off
    """
    ends = []
    for some in (requests[at : at + AT_ONCE] for at in range(0, len(requests), AT_ONCE)):
        queued = [(event["id"], body) for event, body in some if event["queue"] is not False]
        ends += zip([number for number, _ in queued], server.run_events(queued, session=session, cut=cut))
        for event, body in some:
            if event["queue"] is False:
                answer = server.post("run/predict", {"fn_index": event["id"], "session_hash": session} | body)
                ends.append((event["id"], answer.status_code))
    return ends


@pytest.fixture(scope="module")
def sent(server, runs_dir):
    """All requests to handlers, on a page on which everything was done once before: how each ended, and files before."""
    handlers = [one for one in server.config["dependencies"] if one["backend_fn"]]
    usually = [(event, {"data": usual(server, event)}) for event in handlers]
    turn = itertools.cycle(HOSTILE)
    each, known = [], set()
    for event in handlers:  # one function often hangs on several events, with the same inputs and outputs
        places = (*event["inputs"], None, *event["outputs"])
        count = 1 if places in known else None
        each.append([(event, body) for body in itertools.islice(hostile(server, event, turn), count)])
        known.add(places)
    mixed = [one for row in itertools.zip_longest(*each) for one in row if one]  # no handler is waited for alone
    halves = [one for one in mixed if HALF in one[1]["data"]]
    whole = [one for one in mixed if HALF not in one[1]["data"]]
    send(server, PAGE, usually)
    before = listing(ROOT, runs_dir)
    ends = send(server, PAGE, whole)
    for number, one in enumerate(halves):  # gradio's own errors repeat the value, which ends the stream of their page
        ends += send(server, f"half{number}", [one], cut=True)
    return before, ends


def test_every_handler_ends_each_request_and_none_changes_a_run(server, sent, runs_dir):
    before, ends = sent
    assert len(ends) >= 260
    assert {number for number, _ in ends} == {one["id"] for one in server.config["dependencies"] if one["backend_fn"]}
    assert listing(ROOT, runs_dir) == before


def test_what_the_public_endpoints_say_is_a_short_line(server, sent):
    public = {one["id"] for one in server.config["dependencies"] if one["api_name"] in ENDPOINTS}
    said = {end["output"].get("error") for number, end in sent[1] if number in public and end and not end["success"]}
    assert len(said) > 30
    for line in said - {None}:  # None: gradio's own errors, which are not shown
        assert len(line) < 600, line
        assert "\n" not in line.strip(), line


def test_functions_of_views_answer_with_a_line(server):
    for component in server.components.values():
        for name in component["props"].get("server_fns", []):
            for body in asked_of_a_view(server, component["id"], name):
                answer = server.post("component_server", body)
                assert answer.status_code == 200, (body, answer.text[:300])


def asked_of_a_view(server, number, name):
    """Bodies of requests to a function of a view: any data, any subject, every kind of request with any option."""

    def body(data):
        return {"data": data, "component_id": number, "fn_name": name, "session_hash": PAGE}

    subject = {"text": "The moon is round.", "models": ["builtin"]}
    for value in HOSTILE:
        yield body(value)
        yield body({"kind": value, "options": value, "subject": value})
        yield body({"kind": "ablate", "options": {}, "subject": {"text": value, "models": [value]}})
        yield body({"kind": value, "options": {}, "subject": subject})
    refused = server.post("component_server", body({"kind": "x", "options": {}, "subject": subject})).json()
    turn, kinds = itertools.cycle(HOSTILE), KINDS.search(refused.get("error", ""))
    for kind in [*(kinds[1].split(", ") if kinds else []), "save", "rollout", "bertviz"]:
        for option in OPTIONS:
            yield body({"kind": kind, "options": {option: next(turn)}, "subject": subject})


def test_other_names_are_not_functions_of_a_view(server):
    page = server.component("explore-page")["id"]
    for number, name in ((page, "postprocess"), (page, "__init__"), (0, "answer"), (-1, "x"), ("x", None), (None, {})):
        body = {"data": {}, "component_id": number, "fn_name": name, "session_hash": PAGE}
        assert server.post("component_server", body).status_code >= 400


def test_uploads_stay_in_their_folder(server, runs_dir):
    before, url = listing(ROOT, runs_dir), f"{server.url}/gradio_api/upload"
    for name in ("../../evil.txt", "..\\..\\evil.txt", "/etc/evil", "a" * 500, "\u202etxt.exe", ".."):
        answer = httpx.post(url, files={"files": (name, b"evil", "text/plain")})
        paths = answer.json() if answer.status_code == 200 else []
        assert all(Path(path).resolve().is_relative_to(server.folder / "gradio") for path in paths)
    assert httpx.post(url, files={"files": ("large.txt", b"x" * TOO_LARGE, "text/plain")}).status_code == 413
    assert httpx.post(url, content=b"x", headers={"Content-Type": "text/plain"}).status_code >= 400
    assert listing(ROOT, runs_dir) == before


def test_no_file_of_the_machine_is_served(server, runs_dir):
    for path in (*OUTSIDE, str(runs_dir / "done" / "config.json"), str(runs_dir / "done" / "model" / "config.json")):
        assert httpx.get(f"{server.url}/gradio_api/file={path}").status_code in (403, 404)


def test_queued_handlers_are_not_called_beside_the_queue(server):
    for event in server.config["dependencies"]:
        if event["backend_fn"] and event["queue"] is not False:
            body = {"fn_index": event["id"], "data": usual(server, event), "session_hash": PAGE}
            assert server.post("run/predict", body).status_code == 404


def test_afterwards_the_page_works_and_no_fault_of_ours_was_logged(server, sent):
    assert server.explores()
    tracebacks = server.printed().split("Traceback (most recent call last):")[1:]
    faults = {
        (FRAME.findall(one)[-1], one.split("\n\n")[0].strip().splitlines()[-1][:200])
        for one in tracebacks
        if FRAME.search(one)
    }
    assert sorted(faults) == []

"""Several visitors use the page for some minutes: does its memory level off, and its number of threads?

    python benchmarks/soak.py [--minutes 10] [--users 8]

The page runs in a process of its own, with the built-in model. Each visitor opens it, explores texts of their own most of
the time and asks the views for more, generates, evaluates, calls other endpoints, then closes the page and opens it again.
The Explore page's handler and what else is not public are found in the served page. Prints a line per minute; then the
start, the middle and the end, and what grew since the third minute, against the bounds.
"""

import argparse
import json
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import NamedTuple

import httpx
import psutil

SETTLED = 3  # minutes after which memory and threads should stay level
BOUNDS = {"memory": 150.0, "threads": 4}  # MB, and threads, that may be added after that
WORDS = "the moon sea earth light of a river in Paris and radium was discovered by Marie Curie who is small".split()
HEAD = ("minute", "memory MB", "threads", "requests", "errors", "explore p50 s", "p95 s", "others p50 s", "p95 s")
ROW = "{:>6} {:>10} {:>8} {:>9} {:>7} {:>14} {:>8} {:>13} {:>8}"
PATIENCE = 120.0  # seconds for an answer


@dataclass
class Log:
    """What the visitors report: (kind, seconds) of each request, and errors."""

    seconds: list[tuple[str, float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Sample(NamedTuple):
    """Memory of the server in MB, and its threads."""

    memory: float
    threads: int


class Visit:
    """An open page: its session, and what it can send."""

    def __init__(self, url: str) -> None:
        self.http, self.session = httpx.Client(base_url=url, timeout=PATIENCE), uuid.uuid4().hex
        self.http.get("/").raise_for_status()
        config = self.http.get("/config").json()
        [self.page] = [one["id"] for one in config["components"] if one["props"].get("elem_id") == "explore-page"]
        self.events = config["dependencies"]
        self.endpoints = self.http.get("/gradio_api/info").json()["named_endpoints"]
        self.explore = next(e for e in self.events if e["outputs"] == [self.page] and len(e["inputs"]) == 3)
        self.subject: dict | None = None

    def send(self, number: int, *data: object) -> list:
        """Send an event of the page, and wait for its end. Raises: RuntimeError with the error that the page shows."""
        body = {"fn_index": number, "data": data, "session_hash": self.session}
        self.http.post("/gradio_api/queue/join", json=body).raise_for_status()
        with self.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
                if message.get("msg") == "process_completed":
                    if not message["success"]:
                        raise RuntimeError(message["output"].get("error"))
                    return message["output"]["data"]
        raise RuntimeError("the stream ended before the event did")

    def call(self, name: str, **given: object) -> dict:
        """Call a public endpoint; what is not given has its default."""
        [number] = [one["id"] for one in self.events if one["api_name"] == name]
        parameters = {one["parameter_name"]: one for one in self.endpoints[f"/{name}"]["parameters"]}
        data = [given[key] if key in given else one["parameter_default"] for key, one in parameters.items()]
        return self.send(number, *data)[0]

    def ask(self, kind: str, **options: object) -> dict:
        """Ask for what a view shows on request."""
        data = {"kind": kind, "options": options, "subject": self.subject}
        body = {"data": data, "component_id": self.page, "fn_name": "answer", "session_hash": self.session}
        answer = self.http.post("/gradio_api/component_server", json=body)
        answer.raise_for_status()
        if "error" in answer.json():
            raise RuntimeError(answer.json()["error"])
        return answer.json()


def explore(visit: Visit, text: str, rng: random.Random) -> None:
    [value] = visit.send(visit.explore["id"], "builtin", text, "no second model")
    visit.subject = value["data"]["subject"]


def ablate(visit: Visit, text: str, rng: random.Random) -> None:
    if visit.subject is None:
        explore(visit, text, rng)
    visit.ask("ablate", off=[[rng.randrange(6), rng.randrange(8)]], mlps=[], mean=False)


def generate(visit: Visit, text: str, rng: random.Random) -> None:
    visit.call("generate", prompt=text, max_new_tokens=rng.randint(10, 60), top_p=0.95, seed=rng.randrange(1000))


def evaluate(visit: Visit, text: str, rng: random.Random) -> None:
    visit.call("perplexity", quick=1, seed=rng.randrange(20))


def analyse(visit: Visit, text: str, rng: random.Random) -> None:
    options = {"surprisal": {}, "attention": {"layer": 2, "head": 3}, "logit_lens": {"top": 3}}
    name = rng.choice([*options])
    visit.call(name, text=text, **options[name])


ACTIONS: dict[Callable, int] = {explore: 6, ablate: 1, generate: 1, evaluate: 1, analyse: 1}  # with how often


def visits(url: str, number: int, end: float, log: Log) -> None:
    """Open the page, do some things, close it, and again, until the time is over."""
    rng = random.Random(number)
    while time.monotonic() < end:
        try:
            visit = Visit(url)
            with closing(visit.http):
                for action in rng.choices([*ACTIONS], [*ACTIONS.values()], k=rng.randint(4, 10)):
                    if time.monotonic() > end:
                        break
                    began = time.monotonic()
                    action(visit, " ".join(rng.choices(WORDS, k=rng.randint(4, 40))), rng)
                    log.seconds.append((action.__name__, time.monotonic() - began))
                    time.sleep(rng.uniform(0.2, 2))  # people look at what they see
        except Exception as error:  # what a visitor meets is counted
            log.errors.append(f"{type(error).__name__}: {error}")
            time.sleep(1)


def soak(url: str, server: psutil.Process, minutes: int, users: int) -> None:
    """Print the table, a line per minute, then start, middle and end, and what grew after the third minute."""
    log, end = Log(), time.monotonic() + 60 * minutes
    samples = [sample(server)]
    threads = [threading.Thread(target=visits, args=(url, i, end, log), daemon=True) for i in range(users)]
    print(ROW.format(*HEAD), flush=True)
    for thread in threads:
        thread.start()
    before = 0
    for minute in range(1, minutes + 1):
        time.sleep(max(0.0, end - time.monotonic() - 60 * (minutes - minute)))
        samples.append(sample(server))
        latest, before = log.seconds[before:], len(log.seconds)
        print(line(str(minute), samples[-1], latest, len(log.errors)), flush=True)
    print(line("all", samples[-1], log.seconds, len(log.errors)))
    for error in sorted(set(log.errors))[:10]:
        print("error:", error[:200])
    for name, at in (("start", samples[0]), ("middle", samples[len(samples) // 2]), ("end", samples[-1])):
        print(f"{name}: {at.memory:,.0f} MB, {at.threads} threads")
    if minutes > SETTLED:
        settled, later = samples[SETTLED], samples[SETTLED + 1 :]
        grown = (max(s.memory for s in later) - settled.memory, max(s.threads for s in later) - settled.threads)
        for (name, bound), value in zip(BOUNDS.items(), grown):
            verdict = "holds" if value <= bound else "BROKEN"
            print(f"{name} since minute {SETTLED}: {value:+.0f} (bound {bound:+.0f}): {verdict}")


def sample(server: psutil.Process) -> Sample:
    """Measure the server now."""
    return Sample(server.memory_info().rss / 1e6, server.num_threads())


def line(name: str, at: Sample, seconds: list[tuple[str, float]], errors: int) -> str:
    """Return a row of the table."""
    explored = [taken for kind, taken in seconds if kind == "explore"]
    others = [taken for kind, taken in seconds if kind != "explore"]
    cells = [f"{quantile(part, q):.2f}" for part in (explored, others) for q in (0.5, 0.95)]
    return ROW.format(name, f"{at.memory:,.0f}", at.threads, len(seconds), errors, *cells)


def quantile(values: list[float], q: float) -> float:
    """Return a quantile of some values, NaN of none."""
    return sorted(values)[int(q * (len(values) - 1))] if values else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--users", type=int, default=8)
    arguments = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as runs:
        command = [sys.executable, "-m", "gpt2lab", "app", "--port", str(port), "--runs", runs]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
            try:
                url = next(found[0] for text in server.stdout if (found := re.search(r"http://[\d.:]+", text)))
                soak(url, psutil.Process(server.pid), arguments.minutes, arguments.users)
            finally:
                server.terminate()


if __name__ == "__main__":
    main()

"""Several visitors use the page for some minutes: does its memory level off, and its number of threads?

    python benchmarks/soak.py [--minutes 10] [--users 8]

The page runs in a process of its own, with the built-in model. Each visitor opens it, explores texts,
generates, evaluates, in a random order with texts of their own, then closes the page and opens it again. Prints a line per minute; at the end, what grew since the third minute, against the bounds.
"""

import argparse
import random
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field

import psutil
from gradio_client import Client

SETTLED = 3  # minutes after which memory and threads should stay level
BOUNDS = {"memory": 150.0, "threads": 4}  # MB, and threads, that may be added after that
WORDS = "the moon sea earth light of a river in Paris and radium was discovered by Marie Curie who is small".split()
ALONE = "no second model"
ROW = "{:>6} {:>10} {:>8} {:>9} {:>7} {:>9} {:>9}"


@dataclass
class Log:
    """What the visitors report: seconds of each request, and errors."""

    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--users", type=int, default=8)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as runs:
        command = [sys.executable, "-m", "gpt2lab", "app", "--port", str(free_port()), "--runs", runs]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
            try:
                url = next(found[0] for line in server.stdout if (found := re.search(r"http://[\d.:]+", line)))
                soak(url, psutil.Process(server.pid), arguments.minutes, arguments.users)
            finally:
                server.terminate()


def soak(url: str, server: psutil.Process, minutes: int, users: int) -> None:
    """Print the table, a line per minute, and what grew after the third."""
    log, end = Log(), time.monotonic() + 60 * minutes
    visitors = [threading.Thread(target=visit, args=(url, i, end, log), daemon=True) for i in range(users)]
    print(ROW.format("minute", "memory MB", "threads", "requests", "errors", "median s", "95 % s"), flush=True)
    for visitor in visitors:
        visitor.start()
    memory, threads, before = [], [], 0
    for minute in range(1, minutes + 1):
        time.sleep(max(0.0, end - time.monotonic() - 60 * (minutes - minute)))
        memory.append(server.memory_info().rss / 1e6)
        threads.append(server.num_threads())
        latest, before = sorted(log.seconds[before:]), len(log.seconds)
        middle, slow = (statistics.median(latest), latest[int(0.95 * (len(latest) - 1))]) if latest else (0.0, 0.0)
        cells = (
            minute,
            f"{memory[-1]:,.0f}",
            threads[-1],
            len(latest),
            len(log.errors),
            f"{middle:.2f}",
            f"{slow:.2f}",
        )
        print(ROW.format(*cells), flush=True)
    for error in sorted(set(log.errors))[:5]:
        print("error:", error[:200])
    if minutes > SETTLED:
        grown = max(memory[SETTLED:]) - memory[SETTLED - 1], max(threads[SETTLED:]) - threads[SETTLED - 1]
        for name, value, bound in zip(BOUNDS, grown, BOUNDS.values()):
            print(
                f"{name} since minute {SETTLED}: {value:+.0f} (bound {bound:+.0f}): {'holds' if value <= bound else 'BROKEN'}"
            )


def visit(url: str, number: int, end: float, log: Log) -> None:
    """Open the page, do some things, close it, and again, until the time is over."""
    rng = random.Random(number)
    while time.monotonic() < end:
        try:
            client = Client(url, verbose=False)
            for action in rng.choices(ACTIONS, k=rng.randint(3, 8)):
                if time.monotonic() > end:
                    break
                began = time.monotonic()
                action(client, " ".join(rng.choices(WORDS, k=rng.randint(4, 40))), rng)
                log.seconds.append(time.monotonic() - began)
            client.close()
        except Exception as error:  # what a visitor meets is counted
            log.errors.append(f"{type(error).__name__}: {error}")
        time.sleep(rng.uniform(0.2, 1))


def explore(client: Client, text: str, rng: random.Random) -> None:
    client.predict("builtin", text, ALONE, api_name="/explore")


def generate(client: Client, text: str, rng: random.Random) -> None:
    options = (rng.randint(20, 120), 0.8, 0.95, 0, rng.randrange(1000), 0, 1, 0, "fp32")
    job = client.submit("builtin", ALONE, text, 1, "probability", *options, api_name="/generate")
    if rng.random() < 0.3:
        time.sleep(0.5)
        client.predict(api_name="/generate_stop")
    job.result()


def evaluate(client: Client, text: str, rng: random.Random) -> None:
    asked = (ALONE, "sample", "test", ["sliding"], 0, 0, 2, rng.randrange(20), "")
    client.predict("builtin", False, *asked, api_name="/evaluate")


ACTIONS = (explore, explore, generate, evaluate)


def free_port() -> int:
    """Return a port that nothing listens on."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


if __name__ == "__main__":
    main()

"""The app served by a process of its own, and the endpoints and components that it says it has.

    python -m tests.serving RUNS PORT

serves it with everything but the processes of runs and estimates: who asks for one is refused.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.processes import ROOT

PATIENCE = 300  # seconds until a page is served, also on a busy machine
ADDRESS = re.compile(r"gpt2lab is at (http://\S+?)/?\s")


@contextmanager
def served(folder: Path, *command, **variables):
    """Run a command that serves the app, with its output in files of a folder; end it with the block."""
    folder.mkdir(parents=True)
    own = {"PYTHONPATH": str(ROOT), "GRADIO_TEMP_DIR": str(folder / "gradio"), "GPT2LAB_CACHE": str(folder / "cache")}
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, *map(str, command)], cwd=ROOT, env=os.environ | own | variables, stdout=out, stderr=err
        )
    try:
        yield Served(process, folder)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Served:
    """A served app: its address, its configuration, and what it has printed so far."""

    def __init__(self, process: subprocess.Popen, folder: Path):
        self.process, self.folder = process, folder
        self.url = self._address()
        # one client for all requests, since each loads the certificates of the web; connections are not kept, since the
        # server closes them where it refuses
        self.client = httpx.Client(
            base_url=self.url,
            timeout=PATIENCE,
            headers={"Content-Type": "application/json"},
            limits=httpx.Limits(max_keepalive_connections=0),
        )
        self.config = self.client.get("/config").json()
        self.endpoints = self.client.get("/gradio_api/info").json()["named_endpoints"]
        self.components = {one["id"]: one for one in self.config["components"]}

    def _address(self) -> str:
        until = time.monotonic() + PATIENCE
        while not (found := ADDRESS.search(self.printed())):
            assert self.process.poll() is None and time.monotonic() < until, self.printed()
            time.sleep(0.1)
        return found[1]

    def printed(self) -> str:
        texts = ((self.folder / name).read_text(encoding="utf-8", errors="replace") for name in ("out", "err"))
        return "".join(texts)

    def component(self, elem_id: str) -> dict:
        [found] = [one for one in self.components.values() if one["props"].get("elem_id") == elem_id]
        return found

    def post(self, path: str, body: dict) -> httpx.Response:
        """Post JSON, in which numbers may be NaN or infinite, as a client of another kind could."""
        return self.client.post(f"/gradio_api/{path}", content=json.dumps(body))

    def ask(self, name: str, *data) -> tuple[bool, object]:
        """(whether it went well, the answer or the error) of a public endpoint."""
        event = self.post(f"call/{name}", {"data": list(data)}).json()["event_id"]
        lines = self.client.get(f"/gradio_api/call/{name}/{event}").text.strip().splitlines()
        ended, answer = lines[-2].removeprefix("event: "), json.loads(lines[-1].removeprefix("data: "))
        return ended == "complete", answer[0] if ended == "complete" else answer

    def explores(self, text: str = "The moon is round.") -> bool:
        """Whether the Explore page is drawn for a text."""
        page = self.component("explore-page")["id"]
        [event, *_] = [
            one for one in self.config["dependencies"] if one["outputs"] == [page] and len(one["inputs"]) == 3
        ]
        [drawn] = self.run_events([(event["id"], {"data": ["builtin", text, "no second model"]})])
        return drawn["success"] and drawn["output"]["data"][0]["data"]["subject"]["text"] == text

    def run_events(self, events: list[tuple[int, dict]], *, session: str = "visitor", cut: bool = False) -> list:
        """Send events of one page to the queue; return the last message on each, None if it was refused at once.

        events  (number of the handler, the body: its data and what else a browser sends)
        cut     whether the answers may break off; None for those that did
        """
        ids = []
        for number, body in events:
            answer = self.post("queue/join", {"fn_index": number, "session_hash": session} | body)
            ids.append(answer.json()["event_id"] if answer.status_code == 200 else None)
        ends = self._ends(session, {one for one in ids if one}, cut)
        return [ends.get(one) if one else None for one in ids]

    def _ends(self, session: str, waiting: set[str], cut: bool) -> dict[str, dict]:
        """The last message on each event of a page that is under way."""
        ends: dict[str, dict] = {}
        if not waiting:
            return ends
        with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
            try:
                for line in stream.iter_lines():
                    message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
                    if message.get("msg") == "process_completed":
                        ends[message["event_id"]] = message
                    if waiting <= ends.keys():
                        break
            except httpx.RemoteProtocolError:
                if not cut:
                    raise
        return ends


def main() -> None:
    from gpt2lab.app import build_app, events, serve
    from gpt2lab.errors import LabError
    from gpt2lab.training import jobs

    def refuse(*arguments, **options):
        raise LabError("no process is started here")

    jobs.spawn = jobs.cost_in_worker = refuse
    events.STOP_SECONDS = 0.05
    runs_dir, port = sys.argv[1:]
    serve(build_app(runs_dir, training=True), port=int(port))


if __name__ == "__main__":
    main()

"""A stand-in for the Hugging Face hub: serves folders as repositories, with faults on request.

    python -m tests.hub FOLDER [--port 8800]

FOLDER/<owner>/<name> (or FOLDER/<name>) is a model, FOLDER/datasets/<owner>/<name> a data set. With
HF_ENDPOINT=http://127.0.0.1:8800 the real libraries load them.
"""

import argparse
import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".parquet", ".bin")  # stored as LFS objects: their tag is a SHA-256
CHUNK = 1 << 15
SLOW_SECONDS = 0.25  # between parts of a slow answer


@dataclass
class Fault:
    """What goes wrong with the files whose path contains a pattern.

    status  answer with it · speed  bytes per second · cut  close the connection after so many bytes of an answer
    hang    send nothing for HANG_SECONDS after so many bytes · damage  change the content · times  how often; None: always
    """

    status: int | None = None
    speed: float | None = None
    cut: int | None = None
    hang: int | None = None
    damage: bool = False
    times: int | None = None


HANG_SECONDS = 30.0


@dataclass
class Hub:
    """The server: `url`, the requests it was sent as (method, path, range), and faults by a part of a path."""

    folder: Path
    port: int = 0
    faults: dict[str, Fault] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    sent: int = 0

    def __enter__(self):
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.closing = threading.Event()
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def fault(self, path: str, method: str) -> Fault:
        """The fault that holds for a path now; only GET requests count towards its times."""
        for pattern, fault in self.faults.items():
            if pattern in path and fault.times != 0:
                if fault.times and method == "GET":
                    fault.times -= 1
                return fault
        return Fault()

    def asked(self, part: str, method: str = "GET") -> list[str | None]:
        """The ranges of the requests for paths that contain a part; None is the whole file."""
        return [ranges for verb, path, ranges in self.requests if verb == method and part in path]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        self.answer(body)

    def answer(self, body: dict | None = None) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if path == "/":
            return self.send(200, b"hub")
        if found := re.fullmatch(r"/(datasets/)?(.+?)/resolve/([^/]+)/(.+)", path):
            kind, repo, _, file = found.groups()
            return self.send_file((kind or "") + repo, file)
        if found := re.fullmatch(r"/api/(models|datasets)/(.+?)(/(revision|tree|paths-info)/([^/]+)(/.*)?)?", path):
            kind, repo, _, action, *_ = found.groups()
            return self.send_info(("datasets/" if kind == "datasets" else "") + repo, action, body)
        return self.send(404, b"{}")

    def send_info(self, repo: str, action: str | None, body: dict | None) -> None:
        folder = self.hub.folder / repo
        fault = self.hub.fault(f"api/{repo}", self.command)
        if fault.status or not folder.is_dir():
            return self.refuse(fault.status or 404, "RepoNotFound" if fault.status in (None, 401, 404) else "")
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        named = [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files]
        if action in ("tree", "paths-info"):
            wanted = (body or {}).get("paths")
            entries = [{"type": "file", "path": name, "size": size, "oid": COMMIT} for name, size in named]
            return self.send_json([entry for entry in entries if wanted is None or entry["path"] in wanted])
        siblings = []
        for name, size in named:
            tag = tag_of(name, (folder / name).read_bytes())
            lfs = {"lfs": {"sha256": tag, "size": size, "pointerSize": 134}} if name.endswith(LARGE) else {}
            siblings.append({"rfilename": name, "size": size, "blobId": tag, **lfs})
        return self.send_json(
            {"id": repo.removeprefix("datasets/"), "sha": COMMIT, "siblings": siblings, "private": False}
        )

    def send_file(self, repo: str, file: str) -> None:
        folder = self.hub.folder / repo
        fault = self.hub.fault(f"{repo}/{file}", self.command)
        if fault.status:
            return self.refuse(fault.status, "RepoNotFound" if fault.status in (401, 404) else "")
        path = folder / file
        if not folder.is_dir() or not path.is_file():
            return self.refuse(404, "EntryNotFound" if folder.is_dir() else "RepoNotFound")
        content = path.read_bytes()
        headers = {"ETag": f'"{tag_of(file, content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if fault.damage:
            content = content[:-1] + bytes([content[-1] ^ 1])
        begin = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(begin[1]) if begin else 0
        if begin:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self.send(206 if begin else 200, content[start:], headers, fault)

    def refuse(self, status: int, code: str) -> None:
        self.send(status, b"{}", {"X-Error-Code": "GatedRepo" if status == 403 else code, "X-Error-Message": "refused"})

    def send_json(self, value) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, content: bytes, headers: dict | None = None, fault: Fault | None = None) -> None:
        fault = fault or Fault()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        end = len(content) if fault.cut is None else fault.cut
        chunk = min(CHUNK, int(fault.speed * SLOW_SECONDS)) if fault.speed else CHUNK
        for i in range(0, end, chunk):
            if fault.hang is not None and i >= fault.hang:
                self.hub.closing.wait(HANG_SECONDS)
                break
            try:
                self.wfile.write(content[i : min(i + chunk, end)])
            except OSError:  # the client has gone
                self.close_connection = True
                return
            self.hub.sent += min(chunk, end - i)
            if fault.speed:
                time.sleep(chunk / fault.speed)
        if fault.cut is not None or fault.hang is not None:
            self.close_connection = True


def tag_of(file: str, content: bytes) -> str:
    """Return the tag of a file: large ones have their SHA-256."""
    return (hashlib.sha256 if file.endswith(LARGE) else hashlib.sha1)(content).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=8800)
    parser.add_argument("--speed", type=float, help="bytes per second of every file")
    arguments = parser.parse_args()
    with Hub(arguments.folder, arguments.port) as hub:
        if arguments.speed:
            hub.faults[""] = Fault(speed=arguments.speed)
        print(f"HF_ENDPOINT={hub.url}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()

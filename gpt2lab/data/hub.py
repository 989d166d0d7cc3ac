"""Download from the Hugging Face hub into its cache: known sizes, progress, resumable, one-line errors.

`huggingface_hub` discards an interrupted download; here the part that has arrived is kept beside the cache's files, and the
next call requests the rest.
"""

import errno
import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from huggingface_hub import HfApi, constants, get_hf_file_metadata, get_session, hf_hub_download, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status
from tqdm.auto import tqdm

from gpt2lab.data import sources
from gpt2lab.errors import LabError, Message, first_line
from gpt2lab.progress import finished

STALL_SECONDS = 10.0  # without a byte, after which a download is given up
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
LOG_SECONDS = 10.0  # between progress lines where standard error is a file
SPEED_SECONDS = 5.0  # over which the speed of a download is measured
SHOW_SECONDS = 0.1  # between two steps of progress


@dataclass(frozen=True)
class Download:
    """The files that a model or a text needs from the hub, and their sizes.

    name   as the user gives it · repo, repo_type  on the hub
    files  (path in the repository, bytes), in the order in which they are fetched; those in the cache are not in it
    have   bytes of them that have arrived in an earlier download
    """

    name: str
    repo: str
    repo_type: str
    files: tuple[tuple[str, int], ...]
    have: int = 0

    @property
    def total(self) -> int:
        """Bytes of all files that are not in the cache."""
        return sum(size for _, size in self.files)

    @property
    def n_bytes(self) -> int:
        """Bytes that are still to be downloaded."""
        return self.total - self.have


@dataclass(frozen=True)
class Progress:
    """How far a download is: bytes done of all, and bytes per second over the last few seconds."""

    done: int
    total: int
    speed: float

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds until it is complete; None while nothing arrives."""
        return (self.total - self.done) / self.speed if self.speed else None


class _Meter:
    """Bytes per second over the last SPEED_SECONDS, at most a few times a second."""

    def __init__(self, total: int):
        self.total = total
        self.marks: list[tuple[float, int]] = []  # (time, bytes)

    def read(self, done: int) -> Progress | None:
        """Return the Progress; None if the last one is younger than SHOW_SECONDS."""
        now = time.monotonic()
        if self.marks and now - self.marks[-1][0] < SHOW_SECONDS:
            return None
        began, before = self.marks[0] if self.marks else (now, done)
        self.marks = [mark for mark in self.marks if now - mark[0] < SPEED_SECONDS] + [(now, done)]
        return Progress(done, self.total, (done - before) / (now - began) if now > began else 0.0)


def is_downloaded(name: str) -> bool:
    """Whether a model or a text can be loaded without the hub: True but for HUB_MODELS and WIKITEXT out of the cache."""
    if name in sources.WIKITEXT:
        return all(sources.is_cached(sources.WIKITEXT_REPO, file, "dataset") for file in _wikitext_paths(name))
    return name not in sources.HUB_MODELS or sources.is_model_cached(name)


def require_downloaded(name: str) -> None:
    """Raises: LabError for a model or a text of the hub that is not in its cache."""
    if not is_downloaded(name):
        where = Message("Text") if name in sources.WIKITEXT else Message("Model")
        raise LabError("{name} is not downloaded; choose it as {where} and press Download.", name=name, where=where)


def find_download(name: str, *, weights: bool = True) -> Download:
    """Ask the hub which files a model or a text needs, and how large they are.

    name     a hub id of a model, "wikitext-2" or "wikitext-2-v1"
    weights  whether a model's weights are needed

    Raises: LabError if the hub is unreachable or refuses, or the repository holds no safetensors.
    """
    is_text = name in sources.WIKITEXT
    repo, kind = (sources.WIKITEXT_REPO, "dataset") if is_text else (name, "model")
    if not sources.hub_reachable():
        raise LabError(sources.hub_advice(name, "sample" if is_text else "builtin"))
    try:
        api = HfApi(endpoint=constants.ENDPOINT)
        info = api.repo_info(repo, repo_type=kind, files_metadata=True, timeout=STALL_SECONDS)
    except Exception as error:  # of several HTTP libraries
        raise hub_error(name, error) from error
    listed = {file.rfilename: file for file in info.siblings}
    sizes = {path: file.size or 0 for path, file in listed.items()}
    wanted = _wikitext_paths(name) if is_text else _model_paths(name, sizes, weights)
    if missing := [path for path in wanted if path not in sizes]:
        raise LabError("{repo} has no {missing} on the hub; it may have been renamed.", repo=repo, missing=missing[0])
    files = tuple((path, sizes[path]) for path in wanted if not sources.is_cached(repo, path, kind))
    tags = (listed[path].lfs.sha256 if listed[path].lfs else listed[path].blob_id for path, _ in files)
    parts = (_cache_folder(repo, kind) / "blobs" / f"{tag}.part" for tag in tags)
    return Download(name, repo, kind, files, sum(part.stat().st_size for part in parts if part.exists()))


def _cache_folder(repo: str, kind: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type=kind)


def _wikitext_paths(name: str) -> list[str]:
    return list(sources.wikitext_files(name).values())


def _model_paths(name: str, sizes: dict[str, int], weights: bool) -> list[str]:
    """A model's files: config.json first, then the tokenizer's small files, then weights as safetensors alone."""
    shards = sorted(path for path in sizes if path.startswith("model-") and path.endswith(".safetensors"))
    stored = ["model.safetensors"] if "model.safetensors" in sizes else shards
    if "config.json" not in sizes and "adapter_config.json" in sizes:
        raise LabError(
            "{name} holds an adapter alone; download it with hf download {name} --local-dir FOLDER, and give "
            "the folder.",
            name=name,
        )
    if "config.json" not in sizes:
        raise LabError("{name} has no config.json on the hub; it holds no model.", name=name)
    if weights and not stored:
        raise LabError(
            "{name} has no safetensors on the hub; other formats can run code and are never loaded.", name=name
        )
    small = [path for path in sizes if "/" not in path and path.endswith((".json", ".txt", ".model"))]
    return ["config.json", *sorted({*small} - {"config.json"}), *(stored if weights else [])]


def download_steps(download: Download) -> Generator[Progress, None, None]:
    """Fetch the files of a download into the hub's cache, yielding a Progress several times a second.

    What has arrived stays on the disk if it is broken off, and the next call continues from there. A model of another
    type than GPT-2 is refused before its weights are fetched.

    Raises: LabError for what the hub refuses, a connection that ends or stalls, a full disk, or a damaged file.
    """
    if not download.files:
        return
    folder = _cache_folder(download.repo, download.repo_type)
    lock = FileLock(folder / "gpt2lab.lock", thread_local=False)
    done, meter = 0, _Meter(download.total)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_room(download, folder)
        lock.acquire(timeout=0)
        for path, size in download.files:
            for arrived in _fetch(download, path, folder / "blobs"):
                if progress := meter.read(done + arrived):
                    yield progress
            done += size
            if path == "config.json":
                config = hf_hub_download(download.repo, path, repo_type=download.repo_type, local_files_only=True)
                sources.check_model_config(download.name, Path(config))
    except Timeout as error:
        raise LabError(
            "{name} is being downloaded by another process; wait until it has finished.", name=download.name
        ) from error
    except LabError:
        raise
    except Exception as error:  # of several HTTP libraries
        raise hub_error(download.name, error) from error
    finally:
        lock.release()
    yield Progress(download.total, download.total, 0.0)


def _check_room(download: Download, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < download.n_bytes:
        raise LabError(
            "{name} needs {needed} in {hf_hub_cache}, {free} are free; make room, or set HF_HOME "
            "to a folder on another disk.",
            name=download.name,
            needed=megabytes(download.n_bytes),
            hf_hub_cache=constants.HF_HUB_CACHE,
            free=megabytes(free),
        )


def _fetch(download: Download, path: str, blobs: Path) -> Generator[int, None, None]:
    """Fetch one file into the cache; yields the bytes of it that have arrived."""
    url = hf_hub_url(download.repo, path, repo_type=download.repo_type, endpoint=constants.ENDPOINT)
    known = get_hf_file_metadata(url, timeout=STALL_SECONDS)
    if known.etag is None or known.size is None:
        raise LabError(
            "The hub does not say how large {path} of {repo} is; try again later.", path=path, repo=download.repo
        )
    blob, part = blobs / known.etag, blobs / f"{known.etag}.part"
    blobs.mkdir(exist_ok=True)
    if not blob.exists():
        yield from _receive(url, part, known.size)
        _check_content(part, known.etag, path)
        part.replace(blob)
    hf_hub_download(download.repo, path, repo_type=download.repo_type, endpoint=constants.ENDPOINT)  # links the blob


def _receive(url: str, part: Path, size: int) -> Generator[int, None, None]:
    """Append to a partial file what is missing of it; yields its size."""
    have = part.stat().st_size if part.exists() else 0
    have = have if have <= size else 0
    headers = build_hf_headers() | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    if have == size:
        yield size
        return
    with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=STALL_SECONDS) as response:
        hf_raise_for_status(response)
        have = have if response.status_code == 206 else 0  # the server may not know ranges
        with part.open("r+b" if have else "wb") as file:
            file.seek(have)
            for chunk in response.iter_bytes():
                file.write(chunk)
                have += len(chunk)
                yield have
    if have != size:
        raise ConnectionError(f"{have:,} of {size:,} bytes have arrived")


def _check_content(part: Path, etag: str, path: str) -> None:
    """Compare a file with its SHA-256, which is the hub's tag of every large file. Raises: LabError where they differ."""
    if len(etag) != 64:
        return
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != etag:
        part.unlink()
        raise LabError("{path} has arrived damaged and was deleted; download it again.", path=path)


def hub_error(name: str, error: BaseException) -> LabError:
    """Say in one line why the hub did not give what was asked, and what to do."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    if isinstance(error, GatedRepoError) or status == 403:
        why = Message("is gated on the hub; accept its terms there, then log in with: hf auth login")
    elif isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        why = Message("was not found on the hub: misspelt, or private; if it is private, log in with: hf auth login")
    elif status == 429:
        why = Message("cannot be downloaded now: the hub limits the number of requests (429); wait some minutes")
    elif status is not None:
        why = Message("cannot be downloaded: the hub answered with status {status}; try again later", status=status)
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        why = Message(
            "cannot be stored: no space left in {folder}; make room and download again to continue",
            folder=constants.HF_HUB_CACHE,
        )
    elif isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS):
        why = Message(
            "cannot be stored: {folder} is not writable; set HF_HOME to another folder", folder=constants.HF_HUB_CACHE
        )
    elif isinstance(error, ConnectionError) or sources.is_connection_error(error):
        why = Message("has not arrived whole: the hub stopped answering; download again to continue from there")
    else:
        why = Message("cannot be downloaded: {error}", error=first_line(error))
    return LabError("{name!r} {why}.", name=name, why=why)


def download(name: str, *, weights: bool = True, on_progress: Callable[[Progress], None] | None = None) -> None:
    """Fetch what a model or a text needs from the hub, with a progress bar on standard error.

    on_progress  called with a Progress instead of drawing the bar

    Raises: LabError as `find_download` and `download_steps`.
    """
    found = find_download(name, weights=weights)
    steps = ((step,) for step in download_steps(found))
    if on_progress:
        finished(steps, on_progress)
    elif found.files:
        _with_bar(found, steps)


def _with_bar(found: Download, steps: Generator) -> None:
    interval = 0.2 if sys.stderr.isatty() else LOG_SECONDS
    scale = {"unit": "B", "unit_scale": True, "unit_divisor": 1000, "mininterval": interval, "file": sys.stderr}
    with (
        tqdm(total=found.total, initial=found.have, desc=f"download {found.name}"[-40:], **scale) as bar,
        closing(steps),
    ):
        try:
            finished(steps, lambda step: bar.update(step.done - bar.n))
        except KeyboardInterrupt:
            bar.close()
            print(f"{found.name}: cancelled; download again to continue from {megabytes(bar.n)}", file=sys.stderr)
            raise


def megabytes(n_bytes: float) -> str:
    """Format a number of bytes. Example: megabytes(548_105_171) -> "548 MB"."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.3g} MB"

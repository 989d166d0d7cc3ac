"""Downloads from the hub in the page: what is missing and how large it is, a bar, Cancel; shared by all visitors."""

import html
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace

import gradio as gr

from gpt2lab.app.events import Stops, uncover, user_errors
from gpt2lab.app.language import _, said
from gpt2lab.data import hub
from gpt2lab.data.hub import Progress, megabytes
from gpt2lab.data.sources import HUB_MODELS, WIKITEXT, hub_reachable
from gpt2lab.errors import LabError
from gpt2lab.results import duration

POLL_SECONDS = 0.25
SILENT_SECONDS = 2.0  # without a byte, after which no speed is shown
HUBS = (*HUB_MODELS, *WIKITEXT)  # names that can be downloaded here


class Downloads:
    """The downloads under way, one for each name; it ends when no visitor waits for it any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, _Job] = {}

    def steps(self, name: str) -> Generator[Progress | None, None, None]:
        """Join the download of a name, or start it; yields its Progress until it is complete, None before the first.

        Raises: LabError if the name is not offered, or as `hub.download`.
        """
        if name not in HUBS:
            raise LabError(
                "{name!r} cannot be downloaded here; choose one of {choices}",
                name=str(name)[:80],
                choices=", ".join(HUBS),
            )
        while (job := self._join(name)) is None:  # a cancelled one has not ended yet
            yield None
            time.sleep(POLL_SECONDS)
        try:
            last, since = None, time.monotonic()
            while job.thread.is_alive():
                if job.progress is not last:
                    last, since = job.progress, time.monotonic()
                is_silent = time.monotonic() - since > SILENT_SECONDS
                yield replace(last, speed=0.0) if last and is_silent else last
                job.thread.join(POLL_SECONDS)
        finally:
            with self._lock:
                job.waiting -= 1
                job.cancelled = not job.waiting
        if job.error:
            raise job.error

    def _join(self, name: str) -> "_Job | None":
        with self._lock:
            job = self._running.get(name)
            if job is None or not job.thread.is_alive():
                job = self._running[name] = _Job(name)
            elif job.cancelled:
                return None
            job.waiting += 1
            return job


class _Job:
    """A download in a thread of its own, so that it can be cancelled while the network is silent."""

    def __init__(self, name: str) -> None:
        self.waiting, self.cancelled = 0, False
        self.progress: Progress | None = None
        self.error: LabError | None = None
        self.thread = threading.Thread(target=self._run, args=(name,), daemon=True)
        self.thread.start()

    def _run(self, name: str) -> None:
        try:
            steps = hub.download_steps(hub.find_download(name))
            for self.progress in steps:
                if self.cancelled:
                    steps.close()
                    break
        except LabError as error:
            self.error = error
        except Exception as error:  # nobody else would hear of it
            self.error = hub.hub_error(name, error)


def build_download(downloads: Downloads, chosen: gr.Dropdown, name: str) -> gr.events.Dependency:
    """Build the row that says that what a dropdown chooses is not downloaded, with Download and Cancel.

    name  for the elements' ids
    Returns the event of a download, for what is to follow it.
    """
    with gr.Row(visible=False, elem_id=f"{name}-download-row") as row:
        line = gr.HTML(elem_id=f"{name}-download-line", min_width=240)
        start = gr.Button(_("Download"), elem_id=f"{name}-download", min_width=100, scale=0)
        cancel = gr.Button(_("Cancel"), visible=False, elem_id=f"{name}-download-cancel", min_width=100, scale=0)
    outputs, stops = [row, line, start, cancel], Stops("A download is under way on this page; press Cancel first.")

    def fetch(request: gr.Request, label: str) -> Iterator[tuple]:
        try:
            with stops.running(request) as flag, closing(downloads.steps(label)) as steps:
                yield gr.skip(), bar(None), gr.Button(visible=False), gr.Button(visible=True)
                for progress in steps:
                    if flag.is_set():
                        break
                    yield gr.skip(), bar(progress), gr.skip(), gr.skip()
        except LabError:
            yield row_of(label)
            raise
        yield row_of(label)

    private = {"api_visibility": "private", "show_progress": "hidden"}
    chosen.change(row_of, chosen, outputs, concurrency_limit=None, **private)
    started = start.click(user_errors(fetch), chosen, outputs, concurrency_limit=None, **private)
    uncover(started, outputs)
    cancel.click(stops.stop, None, None, queue=False, **private)
    return started


def row_of(label: str) -> tuple:
    """Return (row, line, Download, Cancel) for a name: hidden where nothing is missing."""
    if label not in HUBS or hub.is_downloaded(label):
        return gr.Row(visible=False), "", gr.Button(visible=True), gr.Button(visible=False)
    return gr.Row(visible=True), missing_line(label), gr.Button(visible=True), gr.Button(visible=False)


def missing_line(name: str) -> str:
    """Say that a name is not downloaded, and how large it is or why that is not known."""
    try:
        line = _(
            "{name} is not downloaded: {size} to download.", name=name, size=megabytes(hub.find_download(name).n_bytes)
        )
    except LabError as error:
        if hub_reachable():
            line = said(error)
        else:
            line = _("{name} is not downloaded, and the Hugging Face hub does not answer.", name=name)
    return f"<p>{html.escape(line)}</p>"


def bar(progress: Progress | None) -> str:
    """Draw how far a download is, for people and screen readers."""
    if progress is None:
        return f"<p role='status'>{html.escape(_('Asking the hub …'))}</p>"
    done, total, left = megabytes(progress.done), megabytes(progress.total), progress.seconds_left
    words = _("{done} of {total}", done=done, total=total)
    if left:
        speed = megabytes(progress.speed)
        words = _("{done} of {total}, {speed}/s, {left} left", done=done, total=total, speed=speed, left=duration(left))
    return (
        f"<label>{html.escape(words)}<progress max='{progress.total}' value='{progress.done}' "
        "style='display: block; width: 100%'></progress></label>"
    )

"""What all tabs need of gradio: toasts for bad input, Stop buttons, pictures, folders for downloads."""

import functools
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from matplotlib.figure import Figure
from PIL import Image

from gpt2lab.app.language import _, said
from gpt2lab.errors import LabError
from gpt2lab.figures.drawing import figure_bytes

ALONE = "no second model"  # a value; no run has spaces in its id
STOP_SECONDS = 5.0  # how long Stop waits for a start


def models_of(label: str, compare: str | None) -> list[str]:
    """Return the labels of the bar's models: one where there is no second one, or it is the same."""
    return [label] if compare in (None, ALONE, label) else [label, compare]  # type: ignore[list-item]


def user_errors(handler: Callable) -> Callable:
    """Wrap a function or generator so that LabError is shown as a toast."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def generator(*args: Any) -> Iterator:
            try:
                yield from handler(*args)
            except LabError as error:
                raise toast(error) from error

        return generator

    @functools.wraps(handler)
    def function(*args: Any) -> Any:
        try:
            return handler(*args)
        except LabError as error:
            raise toast(error) from error

    return function


def toast(error: LabError) -> gr.Error:
    """Return what gradio shows as a toast, in the visitor's language."""
    return gr.Error(said(error), title=_("Error"), print_exception=False)


def uncover(event: gr.events.Dependency, outputs: list) -> None:
    """Remove the "Error" that gradio lays over an event's outputs: the toast says it, and the outputs are still valid."""
    kept = gr.skip() if len(outputs) == 1 else (gr.skip(),) * len(outputs)  # of one output, a list would be its value
    event.failure(lambda: kept, None, outputs, api_visibility="private", show_progress="hidden", queue=False)


class Stops:
    """A flag for each page with a running event, set by its Stop button.

    busy  the error of a second start on the same page

    Cancelling the gradio event instead sometimes leaves its outputs marked as failed.
    """

    def __init__(self, busy: str = "a text is still being written; press Stop first") -> None:
        self._busy = busy
        self._flags: dict[str | None, threading.Event] = {}  # by session

    @contextmanager
    def running(self, request: gr.Request) -> Iterator[threading.Event]:
        """Give the flag to check while an event runs. Raises: LabError if another event runs on the same page."""
        flag = threading.Event()
        if self._flags.setdefault(request.session_hash, flag) is not flag:
            raise LabError(self._busy)
        try:
            yield flag
        finally:
            del self._flags[request.session_hash]

    def end(self, request: gr.Request) -> None:
        """Ask what runs on this page to stop, if anything does."""
        if flag := self._flags.get(request.session_hash):
            flag.set()

    def stop(self, request: gr.Request) -> None:
        """Ask what runs on this page to stop. Stop waits for a moment, as it may arrive before the start does."""
        until = time.monotonic() + STOP_SECONDS
        while request.session_hash not in self._flags and time.monotonic() < until:
            time.sleep(0.02)
        self.end(request)


def new_folder() -> Path:
    """Make a new folder among gradio's temporary files, which gradio deletes once they are old."""
    Path(get_upload_folder()).mkdir(parents=True, exist_ok=True)
    return Path(mkdtemp(dir=get_upload_folder()))


def as_image(figure: Figure) -> Image.Image:
    """Draw a matplotlib figure for gr.Image."""
    return Image.open(BytesIO(figure_bytes(figure, "png")))


def picture(name: str, description: str) -> gr.Image:
    """Build a place for a figure that can be enlarged and saved. The description is its alternative text."""
    return gr.Image(
        show_label=False,
        alt_text=description,
        interactive=False,
        format="png",
        buttons=["download", "fullscreen"],
        elem_id=name,
    )


def escaped(text: str) -> str:
    """Escape Markdown."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]()#+-.!<>|~$" else c for c in text)


def code(token: str) -> str:
    """Return a token that can stand in Markdown's code marks."""
    return token.replace("`", "ˋ")

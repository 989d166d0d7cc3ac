"""What all tabs need of gradio: bad input told as a toast with the package's own line, pictures and places for them, folders for downloads."""

import functools
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

import gradio as gr
from gradio.utils import get_upload_folder
from PIL import Image

from gpt2lab.errors import LabError
from gpt2lab.figures.drawing import figure_bytes

ALONE = "no second model"
STOP_SECONDS = 1.0  # how long Stop waits for what it is to stop
IS_DARK = "() => document.body.classList.contains('dark')"


def user_errors(handler):
    """The handler, with LabError shown as a toast; for functions and for generators."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def generator(*args):
            try:
                yield from handler(*args)
            except LabError as error:
                raise gr.Error(str(error), print_exception=False) from error

        return generator

    @functools.wraps(handler)
    def function(*args):
        try:
            return handler(*args)
        except LabError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return function


class Source(NamedTuple):
    """What the page needs of a tab with a text: the second model's field, and the button that carries the text to another
    tab: the first of `texts` that is not empty."""

    other: gr.Dropdown
    texts: list[gr.Textbox]
    look: gr.Button


def uncover(event: gr.events.Dependency, outputs: list) -> None:
    """Bad input covers an event's outputs with "Error"; take that off again: the toast says it, and what was there is good."""
    event.failure(
        lambda: [gr.skip()] * len(outputs), None, outputs, api_visibility="private", show_progress="hidden", queue=False
    )


def listen(trigger: Callable, handler: Callable, inputs: list, outputs: list, **options) -> None:
    """trigger(handler, …), whose outputs keep what they hold where the handler is told bad input."""
    uncover(trigger(user_errors(handler), inputs, outputs, **options), outputs)


class Stops:
    """Who has pressed Stop: a flag for each page that has something running.

    Cancelling an event of gradio's instead leaves its outputs marked as failed, now and then.
    """

    def __init__(self, told: str = "a text is still being written; press Stop first"):
        self._told, self._flags = told, {}  # what a second start is told; session -> flag

    @contextmanager
    def running(self, request: gr.Request) -> Iterator[threading.Event]:
        """The flag to be looked at while something runs. Raises: LabError where something else does, on the same page."""
        flag = threading.Event()
        if self._flags.setdefault(request.session_hash, flag) is not flag:
            raise LabError(self._told)
        try:
            yield flag
        finally:
            del self._flags[request.session_hash]

    def end(self, request: gr.Request) -> None:
        """What runs on this page, if anything does, is to end."""
        if flag := self._flags.get(request.session_hash):
            flag.set()

    def stop(self, request: gr.Request) -> None:
        """What runs on this page is to end; pressed right after a start, Stop may come before it, and waits for it."""
        until = time.monotonic() + STOP_SECONDS
        while request.session_hash not in self._flags and time.monotonic() < until:
            time.sleep(0.02)
        self.end(request)


def new_folder() -> Path:
    """A folder of its own among gradio's temporary files, which gradio deletes once they are old."""
    Path(get_upload_folder()).mkdir(parents=True, exist_ok=True)
    return Path(mkdtemp(dir=get_upload_folder()))


def as_image(figure):
    """A matplotlib figure as a picture for gr.Image."""
    return Image.open(BytesIO(figure_bytes(figure, "png")))


def picture(name: str, told: str) -> gr.Image:
    """A place for a figure, which can be enlarged and saved; `told` says in words what it shows."""
    return gr.Image(
        show_label=False,
        alt_text=told,
        interactive=False,
        format="png",
        buttons=["download", "fullscreen"],
        elem_id=name,
    )

"""How the page tells a visitor of bad input: a toast with the package's own line. Knows gradio and LabError."""

import functools
import inspect

import gradio as gr

from gpt2lab.errors import LabError


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

"""Command-line options made from the fields of a settings dataclass."""

from collections.abc import Callable
from dataclasses import Field, fields
from inspect import Parameter, signature
from typing import Annotated

import typer

from gpt2lab.settings import help_of, types_of


def with_options(settings: type, *, flags: dict[str, str] | None = None, defaults: dict | None = None) -> Callable:
    """Decorate a command: its `**` parameter receives an option for every field of a settings dataclass.

    The options stand between the command's positional and its keyword-only parameters.
    flags     the option's name where it is not the field's: {"learning_rate": "--lr"}
    defaults  the option's default where it is not the field's
    """

    def decorate(command: Callable) -> Callable:
        own = [each for each in signature(command).parameters.values() if each.kind is not Parameter.VAR_KEYWORD]
        made = [_option(each, flags or {}, defaults or {}) for each in fields(settings)]
        first = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in own if each.kind is not Parameter.KEYWORD_ONLY]
        rest = [each for each in own if each.kind is Parameter.KEYWORD_ONLY]
        options = signature(command).replace(parameters=[*first, *made, *rest])
        command.__signature__ = options  # type: ignore[attr-defined]  # which inspect.signature reads
        return command

    return decorate


def flag_of(name: str) -> str:
    """Return the option of a parameter. Example: "top_k" -> "--top-k"."""
    return f"--{name.replace('_', '-')}"


def _option(field: Field, flags: dict[str, str], defaults: dict) -> Parameter:
    kinds = types_of(field)
    kind = (
        field.type if str not in kinds else str | None if type(None) in kinds else str
    )  # a number or a word: as typed
    option = typer.Option(flags.get(field.name, flag_of(field.name)), help=help_of(field))
    default = defaults.get(field.name, field.default)
    return Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])

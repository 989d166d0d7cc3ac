"""Groups of commands that are imported when they are called: torch and transformers take seconds."""

from importlib import import_module
from typing import ClassVar

import typer
from typer.core import TyperCommand, TyperGroup


class LazyGroup(TyperGroup):
    """A command group that imports a command when it is called; `--help` reads only `places`.

    places  by a command's name, module:name of its function or group, and the first line of its help
    """

    places: ClassVar[dict[str, tuple[str, str]]] = {}

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.commands = self.commands | {name: TyperCommand(name, help=help) for name, (_, help) in self.places.items()}

    def resolve_command(self, ctx, args):
        """Find the command that the arguments name, and import it."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, self.imported(name) if name in self.places else command, rest

    def imported(self, name: str) -> TyperCommand | TyperGroup:
        """Import a command, or a group of commands."""
        module, attribute = self.places[name][0].split(":")
        target = getattr(import_module(f"gpt2lab.cli.{module}"), attribute)
        if not isinstance(target, typer.Typer):
            function, target = target, typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            target.command(name)(function)
        return typer.main.get_command(target)  # type: ignore[return-value]  # typer announces a private base class

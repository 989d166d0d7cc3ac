from dataclasses import dataclass, fields

import pytest
import typer

from gpt2lab import cli
from gpt2lab.cli.options import flag_of, with_options
from gpt2lab.errors import LabError
from gpt2lab.generation.sampling import Sampling
from gpt2lab.settings import check_settings, help_of, setting
from gpt2lab.training.config import TrainConfig


@dataclass(frozen=True)
class Settings:
    size: int = setting(3, "Size of it.", low=1, high=9, unit="tokens")
    share: float | None = setting(None, "A share.", low=0, high=1e6, zero="{name} 0 is nothing; use more")
    some: int | str | None = setting(None, "How many.", low=1, high=5, choices=("all",))
    kind: str = setting("a", "Which.", choices=("a", "b"))
    wide: bool = setting(False, "Wide.")

    def __post_init__(self):
        check_settings(self)


@pytest.fixture
def call():
    """A function: arguments → the parameters that a command gets for them."""
    got, app = {}, typer.Typer()

    @app.command()
    @with_options(Settings, flags={"share": "--part"}, defaults={"size": 4})
    def command(text: str, *, last: bool = False, **settings):
        got.update(text=text, last=last, **settings)

    return lambda *arguments: app(arguments, standalone_mode=False) or got


def test_every_field_is_an_option_with_its_default_and_type(call):
    assert call("x") == {
        "text": "x",
        "last": False,
        "size": 4,
        "share": None,
        "some": None,
        "kind": "a",
        "wide": False,
    }
    found = call("x", "--size", "7", "--part", "0.5", "--some", "all", "--kind", "b", "--wide", "--last")
    assert found == {"text": "x", "last": True, "size": 7, "share": 0.5, "some": "all", "kind": "b", "wide": True}


@pytest.mark.parametrize("option", ["--share", "--no-wide", "--settings"])
def test_nothing_else_is_an_option(call, option):
    with pytest.raises(cli.UsageError, match="No such option"):
        call("x", option)


@pytest.mark.parametrize(("command", "settings"), [("finetune", TrainConfig), ("generate", Sampling)])
def test_command_has_an_option_for_each_of_its_settings(command, settings):
    options = {option for each in cli.Commands(name="gpt2lab").imported(command).params for option in each.opts}
    names = {"learning_rate": "lr"}
    assert {flag_of(names.get(field.name, field.name)) for field in fields(settings)} <= options


def test_help_ends_with_unit_and_range():
    size, share, _, kind, _ = fields(Settings)
    assert help_of(size) == "Size of it. (tokens, 1 to 9)"
    assert help_of(share) == "A share. (0 or more)"
    assert help_of(kind) == "Which."


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 10}, "size 10 is out of range; use a whole number from 1 to 9"),
        ({"size": None}, "size None is out of range; use a whole number from 1 to 9"),
        ({"share": "1"}, "share '1' is out of range; use a number from 0 to 1e+06"),
        ({"share": 0.0}, "share 0 is nothing; use more"),
        ({"some": "half"}, "some 'half' is unknown; use a whole number or all"),
        ({"some": 6}, "some 6 is out of range; use a whole number from 1 to 5"),
        ({"kind": "c"}, "kind 'c' is unknown; use a, b"),
        ({"wide": 1}, "wide 1 is neither true nor false"),
    ],
)
def test_value_that_a_setting_does_not_allow_is_refused(values, message):
    with pytest.raises(LabError) as caught:
        Settings(**values)
    assert str(caught.value) == message

"""Settings declared once: a dataclass field carries its help text, range, choices and unit as metadata.

Checks, command-line options and forms are made from them.
"""

from dataclasses import Field, field, fields
from typing import get_args

from gpt2lab.errors import LabError, Message, choice, number, whole_number


def setting(
    default,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    unit: str = "",
    zero: str = "",
):
    """Return a dataclass field with what there is to say of it.

    help       one or more short sentences
    low, high  inclusive range of a number · unit  what the number counts or measures
    choices    the only strings that are allowed
    zero       why 0 is not allowed although it is `low`: a template for LabError, with {name}
    """
    return field(
        default=default,
        metadata={"help": help, "low": low, "high": high, "choices": choices, "unit": unit, "zero": zero},
    )


def types_of(field: Field) -> tuple[type, ...]:
    """Return the types that a field allows. Example: that of `steps: int | None` -> (int, NoneType)."""
    return get_args(field.type) or (field.type,)


def help_of(field: Field) -> Message:
    """Return a setting's help text with its unit and range. Example: "Length of a block. (tokens, 2 to 1,024)" """
    low, high = field.metadata["low"], field.metadata["high"]
    help, unit = Message(field.metadata["help"]), Message(field.metadata["unit"])
    if low is None:
        return help
    within = Message("{low} or more", low=low) if high >= 10**6 else Message("{low} to {high:,}", low=low, high=high)
    if unit:
        return Message("{help} ({unit}, {range})", help=help, unit=unit, range=within)
    return Message("{help} ({range})", help=help, range=within)


def label_of(field: Field) -> Message:
    """Return a setting's name for a form. Example: that of `lora_rank` -> "LoRA rank" """
    return Message(field.name.replace("_", " ").capitalize().replace("Lora", "LoRA"))


def check_settings(settings) -> None:
    """Check the type, range and choice of every setting of a dataclass. Raises: LabError."""
    for each in fields(settings):
        _check(each, getattr(settings, each.name))


def _check(each: Field, value) -> None:
    types, choices, (low, high) = types_of(each), each.metadata["choices"], (each.metadata[k] for k in ("low", "high"))
    if value is None and type(None) in types:
        return
    if types == (bool,):
        if not isinstance(value, bool):
            raise LabError("{name} {value!r} is neither true nor false", name=each.name, value=value)
    elif low is None:
        if choices:
            choice(each.name, value, choices)
    elif isinstance(value, str) and str in types:
        if value not in choices:
            known = ", ".join(choices)
            raise LabError(
                "{name} {value!r} is unknown; use a whole number or {known}",
                name=each.name,
                value=value[:40],
                known=known,
            )
    else:
        (number if float in types else whole_number)(each.name, value, low, high)
        if value == 0 and each.metadata["zero"]:
            raise LabError(each.metadata["zero"], name=each.name)

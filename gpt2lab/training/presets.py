"""Presets: settings of runs that show something known, found by measuring; `docs/training.md` has the figures."""

from dataclasses import dataclass, field

from gpt2lab.errors import Message, choice
from gpt2lab.training.config import TrainConfig


@dataclass(frozen=True)
class Preset:
    """Settings with what to expect of them.

    title     a button's text · expect  what the run shows, in one sentence
    source    where the experiment comes from
    settings  of `TrainConfig`, those that are not its defaults
    """

    title: Message
    expect: Message
    source: str
    settings: dict = field(hash=False)


PRESETS = {
    "induction": Preset(
        Message("Watch an induction head form"),
        Message(
            "A two-layer model learns random words that recur: within a few hundred steps the loss of what was shown "
            "before falls, and the induction scores of the second layer rise."
        ),
        "Olsson et al., In-context Learning and Induction Heads (2022); Elhage et al., A Mathematical Framework for "
        "Transformer Circuits (2021)",
        {
            "model": "two-layer",
            "data": "repeated",
            "method": "scratch",
            "steps": 1000,
            "block_size": 32,
            "batch_size": 128,
            "learning_rate": 3e-3,
            "warmup": 0.02,
            "precision": "fp32",
            "patience": 0,
            "probe": "kX7#q?dkX7#q?dkX7#q?d",
        },
    ),
}


def preset(name: str, **changes) -> TrainConfig:
    """Return the settings of a preset.

    name     a name in `PRESETS`
    changes  settings in place of the preset's own; `epochs` takes the place of its `steps`

    Example: finetune(preset("induction", seed=1))
    Raises: LabError for an unknown preset, and for settings that cannot be.
    """
    settings = PRESETS[choice("preset", name, PRESETS)].settings
    if changes.get("epochs") is not None:
        settings = {key: value for key, value in settings.items() if key != "steps"}
    return TrainConfig(**settings | changes)

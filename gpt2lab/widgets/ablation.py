"""What a text costs without some heads and MLPs, or with each head ablated alone; and activation patching."""

from typing import Any

from gpt2lab.errors import LabError
from gpt2lab.inspection import ablation as inspection
from gpt2lab.inspection.ablation import Sweep, ablate, sweep_layer
from gpt2lab.inspection.patching import Patching, patched_entry, prompt_pair
from gpt2lab.inspection.surprisal import Surprisal
from gpt2lab.inspection.trace import ResidualTrace
from gpt2lab.model.lab import Lab
from gpt2lab.widgets.base import Selection, Widget, one_side
from gpt2lab.widgets.data import rounded, side_of

TOP = 5  # predictions that are listed before and after


class Ablation(Widget):
    """The loss of a text without heads and MLPs, token by token, and what is predicted then.

    ablation         of `ablate(lab, text, heads)`
    sweep, patching  of the same text, to be shown too
    lab, trace       the model and `trace(lab, text, residual=True)`: the view can then ablate and patch
    """

    module = "ablation"

    def __init__(
        self,
        ablation: inspection.Ablation,
        *,
        sweep: Sweep | None = None,
        patching: Patching | None = None,
        lab: Lab | None = None,
        trace: ResidualTrace | None = None,
    ) -> None:
        before = ablation.before
        parts: dict[str, Any] = {"ablation": ablation_part(ablation)}
        if sweep is not None:
            L, H = sweep.losses.shape
            parts |= {"layers": L, "heads": H, "sweep": sweep_part(sweep)}
        if patching is not None:
            parts["patching"] = patching_part(patching)
        side = {"name": before.name, "tokens": list(before.tokens), "note": ""} | parts
        layer, head = ablation.heads[0] if ablation.heads else (0, 0)
        super().__init__(
            ablation,
            {"sides": [side if trace is None else side_of(trace, **parts)]},
            Selection(len(before.tokens) - 1, layer, head, off=ablation.heads),
            title=ablation.title,
            answer=one_side(lab, trace, ablate=answer_ablate, sweep=answer_sweep, patch=answer_patch),
        )


def ablation_part(found: inspection.Ablation) -> dict:
    """Losses in nats per token, and per token how much more its surprisal is.

    {name, off: [[layer, head]], mlps, mean, loss, loss_ablated, change: (T,), before, after}; before and after hold
    [position][i] = [display string, id, probability] of what is predicted after a position.
    """
    return {
        "name": found.after.name,
        "off": [list(head) for head in found.heads],
        "mlps": list(found.mlps),
        "mean": found.mean,
        "loss": found.before.loss,
        "loss_ablated": found.after.loss,
        "change": rounded(found.before.change(found.after), 4),
        "before": _following(found.before),
        "after": _following(found.after),
    }


def _following(surprisal: Surprisal) -> list:
    places = range(1, len(surprisal.tokens) + 1)
    return [[[word, i, round(p, 5)] for i, word, p in surprisal.top_predictions(place)[:TOP]] for place in places]


def sweep_part(sweep: Sweep) -> dict:
    """{loss, losses: (L, H), mean}, nats per token."""
    return {"loss": sweep.loss, "losses": rounded(sweep.losses, 5), "mean": sweep.mean}


def patching_part(found: Patching) -> dict:
    """{tokens, clean_tokens, words, clean, corrupted: logit differences, recovered: (L+1, T)}."""
    names = ("tokens", "clean_tokens", "words", "clean", "corrupted")
    return {
        **{name: getattr(found, name) for name in names},
        "recovered": rounded(found.recovered, 4),
    }


def answer_ablate(lab: Lab, seen: ResidualTrace, options: dict) -> dict:
    """The part of an ablation of {off: [[layer, head]], mlps: [layer], mean}. Raises: LabError as `ablate`."""
    return ablation_part(asked_ablation(lab, seen, options))


def asked_ablation(lab: Lab, seen: ResidualTrace, options: dict) -> inspection.Ablation:
    """The ablation that a view asks for."""
    off = Selection.of({"off": options.get("off", [])}).off
    mlps = options.get("mlps", [])
    if not isinstance(mlps, list):
        raise LabError("mlps must be a list of layers; got {value!r}", value=str(mlps)[:40])
    return ablate(lab, seen, off, mlps=mlps, mean=asked_mean(options), top=TOP)


def answer_sweep(lab: Lab, seen: ResidualTrace, options: dict) -> dict:
    """{loss, losses: (H,)} with each head of {layer, mean} ablated alone, nats per token. Raises: LabError as `sweep_layer`."""
    loss, losses = sweep_layer(lab, seen, options.get("layer", 0), mean=asked_mean(options))
    return {"loss": loss, "losses": rounded(losses, 5)}


def answer_patch(lab: Lab, seen: ResidualTrace, options: dict) -> dict:
    """One entry of `patching_part`, its `recovered` (T,): of {corrupted: text, layer: entry, 0 to L, token, against}.

    Raises: LabError as `patching`.
    """
    corrupted = options.get("corrupted")
    if not isinstance(corrupted, str):
        raise LabError("corrupted must be a text; got {value!r}", value=str(corrupted)[:40])
    pair = prompt_pair(lab, seen, corrupted, answer=options.get("token"), against=options.get("against"))
    entry = options.get("layer", 0)
    recovered = (patched_entry(lab, pair, entry) - pair.ends[1]) / (pair.ends[0] - pair.ends[1])
    return {
        "tokens": pair.tokens,
        "clean_tokens": pair.clean_tokens,
        "words": pair.words,
        "clean": pair.ends[0],
        "corrupted": pair.ends[1],
        "recovered": rounded(recovered, 4),
    }


def asked_mean(options: dict) -> bool:
    mean = options.get("mean", False)
    if not isinstance(mean, bool):
        raise LabError("mean must be true or false; got {value!r}", value=str(mean)[:40])
    return mean

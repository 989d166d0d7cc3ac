"""The parts of `inspect`: how each is made, told in a table, in JSON and as a file. Imported when they are asked for."""

from collections.abc import Callable
from dataclasses import asdict
from typing import NamedTuple

from gpt2lab.errors import LabError
from gpt2lab.inspection.ablation import Ablation, Patching, ablate, patching, sweep
from gpt2lab.inspection.heads import SCORES, HeadScores, head_scores
from gpt2lab.inspection.lens import Attribution, Lens, attribution, logit_lens
from gpt2lab.inspection.surprisal import RANKS, Surprisal, surprisal
from gpt2lab.inspection.walk import Walk, walk
from gpt2lab.views.export import map_file
from gpt2lab.views.inside import (
    SURPRISAL_HEAD,
    attribution_rows,
    lens_head,
    lens_rows,
    patching_rows,
    surprisal_rows,
)
from gpt2lab.views.inside_export import attribution_file, lens_file, patching_file, surprisal_file, walk_file
from gpt2lab.views.maps import head_map_rows


class Part(NamedTuple):
    """One thing that `inspect` can be asked for.

    make    (lab, text, asked) -> found
    rows    found -> (head, rows) for a reader
    record  found -> what --json holds
    file    (found of each model, format) -> bytes
    """

    make: Callable
    rows: Callable
    record: Callable
    file: Callable


def one(file: Callable) -> Callable:
    """A part's file where it is of one model alone."""

    def written(found: list, format: str) -> bytes:
        if len(found) > 1:
            raise LabError("this part's file is of one model; leave --compare out, or use --json")
        return file(found[0], format)

    return written


def head_rows(values) -> tuple[list[str], list]:
    """A number per head, a row per layer."""
    return ["", *(f"head {head}" for head in range(values.shape[1]))], head_map_rows(values)


def surprisal_record(found: Surprisal) -> list:
    """Per token; null where nothing predicts it."""
    numbers = zip(found.nll.tolist(), found.bits.tolist(), found.rank.tolist(), found.entropy.tolist())
    names = ("nll", "bits", "rank", "entropy")
    return [None if at == 0 else dict(zip(names, row)) for at, row in enumerate(numbers)]


def lens_record(found: Lens) -> list:
    """[layer][position]: what is predicted after each layer; the last is the model's own."""
    return [[lens_cell(found, entry, at) for at in range(len(found.targets))] for entry in range(1, len(found.rank))]


def lens_cell(found: Lens, entry: int, at: int) -> dict:
    """One layer at one position."""
    best = zip(found.top[entry, at].tolist(), found.top_probability[entry, at].tolist())
    top = [{"token": found.names[i], "id": i, "probability": p} for i, p in best]
    numbers = {
        name: getattr(found, name)[entry, at].item() for name in ("rank", "probability", "entropy", "divergence")
    }
    return {"top": top, "target": int(found.targets[at]), **numbers}


def heads_table(found: HeadScores) -> tuple[list[str], list]:
    """Every score of every head."""
    L, H = found.induction.shape
    rows = [
        [f"{layer}.{head}", *(f"{float(getattr(found, name)[layer, head]):.3f}" for name in SCORES)]
        for layer in range(L)
        for head in range(H)
    ]
    return ["head", *SCORES], rows


def attribution_record(found: Attribution) -> dict:
    """Every part's share of the logit difference."""
    words = dict(zip(("token", "against"), found.words))
    return {"position": found.position, **words, "total": found.total, "parts": dict(found.parts)}


def ablation_rows(found: Ablation) -> tuple[list[str], list]:
    """The losses, and what is expected after the text, before and after."""
    rows = [["loss, nats per token", f"{found.before.loss:.4f}", f"{found.after.loss:.4f}"]]
    for at in range(5):
        names = [
            f"{each.names[int(each.top[-1, at])]} {float(each.top_probability[-1, at]):.3f}"
            for each in (found.before, found.after)
        ]
        rows.append([f"expected next, {at + 1}", *names])
    return ["", "as it is", "switched off"], rows


def ablation_record(found: Ablation) -> dict:
    """Losses, nats per token, and what is expected after the text."""
    each = {"top": found.before, "top_ablated": found.after}
    tops = {
        name: [
            {"token": one.names[i], "id": i, "probability": p}
            for i, p in zip(one.top[-1].tolist(), one.top_probability[-1].tolist())
        ]
        for name, one in each.items()
    }
    return {"loss": found.before.loss, "loss_ablated": found.after.loss, **tops}


def ablation_file(found: list[Ablation], format: str) -> bytes:
    """A text's surprisal before, and its change."""
    return one(lambda each, format: surprisal_file(each.before, each.after, format, limits=RANKS))(found, format)


def patching_record(found: Patching) -> dict:
    """Logit differences with each state patched, and of the two runs."""
    words = dict(zip(("answer", "against"), found.words))
    return {**words, "clean": found.clean, "corrupted": found.corrupted, "values": found.values.tolist()}


def walk_rows(found: Walk) -> tuple[list[str], list]:
    """The first numbers of each step."""
    rows = [
        [step.title, step.formula, " ".join(f"{value:.3f}" for value in step.values[:6].tolist())]
        for step in found.steps
    ]
    return ["step", "formula", "first numbers"], rows


def walk_record(found: Walk) -> dict:
    """Every step's numbers."""
    steps = {step.name: step.values.tolist() for step in found.steps}
    return {"layer": found.layer, "head": found.head, "position": found.position, **steps}


PARTS: dict[str, Part] = {
    "surprisal": Part(
        lambda lab, text, asked: surprisal(lab, text),
        lambda found: (SURPRISAL_HEAD, surprisal_rows(found)),
        surprisal_record,
        lambda found, format: surprisal_file(found[0], found[1] if len(found) > 1 else None, format, limits=RANKS),
    ),
    "lens": Part(
        lambda lab, text, asked: logit_lens(lab, text, target=asked.token),
        lambda found: (lens_head(found, -1), lens_rows(found, -1)),
        lens_record,
        one(lens_file),
    ),
    "heads": Part(
        lambda lab, text, asked: head_scores(lab, [text]),
        heads_table,
        lambda found: {name: values.tolist() for name, values in asdict(found).items()},
        one(lambda found, format: map_file(found.map("previous_token", "every head"), format)),
    ),
    "attribution": Part(
        lambda lab, text, asked: attribution(
            lab, text, position=asked.position, token=asked.token, against=asked.against
        ),
        lambda found: (["part", f"{found.words[0]} over {found.words[1]}, logits"], attribution_rows(found)),
        attribution_record,
        one(attribution_file),
    ),
    "sweep": Part(
        lambda lab, text, asked: sweep(lab, text, mean=asked.mean),
        lambda found: head_rows(found.map().values),
        lambda found: {"loss": found.loss, "losses": found.losses.tolist()},
        one(lambda found, format: map_file(found.map(), format)),
    ),
    "ablate": Part(
        lambda lab, text, asked: ablate(lab, text, asked.heads, mlps=asked.mlps, mean=asked.mean),
        ablation_rows,
        ablation_record,
        ablation_file,
    ),
    "patch": Part(
        lambda lab, text, asked: patching(lab, text, asked.patch, answer=asked.token, against=asked.against),
        patching_rows,
        patching_record,
        one(patching_file),
    ),
    "walk": Part(
        lambda lab, text, asked: walk(lab, text, *asked.walk, asked.position), walk_rows, walk_record, one(walk_file)
    ),
}

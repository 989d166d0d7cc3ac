"""The parts of `inspect`: how each is computed, printed as a table, and written as JSON or a file. Imported when used."""

from collections.abc import Callable
from dataclasses import asdict
from typing import NamedTuple

from gpt2lab.errors import LabError
from gpt2lab.figures.heads import head_map_rows
from gpt2lab.figures.inside import (
    SURPRISAL_HEAD,
    attribution_rows,
    lens_head,
    lens_rows,
    patching_rows,
    surprisal_rows,
)
from gpt2lab.inspection.ablation import Ablation, ablate, sweep
from gpt2lab.inspection.heads import SCORES, HeadScores, head_scores
from gpt2lab.inspection.lens import Attribution, Lens, attribution, logit_lens
from gpt2lab.inspection.patching import Patching, patching
from gpt2lab.inspection.surprisal import Surprisal, surprisal
from gpt2lab.inspection.walk import Walk, walk
from gpt2lab.pages.export import map_file
from gpt2lab.pages.inside_export import attribution_file, lens_file, patching_file, surprisal_file, walk_file


class Part(NamedTuple):
    """One analysis of `inspect`: how it is computed, printed and written.

    make    (lab, text, asked) -> found
    rows    (found, asked) -> (head, rows) for a reader
    record  (found, asked) -> what --json holds, by key
    file    (found of each model, format, asked) -> bytes
    models  that a file can be of, 1 or 2
    picture whether it can be .png and .svg
    """

    make: Callable
    rows: Callable
    record: Callable
    file: Callable
    models: int = 1
    picture: bool = True

    def check(self, name: str, format: str, pair: bool) -> None:
        """Before anything is computed. Raises: LabError for a file that there is none of."""
        if pair and self.models == 1:
            raise LabError("a file of --{name} is of one model; leave --compare out, or use --json", name=name)
        if format in ("png", "svg") and not self.picture:
            raise LabError("--{name} has no .{format} file; use .html, .csv or .npz", name=name, format=format)


def head_rows(values) -> tuple[list[str], list]:
    """Table rows of one number per head, a row per layer."""
    return ["", *(f"head {head}" for head in range(values.shape[1]))], head_map_rows(values)


def surprisal_record(found: Surprisal) -> list:
    """Per token; null where nothing predicts it."""
    numbers = zip(found.nll.tolist(), found.bits.tolist(), found.rank.tolist(), found.entropy.tolist())
    names = ("nll", "bits", "rank", "entropy")
    return [None if at == 0 else dict(zip(names, row)) for at, row in enumerate(numbers)]


def lens_record(found: Lens) -> tuple[list, list]:
    """([position] of the embedding, [layer][position] after each layer); the last is the model's own prediction."""
    cells = [[lens_cell(found, entry, at) for at in range(len(found.targets))] for entry in range(len(found.rank))]
    return cells[0], cells[1:]


def lens_cell(found: Lens, entry: int, at: int) -> dict:
    """One layer at one position."""
    top = [{"token": name, "id": i, "probability": p} for i, name, p in found.top_predictions(entry, at)]
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
    both = found.before, found.after
    rows = [["loss, nats per token", *(f"{one.loss:.4f}" for one in both)]]
    for place, pair in enumerate(zip(*(one.top_predictions(-1)[:5] for one in both)), 1):
        rows.append([f"expected next, {place}", *(f"{name} {p:.3f}" for _, name, p in pair)])
    return ["", "as it is", "switched off"], rows


def ablation_record(found: Ablation) -> dict:
    """Losses, nats per token, and what is expected after the text."""
    tops = {
        name: [{"token": word, "id": i, "probability": p} for i, word, p in one.top_predictions(-1)]
        for name, one in (("top", found.before), ("top_ablated", found.after))
    }
    return {"loss": found.before.loss, "loss_ablated": found.after.loss, **tops}


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
    return {"layer": found.layer, "head": found.head, "position": found.position, "steps": steps}


PARTS: dict[str, Part] = {
    "surprisal": Part(
        lambda lab, text, asked: surprisal(lab, text),
        lambda found, asked: (SURPRISAL_HEAD, surprisal_rows(found)),
        lambda found, asked: {"surprisal": surprisal_record(found), "ranks": dict(found.buckets(asked.limits))},
        lambda found, format, asked: surprisal_file(found[0], (*found, None)[1], format, limits=asked.limits),
        models=2,
    ),
    "lens": Part(
        lambda lab, text, asked: logit_lens(lab, text, target=asked.token),
        lambda found, asked: (lens_head(found, asked.position), lens_rows(found, asked.position)),
        lambda found, asked: dict(zip(("lens_embedding", "lens"), lens_record(found))),
        lambda found, format, asked: lens_file(found[0], format),
    ),
    "heads": Part(
        lambda lab, text, asked: head_scores(lab, [text]),
        lambda found, asked: heads_table(found),
        lambda found, asked: {"heads": {name: values.tolist() for name, values in asdict(found).items()}},
        lambda found, format, asked: map_file(found[0].map("previous_token", "every head"), format),
    ),
    "attribution": Part(
        lambda lab, text, asked: attribution(
            lab, text, position=asked.position, token=asked.token, against=asked.against
        ),
        lambda found, asked: (["part", f"{found.words[0]} over {found.words[1]}, logits"], attribution_rows(found)),
        lambda found, asked: {"attribution": attribution_record(found)},
        lambda found, format, asked: attribution_file(found[0], format),
    ),
    "sweep": Part(
        lambda lab, text, asked: sweep(lab, text, mean=asked.mean),
        lambda found, asked: head_rows(found.map().values),
        lambda found, asked: {"sweep": {"loss": found.loss, "losses": found.losses.tolist()}},
        lambda found, format, asked: map_file(found[0].map(), format),
    ),
    "ablate": Part(
        lambda lab, text, asked: ablate(lab, text, asked.heads, mlps=asked.mlps, mean=asked.mean),
        lambda found, asked: ablation_rows(found),
        lambda found, asked: {"ablate": ablation_record(found)},
        lambda found, format, asked: surprisal_file(found[0].before, found[0].after, format, limits=asked.limits),
    ),
    "patch": Part(
        lambda lab, text, asked: patching(lab, text, asked.patch, answer=asked.token, against=asked.against),
        lambda found, asked: patching_rows(found),
        lambda found, asked: {"patch": patching_record(found)},
        lambda found, format, asked: patching_file(found[0], format),
    ),
    "walk": Part(
        lambda lab, text, asked: walk(lab, text, *asked.walk, asked.position),
        lambda found, asked: walk_rows(found),
        lambda found, asked: {"walk": walk_record(found)},
        lambda found, format, asked: walk_file(found[0], format),
        picture=False,
    ),
}

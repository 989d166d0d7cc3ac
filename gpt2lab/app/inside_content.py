"""The contents of the Inside tab: surprisal, logit lens, attribution, a block's walk, ablation, patching."""

import html
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from PIL.Image import Image

from gpt2lab.app.events import ALONE, as_image, code
from gpt2lab.app.results import ResultCache
from gpt2lab.errors import LabError, choice, whole_number
from gpt2lab.figures.drawing import figure
from gpt2lab.figures.heads import head_map_cells, head_map_pitch
from gpt2lab.figures.lens import LENS
from gpt2lab.figures.surprisal import rank_figure
from gpt2lab.figures.tables import table
from gpt2lab.inspection.ablation import Ablation, Sweep, ablate, parts_named, sweep
from gpt2lab.inspection.attribution import Attribution, attribution
from gpt2lab.inspection.lens import Lens, entry_name
from gpt2lab.inspection.patching import Patching, patching
from gpt2lab.inspection.surprisal import Surprisal, SurprisalChange, limits_of
from gpt2lab.inspection.trace import Trace
from gpt2lab.inspection.walkthrough import Walkthrough, walk
from gpt2lab.model.lab import Lab
from gpt2lab.pages.export import export, head_table
from gpt2lab.pages.walkthrough import walk_page
from gpt2lab.progress import mapped
from gpt2lab.results import Result

MAX_CHARACTERS = 20_000  # of a visitor's text
MAX_SHOWN = 1000  # tokens in colours: more make a browser slow
COLOURS = ("nats", "rank", "entropy", "change")
# what can be downloaded
PARTS = ("surprisal", "lens", "attribution", "walk", "every head alone", "heads switched off", "patching")
# the fields that a download depends on
FIELDS = ("position", "token", "against", "limits", "measure", "layer", "head", "off", "mean", "corrupted")
NO_TEXT = "no text is inspected yet; press Look inside first"

R = TypeVar("R")
Tokens = list[tuple[str, float]]  # (token, colour from -1 to 1)


class Subject(NamedTuple):
    """The models and the text that the page shows; the inputs may have changed since. `other` is a second model or None."""

    label: str
    other: str | None
    text: str


class Place(NamedTuple):
    """A position of the text, the token followed there, and the token it is compared with; "" for the model's own."""

    position: int
    token: str
    against: str


def checked(results: ResultCache, label: str, other: str, text: str) -> Subject:
    """Return the subject that the inputs describe. Raises: LabError for an empty or long text, or an unknown model."""
    if not isinstance(text, str) or not text:
        raise LabError("the text is empty; type at least one character")
    if len(text) > MAX_CHARACTERS:
        raise LabError(
            "the text has {count:,} characters; the limit is {max_characters:,}: take a part of it",
            count=len(text),
            max_characters=MAX_CHARACTERS,
        )
    subject = Subject(label, None if other in (None, ALONE) else other, text)
    for name in labels_of(subject):
        results.store.location(name)
    return subject


def shown(subject: Subject | None) -> Subject:
    """Return what the page shows. Raises: LabError if it shows nothing yet."""
    if subject is None:
        raise LabError(NO_TEXT)
    return subject


def labels_of(subject: Subject | None) -> list[str]:
    """Return the labels of the models, one or two. Raises: LabError if no text is inspected yet."""
    label, other, _ = shown(subject)
    return [label] if other is None else [label, other]


def surprisals(results: ResultCache, subject: Subject | None) -> list[Surprisal]:
    """Return the Surprisal of each model."""
    return [results.surprisal(label, shown(subject).text) for label in labels_of(subject)]


def lenses(results: ResultCache, subject: Subject | None) -> list[Lens]:
    """Return the Lens of each model."""
    return [results.lens(label, shown(subject).text) for label in labels_of(subject)]


def coloured(costs: Sequence[Surprisal], by: str) -> tuple[Tokens, str]:
    """Return (coloured tokens, a legend) for one of COLOURS. Raises: LabError for another, or a change of one model."""
    first = costs[0]
    choice("colour", by, COLOURS)
    if by == "change":
        if len(costs) < 2:
            raise LabError("there is no second model to compare with; choose one, and press Look inside")
        return scaled(first.tokens, first.change(costs[1]), "nats more (red) or less (violet) under the second model")
    values = {"nats": first.nll, "rank": first.rank.clamp_min(1).log(), "entropy": first.entropy[:-1]}[by]
    unit = {"nats": "nats", "rank": "the logarithm of the rank", "entropy": "nats of entropy"}[by]
    return scaled(first.tokens, values, unit)


def scaled(tokens: Sequence[str], values: torch.Tensor, unit: str) -> tuple[Tokens, str]:
    """Return (tokens with their values divided by the largest, a legend); NaN has no colour."""
    n = min(len(tokens), MAX_SHOWN)
    values = values.double().nan_to_num(0)
    top = max(1e-9, float(values.abs().max()))
    colours = [(token, round(value / top, 4)) for token, value in zip(tokens[:n], values[:n].tolist())]
    cut = f" The first {n:,} of {len(tokens):,} tokens." if n < len(tokens) else ""
    return colours, f"The fullest colour is {top:.2f}: {unit}.{cut}"


def summary(costs: Sequence[Surprisal], lens: Lens) -> str:
    """Return the losses in a line, and how much of the text the other views cover."""
    n = len(costs[0].tokens)
    if n < 2:
        return "One token, which nothing predicts."
    losses = "; ".join(f"**{cost.name}**: {cost.loss:.3f} nats per token" for cost in costs)
    if len(costs) == 2:
        losses += f"; {costs[1].loss - costs[0].loss:+.3f} under the second"
    read = len(lens.trace.tokens)
    cut = f" The model reads {read:,} at once: all but the colours is of the first {read:,}."
    return f"{losses}. {n:,} tokens.{cut if lens.trace.left_out else ''}"


def ranks(results: ResultCache, subject: Subject | None, limits: str, dark: bool) -> tuple[Image, str]:
    """Return (figure, table) of how many tokens had which rank."""
    edges = limits_of(limits)
    costs = [replace(cost, limits=edges) for cost in surprisals(results, subject)]
    buckets = zip(*(cost.buckets for cost in costs))
    rows = [(row[0][0], *(f"{count:,}" for _, count in row)) for row in buckets]
    return as_image(rank_figure(costs, dark=dark)), table(["rank", *(cost.name for cost in costs)], rows)


def lens_pictures(results: ResultCache, subject: Subject | None, measure: str, dark: bool) -> list[Image]:
    """Return a picture of each model's lens."""
    return [as_image(figure(lens, measure=measure, dark=dark)) for lens in lenses(results, subject)]


def attributions(results: ResultCache, subject: Subject | None, place: Place) -> list[Attribution]:
    """Return the Attribution of each model: by default of the next token, against the top prediction among the others."""

    def attribute(lens: Lens, lab: Lab) -> Attribution:
        trace = lens.trace
        position = position_in(trace, place.position)
        follows = int(trace.ids[position + 1]) if position + 1 < len(trace.ids) else None
        token, against = place.token or follows, place.against or None
        return attribution(lab, trace, position=position, token=token, against=against)

    pairs = zip(labels_of(subject), lenses(results, subject))
    return [results.store.with_model(label, partial(attribute, lens)) for label, lens in pairs]


def position_in(trace: Trace, position: int) -> int:
    """Return a checked position of a trace. Raises: LabError for one that is out of range or cut off."""
    last = len(trace.ids) - 1
    if trace.left_out and isinstance(position, int) and position > last:
        raise LabError(
            "token {position:,} is past what {name} reads at once; choose one up to {last:,}",
            position=position,
            name=trace.name,
            last=last,
        )
    return whole_number("position", position, 0, last)


def at_place(
    results: ResultCache, subject: Subject | None, place: Place, dark: bool
) -> tuple[str, str, list[Image], str]:
    """Return (summary, lens table, attribution pictures, attribution table) of a place of the text."""
    models, added = lenses(results, subject), attributions(results, subject, place)
    position, lens = place.position, models[0]
    trace = lens.trace
    line = f"After token {position}, `{code(trace.tokens[position])}`"
    if position + 1 < len(trace.tokens):
        line += f", `{code(trace.tokens[position + 1])}` comes next."
    else:
        line += ", the last that is read." if trace.left_out else ", the last."
    line += f" The answer of {trace.name} settles after {entry_name(int(lens.settled[position]))}."
    tables = "".join(f"<h4>{html.escape(lens.trace.name)}</h4>{table(*lens.table(position).text())}" for lens in models)
    pictures = [as_image(figure(part, dark=dark)) for part in added]
    parts = "".join(f"<h4>{html.escape(part.title)}</h4>{table(*part.table().text())}" for part in added)
    return line, tables, pictures, parts


def walked(results: ResultCache, subject: Subject | None, position: int, layer: int, head: int, dark: bool) -> str:
    """Return the first model's walk through a block, as a frame."""
    return walk_page(walk_at(results, subject, position, layer, head), theme="dark" if dark else "light").iframe()


def walk_at(results: ResultCache, subject: Subject | None, position: int, layer: int, head: int) -> Walkthrough:
    """Return the Walkthrough of the first model."""
    trace = lenses(results, subject)[0].trace
    position_in(trace, position)
    return results.store.with_model(shown(subject).label, lambda lab: walk(lab, trace, layer, head, position))


def head_names(results: ResultCache, label: str) -> list[str]:
    """Return every head and MLP of a model as they are typed: "0.3", "0.mlp"."""
    c = results.store.lab(label).model.config
    return [f"{layer}.{part}" for layer in range(c.n_layer) for part in (*range(c.n_head), "mlp")]


def head_clicked(results: ResultCache, subject: Subject | None, point: Sequence[float]) -> str | None:
    """Return the name of the head whose cell of the map holds a point of the picture; None beside the cells."""
    L, H = lenses(results, subject)[0].trace.q.shape[:2]
    half = head_map_pitch(L, H) / 2
    for (layer, head), (x, y) in head_map_cells(L, H).items():
        if abs(point[0] - x) <= half and abs(point[1] - y) <= half:
            return f"{layer}.{head}"
    return None


def ablations(results: ResultCache, subject: Subject | None, names: list[str] | None, mean: bool) -> list[Ablation]:
    """Return the Ablation of each model."""
    heads, mlps = parts_named(names or [])

    def ablation_of(lab: Lab) -> Ablation:
        return ablate(lab, shown(subject).text, heads, mlps=mlps, mean=mean)

    return [results.store.with_model(label, ablation_of) for label in labels_of(subject)]


def ablated(
    results: ResultCache, subject: Subject | None, names: list[str] | None, mean: bool
) -> tuple[str, Tokens, str]:
    """Return (losses, tokens coloured by their change, a table of the next predictions) under ablation."""
    models = ablations(results, subject, names, mean)
    losses = "; ".join(
        f"**{model.before.name}**: {model.before.loss:.3f} → {model.after.loss:.3f} nats per token ({model.change:+.3f})"
        for model in models
    )
    first = models[0].before
    tokens, scale = scaled(first.tokens, first.change(models[0].after), "nats more (red) or less (violet) without them")
    scale += f" In {first.name}." if len(models) > 1 else ""
    runs = [run for model in models for run in (model.before, model.after)]
    columns = [[f"{name} {p:.3f}" for _, name, p in run.top_predictions(-1)] for run in runs]
    return f"{losses}. {scale}", tokens, table([run.name for run in runs], list(zip(*columns)))


def swept(results: ResultCache, subject: Subject | None, mean: bool) -> Iterator[str | list[Sweep]]:
    """Yield progress lines while every head is ablated alone; at last the Sweep of each model."""
    return in_turn(results, subject, lambda lab: sweep.steps(lab, shown(subject).text, mean=mean))


def patched(
    results: ResultCache, subject: Subject | None, corrupted: str, token: str, against: str
) -> Iterator[str | list[Patching]]:
    """Yield progress lines while states are patched; at last the Patching of each model. The text is the clean prompt."""

    def steps_of(lab: Lab) -> Generator[tuple[int, int], None, Patching]:
        return patching.steps(lab, shown(subject).text, corrupted, answer=token or None, against=against or None)

    return in_turn(results, subject, steps_of)


def in_turn(
    results: ResultCache, subject: Subject | None, steps_of: Callable[[Lab], Generator[tuple[int, int], None, R]]
) -> Iterator[str | list[R]]:
    """Yield a progress line after each step of each model; at last the list of what their steps return."""
    returned: list[R] = []
    for label in labels_of(subject):
        steps = results.store.locked_steps(steps_of(results.store.lab(label)))
        returned.append((yield from mapped(steps, partial("{}: layer {} of {}".format, label))))
    yield returned


def sweep_views(sweeps: Sequence[Sweep], dark: bool) -> tuple[list[Image], str]:
    """Return (pictures, tables) of sweeps."""
    pictures = [as_image(figure(result, dark=dark)) for result in sweeps]
    return pictures, "".join(f"<h4>{html.escape(result.name)}</h4>{head_table(result.map())}" for result in sweeps)


def patch_views(patchings: Sequence[Patching], dark: bool) -> tuple[str, list[Image], str]:
    """Return (summary, pictures, tables) of patched states."""
    line = "; ".join(
        f"**{model.name}**: logit of `{code(model.words[0])}` over `{code(model.words[1])}`: clean {model.clean:+.3f}, "
        f"corrupted {model.corrupted:+.3f}"
        for model in patchings
    )
    pictures = [as_image(figure(model, dark=dark)) for model in patchings]
    return line, pictures, "".join(table(*model.table().text()) for model in patchings)


def result_of(
    results: ResultCache,
    subject: Subject | None,
    part: str,
    *,
    position: int,
    token: str,
    against: str,
    limits: str,
    layer: int,
    head: int,
    off: list[str] | None,
    mean: bool,
    corrupted: str,
) -> Result:
    """Return the result of one of PARTS, of the first model; surprisal also of the second. Raises: LabError for another."""
    place = Place(position, token or "", against or "")
    choice("part", part, PARTS)
    if part == "surprisal":
        first, *others = (replace(cost, limits=limits_of(limits)) for cost in surprisals(results, subject))
        return SurprisalChange(first, others[0]) if others else first
    if part == "lens":
        return lenses(results, subject)[0]
    if part == "attribution":
        return attributions(results, subject, place)[0]
    if part == "walk":
        return walk_at(results, subject, position, layer, head)
    if part == "heads switched off":
        return ablations(results, subject, off, mean)[0]
    alone = part == "every head alone"
    steps = swept(results, subject, mean) if alone else patched(results, subject, corrupted, place.token, place.against)
    [computed] = [step for step in steps if not isinstance(step, str)]
    return computed[0]


def file_of(
    results: ResultCache, subject: Subject | None, part: str, format: str, *, measure: str, **fields: Any
) -> tuple[str, bytes]:
    """Return (name, bytes) of one of PARTS as a file, of the page's `fields`. Raises: LabError for an unknown part or format."""
    result = result_of(results, subject, part, **fields)
    options = {"measure": choice("measure", measure, LENS)} if part == "lens" else {}
    return f"inside-{part.replace(' ', '-')}.{format}", export(result, format, **options)

"""What the Inside tab shows: surprisal, lens, what adds to a logit, a walked block, heads switched off. Nothing of its layout."""

import html
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import NamedTuple

from gpt2lab.app.events import ALONE, as_image
from gpt2lab.app.results import ResultCache
from gpt2lab.errors import LabError, choice, whole_number
from gpt2lab.figures.heads import head_map, head_map_cells, head_map_pitch, head_map_rows
from gpt2lab.figures.inside import (
    attribution_map,
    attribution_rows,
    entry_name,
    lens_figure,
    lens_head,
    lens_rows,
    patching_figure,
    patching_rows,
    rank_figure,
)
from gpt2lab.figures.tables import table
from gpt2lab.inspection.ablation import ablate, parts_named, sweep_steps
from gpt2lab.inspection.lens import attribution
from gpt2lab.inspection.patching import patching_steps
from gpt2lab.inspection.surprisal import limits_of
from gpt2lab.inspection.walk import walk
from gpt2lab.pages import inside_export as export
from gpt2lab.pages.export import map_file
from gpt2lab.pages.walk import walk_page

MAX_CHARACTERS = 20_000  # of a visitor's text
MAX_SHOWN = 1000  # tokens in colours: more make a browser slow
COLOURS = ("nats", "rank", "entropy", "change")
PARTS = (
    "surprisal",
    "lens",
    "attribution",
    "walk",
    "every head alone",
    "heads switched off",
    "patching",
)  # that files are made of
# the page's fields that files are made by
FIELDS = ("position", "token", "against", "limits", "measure", "layer", "head", "off", "mean", "corrupted")
NOTHING = "nothing is looked into yet; press Look inside first"


class Seen(NamedTuple):
    """What the page shows, whatever its inputs say by now; `other` is a second model, or None."""

    label: str
    other: str | None
    text: str


class Place(NamedTuple):
    """Where the page looks: at what follows a token; the token followed, and held against; "" for the model's own."""

    position: int
    token: str
    against: str


def checked(results: ResultCache, label: str, other: str, text: str) -> Seen:
    """What is asked for. Raises: LabError for a text that is empty or too long, and for models not on the results."""
    if not isinstance(text, str) or not text:
        raise LabError("the text is empty; type at least one character")
    if len(text) > MAX_CHARACTERS:
        raise LabError(
            "the text has {count:,} characters; the limit is {max_characters:,}: take a part of it",
            count=len(text),
            max_characters=MAX_CHARACTERS,
        )
    seen = Seen(label, None if other in (None, ALONE) else other, text)
    for one in labels_of(seen):
        results.store.location(one)
    return seen


def surprisals(results: ResultCache, seen: Seen | None) -> list:
    """A Surprisal of each model, a window at a time: others' models run between. Raises: LabError where nothing is looked into."""
    return [results.surprisal(label, seen.text) for label in labels_of(seen)]


def lenses(results: ResultCache, seen: Seen | None) -> list:
    """A Lens of each model, that follows the token which comes next; of the beginning of a text too long for it."""
    return [results.lens(label, seen.text) for label in labels_of(seen)]


def labels_of(seen: Seen | None) -> list[str]:
    """The models looked into, one or two. Raises: LabError where there are none."""
    if seen is None:
        raise LabError(NOTHING)
    return [seen.label] if seen.other is None else [seen.label, seen.other]


def coloured(found: list, by: str) -> tuple[list[tuple[str, float]], str]:
    """(tokens with a number from 0 to 1, or -1 to 1 for a change; what the colours stand for)."""
    first = found[0]
    choice("colour", by, COLOURS)
    if by == "change":
        if len(found) < 2:
            raise LabError("there is no second model to compare with; choose one, and press Look inside")
        return scaled(first.tokens, first.change(found[1]), "nats more (red) or less (violet) under the second model")
    values = {"nats": first.nll, "rank": first.rank.clamp_min(1).log(), "entropy": first.entropy[:-1]}[by]
    unit = {"nats": "nats", "rank": "the logarithm of the rank", "entropy": "nats of entropy"}[by]
    return scaled(first.tokens, values, unit)


def scaled(tokens, values, unit: str) -> tuple[list[tuple[str, float]], str]:
    """(tokens with their values by the largest, what that is); NaN has no colour."""
    n = min(len(tokens), MAX_SHOWN)
    values = values.double().nan_to_num(0)
    top = max(1e-9, float(values.abs().max()))
    shown = [(token, round(value / top, 4)) for token, value in zip(tokens[:n], values[:n].tolist())]
    cut = f" The first {n:,} of {len(tokens):,} tokens." if n < len(tokens) else ""
    return shown, f"The fullest colour is {top:.2f}: {unit}.{cut}"


def summary(costs: list, lens) -> str:
    """The losses in a line, and how much of the text the other views are of."""
    n = len(costs[0].tokens)
    if n < 2:
        return "One token, which nothing predicts."
    told = "; ".join(f"**{one.name}**: {one.loss:.3f} nats per token" for one in costs)
    if len(costs) == 2:
        told += f"; {costs[1].loss - costs[0].loss:+.3f} under the second"
    of = len(lens.trace.tokens)
    cut = f" The model reads {of:,} at once: all but the colours is of the first {of:,}." if lens.trace.left_out else ""
    return f"{told}. {n:,} tokens.{cut}"


def ranks(results: ResultCache, seen: Seen | None, limits: str, dark: bool):
    """(figure, table) of how many tokens had which rank, and cost how much."""
    found, edges = surprisals(results, seen), limits_of(limits)
    counts = [one.buckets(edges) for one in found]
    rows = [(names[0][0], *(f"{count:,}" for _, count in names)) for names in zip(*counts)]
    return as_image(rank_figure(found, edges, dark=dark)), table(["rank", *(one.name for one in found)], rows)


def lens_pictures(results: ResultCache, seen: Seen | None, measure: str, dark: bool) -> list:
    """A picture of each model's lens."""
    return [as_image(lens_figure(one, measure, dark=dark)) for one in lenses(results, seen)]


def attributions(results: ResultCache, seen: Seen | None, place: Place) -> list:
    """An Attribution of each model: by default of the token that comes next, against the top prediction among the others."""

    def of(lens, lab):
        trace = lens.trace
        position = position_in(trace, place.position)
        follows = int(trace.ids[position + 1]) if position + 1 < len(trace.ids) else None
        token, against = place.token or follows, place.against or None
        return attribution(lab, trace, position=position, token=token, against=against)

    return [
        results.store.with_model(label, partial(of, lens))
        for label, lens in zip(labels_of(seen), lenses(results, seen))
    ]


def position_in(trace, position) -> int:
    """A position of a trace. Raises: LabError for one that is not there, with why."""
    last = len(trace.ids) - 1
    if trace.left_out and isinstance(position, int) and position > last:
        raise LabError(
            "token {position:,} is past what {name} reads at once; choose one up to {last:,}",
            position=position,
            name=trace.name,
            last=last,
        )
    return whole_number("position", position, 0, last)


def at_place(results: ResultCache, seen: Seen | None, place: Place, dark: bool) -> tuple[str, str, list, str]:
    """(in words, the lens as a table, what adds to a logit as pictures, and as a table) at a place of the text."""
    found, added = lenses(results, seen), attributions(results, seen, place)
    position, trace = place.position, found[0].trace
    told = f"After token {position}, `{code(trace.tokens[position])}`"
    if position + 1 < len(trace.tokens):
        told += f", `{code(trace.tokens[position + 1])}` comes next."
    else:
        told += ", the last that is read." if trace.left_out else ", the last."
    told += f" The answer of {trace.name} settles after {entry_name(int(found[0].settled[position]))}."
    tables = "".join(
        f"<h4>{html.escape(one.trace.name)}</h4>{table(lens_head(one, position), lens_rows(one, position))}"
        for one in found
    )
    pictures = [as_image(head_map(**attribution_map(one)._asdict(), dark=dark)) for one in added]
    parts = "".join(
        table([f"part of {one.name}", f"adds to {one.words[0]} over {one.words[1]}, logits"], attribution_rows(one))
        for one in added
    )
    return told, tables, pictures, parts


def walked(results: ResultCache, seen: Seen | None, position: int, layer: int, head: int, dark: bool) -> str:
    """A block's walk as a frame; of the first of two models."""
    return walk_page(walk_at(results, seen, position, layer, head), theme="dark" if dark else "light").iframe()


def walk_at(results: ResultCache, seen: Seen | None, position: int, layer: int, head: int):
    """The Walk of the first model."""
    trace = lenses(results, seen)[0].trace
    position_in(trace, position)
    return results.store.with_model(seen.label, lambda lab: walk(lab, trace, layer, head, position))


def head_names(results: ResultCache, label: str) -> list[str]:
    """Every head and MLP of a model, as they are typed: "0.3", "0.mlp"."""
    c = results.store.lab(label).model.config
    return [f"{layer}.{part}" for layer in range(c.n_layer) for part in (*range(c.n_head), "mlp")]


def head_clicked(results: ResultCache, seen: Seen | None, point) -> str | None:
    """The name of the head whose cell of the map is at a point of its picture; None beside the cells."""
    L, H = lenses(results, seen)[0].trace.q.shape[:2]
    half = head_map_pitch(L, H) / 2
    for (layer, head), (x, y) in head_map_cells(L, H).items():
        if abs(point[0] - x) <= half and abs(point[1] - y) <= half:
            return f"{layer}.{head}"
    return None


def ablations(results: ResultCache, seen: Seen | None, names: list[str], mean: bool) -> list:
    """An Ablation of each model."""
    heads, mlps = parts_named(names or [])

    def ablation_of(lab):
        return ablate(lab, seen.text, heads, mlps=mlps, mean=mean)

    return [results.store.with_model(label, ablation_of) for label in labels_of(seen)]


def ablated(results: ResultCache, seen: Seen | None, names: list[str], mean: bool) -> tuple[str, list, str]:
    """(in words, the tokens coloured by what they cost more, what is expected next in a table)."""
    found = ablations(results, seen, names, mean)
    told = "; ".join(
        f"**{one.before.name}**: {one.before.loss:.3f} → {one.after.loss:.3f} nats per token ({one.change:+.3f})"
        for one in found
    )
    first = found[0].before
    tokens, scale = scaled(first.tokens, first.change(found[0].after), "nats more (red) or less (violet) without them")
    scale += f" In {first.name}." if len(found) > 1 else ""
    head, columns = [], []
    for one in found:
        for each in (one.before, one.after):
            head.append(each.name)
            columns.append([f"{name} {p:.3f}" for _, name, p in each.top_predictions(-1)])
    return f"{told}. {scale}", tokens, table(head, list(zip(*columns)))


def swept(results: ResultCache, seen: Seen | None, mean: bool) -> Iterator:
    """How far it is, in words, as it goes on; at last the Sweeps."""
    return in_turn(results, seen, lambda lab: sweep_steps(lab, seen.text, mean=mean))


def patched(results: ResultCache, seen: Seen | None, corrupted: str, token: str, against: str) -> Iterator:
    """How far it is, in words, as it goes on; at last the Patchings, with the text as the clean prompt."""
    chosen = {"answer": token or None, "against": against or None}
    return in_turn(results, seen, lambda lab: patching_steps(lab, seen.text, corrupted, **chosen))


def in_turn(results: ResultCache, seen: Seen | None, steps_of: Callable) -> Iterator:
    """A word after each step of each model; at last the list of what their steps return."""
    found = []
    for label in labels_of(seen):
        steps = results.store.locked_steps(steps_of(results.store.lab(label)))
        found.append((yield from in_words(label, steps)))
    yield found


def in_words(label: str, steps: Generator) -> Generator:
    """How many layers are done; returns what the steps return."""
    while True:
        try:
            done, total = next(steps)
        except StopIteration as end:
            return end.value
        yield f"{label}: layer {done} of {total}"


def sweep_views(done: list, dark: bool) -> tuple[list, str]:
    """(pictures, tables) of sweeps."""
    maps = [one.map() for one in done]
    pictures = [as_image(head_map(**drawn._asdict(), dark=dark)) for drawn in maps]
    heads = [f"head {head}" for head in range(maps[0].values.shape[1])]
    return pictures, "".join(table([one.name, *heads], head_map_rows(drawn.values)) for one, drawn in zip(done, maps))


def patch_views(found: list, dark: bool) -> tuple[str, list, str]:
    """(in words, pictures, tables) of patched states."""
    told = "; ".join(
        f"**{one.name}**: logit of `{code(one.words[0])}` over `{code(one.words[1])}`: clean {one.clean:+.3f}, "
        f"corrupted {one.corrupted:+.3f}"
        for one in found
    )
    pictures = [as_image(patching_figure(one, dark=dark)) for one in found]
    return told, pictures, "".join(table(*patching_rows(one)) for one in found)


def file_of(
    results: ResultCache,
    seen: Seen | None,
    part: str,
    format: str,
    *,
    position,
    token,
    against,
    limits,
    measure,
    layer,
    head,
    off,
    mean,
    corrupted,
) -> tuple[str, bytes]:
    """(name, bytes) of one of PARTS as a file, of the first of two models but for surprisal. Raises: LabError for a part
    or format that does not exist."""
    place = Place(position, token or "", against or "")
    match part:
        case "surprisal":
            found, *others = surprisals(results, seen)
            content = export.surprisal_file(found, others[0] if others else None, format, limits=limits_of(limits))
        case "lens":
            content = export.lens_file(lenses(results, seen)[0], format, measure=measure)
        case "attribution":
            content = export.attribution_file(attributions(results, seen, place)[0], format)
        case "walk":
            content = export.walk_file(walk_at(results, seen, position, layer, head), format)
        case "every head alone":
            *_, found = swept(results, seen, mean)
            content = map_file(found[0].map(), format)
        case "heads switched off":
            found = ablations(results, seen, off, mean)[0]
            content = export.surprisal_file(found.before, found.after, format, limits=limits_of(limits))
        case "patching":
            *_, found = patched(results, seen, corrupted, place.token, place.against)
            content = export.patching_file(found[0], format)
        case _:
            choice("part", part, PARTS)
    return f"inside-{part.replace(' ', '-')}.{format}", content


def code(token: str) -> str:
    """A token inside Markdown's code."""
    return token.replace("`", "ˋ")

"""What the Inside tab shows: surprisal, lens, what adds to a logit, a walked block, heads switched off. Nothing of its layout."""

import html
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from gpt2lab.errors import LabError, whole_number
from gpt2lab.ui.handling import ALONE, as_image
from gpt2lab.ui.shelf import Shelf

MAX_CHARACTERS = 20_000  # of a visitor's text
MAX_SHOWN = 1000  # tokens in colours: more make a browser slow
COLOURS = ("nats", "rank", "entropy", "change")
PARTS = ("surprisal", "lens", "attribution", "walk", "heads switched off", "patching")  # that files are made of
NOTHING = "nothing is looked into yet; press Look inside first"


class Seen(NamedTuple):
    """What the page shows, whatever its inputs say by now; `other` is a second model, or None."""

    label: str
    other: str | None
    text: str

    @property
    def labels(self) -> list[str]:
        """One model, or two."""
        return [self.label] if self.other is None else [self.label, self.other]


class Place(NamedTuple):
    """Where the page looks: at what follows a token; the token followed, and held against; "" for the model's own."""

    position: int
    token: str
    against: str


def checked(shelf: Shelf, label: str, other: str, text: str) -> Seen:
    """What is asked for. Raises: LabError for a text that is empty or too long, and for models not on the shelf."""
    if not isinstance(text, str) or not text:
        raise LabError("the text is empty; type at least one character")
    if len(text) > MAX_CHARACTERS:
        raise LabError(f"the text has {len(text):,} characters; the limit is {MAX_CHARACTERS:,}: take a part of it")
    seen = Seen(label, None if other in (None, ALONE) else other, text)
    for one in seen.labels:
        shelf.location(one)
    return seen


def each(shelf: Shelf, seen: Seen | None, name: str, make: Callable) -> list:
    """What `make(lab)` gives for each model, kept under a name. Raises: LabError where nothing is looked into."""
    if seen is None:
        raise LabError(NOTHING)
    return [shelf.looked(name, label, seen.text, make) for label in seen.labels]


def surprisals(shelf: Shelf, seen: Seen | None) -> list:
    """A Surprisal of each model."""
    from gpt2lab.inspection.surprisal import surprisal

    return each(shelf, seen, "surprisal", lambda lab: surprisal(lab, seen.text))


def lenses(shelf: Shelf, seen: Seen | None) -> list:
    """A Lens of each model, that follows the token which comes next; of the beginning of a text too long for it."""
    from gpt2lab.inspection.lens import logit_lens

    return each(shelf, seen, "lens", lambda lab: logit_lens(lab, seen.text, next=True, cut=True))


def coloured(found: list, by: str) -> tuple[list[tuple[str, float]], str]:
    """(tokens with a number from 0 to 1, or -1 to 1 for a change; what the colours stand for)."""
    from torch import isnan

    first = found[0]
    n = min(len(first.tokens), MAX_SHOWN)
    if by not in COLOURS:
        raise LabError(f"colour {str(by)[:40]!r} is unknown; use {', '.join(COLOURS)}")
    if by == "change":
        if len(found) < 2:
            raise LabError("there is no second model to compare with; choose one, and press Look inside")
        values, unit = first.change(found[1]), "nats more (red) or less (blue) under the second model"
    else:
        values = {"nats": first.nll, "rank": first.rank.clamp_min(1).log(), "entropy": first.entropy[:-1]}[by]
        unit = {"nats": "nats", "rank": "the logarithm of the rank", "entropy": "nats of entropy"}[by]
    values = values.double().masked_fill(isnan(values), 0)
    top = max(1e-9, float(values.abs().max()))
    tokens = [(token, round(value / top, 4)) for token, value in zip(first.tokens[:n], values[:n].tolist())]
    cut = f" The first {n:,} of {len(first.tokens):,} tokens." if n < len(first.tokens) else ""
    return tokens, f"The fullest colour is {top:.2f}: {unit}.{cut}"


def summary(found: list) -> str:
    """The losses in a line."""
    told = [f"**{one.name}**: {one.loss:.3f} nats per token" for one in found if len(one.tokens) > 1]
    if len(found) == 2 and len(told) == 2:
        told.append(f"{found[1].loss - found[0].loss:+.3f} under the second")
    return "; ".join(told) + f". {len(found[0].tokens):,} tokens." if told else "One token, which nothing predicts."


def limits_of(spoken: str) -> list[int]:
    """Limits of buckets from "10, 100, 1000". Raises: LabError for what is no list of numbers."""
    parts = [part.strip() for part in str(spoken).split(",")]
    if not all(re.fullmatch("[0-9]{1,9}", part) for part in parts):
        raise LabError(f"limits {str(spoken)[:40]!r} are no numbers with commas between; give 10, 100, 1000")
    return [int(part) for part in parts]


def ranks(shelf: Shelf, seen: Seen | None, limits: str, dark: bool):
    """(figure, table) of how many tokens had which rank, and cost how much."""
    from gpt2lab.views.inside import rank_figure
    from gpt2lab.views.tables import table

    found, edges = surprisals(shelf, seen), limits_of(limits)
    counts = [one.buckets(edges) for one in found]
    rows = [(names[0][0], *(f"{count:,}" for _, count in names)) for names in zip(*counts)]
    return as_image(rank_figure(found, edges, dark=dark)), table(["rank", *(one.name for one in found)], rows)


def lens_pictures(shelf: Shelf, seen: Seen | None, measure: str, dark: bool) -> list:
    """A picture of each model's lens."""
    from gpt2lab.views.inside import lens_figure

    return [as_image(lens_figure(one, measure, dark=dark)) for one in lenses(shelf, seen)]


def token_of(spoken: str) -> int | str | None:
    """A token as it was typed: its text, "#262" for an id; None for nothing."""
    if not spoken:
        return None
    return int(spoken[1:]) if re.fullmatch("#[0-9]{1,7}", spoken) else spoken


def attributions(shelf: Shelf, seen: Seen | None, place: Place) -> list:
    """An Attribution of each model: by default of the token that comes next, against the favourite among the others."""
    from gpt2lab.inspection.lens import attribution

    def of(lens, lab):
        trace = lens.trace
        position = whole_number("position", place.position, 0, len(trace.ids) - 1)
        follows = int(trace.ids[position + 1]) if position + 1 < len(trace.ids) else None
        token = follows if not place.token else token_of(place.token)
        return attribution(lab, trace, position=position, token=token, against=token_of(place.against))

    return [
        shelf.run(label, partial(of, lens)) for label, lens in zip(seen.labels if seen else [], lenses(shelf, seen))
    ]


def at_place(shelf: Shelf, seen: Seen | None, place: Place, dark: bool) -> tuple[str, str, list, str]:
    """(in words, the lens as a table, what adds to a logit as pictures, and as a table) at a place of the text."""
    from gpt2lab.views.inside import attribution_map, attribution_rows, lens_head, lens_rows
    from gpt2lab.views.maps import head_map
    from gpt2lab.views.tables import table

    found, added = lenses(shelf, seen), attributions(shelf, seen, place)
    position, trace = place.position, found[0].trace
    told = f"After token {position}, `{code(trace.tokens[position])}`"
    told += f", `{code(trace.tokens[position + 1])}` comes next." if position + 1 < len(trace.tokens) else ", the last."
    told += f" The answer of {trace.name} settles after {entry_of(int(found[0].settled[position]))}."
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


def entry_of(entry: int) -> str:
    """An entry of the residual stream, in words."""
    return "the embedding" if entry == 0 else f"layer {entry - 1}"


def walked(shelf: Shelf, seen: Seen | None, position: int, layer: int, head: int, dark: bool) -> str:
    """A block's walk as a frame; of the first of two models."""
    from gpt2lab.views.walk import walk_page

    return walk_page(walk_at(shelf, seen, position, layer, head), theme="dark" if dark else "light").iframe()


def walk_at(shelf: Shelf, seen: Seen | None, position: int, layer: int, head: int):
    """The Walk of the first model."""
    from gpt2lab.inspection.walk import walk

    trace = lenses(shelf, seen)[0].trace
    whole_number("position", position, 0, len(trace.ids) - 1)
    return shelf.run(seen.label, lambda lab: walk(lab, trace, layer, head, position))


def head_names(shelf: Shelf, label: str) -> list[str]:
    """Every head and MLP of a model, as they are typed: "0.3", "0.mlp"."""
    c = shelf.lab(label).model.config
    return [f"{layer}.{part}" for layer in range(c.n_layer) for part in (*range(c.n_head), "mlp")]


def ablations(shelf: Shelf, seen: Seen | None, names: list[str], mean: bool) -> list:
    """An Ablation of each model."""
    from gpt2lab.inspection.ablation import ablate, parts_named

    if seen is None:
        raise LabError(NOTHING)
    heads, mlps = parts_named(names or [])
    return [shelf.run(label, lambda lab: ablate(lab, seen.text, heads, mlps=mlps, mean=mean)) for label in seen.labels]


def ablated(shelf: Shelf, seen: Seen | None, names: list[str], mean: bool) -> tuple[str, list, str]:
    """(in words, the tokens coloured by what they cost more, what is expected next in a table)."""
    from gpt2lab.views.tables import table

    found = ablations(shelf, seen, names, mean)
    told = "; ".join(
        f"**{one.before.name}**: {one.before.loss:.3f} → {one.after.loss:.3f} nats per token ({one.change:+.3f})"
        for one in found
    )
    tokens, scale = coloured([found[0].before, found[0].after], "change")
    head, columns = [], []
    for one in found:
        for what, each in (("as it is", one.before), ("switched off", one.after)):
            head.append(f"{each.name}, {what}")
            best = zip(each.top[-1].tolist(), each.top_probability[-1].tolist())
            columns.append([f"{each.names[i]} {p:.3f}" for i, p in best])
    return f"{told}. {scale}", tokens, table(head, list(zip(*columns)))


def swept(shelf: Shelf, seen: Seen | None, mean: bool) -> Iterator:
    """How far it is, in words, as it goes on; at last the Sweeps."""
    from gpt2lab.inspection.ablation import sweep_steps

    if seen is None:
        raise LabError(NOTHING)
    done = []
    for label in seen.labels:
        steps = sweep_steps(shelf.named(label), seen.text, mean=mean)
        result = yield from in_words(label, shelf.each(steps))
        done.append(result)
    yield done


def in_words(label: str, steps: Iterator) -> Iterator[str]:
    """How many layers are done; returns what the steps return."""
    while True:
        try:
            done, total = next(steps)
        except StopIteration as end:
            return end.value
        yield f"{label}: layer {done} of {total}"


def sweep_views(done: list, dark: bool) -> tuple[list, str]:
    """(pictures, tables) of sweeps."""
    from gpt2lab.views.maps import head_map, head_map_rows
    from gpt2lab.views.tables import table

    maps = [one.map() for one in done]
    pictures = [as_image(head_map(**drawn._asdict(), dark=dark)) for drawn in maps]
    heads = [f"head {head}" for head in range(maps[0].values.shape[1])]
    return pictures, "".join(table([one.name, *heads], head_map_rows(drawn.values)) for one, drawn in zip(done, maps))


def patchings(shelf: Shelf, seen: Seen | None, corrupted: str, token: str, against: str) -> list:
    """A Patching of each model: the text is the clean prompt."""
    from gpt2lab.inspection.ablation import patching

    if seen is None:
        raise LabError(NOTHING)
    chosen = {"answer": token_of(token), "against": token_of(against)}
    return [shelf.run(label, lambda lab: patching(lab, seen.text, corrupted, **chosen)) for label in seen.labels]


def patched(shelf: Shelf, seen: Seen | None, corrupted: str, token: str, against: str, dark: bool):
    """(in words, pictures, tables) of patched states."""
    from gpt2lab.views.inside import patching_figure, patching_rows
    from gpt2lab.views.tables import table

    found = patchings(shelf, seen, corrupted, token, against)
    told = "; ".join(
        f"**{one.name}**: logit of `{code(one.words[0])}` over `{code(one.words[1])}`: clean {one.clean:+.3f}, "
        f"corrupted {one.corrupted:+.3f}"
        for one in found
    )
    pictures = [as_image(patching_figure(one, dark=dark)) for one in found]
    return told, pictures, "".join(table(*patching_rows(one)) for one in found)


def file_of(shelf: Shelf, seen: Seen | None, part: str, format: str, **fields) -> tuple[str, bytes]:
    """(name, bytes) of one of PARTS as a file. Raises: LabError for a part or format that does not exist."""
    from gpt2lab.views import inside_export as export

    place = fields["place"]
    if part == "surprisal":
        found = surprisals(shelf, seen)
        other = found[1] if len(found) > 1 else None
        content = export.surprisal_file(found[0], other, format, limits=limits_of(fields["limits"]))
    elif part == "lens":
        content = export.lens_file(lenses(shelf, seen)[0], format, measure=fields["measure"])
    elif part == "attribution":
        content = export.attribution_file(attributions(shelf, seen, place)[0], format)
    elif part == "walk":
        content = export.walk_file(walk_at(shelf, seen, place.position, fields["layer"], fields["head"]), format)
    elif part == "heads switched off":
        found = ablations(shelf, seen, fields["off"], fields["mean"])[0]
        content = export.surprisal_file(found.before, found.after, format, limits=limits_of(fields["limits"]))
    elif part == "patching":
        found = patchings(shelf, seen, fields["corrupted"], place.token, place.against)[0]
        content = export.patching_file(found, format)
    else:
        raise LabError(f"part {str(part)[:40]!r} is unknown; use {', '.join(PARTS)}")
    return f"inside-{part.replace(' ', '-')}.{format}", content


def code(token: str) -> str:
    """A token inside Markdown's code."""
    return token.replace("`", "ˋ")

"""The Explore page: one text, every view of it linked; in Jupyter, in the app and as a file."""

import base64
from collections.abc import Callable, Sequence
from typing import Any

from gpt2lab.errors import LabError, Message, choice, whole_number
from gpt2lab.figures.drawing import figure, figure_bytes
from gpt2lab.inspection.ablation import sweep
from gpt2lab.inspection.attention import Attention, largest
from gpt2lab.inspection.attribution import attribution
from gpt2lab.inspection.compare import Comparison, compare
from gpt2lab.inspection.exploration import Exploration, exploration
from gpt2lab.inspection.heads import rollout
from gpt2lab.inspection.patching import patching
from gpt2lab.inspection.surprisal import surprisal_of_ids
from gpt2lab.inspection.trace import Trace
from gpt2lab.inspection.walkthrough import walk
from gpt2lab.model.lab import Lab
from gpt2lab.pages.bertviz import VIEWS, plan
from gpt2lab.pages.export import FORMATS, bertviz_options, export
from gpt2lab.results import Result
from gpt2lab.widgets.ablation import answer_ablate, answer_patch, answer_sweep, asked_ablation, asked_mean
from gpt2lab.widgets.attention import answer_attention, answer_qk, attention_part
from gpt2lab.widgets.base import Selection, Widget
from gpt2lab.widgets.contributions import answer_contributions, answer_why, asked_tokens
from gpt2lab.widgets.data import contributions_part, lens_parts, scores_part, side_of
from gpt2lab.widgets.walkthrough import answer_walk

MAX_FILE = 64_000_000  # bytes that a browser is sent at once
ROLLOUT_ROWS = 20
# what a view may ask of each side: kind → (lab, trace, options) -> values
ANSWERS: dict[str, Callable[[Lab, Any, dict], dict]] = {
    "ablate": answer_ablate,
    "attention": answer_attention,
    "contributions": answer_contributions,
    "patch": answer_patch,
    "qk": answer_qk,
    "sweep": answer_sweep,
    "walk": answer_walk,
    "why": answer_why,
}
Save = Callable[[Exploration, Lab, Selection, dict], Result]
# what can be saved: name → (exploration, lab, selection, what the views asked for) -> the result
SAVED: dict[str, Save] = {
    "surprisal": lambda found, lab, at, asked: surprisal_of_ids(lab, found.seen.ids.to(lab.device)),
    "lens": lambda found, lab, at, asked: found.lens,
    "attention of the head": lambda found, lab, at, asked: Attention(found.seen, at.layer, at.head),
    "attention of all heads": lambda found, lab, at, asked: Attention(found.seen),
    "head scores": lambda found, lab, at, asked: _scores(found),
    "attribution": lambda found, lab, at, asked: _attribution(found, lab, at, asked),
    "attribution at every position": lambda found, lab, at, asked: found.contributions,
    "ablation": lambda found, lab, at, asked: asked_ablation(lab, found.seen, asked | {"off": at.off}),
    "sweep": lambda found, lab, at, asked: sweep(lab, found.text, mean=asked_mean(asked)),
    "patching": lambda found, lab, at, asked: patching(
        lab, found.text, _corrupted(asked), answer=asked.get("answer"), against=asked.get("rival")
    ),
    "walkthrough": lambda found, lab, at, asked: walk(lab, found.seen, at.layer, at.head, at.position),
    "rollout": lambda found, lab, at, asked: rollout(found.seen),
}


class Explore(Widget):
    """One text, every view of it linked by one selection; of one model, or of two."""

    module = "explore"


def explore(lab: Lab, text: str, compare: Lab | None = None) -> Explore:
    """Everything that a forward pass of a text shows, in one linked page.

    compare  a second model, for the same text

    Example: page = explore(load_model("builtin"), "The moon"); page.layer, page.head = 2, 3; page.save("moon.html")
    Raises: LabError for a text that is empty; of one that does not fit the model, the beginning is shown.
    """
    labs = [lab] if compare is None else [lab, compare]
    found = [exploration(each, text) for each in labs]
    subject = {"text": text, "models": [each.name for each in labs]}

    def answer(kind: str, options: dict) -> dict:
        return explore_answer(labs, found, kind, options)

    return Explore(
        found[0], explore_data(found, subject), first_selection(found[0]), title=f"{lab.name}: explore", answer=answer
    )


def explore_data(found: Sequence[Exploration], subject: dict, *, layer: int = 0, head: int = 0) -> dict:
    """The data of the page.

    subject       {text, models}: what `answer` is asked about, and what a link and the Python lines name
    layer, head   the head that is shown first
    incomparable  why the two sides have no difference; "" where they have one
    """
    traces = [each.seen for each in found]
    parts = attention_part(traces, layer=layer, head=head, room=0)
    sides = [
        side_of(
            each.seen,
            **lens_parts(each.lens),
            scores=[] if each.scores is None else scores_part(each.scores),
            contributions=contributions_part(each.contributions),
            attention=part,
        )
        for each, part in zip(found, parts)
    ]
    return {"sides": sides, "subject": subject, "incomparable": incomparable(traces)}


def incomparable(traces: Sequence[Trace]) -> str:
    """Why two traces have no difference; "" where they have one, and for a single trace."""
    if len(traces) < 2:
        return ""
    first, second = traces
    if first.tokens != second.tokens:
        return Message(
            "{base} and {other} read other tokens ({n_base:,} and {n_other:,}); "
            "each is shown with its own, and they have no difference.",
            base=first.name,
            other=second.name,
            n_base=len(first.tokens),
            n_other=len(second.tokens),
        )
    shapes = [(trace.n_layers, trace.n_heads) for trace in traces]
    if shapes[0] != shapes[1]:
        (L, H), (L_other, H_other) = shapes
        return Message(
            "{L} × {H} heads and {L_other} × {H_other} have no difference; each model is shown with its own.",
            L=L,
            H=H,
            L_other=L_other,
            H_other=H_other,
        )
    return ""


def first_selection(found: Exploration) -> Selection:
    """What is selected when the page opens: the next token that is preferred most clearly, the highest induction head."""
    if found.scores is None:
        return Selection()
    [(layer, head, _)] = found.scores.top("induction", 1)
    return Selection(position=int(found.contributions.total[:-1].argmax()), layer=layer, head=head)


def explore_answer(labs: Sequence[Lab], found: Sequence[Exploration], kind: str, options: dict) -> dict:
    """What the page asks for after it was drawn. Raises: LabError for unknown kinds and options out of range."""
    if kind == "save":
        return saved(labs, found, options)
    if kind == "rollout":
        return rollout_answer(found[0].seen, dark=bool(options.get("dark")))
    if kind == "bertviz":
        return bertviz_answer(found[0].seen, options)
    answer = ANSWERS[choice("kind", kind, ANSWERS)]
    return {"sides": [_side_answer(answer, lab, each, options) for lab, each in zip(labs, found)]}


def _side_answer(answer: Callable[[Lab, Any, dict], dict], lab: Lab, found: Exploration, options: dict) -> dict:
    try:
        return answer(lab, found.seen, options)
    except LabError as error:
        return {"error": Message(error.template, **error.values)}


def saved(labs: Sequence[Lab], found: Sequence[Exploration], options: dict) -> dict:
    """A part of the page as a file: {name, content: base64}; of the side that is selected, and of the difference for attention.

    options  part, format, selection; asked: what the views' own fields say (mlps, mean, corrupted, answer, rival, token, against)

    Raises: LabError for another part, format or selection, and for the difference of what has none.
    """
    part, format = choice("part", options.get("part"), SAVED), choice("format", options.get("format"), FORMATS)
    selection, asked = (
        value if isinstance(value, dict) else {} for value in (options.get("selection"), options.get("asked"))
    )
    at = Selection.of(selection)
    side = 1 if at.side == 1 and len(found) == 2 else 0
    each, lab = found[side], labs[side]
    each.seen.heads(at.layer, at.head)
    whole_number("position", at.position, 0, len(each.seen.tokens) - 1)
    if at.side == 2 and len(found) == 2:
        if not part.startswith("attention"):
            raise LabError("no difference of {part} can be saved; select one model above", part=part)
        result: Result = Attention(compared(found), *((at.layer, at.head) if part == "attention of the head" else ()))
    else:
        result = SAVED[part](each, lab, at, asked)
    content = export(result, format)
    if len(content) > MAX_FILE:
        raise LabError(
            "the file has {size:.0f} MB; the limit is {limit:.0f}: save one head, or use `gpt2lab attention`",
            size=len(content) / 1e6,
            limit=MAX_FILE / 1e6,
        )
    of = "" if len(found) < 2 else "-difference" if at.side == 2 else f"-{each.seen.name.replace('/', '-')}"
    return {"name": f"{part.replace(' ', '-')}{of}.{format}", "content": base64.b64encode(content).decode()}


def rollout_answer(seen: Trace, *, dark: bool) -> dict:
    """Attention rollout: {png: base64, rows of its largest shares: [token, at, from, at, share]}."""
    found = rollout(seen)
    png = figure_bytes(figure(found, dark=dark), "png")
    rows = [list(row) for row in largest(found.weights, seen.tokens, ROLLOUT_ROWS)]
    return {"png": base64.b64encode(png).decode(), "rows": rows}


def bertviz_answer(seen: Trace, options: dict) -> dict:
    """A view of bertviz: {html: a frame's document, note: what it holds}. Raises: LabError past its 48 tokens."""
    view = choice("view", options.get("view"), VIEWS)
    at = Selection.of({name: options.get(name, 0) for name in ("layer", "head")})
    layer, head = (None, None) if view == "model" else (at.layer, at.head)
    chosen = bertviz_options(view, layer, head)
    page = VIEWS[view](seen, **chosen, theme="dark" if options.get("dark") else "light")
    return {"html": page.html, "height": page.height, "note": plan(seen, view, **chosen).note}


def compared(found: Sequence[Exploration]) -> Comparison:
    """The comparison of two that can be compared. Raises: LabError for others."""
    traces = [each.seen for each in found]
    if why := incomparable(traces):
        raise LabError("{why}", why=why)
    return compare(*traces)


def _scores(found: Exploration) -> Result:
    if found.scores is None:
        raise LabError("one token has no head scores; give at least 2")
    return found.scores


def _corrupted(options: dict) -> str:
    corrupted = options.get("corrupted")
    if not isinstance(corrupted, str) or not corrupted:
        raise LabError("there is no corrupted prompt; patch one first")
    return corrupted


def _attribution(found: Exploration, lab: Lab, at: Selection, asked: dict) -> Result:
    """Of the tokens whose logits the page compares."""
    options = {"position": at.position, "token": asked.get("token"), "against": asked.get("against")}
    _, token, against = asked_tokens(lab, found.seen, options)
    token = token if token is not None else at.token
    token = token if token is not None else int(found.contributions.tokens[at.position])
    return attribution(lab, found.seen, position=at.position, token=token, against=against)

"""Generated texts: their tokens with what each was chosen from, and the tree of texts that branch from one another."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np

from gpt2lab.data.sources import DATA
from gpt2lab.data.tokens import visible
from gpt2lab.errors import LabError, choice, whole_number
from gpt2lab.generation.branches import Text, branch_options, numbered, step_at, text_of_generation, texts_of_stream
from gpt2lab.generation.generate import Generation, TextStream
from gpt2lab.generation.measures import measure, perplexity_under, training_ids
from gpt2lab.generation.sampling import Sampling, Step, redrawn
from gpt2lab.model.lab import Lab
from gpt2lab.widgets.base import Selection, Widget

REDRAWN = ("temperature", "top_p", "top_k", "min_p")  # settings that a token's bars can be redrawn with
MAX_MEASURED = 2  # texts


class GenerationView(Widget):
    """A generated text: a click on a token shows its alternatives, a click on one of these continues from there.

    lab         the model that wrote the text
    generation  or several continuations, of which the first is shown
    compare     another model and its text, shown beside it

    `texts` are all texts with the branches, `position` is the selected token.
    Example: GenerationView(lab, generate(lab, "The moon", temperature=0.8, seed=1))
    """

    module = "generation"

    def __init__(
        self,
        lab: Lab,
        generation: Generation | Sequence[Generation],
        *,
        compare: tuple[Lab, Generation] | None = None,
    ) -> None:
        several = [generation] if isinstance(generation, Generation) else list(generation)
        if not several:
            raise LabError("there is no generation to show; give at least one")
        pairs = [*((lab, one) for one in several), *([compare] if compare else [])]
        self.labs = {lab.name: lab}
        if compare and compare[0] is not lab:
            other = compare[0]
            name = other.name if other.name != lab.name else f"{other.name} (2)"
            self.labs[name] = replace(other, name=name)
            pairs[-1] = (self.labs[name], compare[1])
        self.texts = tuple(text_of_generation(one, each, i) for i, (one, each) in enumerate(pairs, 1))
        data = generation_data(self.texts, [1, len(self.texts)] if compare else [1])
        super().__init__(several[0], data, title=f"Generation: {lab.name}", answer=self._answered)

    def _answered(self, kind: str, options: dict) -> dict:
        if choice("request", kind, ("branch", *ANSWERS)) == "branch":
            return self._branch(options)
        return answer_generation(self.texts, kind, options, self.labs.__getitem__)

    def _branch(self, options: dict) -> dict:
        """Write on from an alternative; the new text is one of `texts` from then on."""
        text = numbered(self.texts, options.get("text"))
        stream = TextStream(self.labs[text.name], **branch_options(text, options.get("index"), options.get("token")))
        [new] = texts_of_stream(stream.finished(), 1 + len(self.texts), text.number)
        self.texts = (*self.texts, new)
        return {"text": text_part(new)}

    def _checked(self, selected: Selection) -> Selection:
        longest = max(len(text.tokens) for text in self.texts)
        whole_number("position", selected.position, 0, max(0, longest - 1))
        return selected

    def page(self, *, theme: str = "auto") -> Any:
        """The widget as an offline page, with all branches."""
        self.data = generation_data(self.texts, self.data["shown"])
        return super().page(theme=theme)


def generation_data(texts: Sequence[Text], shown: Sequence[int], **more: Any) -> dict:
    """The view's data: the texts, and the numbers of the one or two that are shown; `more` as `subject`, `writing`."""
    return {"texts": [text_part(text) for text in texts], "shown": list(shown), "corpora": list(DATA), **more}


def text_part(text: Text) -> dict:
    """A text of the view.

    steps  JSON lines, one per token, so that a text that grows is sent by what was added: [token, id, probability, rank,
           entropy in nats, probability under the sampler, removed by the filters, whether the window was shifted,
           [[token, id, probability, probability under the sampler] of each top prediction]]
    """
    generation, names = text.generation, ("number", "name", "V", "kept", "parent", "begin", "spaced")
    sampling = {name: getattr(generation.sampling, name) for name in (*REDRAWN, "repetition_penalty")}
    lines = (_line(token, step) for token, step in zip(text.tokens, generation.steps))
    return {
        **{name: getattr(text, name) for name in names},
        **{name: getattr(generation, name) for name in ("seed", "prompt", "text", "finish", "limit", "precision")},
        "sampling": sampling,
        "steps": "".join(f"{line}\n" for line in lines),
    }


def _line(token: str, step: Step) -> str:
    others = [
        [visible(other.token), other.id, short(other.probability), short(other.sampled_probability)]
        for other in step.alternatives
    ]
    numbers = [short(value) for value in (step.entropy, step.sampled_probability, step.removed)]
    values = [token, step.id, short(step.probability), step.rank, *numbers, int(step.window_shifted), others]
    return json.dumps(values, ensure_ascii=False, separators=(",", ":"))


def short(value: float) -> float:
    """A number to six digits."""
    return float(f"{value:.6g}")


def answer_generation(
    texts: Sequence[Text],
    kind: str,
    options: dict,
    lab_of: Callable[[str], Lab],
    lock: AbstractContextManager = nullcontext(),  # noqa: B008 (holds nothing)
) -> dict:
    """What the view asks for of its texts.

    lab_of  a model by its name · lock  held while a model runs

    Raises: LabError for another request, and for options that are not valid.
    """
    return ANSWERS[choice("request", kind, ANSWERS)](texts, options, lab_of, lock)


def answer_redraw(texts: Sequence[Text], options: dict, *_: Any) -> dict:
    """With what another sampler would draw a token's alternatives, without running a model.

    options  text: a number; index of the token; temperature, top_p, top_k (0: all), min_p
    returns  low, high: bounds for each alternative; chosen: those of the token that was taken; M: top predictions kept of
             the step, share: their probability
    """
    text = numbered(texts, options.get("text"))
    step = step_at(text, options.get("index"))
    settings: dict[str, Any] = {name: options.get(name) for name in REDRAWN}
    low, high = redrawn(step, Sampling(**settings | {"top_k": settings["top_k"] or None}), text.V)
    n, M = len(step.alternatives), len(step.top_logprobs)
    at = step.rank - 1  # among the top predictions; past them none is more probable than the last
    chosen = [float(low[at]), float(high[at])] if at < M else [0.0, float(high[-1])]
    bounds = {"low": low[:n].tolist(), "high": high[:n].tolist(), "chosen": chosen}
    return bounds | {"M": M, "share": float(np.exp(step.top_logprobs).sum())}


def answer_measure(
    texts: Sequence[Text], options: dict, lab_of: Callable[[str], Lab], lock: AbstractContextManager
) -> dict:
    """Statistics of one text or two, with the perplexity of each under each one's model.

    options  texts: their numbers; data: the data set whose training split they may have copied from
    returns  columns: [{number, name, tokens, distinct: 3 shares, repeated, copied, copy, perplexity: {name: value}}]
    """
    numbers, data = options.get("texts"), choice("text", options.get("data"), DATA)
    if not isinstance(numbers, list) or not 1 <= len(numbers) <= MAX_MEASURED:
        raise LabError("the texts to measure must be a list of one number or two")
    chosen = [numbered(texts, number) for number in numbers]
    labs = {text.name: lab_of(text.name) for text in chosen}
    columns = []
    for text in chosen:
        writer = labs[text.name]
        found = measure(writer, text.generation, training=training_ids(writer, data))
        with lock:
            under = {name: perplexity_under(lab, writer, text.generation) for name, lab in labs.items()}
        columns.append({"number": text.number, "name": text.name} | vars(found) | {"perplexity": under})
    return {"columns": columns}


ANSWERS: dict[str, Callable[..., dict]] = {"redraw": answer_redraw, "measure": answer_measure}

"""The Explore tab: one text and the page of its linked views."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

import gradio as gr

from gpt2lab.app.bar import Bar
from gpt2lab.app.events import ALONE, models_of, uncover, user_errors
from gpt2lab.app.inside import build_model_inside
from gpt2lab.app.language import _, said, spoken
from gpt2lab.app.results import ResultCache
from gpt2lab.data import hub
from gpt2lab.errors import LabError, Message
from gpt2lab.pages.explore import explore_answer, explore_data, first_selection
from gpt2lab.results import finite
from gpt2lab.widgets.base import Selection, answered, gradio_html

EXAMPLES = {
    Message("Repeated name"): "Marie Curie discovered polonium in Paris, and Marie Curie discovered radium in Paris.",
    Message("Fact"): "The river Nile flows through Egypt, and the river Thames flows through London.",
    Message("Subject and verb"): "The keys to the old cabinet in the hall are on the table.",
    Message("Previous token"): "The Supreme Court of the United States ruled in New York City on the first day of May.",
    Message("Heading"): """ = Honey bee =

 A honey bee is a social flying insect . Honey bees are known for the nests that they build from wax , for the large size of their colonies , and for the honey that they store .
""",
}
MAX_CHARACTERS = 20_000  # of a visitor's text
PLACE = re.compile("[0-9]{1,6}")


class ExploreTab(NamedTuple):
    """What the app connects to other tabs.

    text    the explored text
    page    the linked views; `page_value` makes its value
    run     the event that explores the text: what `.click` and `.then` take
    follow  the same, but it leaves the page as it is while a model is not downloaded
    """

    text: gr.Textbox
    page: gr.HTML
    run: dict
    follow: dict


def build_explore_tab(results: ResultCache, bar: Bar) -> ExploreTab:
    """Build the tab: a text, and the page of its linked views, drawn with the first example."""
    first = next(iter(EXAMPLES.values()))
    with gr.Row():
        text = gr.Textbox(first, label=_("Text"), lines=2, max_lines=5, scale=6, min_width=220, elem_id="explore-text")
        go = gr.Button(_("Run"), variant="primary", scale=1, min_width=100, elem_id="explore-run")
    with gr.Row(elem_id="explore-examples"):
        examples = [gr.Button(_(title), size="sm", min_width=60, scale=0) for title in EXAMPLES]

    def answer(request: Any) -> dict:
        """What a view asks for after it was drawn."""
        return spoken(
            answered(
                lambda kind, options: asked(results, request, kind, options), *_kind_and_options(request), said=said
            )
        )

    page = gr.HTML(
        page_value(results, "builtin", first, ALONE),
        **gradio_html("explore"),
        apply_default_css=False,
        server_functions=[answer],
        elem_id="explore-page",
    )
    build_model_inside(results.store, bar)

    @user_errors
    def run(label: str, text: str, compare: str) -> dict:
        value = page_value(results, label, text, compare)
        value["selection"].pop("layer"), value["selection"].pop("head")  # the reader's stay
        return value

    @user_errors
    def follow(label: str, text: str, compare: str) -> dict:
        models = models_of(label, compare)
        ready = all(hub.is_downloaded(results.store.location(name)) for name in models)
        return run(label, text, compare) if ready else gr.skip()

    inputs = [bar.model, text, bar.compare]
    run_event = {"fn": run, "inputs": inputs, "outputs": page, "api_visibility": "private", "show_progress": "minimal"}
    uncover(gr.on([go.click, text.submit], **run_event), [page])
    follow_event = run_event | {"fn": follow}  # of a model that is not downloaded, its row says so
    moments = [bar.model.change, bar.compare.change, *(event.then for event in bar.downloaded)]
    for button, example in zip(examples, EXAMPLES.values()):
        filled = button.click(None, None, text, js=f"() => {json.dumps(example)}", api_visibility="private")
        moments.append(filled.then)
    for moment in moments:
        uncover(moment(**follow_event), [page])
    return ExploreTab(text, page, run_event, follow_event)


def linked(results: ResultCache, query: Mapping[str, str]) -> tuple[str, dict]:
    """Return (text, value of the page) of a link. Raises: LabError for a text or models that cannot be explored."""
    label, compare = query.get("model", "builtin"), query.get("compare", ALONE)
    value = page_value(results, label, query["text"], compare)
    named = {
        name: int(query[name]) for name in ("position", "layer", "head", "side") if PLACE.fullmatch(query.get(name, ""))
    }
    value["selection"] = asdict(Selection.of(value["selection"] | named))
    return query["text"], value


def page_value(results: ResultCache, label: str, text: str, compare: str | None) -> dict:
    """The page's value: its data, and the selection that it opens with. Raises: LabError for bad text or models."""
    models = models_of(label, compare)
    found = [results.exploration(name, checked(text)) for name in models]
    first = first_selection(found[0])
    data = explore_data(found, {"text": text, "models": models}, layer=first.layer, head=first.head)
    return {"data": spoken(finite(data)), "selection": asdict(first)}


def checked(text: Any) -> str:
    """A visitor's text. Raises: LabError for an empty or long one."""
    if not isinstance(text, str) or not text:
        raise LabError("the text is empty; type at least one character")
    if len(text) > MAX_CHARACTERS:
        raise LabError(
            "the text has {count:,} characters; the limit is {max_characters:,}: take a part of it",
            count=len(text),
            max_characters=MAX_CHARACTERS,
        )
    return text


def _kind_and_options(request: Any) -> tuple[Any, Any]:
    return (request.get("kind"), request.get("options")) if isinstance(request, dict) else (None, None)


def asked(results: ResultCache, request: Any, kind: str, options: dict) -> dict:
    """What a page asks for, of the models and the text that it shows. Raises: LabError for another subject."""
    subject = request.get("subject") if isinstance(request, dict) else None
    subject = subject if isinstance(subject, dict) else {}
    models = subject.get("models")
    if not isinstance(models, list) or not 1 <= len(models) <= 2:
        raise LabError("the page shows no text yet; press Run first")
    text = checked(subject.get("text"))
    found = [results.exploration(name, text) for name in models]
    labs = [results.store.lab(name) for name in models]
    with results.store.lock:
        return explore_answer(labs, found, kind, options)

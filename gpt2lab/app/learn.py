"""The Learn tab: a guided course, a step at a time, whose questions the live model answers."""

from dataclasses import asdict
from typing import Any, NamedTuple

import gradio as gr

from gpt2lab.app.bar import Bar
from gpt2lab.app.events import ALONE, escaped, uncover, user_errors
from gpt2lab.app.explore import ExploreTab, asked, checked, page_value
from gpt2lab.app.language import _, said, spoken
from gpt2lab.app.learn_content import block_drawing, cost_tables
from gpt2lab.app.results import ResultCache
from gpt2lab.errors import LabError, Message
from gpt2lab.learning.course import COURSE, Step, step_at
from gpt2lab.learning.question import Question
from gpt2lab.widgets.base import Selection, answered, gradio_html

STORED = "gpt2lab-course"  # in the browser's storage
BEGINNING = {"step": 0, "done": []}


class Shown(NamedTuple):
    """What the page asks about: kept on the server, so that an answer is checked against what was asked."""

    number: int = 0
    text: str = COURSE[0].text


class Fields(NamedTuple):
    """The components of a step, from top to bottom."""

    place: gr.Markdown
    steps: gr.Dropdown
    body: gr.Markdown
    question: gr.Markdown
    choices: gr.Radio
    number: gr.Number
    token: gr.Textbox
    check: gr.Button
    result: gr.Markdown
    there: gr.Button
    text: gr.Textbox
    view: gr.HTML
    drawing: gr.HTML
    costs: gr.Markdown


def build_learn_tab(
    tab: gr.Tab,
    tabs: gr.Tabs,
    results: ResultCache,
    bar: Bar,
    explore: ExploreTab,
    prompt: gr.Textbox,
) -> None:
    """Build the course: a step's text, its view and its question; a button shows it in Explore or Generate.

    tab     this tab, whose first step is shown once it is opened
    prompt  of the Generate tab
    """
    progress = gr.BrowserState(BEGINNING, storage_key=STORED, secret=STORED)
    shown, opened = gr.State(Shown()), gr.State(False)
    back, onward, fields = build_fields(results)
    places = [progress, shown, *fields]

    @user_errors
    def show(progress: Any, label: str, compare: str, number: Any = None, by: int = 0, text: Any = None) -> tuple:
        now = known(progress)
        if number is not None:
            step_at(number)
            now["step"] = number
        now["step"] = min(max(now["step"] + by, 0), len(COURSE) - 1)
        return step_values(results, label, compare, now, None if text is None else checked(text))

    @user_errors
    def follow(opened: bool, progress: Any, label: str, compare: str, shown: Shown) -> tuple:
        if not opened:
            return tuple(gr.skip() for _place in places)
        return step_values(results, label, compare, known(progress), shown[1])

    @user_errors
    def check(progress: Any, label: str, shown: Shown, *given: Any) -> tuple:
        return checked_answer(results, label, known(progress), shown, given)

    @user_errors
    def show_there(label: str, compare: str, shown: Shown) -> tuple:
        return elsewhere(results, label, compare, *shown)

    shared = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": 4}
    reading = [progress, bar.model, bar.compare]
    tab.select(lambda *values: (True, *show(*values)), reading, [opened, *places], **shared)
    uncover(fields.steps.input(show, [*reading, fields.steps], places, **shared), places)
    for button, by in ((back, -1), (onward, 1)):
        button.click(lambda *values, by=by: show(*values, None, by), reading, places, **shared)
    own = fields.text.submit(
        lambda *values: show(*values[:3], None, 0, values[3]), [*reading, fields.text], places, **shared
    )
    uncover(own, places)
    for moment in (bar.model.change, bar.compare.change, *(event.then for event in bar.downloaded)):
        moment(follow, [opened, *reading, shown], places, **shared)
    answers = [fields.choices, fields.number, fields.token]
    pressed = [fields.check.click, fields.number.submit, fields.token.submit]
    outputs = [progress, fields.place, fields.result]
    uncover(gr.on(pressed, check, [progress, bar.model, shown, *answers], outputs, **shared), outputs)
    target = [tabs, prompt, explore.text, explore.page]
    uncover(fields.there.click(show_there, [bar.model, bar.compare, shown], target, **shared), target)


def build_fields(results: ResultCache) -> tuple[gr.Button, gr.Button, Fields]:
    """Build (Back, Next, the components of a step)."""

    def answer(request: Any) -> dict:
        """What a view asks for after it was drawn."""
        request = request if isinstance(request, dict) else {}
        found = answered(
            lambda kind, options: asked(results, request, kind, options),
            request.get("kind"),
            request.get("options"),
            said=said,
        )
        return spoken(found)

    titles = [(_("{number}. {title}", number=i + 1, title=step.title), i) for i, step in enumerate(COURSE)]
    with gr.Row(elem_id="learn-head"):
        place = gr.Markdown(elem_id="learn-place")
        steps = gr.Dropdown(titles, value=0, label=_("Step"), elem_id="learn-steps", min_width=260, scale=3)
        back = gr.Button(_("Back"), elem_id="learn-back", min_width=90, scale=0)
        onward = gr.Button(_("Next"), variant="primary", elem_id="learn-next", min_width=90, scale=0)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            body = gr.Markdown(_("Twelve steps, each with a question that the model answers."), elem_id="learn-body")
            question = gr.Markdown(elem_id="learn-question")
            choices = gr.Radio([], label=_("Answer"), visible=False, elem_id="learn-choices")
            number = gr.Number(label=_("Answer"), visible=False, elem_id="learn-number")
            token = gr.Textbox(label=_("Answer"), visible=False, max_lines=1, elem_id="learn-token")
            with gr.Row():
                check = gr.Button(_("Check"), elem_id="learn-check", min_width=100, visible=False)
                there = gr.Button(_("Show this in Explore"), elem_id="learn-there", min_width=180, visible=False)
            result = gr.Markdown(elem_id="learn-result")
        with gr.Column(scale=3, min_width=300):
            text = gr.Textbox(
                label=_("Text"),
                lines=1,
                max_lines=4,
                elem_id="learn-text",
                info=_("Type a text of your own and press Enter."),
            )
            view = gr.HTML(
                None, **gradio_html("course"), apply_default_css=False, server_functions=[answer], elem_id="learn-view"
            )
            drawing = gr.HTML(visible=False, elem_id="learn-block")
    costs = gr.Markdown(visible=False, elem_id="learn-cost")
    return back, onward, Fields(place, steps, body, question, choices, number, token, check, result, there, text, view, drawing, costs)  # fmt: skip


def known(progress: Any) -> dict:
    """The progress that a browser kept: {"step": number, "done": names}; from the beginning where it is none."""
    progress = progress if isinstance(progress, dict) else {}
    step, done = progress.get("step"), progress.get("done")
    names = done if isinstance(done, list) else []
    try:
        step_at(step)
    except LabError:
        step = 0
    return {"step": step, "done": [step.name for step in COURSE if step.name in names]}


def step_values(results: ResultCache, label: str, compare: str, progress: dict, text: str | None = None) -> tuple:
    """(progress, what is asked about, values of Fields) of the step that the progress is at.

    text  in place of the step's own
    """
    number = progress["step"]
    step = COURSE[number]
    text = step.text if text is None or step.fixed else text
    try:
        found = results.exploration(label, text)
        lab = results.store.lab(label)
        with results.store.lock:
            question = step.question(lab, found)
        view, trouble = view_value(results, label, compare, step, text), ""
    except LabError as error:  # the text of the step is worth reading without a model
        question, view, trouble = None, None, escaped(said(error))
    fields = Fields(
        place=place_line(progress),
        steps=number,
        body=f"### {_(step.title)}\n\n{_(step.body)}",
        **question_values(question),
        result=trouble,
        there=gr.Button(
            _("Show this in Explore") if step.tab == "explore" else _("Show this in Generate"),
            visible=question is not None,
        ),
        text=gr.Textbox(text, interactive=not step.fixed),
        view=gr.HTML(view, visible=view is not None),
        drawing=gr.HTML(block_drawing() if step.name == "heads" else "", visible=step.name == "heads"),
        costs=gr.Markdown(cost_tables() if step.name == "limits" else "", visible=step.name == "limits"),
    )
    return progress, Shown(number, text), *fields


def question_values(question: Question | None) -> dict[str, Any]:
    """The components of a question, those of other kinds hidden; all hidden without one."""
    kind = None if question is None else question.kind
    choices = [] if question is None else [(translated(line), value) for line, value in question.choices]
    return {
        "question": "" if question is None else f"**{translated(question.line, escaped)}**",
        "choices": gr.Radio(choices, value=None, visible=kind == "choice"),
        "number": gr.Number(None, visible=kind == "number"),
        "token": gr.Textbox("", visible=kind == "token"),
        "check": gr.Button(visible=kind is not None),
    }


def view_value(results: ResultCache, label: str, compare: str, step: Step, text: str) -> dict:
    """The value of a step's view: the data of the Explore page, the step's selection, and which view it is."""
    value = page_value(results, label, text, compare if step.name == "finetuning" else ALONE)
    place = step.place(results.exploration(label, text))
    return {"data": value["data"] | {"view": step.view, "score": step.score}, "selection": asdict(Selection.of(place))}


def checked_answer(
    results: ResultCache, label: str, progress: dict, shown: Shown, given: tuple
) -> tuple[dict, str, str]:
    """(progress, its line, the explanation) of an answer. Raises: LabError for what is no answer."""
    number, text = shown
    step = COURSE[number]
    found = results.exploration(label, text)
    lab = results.store.lab(label)
    with results.store.lock:
        question = step.question(lab, found)
    answer = dict(zip(("choice", "number", "token"), given))[question.kind]
    right = question.is_right(answer)
    explanation = translated(question.explanation, escaped)
    if right and step.name not in progress["done"]:
        progress = progress | {"done": [*progress["done"], step.name]}
    line = _("✓ Right. {explanation}", explanation=explanation) if right else _("✗ Not quite. {explanation}", explanation=explanation)  # fmt: skip
    return progress, place_line(progress), line


def elsewhere(results: ResultCache, label: str, compare: str, number: int, text: str) -> tuple:
    """Values of (tabs, Generate's prompt, Explore's text, Explore's page) that show a step there."""
    step = COURSE[number]
    if step.tab == "generate":
        return gr.Tabs(selected="generate"), text, gr.skip(), gr.skip()
    value = page_value(results, label, text, compare)
    value["selection"] = asdict(Selection.of(step.place(results.exploration(label, text))))
    return gr.Tabs(selected="explore"), gr.skip(), text, value


def place_line(progress: dict) -> str:
    """Where the reader is, and how many questions are answered."""
    return _(
        "**{number} of {steps}** · {done} answered",
        number=progress["step"] + 1,
        steps=len(COURSE),
        done=len(progress["done"]),
    )


def translated(line: Message, escape: Any = str) -> str:
    """A line in the visitor's language, its values escaped for where it stands."""
    values = {name: escape(spoken(value)) if isinstance(value, str) else value for name, value in line.values.items()}
    return _(line.template, **values)

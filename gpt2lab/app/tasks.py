"""The tasks of the Generate tab: summarise, translate, answer, by the GPT-2 paper's prompts, which can be edited."""

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from gpt2lab.app.events import Stops, uncover, user_errors
from gpt2lab.app.generate_content import DRAW_SECONDS
from gpt2lab.app.models import ModelStore
from gpt2lab.errors import choice
from gpt2lab.generation.recipes import PAIRS, SMALLER, TASKS, Task
from gpt2lab.generation.tasks import Plan, answer_plan, pairs_of, summary_plan, translation_plan
from gpt2lab.model.lab import Lab

TEXTS = {
    "summarize": "The honey bee is a social insect. It lives in a nest of wax, which it builds itself. In summer a colony "
    "has tens of thousands of workers and one queen, which lays all of its eggs. Workers gather nectar, from which they "
    "make honey, and pollen, with which they feed the young. In winter the colony lives on the honey that it has stored.",
    "translate": "The sea is deep.",
    "answer": "The honey bee is a social insect. A colony has one queen, which lays all of its eggs.",
}
EXAMPLES = {
    "summarize": "",
    "translate": "\n".join(" = ".join(pair) for pair in PAIRS),
    "answer": "What is a honey bee? = A social insect.",
}
QUESTION = "Who lays the eggs?"


def build_tasks(store: ModelStore, model: gr.Dropdown) -> None:
    """Build the panel: a task and its text → prompt → the model's answer, as it is written."""
    gr.Markdown(
        "A language model only continues a text. The GPT-2 paper's tasks are texts whose continuation is the answer."
    )
    stops = Stops()
    drafts = gr.State(("summarize", {}))  # (the current task, the fields of the others)
    task = gr.Radio(list(TASKS), value="summarize", label="Task", elem_id="tasks-task")
    text = gr.Textbox(
        TEXTS["summarize"], label="Text", info="A text too long to summarise is split.", lines=6, elem_id="tasks-text"
    )
    question = gr.Textbox(QUESTION, label="Question", visible=False, elem_id="tasks-question")
    examples = gr.Textbox(
        "", label="Examples", info="One pair a line: text = answer", lines=3, visible=False, elem_id="tasks-examples"
    )
    prompt = gr.Textbox(
        TASKS["summarize"].prompt, label="Prompt", info="With its fields in braces.", lines=3, elem_id="tasks-prompt"
    )
    with gr.Row():
        length = gr.Slider(1, 200, 100, step=1, label="Max new tokens", elem_id="tasks-length")
        seed = gr.Number(0, precision=0, label="Seed", info="Of a summary, which is sampled.", elem_id="tasks-seed")
    with gr.Row():
        go = gr.Button("Run", variant="primary", elem_id="tasks-go")
        stop = gr.Button("Stop", elem_id="tasks-stop")
    result = gr.Textbox(label="Result", lines=3, interactive=False, buttons=["copy"], elem_id="tasks-result")
    note = gr.Markdown(elem_id="tasks-note")
    whole = gr.Textbox(label="Prompts and answers", lines=8, interactive=False, elem_id="tasks-whole")

    @user_errors
    def write(
        request: gr.Request,
        label: str,
        task: str,
        text: str,
        question: str,
        examples: str,
        prompt: str,
        length: int,
        seed: int,
    ) -> Iterator[tuple]:
        recipe = recipe_of(task)
        plan = plan_of(store.lab(label), task, text, question, examples, prompt, length, seed)
        with stops.running(request) as flag:
            yield gr.skip(), "Reading the text …", gr.skip()
            drawn, parts, stopped = 0.0, len(plan.streams), ""
            for done in store.locked_steps(plan.stream()):
                if time.monotonic() - drawn > DRAW_SECONDS:
                    drawn, last = time.monotonic(), done.generations[-1]
                    part = f"part {len(done.generations)} of {parts}, " if parts > 1 else ""
                    yield done.text, f"{part}{len(last.steps)} tokens", last.prompt + last.text
                if flag.is_set():
                    stopped = "Stopped. "
                    break
        note = f"{stopped}{recipe.recipe} GPT-2's paper, {recipe.source}: {recipe.expect} {SMALLER}"
        yield done.text, note, "\n\n".join(a + b.text for a, b in zip(done.prompts, done.generations))

    def fill_in(task: str, before: tuple[str, dict], *fields: Any) -> tuple:
        current, saved = before
        saved, recipe = saved | {current: fields}, recipe_of(task)
        defaults = (TEXTS[task], QUESTION, EXAMPLES[task], recipe.prompt, recipe.tokens)
        text, question, examples, prompt, length = saved.get(task, defaults)
        question = gr.Textbox(question, visible=task == "answer")
        return (task, saved), text, question, gr.Textbox(examples, visible=task != "summarize"), prompt, length

    fields = [text, question, examples, prompt, length]
    task.input(
        user_errors(fill_in),
        [task, drafts, *fields],
        [drafts, *fields],
        api_visibility="private",
        api_name="tasks_chosen",
    )
    inputs = [model, task, text, question, examples, prompt, length, seed]
    outputs = [result, note, whole]
    uncover(go.click(write, inputs, outputs, api_name="task", concurrency_limit=4, show_progress="hidden"), outputs)
    stop.click(stops.stop, None, None, api_name="task_stop", show_progress="hidden")


def plan_of(lab: Lab, task: str, text: str, question: str, examples: str, prompt: str, length: int, seed: int) -> Plan:
    """Return the Plan of a task's fields. Raises: LabError as the plans do."""
    shared: dict[str, Any] = {"prompt": prompt, "max_new_tokens": length}
    if task == "summarize":
        return summary_plan(lab, text, seed=seed, **shared)
    shared["examples"] = pairs_of((examples or "").splitlines())
    if task == "translate":
        return translation_plan(lab, text, **shared)
    return answer_plan(lab, text, question, **shared)


def recipe_of(task: str) -> Task:
    """Return a task's recipe. Raises: LabError for an unknown task."""
    choice("task", task, TASKS)
    return TASKS[task]

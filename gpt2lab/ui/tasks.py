"""The Tasks tab: summarise, translate, answer, by the GPT-2 paper's prompts, which can be edited."""

import gradio as gr

from gpt2lab.errors import LabError
from gpt2lab.ui.handling import user_errors
from gpt2lab.ui.shelf import Shelf

# as tasks.TASKS, which takes seconds to import with torch, while a page is being opened
PROMPTS = {
    "summarize": "{text}\nTL;DR:",
    "translate": "{examples}\n{text} =",
    "answer": "{document}\n\n{examples}\nQ: {question}\nA:",
}
TEXTS = {
    "summarize": "The honey bee is a social insect. It lives in a nest of wax, which it builds itself. In summer a colony "
    "has tens of thousands of workers and one queen, which lays all of its eggs. Workers gather nectar, from which they "
    "make honey, and pollen, with which they feed the young. In winter the colony lives on the honey that it has stored.",
    "translate": "The sea is deep.",
    "answer": "The honey bee is a social insect. A colony has one queen, which lays all of its eggs.",
}
EXAMPLES = {
    "summarize": "",
    "translate": "Good morning. = Bonjour.\nWhere is the station? = Où est la gare ?\nThe house is red. = La maison est rouge.",
    "answer": "What is a honey bee? = A social insect.",
}
QUESTION = "Who lays the eggs?"


def build_tasks_tab(shelf: Shelf, model: gr.Dropdown) -> None:
    """A task and its text → prompt → what the model makes of it, as it is written."""
    gr.Markdown(
        "A language model only goes on with a text. The GPT-2 paper's tasks are texts whose continuation is the answer."
    )
    task = gr.Radio(list(PROMPTS), value="summarize", label="Task", elem_id="tasks-task")
    text = gr.Textbox(
        TEXTS["summarize"], label="Text", info="one too long to summarise is split", lines=6, elem_id="tasks-text"
    )
    question = gr.Textbox(QUESTION, label="Question", visible=False, elem_id="tasks-question")
    examples = gr.Textbox(
        "", label="Examples", info="a pair a line: one = other", lines=3, visible=False, elem_id="tasks-examples"
    )
    prompt = gr.Textbox(
        PROMPTS["summarize"], label="Prompt", info="with its places in braces", lines=3, elem_id="tasks-prompt"
    )
    with gr.Row():
        length = gr.Slider(1, 200, 100, step=1, label="New tokens, at most", elem_id="tasks-length")
        seed = gr.Number(0, precision=0, label="Seed", info="of a summary, which is drawn", elem_id="tasks-seed")
    with gr.Row():
        go = gr.Button("Go", variant="primary", elem_id="tasks-go")
        stop = gr.Button("Stop", elem_id="tasks-stop")
    result = gr.Textbox(label="Result", lines=3, interactive=False, buttons=["copy"], elem_id="tasks-result")
    note = gr.Markdown(elem_id="tasks-note")
    whole = gr.Textbox(label="All that was read and written", lines=8, interactive=False, elem_id="tasks-whole")

    @user_errors
    def write(label, task, text, question, examples, prompt, length, seed):
        from gpt2lab.generation import collect, steps_of
        from gpt2lab.tasks import SMALLER, TASKS

        plan = plan_of(shelf.lab(label), task, text, question, examples, prompt, length, seed)
        done = []
        for i, asked in enumerate(plan.requests):
            part = f"part {i + 1} of {len(plan.requests)}, " if len(plan.requests) > 1 else ""
            taken = []
            for step in shelf.each(steps_of(asked)):
                taken.append(step)
                written = asked.prompt + collect(asked, taken).text
                yield plan.done(done).text, f"{part}{len(taken)} tokens", written
            done.append(collect(asked, taken))
        found = plan.done(done)
        recipe = TASKS[task]
        note = f"{recipe.recipe} GPT-2's paper, {recipe.source}: {recipe.expect} {SMALLER}"
        yield found.text, note, "\n\n".join(a + b.text for a, b in zip(found.prompts, found.generations))

    def chosen(task):
        if task not in PROMPTS:
            raise LabError(f"task {str(task)[:40]!r} is unknown; use {', '.join(PROMPTS)}")
        pairs = gr.Textbox(EXAMPLES[task], visible=task != "summarize")
        return (
            TEXTS[task],
            gr.Textbox(visible=task == "answer"),
            pairs,
            PROMPTS[task],
            {"summarize": 100, "translate": 60, "answer": 40}[task],
        )

    fields = [text, question, examples, prompt, length]
    task.input(user_errors(chosen), task, fields, api_visibility="private", api_name="tasks_chosen")
    asked = [model, task, text, question, examples, prompt, length, seed]
    running = go.click(write, asked, [result, note, whole], api_name="task", concurrency_limit=4)
    halted = stop.click(None, None, None, cancels=running, api_name="task_stop")
    halted.then(lambda: "Stopped.", None, note, api_visibility="private")


def plan_of(lab, task: str, text: str, question: str, examples: str, prompt: str, length: int, seed: int):
    """The Plan of what the fields ask for. Raises: LabError for a task that does not exist, and as the plans do."""
    from gpt2lab.tasks import answer_plan, pairs_of, summary_plan, translation_plan

    shared = {"prompt": prompt, "max_new_tokens": length}
    match task:
        case "summarize":
            return summary_plan(lab, text, seed=seed, **shared)
        case "translate":
            return translation_plan(lab, text, examples=pairs_of(examples.splitlines()), **shared)
        case "answer":
            return answer_plan(lab, text, question, examples=pairs_of(examples.splitlines()), **shared)
    raise LabError(f"task {str(task)[:40]!r} is unknown; use {', '.join(PROMPTS)}")

"""The Fine-tune tab: settings → what a run would cost, and its start; below, the runs there are. Knows jobs."""

import gradio as gr

from gpt2lab.errors import LabError
from gpt2lab.sources import DATA
from gpt2lab.training import jobs
from gpt2lab.training.config import METHODS, TrainConfig
from gpt2lab.ui.handling import user_errors
from gpt2lab.ui.runs import build_runs, run_ids
from gpt2lab.ui.shelf import Shelf


def build_finetune_tab(page: gr.Blocks, shelf: Shelf, model: gr.Dropdown, dark: gr.Checkbox) -> None:
    """Settings → a run."""
    gr.Markdown(
        "Training goes on from the model chosen above, on the train split of a text; the validation split, which it "
        "never trains on, tells whether it has learned. A run goes on when this page is closed."
    )
    with gr.Row():
        data = gr.Dropdown(list(DATA), value="sample", label="Text", elem_id="finetune-data", min_width=160)
        method = gr.Dropdown(list(METHODS), value="full", label="Method", elem_id="finetune-method", min_width=120)
        steps = gr.Slider(1, 2000, 80, step=1, label="Steps", elem_id="finetune-steps", min_width=160)
        rate = gr.Number(5e-4, label="Learning rate", info="5e-5 suits gpt2", elem_id="finetune-rate", min_width=140)
        seed = gr.Number(0, precision=0, label="Seed", elem_id="finetune-seed", min_width=100)
    with gr.Accordion("More settings", open=False, elem_id="finetune-more"), gr.Row():
        batch, accumulate, patience = (
            gr.Number(value, precision=0, label=label, info=info, elem_id=f"finetune-{name}", min_width=140)
            for name, value, label, info in (
                ("batch", 8, "Blocks per forward pass", "what memory allows"),
                ("accumulate", 1, "Forward passes per step", "blocks per step = the two multiplied"),
                ("patience", 3, "Patience", "validations without a better one; 0: to the last step"),
            )
        )
        queue = gr.Checkbox(False, label="Wait for the run that is under way", elem_id="finetune-queue", min_width=140)
    with gr.Row():
        start = gr.Button("Fine-tune", variant="primary", elem_id="finetune-start", min_width=120)
        price = gr.Button("What would it cost?", elem_id="finetune-price", min_width=120)
    cost = gr.Markdown(elem_id="finetune-cost")
    shown = build_runs(page, shelf, model, dark)

    @user_errors
    def begin(queue, *asked):
        folder = jobs.start(settings(shelf, *asked), shelf.runs_dir, queue=queue is True)
        return gr.Dropdown(choices=run_ids(shelf), value=[folder.name]), ""

    @user_errors
    def estimate(*asked):
        told = jobs.price(settings(shelf, *asked), shelf.runs_dir)
        return "\n".join(f"- {name}: **{value}**" for name, value in told.items())

    asked = [model, data, method, steps, rate, seed, batch, accumulate, patience]
    start.click(begin, [queue, *asked], [shown, cost], api_name="finetune", concurrency_limit=8)
    price.click(estimate, asked, cost, api_name="finetune_cost")


def settings(shelf: Shelf, label, data, method, steps, rate, seed, batch, accumulate, patience) -> TrainConfig:
    """What a visitor asks for, as a run is told it. Raises: LabError for what is not offered or out of range."""
    if data not in DATA:
        raise LabError(f"text {str(data)[:80]!r} is not offered here; choose one of {', '.join(DATA)}")
    return TrainConfig(
        model=shelf.location(label),
        data=data,
        method=method,
        steps=steps,
        learning_rate=rate,
        seed=seed,
        batch_size=batch,
        grad_accum=accumulate,
        patience=patience,
    )

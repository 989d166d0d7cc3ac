"""The Fine-tune tab: settings → what a run would cost, and its start; below, the runs there are. Knows jobs."""

import gradio as gr

from gpt2lab.errors import LabError
from gpt2lab.sources import DATA
from gpt2lab.training import jobs
from gpt2lab.training.config import METHODS, OPTIONAL, PRECISIONS, TrainConfig
from gpt2lab.ui.handling import user_errors
from gpt2lab.ui.runs import build_runs, run_ids
from gpt2lab.ui.shelf import Shelf

DEFAULT = TrainConfig()
NUMBERS = {  # of TrainConfig, under "More settings": what they are called, and what is good to know of them
    "batch_size": ("Blocks per forward pass", "what memory allows"),
    "grad_accum": ("Forward passes per step", "blocks per step: the two multiplied"),
    "block_size": ("Tokens per block", "0: 256, or the model's context"),
    "warmup": ("Warm-up", "share of the steps; then a cosine to 0"),
    "eval_every": ("Steps between validations", "0: ten validations in all"),
    "patience": ("Patience", "validations without a better one; 0: to the last step"),
    "lora_rank": ("LoRA rank", "of the additions; for lora alone"),
}


def build_finetune_tab(page: gr.Blocks, shelf: Shelf, model: gr.Dropdown, dark: gr.Checkbox) -> None:
    """Settings → a run."""
    gr.Markdown(
        "Training goes on from the model chosen above, on the train split of a text; the validation split, which it "
        "never trains on, tells whether it has learned. A run goes on when this page is closed."
    )
    with gr.Row():
        asked = {
            "data": gr.Dropdown(list(DATA), value="sample", label="Text", elem_id="finetune-data", min_width=160),
            "method": gr.Dropdown(
                list(METHODS),
                value=DEFAULT.method,
                label="Method",
                info="lora trains less, scratch from random weights",
                elem_id="finetune-method",
                min_width=140,
            ),
            "steps": gr.Slider(1, 2000, 80, step=1, label="Steps", elem_id="finetune-steps", min_width=160),
            "learning_rate": gr.Number(
                DEFAULT.learning_rate,
                label="Learning rate",
                info="5e-5 suits gpt2",
                elem_id="finetune-rate",
                min_width=140,
            ),
            "seed": gr.Number(DEFAULT.seed, precision=0, label="Seed", elem_id="finetune-seed", min_width=100),
        }
    with gr.Accordion("More settings", open=False, elem_id="finetune-more"):
        with gr.Row():
            for name, (label, info) in NUMBERS.items():
                value = getattr(DEFAULT, name) or 0
                whole = {"precision": 0} if isinstance(value, int) else {}
                asked[name] = gr.Number(
                    value, label=label, info=info, elem_id=f"finetune-{name}", min_width=200, **whole
                )
            asked["precision"] = gr.Dropdown(
                list(PRECISIONS),
                value=DEFAULT.precision,
                label="Precision",
                info="auto: bf16 on a GPU that has it",
                elem_id="finetune-precision",
                min_width=200,
            )
        asked["prompt"] = gr.Textbox(
            "",
            label="Prompt of the texts written along the way",
            info="empty: the first words of the validation text",
            elem_id="finetune-prompt",
        )
        queue = gr.Checkbox(False, label="Wait for the run that is under way", elem_id="finetune-queue")
    with gr.Row():
        start = gr.Button("Fine-tune", variant="primary", elem_id="finetune-start", min_width=120)
        price = gr.Button("What would it cost?", elem_id="finetune-price", min_width=120)
    cost = gr.Markdown(elem_id="finetune-cost")
    shown = build_runs(page, shelf, model, dark)

    def told(label, *values) -> TrainConfig:
        return settings(shelf, label, **dict(zip(asked, values)))

    @user_errors
    def begin(queue, *values):
        folder = jobs.start(told(*values), shelf.runs_dir, queue=queue is True)
        return gr.Dropdown(choices=run_ids(shelf), value=[folder.name])

    @user_errors
    def estimate(*values):
        lines = jobs.price(told(*values), shelf.runs_dir)
        return "\n".join(f"- {name}: **{value}**" for name, value in lines.items())

    inputs = [model, *asked.values()]
    start.click(begin, [queue, *inputs], shown, api_name="finetune", concurrency_limit=8)
    price.click(estimate, inputs, cost, api_name="finetune_cost")


def settings(shelf: Shelf, label: str, *, data, prompt, **told) -> TrainConfig:
    """What a visitor asks for, as a run is told it. Raises: LabError for what is not offered or out of range."""
    if data not in DATA:
        raise LabError(f"text {str(data)[:80]!r} is not offered here; choose one of {', '.join(DATA)}")
    chosen_later = {name: None for name in NUMBERS if name in OPTIONAL and told[name] == 0}
    return TrainConfig(model=shelf.location(label), data=data, prompt=prompt or None, **told | chosen_later)

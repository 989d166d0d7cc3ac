"""The Train tab: settings → cost estimate and start of a run; below, the list of runs."""

from typing import Any

import gradio as gr

from gpt2lab.app.download import Downloads, build_download
from gpt2lab.app.events import escaped, user_errors
from gpt2lab.app.models import ModelStore
from gpt2lab.app.runs import build_runs, run_ids
from gpt2lab.data import hub
from gpt2lab.data.sources import DATA
from gpt2lab.errors import LabError, choice
from gpt2lab.training import jobs
from gpt2lab.training.config import METHODS, OPTIONAL, PRECISIONS, TrainConfig, parse_eval_tokens
from gpt2lab.training.defaults import defaults_for, named_parameters

DEFAULT = TrainConfig()
NUMBERS = {  # of TrainConfig, under "More settings": label and help; 0 means the default where there is one
    "batch_size": ("Blocks per forward pass", "As many as memory allows. 0: default."),
    "grad_accum": ("Forward passes per step", "Blocks per step is the product of the two. 0: default."),
    "block_size": ("Tokens per block", "At most the model's context. 0: default."),
    "warmup": ("Warm-up", "Share of the steps; a cosine to 0 follows."),
    "eval_every": ("Steps between validations", "0: at most ten validations."),
    "patience": ("Patience", "Validations without improvement before the run ends. 0: never."),
    "lora_rank": ("LoRA rank", "Used by lora only."),
}


def build_finetune_tab(
    page: gr.Blocks, store: ModelStore, model: gr.Dropdown, dark: gr.Checkbox, downloads: Downloads
) -> None:
    """Build the tab: settings → a run."""
    gr.Markdown(
        "Training starts from the model chosen above, on the train split of a text. The validation split, which is "
        "never trained on, shows what the model has learned. A run continues when this page is closed."
    )
    with gr.Row():
        fields = {
            "data": gr.Dropdown(list(DATA), value="sample", label="Text", elem_id="finetune-data", min_width=160),
            "method": gr.Dropdown(
                list(METHODS),
                value=DEFAULT.method,
                label="Method",
                info="lora trains few weights; scratch starts from random ones.",
                elem_id="finetune-method",
                min_width=140,
            ),
            "steps": gr.Slider(1, 2000, 80, step=1, label="Steps", elem_id="finetune-steps", min_width=160),
            "learning_rate": gr.Number(
                DEFAULT.learning_rate or 0,
                label="Learning rate",
                info="0: default for the model and method.",
                elem_id="finetune-rate",
                min_width=140,
            ),
            "seed": gr.Number(DEFAULT.seed, precision=0, label="Seed", elem_id="finetune-seed", min_width=100),
        }
    build_download(downloads, fields["data"], "finetune-data")
    with gr.Accordion("More settings", open=False, elem_id="finetune-more"):
        with gr.Row():
            for name, (label, info) in NUMBERS.items():
                value = getattr(DEFAULT, name) or 0
                whole = {"precision": 0} if isinstance(value, int) else {}
                fields[name] = gr.Number(
                    value, label=label, info=info, elem_id=f"finetune-{name}", min_width=200, **whole
                )
            fields["precision"] = gr.Dropdown(
                list(PRECISIONS),
                value=DEFAULT.precision,
                label="Precision",
                info="auto: bf16 where the processor has it.",
                elem_id="finetune-precision",
                min_width=200,
            )
            fields["eval_tokens"] = gr.Textbox(
                "",
                label="Validation tokens",
                info="Per validation: a number, or all. Empty: a tenth of the training time.",
                elem_id="finetune-eval_tokens",
                min_width=200,
            )
        fields["prompt"] = gr.Textbox(
            "",
            label="Sample prompt",
            info="Of the texts written during training. Empty: the first words of the validation text.",
            elem_id="finetune-prompt",
        )
        queue = gr.Checkbox(False, label="Queue after the active run", elem_id="finetune-queue")
    defaults = gr.Markdown(elem_id="finetune-defaults")
    with gr.Row():
        start = gr.Button("Fine-tune", variant="primary", elem_id="finetune-start", min_width=120)
        price = gr.Button("Estimate cost", elem_id="finetune-price", min_width=120)
    cost = gr.Markdown(elem_id="finetune-cost")
    selected = build_runs(page, store, model, dark)

    def config_of(label: str, *values: Any) -> TrainConfig:
        return settings(store, label, **dict(zip(fields, values)))

    @user_errors
    def begin(queue: bool, *values: Any) -> gr.Dropdown:
        folder = jobs.start_run(config_of(*values), store.runs_dir, queue=queue is True)
        return gr.Dropdown(choices=run_ids(store), value=[folder.name])

    @user_errors
    def estimate(*values: Any) -> str:
        lines = jobs.estimate_cost_in_worker(config_of(*values), store.runs_dir)
        return "\n".join(f"- {name}: **{value}**" for name, value in lines.items())

    @user_errors
    def show_defaults(label: str, method: str) -> str:
        return defaults_line(label, store.location(label), method)

    hidden = {"show_progress": "hidden", "api_visibility": "private"}
    for change in (model.change, fields["method"].change, page.load):
        change(show_defaults, [model, fields["method"]], defaults, **hidden)
    inputs = [model, *fields.values()]
    start.click(begin, [queue, *inputs], selected, api_name="finetune", concurrency_limit=8)
    price.click(estimate, inputs, cost, api_name="finetune_cost")


def defaults_line(label: str, location: str, method: str) -> str:
    """Say what a run of a model uses for settings that are not given. Raises: LabError for an unknown method."""
    chosen = defaults_for(method, named_parameters(location))
    return f"Defaults for {escaped(label)}, {method}: {chosen} ({chosen.source})."


def settings(
    store: ModelStore, label: str, *, data: str, prompt: str, eval_tokens: str | None, **options: Any
) -> TrainConfig:
    """Return a visitor's settings as a TrainConfig. Raises: LabError for a choice that is not offered or out of range."""
    choice("text", data, DATA)
    if eval_tokens is not None and not isinstance(eval_tokens, str):
        raise LabError(
            "eval_tokens {eval_tokens!r} is unknown; use a whole number or all", eval_tokens=str(eval_tokens)[:40]
        )
    chosen_later = {name: None for name, value in options.items() if name in OPTIONAL and value == 0}
    options |= {"data": data, "prompt": prompt or None, "eval_tokens": parse_eval_tokens(eval_tokens)}
    for name in (model := store.location(label), data):
        hub.require_downloaded(name)
    return TrainConfig(model=model, **options | chosen_later)

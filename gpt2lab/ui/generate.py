"""The Generate tab: text as it is written, token by token, and what each token was chosen from."""

import time

import gradio as gr

from gpt2lab.ui.handling import user_errors
from gpt2lab.ui.shelf import Shelf

EXAMPLES = ["The moon is", "In 1867, Marie Curie was born in", "The river Nile flows through", " = Coffee = \n"]
MAX_NEW_TOKENS = 512
DRAW_SECONDS = 0.05  # between redraws: faster than that a browser only falls behind


def build_generate_tab(shelf: Shelf, model: gr.Dropdown) -> None:
    """Prompt and sampling → streamed text, and a table of its steps."""
    gr.Markdown(
        "The model gives every token of its vocabulary a probability; sampling chooses one, and the next begins."
    )
    with gr.Row():
        with gr.Column(scale=3, min_width=280):
            prompt = gr.Textbox(EXAMPLES[0], label="Prompt", lines=3, elem_id="generate-prompt")
            gr.Examples(EXAMPLES, prompt, elem_id="generate-examples")
            with gr.Row():
                go = gr.Button("Generate", variant="primary", elem_id="generate-go", min_width=120)
                stop = gr.Button("Stop", elem_id="generate-stop", min_width=100)
        with gr.Column(scale=2, min_width=280):
            length = gr.Slider(1, MAX_NEW_TOKENS, 80, step=1, label="New tokens, at most", elem_id="generate-length")
            temperature = gr.Slider(
                0,
                2,
                0.8,
                step=0.05,
                label="Temperature",
                info="0 takes the most probable token",
                elem_id="generate-temp",
            )
            top_p = gr.Slider(
                0.05, 1, 0.95, step=0.05, label="Top-p", info="1 keeps all tokens", elem_id="generate-top-p"
            )
            top_k = gr.Number(0, precision=0, label="Top-k", info="0 keeps all tokens", elem_id="generate-top-k")
            seed = gr.Number(0, precision=0, label="Seed", info="the same seed, the same text", elem_id="generate-seed")
    text = gr.Textbox(label="Text", lines=8, interactive=False, buttons=["copy"], elem_id="generate-text")
    note = gr.Markdown(elem_id="generate-note")
    with gr.Accordion("What each token was chosen from", open=False):
        steps_table = gr.Dataframe(
            headers=["token", "probability", "rank", "entropy (nats)", "the model's favourites"],
            column_count=5,
            interactive=False,
            show_label=False,
            elem_id="generate-steps",
        )

    @user_errors
    def stream(label, prompt, length, temperature, top_p, top_k, seed):
        from gpt2lab.sampling import Sampling, collect, request, steps_of, text_of

        sampling = Sampling(temperature=temperature, top_k=top_k or None, top_p=top_p, seed=seed)
        lab = shelf.lab(label)
        asked = request(lab, prompt, max_new_tokens=length, sampling=sampling)
        steps, began, drawn = [], time.monotonic(), 0.0
        for step in shelf.each(steps_of(asked)):
            steps.append(step)
            now = time.monotonic()
            if now - drawn > DRAW_SECONDS:
                drawn = now
                yield prompt + text_of(lab, steps), f"{len(steps)} tokens", gr.skip()
        done = collect(asked, steps)
        speed = len(steps) / (time.monotonic() - began)
        yield prompt + done.text, f"{len(steps)} tokens, {speed:,.0f} a second; {ENDINGS[done.finish]}", step_rows(done)

    asked = [model, prompt, length, temperature, top_p, top_k, seed]
    clicked = go.click(stream, asked, [text, note, steps_table], api_name="generate", concurrency_limit=4)
    submitted = prompt.submit(stream, asked, [text, note, steps_table], api_name="generate_submit", concurrency_limit=4)
    halted = stop.click(None, None, None, cancels=[clicked, submitted], api_name="generate_stop")
    halted.then(lambda: "Stopped.", None, note, api_visibility="private")


ENDINGS = {
    "end of text": "the model ended the text.",
    "stop string": "a stop string came.",
    "length": "the length asked for is reached.",
    "context": "the model's context is full.",
    "stopped": "stopped.",
}


def step_rows(generation) -> list[list]:
    """A row per generated token, for the table."""
    return [
        [
            repr(step.token),
            f"{step.probability:.4f}",
            step.rank,
            f"{step.entropy:.3f}",
            ", ".join(f"{option.token!r} {option.probability:.3f}" for option in step.alternatives[:5]),
        ]
        for step in generation.steps
    ]

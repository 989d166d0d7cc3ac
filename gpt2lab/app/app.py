"""The page: its shared fields, its tabs, and the server."""

import os
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported: no request leaves this machine

import gradio as gr
from transformers.utils import logging

from gpt2lab.app.download import Downloads, build_download
from gpt2lab.app.evaluate import build_evaluate_tab
from gpt2lab.app.events import ALONE, IS_DARK, escaped, uncover, user_errors
from gpt2lab.app.explore import build_explore_tab
from gpt2lab.app.generate import build_generate_tab
from gpt2lab.app.learn import build_learn_tab
from gpt2lab.app.models import ModelStore
from gpt2lab.app.results import ResultCache
from gpt2lab.app.tasks import build_tasks
from gpt2lab.app.train import build_train_tab
from gpt2lab.data import hub
from gpt2lab.data.sources import auto_choice
from gpt2lab.errors import LabError
from gpt2lab.training.allocator import return_freed_memory

INTRO = """# gpt2lab
See what happens inside GPT-2, fine-tune it, and see what changed."""
CSS = """
.gradio-container { max-width: 1400px !important; margin: auto !important; }
.tab-wrapper { contain: inline-size; } /* else a row of many tabs widens the page on a phone, and none are folded */
@media (max-width: 600px) { /* all tabs in sight */
  .tab-wrapper button { padding: 0 7px !important; font-size: 14px !important; }
}
#bar h1 { margin: 0; } #status { font-size: 13px; }
#explore-page .html-container, #finetune-preview .html-container { padding: 0; }
#train-runs .html-container, #train-curves .html-container, #train-rundetails .html-container { padding: 0; }
 #explore-run { align-self: end; }
.table { overflow-x: auto; contain: inline-size; }
#learn-cost { overflow-x: auto; contain: inline-size; }
#learn-cost td, #learn-cost th { min-width: 110px; overflow-wrap: normal; word-break: normal; }
#learn-block { overflow-x: auto; contain: inline-size; }
.table-wrap { overflow-x: auto; max-width: calc(100vw - 100px); } /* else a table widens the page on a phone */
"""
FONTS = ["system-ui", "sans-serif"]
MAX_THREADS = 16  # that run handlers: models run one at a time, the others wait or read files
MAX_SESSIONS = 64  # pages whose state is held; each takes about a megabyte


def build_app(runs_dir: str | Path = "runs") -> gr.Blocks:
    """Build the page. Runs started in it, and their models, are in `runs_dir`."""
    store = ModelStore(Path(runs_dir))
    results = ResultCache(store)
    with gr.Blocks(title="gpt2lab", analytics_enabled=False, delete_cache=(3600, 86400)) as demo:
        dark = gr.Checkbox(visible=False)
        with gr.Row(elem_id="bar"):
            with gr.Column(scale=3, min_width=220):
                gr.Markdown(INTRO)
            with gr.Column(scale=2, min_width=220):
                model = gr.Dropdown(store.labels(), value="builtin", label="Model", elem_id="model")
        status = gr.Markdown(elem_id="status")
        downloads = Downloads()
        downloaded = build_download(downloads, model, "model")
        with gr.Tabs() as tabs:
            with gr.Tab("Explore", id="explore", elem_id="tab-explore"):
                explore = build_explore_tab(demo, results, tabs, model)
            with gr.Tab("Generate", id="generate", elem_id="tab-generate"):
                generate = build_generate_tab(store, model)
                with gr.Accordion("Tasks: summarise, translate, answer", open=False, elem_id="tasks"):
                    build_tasks(store, model)
            with gr.Tab("Train", id="train", elem_id="tab-train"):
                build_train_tab(demo, store, model, explore.compare, downloads)
            with gr.Tab("Evaluate", id="evaluate", elem_id="tab-evaluate"):
                other = build_evaluate_tab(results, model, dark, downloads)
            with gr.Tab("Learn", elem_id="tab-learn"):
                build_learn_tab(tabs)
        carried = generate.look.click(
            lambda *texts: (gr.Tabs(selected="explore"), next(filter(None, texts), "")),
            generate.texts,
            [tabs, explore.text],
            api_visibility="private",
        )
        uncover(carried.then(**explore.run, api_visibility="private"), [explore.run["outputs"]])

        @user_errors
        def describe(label: str) -> str:
            return model_line(store, label)

        @user_errors
        def arrive(label: str) -> tuple:
            labels = store.labels()
            others = gr.Dropdown(choices=[ALONE, *labels])
            line = f"{model_line(store, label)} {auto_line()}"
            return gr.Dropdown(choices=labels), *([others] * 3), line

        model.change(describe, model, status, api_name="describe_model")
        downloaded.then(describe, model, status, api_visibility="private")
        uncover(downloaded.then(**explore.follow, api_visibility="private"), [explore.run["outputs"]])
        demo.load(
            arrive,
            model,
            [model, other, explore.compare, generate.other, status],
            api_visibility="private",
        )
        demo.load(None, None, dark, js=IS_DARK)

        def leave(request: gr.Request) -> None:
            forget_session(demo, request.session_hash)

        demo.unload(leave)
    demo.queue(api_open=False, max_size=32)
    return demo


def forget_session(page: gr.Blocks, session: str) -> None:
    """Drop what gradio holds for a page that was closed: its state, and a copy of every component's configuration.

    gradio itself keeps the state for an hour, and the copies until `state_session_capacity` others have come.
    """
    page.state_holder.session_data.pop(session, None)


def model_line(store: ModelStore, label: str) -> str:
    """Describe a model in a line, loading it if it is on this machine."""
    if not hub.is_downloaded(store.location(label)):
        return ""  # the row of its download says so
    lab = store.lab(label)
    notes = "".join(f" {escaped(note)}" for note in lab.notes)
    return f"**{label}**: {lab.shape}, on {lab.device.type}.{notes}"


def auto_line() -> str:
    """Say which model and text this machine suits, and why."""
    choice = auto_choice()
    return f"Suits this machine: {choice.model} with {choice.data} ({choice.reason})."


def serve(demo: gr.Blocks, *, block: bool = True, host: str | None = None, port: int | None = None) -> str:
    """Serve a page, and return its address at once where `block` is false.

    host, port  gradio's defaults: 127.0.0.1, or GRADIO_SERVER_NAME; the first free port from 7860 on

    Raises: LabError where the port is taken.
    """
    return_freed_memory()
    logging.disable_progress_bar()  # of loaded weights: nobody reads it
    try:
        url = _launch(demo, host, port)
    except OSError as error:
        raise LabError(
            "the page cannot be served at {value}:{port} ({error}); try another --port",
            value=host or "127.0.0.1",
            port=port,
            error=error,
        ) from error
    print(f"gpt2lab is at {url}", flush=True)
    if block:
        demo.block_thread()
    return url


def _launch(demo: gr.Blocks, host: str | None, port: int | None) -> str:
    _, url, _ = demo.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        show_error=False,
        run_history=False,
        enable_monitoring=False,
        max_file_size="16mb",
        max_threads=MAX_THREADS,
        state_session_capacity=MAX_SESSIONS,
        footer_links=[],
        theme=gr.themes.Default(primary_hue="indigo", font=FONTS, font_mono=["ui-monospace", "monospace"]),
        css=CSS,
    )
    return url

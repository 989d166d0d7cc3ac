"""The page: its shared fields, its tabs, and the server."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported: no request leaves this machine

import gradio as gr
from starlette.middleware import Middleware
from transformers.utils import logging

from gpt2lab.app.api import build_api
from gpt2lab.app.api_runs import training_by_default
from gpt2lab.app.bar import Bar, build_bar, labels_of, second_choices, status_line
from gpt2lab.app.download import Downloads
from gpt2lab.app.evaluate import build_evaluate_tab
from gpt2lab.app.events import uncover, user_errors
from gpt2lab.app.explore import ExploreTab, build_explore_tab, linked
from gpt2lab.app.generate import build_generate_tab
from gpt2lab.app.language import TEXTS, StartScript, _
from gpt2lab.app.learn import build_learn_tab
from gpt2lab.app.models import ModelStore
from gpt2lab.app.results import ResultCache
from gpt2lab.app.train import build_train_tab
from gpt2lab.errors import LabError
from gpt2lab.training.allocator import return_freed_memory

CSS = """
.gradio-container { width: 100%; max-width: 1400px !important; margin: auto !important; }
#tab-train .html-container { padding: 0; contain: inline-size; }
.tab-wrapper { contain: inline-size; } /* else a row of many tabs widens the page on a phone, and none are folded */
@media (max-width: 600px) { /* all tabs in sight */
  .tab-wrapper button { padding: 0 7px !important; font-size: 14px !important; }
  #bar > .form { order: 3; }
}
#bar { align-items: center; } #title { flex: 0 0 auto; width: auto; } #title h1 { margin: 0; }
#bar > .form { flex: 1 1 300px; } #bar input { padding-right: 24px; text-overflow: ellipsis; } #theme, #language { white-space: nowrap; }
#status { font-size: 13px; }
#explore-examples { gap: 6px; } #explore-examples button { flex: 0 0 auto; }
#generate-presets { gap: 6px; } #generate-presets button { flex: none; width: auto; min-width: 0; font-weight: 400; white-space: nowrap; }
#explore-page .html-container, #explore-history .html-container, #generate-page .html-container { padding: 0; } #explore-run { align-self: end; }
.table { overflow-x: auto; contain: inline-size; }
.table table { width: 100%; border: 0 !important; border-collapse: collapse; font-variant-numeric: tabular-nums; }
.table tr { border: 0 !important; } .table th, .table td { text-align: left !important; vertical-align: top; padding: 5px 10px !important; border: 0 !important;
  border-bottom: 1px solid var(--border-color-primary) !important; }
.figures small { display: block; font-weight: 400; opacity: .75; } .figures caption { text-align: left; }
.figures td, .figures th { min-width: 96px; } .figures .how { min-width: 240px; } .figures .how p { margin: 0; font-size: 12px; }
#evaluate-table .html-container, #evaluate-share-table .html-container { padding: 0; } #evaluate-share-table .html-container { max-height: 420px; overflow-y: auto; } #evaluate-ask, #evaluate-files { align-items: end; }
#learn-cost, #learn-block { overflow-x: auto !important; contain: inline-size; } /* gradio sets their overflow in place */
#learn-cost td, #learn-cost th { min-width: 110px; overflow-wrap: normal; word-break: normal; }
#learn-view .html-container { padding: 0; } #learn-head { align-items: center; } #learn-place { flex: 0 0 auto; width: auto; }
.table-wrap { overflow-x: auto; max-width: calc(100vw - 100px); } /* else a table widens the page on a phone */
"""
FONTS = ["system-ui", "sans-serif"]
MAX_THREADS = 16  # that run handlers: models run one at a time, the others wait or read files
MAX_SESSIONS = 64  # pages whose state is held; each takes about a megabyte


def build_app(runs_dir: str | Path = "runs", *, training: bool | None = None) -> gr.Blocks:
    """Build the page. Runs started in it, and their models, are in `runs_dir`.

    training  whether visitors may train; None: as `training_by_default`
    """
    training_allowed = training_by_default() if training is None else training
    store, downloads = ModelStore(Path(runs_dir)), Downloads()
    results = ResultCache(store)
    with gr.Blocks(title="gpt2lab", analytics_enabled=False, delete_cache=(3600, 86400)) as demo:
        build_api(results, training_allowed)  # first, so that no handler of the page takes a name of its endpoints
        bar = build_bar(demo, store, downloads)
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab(_("Explore"), id="explore", elem_id="tab-explore"):
                explore = build_explore_tab(results, bar)
            with gr.Tab(_("Generate"), id="generate", elem_id="tab-generate") as tab:
                generate = build_generate_tab(store, bar, tab)
            with gr.Tab(_("Train"), id="train", elem_id="tab-train") as train:
                build_train_tab(demo, train, store, bar, downloads, training_allowed=training_allowed)
            with gr.Tab(_("Evaluate"), id="evaluate", elem_id="tab-evaluate") as evaluate:
                build_evaluate_tab(evaluate, results, bar, downloads)
            with gr.Tab(_("Learn"), id="learn", elem_id="tab-learn") as learn:
                build_learn_tab(learn, tabs, results, bar, explore, generate.prompt)
        carried = generate.look.click(
            lambda text: (gr.Tabs(selected="explore"), text),
            generate.prompt,
            [tabs, explore.text],
            js=generate.js,
            api_visibility="private",
        )
        uncover(carried.then(**explore.run), [explore.run["outputs"]])
        open_where_left(demo, results, bar, tabs, explore)

        def leave(request: gr.Request) -> None:
            forget_session(demo, request.session_hash)

        demo.unload(leave)
    demo.queue(api_open=False, max_size=32)
    return demo


def open_where_left(demo: gr.Blocks, results: ResultCache, bar: Bar, tabs: gr.Tabs, explore: ExploreTab) -> None:
    """Open the page with what its link names, else with the models of the visitor's last visit."""
    outputs = [bar.model, bar.compare, bar.status, tabs, explore.text, explore.page]
    store = results.store

    @user_errors
    def arrive(request: gr.Request, kept: Any) -> tuple:
        query = request.query_params
        model, compare = labels_of(store, dict(query) if "text" in query else kept)
        models = (
            gr.Dropdown(choices=store.labels(), value=model),
            gr.Dropdown(choices=second_choices(store), value=compare),
        )
        opened: tuple = (gr.skip(), gr.skip(), gr.skip())
        if "text" in query:
            opened = (gr.Tabs(selected="explore"), *linked(results, query))
        return *models, status_line(store, model, compare), *opened

    event = demo.load(arrive, bar.kept, outputs, api_visibility="private", show_progress="hidden")
    uncover(event, outputs)


def forget_session(page: gr.Blocks, session: str) -> None:
    """Drop what gradio holds for a page that was closed: its state, and a copy of every component's configuration.

    gradio itself keeps the state for an hour, and the copies until `state_session_capacity` others have come.
    """
    page.state_holder.session_data.pop(session, None)


def serve(
    demo: gr.Blocks, *, block: bool = True, host: str | None = None, port: int | None = None, mcp: bool = False
) -> str:
    """Serve a page, and return its address at once where `block` is false.

    host, port  gradio's defaults: 127.0.0.1, or GRADIO_SERVER_NAME; the first free port from 7860 on
    mcp         whether the endpoints are served as tools too, by the Model Context Protocol

    Raises: LabError where the port is taken, or the package that MCP needs is missing.
    """
    if mcp and find_spec("mcp") is None:
        raise LabError("--mcp needs the package mcp, version 1; install it: pip install 'gpt2lab[mcp]'")
    return_freed_memory()
    logging.disable_progress_bar()  # of loaded weights: nobody reads it
    try:
        url = _launch(demo, host, port, mcp)
    except OSError as error:
        raise LabError(
            "the page cannot be served at {value}:{port} ({error}); try another --port",
            value=host or "127.0.0.1",
            port=port,
            error=error,
        ) from error
    if mcp and demo.mcp_error:
        demo.close(verbose=False)
        raise LabError("MCP cannot be served: {error}", error=demo.mcp_error)
    print(f"gpt2lab is at {url}", flush=True)
    if block:
        demo.block_thread()
    return url


def _launch(demo: gr.Blocks, host: str | None, port: int | None, mcp: bool) -> str:
    _, url, _ = demo.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        show_error=False,
        mcp_server=mcp or None,  # None: as GRADIO_MCP_SERVER says
        run_history=False,
        enable_monitoring=False,
        max_file_size="16mb",
        max_threads=MAX_THREADS,
        state_session_capacity=MAX_SESSIONS,
        footer_links=[],
        theme=gr.themes.Default(primary_hue="indigo", font=FONTS, font_mono=["ui-monospace", "monospace"]),
        css=CSS,
        app_kwargs={"middleware": [Middleware(StartScript)]},
        i18n=TEXTS,
    )
    return url

"""The laboratory in the browser: `build_app()` makes the page, `serve()` serves it. The only package that imports gradio."""

from gpt2lab.app.app import build_app, serve

__all__ = ["build_app", "serve"]

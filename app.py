"""The page, for `python app.py`, for gradio's own tools and for Hugging Face Spaces."""

from gpt2lab.app import build_app, serve

demo = build_app()

if __name__ == "__main__":
    serve(demo)

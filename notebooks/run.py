"""Run notebooks from top to bottom and keep their outputs: python notebooks/run.py notebooks/*.ipynb

Of a widget, the picture is kept. Its state would be megabytes, and a view without its state is shown as an error by JupyterLab.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

VIEW = "application/vnd.jupyter.widget-view+json"


def run(path: Path) -> None:
    """Run a notebook in its folder and write it with its outputs. Raises: CellExecutionError for a cell that fails."""
    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, store_widget_state=False, resources=place).execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(VIEW, None)
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        run(Path(name))

"""Run notebooks from top to bottom and keep their outputs: python notebooks/run.py notebooks/*.ipynb

A widget's picture is kept. Its state would take megabytes, and JupyterLab shows a view without state as an error.
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
    notebook.metadata.pop("widgets", None)  # of an earlier run
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        run(Path(name))

"""Run the course's notebooks from top to bottom and keep their outputs: python notebooks/run.py notebooks/*.ipynb

The second cell of each says its place in the course, how long it just took, and where to open it; it is written here.
A widget's picture is kept. Its state would take megabytes, and JupyterLab shows a view without state as an error.
"""

import os
import sys
import time
import tomllib
from pathlib import Path

import nbformat
from nbclient import NotebookClient

VIEW = "application/vnd.jupyter.widget-view+json"
COLAB = "https://colab.research.google.com"
BADGE = f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]"
COURSE = "course"  # tag of the cell that is written here


def run(path: Path) -> None:
    """Run a notebook in its folder and write it with its outputs. Raises: CellExecutionError for a cell that fails."""
    notebook = nbformat.read(path, as_version=4)
    began = time.monotonic()
    place = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, store_widget_state=False, resources=place).execute()
    seconds = time.monotonic() - began
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(VIEW, None)
    notebook.metadata.pop("widgets", None)  # of an earlier run
    notebook.cells = [cell for cell in notebook.cells if COURSE not in cell.metadata.get("tags", [])]
    line = nbformat.v4.new_markdown_cell(course_line(path, seconds), metadata={"tags": [COURSE]}, id=COURSE)
    notebook.cells.insert(1, line)
    nbformat.write(notebook, path)


def course_line(path: Path, seconds: float) -> str:
    """Say where a notebook stands in the course, how long a run took, and where to open it."""
    course = sorted(path.parent.glob("[0-9]*.ipynb"))
    number = course.index(path)
    links = [
        f"[{word}: {course[other].stem}]({course[other].name})"
        for word, other in (("previous", number - 1), ("next", number + 1))
        if 0 <= other < len(course)
    ]
    minutes = f"{seconds / 60:.1f} minutes on {os.cpu_count()} CPU cores"
    return " · ".join([f"Notebook {number + 1} of {len(course)}", minutes, *links, f"{BADGE}({colab(path)})"])


def colab(path: Path) -> str:
    """Return Colab's address of a notebook: in the project's repository, if `pyproject.toml` names it, else its upload."""
    project = tomllib.loads((path.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    repository = project.get("urls", {}).get("Repository", "").removeprefix("https://github.com/")
    return f"{COLAB}/github/{repository}/blob/main/notebooks/{path.name}" if repository else f"{COLAB}/#upload=true"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        run(Path(name).resolve())

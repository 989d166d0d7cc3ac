import re
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync
from nbclient import NotebookClient

from tests.processes import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = {
    "01_finetune": 'model, data, epochs, learning_rate, runs_dir = "builtin", "sample", 0.2, 1e-3, {folder!r}',
    "02_attention": """model, layer, head, sentence, position = "builtin", 2, 5, "The moon is the only moon.", 3
steps, learning_rate, runs_dir = 2, 1e-3, {folder!r}""",
    "03_generation": """model, prompt, length = "builtin", "The moon", 12
steps, learning_rate, runs_dir = 2, 1e-3, {folder!r}""",
    "04_inside": """model, text = "builtin", "The moon is the only moon."
clean, corrupted = "The song was released on the", "The town was released on the"
steps, learning_rate, runs_dir = 2, 1e-3, {folder!r}""",
    "05_your_own": """model, data, sentence, answer = "builtin", "sample", "The moon is the only moon.", -1
steps, learning_rate, runs_dir = 2, 1e-3, {folder!r}""",
    "06_training": 'changes, runs_dir = {{"steps": 4, "batch_size": 8}}, {folder!r}',
}
PICTURES = {
    "01_finetune": 5,
    "02_attention": 10,
    "03_generation": 3,
    "04_inside": 10,
    "05_your_own": 2,
    "06_training": 5,
}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(notebook):
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return "".join(output.get("text", "") + str(output.get("data", {}).get("text/plain", "")) for output in outputs)


@pytest.fixture(scope="module")
def kernel():
    """One for all notebooks, which the first starts: imports take longer than the cells."""
    manager = AsyncKernelManager()
    yield manager
    run_sync(manager.shutdown_kernel)(now=True)


def test_a_copy_with_small_parameters_runs_from_top_to_bottom(path, notebook, kernel, tmp_path):
    (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    cell.source = SMALL[path.stem].format(folder=str(tmp_path))
    last = nbformat.v4.new_code_cell("%reset -f")  # the next one has a namespace of its own
    notebook.cells.append(last)
    place = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=300, km=kernel, resources=place).execute()
    assert all(cell.execution_count for cell in code_cells(notebook))
    assert len(list(tmp_path.glob("*/model/model.safetensors"))) == 1
    pictures = ["image/png" in output.get("data", {}) for cell in code_cells(notebook) for output in cell.outputs]
    assert sum(pictures) == PICTURES[path.stem]


def test_it_is_thin(notebook):
    sources = [cell.source for cell in code_cells(notebook)]
    assert sum(len(source.splitlines()) for source in sources) <= 80
    assert max(len(source.splitlines()) for source in sources) <= 15
    assert not [source for source in sources if re.search(r"^\s*(def|class) ", source, re.MULTILINE)]
    assert sources[0].startswith("%matplotlib inline")


def test_its_outputs_are_those_of_one_clean_run(notebook):
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    assert not [output for cell in code_cells(notebook) for output in cell.outputs if output.output_type == "error"]
    assert "validation perplexity" in texts(notebook)


def test_its_outputs_name_no_folder_of_the_machine_that_ran_it(notebook):
    assert str(Path.home()) not in texts(notebook)
    assert str(ROOT) not in texts(notebook)


def test_it_says_its_place_in_the_course_and_how_long_it_took(path, notebook):
    line = notebook.cells[1].source
    number = NOTEBOOKS.index(path) + 1
    assert re.match(rf"Notebook {number} of {len(NOTEBOOKS)} · \d+\.\d minutes on \d+ CPU cores · ", line)
    links = re.findall(r"\((\d\d_\w+\.ipynb)\)", line)
    assert links == [other.name for other in NOTEBOOKS[max(0, number - 2) : number + 1] if other != path]
    assert "[Open in Colab]" in line


def test_it_is_light_enough_to_read_on_the_web(path):
    assert path.stat().st_size < 1_000_000


def test_it_keeps_the_pictures_of_widgets_and_not_their_state(path):
    assert "application/vnd.jupyter.widget" not in path.read_text(encoding="utf-8")

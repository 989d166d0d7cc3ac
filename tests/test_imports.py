"""Which chapter of the package may import which, read from its source."""

import ast
import json
import re
from pathlib import Path

import pytest

import gpt2lab

PACKAGE = Path(gpt2lab.__file__).parent
BASE = {"errors", "files", "progress", "results", "settings"}
SCIENCE = BASE | {"data", "model", "evaluation", "generation", "inspection", "training"}
MAY_IMPORT = {
    "errors": set(),
    "files": set(),
    "progress": set(),
    "results": {"errors"},
    "settings": {"errors"},
    "data": BASE,
    "model": BASE | {"data"},
    "evaluation": BASE | {"data", "model"},
    "generation": BASE | {"data", "model"},
    "inspection": BASE | {"data", "model"},
    "training": BASE | {"data", "model", "evaluation", "generation", "inspection"},
    "worker": SCIENCE | {"pages", "widgets"},  # training/worker.py: the process of a run, which ends with its report
    "figures": SCIENCE,
    "widgets": SCIENCE | {"figures"},
    "pages": SCIENCE | {"figures", "widgets"},
    "builtin": SCIENCE,
    "learning": SCIENCE,
    "app": SCIENCE | {"figures", "widgets", "pages", "learning"},
    "cli": SCIENCE | {"figures", "widgets", "pages", "app", "worker"},
    "__init__": SCIENCE | {"figures", "widgets", "pages"},
    "__main__": {"cli"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def chapter_of(path):
    return chapter_named(path.relative_to(PACKAGE).with_suffix("").parts)


def chapter_named(parts):
    """The first of a module's names; a program of its own is a chapter of its own."""
    return "worker" if tuple(parts[:2]) == ("training", "worker") else parts[0]


def imports(path):
    """(dotted name, whether a function imports it) of all imports in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    in_functions = {id(inner) for function in functions for inner in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((name, id(node) in in_functions) for name in names)


def violations(is_wrong):
    """ "file: name" of every import that is_wrong(chapter, dotted name, whether a function imports it) finds."""
    return [
        f"{path.relative_to(PACKAGE)}: {name}"
        for path in FILES
        for name, in_function in imports(path)
        if is_wrong(chapter_of(path), name, in_function)
    ]


def test_every_file_belongs_to_a_chapter():
    assert {chapter_of(path) for path in FILES} == set(MAY_IMPORT)


def test_chapters_import_only_what_is_below_them():
    def is_wrong(chapter, name, in_function):
        package, _, rest = name.partition(".")
        other = chapter_named(rest.split("."))
        if package != "gpt2lab" or other == chapter:
            return False
        return other not in MAY_IMPORT[chapter]

    assert violations(is_wrong) == []


def test_chapters_form_no_circle():
    left, order = dict(MAY_IMPORT), []
    while left:
        free = [chapter for chapter, others in left.items() if others <= set(order)]
        assert free, left
        order += free
        left = {chapter: others for chapter, others in left.items() if chapter not in free}
    assert order[-1] == "__main__"


def test_imports_are_absolute_and_by_name():
    assert violations(lambda chapter, name, in_function: name.startswith(".") or name.endswith(".*")) == []


def test_only_the_app_imports_gradio_and_only_the_cli_typer():
    homes = {"gradio": "app", "gradio_client": "app", "typer": "cli"}
    assert violations(lambda chapter, name, _: homes.get(name.split(".")[0], chapter) != chapter) == []


def test_nothing_imports_the_build_of_the_checkpoint():
    assert violations(lambda chapter, name, _: chapter != "builtin" and name.startswith("gpt2lab.builtin.")) == []


def test_figures_take_results_alone():
    """They import classes, constants and number formats from the chapters below, and no function that computes."""

    def is_wrong(chapter, name, _):
        below = name.split(".")[1] if name.startswith("gpt2lab.") else "results"
        return (
            chapter == "figures"
            and below not in ("figures", "results", "files", "errors")
            and not name.split(".")[-1][0].isupper()
            and name.split(".")[-1] != "entry_name"
        )

    assert [found for found in violations(is_wrong) if not found.startswith("figures/notebook.py")] == []


def test_public_names_are_found():
    for name in gpt2lab.__all__:
        found = getattr(gpt2lab, name)
        assert found and getattr(found, "__name__", name) == name
    with pytest.raises(AttributeError, match="nonsense"):
        gpt2lab.nonsense  # noqa: B018


def test_no_function_imports_a_module_of_the_package():
    """Commands are imported when they are called; start-up time is no reason for an import in a function."""
    assert violations(lambda chapter, name, in_function: in_function and name.startswith("gpt2lab")) == []


def test_only_one_command_imports_the_app():
    assert {
        found.split(":")[0]
        for found in violations(lambda chapter, name, _: chapter == "cli" and name.startswith("gpt2lab.app."))
    } == {"cli/app.py"}


@pytest.mark.parametrize("path", sorted((PACKAGE.parent / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_imports_the_package_by_its_public_names(path):
    source = "".join(line for cell in json.loads(path.read_text())["cells"] for line in (*cell["source"], "\n"))
    public = {"gpt2lab", "gpt2lab.figures", "gpt2lab.widgets"}
    assert set(re.findall(r"^(?:from|import) (gpt2lab[\w.]*)", source, re.MULTILINE)) <= public

"""Who may know whom: the import direction of the package, read from its source."""

import ast
from pathlib import Path

import pytest

import gpt2lab

PACKAGE = Path(gpt2lab.__file__).parent
BASE = {
    "errors",
    "files",
    "units",
    "steps",
    "precision",
    "sources",
    "hub",
    "textfiles",
    "text",
    "tokens",
    "blocks",
    "model",
    "summary",
}
CORE = BASE | {
    "training",
    "scoring",
    "decoding",
    "sampling",
    "generation",
    "measures",
    "recipes",
    "tasks",
    "inspection",
}
MAY_IMPORT = {
    "errors": set(),
    "files": set(),
    "units": set(),
    "steps": set(),
    "precision": {"errors"},
    "sources": {"errors"},
    "hub": {"errors", "units", "steps", "sources"},
    "summary": set(),
    "tokens": {"errors", "sources"},
    "textfiles": {"errors"},
    "text": {"errors", "steps", "sources", "hub", "summary", "textfiles"},
    "blocks": {"errors", "files", "sources", "summary", "text", "tokens"},
    "model": {"errors", "steps", "precision", "sources", "hub", "text", "tokens", "blocks"},
    "decoding": {"errors", "precision", "model"},
    "sampling": {"errors", "summary"},
    "generation": BASE | {"decoding", "sampling"},
    "measures": BASE | {"generation"},
    "recipes": set(),
    "tasks": BASE | {"sampling", "generation", "recipes"},
    "scoring": BASE,
    "inspection": BASE,
    "training": BASE | {"generation", "scoring"},
    "views": {"errors", "files", "units", "training", "scoring", "inspection"},
    "builtin": CORE,
    "reports": CORE | {"views"},
    "notebook": CORE | {"views"},
    "demo": CORE | {"views", "reports"},
    "ui": CORE | {"views", "demo", "reports"},
    "cli": CORE | {"views", "demo", "reports"},
    "__init__": CORE | {"notebook"},
    "__main__": {"cli"},
}
MAY_IMPORT_WHEN_CALLED = {"cli": {"ui"}}
FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def room_of(path):
    return module_of(path).split(".")[0]


def imports(path):
    """(dotted name, whether it is imported with the module and not by a function) of all imports in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    ]
    when_called = {id(inner) for function in functions for inner in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((name, id(node) not in when_called) for name in names)


def rooms_imported(path):
    """(room, with the module) of every import from another room of the package."""
    for name, with_module in imports(path):
        package, _, rest = name.partition(".")
        room = rest.split(".")[0]
        if package == "gpt2lab" and room != room_of(path):
            yield room, with_module


each_file = pytest.mark.parametrize("path", FILES, ids=module_of)


def test_every_module_belongs_to_a_known_room():
    assert {room_of(path) for path in FILES} <= set(MAY_IMPORT)


@each_file
def test_module_imports_only_from_rooms_to_its_left(path):
    room = room_of(path)
    when_called = MAY_IMPORT[room] | MAY_IMPORT_WHEN_CALLED.get(room, set())
    wrong = {
        other
        for other, with_module in rooms_imported(path)
        if other not in (MAY_IMPORT[room] if with_module else when_called)
    }
    assert wrong == set()


@each_file
def test_module_names_what_it_imports_in_full(path):
    assert [name for name, _ in imports(path) if name.startswith(".") or name.endswith(".*")] == []


@each_file
def test_only_the_app_imports_gradio(path):
    gradio = [name for name, _ in imports(path) if name.split(".")[0] in ("gradio", "gradio_client")]
    assert not gradio or room_of(path) == "ui"


@each_file
def test_nothing_imports_the_build_of_the_checkpoint(path):
    names = {name for name, _ in imports(path)}
    assert not any(name.startswith("gpt2lab.builtin.build") for name in names)
    assert module_of(path) == "builtin.build" or not any(name.startswith("gpt2lab.builtin.corpus") for name in names)


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) == "views"], ids=module_of)
def test_views_know_result_types_only(path):
    foreign = [name.split(".") for name, _ in imports(path) if name.startswith("gpt2lab.")]
    assert [name for name in foreign if name[1] not in ("views", "files", "units") and not name[-1][0].isupper()] == []


def test_rooms_form_no_circle():
    left, rooms = dict(MAY_IMPORT), []
    while left:
        free = [room for room, others in left.items() if others <= set(rooms)]
        assert free, left
        rooms += free
        left = {room: others for room, others in left.items() if room not in free}
    assert rooms[0] == "errors"


@pytest.mark.parametrize("name", gpt2lab.__all__)
def test_public_name_is_found_in_its_room(name):
    found = getattr(gpt2lab, name)
    assert found.__name__ == name
    assert found.__module__.startswith("gpt2lab.")


def test_name_that_is_not_public_is_no_attribute():
    with pytest.raises(AttributeError, match="nonsense"):
        gpt2lab.nonsense  # noqa: B018

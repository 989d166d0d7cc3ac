"""The texts that readers see, as they stand in the source: where each is, and what has not been put into words for a translation."""

import ast
import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import gpt2lab
from gpt2lab.app.language import USED_IN_VIEWS
from gpt2lab.generation.sampling import Sampling
from gpt2lab.settings import label_of
from gpt2lab.training.config import TrainConfig

PACKAGE = Path(gpt2lab.__file__).parent
# calls whose first argument is an English template
TRANSLATED = {"Message", "LabError", "ProtocolError", "SelectionError", "_"}
LABELS = {"label", "info", "placeholder", "title"}  # keywords of gradio's components that readers see
LABELLED = {"Button", "Tab", "Accordion", "Markdown"}  # components whose first argument they see
NAMES = {"gpt2lab", "EN / 中文"}  # the same in every language


def in_python(*paths: str) -> set[str]:
    """The English templates in Python files or folders of the package; without paths in all of them."""
    return {text for path in sources(*paths) for text in _templates(path)}


def in_views(*names: str) -> set[str]:
    """The English templates in views by name; without names in all of them."""
    modules = [PACKAGE / f"widgets/static/{name}.js" for name in names] or (PACKAGE / "widgets/static").glob("*.js")
    found = (text for module in modules for text in USED_IN_VIEWS.findall(module.read_text(encoding="utf-8")))
    return {json.loads(f'"{text}"') for text in found}


def sources(*paths: str) -> Iterator[Path]:
    for path in map(PACKAGE.joinpath, paths or [""]):
        yield from [path] if path.is_file() else sorted(path.rglob("*.py"))


def _templates(path: Path) -> Iterator[str]:
    for node in _calls(path):
        match node.args:
            case [ast.Constant(value=str(text)), *_] if _called(node) in TRANSLATED:
                yield text


def in_settings() -> set[str]:
    """The names, helps and units of the settings, which forms show."""
    declared = [*fields(TrainConfig), *fields(Sampling)]
    found = {label_of(field) for field in declared}
    return found | {field.metadata[part] for field in declared for part in ("help", "unit") if field.metadata[part]}


def hard_coded(path: Path) -> list[str]:
    """Labels of a tab that no translation can reach: strings that are not given to `_`."""
    found = []
    for node in _calls(path):
        given = [keyword.value for keyword in node.keywords if keyword.arg in LABELS]
        if _called(node) in LABELLED:
            given += node.args[:1]
        found += [f"{path.name}:{value.lineno} {ast.unparse(value)}" for value in given if _is_text(value)]
    return found


def _is_text(node: ast.expr) -> bool:
    """Whether it is a string with letters, or one with fields: its words are not looked at one by one."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and node.value not in NAMES and any(map(str.isalpha, node.value))
    return isinstance(node, ast.JoinedStr)


def _calls(path: Path) -> Iterator[ast.Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def _called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")

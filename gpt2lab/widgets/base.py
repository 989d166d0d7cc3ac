"""What all widgets share: their JavaScript as one module, the selection, and their three doors.

A view is an ES module in `static/` that exports one function, `({ model, el }) => cleanup`, where `model` has anywidget's
`get, set, on, off, save_changes`. `model.get("data")` is what was computed, `model.get("selection")` what is selected.
"""

import base64
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

import anywidget
import traitlets

from gpt2lab.errors import LabError, choice, whole_number
from gpt2lab.figures.drawing import figure, figure_bytes
from gpt2lab.inspection.trace import ResidualTrace
from gpt2lab.model.lab import Lab
from gpt2lab.results import finite
from gpt2lab.widgets.page import Page, document, script_json

STATIC = files("gpt2lab.widgets") / "static"
IMPORT = re.compile(r'^import \{([^}]*)\} from "\./([a-z]+)\.js";\n', re.MULTILINE)
EXPORT = re.compile(r"^export (?:async )?(?:function|const|class) (\w+)", re.MULTILINE)

Answer = Callable[[str, dict], dict]


@dataclass(frozen=True)
class Selection:
    """What is selected in a widget or a page of widgets.

    position     of a token, from 0
    layer, head  from 0
    token        id of the predicted token that is explained; None: the one that follows in the text
    off          (layer, head) of the heads that are switched off
    side         which of two models is shown: 0 the first, 1 the second, 2 the difference
    step         of a training, where a widget shows one; None: the last
    """

    position: int = 0
    layer: int = 0
    head: int = 0
    token: int | None = None
    off: tuple[tuple[int, int], ...] = ()
    side: int = 0
    step: int | None = None

    def __post_init__(self) -> None:
        for name in ("position", "layer", "head"):
            whole_number(name, getattr(self, name), 0, 10**6)
        whole_number("side", self.side, 0, 2)
        for name in ("token", "step"):
            if getattr(self, name) is not None:
                whole_number(name, getattr(self, name), 0, 10**9)
        for place in self.off:
            if len(place) != 2:
                raise LabError("a head that is off must be (layer, head); got {place!r}", place=place)
            for name, number in zip(("layer", "head"), place):
                whole_number(name, number, 0, 10**6)

    @classmethod
    def of(cls, values: dict) -> "Selection":
        """The selection of its JSON form; unknown keys are passed over. Raises: LabError for values out of range."""
        known = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        if "off" in known:
            if not isinstance(known["off"], list | tuple):
                raise LabError("off must be a list of [layer, head]; got {value!r}", value=str(known["off"])[:40])
            known["off"] = tuple(tuple(place) if isinstance(place, list | tuple) else () for place in known["off"])
        return cls(**known)


@cache
def bundle(name: str) -> str:
    """The JavaScript of a view and of all that it imports as one ES module for anywidget.

    Modules name what they import in one line each, `import { a, b } from "./lib.js";`, and export functions, constants
    and classes by name.
    """
    order: list[str] = []

    def add(module: str) -> None:
        for _, other in IMPORT.findall(_source(module)):
            add(other)
        if module not in order:
            order.append(module)

    add(name)
    parts = [_scope(module) for module in order]
    return "\n".join([*parts, f"export default lib.mount({name}.{name}View);\n"])


def _source(module: str) -> str:
    return (STATIC / f"{module}.js").read_text(encoding="utf-8")


def _scope(module: str) -> str:
    """A module as a constant that holds what it exports."""
    source = _source(module)
    exported = ", ".join(EXPORT.findall(source))
    body = IMPORT.sub(r"const {\1} = \2;\n", EXPORT.sub(lambda found: found[0].removeprefix("export "), source))
    return f"const {module} = (() => {{\n{body}\nreturn {{ {exported} }};\n}})();"


@cache
def styles(name: str) -> str:
    """The CSS of a view and of the views that it imports; that of a view with a panel holds inside the panel alone."""
    modules, waiting = ["lib"], [name]
    while waiting:
        module = waiting.pop()
        if module not in modules:
            modules.append(module)
        waiting += [other for _, other in IMPORT.findall(_source(module))]
    return "\n".join(_sheet(module) for module in modules if (STATIC / f"{module}.css").is_file())


def _sheet(module: str) -> str:
    rules = (STATIC / f"{module}.css").read_text(encoding="utf-8")
    if not re.search(rf'panel\(t\("[^"]+"\), "{module}"\)', _source(module)):
        return rules
    return re.sub(rf"\.gpt2lab (?!\.g-{module}\b)", f".gpt2lab .g-{module} ", rules)


def widget_page(
    name: str, data: dict, selection: Selection, *, title: str, theme: str = "auto", height: int = 900
) -> Page:
    """A view as an offline document that works without a kernel."""
    code = bundle(name).replace("export default", "const view =").replace("</script", "<\\/script")
    state = {"data": finite(data), "selection": asdict(selection)}
    body = f"""<div class="{theme}"><div id="root"></div></div>
<script type="application/json" id="state">{script_json(state)}</script>
<script type="module">
{code}
view.render({{ model: lib.fileModel(JSON.parse(document.getElementById("state").textContent)), el: document.getElementById("root") }});
</script>"""
    return document(title, body, style=styles(name), theme=theme, height=height)


def gradio_html(name: str) -> dict[str, str]:
    """What `gr.HTML` takes to show a view. Its value is {"data": …, "selection": …}.

    What the view gives `model.begin` is the data of the component's `select` event.

    Parts of a selection that it leaves out stay. If it names no layer, the position in an unchanged text stays too, and
    with unchanged models the whole selection.
    """
    module = base64.b64encode(bundle(name).encode()).decode()
    return {
        "html_template": "<div class='view'></div>",
        "js_on_load": ADAPTER.replace("MODULE", f"data:text/javascript;base64,{module}").replace(
            "STYLES", json.dumps(styles(name))
        ),
    }


ADAPTER = """
const sheet = document.createElement("style");
sheet.textContent = STYLES;
document.head.append(sheet);
const listeners = {};
const state = { data: null, selection: {}, ...props.value };
const fire = (key) => [...(listeners["change:" + key] ?? [])].forEach((listener) => listener());
const model = {
  get: (key) => state[key],
  set: (key, value) => { state[key] = value; fire(key); },
  on: (event, listener) => (listeners[event] ??= []).push(listener),
  off: (event, listener) => { listeners[event] = (listeners[event] ?? []).filter((other) => other !== listener); },
  save_changes: () => {},
  ask: server?.answer ? (kind, options) => server.answer({ kind, options, subject: state.data?.subject ?? null }) : null,
  begin: (options) => trigger("select", options),  // an event of the page, for answers that take long or grow
  is_app: true,
};
import("MODULE").then((module) => module.default.render({ model, el: element.querySelector(".view") }));
let drawn = JSON.stringify(props.value ?? null);
watch("value", () => {
  const now = JSON.stringify(props.value ?? null);
  if (now === drawn) return;  // gradio sends the first value twice
  drawn = now;
  const { data, selection = {} } = props.value ?? {}, { position, ...others } = selection;
  const same = (part) => JSON.stringify(data?.subject?.[part]) === JSON.stringify(state.data?.subject?.[part]);
  const moved = "layer" in selection || !same("text") ? selection : same("models") ? {} : others;
  state.selection = { ...state.selection, ...moved };
  state.data = data;
  fire("data");
});
"""


def answered(answer: Answer, kind: Any, options: Any, *, said: Callable[[LabError], str] = str) -> dict:
    """What a view gets for a request: the answer, or {"error": one line}, which `said` makes of the error."""
    try:
        return finite(answer(str(kind), options if isinstance(options, dict) else {}))
    except LabError as error:
        return {"error": said(error)}


def one_side(lab: Lab | None, seen: ResidualTrace | None, **answers: Callable[..., dict]) -> Answer | None:
    """Answers for a widget of one side: by the kind of request, functions of (lab, seen, options); None without a lab.

    Raises: LabError for a lab without the trace of its text.
    """
    if lab is None:
        return None
    if seen is None:
        raise LabError("a widget with a lab needs the trace of its text; give trace=trace(lab, text, residual=True)")
    return lambda kind, options: {"sides": [answers[choice("kind", kind, answers)](lab, seen, options)]}


class SelectionError(LabError, traitlets.TraitError):
    """A selection that a widget does not have; traitlets puts the one before back."""


class Widget(anywidget.AnyWidget):
    """A view of a result in Jupyter; `save` writes it as a page that works offline.

    Reading `position`, `layer`, `head`, `token` or `off` gives what is selected; setting one moves the picture.
    """

    module: ClassVar[str] = ""
    data = traitlets.Dict().tag(sync=True)
    answers = traitlets.Bool(False, help="whether the view may ask for more").tag(sync=True)
    selection = traitlets.Instance(Selection).tag(
        sync=True,
        to_json=lambda value, widget: asdict(value),
        from_json=lambda value, widget: Selection.of(value),
    )

    def __init_subclass__(cls, **options: Any) -> None:
        if "module" in vars(cls):  # not the classes that anywidget makes of it
            cls._esm, cls._css = bundle(cls.module), styles(cls.module)
        super().__init_subclass__(**options)

    def __init__(
        self,
        result: Any,
        data: dict,
        selection: Selection | None = None,
        *,
        title: str = "gpt2lab",
        answer: Answer | None = None,
    ) -> None:
        """Show data.

        result  whose figure stands for the widget where no kernel runs; None: no figure
        answer  computes what the view asks for later: (kind, options) -> values for JSON; raises LabError
        """
        self.result, self.title, self._answer = result, title, answer
        super().__init__(data=finite(data), selection=selection or Selection(), answers=answer is not None)
        if answer is not None:
            self.on_msg(self._on_request)

    def _on_request(self, widget: Any, message: dict, buffers: Any) -> None:
        """Answer a request of the view, or say why not."""
        assert self._answer is not None
        self.send(
            {"id": message.get("id"), "answer": answered(self._answer, message.get("kind"), message.get("options"))}
        )

    @traitlets.validate("selection")
    def _fits(self, proposal: Any) -> Selection:
        """Raises: LabError for a token, layer or head that this widget does not have."""
        try:
            return self._checked(proposal["value"])
        except LabError as error:
            raise SelectionError("{error}", error=error) from None

    def _checked(self, selected: Selection) -> Selection:
        sides = self.data["sides"]
        side = sides[min(selected.side, len(sides) - 1)]
        whole_number("position", selected.position, 0, max(0, len(side["tokens"]) - 1))
        for layer, head in ((selected.layer, selected.head), *selected.off):
            if "layers" in side:
                whole_number("layer", layer, 0, side["layers"] - 1)
                whole_number("head", head, 0, side["heads"] - 1)
        return selected

    def save(self, path: str | Path) -> Path:
        """Write the widget as an HTML page, whole or not at all."""
        return self.page().save(path)

    def page(self, *, theme: str = "auto") -> Page:
        """The widget as an offline page."""
        return widget_page(self.module, self.data, self.selection, title=self.title, theme=theme)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        """The live view and, where no kernel runs, the figure of the result."""
        bundle = super()._repr_mimebundle_(**options)
        if self.result is None or bundle is None:
            return bundle
        content, *rest = bundle if isinstance(bundle, tuple) else (bundle,)
        content = {**content, "image/png": base64.b64encode(figure_bytes(figure(self.result), "png")).decode()}
        return (content, *rest) if rest else content


def _selected(name: str) -> property:
    def get(widget: Widget) -> Any:
        return getattr(widget.selection, name)

    def set_to(widget: Widget, value: Any) -> None:
        widget.selection = replace(widget.selection, **{name: value})

    return property(get, set_to, doc=f"Selected {name}.")


for _name in ("position", "layer", "head", "token", "off", "side", "step"):
    setattr(Widget, _name, _selected(_name))

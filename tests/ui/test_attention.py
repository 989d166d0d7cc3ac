import os
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from gradio.processing_utils import move_files_to_cache
from gradio.route_utils import delete_files_created_by_app

import gpt2lab.model
from gpt2lab.inspection.trace import trace
from gpt2lab.ui.attention import build_attention_tab, head_at, trace_shown
from gpt2lab.ui.shelf import Shelf
from gpt2lab.views.export import attention_file, largest_weights
from gpt2lab.views.figures import attention_grid_cells

TEXT, OTHER = "The moon is a small world.", "the sea"


@pytest.fixture
def tab(tmp_path, monkeypatch, tiny_lab):
    """The tab on a page of its own, with the tiny model for every label."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setattr(gpt2lab.model, "load_model", lambda location: tiny_lab)
    shelf = Shelf(tmp_path / "runs")
    with gr.Blocks(analytics_enabled=False) as demo:
        build_attention_tab(shelf, gr.Dropdown(["builtin", "gpt2"]), gr.Checkbox(False))
    events = {event.api_name: event for event in demo.fns.values()}
    return SimpleNamespace(demo=demo, shelf=shelf, events=events, **{name: event.fn for name, event in events.items()})


@pytest.fixture
def seen(tiny_lab):
    return trace(tiny_lab, TEXT)


def rows(seen, layer, head):
    return [list(row) for row in largest_weights(seen, layer, head, 20)]


def test_show_answers_with_what_is_shown_and_its_first_head(tab, seen):
    shown, grid, layer, head, heatmap, lines, table = tab.attention("builtin", TEXT, 0, 0, False)
    assert shown == ("builtin", TEXT)
    assert (layer, head, table) == (0, 0, rows(seen, 0, 0))
    assert grid.size != heatmap.size
    assert "iframe" in lines


@pytest.mark.parametrize(("asked", "given"), [((9, 9), (1, 3)), ((None, None), (0, 0)), ((1, 2), (1, 2))])
def test_show_keeps_to_the_heads_there_are(tab, seen, asked, given):
    _, _, layer, head, *_, table = tab.attention("builtin", TEXT, *asked, False)
    assert (layer, head, table) == (*given, rows(seen, *given))


def test_other_head_click_and_file_are_of_what_is_shown(tab, seen):
    shown, *_ = tab.attention("builtin", TEXT, 0, 0, False)
    tab.attention("builtin", OTHER, 0, 0, False)
    assert tab.attention_layer(shown, 1, 2, False)[-1] == rows(seen, 1, 2)
    point = attention_grid_cells(seen)[1, 3]
    layer, head, *_, table = tab.attention_click(shown, False, SimpleNamespace(index=point))
    assert (layer, head, table) == (1, 3, rows(seen, 1, 3))
    path = Path(tab.attention_file(shown, 1, 2, "csv").value["path"])
    assert path.read_bytes() == attention_file(seen, "csv", layer=1, head=2)
    assert path.name == "attention-layer1-head2.csv"


def test_nothing_but_show_reads_the_inputs_for_model_and_text(tab):
    state, *_ = tab.events["attention"].outputs
    assert isinstance(state, gr.State)
    for name in ("attention_layer", "attention_head", "attention_click", "attention_file"):
        inputs = tab.events[name].inputs
        assert inputs[0] is state
        assert not any(isinstance(one, (gr.Dropdown, gr.Textbox)) for one in inputs)


@pytest.mark.parametrize("ask", ["layer", "head", "click", "file"])
def test_before_anything_is_shown_the_visitor_is_told_what_to_press(tab, ask):
    rest = {"click": (False, SimpleNamespace(index=(0, 0))), "file": (0, 0, "csv")}.get(ask, (0, 0, False))
    with pytest.raises(gr.Error, match="press Show attention first"):
        getattr(tab, f"attention_{ask}")(None, *rest)


@pytest.mark.parametrize(
    ("layer", "head", "message"),
    [(2, 0, "layer 2 is out"), (0, 4, "head 4 is out"), (0, None, "head None"), (None, 0, "layer None|which layer")],
)
def test_head_that_does_not_exist_is_told(tab, layer, head, message):
    for ask in (tab.attention_layer, tab.attention_head, tab.attention_file):
        with pytest.raises(gr.Error, match=message):
            ask(("builtin", TEXT), layer, head, "csv" if ask is tab.attention_file else False)


def test_model_that_is_gone_is_told(tab):
    with pytest.raises(ValueError, match="is not offered here"):
        trace_shown(tab.shelf, ("a-run", TEXT))


def test_point_between_thumbnails_is_of_the_nearest(seen):
    cells = attention_grid_cells(seen)
    for (layer, head), (x, y) in cells.items():
        for right, down in ((0, 0), (60, -60), (-60, 60)):
            assert head_at(seen, (x + right, y + down)) == (layer, head)
    assert head_at(seen, (0, 0)) == (0, 0)
    assert head_at(seen, (1e6, 1e6)) == (1, 3)


def test_files_are_apart_and_deleted_with_gradio_s_own(tab, tmp_path):
    components = [tab.attention_file(("builtin", TEXT), 0, 0, "npz") for _ in range(2)]
    paths = [Path(component.value["path"]) for component in components]
    assert len(set(paths)) == 2
    assert all(path.is_relative_to(tmp_path / "gradio") for path in paths)
    with np.load(paths[0]) as found:
        assert found["heads"].tolist() == [0]
    [output] = tab.events["attention_file"].outputs
    for path in paths:
        sent = move_files_to_cache({"path": str(path), "meta": {"_type": "gradio.FileData"}}, output, postprocess=True)
        assert sent["path"] == str(path)
    delete_files_created_by_app(tab.demo, age=None)
    assert not any(map(os.path.exists, paths))

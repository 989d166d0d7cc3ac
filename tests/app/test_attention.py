import html
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qsl

import gradio as gr
import numpy as np
import pytest
from gradio.processing_utils import move_files_to_cache
from gradio.route_utils import delete_files_created_by_app

from gpt2lab.app.attention import EXAMPLES, build_attention_tab
from gpt2lab.app.attention_content import (
    CHANGE,
    MAX_LINK,
    NO_SECOND,
    PARTS,
    Subject,
    head_at,
    link_to,
    trace_or_comparison,
)
from gpt2lab.app.events import ALONE
from gpt2lab.app.models import ModelStore
from gpt2lab.app.results import ResultCache
from gpt2lab.figures.heads import head_map_cells, head_map_rows
from gpt2lab.inspection.attention import Attention, largest, largest_weights
from gpt2lab.inspection.compare import compare
from gpt2lab.inspection.heads import SCORES, describe_head, rollout, scores_of
from gpt2lab.inspection.trace import trace
from gpt2lab.model.lab import load_model
from gpt2lab.pages.export import FORMATS, export

TEXT, OTHER = "The moon is a small world.", "the sea"


SUBJECT = Subject("builtin", TEXT, None, None)


@pytest.fixture
def tab(tmp_path, monkeypatch, tiny_lab, random_lab):
    """The tab on a page of its own, with the tiny model for "builtin" and another of its shape for "gpt2"."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    labs = {"builtin": tiny_lab, "gpt2": random_lab(seed=9)}
    monkeypatch.setattr("gpt2lab.app.models.load_model", labs.get)
    results = ResultCache(ModelStore(tmp_path / "runs"))
    with gr.Blocks(analytics_enabled=False) as demo:
        with gr.Tabs() as tabs:
            pass
        build_attention_tab(demo, results, tabs, gr.Dropdown(["builtin", "gpt2"]), gr.Checkbox(False))
    events = {event.api_name: event for event in demo.fns.values()}
    functions = {name: event.fn for name, event in events.items()}
    return SimpleNamespace(demo=demo, results=results, events=events, labs=labs, **functions)


@pytest.fixture
def seen(tiny_lab):
    return trace(tiny_lab, TEXT)


def rows(seen, layer, head):
    return [list(row) for row in largest_weights(seen, layer, head, 20)]


def show(tab, text=TEXT, *, label="builtin", other=ALONE, other_text="", score="induction", layer=0, head=0):
    names = ["shown", "heads", "numbers", "layer", "head", "note", "explorer", "heatmap", "table"]
    answer = tab.attention(label, text, other, other_text, score, layer, head, False)
    return SimpleNamespace(**dict(zip(names, answer, strict=True)))


def saved(tab, part="head", format="csv", shown=SUBJECT, *, layer=0, head=0, score="entropy", view="head"):
    """The file that is made of a part."""
    return Path(tab.attention_file(part, format, shown, layer, head, score, view).value["path"])


def explorer_data(iframe):
    """What the explorer in a frame has to show."""
    page = html.unescape(re.search('srcdoc="([^"]*)"', iframe).group(1))
    return json.loads(re.search('id="explorer-data">(.*?)</script>', page, re.DOTALL).group(1))


def test_show_answers_with_what_is_shown_and_its_first_head(tab, seen, tiny_lab):
    answer = show(tab)
    assert answer.shown == SUBJECT
    assert (answer.layer, answer.head, answer.table) == (0, 0, rows(seen, 0, 0))
    assert answer.heads.size != answer.heatmap.size
    assert answer.note.startswith(describe_head(scores_of(tiny_lab, seen), 0, 0))
    data = explorer_data(answer.explorer)
    assert [side["tokens"] for side in data["sides"]] == [list(seen.tokens)]
    assert (data["layer"], data["chosen"]) == (0, [0])


@pytest.mark.parametrize(("asked", "given"), [((9, 9), (1, 3)), ((None, None), (0, 0)), ((1, 2), (1, 2))])
def test_show_keeps_to_the_heads_there_are(tab, seen, asked, given):
    answer = show(tab, layer=asked[0], head=asked[1])
    assert (answer.layer, answer.head, answer.table) == (*given, rows(seen, *given))


def test_other_head_click_and_file_are_of_what_is_shown(tab, seen):
    shown = show(tab).shown
    show(tab, OTHER)
    assert tab.attention_layer(shown, 1, 2, False)[-1] == rows(seen, 1, 2)
    point = head_map_cells(2, 4)[1, 3]
    layer, head, *_, table = tab.attention_click(shown, False, SimpleNamespace(index=point))
    assert (layer, head, table) == (1, 3, rows(seen, 1, 3))
    path = saved(tab, shown=shown, layer=1, head=2)
    assert path.read_bytes() == export(Attention(seen, 1, 2), "csv")
    assert path.name == "attention-layer1-head2.csv"
    path = saved(tab, "all heads", "npz", shown)
    with np.load(path) as found:
        assert found["weights"].shape == (2, 4, len(seen.tokens), len(seen.tokens))
    assert path.name == "attention.npz"


def test_other_heads_of_a_text_need_no_second_forward_pass(tab):
    shown, passes = show(tab).shown, []
    hook = tab.labs["builtin"].model.register_forward_hook(lambda *_: passes.append(1))
    inner = tab.labs["builtin"].model.transformer.register_forward_hook(lambda *_: passes.append(1))
    tab.attention_head(shown, 1, 2, False)
    for part in PARTS:
        saved(tab, part, "html", shown, layer=1, head=2)
    tab.attention_rollout(shown, False)
    tab.attention_bertviz(shown, "head", 1, 2, False)
    tab.attention_score(shown, "entropy", False)
    assert passes == []
    show(tab, OTHER)
    assert passes
    hook.remove()
    inner.remove()


def test_nothing_but_show_reads_the_inputs_for_model_and_text(tab):
    state, *_ = tab.events["attention"].outputs
    assert isinstance(state, gr.State)
    for name in ("layer", "head", "click", "score", "file", "plan", "bertviz", "rollout"):
        inputs = tab.events[f"attention_{name}"].inputs
        assert state in inputs
        assert not any(isinstance(one, gr.Textbox) or getattr(one, "label", "") == "Model" for one in inputs)


@pytest.mark.parametrize("ask", ["layer", "head", "click", "score", "plan", "bertviz", "rollout"])
def test_before_anything_is_shown_an_error_says_what_to_press(tab, ask):
    rest = {
        "click": (False, SimpleNamespace(index=(0, 0))),
        "rollout": (False,),
        "score": ("entropy", False),
        "plan": ("head", 0, 0),
        "bertviz": ("head", 0, 0, False),
    }
    with pytest.raises(gr.Error, match="press Show attention first"):
        getattr(tab, f"attention_{ask}")(None, *rest.get(ask, (0, 0, False)))
    for part in PARTS:
        with pytest.raises(gr.Error, match="press Show attention first"):
            saved(tab, part, shown=None)


@pytest.mark.parametrize(
    ("layer", "head", "message"),
    [(2, 0, "layer 2 is out"), (0, 4, "head 4 is out"), (0, None, "head None"), (None, 0, "layer None|needs a layer")],
)
def test_head_that_does_not_exist_is_refused(tab, layer, head, message):
    for ask in (tab.attention_layer, tab.attention_head):
        with pytest.raises(gr.Error, match=message):
            ask(SUBJECT, layer, head, False)
    with pytest.raises(gr.Error, match=message):
        saved(tab, layer=layer, head=head)


def test_model_that_is_gone_is_refused(tab):
    with pytest.raises(ValueError, match="is unknown"):
        trace_or_comparison(tab.results, ("a-run", TEXT, None, None))


def test_map_offers_every_score_and_the_change(tab):
    [field] = [one for one in tab.demo.blocks.values() if getattr(one, "elem_id", None) == "attention-score"]
    assert [value for _, value in field.choices] == [*SCORES, CHANGE]


def test_every_score_has_its_map_and_table(tab, seen):
    shown = {score: tab.attention_score(SUBJECT, score, False) for score in SCORES}
    assert len({picture.tobytes() for picture, _ in shown.values()}) == len(SCORES)
    for score, (_, numbers) in shown.items():
        values = getattr(scores_of(tab.labs["builtin"], seen), score)
        cells = re.findall("<td>(.*?)</td>", numbers)
        assert cells == [cell for row in head_map_rows(values) for cell in row], score


@pytest.mark.parametrize("score", ["", "__class__", None, ["entropy"]])
def test_score_that_does_not_exist_is_refused(tab, score):
    with pytest.raises(gr.Error, match="is unknown; use previous_token"):
        tab.attention_score(SUBJECT, score, False)


def test_change_needs_something_to_compare_with_and_the_rest_is_shown_without(tab, seen, monkeypatch):
    warned = []
    monkeypatch.setattr(gr, "Warning", warned.append)
    assert tab.attention_score(SUBJECT, CHANGE, False) == (None, "")
    answer = show(tab, score=CHANGE)
    assert (answer.heads, answer.table) == (None, rows(seen, 0, 0))
    assert warned == [NO_SECOND] * 2
    with pytest.raises(gr.Error, match="nothing to compare with"):
        saved(tab, "map", score=CHANGE)


def test_map_and_rollout_are_saved_as_the_package_makes_them(tab, tiny_lab):
    numbers = scores_of(tiny_lab, tab.results.trace("builtin", TEXT)).map("entropy")
    flow = rollout(tab.results.trace("builtin", TEXT))
    for i, format in enumerate(FORMATS):
        part, result = (("map", numbers), ("rollout", flow))[i % 2]
        path, expected = saved(tab, part, format), export(result, format)
        assert path.suffix == f".{format}"
        if format == "svg":  # matplotlib names its parts at random
            assert len(path.read_bytes()) == pytest.approx(len(expected), rel=0.01)
        else:
            assert path.read_bytes() == expected, (part, format)
    for part, result in (("map", numbers), ("rollout", flow)):
        assert saved(tab, part, "npz").read_bytes() == export(result, "npz"), part


def test_rollout_is_drawn_with_its_largest_shares(tab, seen):
    picture, table = tab.attention_rollout(SUBJECT, False)
    dark, _ = tab.attention_rollout(SUBJECT, True)
    assert picture.size == dark.size and np.any(np.array(picture) != np.array(dark))
    assert table == [list(row) for row in largest(rollout(seen).weights, seen.tokens, 20)]


def test_change_is_saved_as_a_map(tab, seen):
    shown = show(tab, other="gpt2").shown
    values = compare(seen, trace(tab.labs["gpt2"], TEXT)).total_variation
    with np.load(saved(tab, "map", "npz", shown, score=CHANGE)) as found:
        np.testing.assert_allclose(found["values"], values, atol=1e-6)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"part": "/etc/passwd"}, "is unknown; use head, all heads, map, rollout, bertviz"),
        ({"part": "bertviz"}, "bertviz' views are pages, no .csv files; save them as html"),
        ({"part": "bertviz", "format": "html", "view": "../x"}, "is unknown; use head, model, neuron"),
        ({"part": "map", "score": "../x"}, "is unknown; use previous_token"),
        ({"format": "../x"}, "is unknown; end the file's name"),
        ({"part": "rollout", "format": "exe"}, "is unknown; end the file's name"),
    ],
)
def test_file_that_cannot_be_made_is_refused(tab, asked, message):
    with pytest.raises(gr.Error, match=message):
        saved(tab, **asked)


def test_bertviz_view_is_saved_as_its_page(tab):
    path = saved(tab, "bertviz", "html", view="neuron")
    assert path.name == "attention-neuron-view.html"
    assert "bertviz" in path.read_text("utf-8")


@pytest.mark.parametrize(
    ("asked", "second"),
    [
        ({"other": "gpt2"}, ("gpt2", TEXT)),
        ({"other_text": "The moon is a small world!"}, ("builtin", "The moon is a small world!")),
    ],
    ids=["two models", "two texts"],
)
def test_two_traces_are_shown_side_by_side(tab, seen, asked, second):
    answer = show(tab, score=CHANGE, layer=1, head=2, **asked)
    assert answer.shown == ("builtin", TEXT, *second)
    other = trace(tab.labs[second[0]], second[1])
    data = explorer_data(answer.explorer)
    assert [side["tokens"] for side in data["sides"]] == [list(seen.tokens), list(other.tokens)]
    assert data["most_changed"] == pytest.approx(
        max(compare(seen, other).difference(layer).abs().max().item() for layer in range(2))
    )
    with np.load(saved(tab, "head", "npz", answer.shown, layer=1, head=2)) as found:
        np.testing.assert_allclose(found["other_weights"][0, 0], other.attention(1, 2), atol=1e-6)


def test_texts_of_different_length_are_refused(tab):
    with pytest.raises(gr.Error, match="do not pair up"):
        show(tab, other_text="The moon is a small world, small.")


def test_text_longer_than_the_context_is_shown_in_part_and_that_is_said(tab):
    answer = show(tab, "x" * 65)
    assert "Shown: the first 64 of 65 tokens; the rest does not fit the model." in answer.note
    assert "the first 64 of 65 tokens; the rest does not fit the model" in answer.explorer


def test_one_token_has_weights_and_no_scores(tab):
    answer = show(tab, "x")
    assert (answer.heads, answer.numbers) == (None, "")
    assert answer.note.startswith("One token can only read itself.")
    assert answer.table == [["x", 0, "x", 0, 1.0]]


@pytest.mark.parametrize("view", ["head", "model", "neuron"])
def test_bertviz_estimates_its_size_and_draws(tab, seen, view):
    estimate = tab.attention_plan(SUBJECT, view, 1, 2)
    assert estimate.startswith(f"{view} view of layers 0-1 of 2") and "MB" in estimate
    again, frame = tab.attention_bertviz(SUBJECT, view, 1, 2, True)
    assert again == estimate
    assert "bertviz" in frame


def test_bertviz_of_a_long_text_is_refused_with_its_limit(tab):
    with pytest.raises(gr.Error, match="shorten the text to 48"):
        tab.attention_plan(Subject("builtin", "x" * 49, None, None), "model", 0, 0)


@pytest.mark.parametrize("view", ["", "explorer", None, "__class__"])
def test_view_that_bertviz_lacks_is_refused(tab, view):
    with pytest.raises(gr.Error, match="is unknown; use head, model, neuron"):
        tab.attention_bertviz(SUBJECT, view, 0, 0, False)


def test_link_opens_what_was_shown(tab):
    shown = show(tab, "a & b = c? #1\n", other="gpt2", layer=1, head=2)
    query = re.search(r"\(\?(.*)\)", shown.note).group(1)
    request = SimpleNamespace(query_params=dict(parse_qsl(query)))
    tabs, *filled_in, _, _ = tab.filled_in(request)
    again, _, _, layer, head, *_ = tab.linked(False, request)
    assert tuple(filled_in) == ("builtin", "a & b = c? #1\n", "gpt2", "")
    assert (again, layer, head) == (shown.shown, 1, 2)
    assert tabs.selected == "attention"


def test_page_without_a_link_is_left_as_it_is(tab):
    request = SimpleNamespace(query_params={"utm": "x"})
    for name, answer in (("linked", tab.linked(False, request)), ("filled_in", tab.filled_in(request))):
        assert len(answer) == len(tab.events[name].outputs)
        assert all(isinstance(one, dict) and one["__type__"] == "update" and len(one) == 1 for one in answer)


@pytest.mark.parametrize(
    ("asked", "message"),
    [({"model": "/etc"}, "is unknown"), ({"other": "../x"}, "is unknown"), ({"text": ""}, "is empty")],
)
def test_link_with_bad_parts_is_refused_and_its_text_is_kept(tab, asked, message):
    request = SimpleNamespace(query_params={"text": TEXT, "layer": "1"} | asked)
    _, _, text, *_, layer, head = tab.filled_in(request)
    assert (text, layer, head) == (request.query_params["text"], 1, 0)
    with pytest.raises(gr.Error, match=message):
        tab.linked(False, request)


def test_before_the_next_is_shown_what_was_is_gone(tab):
    for name in ("attention", "attention_submit"):
        gone = next(event for event in tab.demo.fns.values() if event._id == tab.events[name].trigger_after)
        assert [output.elem_id for output in gone.outputs[1:]] == ["attention-note"]
        assert isinstance(gone.outputs[0], gr.State) and gone.fn() == (None, "")


@pytest.mark.parametrize("layer", ["9" * 5000, "-1", "1.5", "²", ""])
def test_link_to_a_layer_that_is_none_opens_at_one_there_is_and_says_so(tab, monkeypatch, layer):
    warned = []
    monkeypatch.setattr(gr, "Warning", warned.append)
    answer = tab.linked(False, SimpleNamespace(query_params={"text": TEXT, "layer": layer}))
    assert answer[3] == 0
    assert warned == ["The model has no such layer and head as the link asks for; layer 0, head 0 is shown."]


def test_new_subject_clears_lines_and_file_of_the_old_one(tab):
    [clear] = [event for event in tab.demo.fns.values() if event.targets[0][1] == "change"]
    names = ["rollout-map", "rollout-table", "plan", "lines", "file"]
    assert [output.elem_id for output in clear.outputs] == [f"attention-{name}" for name in names]
    *others, file = clear.fn()
    assert (others, file.value, file.visible) == ([None, None, "", ""], None, False)


def test_long_text_has_no_link():
    assert link_to(Subject("builtin", "x" * MAX_LINK, None, None), 0, 0) == "The text is too long for a link."


def test_examples_fit_the_builtin_model():
    builtin_lab = load_model("builtin", device="cpu")
    for text in EXAMPLES.values():
        assert 10 < len(builtin_lab.encode(text)) <= builtin_lab.context


def test_point_between_cells_is_of_the_nearest():
    cells = head_map_cells(2, 4)
    for (layer, head), (x, y) in cells.items():
        for right, down in ((0, 0), (30, -30), (-30, 30)):
            assert head_at(2, 4, (x + right, y + down)) == (layer, head)
    assert head_at(2, 4, (0, 0)) == (0, 0)
    assert head_at(2, 4, (1e6, 1e6)) == (1, 3)


def test_files_are_apart_and_deleted_with_gradio_s_own(tab, tmp_path):
    paths = [saved(tab, "head", "npz") for _ in range(2)]
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

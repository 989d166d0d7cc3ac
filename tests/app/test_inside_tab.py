import html
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest

from gpt2lab.app.events import ALONE, as_image
from gpt2lab.app.inside import EXAMPLES, build_inside_tab
from gpt2lab.app.inside_content import COLOURS, MAX_CHARACTERS, MAX_SHOWN, PARTS, Subject
from gpt2lab.app.models import ModelStore
from gpt2lab.app.results import ResultCache
from gpt2lab.figures.drawing import figure
from gpt2lab.figures.heads import head_map_cells, head_map_rows
from gpt2lab.figures.lens import LENS, lens_figure, patching_figure
from gpt2lab.figures.surprisal import rank_figure
from gpt2lab.figures.tables import table
from gpt2lab.inspection.ablation import ablate, sweep
from gpt2lab.inspection.attribution import attribution
from gpt2lab.inspection.lens import logit_lens
from gpt2lab.inspection.patching import patching
from gpt2lab.inspection.surprisal import surprisal
from gpt2lab.inspection.trace import trace
from gpt2lab.inspection.walkthrough import walk
from gpt2lab.model.lab import load_model
from gpt2lab.pages.export import FORMATS, export
from gpt2lab.pages.walkthrough import walk_page

TEXT, CORRUPTED = "The moon is a small world.", "The moon is a small world!"
LAST = 11  # the place of the last of its tokens
LIMITS = "10, 100, 1000"
VISITOR = SimpleNamespace(session_hash="one")
SUBJECT, PAIR = Subject("builtin", None, TEXT), Subject("builtin", "gpt2", TEXT)
PLACE = ["summary", "table", "added", "added2", "parts", "page"]


@pytest.fixture(scope="module")
def tab(tmp_path_factory, tiny_lab, random_lab):
    """The tab on a page of its own, with the tiny model for "builtin" and another of its shape for "gpt2"."""
    folder = tmp_path_factory.mktemp("inside")
    labs = {name: replace(lab, name=name) for name, lab in (("builtin", tiny_lab), ("gpt2", random_lab(seed=9)))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "gradio"))
        patch.setattr("gpt2lab.app.models.load_model", labs.get)
        with gr.Blocks(analytics_enabled=False) as demo:
            build_inside_tab(
                ResultCache(ModelStore(folder / "runs")), gr.Dropdown(["builtin", "gpt2"]), gr.Checkbox(False)
            )
        events = {event.api_name: event for event in demo.fns.values()}
        functions = {name: event.fn for name, event in events.items()}
        yield SimpleNamespace(lab=labs["builtin"], other=labs["gpt2"], events=events, **functions)


def show(tab, text=TEXT, *, label="builtin", other=ALONE, by="nats", limits=LIMITS, measure="rank", dark=False):
    """What is shown, by the names of the places; those of the second model end in 2."""
    answer = tab.inside(VISITOR, label, other, text, by, limits, measure, dark)
    names = [(one.elem_id or "inside-subject").removeprefix("inside-") for one in tab.events["inside"].outputs]
    return SimpleNamespace(**dict(zip([name.replace("-other", "2") for name in names], answer, strict=True)))


def at(tab, position, token="", against="", *, subject=SUBJECT, layer=0, head=0, dark=False):
    answer = tab.inside_at_position(subject, position, token, against, layer, head, dark)
    return SimpleNamespace(**dict(zip(PLACE, answer, strict=True)))


def saved(
    tab, part, form="csv", *, subject=SUBJECT, position=3, token="", against="", limits=LIMITS, measure="rank", **more
):
    fields = {"layer": 1, "head": 2, "off": ["0.1"], "mean": False, "corrupted": CORRUPTED} | more
    return Path(
        tab.inside_file(part, form, subject, position, token, against, limits, measure, *fields.values()).value["path"]
    )


def swept(tab, subject=SUBJECT, mean=False):
    return list(tab.inside_sweep(VISITOR, subject, mean, False))


def patched(tab, corrupted=CORRUPTED, token="", against="", *, subject=SUBJECT, dark=False):
    return list(tab.inside_patch(VISITOR, subject, corrupted, token, against, dark))


def click(index):
    return SimpleNamespace(index=index)


def same(picture, figure):
    return np.array_equal(np.array(picture), np.array(as_image(figure)))


def page_in(iframe):
    return html.unescape(re.search('srcdoc="([^"]*)"', iframe).group(1))


def test_show_answers_with_what_each_token_cost(tab):
    answer, found = show(tab), surprisal(tab.lab, TEXT)
    assert answer.subject == SUBJECT
    assert answer.note == f"**builtin**: {found.loss:.3f} nats per token. 12 tokens."
    top = float(found.nll[1:].max())
    assert [token for token, _ in answer.tokens] == list(found.tokens)
    assert [value for _, value in answer.tokens] == pytest.approx([0, *(found.nll[1:] / top).tolist()], abs=1e-4)
    assert answer.scale == f"The fullest colour is {top:.2f}: nats."
    assert same(answer.bars, rank_figure([found]))
    assert answer.counts == table(["rank", "builtin"], [(name, str(n)) for name, n in found.buckets])


def test_show_looks_at_the_token_before_the_last(tab):
    answer, lens = show(tab), logit_lens(tab.lab, TEXT, next=True)
    assert (answer.position, answer.layer, answer.head) == (LAST - 1, 0, 0)
    assert same(answer.lens, lens_figure(lens)) and not answer.lens2.visible
    place = at(tab, LAST - 1)
    assert [answer.summary, answer.table, answer.parts, answer.page] == [
        place.summary,
        place.table,
        place.parts,
        place.page,
    ]
    assert answer.off.choices == [(f"{i}.{part}",) * 2 for i in range(2) for part in (0, 1, 2, 3, "mlp")]
    assert answer.off.value == []


def test_show_clears_what_was_made_of_the_text_before(tab):
    answer = show(tab)
    stale = "follow against swept map losses cost changed expected patched patches".split()
    assert not any(getattr(answer, name) for name in [*stale, "patch-table"])
    assert not (answer.map2.visible or answer.patches2.visible or answer.file.visible)


def test_second_model_stands_beside_the_first(tab):
    answer, found = show(tab, other="gpt2", by="change"), [surprisal(lab, TEXT) for lab in (tab.lab, tab.other)]
    assert answer.subject == PAIR
    assert answer.note == (
        f"**builtin**: {found[0].loss:.3f} nats per token; **gpt2**: {found[1].loss:.3f} nats per token; "
        f"{found[1].loss - found[0].loss:+.3f} under the second. 12 tokens."
    )
    change = (found[1].nll - found[0].nll)[1:]
    assert [v for _, v in answer.tokens[1:]] == pytest.approx((change / change.abs().max()).tolist(), abs=1e-4)
    assert same(answer.bars, rank_figure(found))
    assert answer.lens2.visible and answer.added2.visible
    assert same(answer.lens, lens_figure(logit_lens(tab.lab, TEXT, next=True)))
    tables = [logit_lens(lab, TEXT, next=True).table(LAST - 1).text() for lab in (tab.lab, tab.other)]
    assert all(html.escape(cell) in answer.table for _, rows in tables for cell in rows[1])


@pytest.mark.parametrize("by", COLOURS)
def test_tokens_are_coloured_by_what_is_asked_for(tab, by):
    tokens, scale = tab.inside_colours(PAIR, by)
    found, other = surprisal(tab.lab, TEXT), surprisal(tab.other, TEXT)
    values = {"nats": found.nll, "rank": found.rank.clamp_min(1).log(), "entropy": found.entropy[:-1]}
    values = (values | {"change": other.nll - found.nll})[by][1:]
    assert tokens[0] == ("The", 0)
    assert [value for _, value in tokens[1:]] == pytest.approx((values / values.abs().max()).tolist(), abs=1e-4)
    assert scale.startswith(f"The fullest colour is {float(values.abs().max()):.2f}: ")


def test_change_without_a_second_model_falls_back_to_nats(tab):
    assert show(tab, by="change").tokens == tab.inside_colours(SUBJECT, "nats")[0]


def test_inspected_text_is_recoloured_without_a_model(tab, monkeypatch):
    show(tab)
    monkeypatch.setattr(tab.lab.model, "forward", None)
    monkeypatch.setattr(tab.lab.model.transformer, "forward", None)
    assert tab.inside_colours(SUBJECT, "rank") and tab.inside_ranks(SUBJECT, LIMITS, False)
    assert tab.inside_lens(SUBJECT, "entropy", False) and at(tab, 2).table


@pytest.mark.parametrize(("limits", "edges"), [("1,5", (1, 5)), (" 2 ", (2,)), ("1, 10, 250", (1, 10, 250))])
def test_ranks_are_counted_up_to_the_limits_given(tab, limits, edges):
    picture, counts = tab.inside_ranks(PAIR, limits, True)
    found = [surprisal(lab, TEXT, limits=edges) for lab in (tab.lab, tab.other)]
    assert same(picture, rank_figure(found, dark=True))
    ranks = found[0].rank[1:]
    assert sum(n for _, n in found[0].buckets) == LAST
    rows = [(a[0], str(a[1]), str(b[1])) for a, b in zip(*(one.buckets for one in found))]
    assert rows[0][1] == str(int((ranks <= edges[0]).sum()))
    assert counts == table(["rank", "builtin", "gpt2"], rows)


@pytest.mark.parametrize("measure", LENS)
def test_lens_is_coloured_by_the_measure_asked_for(tab, measure):
    picture, second = tab.inside_lens(SUBJECT, measure, True)
    assert same(picture, lens_figure(logit_lens(tab.lab, TEXT, next=True), measure, dark=True))
    assert not second.visible


@pytest.mark.parametrize(("index", "position"), [(0, 0), (1, 0), (5, 4), (LAST, LAST - 1)])
def test_click_on_a_token_shows_how_its_prediction_came_about(tab, index, position):
    where, *shown = tab.inside_token(SUBJECT, "", "", 1, 2, False, click(index))
    assert where == position
    expected = at(tab, position, layer=1, head=2)
    summary, tables, picture, second, parts, page = shown
    assert [summary, tables, parts, page] == [expected.summary, expected.table, expected.parts, expected.page]
    assert np.array_equal(picture, expected.added) and not second.visible


@pytest.mark.parametrize("position", [0, LAST])
def test_place_is_described_by_lens_and_attribution_of_what_comes_next(tab, position):
    found, lens = at(tab, position), logit_lens(tab.lab, TEXT, next=True)
    tokens, ids = lens.trace.tokens, lens.trace.ids
    assert found.summary.startswith(f"After token {position}, `{tokens[position]}`")
    assert ("the last." in found.summary) == (position == LAST)
    entry = int(lens.settled[position])
    assert found.summary.endswith(f"settles after {'embedding' if entry == 0 else f'layer {entry - 1}'}.")
    assert found.table == f"<h4>builtin</h4>{table(*lens.table(position).text())}"
    token = None if position == LAST else int(ids[position + 1])
    added = attribution(tab.lab, TEXT, position=position, token=token)
    assert same(found.added, figure(added))
    assert found.parts == f"<h4>{html.escape(added.title)}</h4>{table(*added.table().text())}"


@pytest.mark.parametrize(("token", "against"), [(".", ""), ("#65", "."), ("", "#3"), (" moon", " s")])
def test_token_is_followed_against_another(tab, token, against):
    follows = int(tab.lab.encode(TEXT)[4])
    ids = [int(one[1:]) if one.startswith("#") else one for one in (token, against)]
    expected = attribution(tab.lab, TEXT, position=3, token=ids[0] or follows, against=ids[1] or None)
    for event in ("token", "against"):
        _, _, picture, _, parts, _ = getattr(tab, f"inside_at_{event}")(SUBJECT, 3, token, against, 0, 0, False)
        assert same(picture, figure(expected))
        assert f"{expected.total:.4g}" in parts


def test_dark_pages_have_dark_pictures(tab):
    light, dark = at(tab, 3), at(tab, 3, dark=True)
    assert np.array(light.added)[0, 0, :3].tolist() == [255, 255, 255]
    assert np.array(dark.added)[0, 0, :3].tolist() == [0x18, 0x18, 0x1B]
    assert light.table == dark.table


@pytest.mark.parametrize("which", ["layer", "head"])
def test_block_is_walked_with_the_model_s_own_numbers(tab, which):
    frame = getattr(tab, f"inside_walk_{which}")(PAIR, 3, 1, 2, True)
    assert page_in(frame) == walk_page(walk(tab.lab, TEXT, 1, 2, 3), theme="dark").html


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize(("names", "heads", "mlps"), [(["0.1", "1.3"], [(0, 1), (1, 3)], []), (["1.mlp"], [], [1])])
def test_text_costs_what_it_does_with_ablated_heads(tab, names, heads, mlps, mean):
    found = ablate(tab.lab, TEXT, heads, mlps=mlps, mean=mean)
    change = (found.after.nll - found.before.nll)[1:]
    for event in ("off", "mean"):
        cost, changed, expected = getattr(tab, f"inside_{event}")(SUBJECT, names, mean)
        before, after = found.before.loss, found.after.loss
        assert f"**builtin**: {before:.3f} → {after:.3f} nats per token ({after - before:+.3f})" in cost
        assert [v for _, v in changed[1:]] == pytest.approx((change / change.abs().max()).tolist(), abs=1e-4)
        best = found.after.top[-1, 0].item()
        assert f"{html.escape(found.after.names[best])} {found.after.top_probability[-1, 0]:.3f}" in expected


def test_no_ablation_changes_nothing(tab):
    for off in ([], None):
        cost, changed, _ = tab.inside_off(SUBJECT, off, False)
        assert "(+0.000)" in cost
        assert {value for _, value in changed} == {0}


def test_ablation_reports_both_models(tab):
    cost, _, expected = tab.inside_off(PAIR, ["0.0"], False)
    for lab in (tab.lab, tab.other):
        found = ablate(lab, TEXT, [(0, 0)])
        assert f"**{lab.name}**: {found.before.loss:.3f} → {found.after.loss:.3f}" in cost
        best = found.after.top[-1, 0].item()
        assert f"{html.escape(found.after.names[best])} {found.after.top_probability[-1, 0]:.3f}" in expected


def test_click_on_the_map_ablates_a_head_and_restores_it(tab):
    x, y = head_map_cells(2, 4)[1, 2]
    for toggle in (tab.inside_toggle, tab.inside_toggle_other):
        off, *shown = toggle(SUBJECT, ["0.3"], False, click([x, y]))
        assert off == ["0.3", "1.2"]
        assert shown == list(tab.inside_off(SUBJECT, off, False))
        assert toggle(SUBJECT, off, False, click([x, y]))[0] == ["0.3"]


def test_click_beside_the_map_changes_nothing(tab):
    assert tab.inside_toggle(SUBJECT, ["0.3"], False, click([0, 0])) == [gr.skip()] * 4


@pytest.mark.parametrize("off", [None, []])
def test_first_click_on_the_map_ablates_a_head(tab, off):
    assert tab.inside_toggle(SUBJECT, off, False, click(head_map_cells(2, 4)[0, 1]))[0] == ["0.1"]


@pytest.mark.parametrize("mean", [False, True])
def test_sweep_reports_each_layer_and_then_the_map(tab, mean):
    *going, last = swept(tab, PAIR, mean)
    assert [now[0] for now in going] == [f"{name}: layer {i} of 2" for name in ("builtin", "gpt2") for i in (1, 2)]
    assert all(one == gr.skip() for now in going for one in now[1:])
    note, picture, second, tables = last
    found = [sweep(lab, TEXT, mean=mean).map() for lab in (tab.lab, tab.other)]
    assert same(picture, figure(found[0])) and second.visible
    assert note.startswith("Click a head")
    for one in found:
        for row in head_map_rows(one.values):
            assert all(f"<td>{cell}</td>" in tables for cell in row)


def test_stop_ends_the_sweep_of_its_own_page_alone(tab):
    going = tab.inside_sweep(VISITOR, SUBJECT, False, False)
    next(going)
    tab.inside_stop(SimpleNamespace(session_hash="another"))
    tab.inside_stop(VISITOR)
    [last] = going
    assert last == ("Stopped.", gr.skip(), gr.skip(), gr.skip())
    assert swept(tab)[-1][0].startswith("Click a head")  # and the next one is not stopped


def test_second_sweep_waits_for_the_first_on_the_same_page_alone(tab):
    going = tab.inside_sweep(VISITOR, SUBJECT, False, False)
    next(going)
    with pytest.raises(gr.Error, match="press Stop first"):
        swept(tab)
    assert list(tab.inside_sweep(SimpleNamespace(session_hash="another"), SUBJECT, False, False))
    going.close()  # as when the page is closed
    assert swept(tab)


def test_another_tab_s_visitor_gets_the_model_between_two_layers(tab):
    going = tab.inside_sweep(VISITOR, SUBJECT, False, False)
    next(going)
    assert show(tab, "Another text.").note
    list(going)


def test_inspecting_a_text_stops_the_measurement_of_the_previous_one(tab):
    going = tab.inside_sweep(VISITOR, SUBJECT, False, False)
    next(going)
    show(tab, "Another text.")
    [last] = going
    assert last[0] == "Stopped."


def test_clean_states_are_put_into_the_corrupted_run(tab):
    *going, (summary, picture, second, rows) = patched(tab, subject=PAIR, dark=True)
    found = [patching(lab, TEXT, CORRUPTED) for lab in (tab.lab, tab.other)]
    assert [now[0] for now in going] == [f"{name}: layer {i} of 3" for name in ("builtin", "gpt2") for i in (1, 2, 3)]
    assert same(picture, patching_figure(found[0], dark=True)) and second.visible
    assert rows == "".join(table(*one.table().text()) for one in found)
    assert f"clean {found[0].clean:+.3f}, corrupted {found[0].corrupted:+.3f}" in summary


def test_stop_ends_patching(tab):
    going = tab.inside_patch(VISITOR, SUBJECT, CORRUPTED, "", "", False)
    next(going)
    tab.inside_patch_stop(VISITOR)
    [last] = going
    assert last[0] == "Stopped." and len(patched(tab)) == 4


def test_patching_measures_the_tokens_that_are_named(tab):
    summary, *_ = patched(tab, token="#65", against="#66")[-1]
    assert f"clean {patching(tab.lab, TEXT, CORRUPTED, answer=65, against=66).clean:+.3f}" in summary


def expected_result(lab, part):
    """What the package computes for a part."""
    if part == "surprisal":
        return surprisal(lab, TEXT)
    if part == "lens":
        return logit_lens(lab, TEXT, next=True)
    if part == "attribution":
        return attribution(lab, TEXT, position=3, token=int(lab.encode(TEXT)[4]))
    if part == "walk":
        return walk(lab, TEXT, 1, 2, 3)
    if part == "every head alone":
        return sweep(lab, TEXT)
    if part == "patching":
        return patching(lab, TEXT, CORRUPTED)
    return ablate(lab, TEXT, [(0, 1)])


@pytest.mark.parametrize("part", PARTS)
def test_each_part_is_saved_as_the_package_makes_it(tab, part):
    path, expected = saved(tab, part, "npz"), expected_result(tab.lab, part)
    assert path.name == f"inside-{part.replace(' ', '-')}.npz"
    assert path.read_bytes() == export(expected, "npz")


def test_a_part_is_saved_in_each_format(tab):
    expected = expected_result(tab.lab, "attribution")
    for form in FORMATS:
        path, content = saved(tab, "attribution", form), export(expected, form)
        assert path.name == f"inside-attribution.{form}"
        if form == "svg":  # matplotlib names its parts at random
            assert len(path.read_bytes()) == pytest.approx(len(content), rel=0.01)
        else:
            assert path.read_bytes() == content, form


def test_lens_is_saved_coloured_by_its_measure_and_a_walk_not_as_a_picture(tab):
    expected = export(expected_result(tab.lab, "lens"), "png", measure="entropy")
    assert saved(tab, "lens", "png", measure="entropy").read_bytes() == expected
    with pytest.raises(gr.Error, match="a Walkthrough has no picture"):
        saved(tab, "walk", "png")


def test_files_follow_what_the_fields_say(tab):
    with np.load(saved(tab, "surprisal", "npz", subject=PAIR)) as found:
        np.testing.assert_allclose(found["other_nll"], surprisal(tab.other, TEXT).nll, atol=1e-5)
    with np.load(saved(tab, "heads switched off", "npz", off=["1.mlp"], mean=True)) as found:
        after = ablate(tab.lab, TEXT, mlps=[1], mean=True).after
        np.testing.assert_allclose(found["other_nll"], after.nll, atol=1e-5)
    with np.load(saved(tab, "walk", "npz", position=7, layer=0, head=3)) as found:
        np.testing.assert_allclose(found["query"], trace(tab.lab, TEXT).q[0, 3, 7], atol=1e-5)
    with np.load(saved(tab, "patching", "npz", token="#65", against="#66")) as found:
        expected = patching(tab.lab, TEXT, CORRUPTED, answer=65, against=66).values
        np.testing.assert_allclose(found["values"], expected, atol=1e-4)


def test_files_are_apart(tab):
    assert saved(tab, "lens") != saved(tab, "lens")


def test_one_token_is_shown_though_nothing_predicts_it(tab):
    answer = show(tab, "x")
    assert answer.note == "One token, which nothing predicts."
    assert (answer.tokens, answer.position) == ([("x", 0)], 0)
    assert answer.summary.startswith("After token 0, `x`, the last.")
    with pytest.raises(gr.Error, match="one token has no prediction; give at least 2"):
        swept(tab, Subject("builtin", None, "x"))


def test_of_a_text_past_the_context_all_is_coloured_and_the_beginning_inspected(tab):
    text = TEXT * 10
    answer, found = show(tab, text), surprisal(tab.lab, text)
    assert len(answer.tokens) == len(found.tokens) > tab.lab.context
    assert answer.note.startswith(f"**builtin**: {found.loss:.3f}")
    assert answer.position == tab.lab.context - 2
    subject = answer.subject
    assert answer.note.endswith("The model reads 64 at once: all but the colours is of the first 64.")
    with pytest.raises(gr.Error, match="token 99 is past what builtin reads at once; choose one up to 63"):
        tab.inside_token(subject, "", "", 0, 0, False, click(100))
    with pytest.raises(gr.Error, match="64"):
        tab.inside_off(subject, ["0.0"], False)


def test_of_many_tokens_the_first_are_coloured_and_that_is_said(tab):
    tokens, scale = tab.inside_colours(Subject("builtin", None, "x" * (MAX_SHOWN + 5)), "nats")
    assert len(tokens) == MAX_SHOWN
    assert scale.endswith("The first 1,000 of 1,005 tokens.")


def test_hostile_text_is_escaped(tab):
    text = "</h4><img src=x onerror=alert(1)>`$x$` & \"'"
    answer = show(tab, text)
    assert answer.note and len(answer.tokens) > 10
    for position in (0, 7, 20):
        found = at(tab, position, subject=answer.subject)
        for shown in (found.table, found.parts):
            assert set(re.findall("<(/?[a-z0-9]+)", shown)) <= {
                one + tag for one in ("", "/") for tag in "h4 div table thead tbody tr th td".split()
            }
        assert found.summary.count("`") in (2, 4)  # of code, and none of the text's own


def test_examples_fit_the_builtin_model():
    builtin = load_model("builtin", device="cpu")  # as imported, before a fixture took its place
    for text in EXAMPLES.values():
        assert 10 < len(builtin.encode(text)) <= builtin.context


NOTHING = [
    lambda tab: tab.inside_colours(None, "nats"),
    lambda tab: tab.inside_ranks(None, LIMITS, False),
    lambda tab: tab.inside_lens(None, "rank", False),
    lambda tab: tab.inside_token(None, "", "", 0, 0, False, click(1)),
    lambda tab: at(tab, 0, subject=None),
    lambda tab: tab.inside_walk_layer(None, 0, 0, 0, False),
    lambda tab: tab.inside_off(None, ["0.0"], False),
    lambda tab: tab.inside_mean(None, None, True),
    lambda tab: tab.inside_toggle(None, [], False, click([0, 0])),
    lambda tab: swept(tab, None),
    lambda tab: patched(tab, subject=None),
    *(lambda tab, part=part: saved(tab, part, subject=None) for part in PARTS),
]


@pytest.mark.parametrize("ask", NOTHING)
def test_before_any_text_is_inspected_an_error_says_so(tab, ask):
    with pytest.raises(gr.Error, match="no text is inspected yet; press Look inside first"):
        ask(tab)


BAD = [
    (lambda tab: show(tab, ""), "the text is empty"),
    (lambda tab: show(tab, None), "the text is empty"),
    (lambda tab: show(tab, 5), "the text is empty"),
    (lambda tab: show(tab, "x" * (MAX_CHARACTERS + 1)), "the text has 20,001 characters; the limit is 20,000"),
    (lambda tab: show(tab, "\ud800"), "surrogate"),
    (lambda tab: show(tab, label="/etc"), "'/etc' is unknown"),
    (lambda tab: show(tab, label=None), "None is unknown"),
    (lambda tab: show(tab, label=["builtin"]), "is unknown"),
    (lambda tab: show(tab, other="../x"), "'../x' is unknown"),
    (lambda tab: show(tab, by="smell"), "colour 'smell' is unknown; use nats, rank, entropy, change"),
    (lambda tab: show(tab, limits="many"), "limits must be numbers separated by commas"),
    (lambda tab: show(tab, measure="loss"), "measure 'loss' is unknown; use rank, probability, entropy, divergence"),
    (lambda tab: tab.inside_colours(SUBJECT, "__class__"), "colour '__class__' is unknown"),
    (lambda tab: tab.inside_colours(SUBJECT, None), "colour None is unknown"),
    (lambda tab: tab.inside_colours(SUBJECT, "change"), "no second model to compare with"),
    (lambda tab: tab.inside_ranks(SUBJECT, "", False), "limits must be numbers separated by commas"),
    (lambda tab: tab.inside_ranks(SUBJECT, None, False), "limits must be numbers"),
    (lambda tab: tab.inside_ranks(SUBJECT, "1, ten", False), "limits must be numbers separated by commas"),
    (lambda tab: tab.inside_ranks(SUBJECT, "1,,2", False), "limits must be numbers"),
    (lambda tab: tab.inside_ranks(SUBJECT, "-1", False), "limits must be numbers"),
    (lambda tab: tab.inside_ranks(SUBJECT, "٣", False), "limits must be numbers"),
    (lambda tab: tab.inside_ranks(SUBJECT, "9" * 10, False), "limits must be numbers"),
    (lambda tab: tab.inside_ranks(SUBJECT, "0", False), "limit 0 is out of range"),
    (lambda tab: tab.inside_ranks(SUBJECT, "100, 10", False), "do not rise"),
    (lambda tab: tab.inside_lens(SUBJECT, "__class__", False), "measure '__class__' is unknown"),
    (lambda tab: tab.inside_lens(SUBJECT, None, False), "measure None is unknown"),
    *(
        (lambda tab, value=value: at(tab, value), f"position {re.escape(repr(value))} is out of range")
        for value in (12, -1, None, 1.5, float("nan"), "1", True, [1])
    ),
    (lambda tab: tab.inside_token(SUBJECT, "", "", 0, 0, False, click(13)), "position 12 is out of range"),
    (lambda tab: at(tab, 1, "moon moon"), "'moon moon' is . tokens"),
    (lambda tab: at(tab, 1, "#300"), "token 300 is out of range; use a whole number from 0 to 299"),
    (lambda tab: at(tab, 1, "#300", ""), "token 300"),
    (lambda tab: at(tab, 1, "", "#9999999"), "token 9999999 is out of range"),
    (lambda tab: at(tab, 1, "#5", "#5"), "against itself is 0"),
    *(
        (lambda tab, value=value: tab.inside_walk_layer(SUBJECT, 1, value, 0, False), "layer .* is out of range")
        for value in (2, -1, None, 0.5, "0", True)
    ),
    *(
        (lambda tab, value=value: tab.inside_walk_head(SUBJECT, 1, 0, value, False), "head .* is out of range")
        for value in (4, -1, 0.5, "0", True, None)
    ),
    (lambda tab: tab.inside_walk_head(SUBJECT, None, 0, 0, False), "position None is out of range"),
    (lambda tab: tab.inside_off(SUBJECT, ["0.9"], False), "head 9 is out of range; use a whole number from 0 to 3"),
    (lambda tab: tab.inside_off(SUBJECT, ["7.mlp"], False), "mlp 7 is out of range"),
    (lambda tab: tab.inside_off(SUBJECT, ["all"], False), "'all' names no head or MLP"),
    (lambda tab: tab.inside_off(SUBJECT, [None], False), "'None' names no head or MLP"),
    (lambda tab: patched(tab, "", "", ""), "is empty"),
    (lambda tab: patched(tab, None, "", ""), "text"),
    (lambda tab: patched(tab, TEXT, "", ""), "the two prompts are the same"),
    (lambda tab: patched(tab, TEXT, "#1", "#2"), "the two prompts are the same"),
    (lambda tab: patched(tab, CORRUPTED, "#1", "#1"), "are the same token"),
    (lambda tab: patched(tab, "x", "", ""), "12 tokens in the clean prompt and 1 in the corrupted"),
    (lambda tab: patched(tab, CORRUPTED, "#300", ""), "token 300 is out of range"),
    (lambda tab: saved(tab, "/etc/passwd"), "part '/etc/passwd' is unknown; use surprisal, lens, attribution, walk"),
    (lambda tab: saved(tab, None), "part None is unknown"),
    *((lambda tab, part=part: saved(tab, part, "../x"), "format '../x' is unknown") for part in PARTS),
    *((lambda tab, part=part: saved(tab, part, None), "format 'None' is unknown") for part in PARTS),
    (lambda tab: saved(tab, "surprisal", "png", limits="ten"), "limits must be numbers"),
    (lambda tab: saved(tab, "lens", measure="loss"), "measure 'loss' is unknown"),
    (lambda tab: saved(tab, "attribution", position=None), "position None is out of range"),
    (lambda tab: saved(tab, "walk", position=99), "position 99 is out of range"),
    (lambda tab: saved(tab, "walk", layer=9), "layer 9 is out of range"),
    (lambda tab: saved(tab, "heads switched off", off=["0.9"]), "head 9 is out of range"),
    (lambda tab: saved(tab, "patching", corrupted=None), "text"),
]


@pytest.mark.parametrize(("ask", "message"), BAD, ids=[f"{i} {one[1]}"[:60] for i, one in enumerate(BAD)])
def test_bad_input_is_refused(tab, ask, message):
    with pytest.raises(gr.Error, match=message):
        ask(tab)

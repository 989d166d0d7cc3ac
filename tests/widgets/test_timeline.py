"""What the timeline gets: the numbers of a History, of one or of two, and what it refuses."""

import base64
import json
import zlib
from dataclasses import replace

import numpy as np
import pytest

from gpt2lab.errors import LabError
from gpt2lab.inspection.heads import SCORES
from gpt2lab.pages.export import export
from gpt2lab.training import runs
from gpt2lab.training.history import History, read_history
from gpt2lab.widgets import Timeline
from gpt2lab.widgets.timeline import observed_steps, packed_attention

BUILTIN = read_history("builtin")
S, L, H, T, _ = BUILTIN.attention.shape


def some(history: History, keep, **changes) -> History:
    """A history of some of its steps."""
    per_step = ("steps", "surprisal", "lens_rank", "attention", "weight_norm", "update_norm")
    cut = {name: getattr(history, name)[keep] for name in per_step}
    cut |= {
        name: {key: values[keep] for key, values in getattr(history, name).items()}
        for name in ("head_scores", "losses")
    }
    return replace(history, **cut, **changes)


def write_run(folder, history, name="run"):
    """A run's folder with the observations of a history."""
    made = runs.new_run(folder, {"model": "builtin", "data": "sample", "steps": 5000}, name)
    for step in history.steps.tolist():
        observe(made, history, step)
    return made


def observe(made, history, step):
    at = history.place(step)
    (made / "history").mkdir(exist_ok=True)
    scores = {f"head_scores_{name}": values[at] for name, values in history.head_scores.items()}
    np.savez_compressed(
        made / "history" / f"{step:08}.npz", tokens=np.array(history.tokens), ids=history.ids,
        surprisal=history.surprisal[at], lens_rank=history.lens_rank[at], attention=history.attention[at], **scores,
    )  # fmt: skip


def test_data_are_the_numbers_of_the_history():
    [side] = Timeline(BUILTIN).data["sides"]
    assert (side["name"], side["tokens"], side["steps"]) == ("builtin", list(BUILTIN.tokens), BUILTIN.steps.tolist())
    for score in side["scores"]:
        np.testing.assert_allclose(score["values"], BUILTIN.head_scores[score["name"]], atol=6e-5)
    assert [score["name"] for score in side["scores"]] == list(SCORES)
    assert [line[0] for line in side["surprisal"]] == [None] * S
    np.testing.assert_allclose([line[1:] for line in side["surprisal"]], BUILTIN.surprisal[:, 1:], atol=6e-5)
    assert side["ranks"] == BUILTIN.lens_rank.tolist()
    assert side["formed"]["induction"] == 2048 and side["formed"]["entropy"] is None
    assert side["losses"] == {}  # not recorded for the built-in model
    packed = np.frombuffer(zlib.decompress(base64.b64decode(side["attention"]["weights"])), np.uint8)
    rows, columns = np.tril_indices(T)
    assert side["attention"]["at"] == list(range(S))
    assert np.array_equal(packed.reshape(S, L, H, -1), BUILTIN.attention[..., rows, columns])


def test_recorded_losses_are_sent_and_missing_ones_are_null():
    losses = {**BUILTIN.losses, "validation": np.where(np.arange(S) % 2, np.nan, 4.5)}
    [side] = Timeline(replace(BUILTIN, losses=losses)).data["sides"]
    assert side["losses"] == {"validation": [4.5, None] * (S // 2) + [4.5]}


def test_page_is_small_and_an_export_is_the_same_view():
    html = Timeline("builtin").page().html
    assert len(html) < 3_000_000
    assert "stepPlayer" in export(BUILTIN, "html").decode() and json.dumps(BUILTIN.tokens[3])[1:-1] in html


def test_of_many_steps_the_attention_of_evenly_spaced_ones_is_packed():
    each = L * H * T * (T + 1) // 2
    packed = packed_attention(BUILTIN.attention[:21], 5 * each)
    assert packed["at"] == [0, 5, 10, 15, 20]
    assert len(zlib.decompress(base64.b64decode(packed["weights"]))) == 5 * each
    assert packed_attention(BUILTIN.attention[:1], 0)["at"] == [0]


def test_step_is_read_and_set_and_must_have_been_observed():
    timeline = Timeline("builtin")
    assert (timeline.step, timeline.layer, timeline.head) == (BUILTIN.steps[-1], *BUILTIN.top())
    timeline.step = 1024
    assert timeline.selection.step == 1024
    with pytest.raises(LabError, match="step 1000 was not observed; use one of 0, 1, 2"):
        timeline.step = 1000
    with pytest.raises(LabError, match="layer 6 is out of range"):
        timeline.layer = 6
    timeline.set_state({"selection": {**vars(timeline.selection), "step": 2048}})
    assert timeline.step == 2048


def test_two_histories_have_one_slider_over_the_steps_of_both():
    early, late = some(BUILTIN, slice(0, 10), name="early"), some(BUILTIN, slice(8, 21, 2), name="late")
    timeline = Timeline(early, late)
    assert [side["name"] for side in timeline.data["sides"]] == ["early", "late"]
    assert observed_steps(timeline.data) == sorted({*early.steps.tolist(), *late.steps.tolist()})
    assert timeline.data["sides"][0]["full"] == timeline.data["sides"][1]["full"]  # colours can be compared
    timeline.step = 3072  # of the second alone


def test_histories_of_other_texts_or_shapes_are_refused():
    other = replace(BUILTIN, ids=BUILTIN.ids + 1, name="other")
    with pytest.raises(LabError, match="builtin and other were observed on different texts"):
        Timeline(BUILTIN, other)
    small = {name: values[:, :2] for name, values in BUILTIN.head_scores.items()}
    norms = {"weight_norm": BUILTIN.weight_norm[:, :2], "update_norm": BUILTIN.update_norm[:, :2]}
    other = replace(
        BUILTIN,
        name="small",
        head_scores=small,
        attention=BUILTIN.attention[:, :2],
        lens_rank=BUILTIN.lens_rank[:, :3],
        **norms,
    )
    with pytest.raises(LabError, match="builtin has 6 × 8 heads and small has 2 × 8"):
        Timeline(BUILTIN, other)


def test_a_run_is_followed_while_it_trains(tmp_path):
    made = write_run(tmp_path, some(BUILTIN, slice(0, 3)))
    timeline = Timeline("run", runs_dir=tmp_path)
    runs.write_status(made, runs.RunStatus("running", 2, 5000, **runs.this_process()))
    assert timeline.update() and timeline.step == 2
    observe(made, BUILTIN, 4)
    timeline.update()
    assert timeline.data["sides"][0]["steps"] == [0, 1, 2, 4] and timeline.step == 4  # it was at the last step
    timeline.step = 1
    observe(made, BUILTIN, 8)
    runs.write_status(made, runs.RunStatus("finished", 8, 8, **runs.this_process()))
    assert not timeline.update()
    assert timeline.data["sides"][0]["steps"][-1] == 8 and timeline.step == 1
    timeline.watch(seconds=60)  # ends at once: the run has ended


def test_a_run_without_a_history_is_refused(tmp_path):
    runs.new_run(tmp_path, {"model": "builtin", "data": "sample", "steps": 10}, "blind")
    with pytest.raises(LabError, match="run 'blind' has no history: nothing was recorded yet"):
        Timeline("blind", runs_dir=tmp_path)

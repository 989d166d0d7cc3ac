import io
import json
import shutil
import zipfile

import numpy as np
import pytest
import torch

from gpt2lab.errors import LabError
from gpt2lab.figures import figure
from gpt2lab.figures.history import VIEWS
from gpt2lab.inspection.ablation import ablate
from gpt2lab.inspection.trace import trace_ids
from gpt2lab.model.lab import load_model
from gpt2lab.pages.export import FORMATS, export
from gpt2lab.training.finetuning import finetune
from gpt2lab.training.head_changes import head_changes
from gpt2lab.training.history import History, read_history

SETTINGS = {"block_size": 16, "batch_size": 4, "steps": 6, "eval_every": 3, "precision": "fp32", "snapshots": 3}


@pytest.fixture(scope="module")
def kept(tiny_folder, moon, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT2LAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        runs_dir = tmp_path_factory.mktemp("runs")
        return finetune(
            model=str(tiny_folder), data=moon, runs_dir=runs_dir, run="kept", learning_rate=0.03, **SETTINGS
        )


@pytest.fixture
def copied(kept, tmp_path):
    """A copy of the run's folder, to damage."""
    return shutil.copytree(kept.folder, tmp_path / "copied")


def course(values, **changes):
    """A History of one layer and one head whose induction score takes these values at steps 0, 1, 2, …"""
    S, T = len(values), 3
    scores = {name: np.zeros((S, 1, 1), np.float32) for name in read_history("builtin").head_scores}
    scores["induction"] = np.array(values, np.float32).reshape(S, 1, 1)
    unknown = np.full(S, np.nan)
    return History(
        **{
            "name": "made",
            "tokens": ("a", "b", "c"),
            "ids": np.arange(T),
            "steps": np.arange(S),
            "head_scores": scores,
            "surprisal": np.ones((S, T)),
            "lens_rank": np.ones((S, 2, T), int),
            "attention": np.zeros((S, 1, 1, T, T), np.uint8),
            "losses": {"train": unknown},
            "weight_norm": np.ones((S, 1)),
            "update_norm": np.ones((S, 1)),
            "samples": {},
        }
        | changes
    )


@pytest.mark.parametrize(
    ("values", "step"),
    [
        ([0.0, 0.1, 0.5, 0.8], 2),
        ([0.0, 0.6, 0.2, 0.8, 0.9], 3),  # it came, went, and stayed
        ([0.0, 0.1, 0.2], None),  # never a head of this kind
        ([0.7, 0.8, 0.9], None),  # it was there before
    ],
)
def test_change_step_is_where_the_head_stays_above_half_of_its_final_score(values, step):
    assert course(values).change_step("induction") == step


def test_shapes_that_do_not_agree_are_refused():
    with pytest.raises(ValueError, match="surprisal of shape"):
        course([0.1, 0.2], surprisal=np.ones((3, 3)))
    with pytest.raises(ValueError, match="steps do not rise"):
        course([0.1, 0.2], steps=np.array([1, 1]))


def damage_cut(file):
    file.write_bytes(file.read_bytes()[:200])


def damage_other_shapes(file):
    with np.load(file) as content:
        arrays = {**content} | {"attention": np.zeros((1, 1, 2, 2), np.uint8)}
    np.savez(file, **arrays)


def damage_pickle(file):
    np.savez(file, attention=np.array([{"a": 1}], dtype=object), allow_pickle=True)


def damage_bomb(file):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as members:
        members.writestr("attention.npy", bytes(60_000_000))


def damage_empty(file):
    content = io.BytesIO()
    np.savez(content)
    file.write_bytes(content.getvalue())


@pytest.mark.parametrize("damage", [damage_cut, damage_other_shapes, damage_pickle, damage_bomb, damage_empty])
def test_a_damaged_file_is_named_and_the_others_are_read(copied, damage):
    whole = read_history(copied)
    file = sorted((copied / "history").iterdir())[-1]
    damage(file)
    found = read_history(copied)
    assert found.steps.tolist() == whole.steps.tolist()[:-1]
    [problem] = found.problems
    assert problem.startswith(f"{file.name} cannot be read (") and "\n" not in problem
    for other in (copied / "history").iterdir():
        other.write_bytes(b"")
    with pytest.raises(LabError, match=r"run 'copied' has no history: 0+\.npz cannot be read"):
        read_history(copied)


def test_a_run_without_history_says_so(copied):
    shutil.rmtree(copied / "history")
    with pytest.raises(LabError, match="run 'copied' has no history: nothing was recorded yet"):
        read_history(copied)
    with pytest.raises(LabError, match="there is no run 'elsewhere'"):
        read_history("elsewhere", copied.parent)


def test_every_export_and_view_has_the_numbers(kept, small_pictures):
    history = read_history(kept.folder)
    for format in FORMATS:
        assert len(export(history, format)) > 500
    with np.load(io.BytesIO(export(history, "npz"))) as arrays:
        np.testing.assert_array_equal(arrays["head_scores_induction"], history.head_scores["induction"])
        assert arrays["attention"].shape == history.attention.shape
    for view in VIEWS:
        assert figure(history, view=view, dark=True).axes
    drawn = figure(history).axes[0]
    lines = {tuple(line.get_ydata().round(5)) for line in drawn.lines}
    layer, head = history.top("induction")
    assert tuple(history.head_scores["induction"][:, layer, head].round(5)) in lines


def test_changes_are_those_of_the_models_before_and_after(kept, tiny_lab):
    found, history = head_changes(kept.folder), read_history(kept.folder)
    after = load_model(str(kept.model_dir), device="cpu")
    seen = [trace_ids(lab, torch.from_numpy(history.ids)) for lab in (tiny_lab, after)]
    for layer, head in ((0, 1), (1, 3)):
        one, other = (each.attention(layer, head).numpy() for each in seen)
        assert found.moved[layer, head] == pytest.approx(np.abs(one - other)[1:].sum(-1).mean() / 2, abs=1e-6)
        for lab, trace, costs in zip((tiny_lab, after), seen, (found.before, found.after)):
            ablated = ablate(lab, trace, [(layer, head)])
            assert costs[layer, head] == pytest.approx(ablated.after.loss - ablated.before.loss, abs=1e-4)
        moves = [
            np.abs(a.astype(int) - b)[layer, head, 1:].sum() for a, b in zip(history.attention, history.attention[1:])
        ]
        at = int(np.argmax(moves))
        assert (found.began[layer, head], found.ended[layer, head]) == (history.steps[at], history.steps[at + 1])
    moved = [row[2] for row in found.table().rows]
    assert moved == sorted(moved, reverse=True) and moved[0] == found.moved.max()


def test_commands_print_and_write_the_history_and_the_changes(kept, run_cli, tmp_path):
    place = ("--runs", kept.folder.parent)
    history = read_history(kept.folder)
    status, out, _ = run_cli("runs", "history", "kept", *place)
    layer, head = history.top("induction")
    assert status == 0 and f"induction of {layer}.{head}" in out and "validation" in out
    assert [int(line.split()[0]) for line in out.splitlines()[1 : 1 + len(history.steps)]] == history.steps.tolist()
    status, out, _ = run_cli("runs", "history", "kept", *place, "--json")
    assert json.loads(out)["history"]["steps"] == history.steps.tolist()
    status, out, _ = run_cli("runs", "history", "builtin")
    assert status == 0 and "passes half of its final induction score by step 2,048" in out
    status, out, _ = run_cli("runs", "changes", "kept", *place)
    first = head_changes(kept.folder).table().rows[0]
    assert status == 0 and out.splitlines()[1].split()[:2] == [str(first[0]), str(first[1])]
    drawn = tmp_path / "history.svg"
    assert run_cli("runs", "history", "kept", *place, "--view", "lens", "--out", drawn)[0] == 0
    assert drawn.read_bytes().startswith(b"<?xml")
    for wrong, message in (
        (("history", "kept", "--view", "side"), "view 'side' is unknown; use scores, lens, surprisal"),
        (("history", "kept", "--score", "side"), "score 'side' is unknown"),
        (("changes", "elsewhere"), "there is no run 'elsewhere'"),
        (("changes", "kept", "--out", tmp_path / "x.bmp"), "format 'bmp' is unknown"),
    ):
        status, _, said = run_cli("runs", *wrong, *place)
        assert status == 2 and message in said

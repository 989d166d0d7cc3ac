import numpy as np
import pytest
import torch

from gpt2lab.errors import LabError
from gpt2lab.inspection.heads import SCORES, head_scores, random_tokens_twice
from gpt2lab.inspection.lens import logit_lens
from gpt2lab.inspection.surprisal import surprisal
from gpt2lab.inspection.trace import trace
from gpt2lab.model.lab import load_model, token_nll
from gpt2lab.training import observation, runs, watch
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.finetuning import finetune
from gpt2lab.training.history import read_history
from gpt2lab.training.observation import observe, planned_steps, probe_ids, rewind_observations, snapshot_steps
from gpt2lab.training.prepare import prepare
from gpt2lab.training.records import read_metrics

PROBE = "The moon is a small world, and the moon goes around."
SETTINGS = {"block_size": 16, "batch_size": 4, "steps": 8, "eval_every": 4, "precision": "fp32", "patience": 0}


@pytest.fixture(scope="module", params=["full", "lora"])
def run(request, tiny_folder, moon, tmp_path_factory):
    """A run of 8 steps with dropout that keeps its weights at 4 of its observed steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GPT2LAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        chosen = {"method": request.param, "snapshots": 4, "probe": PROBE, "learning_rate": 3e-2}
        runs_dir = tmp_path_factory.mktemp("runs")
        return finetune(model=str(tiny_folder), data=moon, runs_dir=runs_dir, run="observed", **SETTINGS | chosen)


@pytest.fixture
def job(tiny_folder, moon):
    """A function: changes → a prepared run."""

    def make(**changes):
        return prepare(TrainConfig(model=str(tiny_folder), data=moon, **SETTINGS | changes), Process())

    return make


class Process:
    device, num_processes = torch.device("cpu"), 1


def test_history_equals_what_the_package_computes_from_the_snapshots(run, tiny_folder):
    history = read_history(run.folder)
    snapshots = {int(path.name.removeprefix("step-")): path for path in run.folder.glob("snapshots/step-*")}
    assert history.steps[0] == 0 and len(snapshots) == 4
    assert [*history.steps[1:]] == sorted(snapshots)
    for step, folder in {0: tiny_folder, **snapshots}.items():
        lab, at = load_model(str(folder), device="cpu"), history.place(step)
        seen, scores, lens = trace(lab, PROBE, residual=True), head_scores(lab), logit_lens(lab, PROBE, next=True)
        assert history.tokens == seen.tokens
        for name in SCORES:
            np.testing.assert_allclose(history.head_scores[name][at], getattr(scores, name), atol=1e-5)
        np.testing.assert_allclose(history.surprisal[at], surprisal(lab, PROBE).nll, atol=1e-5)
        assert np.mean(history.lens_rank[at] == lens.rank.numpy()) > 0.99  # of equal logits, the last bit decides
        weights = np.stack([seen.attention(layer) for layer in range(seen.n_layers)])
        np.testing.assert_allclose(history.attention[at] / 255, weights, atol=0.5 / 255 + 1e-5)
        nll = token_nll(lab.model, torch.stack(random_tokens_twice(lab, 0)))
        n = (nll.shape[1] + 1) // 2
        shown = [history.losses[name][at] for name in ("first showing", "second showing")]
        np.testing.assert_allclose(shown, [nll[:, : n - 1].mean(), nll[:, n:].mean()], atol=1e-5)


def test_history_has_the_losses_and_samples_of_the_run(run):
    history, metrics = read_history("observed", run.folder.parent), read_metrics(run.folder)
    validation = {metric.step: metric.loss for metric in metrics if metric.split == "validation"}
    assert set(validation) == {0, 4, 8} <= set(history.steps.tolist())
    assert [history.losses["validation"][history.place(step)] for step in (0, 4, 8)] == [*validation.values()]
    assert [*history.samples] == [0, 4, 8] and history.samples[8] == run.text_after
    assert np.isnan(history.losses["train"][0]) and history.losses["train"][-1] == metrics[-2].loss
    assert np.isnan(history.update_norm[0]).all()
    assert (history.update_norm[1:] > 0).all() and history.problems == ()


def test_update_norm_is_the_distance_of_the_weights_before_and_after_a_step(tiny_folder, moon, tmp_path):
    run = finetune(
        model=str(tiny_folder), data=moon, runs_dir=tmp_path, run="one", **SETTINGS | {"steps": 1, "snapshots": 1}
    )
    before, after = (load_model(str(path)).model.transformer.h for path in (tiny_folder, run.model_dir))
    distances = [
        torch.cat([(new - old).flatten() for new, old in zip(block.parameters(), base.parameters())]).norm().item()
        for block, base in zip(after, before)
    ]
    history = read_history(run.folder)
    np.testing.assert_allclose(history.update_norm[1], distances, rtol=1e-4)
    norms = [torch.cat([weight.flatten() for weight in block.parameters()]).norm().item() for block in after]
    np.testing.assert_allclose(history.weight_norm[1], norms, rtol=1e-5)


def test_observing_changes_neither_the_model_nor_random_numbers(tiny_lab):
    tiny_lab.model.train()
    state, weights = torch.get_rng_state(), {name: w.clone() for name, w in tiny_lab.model.state_dict().items()}
    first = observe(tiny_lab, probe_ids(tiny_lab, PROBE))
    assert tiny_lab.model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(weights[name], w) for name, w in tiny_lab.model.state_dict().items())
    second = observe(tiny_lab, probe_ids(tiny_lab, PROBE))
    tiny_lab.model.eval()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])


def test_observed_steps_fit_into_a_share_of_the_training_and_a_size(job, monkeypatch):
    few = job()
    assert planned_steps(few, 14) == (0, 8)  # of 8 steps nothing more can be paid for
    monkeypatch.setitem(observation.TOKENS_EACH, "cpu", 0.01)
    steps = planned_steps(job(steps=1000, eval_every=100), 14)
    assert 55 <= len(steps) <= 60 and {0, 1, 2, 1000, *range(100, 1000, 100)} <= set(steps)
    assert steps == planned_steps(job(steps=1000, eval_every=100), 14)
    early = [step for step in steps if step <= 30]
    assert len(early) > 15  # log-spaced: changes are early
    monkeypatch.setattr(observation, "MAX_BYTES", 10 * 2 * 4 * 64 * 64)
    thin = planned_steps(job(steps=1000, eval_every=10), 64)
    assert len(thin) == 10 and (thin[0], thin[-1]) == (0, 1000)
    assert len(planned_steps(job(steps=1000, eval_every=10, snapshots=20), 64)) == 21


def test_snapshots_are_of_observed_steps_and_the_last_is_among_them():
    assert snapshot_steps((0, 1, 2, 4, 8), 2) == (4, 8)
    assert snapshot_steps((0, 1, 2, 4, 8), 9) == (1, 2, 4, 8)
    assert snapshot_steps((0, 8), 0) == ()


def test_what_lies_after_the_checkpoint_or_was_left_half_written_goes(tmp_path):
    history = tmp_path / "history"
    history.mkdir()
    for name in ("00000000.npz", "00000004.npz", "00000005.npz", "00000008.npz", ".00000004.npz.dfa3df6c"):
        (history / name).write_bytes(b"")
    for name in ("step-00000004", "step-00000008"):
        (tmp_path / "snapshots" / name).mkdir(parents=True)
    rewind_observations(tmp_path, 6, planned=[0, 4, 8])
    assert {file.name for file in history.iterdir()} == {"00000000.npz", "00000004.npz"}
    assert [folder.name for folder in (tmp_path / "snapshots").iterdir()] == ["step-00000004"]


def test_a_long_probe_is_cut_and_an_empty_one_is_refused(tiny_lab):
    assert len(probe_ids(tiny_lab, "moon " * 200)) == 64
    assert torch.equal(probe_ids(tiny_lab, None), tiny_lab.encode(observation.PROBE)[:64])
    with pytest.raises(LabError, match="the probe is empty; give a text, or leave it out"):
        probe_ids(tiny_lab, "")


def test_an_empty_probe_is_refused_before_a_run_is_made(tiny_folder, moon, tmp_path):
    with pytest.raises(LabError, match="the probe is empty"):
        finetune(model=str(tiny_folder), data=moon, runs_dir=tmp_path, probe="", **SETTINGS)
    assert [*tmp_path.iterdir()] == []


def test_a_run_that_is_stopped_is_observed_at_its_end(tiny_folder, moon, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "CONTROL_SECONDS", -1.0)

    def stop_after_two(self, args, state, control, **kwargs):
        if state.global_step == 2:
            runs.request_action(self.folder, "stop")

    monkeypatch.setattr(observation.Observer, "on_pre_optimizer_step", stop_after_two)
    run = finetune(model=str(tiny_folder), data=moon, runs_dir=tmp_path, run="stopped", **SETTINGS)
    history = read_history(run.folder)
    assert run.stopped and history.steps.tolist() == [0, run.steps] and run.steps < 8

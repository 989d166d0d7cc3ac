import json
from dataclasses import asdict, replace
from math import exp
from pathlib import Path

import pytest

from gpt2lab.errors import LabError
from gpt2lab.training.config import TrainConfig
from gpt2lab.training.result import FinetuneResult, model_card, read_result, write_result
from gpt2lab.training.validation import Change

RESULT = FinetuneResult(
    run="my-run",
    folder=Path("runs/my-run"),
    model_dir=Path("runs/my-run/model"),
    steps=1200,
    best_step=1100,
    tokens=50_000,
    seconds=12.5,
    val_loss_before=3.25,
    val_loss_after=2.5,
    text_before="a",
    text_after="b",
    prompt="The moon",
    stopped=False,
    precision="bf16",
    validation=Change(before=3.25, after=2.5, tokens=900, split_tokens=9000, low=0.4, high=0.6),
)
PLAIN = asdict(RESULT) | {"folder": None, "model_dir": None}
EDITED = json.dumps(PLAIN | {"seconds": "long"})
EDITED_CHANGE = json.dumps(PLAIN | {"validation": {"before": "low"}})
CONFIG = TrainConfig(
    model="builtin", data="texts/moon.txt", batch_size=4, grad_accum=2, block_size=16, learning_rate=2e-4, seed=7
)


def test_result_reads_its_losses_as_perplexities_and_its_time_as_speed():
    assert (RESULT.val_perplexity_before, RESULT.val_perplexity_after) == (exp(3.25), exp(2.5))
    assert RESULT.tokens_per_second == 4000


def test_perplexity_of_a_hopeless_loss_is_infinite():
    assert replace(RESULT, val_loss_before=1000.0).val_perplexity_before == float("inf")


def test_run_that_ended_before_its_first_step_has_no_speed():
    assert replace(RESULT, tokens=0, seconds=0.0).tokens_per_second == 0


def test_perplexity_that_was_not_measured_is_none():
    result = replace(RESULT, val_loss_before=None, val_loss_after=None)
    assert (result.val_perplexity_before, result.val_perplexity_after) == (None, None)
    with pytest.raises(LabError, match=r"^run '.+' has no validation loss before and after training$"):
        assert result.losses


def test_result_reads_as_written_and_from_wherever_the_folder_is_now(tmp_path):
    (tmp_path / "my-run").mkdir()
    write_result(replace(RESULT, folder=tmp_path / "my-run", text_after="é 🌙\n", stopped=True))
    moved = (tmp_path / "my-run").rename(tmp_path / "moved")
    assert read_result(moved) == replace(
        RESULT, run="moved", folder=moved, model_dir=moved / "model", text_after="é 🌙\n", stopped=True
    )


@pytest.mark.parametrize(
    "content", [None, "", "{", "[]", "null", "{}", '{"steps": 3}', '{"nonsense": 1}', EDITED, EDITED_CHANGE, b"\xff"]
)
def test_run_without_a_result_that_can_be_read_is_refused_by_name(tmp_path, content):
    if content is not None:
        (tmp_path / "result.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    unread = rf"^{tmp_path / 'result.json'} cannot be read \(.+\), so there is nothing to report$"
    missing = rf"^run '{tmp_path.name}' has left no model yet, so there is nothing to report$"
    with pytest.raises(LabError, match=missing if content is None else unread):
        read_result(tmp_path)


def test_result_of_a_later_version_is_read_without_what_is_not_known_here(tmp_path):
    write_result(replace(RESULT, folder=tmp_path))
    content = json.loads((tmp_path / "result.json").read_text())
    (tmp_path / "result.json").write_text(json.dumps(content | {"carbon": 1.5}))
    assert read_result(tmp_path).steps == 1200


def test_card_states_the_losses_and_how_they_came_about(random_lab):
    card = " ".join(model_card(random_lab(), RESULT, CONFIG).split())
    assert "# my-run `builtin` fine-tuned on `moon.txt` with gpt2lab" in card
    change = (
        f"3.2500 → 2.5000 | {exp(3.25):.2f} → {exp(2.5):.2f} | {exp(-0.75) - 1:+.1%} (95 % interval -60.0% to -40.0%)"
    )
    assert f"| 900 of 9,000 tokens | {change} |" in card
    assert "matrix products in bf16, weights in fp32" in card
    assert "All weights; 1,200 optimizer steps of 8 blocks of 16 tokens (50,000 tokens) in 12 s on cpu" in card
    assert "The model after step 1,100, with the lowest validation loss, was kept." in card
    assert "learning rate 0.0002 after a warm-up over 10% of the steps, cosine decay, seed 7" in card


@pytest.mark.parametrize("model", ["gpt2", "someone/my-gpt2"])
def test_card_names_the_hub_model_that_it_is_based_on_in_full(random_lab, model):
    header = model_card(random_lab(), RESULT, replace(CONFIG, model=model)).split("---\n")[1]
    assert f"base_model: {model}" in header.splitlines()


@pytest.mark.parametrize(
    ("method", "words"),
    [("lora", "Low-rank additions, merged into the weights; 1,200"), ("scratch", "From random weights; 1,200")],
)
def test_card_states_what_was_trained(random_lab, method, words):
    assert words in model_card(random_lab(), RESULT, replace(CONFIG, method=method))

"""What a notebook's user meets: completion, short results, figures, no warnings."""

import subprocess
import sys
import warnings

import pytest
from IPython.core.interactiveshell import InteractiveShell
from PIL import Image

import gpt2lab
from gpt2lab.data.text import load_text
from gpt2lab.evaluation.evaluate import evaluate
from gpt2lab.figures.notebook import show_figures
from gpt2lab.generation.generate import generate
from gpt2lab.generation.tasks import translate
from gpt2lab.inspection.ablation import ablate, sweep
from gpt2lab.inspection.attribution import attribution
from gpt2lab.inspection.compare import compare
from gpt2lab.inspection.heads import head_scores, rollout
from gpt2lab.inspection.lens import logit_lens
from gpt2lab.inspection.patching import patching
from gpt2lab.inspection.surprisal import surprisal
from gpt2lab.inspection.trace import trace
from gpt2lab.inspection.walkthrough import walk
from tests.processes import Command

TEXT = "The moon and the sea"
RESULTS = {
    "Generation": lambda lab: generate(lab, TEXT, max_new_tokens=30, seed=1),
    "TaskResult": lambda lab: translate(lab, "a", examples=[("b", "c")], max_new_tokens=5),
    "Trace": lambda lab: trace(lab, TEXT, logits=True, residual=True),
    "Rollout": lambda lab: rollout(trace(lab, TEXT)),
    "Comparison": lambda lab: compare(trace(lab, "abcd efgh"), trace(lab, "hgfe dcba")),
    "HeadScores": head_scores,
    "Lens": lambda lab: logit_lens(lab, TEXT),
    "Attribution": lambda lab: attribution(lab, TEXT),
    "Surprisal": lambda lab: surprisal(lab, TEXT),
    "Ablation": lambda lab: ablate(lab, TEXT, [(0, 1)]),
    "Sweep": lambda lab: sweep(lab, TEXT),
    "Patching": lambda lab: patching(lab, "zqz", "zxz", answer="a", against="b"),
    "Walkthrough": lambda lab: walk(lab, TEXT, 0, 0, -1),
    "Evaluation": lambda lab: evaluate(lab, load_text("sample").test[:3]),
    "TextSplits": lambda lab: load_text("sample"),
    "Lab": lambda lab: lab,
}


@pytest.mark.parametrize("name", RESULTS)
def test_result_as_the_last_line_of_a_cell_is_a_short_summary(tiny_lab, name):
    shown = repr(RESULTS[name](tiny_lab))
    assert shown.startswith(name) and len(shown) < 1500
    assert "tensor(" not in shown and "array(" not in shown and "\n" not in shown


FIGURES = "Trace Rollout Comparison HeadScores Lens Attribution Surprisal Ablation Sweep Patching Evaluation".split()


@pytest.mark.parametrize("name", FIGURES)
def test_result_with_a_figure_shows_it(tiny_lab, name, tmp_path):
    shell = InteractiveShell()
    show_figures(shell)
    png = shell.display_formatter.formatters["image/png"](RESULTS[name](tiny_lab))
    (tmp_path / "figure.png").write_bytes(png)
    with Image.open(tmp_path / "figure.png") as picture:
        assert min(picture.size) > 100 and len(picture.convert("L").getcolors()) > 5


@pytest.mark.parametrize("name", ["Walkthrough"])
def test_result_without_a_figure_shows_none(tiny_lab, name):
    shell = InteractiveShell()
    show_figures(shell)
    assert shell.display_formatter.formatters["image/png"](RESULTS[name](tiny_lab)) is None


def test_public_names_are_completed_before_their_first_use():
    code = "import gpt2lab; print(*[name for name in dir(gpt2lab) if not name.startswith('_')])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(gpt2lab.__all__) <= set(shown)
    assert {"sys", "import_module"} & set(shown) == set()


def finetune_with_lora():
    warnings.simplefilter("error", FutureWarning)
    options = {"method": "lora", "steps": 1, "block_size": 16, "batch_size": 1, "eval_tokens": 16, "run": "one"}
    print(gpt2lab.finetune(model=sys.argv[1], data=sys.argv[2], **options).run)


@pytest.mark.slow
def test_finetuning_with_lora_warns_of_nothing(tiny_lab, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("The moon goes around the earth. " * 100)
    monkeypatch.chdir(tmp_path)
    done = Command(tmp_path / "command", tiny_lab.name, "text.txt", main=finetune_with_lora).finish()
    assert done.stdout.strip() == "one", done.stderr
    assert "Warning" not in done.stderr

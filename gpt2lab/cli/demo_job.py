"""The demo: fine-tune the built-in model on the sample text, evaluate, generate and inspect it."""

from dataclasses import dataclass
from pathlib import Path

from gpt2lab.errors import LabError
from gpt2lab.inspection.heads import HeadScores, head_scores
from gpt2lab.model.lab import load_model
from gpt2lab.pages.run_report import write_report
from gpt2lab.results import Summary
from gpt2lab.training.finetuning import finetune
from gpt2lab.training.result import FinetuneResult

# One to two minutes on two cores; twice the epochs lower the validation loss, and hardly the test loss.
EPOCHS, LEARNING_RATE = 4, 1e-4


@dataclass(frozen=True, eq=False, repr=False)
class Demo(Summary):
    """Result of the demo: the run, the head scores of the tuned model, and the path of the report."""

    result: FinetuneResult
    scores: HeadScores
    report: Path


def run_demo(out: str | Path = "runs") -> Demo:
    """Fine-tune `builtin` on `sample`; the run's folder in `out` also gets a report.html."""
    result = finetune(model="builtin", data="sample", epochs=EPOCHS, learning_rate=LEARNING_RATE, runs_dir=out)
    if result is None or result.model_dir is None:
        raise LabError("the demo's run has left no model; let it run to its end, in one process")
    tuned = load_model(str(result.model_dir))
    return Demo(result, head_scores(tuned), write_report(result.folder))

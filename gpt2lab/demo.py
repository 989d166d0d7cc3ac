"""The main job from end to end on the built-in model and sample text: fine-tune, evaluate, generate, look inside.

Knows every room but the app.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from gpt2lab.inspection.heads import HeadScores, head_scores
from gpt2lab.inspection.trace import trace
from gpt2lab.model import load_model
from gpt2lab.training.result import FinetuneResult
from gpt2lab.training.runs import read_metrics
from gpt2lab.training.trainer import finetune
from gpt2lab.views.report import run_report

# Half a minute to a minute and a half on two cores; beyond it the sample's validation loss rises again.
EPOCHS, LEARNING_RATE = 4, 1e-3
TEXT = "Marie Curie discovered polonium in Paris, and Marie Curie discovered radium in Paris."


@dataclass(frozen=True, eq=False)
class Demo:
    """What the job came to: the run, the heads of the tuned model, and the page that shows it all."""

    result: FinetuneResult
    scores: HeadScores
    report: Path


def run_demo(out: str | Path = "runs") -> Demo:
    """Fine-tune `builtin` on `sample`; the run's folder in `out` also gets a report.html."""
    result = finetune(model="builtin", data="sample", epochs=EPOCHS, learning_rate=LEARNING_RATE, runs_dir=out)
    tuned = load_model(str(result.model_dir))
    scores = head_scores(tuned)
    config = json.loads((result.folder / "config.json").read_text(encoding="utf-8"))
    page = run_report(result, config, read_metrics(result.folder), scores, trace(tuned, TEXT))
    return Demo(result, scores, page.save(result.folder / "report.html"))

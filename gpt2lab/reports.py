"""A run's report.html: what the folder tells, and what only the models tell, on one page.

Knows every room but the app.
"""

from pathlib import Path

from gpt2lab.blocks import token_ids
from gpt2lab.inspection.heads import head_scores
from gpt2lab.inspection.trace import trace_ids
from gpt2lab.model import Lab, load_model
from gpt2lab.text import load_text
from gpt2lab.training.finetuning import base_model, config_of
from gpt2lab.training.memory import longest_verbatim
from gpt2lab.training.result import read_result
from gpt2lab.training.runs import read_config, read_lines, read_metrics, told_if_unwritable
from gpt2lab.views.report import Sample, run_report

TEXT = "Marie Curie discovered polonium in Paris, and Marie Curie discovered radium in Paris."


def write_report(folder: Path) -> Path:
    """Write a run's report.html, and return its path. The models before and after are loaded for it.

    Raises: LabError for a run without a model, or whose base model or text is out of reach.
    """
    result, config = read_result(folder), read_config(folder)
    tuned, base = load_model(str(result.model_dir)), base_model(config_of(config))
    page = run_report(
        result,
        config,
        read_metrics(folder),
        samples_of(folder, tuned, config),
        head_scores(base),
        head_scores(tuned),
        trace_ids(tuned, tuned.encode(TEXT)[: tuned.context]),
    )
    with told_if_unwritable(folder):
        return page.save(folder / "report.html")


def samples_of(folder: Path, lab: Lab, config: dict) -> tuple[Sample, ...]:
    """The texts a run wrote, each with its longest stretch that stands in the training text."""
    training = token_ids(lab.tokenizer, load_text(config["data"]).train)
    samples = []
    for line in read_lines(folder / "samples.jsonl"):
        step, text = line.get("step"), line.get("text")
        if not isinstance(step, int) or not isinstance(text, str):
            continue  # edited by hand
        ids = lab.encode(text).tolist()
        start, length = longest_verbatim(ids, training)
        samples.append(Sample(step, text, lab.tokenizer.decode(ids[start : start + length]), length))
    return tuple(samples)

"""A run's report.html: what the folder records, and what is computed from the models, on one page."""

from dataclasses import replace
from pathlib import Path

from gpt2lab.data.blocks import token_ids
from gpt2lab.data.text import TextSplits, load_text, original_text
from gpt2lab.data.tokens import text_after
from gpt2lab.errors import LabError
from gpt2lab.evaluation.evaluate import Evaluation, evaluate
from gpt2lab.generation.measures import longest_copy
from gpt2lab.inspection.heads import head_scores
from gpt2lab.inspection.trace import trace_ids
from gpt2lab.model.lab import Lab, load_model
from gpt2lab.pages.report import Sample, run_report
from gpt2lab.training.head_changes import changes_between
from gpt2lab.training.history import History, read_history
from gpt2lab.training.prepare import base_model, config_of
from gpt2lab.training.result import read_result
from gpt2lab.training.runs import read_config, read_lines, read_metrics, writable_or_error

PROTOCOLS = ("sliding", "lm-eval")
SECONDS = 60.0  # that evaluating the models may take
FASTER, BYTES_A_TOKEN = 3, 4  # scoring a token against training on it: no backward pass; of English in GPT-2's tokens
BF16_FASTER = 3  # a token trained on in bf16, against fp32, where the processor has bf16 units
FEW_WORDS = 20  # below which a split says nothing
TEXT = "Marie Curie discovered polonium in Paris, and Marie Curie discovered radium in Paris."


def write_report(folder: Path) -> Path:
    """Write a run's report.html, and return its path. The models before and after are loaded for it.

    Raises: LabError for a run without a model, or whose base model or text is out of reach.
    """
    result, config = read_result(folder), read_config(folder)
    tuned, base = load_model(str(result.model_dir)), base_model(config_of(config))
    speed = result.tokens_per_second / (BF16_FASTER if result.precision == "bf16" else 1)  # the report scores in fp32
    evaluation, split = evaluated(base, tuned, load_text(config["data"], column=config.get("column")), speed)
    history = history_of(folder)
    page = run_report(
        result,
        config,
        read_metrics(folder),
        samples_of(folder, tuned, config),
        scores_before=head_scores(base),
        scores_after=head_scores(tuned),
        trace=trace_ids(tuned, tuned.encode(TEXT)[: tuned.context]),
        evaluation=evaluation,
        split=split,
        history=history,
        changes=changes_between(history, base, tuned) if history and len(history.steps) > 1 else None,
    )
    with writable_or_error(folder):
        return page.save(folder / "report.html")


def history_of(folder: Path) -> History | None:
    """What a run saw of its own inside; None for a run of before it did, or whose record is damaged."""
    try:
        return read_history(folder)
    except LabError:
        return None


def evaluated(base: Lab, tuned: Lab, text: TextSplits, training_speed: float) -> tuple[Evaluation, str]:
    """Both models on the test split (on the validation split where that has next to no words), and the split's name.

    training_speed  tokens/s: only as many articles are scored as take SECONDS, by that
    """
    split = "test" if len(original_text(text.test).split()) >= FEW_WORDS else "validation"
    articles = text.split(split)
    affordable = SECONDS * training_speed * FASTER / (2 * len(PROTOCOLS)) * BYTES_A_TOKEN
    size = len(original_text(articles).encode())
    quick = None if affordable >= size else max(2, int(len(articles) * affordable / size))
    labs = (replace(base, name="before"), replace(tuned, name="after"))
    return evaluate(labs, articles, PROTOCOLS, quick=quick), split


def samples_of(folder: Path, lab: Lab, config: dict) -> tuple[Sample, ...]:
    """Return the samples of a run, each with its longest passage from the training text."""
    training = token_ids(lab.tokenizer, load_text(config["data"], column=config.get("column")).train)
    samples = []
    for line in read_lines(folder / "samples.jsonl"):
        step, text = line.get("step"), line.get("text")
        if not isinstance(step, int) or not isinstance(text, str):
            continue  # edited by hand
        ids = lab.encode(text).tolist()
        start, length = longest_copy(ids, training)
        samples.append(Sample(step, text, text_after(lab.tokenizer, ids[:start], ids[start : start + length]), length))
    return tuple(samples)

"""A run as one offline page: its settings, its curve, samples before and after, its attention."""

import html
from dataclasses import dataclass
from functools import partial

from gpt2lab.evaluation.evaluate import Evaluation
from gpt2lab.figures.attention import attention_grid, attention_heatmap
from gpt2lab.figures.drawing import figure, image
from gpt2lab.figures.tables import table
from gpt2lab.figures.training import loss_curve, validation_rows
from gpt2lab.inspection.heads import HeadScores
from gpt2lab.inspection.trace import Trace
from gpt2lab.pages.evaluation import evaluation_body
from gpt2lab.pages.history import history_page
from gpt2lab.results import duration, perplexity_of, readable
from gpt2lab.training.head_changes import HeadChanges
from gpt2lab.training.history import History
from gpt2lab.training.result import FinetuneResult
from gpt2lab.training.runs import Metric
from gpt2lab.widgets.page import ARTICLE, Page, document

STYLE = f"""{ARTICLE}
.texts {{ display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); }}
.texts > div {{ border: 1px solid var(--line); border-radius: 6px; padding: 0 12px 12px; white-space: pre-wrap; }}
.heads {{ display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); }}
"""
MAX_VIEW = 3_000_000  # characters of the view in a report
CHANGED = 12  # heads that are listed
HARD = ("part", "frequency", "position")
FINGERPRINTS = {"base": "fingerprint of the model begun with", "text": "fingerprint of the texts"}


@dataclass(frozen=True)
class Sample:
    """A sample generated during a run.

    step  optimizer steps done · text  after the prompt
    verbatim  its longest stretch that stands word for word in the training text · tokens  in that
    """

    step: int
    text: str
    verbatim: str
    tokens: int


def run_report(
    result: FinetuneResult,
    config: dict,
    metrics: tuple[Metric, ...],
    samples: tuple[Sample, ...],
    *,
    scores_before: HeadScores,
    scores_after: HeadScores,
    trace: Trace,
    evaluation: Evaluation,
    split: str,
    history: History | None = None,
    changes: HeadChanges | None = None,
) -> Page:
    """Return the report page of a finished run.

    config  the run's config.json
    scores_before, scores_after  of the heads of the base and of the fine-tuned model
    trace  of the fine-tuned model on a text
    evaluation, split  of both models, and of what text
    history, changes  what the run saw of its own inside, and what it changed in each head; None: no such section
    """
    best = {name: scores_after.top(name, 3) for name in ("previous_token", "induction")}
    figures = [
        image(
            partial(attention_heatmap, trace, layer, head),
            f"The most {name.replace('_', '-')}-like head, layer {layer}, head {head}: score {score:.2f}.",
        )
        for name, ((layer, head, score), *_) in best.items()
    ]
    prompt = html.escape(result.prompt)
    body = f"""
<h1>Fine-tuning run {html.escape(result.run)}</h1>
<p>{html.escape(config["model"])} fine-tuned on {html.escape(config["data"])}: {result.steps:,} steps,
{result.tokens:,} tokens. {"It was stopped before its last step. " if result.stopped else ""}The model is that of
step {result.best_step:,}, with the lowest validation loss.</p>
{table(["", "before", "after"], result_rows(result))}
{"".join(f"<p>Validation perplexity {change}.</p>" for change in (result.validation, result.whole_validation) if change)}
<p class="soft">Matrix products in {result.precision}, weights in fp32. Intervals are drawn over blocks of tokens.</p>
<h2>Cost</h2>
{table(["", "took"], cost_rows(result, metrics))}
<h2>Loss</h2>
{image(partial(loss_curve, metrics), "Loss over the run: on the blocks trained on, and on those that validations score.")}
{table(["step", "validation loss", "perplexity"], validation_rows(metrics))}
<h2>Perplexity by named protocols, on the {html.escape(split)} split</h2>
{evaluation_body(evaluation, HARD)}
<h2>The same prompt and seed, before and after</h2>
<div class="texts"><div><h3>before</h3><b>{prompt}</b>{html.escape(result.text_before)}</div>
<div><h3>after</h3><b>{prompt}</b>{html.escape(result.text_after)}</div></div>
<h2>Texts over time, and what of them is memorised</h2>
{table(["step", "text", "longest stretch that stands in the training text", "tokens"], sample_rows(samples))}
{inside_section(history) if history else ""}
{changes_section(changes) if changes else ""}
<h2>Attention after fine-tuning</h2>
<p class="soft">Tokens: {html.escape(" ".join(trace.tokens))}</p>
{image(partial(attention_grid, trace), "Every head on this text; a row per attending token, a column per token attended to.")}
<div class="heads">{"".join(figures)}</div>
{table(["kind", "layer", "head", "score"], head_rows(best))}
<p>The heads that fine-tuning changed most:</p>
{table(["kind", "layer", "head", "before", "after", "change"], changed_rows(scores_before, scores_after))}
<p class="soft">Scores are mean attention weights on random tokens shown twice: on the token just before
(previous-token), or on the token that followed the same token the first time (induction).</p>
<h2>Settings</h2>
{table(["setting", "value"], setting_rows(config))}
"""
    return document(f"gpt2lab run {result.run}", body, style=STYLE)


def inside_section(history: History) -> str:
    """How the heads changed: as a figure, and, unless it is large, as the view with a slider."""
    view = history_page(history)
    frame = view.iframe() if len(view.html) <= MAX_VIEW else ""
    drawn = image(partial(figure, history), "The induction score of every head, and the losses, over the run.")
    return f"<h2>Inside over time</h2>{drawn}{frame}"


def changes_section(changes: HeadChanges) -> str:
    """What the run changed in each head: as a figure, and the heads whose attention moved most."""
    head, rows = changes.table().text()
    drawn = image(partial(figure, changes), "How far attention moved, and how much more an ablation costs, by head.")
    return f"<h2>What training changed in each head</h2>{drawn}{table(head, rows[:CHANGED])}"


def result_rows(result: FinetuneResult) -> list[tuple[str, ...]]:
    """Loss and perplexity, before and after."""
    losses = result.losses
    return [
        ("validation loss (nats per token)", *(f"{loss:.4f}" for loss in losses)),
        ("validation perplexity", *(readable(perplexity_of(loss)) for loss in losses)),
    ]


def cost_rows(result: FinetuneResult, metrics: tuple[Metric, ...]) -> list[tuple[str, str]]:
    """Time, speed and memory."""
    rows = [
        ("training", duration(result.seconds)),
        ("with validations, texts and checkpoints", duration(metrics[-1].seconds) if metrics else "?"),
        ("tokens per second of training", f"{result.tokens_per_second:,.0f}"),
    ]
    return rows if result.memory is None else [*rows, ("peak memory", f"{result.memory / 1e9:.2f} GB")]


def head_rows(best: dict[str, list[tuple[int, int, float]]]) -> list[tuple[str, ...]]:
    """Kind, layer, head and score of the best heads."""
    return [
        (name.replace("_", "-"), str(layer), str(head), f"{score:.3f}")
        for name, heads in best.items()
        for layer, head, score in heads
    ]


def changed_rows(before: HeadScores, after: HeadScores, count: int = 6) -> list[tuple[str, ...]]:
    """The heads whose scores differ most between two models, the largest change first."""
    changes = [
        (name, layer, head, float(old), float(new))
        for name in ("previous_token", "induction")
        for layer, rows in enumerate(zip(getattr(before, name), getattr(after, name)))
        for head, (old, new) in enumerate(zip(*rows))
    ]
    changes.sort(key=lambda change: abs(change[4] - change[3]), reverse=True)
    return [
        (name.replace("_", "-"), str(layer), str(head), f"{old:.3f}", f"{new:.3f}", f"{new - old:+.3f}")
        for name, layer, head, old, new in changes[:count]
    ]


def sample_rows(samples: tuple[Sample, ...]) -> list[tuple[str, ...]]:
    """Step, text, its longest stretch from the training text, and the tokens in that."""
    return [(f"{s.step:,}", s.text, s.verbatim, str(s.tokens)) for s in samples]


def setting_rows(config: dict) -> list[tuple[str, str]]:
    """Name and value of every setting that has one; those of the machine each in a row."""
    machine = config.get("machine")
    flat = {name: value for name, value in config.items() if name != "machine"}
    flat |= machine if isinstance(machine, dict) else {}
    if config.get("method") != "lora":
        flat.pop("lora_rank", None)
    return [(FINGERPRINTS.get(name, name), str(value)) for name, value in flat.items() if value is not None]

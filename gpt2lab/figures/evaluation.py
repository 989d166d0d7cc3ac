"""Perplexities as tables, figures and CSV."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from gpt2lab.errors import Message
from gpt2lab.evaluation.breakdown import Share
from gpt2lab.evaluation.evaluate import Evaluation
from gpt2lab.evaluation.perplexity import Perplexity
from gpt2lab.figures.drawing import MAX_LABEL, RUN_COLOURS, figure, for_dark_pages, label
from gpt2lab.figures.tables import csv_bytes
from gpt2lab.results import readable

MEANINGS = {
    "perplexity": "exp of the mean loss per token: among how many equally likely tokens the model wavers. Compares only "
    "under the same tokenizer and protocol",
    "word_perplexity": "the same per word of the original text: compares between tokenizers",
    "byte_perplexity": "the same per byte of the original text",
    "bits_per_byte": "the loss per byte of the original text, in bits: how well the model would compress it. Compares "
    "between tokenizers",
}
BY = {
    "document": "by document",
    "position": "by how many tokens of its window stood before a token",
    "frequency": "by how often a token stands in the text",
    "part": "by part of the article",
}
MAX_ROWS = 100  # documents in a figure or a page's table
SHARE_HEAD = ["", "tokens", "perplexity", "nats per token", "of all loss"]


def _interval(interval: tuple[float, float] | None, digits: int) -> Message:
    if interval is None:
        return Message("none")
    low, high = (readable(edge, digits) for edge in interval)
    return Message("{low} to {high}", low=low, high=high)


CELLS: tuple[tuple[str, Callable[[Perplexity], str]], ...] = (
    (Message("perplexity"), lambda r: readable(r.perplexity)),
    (Message("… 95 % interval"), lambda r: _interval(r.interval, 1)),
    (Message("word perplexity"), lambda r: readable(r.word_perplexity)),
    (Message("… 95 % interval"), lambda r: _interval(r.word_interval, 0)),
    (Message("byte perplexity"), lambda r: readable(r.byte_perplexity, 4)),
    (Message("bits per byte"), lambda r: readable(r.bits_per_byte, 4)),
    (Message("… 95 % interval"), lambda r: _interval(r.bits_interval, 3)),
    (Message("tokens predicted"), lambda r: Message("{n:,} of {total:,}", n=r.n_scored, total=r.n_tokens)),
    (Message("words, bytes"), lambda r: f"{r.n_words:,}, {r.n_bytes:,}"),
    (Message("documents"), lambda r: f"{r.n_documents:,}"),
    (
        Message("windows"),
        lambda r: Message("{n:,} of {context:,}, every {stride:,}", n=r.windows, context=r.context, stride=r.stride),
    ),
    (Message("total loss (nats)"), lambda r: readable(r.nll, 1)),
)


def result_table(results: Sequence[tuple[str, Perplexity]]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Column names and a row per value: of one model a column per protocol, of several a column per model."""
    by_protocol = _by_protocol(results)
    if len(by_protocol) == len(results):
        return ["", *by_protocol], [(name, *(cell(result) for _, result in results)) for name, cell in CELLS]
    rows = [
        (Message("{protocol}: {name}", protocol=protocol, name=name), *(cell(result) for _, result in mine))
        for protocol, mine in by_protocol.items()
        for name, cell in CELLS
    ]
    return ["", *dict.fromkeys(model for model, _ in results)], rows


def meaning_lines(results: Sequence[tuple[str, Perplexity]]) -> list[Message]:
    """What each figure is, what it may be compared with, and what to know before quoting it, a line each."""
    lines = []
    for protocol, mine in _by_protocol(results).items():
        published = dict.fromkeys(known for _, r in mine for known in r.published)
        how = {"protocol": protocol, "how": mine[0][1].described}
        unknown = Message("{protocol}: {how}; no published figure is known for this text in these windows.", **how)
        lines.append(Message("{protocol}: {how}.", **how) if published else unknown)
        lines += [
            Message(
                "{protocol}: published for {model}: {quantity} {value:g} (context {context:,}, stride {stride:,}; {source})",
                protocol=protocol,
                model=p.model,
                quantity=Message(p.quantity.replace("_", " ")),
                value=p.value,
                context=p.context,
                stride=p.stride,
                source=p.source,
            )
            for p in published
        ]
        cautions = {
            caution: [model for model, r in mine if caution in r.cautions] for _, r in mine for caution in r.cautions
        }
        lines += [
            Message("{protocol}: {how}.", protocol=protocol, how=caution)
            if len(models) == len(mine)
            else Message("{protocol}, {model}: {how}.", protocol=protocol, model=models[0], how=caution)
            for caution, models in cautions.items()
        ]
    return lines


def share_rows(shares: Sequence[Share]) -> list[tuple[str, ...]]:
    """A row per part, as SHARE_HEAD says."""
    whole = sum(share.nll for share in shares)
    return [
        (
            share.label,
            f"{share.n_scored:,}",
            readable(share.perplexity, 1),
            f"{share.loss:.3f}",
            f"{share.nll / whole:.1%}" if whole else "",
        )
        for share in shares
    ]


@figure.register
def _(result: Evaluation, *, dark: bool = False) -> Figure:
    return result_figure(result.results, dark=dark)


def result_figure(results: Sequence[tuple[str, Perplexity]], *, dark: bool = False) -> Figure:
    """Bits per byte of every model under every protocol, with 95 % intervals over documents; lower is better."""
    names = list(dict.fromkeys(name for name, _ in results))
    rows = [(protocol, name, r) for protocol, mine in _by_protocol(results).items() for name, r in mine]
    figure = Figure(figsize=(7, 1.1 + 0.42 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for y, (_, name, r) in enumerate(rows):
        colour = RUN_COLOURS[names.index(name) % len(RUN_COLOURS)]
        axes.plot(r.bits_per_byte, y, "o", color=colour)
        if r.bits_interval:
            axes.plot(r.bits_interval, (y, y), color=colour, linewidth=2)
    axes.set_yticks(range(len(rows)), [f"{_short(name)}, {protocol}" for protocol, name, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel("bits per byte, 95 % interval over documents")
    axes.grid(axis="x", alpha=0.4)
    return for_dark_pages(figure) if dark else figure


def shares_figure(by: str, shares: Mapping[str, Sequence[Share]], *, dark: bool = False) -> Figure:
    """The loss of each part of a text under one model or several: bars, by model's name.

    by  the key in BREAKDOWNS that the shares are of
    """
    names = list(dict.fromkeys(share.label for mine in shares.values() for share in mine))[:MAX_ROWS]
    figure = Figure(figsize=(7, 1.4 + 0.26 * len(names) * max(1, 0.6 * len(shares))), layout="constrained")
    axes = figure.add_subplot()
    height = 0.8 / len(shares)
    for i, mine in enumerate(shares.values()):
        losses = {share.label: share.loss for share in mine}
        y = np.arange(len(names)) + (i - (len(shares) - 1) / 2) * height
        axes.barh(y, [losses.get(name, 0.0) for name in names], height, color=RUN_COLOURS[i])
    axes.set_yticks(range(len(names)), [label(name) for name in names])
    axes.invert_yaxis()
    axes.set(xlabel="loss (nats per token)", title=BY[by])
    axes.grid(axis="x", alpha=0.4)
    if len(shares) > 1:
        models = [
            _short(model) for model in shares
        ]  # passed explicitly: matplotlib leaves out labels that begin with "_"
        figure.legend(axes.containers, models, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return for_dark_pages(figure) if dark else figure


def results_csv(evaluation: Evaluation, text: str) -> bytes:
    """A row per model and protocol; `text` is what was scored."""
    names = (
        "protocol context stride n_scored n_tokens n_words n_bytes n_documents windows nll perplexity word_perplexity "
        "byte_perplexity bits_per_byte precision"
    ).split()
    intervals = ("interval", "word_interval", "bits_interval")
    rows = (
        [
            text,
            model,
            *(getattr(r, name) for name in names),
            *(end for name in intervals for end in getattr(r, name) or ("", "")),
            *(r.sample or ("", "")),
            "; ".join(r.cautions),
            said,
        ]
        for (model, r), said in zip(evaluation.results, _verdict_beside(evaluation))
    )
    ends = [f"{name}_{end}" for name in intervals for end in ("low", "high")]
    return csv_bytes(["text", "model", *names, *ends, "articles", "of_articles", "cautions", "comparison"], rows)


def _verdict_beside(evaluation: Evaluation) -> list[str]:
    """For every result of a second model, what the comparison with the first says; nothing for the others."""
    said, first = dict(evaluation.verdicts), evaluation.models[0]
    return ["" if model == first else said.get(result.protocol, "") for model, result in evaluation.results]


def shares_csv(evaluation: Evaluation, by: str) -> bytes:
    """A row per protocol, model and part of the text."""
    rows = (
        [protocol, model, s.label, s.n_scored, s.nll, s.loss, s.perplexity, s.bits_per_byte]
        for protocol in evaluation.protocols
        for model, mine in evaluation.shares(by, protocol).items()
        for s in mine
    )
    return csv_bytes(["protocol", "model", by, "n_scored", "nll", "loss", "perplexity", "bits_per_byte"], rows)


def tokens_csv(documents: Sequence[tuple[str, str, Sequence[tuple[str, float | None]]]]) -> bytes:
    """A CSV with the NLL of each token in nats; tokens that share a character are one row. See `Evaluation.pieces`."""
    rows = (
        [model, title, i, piece, "" if nll is None else f"{nll:.6f}"]
        for model, title, pieces in documents
        for i, (piece, nll) in enumerate(pieces)
    )
    return csv_bytes(["model", "document", "piece", "text", "nll"], rows)


def _short(name: str) -> str:
    """A model's name beside a figure: its end, by which runs differ."""
    return label(name if len(name) <= MAX_LABEL else f"…{name[1 - MAX_LABEL :]}")


def _by_protocol(results) -> dict[str, list[tuple[str, Perplexity]]]:
    found: dict[str, list[tuple[str, Perplexity]]] = {}
    for name, result in results:
        found.setdefault(result.protocol, []).append((name, result))
    return found

"""What the Evaluate tab shows of an evaluation: tables, verdicts, losses by part and by token, files."""

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log
from pathlib import Path

from PIL.Image import Image

from gpt2lab.app.events import as_image, escaped, new_folder
from gpt2lab.app.language import _, spoken
from gpt2lab.errors import Message, choice
from gpt2lab.evaluation.breakdown import surprisals, titles
from gpt2lab.evaluation.comparison import Comparison
from gpt2lab.evaluation.evaluate import Evaluation
from gpt2lab.evaluation.perplexity import Interval, Perplexity
from gpt2lab.figures.evaluation import (
    meaning_lines,
    result_table,
    results_csv,
    share_rows,
    shares_csv,
    shares_figure,
    tokens_csv,
)
from gpt2lab.figures.tables import table
from gpt2lab.files import write_bytes
from gpt2lab.pages.evaluation import evaluation_page
from gpt2lab.pages.surprisal import change_page, surprisal_page
from gpt2lab.results import percent, perplexity_of, readable

BREAKDOWNS = ("part", "position", "frequency", "document")
FILES = ("csv", "json", "parts.csv", "tokens.csv", "html")
MAX_ROWS = 100  # of a table
HEIGHT = 400  # of a document, pixels; it scrolls


@dataclass(frozen=True, eq=False)
class NamedEvaluation:
    """An evaluation and the name of its text."""

    evaluation: Evaluation
    text: Message


def verdict_lines(evaluation: Evaluation) -> str:
    """What the comparison says, a line for each protocol, as Markdown; and which protocols were not scored or compared."""
    compared = {comparison.protocol: comparison for comparison in evaluation.comparisons}
    lines = [
        verdict(compared[protocol])
        if protocol in compared
        else _("**{protocol}**: {why}", protocol=protocol, why=escaped(_(why)))
        for protocol, why in evaluation.verdicts
    ]
    return "\n\n".join(lines)


def verdict(found: Comparison) -> str:
    """The verdict on a second model: better, worse or undecided, and by how much of its perplexity."""
    per_unit = log(2) if found.unit == "bits per byte" else 1
    low, high = (perplexity_of(edge * per_unit) - 1 for edge in found.interval or (0, 0))
    values = {
        "protocol": found.protocol,
        "before": escaped(found.before),
        "after": escaped(found.after),
        "measure": _("byte perplexity") if found.unit == "bits per byte" else _("perplexity"),
        "documents": found.n_documents,
        "count": found.better_in,
    }
    if found.interval is None:
        return _(
            "**{protocol}**: {after} has {change} {measure} against {before}; a single document has no interval.",
            change=percent(found.ratio - 1, "+"),
            **values,
        )
    if found.verdict == "better":
        return _(
            "**{protocol}**: {after} is better than {before}: its {measure} is {change} [{low}, {high}] lower, and "
            "lower in {count:,} of {documents:,} documents.",
            change=percent(1 - found.ratio),
            low=percent(-high),
            high=percent(-low),
            **values,
        )
    if found.verdict == "worse":
        return _(
            "**{protocol}**: {after} is worse than {before}: its {measure} is {change} [{low}, {high}] higher, and "
            "lower in {count:,} of {documents:,} documents.",
            change=percent(found.ratio - 1),
            low=percent(low),
            high=percent(high),
            **values,
        )
    return _(
        "**{protocol}**: undecided whether {after} is better than {before}: {change} [{low}, {high}] {measure}, "
        "lower in {count:,} of {documents:,} documents.",
        change=percent(found.ratio - 1, "+"),
        low=percent(low, "+"),
        high=percent(high, "+"),
        **values,
    )


def figures_table(evaluation: Evaluation) -> str:
    """A row per protocol and model as HTML: each number with its interval, and what it means at the head of its column."""
    several = len(evaluation.models) > 1
    head = [
        (_("Protocol"), ""),
        *([(_("Model"), "")] if several else []),
        (_("Perplexity"), _("exp of the mean loss per token. Compare it under the same tokenizer and protocol only.")),
        (_("Word perplexity"), _("The same per word of the text. Comparable between tokenizers.")),
        (_("Bits per byte"), _("Loss per byte of the text, in bits. Comparable between tokenizers.")),
        (_("Tokens predicted"), _("The others have no earlier token in their window, or fill no block.")),
        (_("How it is measured"), ""),
    ]
    cells = "".join(
        f'<th scope="col">{html.escape(name)}<small>{html.escape(meaning)}</small></th>' for name, meaning in head
    )
    rows = "".join(
        _figures_rows([result for result in evaluation.results if result[1].protocol == protocol], several)
        for protocol in evaluation.protocols
    )
    caption = html.escape(_("Lower is better. Below a number: its 95 % interval over documents."))
    return f'<div class="table figures"><table><caption>{caption}</caption><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table></div>'


def _figures_rows(results: Sequence[tuple[str, Perplexity]], several: bool) -> str:
    """The rows of one protocol: its name and how it reads the text span those of all models."""
    first, span = results[0][1], f'rowspan="{len(results)}"'
    cautions = dict.fromkeys(caution for _model, r in results for caution in r.cautions)
    how = "".join(f"<p>{html.escape(_('{line}.', line=line))}</p>" for line in (first.described, *cautions))
    begin, end = f'<th scope="row" {span}>{html.escape(first.protocol)}</th>', f'<td class="how" {span}>{how}</td>'
    rows = ""
    for i, (model, r) in enumerate(results):
        name = f"<td>{html.escape(model)}</td>" if several else ""
        rows += f"<tr>{begin if i == 0 else ''}{name}{_numbers(r)}{end if i == 0 else ''}</tr>"
    return rows


def _numbers(r: Perplexity) -> str:
    numbers = [
        (readable(r.perplexity), _interval(r.interval, 1)),
        (readable(r.word_perplexity), _interval(r.word_interval, 0)),
        (readable(r.bits_per_byte, 4), _interval(r.bits_interval, 3)),
        (f"{r.n_scored:,}", _("of {count:,}", count=r.n_tokens)),
    ]
    return "".join(f"<td>{html.escape(number)}<small>{html.escape(under)}</small></td>" for number, under in numbers)


def _interval(interval: Interval | None, digits: int) -> str:
    if interval is None:
        return _("no interval")
    return _("{low} to {high}", low=readable(interval[0], digits), high=readable(interval[1], digits))


def details(evaluation: Evaluation) -> str:
    """Every number of an evaluation as HTML, and figures that others published for the same text."""
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in spoken(meaning_lines(evaluation.results)))
    head, rows = result_table(evaluation.results)
    return f"{table(head, spoken([list(row) for row in rows]))}<ul>{lines}</ul>"


def shares_of(evaluation: Evaluation, protocol: str, by: str, dark: bool) -> tuple[Image, str]:
    """Return (figure, table as HTML) of the loss of each part of a text."""
    shares = evaluation.shares(by, protocol)
    several = len(shares) > 1
    rows = [
        [*row, model][: len(row) + several]
        for model, model_shares in shares.items()
        for row in share_rows(model_shares)[:MAX_ROWS]
    ]
    head = [_("Part"), _("Tokens"), _("Perplexity"), _("Nats per token"), _("Share of the loss"), _("Model")]
    return as_image(shares_figure(by, shares, dark=dark)), table(head[: 5 + several], spoken(rows))


def documents_of(evaluation: Evaluation, protocol: str) -> list[tuple[str, int]]:
    """Return (title, number) of the documents that a protocol reads."""
    return [(title, i) for i, title in enumerate(spoken(titles(evaluation.of(protocol)[0])))]


def words_of(evaluation: Evaluation, protocol: str, document: int | None, theme: str) -> str:
    """Return a document coloured by one model's surprisal, or by the change from the first model to the second."""
    models, number = evaluation.of(protocol), document or 0
    pieces = [surprisals(scored, number) for scored in models]
    title = titles(models[0])[number]
    if len(models) == 2 and [text for text, _nll in pieces[0]] == [text for text, _nll in pieces[1]]:
        names = (models[0].model, models[1].model)
        return replace(change_page(title, pieces[0], pieces[1], names, theme=theme, say=_), height=HEIGHT).iframe()
    pages = [surprisal_page(f"{title}, {scored.model}", nll, theme=theme, say=_) for scored, nll in zip(models, pieces)]
    return "".join(replace(page, height=HEIGHT).iframe() for page in pages)


def evaluation_file(scored: NamedEvaluation, protocol: str, by: str, kind: str) -> Path:
    """Write an evaluation to a file in a new folder. Raises: LabError for an unknown kind."""
    choice("format", kind, FILES)
    return write_bytes(new_folder() / f"perplexity.{kind}", _content(scored, protocol, by, kind))


def _content(scored: NamedEvaluation, protocol: str, by: str, kind: str) -> bytes:
    evaluation = scored.evaluation
    if kind == "csv":
        return results_csv(evaluation, scored.text)
    if kind == "json":
        record = {"model": evaluation.models[0], "data": scored.text, **evaluation.record()}
        return json.dumps(record, ensure_ascii=False, indent=1).encode()
    if kind == "parts.csv":
        return shares_csv(evaluation, choice("breakdown", by, BREAKDOWNS))
    if kind == "tokens.csv":
        return tokens_csv(evaluation.pieces(protocol))
    title = f"Perplexity of {', '.join(evaluation.models)} on {scored.text}"
    return evaluation_page(title, evaluation, BREAKDOWNS).html.encode()

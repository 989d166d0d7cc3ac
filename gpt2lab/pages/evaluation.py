"""An evaluation as one offline page, or as a part of another: tables, figures, verdicts, breakdowns."""

import html
from collections.abc import Mapping, Sequence
from functools import partial

from gpt2lab.evaluation.breakdown import Share
from gpt2lab.evaluation.evaluate import Evaluation
from gpt2lab.figures.drawing import image
from gpt2lab.figures.evaluation import (
    BY,
    MAX_ROWS,
    MEANINGS,
    SHARE_HEAD,
    meaning_lines,
    result_figure,
    result_table,
    share_rows,
    shares_figure,
)
from gpt2lab.figures.tables import table
from gpt2lab.widgets.page import ARTICLE, Page, document


def evaluation_body(evaluation: Evaluation, hard: Sequence[str] = ()) -> str:
    """Return an evaluation as HTML: tables, figures, verdicts, explanations and breakdowns.

    hard  keys of BREAKDOWNS; the first protocol's
    """
    results, protocol = evaluation.results, evaluation.protocols[0]
    verdicts = "".join(f"<p><b>{html.escape(name)}:</b> {html.escape(said)}</p>" for name, said in evaluation.verdicts)
    meanings = "".join(f"<li>{html.escape(line)}</li>" for line in meaning_lines(results))
    kinds = "".join(f"<li>{name.replace('_', ' ')}: {html.escape(text)}.</li>" for name, text in MEANINGS.items())
    where = "".join(_hard(by, evaluation.shares(by, protocol)) for by in hard)
    return f"""
{table(*result_table(results))}
{verdicts}
{image(partial(result_figure, results), "Bits per byte with 95 % intervals; lower is better.")}
<ul>{meanings}</ul>
<ul class="soft">{kinds}</ul>
{f"<h3>Where it is hard, by {html.escape(protocol)}</h3>{where}" if where else ""}
"""


def evaluation_page(title: str, evaluation: Evaluation, hard: Sequence[str] = ()) -> Page:
    """`evaluation_body` as a page of its own."""
    body = f"<h1>{html.escape(title)}</h1>{evaluation_body(evaluation, hard)}"
    return document(title, body, style=ARTICLE)


def _hard(by: str, shares: Mapping[str, Sequence[Share]]) -> str:
    """A figure and a table of the shares of each model."""
    picture = image(partial(shares_figure, by, shares), f"Loss {BY[by]}.")
    cut = f"<p class='soft'>The first {MAX_ROWS}.</p>" if max(map(len, shares.values())) > MAX_ROWS else ""
    return (
        picture
        + "".join(table([name, *SHARE_HEAD[1:]], share_rows(mine)[:MAX_ROWS]) for name, mine in shares.items())
        + cut
    )

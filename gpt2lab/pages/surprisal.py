"""A text coloured by surprisal, or by the difference between two models."""

import html
from collections.abc import Callable, Sequence
from math import exp, inf

from gpt2lab.errors import Message
from gpt2lab.figures.tables import table
from gpt2lab.widgets.page import Page, document

LIMITS = (0.5, 1, 2, 3, 4.5, 6, 8, 10)  # nats at which the shade deepens: p = 0.61, 0.37, 0.14, 0.05, 0.011, …
CHANGES = (0.1, 0.3, 1, 2)  # nats of difference at which the shade deepens
MAX_PIECES = 20_000  # in one page: more make a browser slow
HARDEST = 15  # rows of the table below
STYLE = (
    """
.text { white-space: pre-wrap; line-height: 1.9; }
.text span { border-radius: 3px; } .text .none { outline: 1px dotted var(--soft); }
.key span { display: inline-block; padding: 0 8px; margin: 0 2px; border-radius: 3px; }
table { border-collapse: collapse; } th, td { border: 1px solid var(--line); padding: 2px 10px; text-align: left; }
.soft { color: var(--soft); }
"""
    + "".join(f".s{i} {{ background: rgb(230 120 0 / {0.07 * i:.2f}); }}\n" for i in range(len(LIMITS) + 1))
    + "".join(f".w{i} {{ background: rgb(213 94 0 / {0.17 * i:.2f}); }}\n" for i in range(len(CHANGES) + 1))
    + "".join(f".b{i} {{ background: rgb(0 114 178 / {0.17 * i:.2f}); }}\n" for i in range(len(CHANGES) + 1))
)
Pieces = Sequence[tuple[str, float | None]]
Say = Callable[[Message], str]  # what a page says in the reader's language; `str` for English


def surprisal_page(title: str, pieces: Pieces, *, theme: str = "auto", say: Say = str) -> Page:
    """Return a page of the text, each piece coloured by surprisal, with the value in nats on hover.

    pieces  (text, NLL in nats, None where nothing predicts it), as of `surprisals`
    say     translates what the page says

    Below it stand the pieces that cost most, as a table.
    """
    spans = [
        _span(text, "none" if nll is None else f"s{_level(nll, LIMITS)}", say(_cost(nll)))
        for text, nll in pieces[:MAX_PIECES]
    ]
    key = "".join(
        f'<span class="s{i}">{html.escape(say(_range(low, high)))}</span>'
        for i, (low, high) in enumerate(zip((0, *LIMITS), (*LIMITS, inf)))
    )
    predicted = [(text, nll) for text, nll in pieces if nll is not None]
    costly = sorted(predicted, key=lambda piece: -piece[1])[:HARDEST]
    rows = [(repr(text), f"{nll:.2f}", f"{exp(-nll):.2g}") for text, nll in costly]
    head = [say(Message("least expected")), "nats", say(Message("probability"))]
    return _page(title, html.escape(say(Message("nats: "))) + key, spans, len(pieces), table(head, rows), theme, say)


def change_page(
    title: str, before: Pieces, after: Pieces, names: tuple[str, str], *, theme: str = "auto", say: Say = str
) -> Page:
    """Return a page of the text: blue where the second model's surprisal is lower, orange where it is higher.

    before, after  the same pieces under two models
    names          of the two models

    Raises: ValueError for pieces of different texts.
    """
    if [text for text, _ in before] != [text for text, _ in after]:
        raise ValueError(f"{len(before)} pieces and {len(after)} are not of the same text")
    spans, changes = [], []
    for (text, old), (_, new) in zip(before, after):
        if old is None or new is None:
            spans.append(_span(text, "none", say(_cost(None))))
            continue
        changes.append((text, old, new))
        kind = "w" if new > old else "b"
        line = Message("{old:.2f} to {new:.2f} nats ({change:+.2f})", old=old, new=new, change=new - old)
        spans.append(_span(text, f"{kind}{_level(abs(new - old), CHANGES)}", say(line)))
    changes.sort(key=lambda change: change[2] - change[1])
    most = changes[:HARDEST] + changes[max(HARDEST, len(changes) - HARDEST) :]
    rows = [(repr(text), f"{old:.2f}", f"{new:.2f}", f"{new - old:+.2f}") for text, old, new in most]
    better, worse, scale = (
        html.escape(say(line))
        for line in (
            Message("better under {model}", model=names[1]),
            Message("worse"),
            Message("from {low:g} nats on, deepest from {high:g}", low=CHANGES[0], high=CHANGES[-1]),
        )
    )
    key = f'<span class="b4">{better}</span><span class="w4">{worse}</span> {scale}'
    head = [say(Message("changed most")), *names, "nats"]
    return _page(title, key, spans[:MAX_PIECES], len(spans), table(head, rows), theme, say)


def _page(title: str, key: str, spans: list[str], n: int, rows: str, theme: str, say: Say) -> Page:
    line = html.escape(say(Message("The first {n:,} of {total:,} pieces.", n=MAX_PIECES, total=n)))
    cut = f'<p class="soft">{line}</p>' if n > MAX_PIECES else ""
    body = f'<h3>{html.escape(title)}</h3><p class="key">{key}</p><div class="text">{"".join(spans)}</div>{cut}{rows}'
    return document(title, body, style=STYLE, theme=theme, height=520)


def _span(text: str, kind: str, title: str) -> str:
    shown = html.escape(text.replace("\n", "⏎\n") if text.strip(" ") else text)
    return f'<span class="{kind}" title="{html.escape(title)}">{shown}</span>'


def _level(value: float, limits: tuple[float, ...]) -> int:
    return sum(value >= limit for limit in limits)


def _cost(nll: float | None) -> Message:
    if nll is None:
        return Message("no prediction")
    return Message("{nll:.2f} nats, probability {p:.2g}", nll=nll, p=exp(-nll))


def _range(low: float, high: float) -> Message:
    if high < inf:
        return Message("{low} to {high}", low=f"{low:g}", high=f"{high:g}")
    return Message("{low} and more", low=f"{low:g}")

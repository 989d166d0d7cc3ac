"""The `perplexity` command: one model or two, any protocol, with breakdowns of the loss."""

import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from gpt2lab.cli.models import load, print_notes, quiet, resolve
from gpt2lab.cli.output import Column, Data, Json, Model, check_out, print_table, progress, report, write
from gpt2lab.data.text import load_text
from gpt2lab.errors import LabError, choice
from gpt2lab.evaluation.breakdown import BREAKDOWNS
from gpt2lab.evaluation.evaluate import evaluate
from gpt2lab.figures.evaluation import (
    SHARE_HEAD,
    meaning_lines,
    result_table,
    results_csv,
    share_rows,
    shares_csv,
    tokens_csv,
)
from gpt2lab.pages.evaluation import evaluation_page


def perplexity(
    model: Model = "auto",
    data: Data = "auto",
    column: Column = None,
    split: Annotated[str, typer.Option(help="train, validation, test, or all of the text")] = "test",
    protocol: Annotated[str, typer.Option(help="sliding, lm-eval, blocks, several with commas, or all")] = "sliding",
    context: Annotated[int | None, typer.Option(help="tokens per window; the model's context by default")] = None,
    stride: Annotated[int | None, typer.Option(help="tokens between sliding windows; the context by default")] = None,
    compare: Annotated[str | None, typer.Option(help="a second model: is it better on the same text?")] = None,
    by: Annotated[str | None, typer.Option(help="where it is hard: document, position, frequency, part")] = None,
    quick: Annotated[
        int | None, typer.Option(help="score only this number of whole articles, drawn with --seed")
    ] = None,
    seed: Annotated[int, typer.Option(help="of the articles that --quick draws")] = 0,
    precision: Annotated[
        str, typer.Option(help="fp32, or bf16: faster with bf16 units; the result states the measured difference.")
    ] = "fp32",
    out: Annotated[
        Path | None, typer.Option(help="also write all of it as .html, or as .csv the figures, with --by the parts")
    ] = None,
    tokens: Annotated[Path | None, typer.Option(help="also write what every token cost, as .csv")] = None,
    as_json: Json = False,
) -> None:
    """Measure the perplexity of a text by named protocols, with exact counts, published figures and 95 % intervals.

    What is scored is kept, so that the same windows cost nothing a second time, and Ctrl-C loses nothing.
    """
    quiet()

    check_files(out, tokens, protocol)
    if by:
        choice("breakdown", by, BREAKDOWNS)
    model, data = resolve(model, data)
    text = load_text(data, column=column)
    print_notes(data, [text.note] if text.note else [])
    labs = [load(name) for name in (model, compare) if name is not None]
    options = {"context": context, "stride": stride, "quick": quick, "seed": seed, "precision": precision}
    with progress("windows") as show, kept_when_interrupted():
        evaluation = evaluate(labs, text.split(split), protocol, on_progress=show, **options)
    if as_json:
        drawn = {} if quick is None else {"quick": quick, "seed": seed}
        report({"model": model, "data": data, "split": split, **drawn, **evaluation.record(by)}, as_json)
    else:
        tell(text.extent(split), evaluation, by)
    if out:
        write(out, page_or_table(out, text.extent(split), evaluation, by))
    if tokens:
        write(tokens, tokens_csv(evaluation.pieces(evaluation.protocols[0])))


@contextmanager
def kept_when_interrupted():
    """Let Ctrl-C and SIGTERM interrupt scoring, and keep the windows scored so far."""
    heeded = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        print("\ninterrupted; scored windows are kept, and the same command continues from there", file=sys.stderr)
        raise
    finally:
        signal.signal(signal.SIGTERM, heeded)


def check_files(out: Path | None, tokens: Path | None, protocol: str) -> None:
    """Check the output paths before scoring. Raises: LabError."""
    if out and out.suffix.lower() not in (".html", ".csv"):
        raise LabError("{out!r} ends in no format known here; use .html or .csv", out=str(out))
    if tokens and tokens.suffix.lower() != ".csv":
        raise LabError("{tokens!r} ends in no format known here; use .csv", tokens=str(tokens))
    if out and out == tokens:
        raise LabError("--out and --tokens are both {out!r}; give two names", out=str(out))
    check_out(out)
    check_out(tokens)
    if tokens and (protocol == "all" or "," in protocol):
        raise LabError("--tokens is of one protocol, and {protocol!r} is several; name one", protocol=protocol)


def tell(extent: str, evaluation, by: str | None) -> None:
    """Print the results as a table, with explanations."""
    print(f"{', '.join(evaluation.models)} on {extent}\n")
    print_table(*result_table(evaluation.results))
    print()
    for sentence in [*meaning_lines(evaluation.results), *(f"{name}: {said}" for name, said in evaluation.verdicts)]:
        print(sentence)
    for protocol in evaluation.protocols if by else ():
        for model, shares in evaluation.shares(by, protocol).items():
            print(f"\n{model}, {protocol}, by {by}")
            print_table(SHARE_HEAD, share_rows(shares))


def page_or_table(out: Path, extent: str, evaluation, by: str | None) -> bytes:
    """Return the content of an output file, by its extension."""
    if out.suffix.lower() == ".html":
        return evaluation_page(
            f"Perplexity of {', '.join(evaluation.models)} on {extent}", evaluation, (by,) if by else ()
        ).html.encode()
    return shares_csv(evaluation, by) if by else results_csv(evaluation, extent)

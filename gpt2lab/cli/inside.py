"""The command that looks inside: what each layer believes, what each token cost, what each head is for."""

from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from gpt2lab.cli.output import Json, Model, quiet, report, write
from gpt2lab.errors import LabError


class Asked(NamedTuple):
    """What the parts of `inspect` are asked for."""

    heads: list[tuple[int, int]]
    mlps: list[int]
    mean: bool
    position: int
    token: str | None
    against: str | None
    patch: str | None
    walk: tuple[int, int] | None


def inspect(
    text: Annotated[str, typer.Option(help="the text to look at")],
    model: Model = "auto",
    surprisal: Annotated[
        bool, typer.Option("--surprisal", help="how little each token was expected; the default; of any length")
    ] = False,
    lens: Annotated[bool, typer.Option("--lens", help="what would be predicted after each layer")] = False,
    heads: Annotated[bool, typer.Option("--heads", help="scores of every head: what kind it is")] = False,
    attribution: Annotated[
        bool, typer.Option("--attribution", help="what each head and MLP adds to the logit of a token over another's")
    ] = False,
    sweep: Annotated[bool, typer.Option("--sweep", help="the loss with each head switched off alone")] = False,
    ablate: Annotated[str | None, typer.Option(help="switch off heads and MLPs together: 0.3,2.1,1.mlp")] = None,
    mean: Annotated[bool, typer.Option("--mean", help="what is switched off writes its mean, not zero")] = False,
    patch: Annotated[str | None, typer.Option(help="a corrupted prompt: put the text's states into its run")] = None,
    walk: Annotated[str | None, typer.Option(help="a head, 0.3: every formula of its block, with its numbers")] = None,
    position: Annotated[int, typer.Option(help="of --attribution and --walk: at which token; -1 is the last")] = -1,
    token: Annotated[
        str | None, typer.Option(help="of --lens, --attribution, --patch: the token that is followed")
    ] = None,
    against: Annotated[str | None, typer.Option(help="of --attribution, --patch: the token held against it")] = None,
    compare: Annotated[str | None, typer.Option(help="a second model, on the same text")] = None,
    out: Annotated[Path | None, typer.Option(help="write one part as .html, .png, .svg, .csv or .npz")] = None,
    as_json: Json = False,
) -> None:
    """Inside a model: surprisal, logit lens, heads, what they add, what is lost without them, a block by its formulas."""
    quiet()
    from gpt2lab.cli.parts import PARTS
    from gpt2lab.inspection.ablation import parts_named
    from gpt2lab.model import load_model
    from gpt2lab.views.export import format_of

    given = {"surprisal": surprisal, "lens": lens, "heads": heads, "attribution": attribution, "sweep": sweep}
    given |= {"ablate": ablate, "patch": patch, "walk": walk}
    names = [name for name, wanted in given.items() if wanted not in (None, False)] or ["surprisal"]
    off = ([], []) if ablate is None else parts_named(ablate.split(","))
    asked = Asked(*off, mean, position, token, against, patch, None if walk is None else head_of(walk))
    format = None if out is None else format_of(out)
    if out is not None and len(names) > 1:
        raise LabError(f"--out writes one part, not {', '.join(names)}; ask for one of them")
    labs = [load_model(name) for name in (model, compare) if name is not None]
    found = [{name: PARTS[name].make(lab, text, asked) for name in names} for lab in labs]
    if out is not None:
        content = PARTS[names[0]].file([each[names[0]] for each in found], format)
        write(out, content)
    if as_json:
        first, *others = [record(lab, text, each) for lab, each in zip(labs, found)]
        report(first | ({"compare": others[0]} if others else {}), as_json)
    elif out is not None:
        print(f"{out}  {len(content):,} bytes")
    else:
        for lab, each in zip(labs, found):
            for name, one in each.items():
                print_table(f"{name}: {lab.name}", *PARTS[name].rows(one))


def record(lab, text: str, found: dict) -> dict:
    """What --json tells of one model."""
    from gpt2lab.cli.parts import PARTS
    from gpt2lab.inspection.trace import display_tokens

    ids = lab.encode(text).tolist()
    parts = {name: PARTS[name].record(one) for name, one in found.items()}
    return {"model": lab.name, "tokens": display_tokens(lab.tokenizer, ids), "ids": ids, **parts}


def head_of(spoken: str) -> tuple[int, int]:
    """(layer, head) of "0.3". Raises: LabError for anything else."""
    from gpt2lab.inspection.ablation import parts_named

    heads, mlps = parts_named(spoken.split(","))
    if len(heads) != 1 or mlps:
        raise LabError(f"{spoken[:40]!r} names no single head; give layer.head, as 0.3")
    return heads[0]


def print_table(title: str, head: list[str], rows: list) -> None:
    """A title and rows below each other, columns aligned."""
    lines = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    print(title)
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())

"""The `inspect` command: surprisal, logit lens, head scores, attribution, ablation, patching, walkthrough."""

from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from gpt2lab.cli.output import Json, Model, check_out, load, print_table, quiet, report, write
from gpt2lab.errors import LabError


class Asked(NamedTuple):
    """Options of the parts of `inspect`."""

    heads: list[tuple[int, int]]
    mlps: list[int]
    mean: bool
    position: int
    token: str | None
    against: str | None
    patch: str | None
    walk: tuple[int, int] | None
    limits: list[int]


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
    position: Annotated[
        int | None, typer.Option(help="of --lens' table, --attribution, --walk: at which token; the last")
    ] = None,
    token: Annotated[
        str | None, typer.Option(help="of --lens, --attribution, --patch: the token that is followed")
    ] = None,
    against: Annotated[str | None, typer.Option(help="of --attribution, --patch: the token held against it")] = None,
    limits: Annotated[str | None, typer.Option(help="of --surprisal: where ranks are parted: 10,100,1000")] = None,
    compare: Annotated[str | None, typer.Option(help="a second model, on the same text")] = None,
    out: Annotated[Path | None, typer.Option(help="write one part as .html, .png, .svg, .csv or .npz")] = None,
    as_json: Json = False,
) -> None:
    """Inspect a model on a text: surprisal, logit lens, head scores, attribution, ablation, patching, walkthrough."""
    quiet()
    from gpt2lab.cli.parts import PARTS
    from gpt2lab.inspection.ablation import parts_named
    from gpt2lab.inspection.surprisal import RANKS, limits_of
    from gpt2lab.pages.export import format_of

    given = {"surprisal": surprisal, "lens": lens, "heads": heads, "attribution": attribution, "sweep": sweep}
    given |= {"ablate": ablate, "patch": patch, "walk": walk}
    names = [name for name, wanted in given.items() if wanted not in (None, False)] or ["surprisal"]
    idle = {
        "--mean": mean and not {"sweep", "ablate"} & {*names},
        "--position": position is not None and not {"lens", "attribution", "walk"} & {*names},
        "--token": token is not None and not {"lens", "attribution", "patch"} & {*names},
        "--against": against is not None and not {"attribution", "patch"} & {*names},
        "--limits": limits is not None and "surprisal" not in names,
    }
    if any(idle.values()):
        unused = ", ".join(name for name, is_idle in idle.items() if is_idle)
        raise LabError("{unused} changes nothing of {choices}; leave it out", unused=unused, choices=", ".join(names))
    off = ([], []) if ablate is None else parts_named(ablate.split(","))
    place = -1 if position is None else position
    edges = list(RANKS) if limits is None else limits_of(limits)
    asked = Asked(*off, mean, place, token, against, patch, None if walk is None else head_of(walk), edges)
    format = None if out is None else format_of(out)
    check_out(out)
    if out is not None and len(names) > 1:
        raise LabError("--out writes one part, not {choices}; ask for one of them", choices=", ".join(names))
    if out is not None:
        PARTS[names[0]].check(names[0], format, compare is not None)
    labs = [load(name) for name in (model, compare) if name is not None]
    found = [{name: PARTS[name].make(lab, text, asked) for name in names} for lab in labs]
    if out is not None:
        content = PARTS[names[0]].file([each[names[0]] for each in found], format, asked)
        write(out, content)
    if as_json:
        first, *others = [record(lab, text, each, asked) for lab, each in zip(labs, found)]
        report(first | ({"compare": others[0]} if others else {}), as_json)
    elif out is not None:
        print(f"{out}  {len(content):,} bytes")
    else:
        for lab, each in zip(labs, found):
            for name, one in each.items():
                table = PARTS[name].rows(one, asked)
                print(f"{name}: {lab.name}")
                print_table(*table)


def record(lab, text: str, found: dict, asked: Asked) -> dict:
    """Return the JSON object of one model."""
    from gpt2lab.cli.parts import PARTS
    from gpt2lab.data.tokens import display_tokens, token_bytes

    ids = lab.encode(text).tolist()
    parts = {}
    for name, one in found.items():
        parts |= PARTS[name].record(one, asked)
    raw = [list(token_bytes(lab.tokenizer, i) or b"") for i in ids]
    return {"model": lab.name, "tokens": display_tokens(lab.tokenizer, ids), "ids": ids, "bytes": raw, **parts}


def head_of(spoken: str) -> tuple[int, int]:
    """(layer, head) of "0.3". Raises: LabError for anything else."""
    from gpt2lab.inspection.ablation import parts_named

    heads, mlps = parts_named(spoken.split(","))
    if len(heads) != 1 or mlps:
        raise LabError("{spoken!r} names no single head; give layer.head, as 0.3", spoken=spoken[:40])
    return heads[0]

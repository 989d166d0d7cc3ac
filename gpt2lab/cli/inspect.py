"""The `inspect` command: every analysis of a text, with options made from the registry of analyses."""

from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any

import typer

from gpt2lab.cli.models import load, quiet
from gpt2lab.cli.output import Json, Model, check_out, print_table, report, write
from gpt2lab.data.tokens import display_tokens, token_bytes
from gpt2lab.errors import LabError
from gpt2lab.inspection.ablation import parts_named
from gpt2lab.inspection.analyses import ANALYSES, Options, head_of
from gpt2lab.inspection.input_attribution import METHODS, UNITS
from gpt2lab.inspection.surprisal import Surprisal, SurprisalChange, limits_of
from gpt2lab.model.lab import Lab
from gpt2lab.pages.export import export, format_of
from gpt2lab.results import Result

OPTIONS = {  # of several analyses: type, help
    "mean": (bool, "mean ablation instead of zero ablation"),
    "position": (int, "at which token; the last by default"),
    "token": (str, "the token that is followed"),
    "against": (str, "the token it is compared with"),
    "limits": (str, "where buckets of ranks end: 10,100,1000"),
    "method": (str, ", ".join(METHODS)),
    "unit": (str, ", ".join(UNITS)),
}


def inspect(text: str, model: str, compare: str | None, out: Path | None, as_json: bool, **given: Any) -> None:
    """Inspect a model on a text: surprisal, logit lens, head scores, attribution, ablation, patching, walkthrough."""
    quiet()
    given = {name: value for name, value in given.items() if value is not None and value is not False}
    names = [name for name in ANALYSES if name in given] or ["surprisal"]
    used = {option for name in names for option in ANALYSES[name].options}
    if idle := [f"--{name}" for name in OPTIONS if name in given and name not in used]:
        raise LabError(
            "{options} changes nothing of {analyses}; leave it out", options=", ".join(idle), analyses=", ".join(names)
        )
    options = Options(**{name: value for name, value in given.items() if name in OPTIONS} | limits(given))
    check_arguments(given)
    format = "" if out is None else format_of(out)
    check_out(out)
    if out is not None and len(names) > 1:
        raise LabError("--out writes one part, not {analyses}; ask for one of them", analyses=", ".join(names))
    if out is not None and compare is not None and names != ["surprisal"]:
        raise LabError("a file of --{name} is of one model; leave --compare out, or use --json", name=names[0])
    labs = [load(name) for name in (model, compare) if name is not None]
    results = [
        {name: ANALYSES[name].compute(lab, text, given.get(name, ""), options) for name in names} for lab in labs
    ]
    if out is not None:
        content = export(one_file([each[names[0]] for each in results]), format)
        write(out, content)
    if as_json:
        first, *others = [record(lab, text, each) for lab, each in zip(labs, results)]
        report(first | ({"compare": others[0]} if others else {}), as_json)
    elif out is not None:
        print(f"{out}  {len(content):,} bytes")
    else:
        for each in results:
            for name, result in each.items():
                head, rows = result.table(**ANALYSES[name].table(options)).text()
                print(result.title)
                print_table(head, rows)


def limits(given: dict) -> dict:
    """Return the limits of ranks as numbers, if given. Raises: LabError for what is no list of numbers."""
    return {"limits": limits_of(given["limits"])} if "limits" in given else {}


def check_arguments(given: dict) -> None:
    """Check names of heads before a model is loaded. Raises: LabError."""
    if "ablate" in given:
        parts_named(given["ablate"].split(","))
    if "walk" in given:
        head_of(given["walk"])


def one_file(results: list[Result]) -> Result:
    """Return the result that a file holds: of one model, or the change of surprisal between two."""
    match results:
        case [Surprisal() as before, Surprisal() as after]:
            return SurprisalChange(before, after)
    return results[0]


def record(lab: Lab, text: str, results: dict[str, Result]) -> dict:
    """Return the JSON object of one model."""
    ids = lab.encode(text).tolist()
    raw = [list(token_bytes(lab.tokenizer, i) or b"") for i in ids]
    values = {"model": lab.name, "tokens": display_tokens(lab.tokenizer, ids), "ids": ids, "bytes": raw}
    for result in results.values():
        values |= result.record()
    return values


def signature() -> Signature:
    """Return the options of the command, with one per analysis and one per option of several."""

    def option(name: str, kind: type, help: str) -> Parameter:
        flag = kind is bool
        info = typer.Option(f"--{name}", help=help) if flag else typer.Option(help=help)
        given = kind if flag else kind | None
        default = False if flag else None
        return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[given, info])

    users = {option: [name for name, each in ANALYSES.items() if option in each.options] for option in OPTIONS}
    own = [option(name, bool if each.argument is None else str, each.help) for name, each in ANALYSES.items()]
    shared = [
        option(name, kind, f"of {', '.join(f'--{user}' for user in users[name])}: {help}")
        for name, (kind, help) in OPTIONS.items()
    ]
    keyword = Parameter.KEYWORD_ONLY
    text = Annotated[str, typer.Option(help="the text to inspect")]
    pair = Annotated[str | None, typer.Option(help="a second model, on the same text")]
    out = Annotated[Path | None, typer.Option(help="write one part as .html, .png, .svg, .csv, .npz or .json")]
    return Signature(
        [
            Parameter("text", keyword, annotation=text),
            Parameter("model", keyword, default="auto", annotation=Model),
            *own,
            *shared,
            Parameter("compare", keyword, default=None, annotation=pair),
            Parameter("out", keyword, default=None, annotation=out),
            Parameter("as_json", keyword, default=False, annotation=Json),
        ]
    )


SIGNATURE = signature()
inspect.__signature__ = SIGNATURE  # type: ignore[attr-defined]  # which inspect.signature reads
inspect.__annotations__ = {name: each.annotation for name, each in SIGNATURE.parameters.items()}

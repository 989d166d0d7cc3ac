"""The data of the widgets: what results hold, in the form that the views in `static/` read.

A view's data is `{"sides": [side, …]}`, one side, or two that are compared. A side has `name, tokens, ids, note, layers, heads`,
and the parts that its views read: `surprisal, next, lens` (lens_parts), `scores`, `attention`, `contributions`.
"""

import base64
from typing import Any

import numpy as np
import torch

from gpt2lab.errors import Message
from gpt2lab.inspection.contributions import Contributions
from gpt2lab.inspection.heads import SCORES, HeadScores
from gpt2lab.inspection.lens import Lens
from gpt2lab.inspection.trace import Trace


def side_of(trace: Trace, **parts: Any) -> dict:
    """A side: who read what, and the given parts."""
    n = len(trace.tokens)
    note = ""
    if trace.left_out:
        note = Message(
            "The first {n:,} of {total:,} tokens; the rest does not fit {name}.",
            n=n,
            total=n + trace.left_out,
            name=trace.name,
        )
    shape = {"layers": trace.n_layers, "heads": trace.n_heads}
    return {"name": trace.name, "tokens": list(trace.tokens), "ids": trace.ids.tolist(), "note": note, **shape, **parts}


def lens_parts(lens: Lens) -> dict:
    """Parts of a lens that follows the next tokens (`next=True`).

    surprisal  {nll, rank, entropy}: (T,) each, of each token as the model predicted it; null for the first
    next       [position][i] = [display string, id, probability] of what is predicted after a position
    lens       {words: display strings; top: (L+1, T) indexes into words; top_probability; followed: (T,)
               display strings; probability, rank, entropy, divergence: (L+1, T) each}
    """
    T = len(lens.targets)
    nll = (-lens.probability[-1, :-1].double().log()).tolist()
    surprisal = {
        "nll": [None, *rounded(nll, 4)],
        "rank": [None, *lens.rank[-1, :-1].tolist()],
        "entropy": [None, *rounded(lens.entropy[-1, :-1], 4)],
    }
    following = [
        [[name, token, round(p, 5)] for token, name, p in lens.top_predictions(-1, position)] for position in range(T)
    ]
    top = lens.top[..., 0]
    ids, indexes = top.unique(return_inverse=True)
    numbers = {"probability": 5, "entropy": 3, "divergence": 3}
    return {
        "surprisal": surprisal,
        "next": following,
        "lens": {
            "words": [lens.names[i] for i in ids.tolist()],
            "top": indexes.tolist(),
            "top_probability": rounded(lens.top_probability[..., 0], 5),
            "followed": [lens.names[i] for i in lens.targets.tolist()],
            "rank": lens.rank.tolist(),
            **{name: rounded(getattr(lens, name), digits) for name, digits in numbers.items()},
        },
    }


def scores_part(scores: HeadScores) -> list[dict]:
    """A record per score, {name, title, unit, definition, values: (L, H)}; null for a head without one.

    The texts are in English, for the view reads the unit; it translates them itself.
    """
    return [
        {
            "name": name,
            **{field: str(text) for field, text in score._asdict().items()},
            "values": rounded(getattr(scores, name), 4),
        }
        for name, score in SCORES.items()
    ]


def contributions_part(contributions: Contributions) -> dict:
    """{token, against: display strings (T,); token_id; total: (T,); values: float32 (T, P) of `part_names`, base64}."""
    return {
        "token": [word for word, _ in contributions.words],
        "against": [other for _, other in contributions.words],
        "token_id": contributions.tokens.tolist(),
        "total": rounded(contributions.total, 4),
        "values": floats(contributions.values),
    }


def floats(values: torch.Tensor) -> str:
    """Numbers as little-endian float32 in base64."""
    return base64.b64encode(values.numpy().astype("<f4").tobytes()).decode()


def rounded(values: torch.Tensor | list[float], digits: int) -> list:
    """Nested lists of rounded numbers; those that are not finite are null."""
    array = np.round(np.asarray(values, dtype=np.float64), digits)
    cells = array.astype(object)
    cells[~np.isfinite(array)] = None
    return cells.tolist()

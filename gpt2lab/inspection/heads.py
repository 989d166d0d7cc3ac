"""What kind of head is this? A score per head, from traces. Knows nothing of pictures."""

from dataclasses import dataclass

import torch

from gpt2lab.errors import LabError
from gpt2lab.inspection.trace import Trace, trace_ids
from gpt2lab.model import Lab

REPEATED_TOKENS = 50  # length of the random sequence that is shown twice
REPEATED_SEQUENCES = 4  # over which induction is averaged


@dataclass(frozen=True, eq=False)
class HeadScores:
    """How much each head behaves in a known way; every score is a mean attention weight in [0, 1].

    previous_token  (L, H)  weight on the token just before
    induction       (L, H)  in a random sequence shown twice: weight on the token that followed
                            the same token the first time
    """

    previous_token: torch.Tensor
    induction: torch.Tensor

    def __post_init__(self):
        if self.previous_token.ndim != 2 or self.previous_token.shape != self.induction.shape:
            raise ValueError(f"scores of shape {tuple(self.previous_token.shape)} and {tuple(self.induction.shape)}")

    def top(self, score: str, count: int = 3) -> list[tuple[int, int, float]]:
        """(layer, head, score) of the highest heads, highest first."""
        if score not in ("previous_token", "induction"):
            raise LabError(f"score {score!r} is unknown; use previous_token or induction")
        scores = getattr(self, score)
        best = scores.flatten().topk(min(count, scores.numel()))
        return [
            (i // scores.shape[1], i % scores.shape[1], s) for i, s in zip(best.indices.tolist(), best.values.tolist())
        ]


def head_scores(lab: Lab, *, seed: int = 0) -> HeadScores:
    """Previous-token and induction scores of every head, on seeded random tokens shown twice.

    Random text keeps what a head does apart from what the words invite it to do.

    Source: Olsson et al., In-context Learning and Induction Heads (2022), "Defining induction heads".
    """
    n = min(REPEATED_TOKENS, lab.context // 2)
    generator = torch.Generator().manual_seed(seed)
    traces = []
    for _ in range(REPEATED_SEQUENCES):
        ids = torch.randint(lab.model.config.vocab_size, (n,), generator=generator)
        traces.append(trace_ids(lab, ids.repeat(2).to(lab.device)))
    return HeadScores(
        previous_token=torch.stack([previous_token_score(t) for t in traces]).mean(0),
        induction=torch.stack([induction_score(t) for t in traces]).mean(0),
    )


def previous_token_score(trace: Trace) -> torch.Tensor:
    """Mean weight on the token just before, (L, H) in [0, 1]; 1 is a perfect previous-token head.

    Raises: LabError for a trace of one token, which has none before it.
    """
    if len(trace.tokens) < 2:
        raise LabError("one token has no token before it; give at least 2")
    return _mean_weight(trace, offset=-1, first=1)


def induction_score(trace: Trace) -> torch.Tensor:
    """Mean weight, from the second showing, on the token after the same token's first showing; (L, H) in [0, 1].

    trace  of a sequence of n tokens shown twice: 2n tokens

    Raises: LabError where the second half does not repeat the first.
    """
    n, odd = divmod(len(trace.ids), 2)
    if odd or n < 2 or not torch.equal(trace.ids[:n], trace.ids[n:]):
        raise LabError(f"{len(trace.ids)} tokens are not a sequence shown twice; induction is measured on such")
    return _mean_weight(trace, offset=1 - n, first=n)


def _mean_weight(trace: Trace, *, offset: int, first: int) -> torch.Tensor:
    """Mean over tokens i ≥ first of the weight of i on i + offset: (L, H)."""
    layers = (trace.attention(layer).diagonal(offset, dim1=1, dim2=2) for layer in range(trace.n_layers))
    return torch.stack([weights[:, first + offset :].mean(-1) for weights in layers])

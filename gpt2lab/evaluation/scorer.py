"""One scorer for every protocol: a tokenised text → the NLL of each token, kept on disk so that nothing is computed twice."""

import hashlib
import json
import time
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import torch

from gpt2lab.data.sources import cache_folder
from gpt2lab.errors import LabError
from gpt2lab.evaluation.protocols import TokenizedText
from gpt2lab.files import write_bytes
from gpt2lab.model.lab import Lab, check_vocabulary, eval_mode, token_nll, weights_digest
from gpt2lab.model.precision import bf16_copy, check_precision, warn_if_slow
from gpt2lab.progress import stepwise
from gpt2lab.results import Summary

TOKENS_AT_ONCE = {"cpu": 1024, "cuda": 1 << 15}  # in a batch of windows: more leave a CPU's caches
CACHE_BYTES = 1 << 30  # of cached NLLs: about 2,000 evaluations of WikiText-2's test split
ROUNDING = 1e-4  # nats below 0 that a certain token may come to
PRECISIONS = ("fp32", "bf16")
CHECKED_SHARE, MAX_CHECKED = 0.05, 8  # of the windows, those scored in fp32 too; at least 2
SAVE_SECONDS = 20.0  # of scoring that a killed process loses at most
# what of a configuration the NLLs depend on, beside the weights
COMPUTES = (
    "activation_function",
    "layer_norm_epsilon",
    "n_head",
    "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
)


@dataclass(frozen=True, eq=False, repr=False)
class ScoredText(Summary):
    """A tokenised text, and the NLL of each of its tokens under a model.

    nll         (n,) float64 nats; NaN for tokens that no window scores
    model       what it was loaded by
    vocabulary  tokens that the model chooses among
    weights     a fingerprint of the model's weights
    precision   "fp32" or "bf16": how the model was computed
    exact       (n,) float64 nats of the tokens of some windows in fp32, NaN for all others; None where `nll` is fp32
    """

    tokenized: TokenizedText
    nll: np.ndarray
    model: str
    vocabulary: int
    weights: str = ""
    precision: str = "fp32"
    exact: np.ndarray | None = None

    def __post_init__(self):
        if self.nll.shape != self.tokenized.ids.shape:
            raise ValueError(f"nll of shape {self.nll.shape}, ids of {self.tokenized.ids.shape}")

    @property
    def predicted(self) -> np.ndarray:
        """(n,) bool: which tokens have an NLL."""
        return ~np.isnan(self.nll)


@stepwise
def score(lab: Lab, tokenized: TokenizedText, precision: str = "fp32") -> Generator[tuple[int, int], None, ScoredText]:
    """The NLL of every token that a protocol scores.

    precision  "fp32", or "bf16": faster on processors with bf16 units. Some windows are then scored in fp32 too, so
               that the difference is known

    Steps: a batch of windows at a time, (windows done, windows in all).
    Raises: LabError for an unknown precision, and for a model that gives a token no finite probability.
    """
    check_precision(precision, PRECISIONS)
    warn_if_slow(precision, lab.device)
    check_vocabulary(lab, tokenized.ids)
    if precision == "fp32":
        return (yield from _score_in(lab, tokenized, precision))
    checked = checked_windows(tokenized)
    scored = yield from _score_in(lab, tokenized, precision, after=len(checked.windows))
    exact = yield from _score_in(lab, checked, "fp32", before=len(scored_windows(tokenized)))
    return replace(scored, exact=exact.nll)


def scored_windows(tokenized: TokenizedText) -> np.ndarray:
    """Return the windows (W, 3) that score a token."""
    return tokenized.windows[tokenized.windows[:, 1] < tokenized.windows[:, 2]]


def checked_windows(tokenized: TokenizedText) -> TokenizedText:
    """Return the text with the few windows that are scored in both precisions, evenly spread over the text."""
    windows = scored_windows(tokenized)
    count = min(MAX_CHECKED, max(2, int(CHECKED_SHARE * len(windows))), len(windows))
    chosen = ((np.arange(count) + 0.5) * len(windows) / count).astype(int)  # the middles of equal parts
    return replace(tokenized, windows=windows[chosen])


def _score_in(
    lab: Lab, tokenized: TokenizedText, precision: str, *, before: int = 0, after: int = 0
) -> Generator[tuple[int, int], None, ScoredText]:
    """`score` in one precision; progress counts `before` and `after` windows of other steps.

    What is scored is kept under the hash of weights, precision, ids and windows, also when it is broken off: the
    next call resumes there. A damaged file is ignored.
    """
    weights = weights_digest(lab.model)
    model = bf16_copy(lab.model) if precision == "bf16" else lab.model
    key = _key(weights, lab, tokenized, precision)
    path = cache_folder() / "nll" / f"{key}.npz"
    nll = _kept(path, len(tokenized.ids))
    windows = scored_windows(tokenized)
    open_windows = [window for window in windows.tolist() if np.isnan(nll[window[1] : window[2]]).any()]
    done, total = before + len(windows) - len(open_windows), before + len(windows) + after
    saved, fresh = time.monotonic(), False
    ids = torch.from_numpy(tokenized.ids)
    try:
        yield done, total
        for batch in _batches(open_windows, TOKENS_AT_ONCE.get(lab.device.type, TOKENS_AT_ONCE["cpu"])):
            tokens = torch.stack([ids[start:end] for start, _, end in batch]).to(lab.device)  # (B, T)
            with eval_mode(model):
                rows = token_nll(model, tokens, first=batch[0][1] - batch[0][0]).cpu().double().numpy()
            for (_, first, end), row in zip(batch, rows):
                if not np.isfinite(row).all():
                    at = first + int(np.flatnonzero(~np.isfinite(row))[0])
                    raise LabError(
                        "{name} gives token {at:,} no finite probability; its weights are damaged", name=lab.name, at=at
                    )
                nll[first:end] = row
            done, fresh = done + len(batch), True
            if time.monotonic() - saved > SAVE_SECONDS:
                _keep(path, nll)
                saved, fresh = time.monotonic(), False
            yield done, total
    finally:
        if fresh:
            _keep(path, nll)
    return ScoredText(tokenized, nll, lab.name, lab.model.config.vocab_size, weights, precision)


def _batches(windows: list[list[int]], tokens: int) -> Generator[list[list[int]], None, None]:
    """Windows of one shape together, as many as have so many tokens; the most frequent shape first."""
    shapes: dict[tuple[int, int], list] = {}
    for start, first, end in windows:
        shapes.setdefault((end - start, first - start), []).append([start, first, end])
    for (length, _), alike in sorted(shapes.items(), key=lambda item: -len(item[1])):
        size = max(1, tokens // length)
        yield from (alike[i : i + size] for i in range(0, len(alike), size))


def _key(weights: str, lab: Lab, tokenized: TokenizedText, precision: str) -> str:
    """A fingerprint of all that the NLLs depend on."""
    config = {name: getattr(lab.model.config, name) for name in COMPUTES}
    key = hashlib.sha256(f"{weights} {json.dumps(config)} {lab.device.type} {precision}".encode())
    key.update(tokenized.ids.tobytes())
    key.update(tokenized.windows.tobytes())
    return key.hexdigest()[:32]


def _kept(path: Path, n: int) -> np.ndarray:
    """(n,) float64: what was scored before; NaN where nothing was, or the file is damaged: it has a checksum."""
    try:
        with np.load(BytesIO(path.read_bytes()), allow_pickle=False) as file:
            nll = file["nll"]
    except Exception:  # what a damaged file makes numpy and zipfile raise is of many types
        return np.full(n, np.nan)
    whole = nll.shape == (n,) and nll.dtype == np.float32 and not (np.isinf(nll) | (nll < -ROUNDING)).any()
    return nll.astype(np.float64) if whole else np.full(n, np.nan)


def _keep(path: Path, nll: np.ndarray) -> None:
    """Write what was scored, with what others have scored of the same meanwhile; the oldest files make room."""
    content = BytesIO()
    np.savez(content, nll=np.where(np.isnan(nll), _kept(path, len(nll)), nll).astype(np.float32))
    with suppress(OSError):  # a cache that cannot be written is done without
        write_bytes(path, content.getvalue())
        room = CACHE_BYTES
        for file in sorted(path.parent.glob("*.npz"), key=lambda file: -file.stat().st_mtime):
            room -= file.stat().st_size
            if room < 0:
                file.unlink()

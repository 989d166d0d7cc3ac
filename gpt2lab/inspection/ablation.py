"""Ablation: the loss of a text with heads or MLPs set to zero or to their mean, together or one at a time.

Causal, where attention weights are not.
"""

import re
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from gpt2lab.errors import LabError, whole_number
from gpt2lab.inspection.heads import HeadMap
from gpt2lab.inspection.surprisal import RANKS, SurprisalChange, surprisal_of_ids
from gpt2lab.inspection.trace import ResidualTrace, Trace
from gpt2lab.model.lab import Lab, eval_mode
from gpt2lab.progress import finished, stepwise
from gpt2lab.results import Result, Summary, Table

ROWS_AT_ONCE = 4096  # tokens that run through a block at a time
LOGITS_AT_ONCE = 1 << 23  # floats of logits held at a time: 32 MiB


@dataclass(frozen=True, eq=False, repr=False)
class Means(Summary):
    """What heads and MLPs write on average over the tokens of a text.

    heads  (L, H, K)  before the attention's output layer
    mlps   (L, D)
    """

    heads: torch.Tensor
    mlps: torch.Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Ablation(SurprisalChange):
    """A text's surprisal without and with ablation; the name of `after` lists the ablated parts.

    mean  whether they wrote their mean instead of nothing
    """

    heads: tuple[tuple[int, int], ...]
    mlps: tuple[int, ...]
    mean: bool = False

    def record(self) -> dict:
        """Losses, nats per token, and the top predictions after the text."""
        tops = {
            name: [{"token": word, "id": i, "probability": p} for i, word, p in found.top_predictions(-1)]
            for name, found in (("top", self.before), ("top_ablated", self.after))
        }
        return {"ablate": {"loss": self.before.loss, "loss_ablated": self.after.loss, **tops}}


@contextmanager
def ablated(lab: Lab, heads: Iterable[tuple[int, int]] = (), mlps: Iterable[int] = (), *, means: Means | None = None):
    """Context manager that ablates heads and MLPs; the hooks are removed on exit.

    heads  (layer, head) of those that add nothing
    mlps   layers whose MLP adds nothing
    means  what they add instead, at every position; None: zero

    Example: with ablated(lab, [(2, 3)]): generate(lab, "The moon")
    Raises: LabError for a head or layer that does not exist.
    """
    heads, mlps = checked(lab, heads, mlps)
    hooks = []
    try:
        for layer in sorted({layer for layer, _ in heads}):
            mine = sorted(head for at, head in heads if at == layer)
            fill = None if means is None else means.heads[layer, mine]
            c_proj = lab.model.transformer.h[layer].attn.c_proj
            hooks.append(c_proj.register_forward_pre_hook(_without_heads(mine, lab.model.config.n_head, fill)))
        for layer in mlps:
            fill = None if means is None else means.mlps[layer]
            hooks.append(lab.model.transformer.h[layer].mlp.register_forward_hook(_instead(fill)))
        yield lab
    finally:
        for hook in hooks:
            hook.remove()


def parts_named(names: Iterable[str]) -> tuple[list[tuple[int, int]], list[int]]:
    """(heads, MLPs) by name: "0.3" is head 3 of layer 0, "0.mlp" its MLP. Raises: LabError for what is neither."""
    heads, mlps = [], []
    for name in names:
        if not (found := re.fullmatch(r"\s*([0-9]{1,4})\.([0-9]{1,4}|mlp)\s*", str(name))):
            raise LabError(
                "{name!r} names no head or MLP; give layer.head or layer.mlp, as 0.3 or 1.mlp", name=str(name)[:40]
            )
        layer, part = found.groups()
        if part == "mlp":
            mlps.append(int(layer))
        else:
            heads.append((int(layer), int(part)))
    return heads, mlps


def checked(lab: Lab, heads: Iterable, mlps: Iterable) -> tuple[tuple[tuple[int, int], ...], tuple[int, ...]]:
    """Heads and MLPs, each once. Raises: LabError for one that does not exist."""
    c = lab.model.config
    found = {
        (whole_number("layer", layer, 0, c.n_layer - 1), whole_number("head", head, 0, c.n_head - 1))
        for layer, head in heads
    }
    return tuple(sorted(found)), tuple(sorted({whole_number("mlp", layer, 0, c.n_layer - 1) for layer in mlps}))


def _without_heads(heads: list[int], H: int, fill: torch.Tensor | None):
    """A hook that replaces some heads' slices of what enters an output layer, by `fill` (heads, K) or zero."""

    def hook(module, args):
        mixed = args[0].clone().unflatten(-1, (H, -1))  # (B, T, H, K)
        mixed[..., heads, :] = 0 if fill is None else fill.to(mixed)
        return (mixed.flatten(-2),)

    return hook


def _instead(fill: torch.Tensor | None):
    """A hook that replaces what a module gives, by `fill` (D,) or zero."""
    return lambda module, args, output: torch.zeros_like(output) if fill is None else fill.to(output).expand_as(output)


@torch.no_grad()
def text_means(lab: Lab, ids: torch.Tensor) -> Means:
    """What heads and MLPs write on average over the tokens ids (T,) of a text, in a run with nothing switched off."""
    heads, mlps, hooks = [], [], []
    H = lab.model.config.n_head
    try:
        for block in lab.model.transformer.h:
            before = lambda module, args: heads.append(args[0][0].float().mean(0).view(H, -1))  # noqa: E731
            after = lambda module, args, output: mlps.append(output[0].float().mean(0))  # noqa: E731
            hooks += [block.attn.c_proj.register_forward_pre_hook(before), block.mlp.register_forward_hook(after)]
        with eval_mode(lab.model):
            lab.model.transformer(ids[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return Means(torch.stack(heads), torch.stack(mlps))


def ablate(
    lab: Lab,
    text: str | Trace,
    heads: Iterable[tuple[int, int]] = (),
    *,
    mlps: Iterable[int] = (),
    mean: bool = False,
    top: int = 10,
    limits: Sequence[int] = RANKS,
) -> Ablation:
    """What a text costs with some heads and MLPs switched off, and what is expected then.

    text         2 to `lab.context` tokens, or a trace of them
    heads, mlps  as for `ablated`
    mean         each writes its mean over this text, instead of nothing: its size stays, its information goes

    Example: ablate(lab, "The moon is round", [(0, 3)]).change
    Raises: LabError for a text that is empty or does not fit, and for parts that do not exist.
    """
    ids = predicted_ids(lab, text)
    heads, mlps = checked(lab, heads, mlps)
    before = surprisal_of_ids(lab, ids, top=top, limits=limits)
    with ablated(lab, heads, mlps, means=text_means(lab, ids) if mean else None):
        after = surprisal_of_ids(lab, ids, top=top, limits=limits)
    off = ", ".join([*(f"{layer}.{head}" for layer, head in heads), *(f"{layer}.mlp" for layer in mlps)])
    name = f"{lab.name} {'with the mean of' if mean else 'without'} {off}" if off else lab.name
    return Ablation(before, replace(after, name=name), heads, mlps, mean)


@dataclass(frozen=True, eq=False, repr=False)
class Sweep(Result):
    """The loss of a text with each head switched off alone.

    loss    with none, nats per token
    losses  (L, H)
    mean    whether heads wrote their mean instead of nothing
    """

    name: str
    loss: float
    losses: torch.Tensor
    mean: bool

    @property
    def title(self) -> str:
        """What the heads write, and the model."""
        return f"loss with a head writing {'its mean' if self.mean else 'nothing'}: {self.name}"

    def table(self) -> Table:
        """A row per head."""
        return Table(
            ["layer", "head", "loss, nats per token", "change"],
            (
                (layer, head, loss, loss - self.loss)
                for layer, row in enumerate(self.losses.tolist())
                for head, loss in enumerate(row)
            ),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """The loss with no head ablated, and the losses (L, H)."""
        return {"loss": np.array(self.loss), "losses": self.losses.numpy()}

    def record(self) -> dict:
        """The loss with no head ablated, and L×H losses."""
        return {"sweep": super().record()}

    def map(self) -> HeadMap:
        """How much more the loss is without each head, to be drawn."""
        return HeadMap(self.losses - self.loss, self.title, "Δ nats per token", centred=True)


@stepwise
def sweep(lab: Lab, text: str, *, mean: bool = False) -> Generator[tuple[int, int], None, Sweep]:
    """The loss of a text with each head switched off alone; equal to L·H forward passes with `ablated`.

    text  2 to `lab.context` tokens
    mean  as for `ablate`

    Steps: a layer at a time, (layers done, layers in all).
    Raises: LabError for a text that is too short or does not fit.
    """
    return _swept(lab, predicted_ids(lab, text), mean)


def predicted_ids(lab: Lab, text: str | Trace) -> torch.Tensor:
    """The ids (T,) of a text or trace of which a token is predicted: T ≥ 2. Raises: LabError otherwise."""
    ids = text.ids.to(lab.device) if isinstance(text, Trace) else lab.encode_prompt(text)
    if len(ids) < 2:
        raise LabError("one token has no prediction; give at least 2")
    return ids


def sweep_of_ids(lab: Lab, ids: torch.Tensor, *, mean: bool = False) -> Sweep:
    """`sweep` for token ids (T,), T ≥ 2."""
    return finished(_swept(lab, ids, mean))


def sweep_layer(lab: Lab, seen: ResidualTrace, layer: int, *, mean: bool = False) -> tuple[float, torch.Tensor]:
    """A row of `sweep`, of a traced text: the loss with no head ablated, and with each of one layer's, (H,).

    Raises: LabError for a text of one token, and a layer that does not exist.
    """
    ids = predicted_ids(lab, seen)
    whole_number("layer", layer, 0, seen.n_layers - 1)
    entering, last = (seen.residual[[at]].to(lab.device, lab.model.dtype) for at in (layer, -1))  # (1, T, D) each
    losses, _ = _swept_layer(lab, ids, entering, layer, mean)
    with torch.no_grad():
        return float(losses_of(lab, last, ids)), losses


def _swept(lab: Lab, ids: torch.Tensor, mean: bool) -> Generator[tuple[int, int], None, Sweep]:
    n, losses = lab.model.config.n_layer, []
    with torch.no_grad(), eval_mode(lab.model):
        x = embedded(lab, ids)  # (1, T, D)
    for layer in range(n):
        found, x = _swept_layer(lab, ids, x, layer, mean)
        losses.append(found)
        yield layer + 1, n
    with torch.no_grad():
        loss = float(losses_of(lab, x, ids))
    return Sweep(lab.name, loss, torch.stack(losses), mean)


def _swept_layer(
    lab: Lab, ids: torch.Tensor, x: torch.Tensor, layer: int, mean: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """x (1, T, D) that enters a layer -> the losses (H,) with each of its heads ablated, and x that leaves it.

    The attention runs once; the heads' variants, in a batch, go through what lies above.
    """
    block, H = lab.model.transformer.h[layer], lab.model.config.n_head
    with torch.no_grad(), eval_mode(lab.model):
        after, mixed = _with_input_of(block, block.attn.c_proj, x)  # (1, T, D) each
        each = mixed.unflatten(-1, (H, -1)).repeat(H, 1, 1, 1)  # (H, T, H, K)
        own = torch.arange(H)
        each[own, :, own] = mixed.mean(1).view(H, 1, -1) if mean else 0
        y = x + block.attn.c_proj(each.flatten(-2))
        parts = [part + block.mlp(block.ln_2(part)) for part in y.split(rows_at_once(y))]
        return losses_of(lab, above(lab, torch.cat(parts), layer + 1), ids), after


def embedded(lab: Lab, ids: torch.Tensor) -> torch.Tensor:
    """Ids (T,) -> (1, T, D), what enters the first block."""
    transformer = lab.model.transformer
    return (transformer.wte(ids) + transformer.wpe(torch.arange(len(ids), device=ids.device)))[None]


def above(lab: Lab, x: torch.Tensor, layer: int) -> torch.Tensor:
    """(B, T, D) that enters a layer -> what leaves the last, a part of the batch at a time.

    Raises: LabError for a model whose attention is not transformers' "sdpa", which alone masks what lies ahead by itself.
    """
    if not lab.model.config._attn_implementation.startswith("sdpa"):
        raise LabError(
            "attention is {attn_implementation!r}; load the model with attn_implementation='sdpa'",
            attn_implementation=lab.model.config._attn_implementation,
        )
    parts = []
    for part in x.split(rows_at_once(x)):
        for block in lab.model.transformer.h[layer:]:
            part = block(part)
        parts.append(part)
    return torch.cat(parts)


def rows_at_once(x: torch.Tensor) -> int:
    """How many of (B, T, D) run through a block at a time."""
    return max(1, ROWS_AT_ONCE // x.shape[1])


def losses_of(lab: Lab, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """(B, T, D) that leaves the last layer -> (B,): mean NLL of ids (T,), nats per token."""
    hidden = lab.model.transformer.ln_f(x[:, :-1]).flatten(0, 1)  # (B·(T-1), D)
    targets = ids[1:].repeat(len(x))
    at_once = max(1, LOGITS_AT_ONCE // lab.model.config.vocab_size)
    nll = [
        F.cross_entropy(lab.model.lm_head(h).float(), y, reduction="none")
        for h, y in zip(hidden.split(at_once), targets.split(at_once))
    ]
    return torch.cat(nll).view(len(x), -1).mean(1).cpu()


def _with_input_of(block, module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(what a block makes of x, what enters one of its modules)."""
    seen = []
    hook = module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        return block(x), seen[0]
    finally:
        hook.remove()

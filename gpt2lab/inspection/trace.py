"""Record a forward pass: tokens, and q, k, v of every head; logits and the residual stream on request.

The SDPA model runs once with hooks; attention weights are recomputed from q and k for the heads
that are inspected, so that nothing of size L × H × T × T is ever held.
"""

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeGuard

import torch

from gpt2lab.data.tokens import display_tokens
from gpt2lab.errors import LabError, whole_number
from gpt2lab.model.lab import Lab, all_finite, eval_mode
from gpt2lab.results import Summary

MAX_CHARACTERS = 1_000_000  # of a text that is cut: tokenising more, to count what is left out, takes seconds


@dataclass(frozen=True, eq=False, repr=False)
class Trace(Summary):
    """What a model did with one text.

    tokens    T display strings: a leading space is "·", a newline "⏎", a part of a character its bytes
    ids       (T,)           int64
    q, k, v   (L, H, T, K)   float32
    scaling   (L,)           what q·k is multiplied by in each layer: 1/√K, as the configuration says
    left_out  tokens of the text after these, which do not fit the model
    logits    (T, V)         float32; None where they were not asked for
    residual  (L+1, T, D)    float32; entry 0 enters the first block, entry L leaves the last, before ln_f;
                             None where it was not asked for
    """

    name: str
    tokens: tuple[str, ...]
    ids: torch.Tensor
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    scaling: tuple[float, ...]
    left_out: int = 0
    logits: torch.Tensor | None = None
    residual: torch.Tensor | None = None

    def __post_init__(self):
        T, (L, H) = len(self.tokens), self.q.shape[:2]
        shapes = {"ids": (T,), "logits": (T, None), "residual": (L + 1, T, None)}
        shapes |= dict.fromkeys("qkv", (L, H, T, self.q.shape[3]))
        for name, shape in shapes.items():
            if getattr(self, name) is None:
                continue
            actual = getattr(self, name).shape
            if len(actual) != len(shape) or any(n is not None and n != a for n, a in zip(shape, actual)):
                raise ValueError(
                    f"{name} of shape {tuple(actual)}; {T} tokens, {L} layers and {H} heads ask for {shape}"
                )
        if len(self.scaling) != L:
            raise ValueError(f"{len(self.scaling)} scalings for {L} layers")

    @property
    def n_layers(self) -> int:
        """Number of layers, L."""
        return len(self.q)

    @property
    def n_heads(self) -> int:
        """Number of heads of a layer, H."""
        return self.q.shape[1]

    def attention(self, layer: int, head: int | None = None, *, rows: slice = slice(None)) -> torch.Tensor:
        """softmax(mask(q·kᵀ · scaling)): who looks at whom.

        rows     of the tokens that read, as a slice: only their rows are computed
        returns  (T, T) of one head, or (H, T, T) of a layer; float32. Row i holds the weights with
                 which token i reads tokens 0…i; rows sum to 1, and what lies ahead has exactly 0.

        Raises: LabError for a layer or head that does not exist.
        Source: Vaswani et al., Attention Is All You Need (2017), section 3.2.1.
        """
        self.heads(layer, head)
        q, k = (self.q[layer], self.k[layer]) if head is None else (self.q[layer, head], self.k[layer, head])
        scores = q[..., rows, :] @ k.transpose(-1, -2) * self.scaling[layer]  # (…, t, T)
        places = torch.arange(len(self.tokens))
        return scores.masked_fill(places > places[rows, None], -torch.inf).softmax(-1)

    def heads(self, layer: int, head: int | None = None) -> list[int]:
        """The heads meant by `layer` and `head`; None is all. Raises: LabError out of range."""
        whole_number("layer", layer, 0, self.n_layers - 1)
        return list(range(self.n_heads)) if head is None else [whole_number("head", head, 0, self.n_heads - 1)]


def trace(lab: Lab, text: str, *, cut: bool = False, logits: bool = False, residual: bool = False) -> Trace:
    """What a model does with a text, in one forward pass.

    text              1 to `lab.context` tokens
    cut               of a longer text, trace the first `lab.context` tokens; `left_out` counts the others
    logits, residual  keep them too: T·V and (L+1)·T·D floats

    Example: trace(load_model("builtin"), "The moon").attention(0, 1).shape -> (3, 3)
    Raises: LabError for a text that is empty or does not fit.
    """
    if cut and len(text) > MAX_CHARACTERS:
        raise LabError(
            "the text has {count:,} characters; the limit is {max_characters:,}: give its beginning",
            count=len(text),
            max_characters=MAX_CHARACTERS,
        )
    ids = lab.encode(text) if cut else lab.encode_prompt(text)
    if not len(ids):
        raise LabError("the text is empty; type at least one character")
    traced = trace_ids(lab, ids[: lab.context], logits=logits, residual=residual)
    return replace(traced, left_out=len(ids) - len(traced.ids))


class ResidualTrace(Trace):
    """To a type checker: a trace that has its residual stream."""

    residual: torch.Tensor


def has_residual(seen: Trace) -> TypeGuard[ResidualTrace]:
    """Whether a trace has its residual stream."""
    return seen.residual is not None


def with_residual(lab: Lab, text: str | Trace, *, cut: bool = False) -> ResidualTrace:
    """A trace that has its residual stream, of a text, or as given. Raises: LabError as `trace`, and for one without."""
    seen = trace(lab, text, residual=True, cut=cut) if not isinstance(text, Trace) else text
    if not has_residual(seen):
        raise LabError("the trace has no residual stream; make it with residual=True")
    return seen


def trace_ids(lab: Lab, ids: torch.Tensor, *, logits: bool = False, residual: bool = False) -> Trace:
    """`trace` for token ids (T,). The model's mode, and its hooks, are as before afterwards."""
    [traced] = trace_batch(lab, [ids], logits=logits, residual=residual)
    return traced


def trace_batch(lab: Lab, batch: list[torch.Tensor], *, logits: bool = False, residual: bool = False) -> list[Trace]:
    """`trace_ids` for several sequences in one forward pass; shorter ones are filled up at their end, which no token reads."""
    for ids in batch:
        check_ids(lab, ids)
    model, lengths = lab.model, [len(ids) for ids in batch]
    rows = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)  # (B, T)
    with recording(model, rows.shape, residual=residual) as seen, eval_mode(model), torch.no_grad():
        last = model.transformer(rows, use_cache=False).last_hidden_state  # (B, T, D)
        seen["logits"] = model.lm_head(last).float().cpu() if logits else None
    if not all_finite(seen["qkv"]):
        raise LabError(
            "{name} computes q, k and v that are not numbers; its weights are damaged: use another model", name=lab.name
        )
    q, k, v = seen["qkv"]
    return [
        Trace(
            name=lab.name,
            tokens=display_tokens(lab.tokenizer, ids.tolist()),
            ids=ids.cpu(),
            q=q[:, i, :, :T],
            k=k[:, i, :, :T],
            v=v[:, i, :, :T],
            scaling=tuple(float(block.attn.scaling) for block in model.transformer.h),
            logits=seen["logits"][i, :T] if logits else None,
            residual=seen["residual"][:, i, :T] if residual else None,
        )
        for i, (ids, T) in enumerate(zip(batch, lengths))
    ]


def check_ids(lab: Lab, ids: torch.Tensor) -> None:
    """Raises: LabError for what is not (T,) whole numbers in the vocabulary, with T from 1 to the context."""
    if not isinstance(ids, torch.Tensor) or ids.ndim != 1 or ids.dtype != torch.long:
        raise LabError(
            "token ids are a {type}; give a tensor (T,) of int64, as lab.encode does", type=type(ids).__name__
        )
    if not 1 <= len(ids) <= lab.context:
        raise LabError(
            "{count:,} token ids; {name} reads from 1 to {context:,}",
            count=len(ids),
            name=lab.name,
            context=lab.context,
        )
    vocabulary = lab.model.config.vocab_size
    if ids.min() < 0 or ids.max() >= vocabulary:
        wrong = next(i for i in ids.tolist() if not 0 <= i < vocabulary)
        raise LabError(
            "token id {wrong} is outside the vocabulary; use 0 to {vocabulary:,}",
            wrong=wrong,
            vocabulary=vocabulary - 1,
        )


@contextmanager
def recording(model, shape: tuple[int, int], *, residual: bool):
    """While open, a forward pass of B rows of T tokens leaves what it does in the tensors given.

    qkv       (3, L, B, H, T, K)  float32, of c_attn's outputs
    residual  (L+1, B, T, D)      float32, of what enters each block, and ln_f
    """
    c, (B, T) = model.config, shape
    seen = {"qkv": torch.empty(3, c.n_layer, B, c.n_head, T, c.n_embd // c.n_head)}
    seen["residual"] = torch.empty(c.n_layer + 1, B, T, c.n_embd) if residual else None

    def keep_qkv(layer):
        def hook(module, args, output):  # (B, T, 3D)
            seen["qkv"][:, layer] = output.detach().unflatten(-1, (3, c.n_head, -1)).permute(2, 0, 3, 1, 4)

        return hook

    def keep_residual(entry):
        def hook(module, args):
            seen["residual"][entry] = args[0].detach()

        return hook

    hooks = []
    try:
        for layer, block in enumerate(model.transformer.h):
            hooks.append(block.attn.c_attn.register_forward_hook(keep_qkv(layer)))
        for entry, module in enumerate([*model.transformer.h, model.transformer.ln_f] if residual else []):
            hooks.append(module.register_forward_pre_hook(keep_residual(entry)))
        yield seen
    finally:
        for hook in hooks:
            hook.remove()

"""One forward pass, kept: tokens, logits, residual stream, and q, k, v of every head.

The SDPA model runs once with hooks; attention weights are recomputed from q and k for the heads
that are looked at, so that nothing of size L × H × T × T is ever held.
"""

from contextlib import contextmanager
from dataclasses import dataclass

import torch

from gpt2lab.errors import whole_number
from gpt2lab.model import Lab, eval_mode


@dataclass(frozen=True, eq=False)
class Trace:
    """What a model did with one text.

    tokens    T display strings: a leading space is "·", a newline "⏎", a part of a character its bytes
    ids       (T,)           int64
    logits    (T, V)         float32
    residual  (L+1, T, D)    float32; entry 0 enters the first block, entry L leaves the last, before ln_f
    q, k, v   (L, H, T, K)   float32
    scaling   (L,)           what q·k is multiplied by in each layer: 1/√K, as the configuration says
    """

    name: str
    tokens: tuple[str, ...]
    ids: torch.Tensor
    logits: torch.Tensor
    residual: torch.Tensor
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    scaling: tuple[float, ...]

    def __post_init__(self):
        T, (L, H) = len(self.tokens), self.q.shape[:2]
        shapes = {"ids": (T,), "logits": (T, None), "residual": (L + 1, T, None)}
        shapes |= dict.fromkeys("qkv", (L, H, T, self.q.shape[3]))
        for name, shape in shapes.items():
            actual = getattr(self, name).shape
            if len(actual) != len(shape) or any(n is not None and n != a for n, a in zip(shape, actual)):
                raise ValueError(
                    f"{name} of shape {tuple(actual)}; {T} tokens, {L} layers and {H} heads ask for {shape}"
                )
        if len(self.scaling) != L:
            raise ValueError(f"{len(self.scaling)} scalings for {L} layers")

    @property
    def n_layers(self) -> int:
        """L."""
        return len(self.q)

    @property
    def n_heads(self) -> int:
        """H, of each layer."""
        return self.q.shape[1]

    def attention(self, layer: int, head: int | None = None) -> torch.Tensor:
        """softmax(mask(q·kᵀ · scaling)): who looks at whom.

        returns  (T, T) of one head, or (H, T, T) of a layer; float32. Row i holds the weights with
                 which token i reads tokens 0…i; rows sum to 1, and what lies ahead has exactly 0.

        Raises: LabError for a layer or head that does not exist.
        Source: Vaswani et al., Attention Is All You Need (2017), section 3.2.1.
        """
        heads = self.heads(layer, head)
        q, k = self.q[layer, heads], self.k[layer, heads]  # (h, T, K)
        scores = q @ k.transpose(-1, -2) * self.scaling[layer]  # (h, T, T)
        ahead = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        weights = scores.masked_fill(ahead, -torch.inf).softmax(-1)
        return weights if head is None else weights[0]

    def heads(self, layer: int, head: int | None = None) -> list[int]:
        """The heads meant by `layer` and `head`; None is all. Raises: LabError out of range."""
        whole_number("layer", layer, 0, self.n_layers - 1)
        return list(range(self.n_heads)) if head is None else [whole_number("head", head, 0, self.n_heads - 1)]


def trace(lab: Lab, text: str) -> Trace:
    """What a model does with a text, in one forward pass.

    text  1 to `lab.context` tokens

    Example: trace(load_model("builtin"), "The moon").attention(0, 1).shape -> (3, 3)
    Raises: LabError for a text that is empty or does not fit.
    """
    return trace_ids(lab, lab.encode_prompt(text))


def trace_ids(lab: Lab, ids: torch.Tensor) -> Trace:
    """`trace` for token ids (T,). The model's mode, and its hooks, are as before afterwards."""
    c = lab.model.config
    blocks = lab.model.transformer.h
    with recording(lab.model) as seen, eval_mode(lab.model), torch.no_grad():
        logits = lab.model(ids[None], use_cache=False).logits[0]  # (T, V)
    qkv = torch.stack(seen["qkv"]).float().cpu()  # (L, T, 3D)
    heads = qkv.unflatten(-1, (3, c.n_head, -1)).permute(2, 0, 3, 1, 4)  # (3, L, H, T, K)
    return Trace(
        name=lab.name,
        tokens=display_tokens(lab.tokenizer, ids.tolist()),
        ids=ids.cpu(),
        logits=logits.float().cpu(),
        residual=torch.stack(seen["residual"]).float().cpu(),
        q=heads[0],
        k=heads[1],
        v=heads[2],
        scaling=tuple(float(block.attn.scaling) for block in blocks),
    )


@contextmanager
def recording(model):
    """While open, forward passes of one row leave c_attn's outputs and the residual stream in the lists given."""
    seen = {"qkv": [], "residual": []}

    def keep(name, take):
        def hook(module, args, output=None):
            seen[name].append(take(args, output)[0].detach().clone())

        return hook

    hooks = []
    try:
        for block in model.transformer.h:
            hooks.append(block.register_forward_pre_hook(keep("residual", lambda args, _: args[0])))
            hooks.append(block.attn.c_attn.register_forward_hook(keep("qkv", lambda _, output: output)))
        hooks.append(model.transformer.ln_f.register_forward_pre_hook(keep("residual", lambda args, _: args[0])))
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def display_tokens(tokenizer, ids: list[int]) -> tuple[str, ...]:
    """Ids → strings to show, one per id, none of them empty or invisible.

    A leading space is "·", a newline "⏎", a tab "⇥". A token that holds a part of a character, or
    one that cannot be seen, is shown as its bytes in hexadecimal: "⟨F0 9F⟩", an added token with its
    invisible characters as code points: "⟨U+200B⟩", and an id without a token as itself: "⟨50300⟩".

    Example: the ids of " a\\n" -> ("·a", "⏎")
    """
    return tuple(display_token(tokenizer, i) for i in ids)


def display_token(tokenizer, i: int) -> str:
    """One id as a string to show; see `display_tokens`."""
    token = tokenizer.convert_ids_to_tokens(i)
    if token is None:  # vocabularies are padded at times
        return f"⟨{i}⟩"
    text = tokenizer.decode([i]).translate(VISIBLE)
    if text.isprintable() and "\ufffd" not in text:
        return text
    codes = [BYTES.get(character) for character in token]
    if None in codes:  # an added token: its characters are its own
        return "".join(c if c.isprintable() else f"⟨U+{ord(c):04X}⟩" for c in text)
    raw = bytes(codes)
    return "\ufffd" if raw.decode(errors="ignore") == "\ufffd" else f"⟨{raw.hex(' ').upper()}⟩"


VISIBLE = str.maketrans({" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"})


def _byte_of_character() -> dict[str, int]:
    """GPT-2's byte-level alphabet: printable bytes stand for themselves, the others for characters from 256 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTES = _byte_of_character()

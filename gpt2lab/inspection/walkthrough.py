"""Walkthrough of a block: every formula for one token, layer and head, with the model's own numbers."""

from dataclasses import dataclass

import numpy as np
import torch

from gpt2lab.data.tokens import display_tokens
from gpt2lab.errors import Message, whole_number
from gpt2lab.inspection.lens import log_probabilities
from gpt2lab.inspection.trace import Trace, with_residual
from gpt2lab.model.lab import Lab, eval_mode
from gpt2lab.results import Result, Summary, Table

TOP_LOGPROBS = 10  # of what the state after the block would predict
WIDTH, HEAD_WIDTH, MLP_WIDTH, TOKENS = (
    Message("width"),
    Message("head width"),
    Message("MLP width"),
    Message("tokens"),
)
FORMULAS = (  # name, as TransformerLens names activations where it has one; title; formula; axis of the values
    ("token_embedding", Message("Token embedding"), "wte[id]", WIDTH),
    ("position_embedding", Message("Position embedding"), "wpe[i]", WIDTH),
    ("resid_pre", Message("Their sum enters the first block"), "x = wte[id] + wpe[i]{others}", WIDTH),
    ("ln_1", Message("Layer norm"), "n = (x − mean) / √(variance + ε) · γ + β", WIDTH),
    ("query", Message("Query: what the token looks for"), "q = n W_Q + b_Q", HEAD_WIDTH),
    ("key", Message("Key: what it offers to be found by"), "k = n W_K + b_K", HEAD_WIDTH),
    ("value", Message("Value: what it passes on"), "v = n W_V + b_V", HEAD_WIDTH),
    ("products", Message("Query times every key"), "q · k_j", TOKENS),
    ("scaled", Message("Times {scaling:.4g}"), "q · k_j · {scaling:.4g}", TOKENS),
    ("masked", Message("Causal mask: later tokens get −∞"), "−∞ where j > i", TOKENS),
    ("weights", Message("Softmax: the attention weights"), "softmax_j", TOKENS),
    ("z", Message("The values, by these weights"), "z = Σ_j weight_j v_j", HEAD_WIDTH),
    ("head_out", Message("This head's part of the output"), "z W_O", WIDTH),
    ("attn_out", Message("All heads' parts and the bias"), "Σ_heads z W_O + b_O", WIDTH),
    ("resid_mid", Message("Added to what came in"), "x + attention", WIDTH),
    ("ln_2", Message("Second layer norm"), "m = (x − mean) / √(variance + ε) · γ + β", WIDTH),
    ("mlp_pre", Message("MLP, up to four times the width"), "m W_1 + b_1", MLP_WIDTH),
    ("mlp_post", Message("Its activation, {activation}"), "{activation}(m W_1 + b_1)", MLP_WIDTH),
    ("mlp_out", Message("MLP, down again"), "{activation}(…) W_2 + b_2", WIDTH),
    ("resid_post", Message("Added: what leaves the block"), "x + attention + MLP", WIDTH),
)


@dataclass(frozen=True, eq=False, repr=False)
class WalkStep(Summary):
    """One formula and what it gives.

    name     its key, as "weights"
    title    in words
    formula  as plain text
    values   (D,), (K,), (4D,) or, over the tokens that are read, (T,)
    over     what each value stands for: "width", "head width", "MLP width", or "tokens"
    """

    name: str
    title: str
    formula: str
    values: torch.Tensor
    over: str


@dataclass(frozen=True, eq=False, repr=False)
class Walkthrough(Result):
    """A token's way through one block, seen from one head.

    tokens       T display strings
    mean, variance  of the state that the first norm divides by
    predictions  what the model would predict after this block: (display string, probability), most probable first
    """

    name: str
    tokens: tuple[str, ...]
    layer: int
    head: int
    position: int
    mean: float
    variance: float
    steps: tuple[WalkStep, ...]
    predictions: tuple[tuple[str, float], ...]

    @property
    def title(self) -> str:
        """The token, the head and the model."""
        token = f"token {self.position}, {self.tokens[self.position]!r}"
        return f"Walkthrough of {token}, layer {self.layer}, head {self.head}: {self.name}"

    def table(self, first: int | None = None) -> Table:
        """A row per number of each step, or of its first ones."""
        rows = (
            [step.name, step.formula, i, value]
            for step in self.steps
            for i, value in enumerate(step.values[:first].tolist())
        )
        return Table(["step", "formula", "at", "value"], rows)

    def arrays(self) -> dict[str, np.ndarray]:
        """Every step's numbers by its name, and the tokens."""
        return {"tokens": np.array(self.tokens), **{step.name: step.values.numpy() for step in self.steps}}

    def record(self) -> dict:
        """Every step's numbers."""
        steps = {step.name: step.values.tolist() for step in self.steps}
        return {"walk": {"layer": self.layer, "head": self.head, "position": self.position, "steps": steps}}

    def step(self, name: str) -> WalkStep:
        """A step by its name."""
        return next(step for step in self.steps if step.name == name)


@torch.no_grad()
def walk(lab: Lab, text: str | Trace, layer: int, head: int, position: int = -1) -> Walkthrough:
    """Every formula of a block for one token and head: the values are the model's own.

    text      or a trace of it with its residual stream
    position  of the token; -1 is the last

    Example: walk(lab, "The moon", 0, 1).step("weights").values -> (0.7, 0.3)
    Raises: LabError as `trace`, and for a layer, head or position that does not exist.
    Source: Vaswani et al., Attention Is All You Need (2017), section 3; Radford et al. (2019), section 2.3, for the
    norms before each part.
    """
    seen = with_residual(lab, text)
    whole_number("layer", layer, 0, seen.n_layers - 1)
    whole_number("head", head, 0, seen.n_heads - 1)
    T = len(seen.tokens)
    at = whole_number("position", position, -T, T - 1) % T
    transformer, block = lab.model.transformer, lab.model.transformer.h[layer]
    x = seen.residual[layer, at]
    q, k, v = seen.q[layer, head, at], seen.k[layer, head], seen.v[layer, head]  # (K,), (T, K), (T, K)
    scaling = seen.scaling[layer]
    products = k @ q  # (T,)
    masked = (products * scaling).masked_fill(torch.arange(T) > at, -torch.inf)
    z = seen.attention(layer, rows=slice(at, at + 1)) @ seen.v[layer]  # (H, 1, K)
    rows = block.attn.c_proj.weight.view(seen.n_heads, -1, len(x)).cpu().float()[head]  # (K, D)
    values = {
        "token_embedding": transformer.wte.weight[seen.ids[at]].detach().cpu().float(),
        "position_embedding": transformer.wpe.weight[at].detach().cpu().float(),
        "resid_pre": x,
        "query": q,
        "key": k[at],
        "value": v[at],
        "products": products,
        "scaled": products * scaling,
        "masked": masked,
        "weights": masked.softmax(-1),
        "z": z[head, 0],
        "head_out": z[head, 0] @ rows,
    }
    with eval_mode(block):
        values["ln_1"] = _on_cpu(block.ln_1, x, lab)
        values["attn_out"] = _on_cpu(block.attn.c_proj, z.flatten(), lab)
        values["resid_mid"] = x + values["attn_out"]
        values["ln_2"] = _on_cpu(block.ln_2, values["resid_mid"], lab)
        values["mlp_pre"] = _on_cpu(block.mlp.c_fc, values["ln_2"], lab)
        values["mlp_post"] = _on_cpu(block.mlp.act, values["mlp_pre"], lab)
        values["mlp_out"] = _on_cpu(block.mlp.c_proj, values["mlp_post"], lab)
    values["resid_post"] = values["resid_mid"] + values["mlp_out"]
    best = log_probabilities(lab, values["resid_post"]).exp().topk(min(TOP_LOGPROBS, lab.model.config.vocab_size))
    activation = lab.model.config.activation_function
    fields = {
        "others": " + …" if layer else "",
        "last": layer - 1,
        "scaling": scaling,
        "activation": "GELU" if activation == "gelu_new" else activation,
    }
    titles = {}  # that are others here
    if layer:
        titles["resid_pre"] = Message("With what layers 0 to {last} added, it enters this block")
    if abs(scaling - len(q) ** -0.5) < 1e-9:
        titles["scaled"] = Message("Times {scaling:.4g}, which is 1/√d_k")
    return Walkthrough(
        name=seen.name,
        tokens=seen.tokens,
        layer=layer,
        head=head,
        position=at,
        mean=float(x.mean()),
        variance=float(x.var(unbiased=False)),
        steps=tuple(
            WalkStep(name, Message(titles.get(name, title), **fields), formula.format(**fields), values[name], over)
            for name, title, formula, over in FORMULAS
        ),
        predictions=tuple(zip(display_tokens(lab.tokenizer, best.indices.tolist()), best.values.tolist())),
    )


def _on_cpu(module, x: torch.Tensor, lab: Lab) -> torch.Tensor:
    """What a module of the model makes of (…,), on the CPU in float32."""
    return module(x.to(lab.device, lab.model.dtype)[None])[0].float().cpu()

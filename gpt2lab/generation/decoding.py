"""GPT-2's forward pass for text that grows a token at a time: keys and values are kept, only the last logits are made.

transformers' own modules one after another, without what surrounds them; equal to its forward pass.
"""

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.distributed.fsdp import FSDPModule
from transformers import DynamicCache, GPT2LMHeadModel

from gpt2lab.errors import LabError
from gpt2lab.model.precision import bf16_copy, check_precision, per_weights

PRECISIONS = ("fp32", "bf16", "int8")  # fp32: as the model's weights are
INT8 = ("fbgemm", "onednn", "x86")  # engines of torch whose int8 kernels take weights with a scale per output


class Decoder:
    """Reads tokens and gives the logits of what follows the last one.

    model      on any device, of any precision
    batch      texts read at once
    room       tokens of each that there is room for, at most the model's positions
    precision  "fp32"; "bf16": multiply and keep keys and values in bf16, see `precision.bf16_copy`; "int8": multiply by
               8-bit weights when one token is read at a time, and read the prompt in fp32

    Raises: LabError for an unknown precision, and for int8 where torch has no int8 kernels.
    """

    def __init__(self, model: GPT2LMHeadModel, batch: int, room: int, *, precision: str = "fp32"):
        config = model.config
        if room > config.n_positions:
            raise ValueError(f"room for {room} tokens; the model has {config.n_positions} positions")
        check_precision(precision, PRECISIONS)
        self.model = bf16_copy(model) if precision == "bf16" else model
        self.length = 0  # tokens read
        self._int8 = int8_layers(model) if precision == "int8" else {}
        shape = (config.n_layer, batch, config.n_head, room, config.n_embd // config.n_head)
        dtype = torch.bfloat16 if precision == "bf16" else model.dtype
        self._keys, self._values = (torch.empty(shape, device=model.device, dtype=dtype) for _ in range(2))

    def read(self, ids: torch.Tensor) -> torch.Tensor:
        """The logits after some more tokens: ids (B, T) -> (B, V), float32 on the CPU.

        T may be more than 1 only for the first tokens.
        """
        T = ids.shape[1]
        if T > 1 and self.length:
            raise ValueError(f"{T} tokens at once after {self.length}; only the first may be many")
        known, transformer = self.length + T, self.model.transformer
        places = torch.arange(self.length, known, device=ids.device)
        x = transformer.wte(ids) + transformer.wpe(places)  # (B, T, D)
        for layer, block in enumerate(transformer.h):
            x = x + self._attend(layer, block, x, known)
            x = x + self._layer(block.mlp.c_proj)(block.mlp.act(self._layer(block.mlp.c_fc)(block.ln_2(x))))
        logits = self._layer(self.model.lm_head)(transformer.ln_f(x[:, -1:]))[:, -1]
        self.length = known
        return logits.float().cpu()

    def _attend(self, layer: int, block, x: torch.Tensor, known: int) -> torch.Tensor:
        """(B, T, D) -> what the attention of a layer adds to it; its keys and values are kept."""
        attention, (B, T, D) = block.attn, x.shape
        H = attention.num_heads
        q, k, v = self._layer(attention.c_attn)(block.ln_1(x)).view(B, T, 3, H, D // H).permute(2, 0, 3, 1, 4)
        self._keys[layer, :, :, self.length : known], self._values[layer, :, :, self.length : known] = k, v
        keys, values = self._keys[layer, :, :, :known], self._values[layer, :, :, :known]
        mixed = F.scaled_dot_product_attention(q, keys, values, is_causal=T > 1, scale=attention.scaling)
        return self._layer(attention.c_proj)(mixed.transpose(1, 2).reshape(B, T, D))

    def _layer(self, linear: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        """A linear layer, or its int8 one where a single token is read after others."""
        return self._int8.get(linear, linear) if self.length else linear


class ShardedDecoder:
    """As `Decoder`, by the model's own forward pass: where weights are in shards (FSDP), it gathers those of each block."""

    def __init__(self, model: GPT2LMHeadModel):
        self.model = model
        self.length = 0
        self._cache = DynamicCache(config=model.config)

    def read(self, ids: torch.Tensor) -> torch.Tensor:
        """The logits after some more tokens: ids (B, T) -> (B, V), float32 on the CPU."""
        logits = self.model(ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        self.length += ids.shape[1]
        return logits.float().cpu()


def decoder(model: GPT2LMHeadModel, batch: int, room: int, *, precision: str = "fp32") -> Decoder | ShardedDecoder:
    """Return the decoder that fits a model.

    Raises: LabError as `Decoder`, and for bf16 or int8 where the weights are in shards (FSDP).
    """
    if not any(isinstance(module, FSDPModule) for module in model.modules()):
        return Decoder(model, batch, room, precision=precision)
    if precision != "fp32":
        raise LabError(
            "Precision {precision} needs the whole model, and its weights are in shards (FSDP); use fp32.",
            precision=precision,
        )
    return ShardedDecoder(model)


@per_weights
def int8_layers(model: GPT2LMHeadModel) -> dict[torch.nn.Module, Callable]:
    """Return the model's linear layers with 8-bit weights, by the layer each stands for.

    Raises: LabError where torch has no int8 kernels.
    """
    if model.device.type != "cpu" or torch.backends.quantized.engine not in INT8:
        raise LabError(
            "int8 runs on x86 processors; the model is on {device}, torch's engine is {engine}: use "
            "precision fp32 or bf16",
            device=model.device,
            engine=torch.backends.quantized.engine,
        )
    layers = {linear: packed(linear) for block in model.transformer.h for linear in linears(block)}
    return layers | {model.lm_head: packed(model.lm_head)}


def linears(block) -> tuple[torch.nn.Module, ...]:
    """The linear layers of a transformer block."""
    return block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj


@torch.inference_mode()
def packed(linear: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """x -> W x + b with W of 8 bits, a scale per output, and x of 8 bits, a scale for all of it.

    Without AVX512-VNNI units x has 7 bits: torch's kernels add two products of 8 bits in 16, which overflows.
    """
    weight = linear.weight.detach().float()
    weight = weight if isinstance(linear, torch.nn.Linear) else weight.t()  # transformers' Conv1D is (in, out)
    scales = (weight.abs().amax(1) / 127).clamp_min(1e-12).double()
    bias = None if linear.bias is None else linear.bias.detach().float()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)  # torch will move its quantized tensors elsewhere
        zeros = torch.zeros(len(scales), dtype=torch.long)
        quantized = torch.quantize_per_channel(weight.contiguous(), scales, zeros, 0, torch.qint8)
    weights = torch.ops.quantized.linear_prepack(quantized, bias)
    reduced = not has_vnni()
    return lambda x: torch.ops.quantized.linear_dynamic(x, weights, reduced)


def has_vnni() -> bool:
    """Whether the processor multiplies 8-bit numbers without an overflow in 16 bits."""
    return bool(torch.cpu.get_capabilities().get("avx512_vnni"))

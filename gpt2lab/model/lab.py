"""One loaded GPT-2: `load_model(name) -> Lab`, and the NLL of tokens under it.

The model is the same SDPA model everywhere.
"""

import hashlib
import re
import threading
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from transformers import (
    AutoConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerBase,
)
from transformers.activations import NewGELUActivation
from transformers.utils import logging

from gpt2lab.data import hub
from gpt2lab.data.hub import Progress
from gpt2lab.data.sources import ModelSource, adapter_base, check_model_type, has_tokenizer, model_source
from gpt2lab.data.tokens import check_tokenizer, display_token, encode, load_tokenizer, start_id, utf8
from gpt2lab.errors import LabError, Message, first_line
from gpt2lab.model.positions import sinusoids

LOADING = threading.Lock()  # transformers changes global state while it loads: two at a time lose tied weights
LOGITS_AT_ONCE = 1 << 23  # floats of logits held at a time while scoring: 32 MiB; larger parts are no faster
OFFLINE = {"local_files_only": True, "trust_remote_code": False}  # all files are on this machine by then
BLOCK = re.compile(r"\bh\.(\d+)\.")  # the number of the transformer block in a tensor's name


@dataclass(frozen=True, eq=False, repr=False)
class Lab:
    """A GPT-2 with its tokenizer, in eval mode.

    name   what it was loaded by: "builtin", a hub id, a folder
    notes  what differs from the usual GPT-2 and changes what a user gets, a sentence each
    """

    model: GPT2LMHeadModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    notes: tuple[str, ...] = ()

    def __repr__(self):
        return f"Lab({self.name!r}: {self.shape})"

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.device

    @property
    def context(self) -> int:
        """The most tokens the model can read at once: its learned positions."""
        return self.model.config.n_positions

    @property
    def shape(self) -> str:
        """The model in a line: parameters, layers × heads, width, vocabulary, context."""
        c = self.model.config
        millions = self.model.num_parameters() / 1e6
        return Message(
            "{millions:.1f} M parameters, {layers} layers × {heads} heads, width {width}, "
            "{vocabulary:,} tokens, context {context:,}",
            millions=millions,
            layers=c.n_layer,
            heads=c.n_head,
            width=c.n_embd,
            vocabulary=c.vocab_size,
            context=c.n_positions,
        )

    @cached_property
    def longest_token(self) -> int:
        """UTF-8 bytes that one token can stand for, at most."""
        return max(len(token.encode()) for token in self.tokenizer.get_vocab())

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end a text: those of the tokenizer, the configuration and the generation configuration."""
        places = (self.tokenizer, self.model.config, self.model.generation_config)
        given = (getattr(place, "eos_token_id", None) for place in places)
        ids = (i for one in given for i in (one if isinstance(one, list | tuple) else [one]))
        return frozenset(i for i in ids if i is not None and i < self.model.config.vocab_size)

    @property
    def start_id(self) -> int:
        """Token id from which generation starts if the prompt is empty. Raises: LabError where the tokenizer has none."""
        first = start_id(self.tokenizer)
        if first is None or first >= self.model.config.vocab_size:
            raise LabError(
                "the tokenizer of {name} has no token to begin a text from; type at least one character", name=self.name
            )
        return first

    def encode(self, text: str) -> torch.Tensor:
        """Text → token ids (T,), without special tokens around it; T may be 0.

        Raises: LabError for what is no text, or has lone surrogates or a token that the model does not know.
        """
        ids = torch.tensor(encode(self.tokenizer, text), dtype=torch.long, device=self.device)
        check_vocabulary(self, ids)
        return ids

    def encode_prompt(self, text: str, *, room: int = 0) -> torch.Tensor:
        """Text → token ids (T,) with 1 ≤ T ≤ context - room.

        Raises: LabError for an empty text and for one that does not fit; a text of more bytes than
        so many tokens can hold is not tokenised first.
        """
        size = len(utf8(text))
        if size > self.context * self.longest_token:
            length = Message("{size:,} bytes, more than {context:,} tokens can be", size=size, context=self.context)
            raise self._too_long(length, room)
        ids = self.encode(text)
        if not len(ids):
            raise LabError("the prompt is empty; type at least one character")
        if len(ids) > self.context - room:
            raise self._too_long(Message("{count:,} tokens", count=len(ids)), room)
        return ids

    def _too_long(self, length: Message, room: int) -> LabError:
        spare = Message(" less {room} to generate", room=room) if room else ""
        return LabError(
            "the prompt has {length}; {name} reads at most {context:,}{spare}: shorten it",
            length=length,
            name=self.name,
            context=self.context,
            spare=spare,
        )


def load_model(
    name: str = "auto",
    *,
    device: str | torch.device | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Lab:
    """Load a GPT-2 by name, downloading it first if it is on the hub and not in its cache.

    name    "builtin", "auto", a hub id ("gpt2", "distilgpt2", ...), a folder from save_pretrained, or a folder with a
            LoRA adapter, which is merged into its base model
    device  as torch names it; a GPU where there is one by default
    on_progress  called with the Progress of a download; by default it is drawn as a bar on standard error

    Weights are float32 whatever their precision on disk. Only safetensors are read, and no code
    that comes with a checkpoint is run.

    Example: load_model("builtin").context -> 256
    Raises: LabError for a name that is no GPT-2, or one out of reach.
    """
    source = downloaded(model_source(name), on_progress=on_progress)
    return _load(source, _pretrained, device) if source.kind != "adapter" else _with_adapter(source, device)


def random_model(name: str, seed: int = 0, *, device: str | torch.device | None = None) -> Lab:
    """A GPT-2 in the shape of a named one, with its tokenizer, and random weights that follow from the seed.

    name  as for load_model, or "two-layer"; a folder needs a configuration and a tokenizer, but no weights. If the
          configuration has a number `sinusoids`, position embeddings start as sinusoids of this amplitude

    Example: random_model("builtin").context -> 256
    Raises: LabError as load_model.
    """

    def untrained(source: ModelSource) -> GPT2LMHeadModel:
        config = GPT2Config.from_pretrained(source.location, **OFFLINE)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = GPT2LMHeadModel(config)
        if scale := getattr(config, "sinusoids", None):
            positions = model.transformer.wpe.weight
            positions.data = scale * sinusoids(*positions.shape)
        return model

    source = downloaded(model_source(name, weights=False), weights=False)
    if source.kind == "adapter":
        return random_model(adapter_base(Path(source.location)), seed, device=device)
    return _load(source, untrained, device)


def downloaded(source: ModelSource, *, weights: bool = True, on_progress=None) -> ModelSource:
    """Return the source of a model with its files on this machine, fetched from the hub if need be."""
    if source.kind == "adapter":
        downloaded(
            model_source(adapter_base(Path(source.location)), weights=weights), weights=weights, on_progress=on_progress
        )
    if not source.cached:
        hub.download(source.location, weights=weights, on_progress=on_progress)
    return replace(source, cached=True)


def weights_digest(model: torch.nn.Module) -> str:
    """A fingerprint of a model's weights, whatever device they are on."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def _load(source: ModelSource, make: Callable[[ModelSource], GPT2LMHeadModel], device) -> Lab:
    """A source's tokenizer with the model that `make` makes of it. Raises: LabError where they do not go together."""
    name = source.name
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise LabError("device {device!r} is not available here; use 'cpu', or leave it out", device=device) from error
    try:
        with LOADING, _without_notices():
            if source.kind == "hub":  # a folder's was checked with its name
                kind = AutoConfig.from_pretrained(source.location, **OFFLINE).model_type
                check_model_type(name, kind)
            model = make(source)
            model.loss_type = "ForCausalLM"  # what it is; transformers warns of having to guess it
            tokenizer = load_tokenizer(source.location)
    except LabError:
        raise
    except Exception as error:  # what a damaged file makes transformers raise is of many types
        raise LabError(
            "{name!r} cannot be loaded as GPT-2: {error}; check the folder, or use builtin",
            name=name,
            error=first_line(error),
        ) from error
    check_tokenizer(name, tokenizer, model.config.vocab_size)
    lab = Lab(with_fused_gelu(model).to(device).eval(), tokenizer, name)
    return replace(lab, notes=notes_on(lab))


def notes_on(lab: Lab) -> tuple[str, ...]:
    """Return notes on an unusual tokenizer, a sentence each; none for GPT-2's own."""
    tokenizer, vocabulary = lab.tokenizer, lab.model.config.vocab_size
    notes: list[str] = []
    around = set(tokenizer("a")["input_ids"]) - set(encode(tokenizer, "a"))
    if around:
        named = " and ".join(tokenizer.convert_ids_to_tokens(sorted(around)))
        notes.append(
            Message(
                "The tokenizer's default adds {named} to a text. gpt2lab adds nothing; write {named} into the text to use it.",
                named=named,
            )
        )
    if tokenizer.eos_token_id is None:
        notes.append(Message("The tokenizer has no end token: articles are joined without one."))
        if not lab.end_ids:
            notes.append(Message("A generated text ends at its length."))
    if past := [token for token, i in tokenizer.get_vocab().items() if i >= vocabulary]:
        notes.append(
            Message(
                "The tokenizer's {past} has no embedding in the model; a text with it is refused.",
                past=", ".join(sorted(past)[:5]),
            )
        )
    return tuple(notes)


def check_vocabulary(lab: Lab, ids) -> None:
    """Raises: LabError for a token, in a tensor or array of ids (T,), that the model has no embedding for."""
    vocabulary = lab.model.config.vocab_size
    if len(ids) and int(ids.max()) >= vocabulary:
        wrong = display_token(lab.tokenizer, int(ids.max()))
        raise LabError(
            "{name} has no embedding for the token {wrong}; remove it from the text", name=lab.name, wrong=wrong
        )


def _with_adapter(source: ModelSource, device) -> Lab:
    """The base model of a LoRA adapter with the adapter merged into its weights. Raises: LabError where that fails."""
    from peft import PeftModel

    folder = Path(source.location)
    base = load_model(adapter_base(folder), device=device)
    try:
        with LOADING:
            tokenizer = load_tokenizer(str(folder)) if has_tokenizer(folder) else base.tokenizer
            if rows := _embedding_rows(folder / "adapter_model.safetensors"):
                base.model.resize_token_embeddings(rows, mean_resizing=False)
            with without_peft_warning(), warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)  # peft warns of weights that do not fit the model
                model = PeftModel.from_pretrained(base.model, folder, local_files_only=True).merge_and_unload()
    except Exception as error:  # what a damaged file makes peft raise is of many types
        raise LabError(
            "the adapter in {folder} cannot be merged into {name!r}: {error}; save it again",
            folder=folder,
            name=base.name,
            error=first_line(error),
        ) from error
    check_tokenizer(source.name, tokenizer, model.config.vocab_size)
    model.requires_grad_(True)  # peft freezes the base model
    model.name_or_path = str(folder)  # what an adapter that is trained on it names as its base
    lab = Lab(model.eval(), tokenizer, source.name)
    return replace(lab, notes=(Message("A LoRA adapter, merged into {base}.", base=base.name), *notes_on(lab)))


@contextmanager
def _without_notices():
    """While open, transformers writes errors alone: of token ids past the vocabulary, which many checkpoints have."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def without_peft_warning():
    """While open, peft 0.21 does not warn of the old name by which it asks transformers for gradient checkpointing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        yield


def _embedding_rows(weights: Path) -> int | None:
    """The rows of the token embedding that an adapter brings along; None where it leaves the base model's."""
    with safe_open(weights, "pt") as tensors:
        names = [name for name in tensors.keys() if name.endswith("wte.weight")]  # noqa: SIM118
        return tensors.get_slice(names[0]).get_shape()[0] if names else None


def with_fused_gelu(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """The model with GPT-2's own activation computed in one pass over memory, where transformers makes eight.

    The same function, equal to 1e-6. On a CPU it also keeps clear of MKL's vector functions: called first by two
    threads at once, its tanh was off by 1e-4 for half of a tensor in about one process of 150.
    """
    for block in model.transformer.h:
        if isinstance(block.mlp.act, NewGELUActivation):
            block.mlp.act = torch.nn.GELU(approximate="tanh")
    return model


def _pretrained(source: ModelSource) -> GPT2LMHeadModel:
    model, loading = GPT2LMHeadModel.from_pretrained(
        source.location,
        attn_implementation="sdpa",
        dtype=torch.float32,
        use_safetensors=True,
        output_loading_info=True,
        **OFFLINE,
    )
    if loading["missing_keys"] or loading["mismatched_keys"]:
        missing = sorted(map(str, [*loading["missing_keys"], *loading["mismatched_keys"]]))
        raise LabError(
            "the weights of {name!r} lack {missing} ({count} in all); save the model again",
            name=source.name,
            missing=missing[0],
            count=len(missing),
        )
    _check_layers(source.name, model.config.n_layer, loading["unexpected_keys"])
    return model


def _check_layers(name: str, n_layer: int, unexpected) -> None:
    """Refuse weights of more layers than are configured; other tensors left over, as GPT-2's own have, do no harm."""
    blocks = [int(found[1]) for key in unexpected if (found := BLOCK.search(key))]
    if blocks and max(blocks) >= n_layer:
        raise LabError(
            "the weights of {name!r} have {blocks} layers, but config.json says {n_layer}; save the model again",
            name=name,
            blocks=max(blocks) + 1,
            n_layer=n_layer,
        )


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether no element is NaN or infinite, without a copy: `isfinite` takes as much memory again as the tensor."""
    return bool(torch.stack(torch.aminmax(tensor)).isfinite().all()) if tensor.numel() else True


def token_nll(model: GPT2LMHeadModel, input_ids: torch.Tensor, *, first: int = 1) -> torch.Tensor:
    """NLL of each token given those before it in its row.

    input_ids  (B, T)
    first      the first position that is scored, ≥ 1
    returns    (B, T - first) float32, nats; column j is the NLL of position first + j

    The last token is only predicted, never read: T may be one more than the model's context. The LM
    head runs on the scored positions alone, a part at a time, so that memory does not grow with
    T × V. Gradients are off; the model's mode is left as it is.
    """
    targets = input_ids[:, first:]  # (B, T')
    if not targets.numel():
        return torch.zeros(targets.shape, device=input_ids.device)
    with torch.no_grad():
        hidden = model.transformer(input_ids[:, :-1], use_cache=False).last_hidden_state[:, first - 1 :]  # (B, T', D)
        at_once = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
        parts = [
            F.cross_entropy(model.lm_head(h).float(), y, reduction="none")
            for h, y in zip(hidden.flatten(0, 1).split(at_once), targets.flatten().split(at_once))
        ]
    return torch.cat(parts).view(targets.shape)


@contextmanager
def eval_mode(model: torch.nn.Module):
    """Context manager: eval mode inside, the previous mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield model
    finally:
        model.train(was_training)

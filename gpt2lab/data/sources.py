"""Resolve names: the built-in assets, a local folder, or a repository on the Hugging Face hub.

Finds out fast whether the hub can be reached. Loads nothing.
"""

import json
import os
import threading
import time
from dataclasses import dataclass
from math import inf
from pathlib import Path

import httpx
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.utils import HFValidationError, validate_repo_id

from gpt2lab.errors import LabError, Message

BUILTIN = Path(__file__).parents[1] / "builtin"
SHAPES = {"two-layer": BUILTIN / "two-layer"}  # models without weights, to be trained from scratch
HUB_MODELS = ("gpt2", "distilgpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
WIKITEXT_REPO = "Salesforce/wikitext"
WIKITEXT = {"wikitext-2": "wikitext-2-raw-v1", "wikitext-2-v1": "wikitext-2-v1"}
STORED = ("model.safetensors", "model.safetensors.index.json")  # weights, whole or in shards
TOKENIZER_FILES = (
    ("tokenizer.json",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
    ("tokenizer.model",),
    ("spiece.model",),
)  # any of these
DATA = ("sample", "repeated", *WIKITEXT)
HUB_SECONDS = 2.0  # how long to wait for the hub's answer before working without it
ASK_AGAIN_SECONDS = 60.0  # how long a hub that did not answer is left alone
NO_CONNECTION = {
    "TransportError",
    "ConnectionError",
    "LocalEntryNotFoundError",
}  # httpx's, httpx2's, requests', the hub's

_asking = threading.Lock()
_answer = {"reachable": False, "until": -inf}  # until: time.monotonic()


@dataclass(frozen=True)
class ModelSource:
    """Where a model's files are.

    kind      "builtin", "folder", "adapter" (a folder with a LoRA adapter alone) or "hub"
    location  a folder, or the hub's repository id
    cached    the hub's files are in the local cache, so that no request is needed
    """

    name: str
    kind: str
    location: str
    cached: bool = True


@dataclass(frozen=True)
class Choice:
    """What `auto` stands for on this machine, and why."""

    model: str
    data: str
    reason: str


def hub_reachable() -> bool:
    """Whether the Hugging Face hub answers within two seconds.

    A yes holds for the life of the process, a no for a minute. `HF_HUB_OFFLINE=1` answers no
    without asking.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    with _asking:
        if time.monotonic() >= _answer["until"]:
            reachable = _hub_answers()
            _answer.update(reachable=reachable, until=inf if reachable else time.monotonic() + ASK_AGAIN_SECONDS)
        return bool(_answer["reachable"])


def _hub_answers() -> bool:
    """Asks in a thread of its own, since looking up a host name cannot be given a time limit."""
    answers = []

    def ask():
        try:
            status = httpx.head(constants.ENDPOINT, timeout=HUB_SECONDS).status_code
        except (httpx.HTTPError, httpx.InvalidURL, OSError):
            return
        if status < 400:  # a proxy's refusal is an answer too, but not the hub's
            answers.append(True)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    return bool(answers)


def is_cached(repo: str, filename: str, repo_type: str = "model") -> bool:
    """Whether a file of a hub repository is in the local cache."""
    return isinstance(try_to_load_from_cache(repo, filename, repo_type=repo_type), str)


def wikitext_files(name: str) -> dict[str, str]:
    """The parquet file of each split of a WikiText-2 configuration, as named in its hub repository."""
    return {split: f"{WIKITEXT[name]}/{split}-00000-of-00001.parquet" for split in ("train", "validation", "test")}


def is_model_cached(repo: str, *, weights: bool = True) -> bool:
    """Whether a hub model can be loaded from the local cache: its configuration, weights and tokenizer are there."""
    has_weights = has_cached_weights(repo) or not weights
    return is_cached(repo, "config.json") and has_weights and has_cached_tokenizer(repo)


def is_connection_error(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, means that the hub is unreachable, rather than its answer.

    Told by the classes' names: which of the HTTP libraries raises them differs by version.
    """
    while error is not None:
        if any(kind.__name__ in NO_CONNECTION for kind in type(error).__mro__):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


def hub_advice(name: str, instead: str) -> Message:
    """The line for something that is neither in the cache nor to be had from the hub."""
    return Message(
        "{name!r} is not in the local cache ({cache}) and the Hugging Face hub does not answer; connect to the network "
        "once, or use {instead!r}, which needs none{here}",
        name=name,
        cache=constants.HF_HUB_CACHE,
        instead=instead,
        here=Message(", or ./{name} for the folder of that name", name=name) if Path(name).is_dir() else "",
    )


def model_source(name: str, *, weights: bool = True) -> ModelSource:
    """Resolve a model's name to the place of its files.

    weights  whether its weights are needed, beside its configuration and tokenizer

    Raises: LabError for a name that is no model, a folder that holds no loadable GPT-2, or a hub
    model that is neither cached nor within reach.
    """
    folder = local_path("model", name, f"auto, builtin, {', '.join(HUB_MODELS)} or a folder")
    if name == "auto":
        return model_source(auto_choice().model, weights=weights)
    if name == "builtin":
        return ModelSource(name, "builtin", str(BUILTIN / "checkpoint"))
    if name in SHAPES:
        if weights:
            raise LabError(
                "{name} is a shape without weights; train it with the method scratch, and use the model of that run",
                name=name,
            )
        return ModelSource(name, "builtin", str(SHAPES[name]))
    if name not in HUB_MODELS and folder.is_dir():
        if (folder / "adapter_config.json").is_file() and not any((folder / file).is_file() for file in STORED):
            if not (folder / "adapter_model.safetensors").is_file():
                raise LabError(
                    "{folder} has no adapter_model.safetensors; pickled weights (.bin) are never loaded", folder=folder
                )
            return ModelSource(name, "adapter", str(folder))
        check_model_folder(folder, weights=weights)
        return ModelSource(name, "folder", str(folder))
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise LabError(
            "no model {name!r}: no such folder, and not the id of a hub model; try 'builtin' or 'gpt2'", name=name
        ) from error
    if is_model_cached(name, weights=weights):
        return ModelSource(name, "hub", name)
    if not hub_reachable():
        if name in HUB_MODELS:
            raise LabError(hub_advice(name, "builtin"))
        raise LabError(
            "no model {name!r}: no such folder, not in the local cache, and the Hugging Face hub does not "
            "answer; known names are auto, builtin, {choices}",
            name=name,
            choices=", ".join(HUB_MODELS),
        )
    return ModelSource(name, "hub", name, cached=False)


def has_cached_weights(repo: str) -> bool:
    """Whether safetensors weights of a hub model, whole or in all their shards, are in the local cache."""
    if is_cached(repo, "model.safetensors"):
        return True
    index = try_to_load_from_cache(repo, "model.safetensors.index.json")
    if not isinstance(index, str):
        return False
    try:
        shards = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False
    return bool(shards) and all(is_cached(repo, shard) for shard in shards)


def has_cached_tokenizer(repo: str) -> bool:
    """Whether the tokenizer of a hub model is in the local cache; transformers makes up an empty one otherwise."""
    return any(all(is_cached(repo, file) for file in files) for files in TOKENIZER_FILES)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has the files of a tokenizer."""
    return any(all((folder / file).is_file() for file in files) for files in TOKENIZER_FILES)


def adapter_base(folder: Path) -> str:
    """The name of the base model in an adapter's configuration. Raises: LabError where there is none."""
    try:
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError, OSError) as error:
        raise LabError(
            "{folder}/adapter_config.json cannot be read ({error}); save the adapter again", folder=folder, error=error
        ) from error
    if not base or not isinstance(base, str):
        raise LabError(
            "{folder}/adapter_config.json names no base_model_name_or_path; write the base model's name there",
            folder=folder,
        )
    if (Path(base) / "adapter_config.json").is_file():
        raise LabError(
            "the base model of {folder} is itself an adapter, {base!r}; merge that one first", folder=folder, base=base
        )
    return base


def local_path(what: str, name: str, known: str) -> Path:
    """The path that a name would be, there or not; `known` says what to give instead where it can be none.

    Raises: LabError for what can be no path: no text, an unknown user's home, a part that is too long.
    """
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise LabError(
            "no {what} {name!r} ({error}); use {known}",
            what=what,
            name=str(name)[:80],
            error=str(error)[:80],
            known=known,
        ) from error
    if not name:
        raise LabError("no {what} {name!r}; use {known}", what=what, name=name, known=known)
    return path


def check_model_folder(folder: Path, *, weights: bool = True) -> None:
    """Refuse a folder that `from_pretrained` could not load safely as GPT-2.

    Raises: LabError that names the missing or wrong file.
    """
    if not (folder / "config.json").is_file():
        raise LabError("{folder} has no config.json; give a folder written by save_pretrained()", folder=folder)
    check_model_config(folder, folder / "config.json")
    if weights and not any((folder / file).is_file() for file in STORED):
        raise LabError(
            "{folder} has no model.safetensors; pickled weights (.bin, .pt) can run code and are never "
            "loaded: save the model again with save_pretrained()",
            folder=folder,
        )
    if not has_tokenizer(folder):
        known = ", ".join(" and ".join(files) for files in TOKENIZER_FILES)
        raise LabError(
            "{folder} has no tokenizer ({known}); save the tokenizer beside the model", folder=folder, known=known
        )


def check_model_config(where: str | Path, config: Path) -> None:
    """Refuse a config.json that is damaged, or another model's. Raises: LabError that names it."""
    try:
        kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError, OSError) as error:
        raise LabError(
            "{config} is not a model configuration ({error}); save the model again", config=config, error=error
        ) from error
    check_model_type(where, kind)


def check_model_type(where: str | Path, kind) -> None:
    """Refuse what a configuration calls another model than GPT-2. Raises: LabError with its type."""
    if kind != "gpt2":
        raise LabError(
            "{where} holds a model of type {kind!r}; gpt2lab reads 'gpt2' checkpoints", where=where, kind=kind
        )


def auto_choice(*, training: bool = False) -> Choice:
    """Choose the model and the text that `auto` stands for on this machine.

    To look at a model, `gpt2` if it is in the hub's cache: that takes a second on a CPU. To train one, `gpt2` and
    `wikitext-2` where there is a GPU, and both are in the cache or the hub answers. Else `builtin` and `sample`.
    """
    has_model = is_model_cached("gpt2")
    has_text = all(is_cached(WIKITEXT_REPO, file, "dataset") for file in wikitext_files("wikitext-2").values())
    if not training:
        data = "wikitext-2" if has_text else "sample"
        if has_model:
            return Choice("gpt2", data, Message("gpt2 is downloaded"))
        return Choice("builtin", data, Message("gpt2 is not downloaded; name it to download it"))
    import torch

    if not torch.cuda.is_available():
        return Choice("builtin", "sample", Message("training gpt2 needs a GPU to be fast, and there is none"))
    if has_model and has_text:
        return Choice("gpt2", "wikitext-2", Message("there is a GPU, and both are downloaded"))
    if hub_reachable():
        return Choice("gpt2", "wikitext-2", Message("there is a GPU, and the hub answers"))
    reason = Message("there is a GPU, but gpt2 and wikitext-2 are not downloaded and the hub is unreachable")
    return Choice("builtin", "sample", reason)


def resolve_auto(model: str, data: str, *, training: bool = False) -> tuple[str, str]:
    """Return the model and data with "auto" replaced by what it stands for; see `auto_choice`."""
    if "auto" not in (model, data):
        return model, data
    choice = auto_choice(training=training)
    return (choice.model if model == "auto" else model, choice.data if data == "auto" else data)


def cache_folder() -> Path:
    """Where gpt2lab keeps what it can compute again: `$GPT2LAB_CACHE`, else `gpt2lab` under the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("GPT2LAB_CACHE") or Path(base) / "gpt2lab").expanduser()

"""What a run has seen of its own inside while it trained, read from its folder; also that of the built-in model."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpt2lab.data.sources import BUILTIN
from gpt2lab.errors import LabError, Message, choice, first_line
from gpt2lab.inspection.heads import SCORES
from gpt2lab.results import Result, Table
from gpt2lab.training.observation import SCORE
from gpt2lab.training.records import read_lines, read_metrics
from gpt2lab.training.runs import find_run

MAX_FILE = 50_000_000  # bytes of one array of a file, as it says itself: a damaged one must not fill the memory
REQUIRED = ("tokens", "ids", "surprisal", "lens_rank", "attention", *(f"{SCORE}{name}" for name in SCORES))
LOSSES = ("train", "validation", "first showing", "second showing")
BORN = 0.3  # a head whose score stays below has not become what the score measures


@dataclass(frozen=True, eq=False, repr=False)
class History(Result):
    """The inside of a model at S steps of its training, on a text of T tokens, the probe.

    name         of the run, or of the model
    tokens       T display strings
    ids          (T,)             int64
    steps        (S,)             int64, rising
    head_scores  (S, L, H) each   float32, by name, as `head_scores` of random tokens shown twice
    surprisal    (S, T)           float32, nats; NaN for the first token
    lens_rank    (S, L+1, T)      int64, of the next token after each layer, as `Lens`; after the end, of the top prediction
    attention    (S, L, H, T, T)  uint8, in 255ths
    losses       (S,) each        nats per token, NaN where not measured: "train" and "validation" of the run; "first
                                  showing" and "second showing" of random tokens shown twice
    weight_norm  (S, L)           L2 norm of each layer's weights; NaN where not recorded
    update_norm  (S, L)           L2 norm of the change of the weights in the step; NaN for step 0
    samples      texts written along the way, by step
    problems     what could not be read, a sentence each
    """

    name: str
    tokens: tuple[str, ...]
    ids: np.ndarray
    steps: np.ndarray
    head_scores: Mapping[str, np.ndarray]
    surprisal: np.ndarray
    lens_rank: np.ndarray
    attention: np.ndarray
    losses: Mapping[str, np.ndarray]
    weight_norm: np.ndarray
    update_norm: np.ndarray
    samples: Mapping[int, str]
    problems: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        S, L, H, T, _ = self.attention.shape
        expected = {
            "ids": (T,),
            "steps": (S,),
            "surprisal": (S, T),
            "lens_rank": (S, L + 1, T),
            "attention": (S, L, H, T, T),
            "weight_norm": (S, L),
            "update_norm": (S, L),
        }
        arrays = {name: getattr(self, name) for name in expected}
        arrays |= {f"{SCORE}{name}": self.head_scores[name] for name in SCORES} | dict(self.losses)
        for name, array in arrays.items():
            shape = expected.get(name, (S, L, H) if name.startswith(SCORE) else (S,))
            if array.shape != shape:
                raise ValueError(f"{name} of shape {array.shape}; {shape} is expected")
        if len(self.tokens) != T or not S or (np.diff(self.steps) <= 0).any():
            raise ValueError("steps do not rise, or tokens are missing")

    @property
    def title(self) -> str:
        """The run."""
        return f"History: {self.name}"

    @property
    def n_layers(self) -> int:
        """Number of layers, L."""
        return self.attention.shape[1]

    @property
    def n_heads(self) -> int:
        """Number of heads of a layer, H."""
        return self.attention.shape[2]

    def weights(self, step: int, layer: int, head: int) -> np.ndarray:
        """Attention of a head on the probe at an observed step: (T, T), in 255ths of 1 exact. Raises: LabError."""
        return self.attention[self.place(step), layer, head] / np.float32(255)

    def place(self, step: int) -> int:
        """Which of the steps a step is. Raises: LabError for one that was not observed."""
        found = np.flatnonzero(self.steps == step)
        if not len(found):
            known = ", ".join(map(str, self.steps.tolist()))
            raise LabError("step {step} was not observed; use one of {known}", step=step, known=known)
        return int(found[0])

    def top(self, score: str = "induction") -> tuple[int, int]:
        """(layer, head) of the highest score at the last step. Raises: LabError for a score that is not in SCORES."""
        last = self.head_scores[choice("score", score, SCORES)][-1]
        layer, head = np.unravel_index(np.nanargmax(last), last.shape)
        return int(layer), int(head)

    def change_step(self, score: str = "induction") -> int | None:
        """The first step from which on the highest head keeps more than half of its final score.

        None where no head reaches BORN, or the head was there from the start. Raises: LabError for an unknown score.
        """
        layer, head = self.top(score)
        course = self.head_scores[score][:, layer, head]
        above = course > course[-1] / 2
        if course[-1] < BORN or above[0]:
            return None
        return int(self.steps[np.flatnonzero(~above)[-1] + 1])

    def table(self) -> Table:
        """A row per step and head."""
        rows = (
            [step, layer, head, *(float(self.head_scores[name][s, layer, head]) for name in SCORES)]
            for s, step in enumerate(self.steps.tolist())
            for layer in range(self.n_layers)
            for head in range(self.n_heads)
        )
        return Table(["step", "layer", "head", *SCORES], rows)

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by name; losses and scores with a prefix."""
        names = ("ids", "steps", "surprisal", "lens_rank", "attention", "weight_norm", "update_norm")
        scores = {f"{SCORE}{name}": array for name, array in self.head_scores.items()}
        losses = {f"loss_{name.replace(' ', '_')}": array for name, array in self.losses.items()}
        return {"tokens": np.array(self.tokens), **{name: getattr(self, name) for name in names}, **scores, **losses}

    def record(self) -> dict:
        """All numbers but attention, as lists."""
        arrays = {name: array.tolist() for name, array in self.arrays().items() if name != "attention"}
        return {"history": {"name": self.name, **arrays, "samples": dict(self.samples)}}


def read_history(run: str | Path, runs_dir: str | Path = "runs") -> History:
    """Read what a run has seen of its own inside, of a run under way too.

    run  an id in `runs_dir`, the Path of a run's folder, or "builtin" for the training of the built-in model

    Example: read_history("builtin").change_step("induction") -> 2048
    Raises: LabError for a run that is not there, or has no history that can be read.
    """
    if run == "builtin":
        return _joined("builtin", BUILTIN / "checkpoint")
    folder = run if isinstance(run, Path) else find_run(Path(runs_dir), run)
    kept, problems = _observations(folder)
    if not kept:
        why = problems[0] if problems else Message("nothing was recorded yet")
        raise LabError("run {name!r} has no history: {why}", name=folder.name, why=why)
    arrays = {name: np.stack([one[name] for one in kept.values()]) for name in next(iter(kept.values()))}
    samples = {line.get("step"): line.get("text") for line in read_lines(folder / "samples.jsonl")}
    losses = _recorded_losses(folder, [*kept])
    return _history(folder.name, np.array([*kept]), arrays, losses, samples, tuple(problems))


def _observations(folder: Path) -> tuple[dict[int, dict], list[Message]]:
    """The readable observations of a run by step, of one shape, and what could not be read."""
    kept: dict[int, dict] = {}
    problems = []
    for file in sorted((folder / "history").glob("[0-9]*.npz")):
        try:
            found = _arrays(file)
            first = next(iter(kept.values()), found)
            if {name: array.shape for name, array in found.items()} != {n: array.shape for n, array in first.items()}:
                raise ValueError("it has other shapes than the files before it")
            kept[int(file.stem)] = found
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
            problems.append(Message("{file} cannot be read ({error})", file=file.name, error=first_line(error)))
    return kept, problems


def _arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of a file. Raises: ValueError, OSError or zipfile.BadZipFile for what is no such file."""
    with zipfile.ZipFile(file) as members:
        if any(member.file_size > MAX_FILE for member in members.infolist()):
            raise ValueError("an array is too large")
    with np.load(file, allow_pickle=False) as content:
        found = {name: content[name] for name in content.files}
    if missing := [name for name in REQUIRED if name not in found]:
        raise ValueError(f"{', '.join(missing)} missing")
    return found


def _joined(name: str, folder: Path) -> History:
    """The history of a model whose observations are in one file."""
    arrays = _arrays(folder / "history.npz")
    of_text = {key: arrays[key][None] for key in ("tokens", "ids")}  # the same at all steps
    return _history(name, arrays["steps"], arrays | of_text, {}, {})


def _recorded_losses(folder: Path, steps: list[int]) -> dict[str, np.ndarray]:
    """The losses of metrics.jsonl at some steps; of training, that of the last record up to the step."""
    metrics = read_metrics(folder)
    train = {metric.step: metric.loss for metric in metrics if metric.split == "train"}
    validation = {metric.step: metric.loss for metric in metrics if metric.split == "validation"}
    reached = [max((at for at in train if at <= step), default=None) for step in steps]
    return {
        "train": np.array([np.nan if at is None else train[at] for at in reached]),
        "validation": np.array([validation.get(step, np.nan) for step in steps]),
    }


def _history(name, steps, arrays: dict, losses: dict, samples: dict, problems: tuple[Message, ...] = ()) -> History:
    """A History of arrays with a first axis of steps. Raises: LabError where their shapes do not fit."""
    S, L = arrays["attention"].shape[:2]
    unknown = np.full((S, L), np.nan, np.float32)
    shown = arrays.get("repeated_loss", np.full((S, 2), np.nan, np.float32))
    known = dict.fromkeys(LOSSES, np.full(S, np.nan)) | losses
    try:
        return History(
            name=name,
            tokens=tuple(arrays["tokens"][0].tolist()),
            ids=arrays["ids"][0],
            steps=steps.astype(np.int64),
            head_scores={score: arrays[f"{SCORE}{score}"] for score in SCORES},
            surprisal=arrays["surprisal"],
            lens_rank=arrays["lens_rank"].astype(np.int64),
            attention=arrays["attention"],
            losses=known | {"first showing": shown[:, 0], "second showing": shown[:, 1]},
            weight_norm=arrays.get("weight_norm", unknown),
            update_norm=arrays.get("update_norm", unknown),
            samples={step: text for step, text in samples.items() if isinstance(step, int) and isinstance(text, str)},
            problems=problems,
        )
    except (ValueError, IndexError) as error:
        raise LabError("the history of {name} is damaged: {error}", name=name, error=first_line(error)) from error

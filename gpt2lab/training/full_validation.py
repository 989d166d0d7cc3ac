"""Score the whole validation split with the model before and after a run; what a run's own validations sample."""

from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import PartialState

from gpt2lab.data.blocks import Blocks
from gpt2lab.errors import LabError
from gpt2lab.model.lab import Lab, load_model
from gpt2lab.training.config import PreparedConfig
from gpt2lab.training.prepare import config_of, prepare
from gpt2lab.training.result import FinetuneResult, read_result, write_card, write_result
from gpt2lab.training.runs import read_config, writable_or_error
from gpt2lab.training.validation import BUDGET, TRAIN_PER_SCORED, Change, change_of, score_blocks


@dataclass(frozen=True, eq=False)
class SplitScoring:
    """The two models of a finished run, and the validation split that both are to be scored on."""

    before: Lab
    after: Lab
    split: Blocks
    config: PreparedConfig
    result: FinetuneResult
    processes: int = 1

    def steps(self) -> Generator[tuple[int, int], None, FinetuneResult]:
        """Score both models: yields (blocks done, blocks in all), returns the run's result with `whole_validation`.

        result.json and the model card are updated at the end; nothing changes if it is broken off.
        """
        labs = (self.before, self.after)
        before, after = yield from score_blocks(labs, self.split, self.config.batch_size, self.config.precision)
        change = change_of(before, after, split_tokens=int(before[:, 1].sum()))
        result = replace(self.result, whole_validation=change)
        with writable_or_error(result.folder):
            write_result(result)
            write_card(self.after, result, self.config, self.processes, result.folder / "model")
        return result


def load_scoring(folder: Path) -> SplitScoring:
    """Load what is needed to score the whole validation split of a finished run.

    Raises: LabError for a run without a model, one whose validations have scored the whole split already, or one
    whose base model or text has changed or cannot be loaded.
    """
    result, known = read_result(folder), read_config(folder)
    job = prepare(config_of(known), PartialState())
    if job.config.eval_tokens == "all":
        raise LabError(
            "The validations of run {name!r} have scored the whole validation split already.", name=folder.name
        )
    if known.get("text") != f"{job.train.digest} {job.split.digest}":
        raise LabError(
            "The text of run {name!r} has changed since it began; its split cannot be scored.", name=folder.name
        )
    return SplitScoring(
        job.lab, load_model(str(result.model_dir)), job.split, job.config, result, known.get("processes") or 1
    )


def whole_change(folder: Path) -> Change | None:
    """Return a run's change on the whole validation split, scored by its validations or afterwards; None if it was not."""
    try:
        result = read_result(folder)
    except LabError:  # it has no result yet
        return None
    changes = (result.whole_validation, result.validation)
    return next((change for change in changes if change and change.is_whole), None)


def is_affordable(method: str, split_tokens: int, tokens_per_second: float, seconds: float) -> bool:
    """Whether scoring a split with two models takes less than a tenth of the time that a run took.

    tokens_per_second  of training · seconds  of the run
    """
    return 2 * split_tokens / (tokens_per_second * TRAIN_PER_SCORED[method]) < BUDGET * seconds

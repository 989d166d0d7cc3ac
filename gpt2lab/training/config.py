"""Settings of a fine-tuning run, validated on construction. Loads nothing."""

from dataclasses import dataclass, fields

from gpt2lab.errors import LabError
from gpt2lab.settings import check_settings, setting

MAX_BLOCKS_A_STEP = 4096  # 4 M tokens of GPT-2's context: more than any GPT-2 was trained with at a time
MAX_STEPS = 10**7
METHODS = ("full", "lora", "scratch")
PRECISIONS = ("auto", "fp32", "bf16")
REPORTS = ("none", "tensorboard", "trackio")
NO_TRAINING = "{name} 0 trains nothing; use a number above 0"


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a run. None: chosen by `training.defaults` and `plan_validation` when the run begins."""

    model: str = setting(
        "auto", "auto, builtin, a hub id such as gpt2, or a folder from save_pretrained; for scratch, two-layer too."
    )
    data: str = setting(
        "auto", "auto, sample, repeated, wikitext-2, wikitext-2-v1, a folder of splits, or a file of text."
    )
    column: str | None = setting(
        None, "The text column of a .csv, .tsv, .jsonl or .parquet file. Default: its only text column."
    )
    method: str = setting(
        "full",
        "full: all weights. lora: few, low-rank additions to attention. scratch: all weights, from random ones.",
        choices=METHODS,
    )
    lora_rank: int = setting(
        8, "Rank of LoRA's additions; each projection of GPT-2 small gets 3,072 × rank weights.", low=1, high=1024
    )
    steps: int | None = setting(None, "Optimizer steps of the run; or give epochs.", low=1, high=MAX_STEPS)
    epochs: float | None = setting(
        None, "Length of the run as passes over the training text.", low=0, high=10_000, zero=NO_TRAINING
    )
    block_size: int | None = setting(
        None,
        "Block length, at most the model's context. The cost of attention grows with its square.",
        low=2,
        high=10**6,
        unit="tokens",
    )
    batch_size: int | None = setting(
        None,
        "Blocks per forward pass of each process, as many as memory allows.",
        low=1,
        high=MAX_BLOCKS_A_STEP,
    )
    grad_accum: int | None = setting(
        None,
        "Forward passes per step. A step has batch size × this × processes blocks.",
        low=1,
        high=MAX_BLOCKS_A_STEP,
    )
    learning_rate: float | None = setting(
        None, "Peak learning rate, reached after the warm-up.", low=0, high=1, zero=NO_TRAINING
    )
    warmup: float = setting(
        0.1, "Share of the steps in which the learning rate rises from 0; a cosine to 0 follows.", low=0, high=0.99
    )
    weight_decay: float = setting(0.01, "Weight decay of AdamW.", low=0, high=10)
    max_grad_norm: float = setting(
        1.0, "Gradients are scaled down to this norm, so that no odd block wrecks the run. 0: never.", low=0, high=1e6
    )
    # numpy's limit, which transformers' set_seed passes on
    seed: int = setting(0, "Seed of the order of blocks and of dropout.", low=0, high=2**32 - 1)
    eval_every: int | None = setting(
        None,
        "Steps between validations. Default: at most ten validations, which take a tenth of the training time.",
        low=1,
        high=MAX_STEPS,
    )
    eval_tokens: int | str | None = setting(
        None,
        "Tokens that each validation scores, in whole blocks drawn once, or all. Default: as many as keep all "
        "validations within a tenth of the training time.",
        low=1,
        high=10**9,
        choices=("all",),
    )
    patience: int = setting(
        3, "End after this number of validations without a better loss. 0: never.", low=0, high=10**6
    )
    save_every: int | None = setting(
        None, "Steps between checkpoints. Default: at every validation.", low=1, high=MAX_STEPS
    )
    precision: str = setting(
        "auto",
        "Precision of matrix products: auto, fp32 or bf16. Weights, updates and saved files are float32. auto: bf16 on "
        "GPUs since 2020 and on CPUs with AVX512-BF16 or AMX, else fp32.",
        choices=PRECISIONS,
    )
    gradient_checkpointing: bool = setting(
        False, "Compute activations twice instead of keeping them: less memory, a third more time."
    )
    compile: bool = setting(False, "torch.compile: faster steps after a warm-up of one to several minutes.")
    report_to: str = setting("none", "Also send the metrics to tensorboard or trackio.", choices=REPORTS)
    prompt: str | None = setting(
        None, "Prompt of the samples along the way. Default: the first words of the validation text."
    )

    probe: str | None = setting(
        None, "Text on whose first 64 tokens the run observes itself. Default: two sentences with a repeated name."
    )
    snapshots: int = setting(
        0, "Observed steps whose weights are kept, each a model of its own under snapshots/.", low=0, high=60
    )

    def __post_init__(self):
        if self.steps is not None and self.epochs is not None:
            raise LabError(
                "steps {steps} and epochs {epochs} are both given; give one of them",
                steps=self.steps,
                epochs=self.epochs,
            )
        check_settings(self)
        if self.column is not None and not (isinstance(self.column, str) and self.column):
            raise LabError(
                "column {column!r} is not a name; give the name of a column, or leave it out", column=self.column
            )


class PreparedConfig(TrainConfig):
    """The settings of a run that has begun: every number is chosen. The run is `steps` long; `epochs` is None."""

    steps: int
    block_size: int
    batch_size: int
    grad_accum: int
    learning_rate: float
    eval_every: int
    eval_tokens: int | str
    save_every: int
    prompt: str


# numbers that are chosen when the run begins, by model, method and text
OPTIONAL = tuple(each.name for each in fields(TrainConfig) if each.default is None and each.metadata["high"])


def parse_eval_tokens(text: str | None) -> int | str | None:
    """Read `eval_tokens` as it is typed. Example: "2048" -> 2048; "all" -> "all"; "" -> None."""
    text = (text or "").strip().replace(",", "")
    is_number = text.lstrip("-").isdecimal() and len(text) < 20
    return int(text) if is_number else text or None

"""Settings of a fine-tuning run, validated on construction. Loads nothing."""

from dataclasses import dataclass

from gpt2lab.errors import LabError, choice, number, whole_number

MAX_BLOCKS_A_STEP = 4096  # 4 M tokens of GPT-2's context: more than any GPT-2 was trained with at a time

# None: chosen when the run begins, by model, method and text
OPTIONAL = (
    "steps",
    "epochs",
    "block_size",
    "batch_size",
    "grad_accum",
    "learning_rate",
    "eval_every",
    "eval_tokens",
    "save_every",
)
METHODS = ("full", "lora", "scratch")
PRECISIONS = ("auto", "fp32", "bf16")
REPORTS = ("none", "tensorboard", "trackio")


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a run; each has its unit and its reason. None: chosen by `training.defaults` and `plan_validation`.

    model          name as for load_model
    data           name as for load_text
    column         of a table (.csv, .jsonl, .parquet): the column with the text; None: its only text column
    method         "full": all weights · "lora": low-rank additions to the attention's projections, far
                   fewer to train · "scratch": all weights, beginning with random ones; the model named
                   gives its shape and tokenizer, and may be a folder with config.json and tokenizer alone
    lora_rank      of the additions; each 768 × 2,304 projection of GPT-2 gets 3,072 × rank numbers
    steps          optimizer steps; or
    epochs         passes over the training text
    block_size     tokens per block, at most the model's context; attention costs grow with its square
    batch_size     blocks per forward pass; what memory allows
    grad_accum     forward passes per optimizer step; blocks per step = batch_size × grad_accum × processes
    learning_rate  peak, reached after warm-up
    warmup         share of the steps over which the learning rate rises from 0
    weight_decay   AdamW's, as in GPT-2-sized training runs since
    max_grad_norm  gradients are scaled down to this norm, so that one odd block cannot wreck a run; 0: never
    seed           of the order of blocks and of dropout
    eval_every     optimizer steps between validations; None: up to ten, within the budget below
    eval_tokens    tokens of the validation split that each validation scores, in whole blocks drawn once, or "all";
                   None: as many as keep all validations within a tenth of the training time
    patience       validations without a better loss after which the run ends; 0: never
    save_every     optimizer steps between checkpoints; None: with every validation
    precision      of matrix products; weights, their updates and what is saved are float32. "auto": bf16 on GPUs
                   made since 2020 and on CPUs with AVX512-BF16 or AMX, else fp32
    gradient_checkpointing  activations are computed twice instead of kept: less memory, a third more time
    compile        torch.compile: faster steps after a warm-up of one to several minutes
    report_to      also send the metrics to "tensorboard" or "trackio"
    prompt         of the samples generated before and after; None: the first words of the validation text
    """

    model: str = "auto"
    data: str = "auto"
    method: str = "full"
    lora_rank: int = 8
    steps: int | None = None
    epochs: float | None = None
    block_size: int | None = None
    batch_size: int | None = None
    grad_accum: int | None = None
    learning_rate: float | None = None
    warmup: float = 0.1
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    seed: int = 0
    eval_every: int | None = None
    eval_tokens: int | str | None = None
    patience: int = 3
    save_every: int | None = None
    precision: str = "auto"
    gradient_checkpointing: bool = False
    compile: bool = False
    report_to: str = "none"
    prompt: str | None = None
    column: str | None = None

    def __post_init__(self):
        if self.steps is not None and self.epochs is not None:
            raise LabError(
                "steps {steps} and epochs {epochs} are both given; give one of them",
                steps=self.steps,
                epochs=self.epochs,
            )
        for name, low, high in (
            ("steps", 1, 10**7),
            ("block_size", 2, 10**6),
            ("batch_size", 1, MAX_BLOCKS_A_STEP),
            ("grad_accum", 1, MAX_BLOCKS_A_STEP),
            ("seed", 0, 2**32 - 1),  # numpy's limit, which transformers' set_seed passes on
            ("eval_every", 1, 10**7),
            ("save_every", 1, 10**7),
            ("patience", 0, 10**6),
            ("lora_rank", 1, 1024),
        ):
            if getattr(self, name) is not None or name not in OPTIONAL:
                whole_number(name, getattr(self, name), low, high)
        for name, low, high in (
            ("epochs", 0, 10_000),
            ("learning_rate", 0, 1),
            ("warmup", 0, 0.99),
            ("weight_decay", 0, 10),
            ("max_grad_norm", 0, 1e6),
        ):
            if getattr(self, name) is not None or name not in OPTIONAL:
                number(name, getattr(self, name), low, high)
        if self.eval_tokens not in (None, "all"):
            if isinstance(self.eval_tokens, str):
                raise LabError(
                    "eval_tokens {eval_tokens!r} is unknown; use a whole number or all",
                    eval_tokens=self.eval_tokens[:40],
                )
            whole_number("eval_tokens", self.eval_tokens, 1, 10**9)
        for name in ("epochs", "learning_rate"):
            if getattr(self, name) == 0:
                raise LabError("{name} 0 trains nothing; use a number above 0", name=name)
        for name, choices in (("method", METHODS), ("precision", PRECISIONS), ("report_to", REPORTS)):
            choice(name, getattr(self, name), choices)
        if self.column is not None and not (isinstance(self.column, str) and self.column):
            raise LabError(
                "column {column!r} is not a name; give the name of a column, or leave it out", column=self.column
            )
        for name in ("gradient_checkpointing", "compile"):
            if not isinstance(getattr(self, name), bool):
                raise LabError("{name} {getattr!r} is neither true nor false", name=name, getattr=getattr(self, name))


def parse_eval_tokens(text: str | None) -> int | str | None:
    """Read `eval_tokens` as it is typed. Example: "2048" -> 2048; "all" -> "all"; "" -> None."""
    text = (text or "").strip().replace(",", "")
    is_number = text.lstrip("-").isdecimal() and len(text) < 20
    return int(text) if is_number else text or None

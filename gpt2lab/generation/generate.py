"""Text generation: texts made of steps, one at a time, several at once, by search, and past the model's context.

Knows one model; nothing of pages, training or comparisons.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import log

import torch
from transformers import GenerationConfig

from gpt2lab.data.tokens import ANCHOR, has_spaces_in_tokens, text_after, token_text
from gpt2lab.errors import LabError, whole_number
from gpt2lab.generation.decoding import PRECISIONS, decoder, int8_layers
from gpt2lab.generation.sampling import MAX_SEED, Sampling, Step, draw, step_of
from gpt2lab.model.lab import Lab
from gpt2lab.model.precision import check_precision, warn_if_slow
from gpt2lab.results import Summary

MAX_ALTERNATIVES = 100
MAX_BATCH = 64  # continuations, or beams, at once
MAX_STOPS = 16
MAX_PROMPT = 1_000_000  # characters of a prompt of which only the end is read


@dataclass(frozen=True, repr=False)
class Generation(Summary):
    """A prompt and what followed it.

    prompt     "" where the model began from its beginning token alone (GPT-2's `<|endoftext|>`)
    text       what was generated; the prompt is not in it, nor a stop string
    finish     "end of text", "stop string", "length", "context" (the model's positions are used up) or "stopped"
    precision  "fp32", "bf16" or "int8": how the model was computed
    """

    prompt: str
    text: str
    steps: tuple[Step, ...]
    finish: str
    seed: int
    precision: str = "fp32"

    @property
    def log_probability(self) -> float:
        """Of all tokens under the model itself, nats."""
        return sum(log(step.probability) if step.probability else -float("inf") for step in self.steps)


@dataclass(frozen=True, repr=False)
class Request(Summary):
    """What is to be written, checked: `request` makes it from a prompt.

    ids      (T,) that the model begins from: those of the prompt, or its beginning token where that is empty
    after    tokens that follow the prompt already
    stop     strings at which the text ends
    window   tokens that are read again when the context is full; None ends the text there
    """

    lab: Lab
    prompt: str
    ids: torch.Tensor
    sampling: Sampling
    max_new_tokens: int
    alternatives: int
    after: tuple[Step, ...]
    stop: tuple[str, ...]
    window: int | None
    precision: str

    @property
    def before(self) -> list[int]:
        """The last of the prompt's tokens, which decide how the text after them is spelt; none of an empty prompt."""
        return self.ids[-ANCHOR:].tolist() if self.prompt else []


def request(
    lab: Lab,
    prompt: str,
    *,
    sampling: Sampling | None = None,
    max_new_tokens: int = 60,
    alternatives: int = 10,
    after: Sequence[Step] = (),
    stop: str | Sequence[str] = (),
    window: int | None = None,
    precision: str = "fp32",
    **options,
) -> Request:
    """What `generate`, `generate_batch` and `generate_steps` take.

    prompt          "" lets the model begin from its beginning token alone (GPT-2's `<|endoftext|>`)
    sampling        a Sampling; or give its fields here: temperature=0.8, top_p=0.95, seed=1
    max_new_tokens  1 or more, or 0 after steps; the text ends earlier at one of `lab.end_ids`, at a stop string, or where
                    the context is full
    alternatives    how many of the model's top predictions each step keeps
    after           steps of an earlier generation of the prompt, kept: the text continues from them
    stop            a string, or several, at which the text ends
    window          1 to `lab.context` - 1: past the context, so many last tokens are read again, and the
                    text continues; also of a prompt that is too long. None: it ends there
    precision       "fp32"; "bf16": faster on processors with bf16 units; "int8": 8-bit weights, faster still on x86
                    processors. Both change probabilities a little

    Raises: LabError for values out of range, and for a prompt that does not fit.
    """
    if sampling and options:
        raise TypeError(f"both sampling and {', '.join(options)} are given; give one of them")
    sampling = sampling or Sampling(**options)
    whole_number("max_new_tokens", max_new_tokens, 0 if after else 1, 10**6)
    whole_number("alternatives", alternatives, 0, MAX_ALTERNATIVES)
    if window is not None:
        whole_number("window", window, 1, lab.context - 1)
    V = lab.model.config.vocab_size
    if sampling.top_k is not None and sampling.top_k > V:
        raise LabError(
            "top_k {top_k:,} is past the vocabulary of {name}; use 1 to {v:,}", top_k=sampling.top_k, name=lab.name, v=V
        )
    stop = (stop,) if isinstance(stop, str) or not isinstance(stop, Sequence) else tuple(stop)
    if len(stop) > MAX_STOPS or not all(isinstance(each, str) and each for each in stop):
        raise LabError(
            "stop {stop} is refused; give up to {max_stops} strings, none of them empty",
            stop=str(stop)[:60],
            max_stops=MAX_STOPS,
        )
    check_precision(precision, PRECISIONS)
    warn_if_slow(precision, lab.device)
    if precision == "int8":
        int8_layers(lab.model)  # raises now, not at the first step
    ids = prompt_ids(lab, prompt, window)
    if window is None and len(ids) + len(after) > lab.context:
        raise LabError(
            "the prompt and what follows it do not fit the context of {context:,}; shorten it, or give a window",
            context=lab.context,
        )
    return Request(lab, prompt, ids, sampling, max_new_tokens, alternatives, tuple(after), stop, window, precision)


def prompt_ids(lab: Lab, prompt: str, window: int | None = None) -> torch.Tensor:
    """The ids (T,) that the model begins from; `lab.start_id` for an empty prompt, any length where there is a window."""
    if prompt == "":
        return torch.tensor([lab.start_id], device=lab.device)
    if window is None or not isinstance(prompt, str):
        return lab.encode_prompt(prompt, room=1)
    if len(prompt) > MAX_PROMPT:
        raise LabError(
            "the prompt has {count:,} characters; the limit is {max_prompt:,}: shorten it",
            count=len(prompt),
            max_prompt=MAX_PROMPT,
        )
    return lab.encode(prompt)


def generate(lab: Lab, prompt: str, **options) -> Generation:
    """The text that follows a prompt; the options are those of `request`.

    Example: generate(lab, "The moon", temperature=0).text -> " is a member of ..."
    Raises: LabError for values out of range, and for a prompt that does not fit.
    """
    asked = request(lab, prompt, **options)
    return collect(asked, list(steps_of(asked)))


def generate_batch(lab: Lab, prompt: str, count: int, **options) -> tuple[Generation, ...]:
    """Several continuations of a prompt, written together; that at place i is drawn with the seed + i.

    count  1 to MAX_BATCH

    Each is what `generate` gives alone with its seed; in bf16 and int8 nearly so.
    Example: best_of(generate_batch(lab, "The moon", 8)) is the most probable of them
    Raises: LabError as `generate`.
    """
    asked = request(lab, prompt, **options)
    return collect_batch(asked, list(batch_steps(asked, count)), count)


def best_of(generations: Sequence[Generation]) -> Generation:
    """The most probable to the model that wrote them, per token: else the shortest would nearly always be the best.

    Example: best_of(generate_batch(lab, "The moon", 8))
    """
    return max(generations, key=lambda one: one.log_probability / max(1, len(one.steps)))


def generate_steps(lab: Lab, prompt: str, **options) -> Iterator[Step]:
    """The steps of `generate`, one by one, for a caller that shows them as they come or stops early.

    Bad values raise here and now, not at the first step.
    """
    return steps_of(request(lab, prompt, **options))


def steps_of(asked: Request) -> Iterator[Step]:
    """The new steps of a request, one by one; `collect` makes a Generation of those that were taken."""
    return (step for (step,) in batch_steps(asked, 1))


def batch_steps(asked: Request, count: int) -> Iterator[tuple[Step | None, ...]]:
    """The new steps of each of `count` continuations, one of each at a time; None for those that have ended.

    Raises: LabError here and now, not at the first step, for a count or a seed out of range.
    """
    whole_number("count", count, 1, MAX_BATCH)
    whole_number("seed", asked.sampling.seed, 0, MAX_SEED + 1 - count)
    return _rows(asked, count)


def beam_search(
    lab: Lab,
    prompt: str,
    *,
    beams: int = 4,
    max_new_tokens: int = 60,
    alternatives: int = 10,
    stop: str | Sequence[str] = (),
) -> Generation:
    """The most probable of the texts that a search over several keeps, by transformers: by the product of the tokens'
    probabilities, so that a text that ends early has an advantage.

    beams                               2 to MAX_BATCH
    max_new_tokens, alternatives, stop  as for `request`

    Raises: LabError as `generate`.
    """
    asked = request(lab, prompt, temperature=0, max_new_tokens=max_new_tokens, alternatives=alternatives, stop=stop)
    whole_number("beams", beams, 2, MAX_BATCH)
    T, ends = len(asked.ids), sorted(lab.end_ids)
    settings = GenerationConfig(
        num_beams=beams,
        max_new_tokens=min(asked.max_new_tokens, lab.context - T),
        length_penalty=0.0,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,  # fills up beams that have ended
    )
    ids = asked.ids[None]
    with torch.inference_mode():
        ids = lab.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        logits = lab.model(ids).logits[0, T - 1 : -1].float().cpu()
    steps = []
    for row, chosen in zip(logits, ids[0, T:].tolist()):
        steps.append(step_of(row[None], chosen, **_step_options(asked)))
        if _ended(asked, steps):
            break
    return collect(asked, steps)


def collect(asked: Request, steps: Sequence[Step]) -> Generation:
    """The Generation that some steps of a request amount to, finished or not; those it continues from count too."""
    lab, steps = asked.lab, (*asked.after, *steps)
    text = text_of(lab, steps, before=asked.before)
    new = len(steps) - len(asked.after)
    full = asked.window is None and len(asked.ids) + len(steps) == lab.context
    if steps and steps[-1].id in lab.end_ids:
        finish = "end of text"
    elif _stopped(asked, steps):
        finish = "stop string"
        text = text[: min(text.find(each) for each in asked.stop if each in text)]
    else:
        finish = "length" if new == asked.max_new_tokens else "context" if full else "stopped"
    return Generation(asked.prompt, text, steps, finish, asked.sampling.seed, asked.precision)


def collect_batch(asked: Request, rows: Sequence[tuple[Step | None, ...]], count: int) -> tuple[Generation, ...]:
    """The Generations that some rows of `batch_steps` amount to."""
    columns = ([row[i] for row in rows if row[i]] for i in range(count))
    return tuple(replace(collect(asked, column), seed=asked.sampling.seed + i) for i, column in enumerate(columns))


def text_of(lab: Lab, steps: Sequence[Step], *, before: Sequence[int] = ()) -> str:
    """The text that steps add to the tokens before them; ends in "\ufffd" while a character is not whole.

    Tokens that end a text are not in it.
    """
    return text_after(lab.tokenizer, before, [step.id for step in steps if step.id not in lab.end_ids])


def prompt_hint(lab: Lab, prompt: str) -> str | None:
    """A sentence on a prompt that ends in a space, which GPT-2 seldom read before a word; None for any other."""
    if not prompt.endswith(" ") or not has_spaces_in_tokens(lab.tokenizer):
        return None
    return "The prompt ends in a space. The next token usually brings its own: remove it for more natural text."


def _read_from(asked: Request) -> int:
    """The first token that is read to go on: where steps kept have a seam, that from which they were read last."""
    seams = [i for i, step in enumerate(asked.after) if step.seam]
    return len(asked.ids) + seams[-1] - asked.window if seams and asked.window else 0


def _ended(asked: Request, steps: Sequence[Step]) -> bool:
    """Whether the model has ended the text, or a stop string among the last tokens has."""
    if not steps:
        return False
    reach = 8 + 4 * max(map(len, asked.stop), default=0)  # tokens that it can end within: 4 bytes a character
    return steps[-1].id in asked.lab.end_ids or _stopped(asked, steps, max(0, len(steps) - reach))


def _stopped(asked: Request, steps: Sequence[Step], since: int = 0) -> bool:
    """Whether the text of some steps, from one of them on, holds a stop string."""
    if not asked.stop:
        return False
    before = [*asked.before, *(step.id for step in steps[max(0, since - ANCHOR) : since])]
    text = text_of(asked.lab, steps[since:], before=before)
    return any(each in text for each in asked.stop)


def _rows(asked: Request, count: int) -> Iterator[tuple[Step | None, ...]]:
    """The rows of `batch_steps`, for values that are checked."""
    lab, sampling = asked.lab, asked.sampling
    # on the CPU, so that a seed means the same draw wherever the model is
    generators = [torch.Generator().manual_seed(sampling.seed + i) for i in range(count)]
    reader = None
    written = [list(asked.after) for _ in range(count)]
    going = [not _ended(asked, asked.after)] * count
    start = torch.cat([asked.ids, asked.ids.new_tensor([step.id for step in asked.after])])
    ids = start.expand(count, -1)  # (B, T)
    begin = _read_from(asked)
    for _ in range(asked.max_new_tokens):
        if not any(going) or (asked.window is None and ids.shape[1] >= lab.context):
            return
        seam = (ids.shape[1] - begin if reader is None else reader.length + 1) > lab.context
        new = ids[:, -asked.window :] if seam else ids[:, begin:] if reader is None else ids[:, -1:]
        with torch.inference_mode():  # within the step: a generator may be resumed by another thread
            if reader is None or seam:
                room = lab.context if asked.window else min(lab.context, ids.shape[1] + asked.max_new_tokens)
                reader = decoder(lab.model, count, room, precision=asked.precision)
            logits = reader.read(new).split(1)  # (1, V) of each
            rows = [
                draw(sampling, *each, **_step_options(asked)) if on else None
                for *each, on in zip(logits, ids.cpu().split(1), generators, going)
            ]
        rows = [row and replace(row, seam=True) if seam else row for row in rows]
        ids = torch.cat([ids, ids.new_tensor([[row.id if row else 0] for row in rows])], dim=1)
        yield tuple(rows)
        for at, row in enumerate(rows):
            if row:
                written[at].append(row)
                going[at] = not _ended(asked, written[at])


def _step_options(asked: Request) -> dict:
    """Arguments of `draw` and `step_of` besides the logits: how many alternatives a step keeps, and their display strings."""
    return {"alternatives": asked.alternatives, "spell": partial(token_text, asked.lab.tokenizer)}

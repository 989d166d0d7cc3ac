"""Text generation: texts made of steps, one at a time, several at once, by search, and past the model's context."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
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
    sampling   how its tokens were drawn, with its seed
    limit      most tokens that it was to have · stop, window  as for `TextStream`
    """

    prompt: str
    text: str
    steps: tuple[Step, ...]
    finish: str
    seed: int
    precision: str = "fp32"
    sampling: Sampling = field(default_factory=Sampling)
    limit: int = 0
    stop: tuple[str, ...] = ()
    window: int | None = None

    @property
    def log_probability(self) -> float:
        """Log probability of all generated tokens under the model, in nats."""
        return sum(log(step.probability) if step.probability else -float("inf") for step in self.steps)


class TextStream:
    """A text being generated, or several continuations of one prompt at once: iterate over its steps, stop at any.

    Every iteration gives a tuple of Steps, one per continuation, and None in the place of one that has ended. A later
    loop continues where an earlier one stopped. `generation`, or `generations` of several, is the text so far.

    prompt          "" lets the model begin from its beginning token alone (GPT-2's `<|endoftext|>`)
    count           continuations, 1 to MAX_BATCH; that at place i is drawn with the seed + i
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

    Example: stream = TextStream(lab, "The moon"); for (step,) in stream: print(step.token)
    Raises: LabError for values out of range, and for a prompt that does not fit: before the first step.
    """

    def __init__(
        self,
        lab: Lab,
        prompt: str,
        *,
        count: int = 1,
        sampling: Sampling | None = None,
        max_new_tokens: int = 60,
        alternatives: int = 10,
        after: Sequence[Step] = (),
        stop: str | Sequence[str] = (),
        window: int | None = None,
        precision: str = "fp32",
        **options,
    ):
        if sampling and options:
            raise TypeError(f"both sampling and {', '.join(options)} are given; give one of them")
        self.lab, self.prompt, self.after, self.window, self.precision = lab, prompt, tuple(after), window, precision
        self.sampling = sampling or Sampling(**options)
        self.count = whole_number("count", count, 1, MAX_BATCH)
        self.max_new_tokens = whole_number("max_new_tokens", max_new_tokens, 0 if after else 1, 10**6)
        self.alternatives = whole_number("alternatives", alternatives, 0, MAX_ALTERNATIVES)
        whole_number("seed", self.sampling.seed, 0, MAX_SEED + 1 - count)
        if window is not None:
            whole_number("window", window, 1, lab.context - 1)
        V, top_k = lab.model.config.vocab_size, self.sampling.top_k
        if top_k is not None and top_k > V:
            raise LabError(
                "top_k {top_k:,} is past the vocabulary of {name}; use 1 to {v:,}", top_k=top_k, name=lab.name, v=V
            )
        self.stop = (stop,) if isinstance(stop, str) or not isinstance(stop, Sequence) else tuple(stop)
        if len(self.stop) > MAX_STOPS or not all(isinstance(each, str) and each for each in self.stop):
            raise LabError(
                "stop {stop} is refused; give up to {max_stops} strings, none of them empty",
                stop=str(self.stop)[:60],
                max_stops=MAX_STOPS,
            )
        check_precision(precision, PRECISIONS)
        warn_if_slow(precision, lab.device)
        if precision == "int8":
            int8_layers(lab.model)  # raises now, not at the first step
        self.ids = prompt_ids(lab, prompt, window)  # (T,) that the model begins from
        if window is None and len(self.ids) + len(after) > lab.context:
            raise LabError(
                "the prompt and what follows it do not fit the context of {context:,}; shorten it, or give a window",
                context=lab.context,
            )
        self.new: list[list[Step]] = [[] for _ in range(count)]  # steps of each continuation so far
        self._steps = self._generated()

    def __iter__(self) -> Iterator[tuple[Step | None, ...]]:
        return self._steps

    @property
    def generation(self) -> Generation:
        """The text so far, of several the first."""
        return self.generations[0]

    @property
    def generations(self) -> tuple[Generation, ...]:
        """Every continuation so far."""
        return tuple(self.generation_of(new, self.sampling.seed + i) for i, new in enumerate(self.new))

    @property
    def before(self) -> list[int]:
        """The last of the prompt's tokens, which decide how the text after them is spelt; none of an empty prompt."""
        return self.ids[-ANCHOR:].tolist() if self.prompt else []

    def finished(self) -> "TextStream":
        """Run to the end. Example: TextStream(lab, "The moon").finished().generation"""
        for _ in self:
            pass
        return self

    def generation_of(self, new: Sequence[Step], seed: int) -> Generation:
        """The Generation made of the steps it continues from and new ones, finished or not."""
        lab, steps = self.lab, (*self.after, *new)
        text = text_of(lab, steps, before=self.before)
        full = self.window is None and len(self.ids) + len(steps) == lab.context
        if steps and steps[-1].id in lab.end_ids:
            finish = "end of text"
        elif self._has_stop(steps):
            finish = "stop string"
            text = text[: min(text.find(each) for each in self.stop if each in text)]
        else:
            finish = "length" if len(new) == self.max_new_tokens else "context" if full else "stopped"
        sampling, limit = replace(self.sampling, seed=seed), len(self.after) + self.max_new_tokens
        return Generation(
            self.prompt, text, steps, finish, seed, self.precision, sampling, limit, self.stop, self.window
        )

    def step_of(self, logits: torch.Tensor, chosen: int) -> Step:
        """The Step of a chosen token, for logits (1, V)."""
        return step_of(logits, chosen, **self._step_options())

    def has_ended(self, steps: Sequence[Step]) -> bool:
        """Whether an end token or a stop string has ended the text."""
        if not steps:
            return False
        reach = 8 + 4 * max(map(len, self.stop), default=0)  # tokens that it can end within: 4 bytes a character
        return steps[-1].id in self.lab.end_ids or self._has_stop(steps, max(0, len(steps) - reach))

    def _generated(self) -> Iterator[tuple[Step | None, ...]]:
        lab, count, window = self.lab, self.count, self.window
        # on the CPU, so that a seed means the same draw wherever the model is
        generators = [torch.Generator().manual_seed(self.sampling.seed + i) for i in range(count)]
        reader = None
        going = [not self.has_ended(self.after)] * count
        ids = torch.cat([self.ids, self.ids.new_tensor([step.id for step in self.after])]).expand(count, -1)  # (B, T)
        begin = self._first_read()
        for _ in range(self.max_new_tokens):
            if not any(going) or (window is None and ids.shape[1] >= lab.context):
                return
            shifted = (ids.shape[1] - begin if reader is None else reader.length + 1) > lab.context
            unread = ids[:, -window:] if window and shifted else ids[:, begin:] if reader is None else ids[:, -1:]
            with torch.inference_mode():  # within the step: a generator may be resumed by another thread
                if reader is None or shifted:
                    room = lab.context if window else min(lab.context, ids.shape[1] + self.max_new_tokens)
                    reader = decoder(lab.model, count, room, precision=self.precision)
                logits = reader.read(unread).split(1)  # (1, V) of each
                steps = [
                    draw(self.sampling, *each, **self._step_options()) if on else None
                    for *each, on in zip(logits, ids.cpu().split(1), generators, going)
                ]
            steps = [step and replace(step, window_shifted=True) if shifted else step for step in steps]
            ids = torch.cat([ids, ids.new_tensor([[step.id if step else 0] for step in steps])], dim=1)
            for at, step in enumerate(steps):
                if step:
                    self.new[at].append(step)
            yield tuple(steps)
            going = [on and not self.has_ended([*self.after, *new]) for on, new in zip(going, self.new)]

    def _first_read(self) -> int:
        """Index of the first token to read: after a window shift, the start of the last window."""
        shifts = [i for i, step in enumerate(self.after) if step.window_shifted]
        return len(self.ids) + shifts[-1] - self.window if shifts and self.window else 0

    def _has_stop(self, steps: Sequence[Step], since: int = 0) -> bool:
        """Whether the text of some steps, from one of them on, holds a stop string."""
        if not self.stop:
            return False
        before = [*self.before, *(step.id for step in steps[max(0, since - ANCHOR) : since])]
        text = text_of(self.lab, steps[since:], before=before)
        return any(each in text for each in self.stop)

    def _step_options(self) -> dict:
        return {"alternatives": self.alternatives, "spell": partial(token_text, self.lab.tokenizer)}


def generate(lab: Lab, prompt: str, **options) -> Generation:
    """The text that follows a prompt; the options are those of `TextStream`.

    Example: generate(lab, "The moon", temperature=0).text -> " is a member of ..."
    Raises: LabError for values out of range, and for a prompt that does not fit.
    """
    return TextStream(lab, prompt, **options).finished().generation


def generate_batch(lab: Lab, prompt: str, count: int, **options) -> tuple[Generation, ...]:
    """Several continuations of a prompt, generated together; that at place i is drawn with the seed + i.

    count  1 to MAX_BATCH

    Each is what `generate` gives alone with its seed; in bf16 and int8 nearly so.
    Example: best_of(generate_batch(lab, "The moon", 8)) is the most probable of them
    Raises: LabError as `generate`.
    """
    return TextStream(lab, prompt, count=count, **options).finished().generations


def best_of(generations: Sequence[Generation]) -> Generation:
    """The most probable to the model that wrote them, per token: else the shortest would nearly always be the best.

    Example: best_of(generate_batch(lab, "The moon", 8))
    """
    return max(generations, key=lambda one: one.log_probability / max(1, len(one.steps)))


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
    max_new_tokens, alternatives, stop  as for `TextStream`

    Raises: LabError as `generate`.
    """
    stream = TextStream(lab, prompt, temperature=0, max_new_tokens=max_new_tokens, alternatives=alternatives, stop=stop)
    whole_number("beams", beams, 2, MAX_BATCH)
    T, ends = len(stream.ids), sorted(lab.end_ids)
    settings = GenerationConfig(
        num_beams=beams,
        max_new_tokens=min(stream.max_new_tokens, lab.context - T),
        length_penalty=0.0,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,  # fills up beams that have ended
    )
    ids = stream.ids[None]
    with torch.inference_mode():
        ids = lab.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        logits = lab.model(ids).logits[0, T - 1 : -1].float().cpu()
    steps = []
    for row, chosen in zip(logits, ids[0, T:].tolist()):
        steps.append(stream.step_of(row[None], chosen))
        if stream.has_ended(steps):
            break
    return stream.generation_of(steps, stream.sampling.seed)


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


def text_of(lab: Lab, steps: Sequence[Step], *, before: Sequence[int] = ()) -> str:
    """The text that steps add to the tokens before them; ends in "\ufffd" while a character is not whole.

    Tokens that end a text are not in it.
    """
    return text_after(lab.tokenizer, before, [step.id for step in steps if step.id not in lab.end_ids])


def prompt_hint(lab: Lab, prompt: str) -> str | None:
    """A warning if the prompt ends in a space, which is rare in GPT-2's training data; else None."""
    if not prompt.endswith(" ") or not has_spaces_in_tokens(lab.tokenizer):
        return None
    return "The prompt ends in a space. The next token usually brings its own: remove it for more natural text."

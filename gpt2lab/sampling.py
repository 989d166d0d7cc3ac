"""Text generation a step at a time: what was chosen, what else could have been, what was cut off.

Knows one model; nothing of pages, training or comparisons.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import DynamicCache, LogitsProcessorList
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from gpt2lab.errors import LabError, number, whole_number
from gpt2lab.model import Lab

MIN_TEMPERATURE = 1e-6  # below it the favourite has all the probability, to a float's precision: greedy
MAX_TEMPERATURE = 100.0  # past it every token is as likely as any other to three digits
MAX_ALTERNATIVES = 100
MAX_SEED = 2**63 - 1  # torch.Generator's own limit


@dataclass(frozen=True)
class Alternative:
    """A token that could have stood at a step, with the model's own probability."""

    token: str
    id: int
    probability: float


@dataclass(frozen=True)
class Step:
    """One token of a generation.

    token                 its own text; "\ufffd" where it is a part of a character
    probability           the model's own, before temperature and filters
    rank                  1 is the model's favourite
    entropy               of the model's own distribution, nats
    alternatives          the model's favourites, most probable first
    sampled_probability   what the sampler drew the token with, after temperature and filters
    removed               probability, after temperature, that top-k and top-p took away
    """

    token: str
    id: int
    probability: float
    rank: int
    entropy: float
    alternatives: tuple[Alternative, ...]
    sampled_probability: float
    removed: float


@dataclass(frozen=True)
class Generation:
    """A prompt and what followed it.

    text    what was generated; the prompt is not in it
    finish  "end of text", "length", "context" (the model's positions are used up) or "stopped"
    """

    prompt: str
    text: str
    steps: tuple[Step, ...]
    finish: str
    seed: int


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    temperature  0 always takes the most probable token (greedy); 1 is the model's own distribution
    top_k        draw among the k most probable tokens; None for all
    top_p        draw among the fewest tokens whose probabilities reach p, over the whole vocabulary
    seed         the same seed gives the same text on the same machine
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        number("temperature", self.temperature, 0, MAX_TEMPERATURE)
        number("top_p", self.top_p, 0, 1)
        if self.top_p == 0:
            raise LabError("top_p 0 leaves no token; use more than 0, at most 1 (temperature 0 is greedy)")
        if self.top_k is not None:
            whole_number("top_k", self.top_k, 1, 10**9)
        whole_number("seed", self.seed, 0, MAX_SEED)

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature < MIN_TEMPERATURE

    def warpers(self) -> LogitsProcessorList:
        """transformers' own processors, in its order; empty for greedy and for the model's own distribution."""
        warpers = LogitsProcessorList()
        if not self.greedy and self.temperature != 1:
            warpers.append(TemperatureLogitsWarper(float(self.temperature)))
        if self.top_k is not None:
            warpers.append(TopKLogitsWarper(int(self.top_k)))
        if self.top_p < 1:
            warpers.append(TopPLogitsWarper(float(self.top_p)))
        return warpers


def generate(
    lab: Lab, prompt: str, *, max_new_tokens: int = 60, sampling: Sampling | None = None, **options
) -> Generation:
    """The text that follows a prompt.

    max_new_tokens  1 or more; the text ends earlier at `<|endoftext|>` or where the context is full
    sampling        a Sampling; or give its fields here: temperature=0.8, top_p=0.95, seed=1
    alternatives    how many of the model's favourites each step keeps, 10 by default

    Example: generate(lab, "The moon", temperature=0).text -> " is a member of ..."
    Raises: LabError for values out of range, and for a prompt that is empty or does not fit.
    """
    alternatives = options.pop("alternatives", 10)
    if sampling and options:
        raise TypeError(f"both sampling and {', '.join(options)} are given; give one of them")
    sampling = sampling or Sampling(**options)
    steps = tuple(
        generate_steps(lab, prompt, max_new_tokens=max_new_tokens, sampling=sampling, alternatives=alternatives)
    )
    return collect(lab, prompt, steps, max_new_tokens=max_new_tokens, seed=sampling.seed)


def generate_steps(
    lab: Lab, prompt: str, *, max_new_tokens: int = 60, sampling: Sampling = Sampling(), alternatives: int = 10
) -> Iterator[Step]:
    """The steps of `generate`, one by one, for a caller that shows them as they come or stops early.

    Bad values raise here and now, not at the first step.
    """
    whole_number("max_new_tokens", max_new_tokens, 1, 10**6)
    whole_number("alternatives", alternatives, 0, MAX_ALTERNATIVES)
    ids = lab.encode_prompt(prompt, room=1)
    if sampling.top_k is not None and sampling.top_k > lab.model.config.vocab_size:
        raise LabError(
            f"top_k {sampling.top_k:,} is past the vocabulary of {lab.name}; use 1 to {lab.model.config.vocab_size:,}"
        )
    return _steps(lab, ids, min(max_new_tokens, lab.context - len(ids)), sampling, alternatives)


def collect(lab: Lab, prompt: str, steps: tuple[Step, ...], *, max_new_tokens: int, seed: int) -> Generation:
    """The Generation that some steps amount to, finished or not."""
    full = len(lab.encode(prompt)) + len(steps) == lab.context
    if steps and steps[-1].id == lab.tokenizer.eos_token_id:
        finish = "end of text"
    else:
        finish = "length" if len(steps) == max_new_tokens else "context" if full else "stopped"
    return Generation(prompt, text_of(lab, steps), steps, finish, seed)


def text_of(lab: Lab, steps) -> str:
    """The text that steps spell; ends in "\ufffd" while a character is not whole. `<|endoftext|>` is no text."""
    return lab.tokenizer.decode([step.id for step in steps if step.id != lab.tokenizer.eos_token_id])


def _steps(lab: Lab, ids: torch.Tensor, count: int, sampling: Sampling, alternatives: int) -> Iterator[Step]:
    generator = torch.Generator()  # on the CPU, so that a seed means the same draw wherever the model is
    generator.manual_seed(sampling.seed)
    cache, warpers = DynamicCache(config=lab.model.config), sampling.warpers()
    ids = ids[None]  # (1, T)
    for _ in range(count):
        with torch.inference_mode():  # within the step: a generator may be resumed by another thread
            new = ids[:, cache.get_seq_length() :]
            logits = lab.model(new, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].float().cpu()
            step = _draw(lab, ids.cpu(), logits, sampling, warpers, generator, alternatives)
        ids = torch.cat([ids, ids.new_tensor([[step.id]])], dim=1)
        yield step
        if step.id == lab.tokenizer.eos_token_id:
            return


def _draw(lab, ids, logits, sampling, warpers, generator, alternatives) -> Step:
    """Choose one token from logits (1, V), and say what was chosen from what."""
    own = logits.softmax(-1)[0]  # (V,)
    warped = warpers(ids, logits)
    drawn_from = warped.softmax(-1)[0]  # (V,)
    if sampling.greedy:
        chosen, sampled, removed = int(logits[0].argmax()), 1.0, 0.0
    else:
        chosen = int(torch.multinomial(drawn_from, 1, generator=generator))
        tempered = (logits[0] / sampling.temperature).softmax(-1)
        sampled, removed = float(drawn_from[chosen]), float(tempered[torch.isinf(warped[0])].sum())
    top = own.topk(min(alternatives, len(own)))
    return Step(
        token=lab.tokenizer.decode([chosen]),
        id=chosen,
        probability=float(own[chosen]),
        rank=int((own > own[chosen]).sum()) + 1,
        entropy=float(torch.special.entr(own).sum()),
        alternatives=tuple(
            Alternative(lab.tokenizer.decode([i]), i, p) for i, p in zip(top.indices.tolist(), top.values.tolist())
        ),
        sampled_probability=sampled,
        removed=removed,
    )

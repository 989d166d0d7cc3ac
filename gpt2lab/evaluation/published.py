"""Published perplexities of GPT-2 on WikiText-2, each with the protocol that it belongs to."""

import hashlib
from dataclasses import dataclass

from gpt2lab.evaluation.protocols import TokenizedText

GUIDE = "https://huggingface.co/docs/transformers/perplexity"
LLM_C = "https://github.com/karpathy/llm.c/pull/276"
HARNESS = "a run of lm-evaluation-harness' task wikitext, https://github.com/EleutherAI/lm-evaluation-harness"
# sha256 of WikiText-2's raw test split, as each protocol reads it: its text, and for figures per token the ids
RAW_TEST = {
    "sliding": "846fa81d43f50867d1ba83f1fa0396e2f60f81ddb320bb4ffd1f8f13353518a3",
    "lm-eval": "d6535ca809061590d5e672ac43d8d2d5e1fb500c3005768f6050dcc007786165",
}


@dataclass(frozen=True)
class Published:
    """A figure that others have published.

    quantity  which of a Perplexity's figures it is: "perplexity" or "word_perplexity"
    source    where it stands
    """

    model: str
    protocol: str
    context: int
    stride: int
    quantity: str
    value: float
    source: str


PUBLISHED = (
    Published("gpt2", "sliding", 1024, 1024, "perplexity", 29.94, LLM_C),
    Published("gpt2-large", "sliding", 1024, 1024, "perplexity", 19.44, GUIDE),
    Published("gpt2-large", "sliding", 1024, 512, "perplexity", 16.44, GUIDE),
    Published("gpt2", "lm-eval", 1024, 1024, "word_perplexity", 37.37, HARNESS),
)


def published_for(tokenized: TokenizedText) -> tuple[Published, ...]:
    """The published figures that a result on this text may be compared with: the same text, protocol and windows, per token also the same tokenizer.

    The harness lets a model use its own context, so that lm-eval's figures compare across contexts; and
    word perplexity compares across tokenizers, perplexity does not.
    """
    compared = tokenized.text.encode() + (b"" if tokenized.protocol == "lm-eval" else tokenized.ids.tobytes())
    if hashlib.sha256(compared).hexdigest() != RAW_TEST.get(tokenized.protocol):
        return ()
    windows = (tokenized.context, tokenized.stride)
    return tuple(
        known
        for known in PUBLISHED
        if known.protocol == tokenized.protocol
        and (known.protocol == "lm-eval" or (known.context, known.stride) == windows)
    )

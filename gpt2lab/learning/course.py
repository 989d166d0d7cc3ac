"""The guided course: twelve steps, each a few sentences, a state of the app that shows it, and a question.

step = COURSE[4]
lab = load_model("builtin")
print(step.question(lab).line)
right, explanation = step.check(lab, "2.3")
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpt2lab.errors import LabError, Message
from gpt2lab.generation.recipes import PAIRS
from gpt2lab.inspection.exploration import Exploration, exploration
from gpt2lab.learning import questions as asked
from gpt2lab.learning.question import Question
from gpt2lab.learning.questions import Place, scores
from gpt2lab.model.lab import Lab

REPEATED = "Marie Curie discovered polonium in Paris, and Marie Curie discovered radium in Paris."
TABLE = "The keys to the old cabinet in the hall are on the table."
RIVER = "The river Nile flows through Egypt, and the river Thames flows through"
TRANSLATION = "\n".join([*(" = ".join(pair) for pair in PAIRS), "The house is white. ="])


def clearest(found: Exploration) -> Place:
    """Where the next token is preferred most clearly, and the head with the highest induction score."""
    [(layer, head, _)] = scores(found).top("induction", 1)
    return {"position": int(found.contributions.total[:-1].argmax()), "layer": layer, "head": head, "off": []}


def with_context(found: Exploration) -> Place:
    """The same, at a token that has another one before it."""
    place = clearest(found)
    return place | {"position": max(1, place["position"])}


def at_end(found: Exploration) -> Place:
    """After the last token."""
    return clearest(found) | {"position": len(found.seen.tokens) - 1}


def previous_token(found: Exploration) -> Place:
    """The head that attends most to the token before."""
    [(layer, head, _)] = scores(found).top("previous_token", 1)
    return clearest(found) | {"layer": layer, "head": head}


def ablated(found: Exploration) -> Place:
    """The head with the highest induction score, switched off."""
    place = clearest(found)
    return place | {"off": [[place["layer"], place["head"]]]}


@dataclass(frozen=True)
class Step:
    """A step of the course.

    name, title, body  key; a noun; two to four sentences
    ask     (lab, exploration, place) → Question
    view    which view of the Explore page shows the step; "" for none
    place   exploration → what is selected in it: position, layer, head, off
    text    that the step is about
    tab     where it is shown in full: "explore", or "generate" with the text as the prompt
    fixed   whether the question is of this text alone
    score   of the heads, which colours them
    """

    name: str
    title: Message
    body: Message
    ask: Callable[[Lab, Exploration, Place], Question]
    view: str
    place: Callable[[Exploration], Place] = clearest
    text: str = REPEATED
    tab: str = "explore"
    fixed: bool = False
    score: str = "induction"

    def explored(self, lab: Lab, text: str | None = None) -> Exploration:
        """What the model does with the step's text, or with another. Raises: LabError as `exploration`."""
        return exploration(lab, self.text if text is None or self.fixed else text)

    def question(self, lab: Lab, found: Exploration | None = None) -> Question:
        """The question to a model.

        found  of another text than the step's, or known already

        Raises: LabError for a text of one token.
        """
        found = self.explored(lab) if found is None else found
        return self.ask(lab, found, self.place(found))

    def choices(self, lab: Lab, found: Exploration | None = None) -> list[tuple[Message, str]]:
        """(text, value) of the answers to choose from; none for a number or a token."""
        return list(self.question(lab, found).choices)

    def check(self, lab: Lab, answer: Any, found: Exploration | None = None) -> tuple[bool, Message]:
        """(whether an answer is right, a sentence with the true numbers).

        Raises: LabError for what is no answer: none of the choices, not a finite number, a long text.
        """
        question = self.question(lab, found)
        return question.is_right(answer), question.explanation


COURSE = (
    Step(
        "tokens",
        Message("Tokens"),
        Message(
            "GPT-2 reads **tokens**: pieces of words, each with a number, its id in the vocabulary. A frequent word is one "
            "token, a rare one several. The space before a word, shown as ·, belongs to the token."
        ),
        asked.token_count,
        "tokenstrip",
    ),
    Step(
        "prediction",
        Message("Next-token probabilities"),
        Message(
            "After a text, the model returns **logits**: one number for every token of its vocabulary. Softmax turns them into "
            "probabilities. Logits are not text, and `decode(logits)` is a mistake: first one token is chosen, then the id of "
            "that token is decoded."
        ),
        asked.top_token,
        "predictions",
        at_end,
        RIVER,
        "generate",
    ),
    Step(
        "attention",
        Message("Attention"),
        Message(
            "Attention is **softmax(QKᵀ/√d_k) V**. A head compares the query of a token with the keys of all tokens up to it. "
            "Softmax turns the scaled products into weights that sum to 1. The output is the sum of the values, multiplied by "
            "these weights. The steps below show every formula with the model's own numbers."
        ),
        asked.largest_weight,
        "walkthrough",
        with_context,
    ),
    Step(
        "heads",
        Message("Heads"),
        Message(
            "Each block has several heads, and an MLP. A block only **adds** to the state of a token: first what its heads bring "
            "from earlier tokens, then what the MLP computes from the token itself. GPT-2 small has 12 blocks of 12 heads, "
            "gpt2-xl 48 of 25. A score says how much a head behaves in a known way."
        ),
        asked.previous_token_head,
        "headgrid",
        previous_token,
        TABLE,
        score="previous_token",
    ),
    Step(
        "induction",
        Message("Induction"),
        Message(
            "An **induction head** looks for an earlier occurrence of the current token, and attends to the token that followed "
            "it. This lets a model continue a phrase that it has seen once in its context. The score is measured with random "
            "tokens shown twice, where knowledge of the language cannot help. To see such a head form in a new model, press "
            "**Watch an induction head form** in the Train tab, or run `gpt2lab finetune --preset induction`."
        ),
        asked.induction_head,
        "headgrid",
    ),
    Step(
        "lens",
        Message("Logit lens"),
        Message(
            "The **logit lens** reads the state after each layer as if it were the last one. It shows how a prediction forms. "
            "Some predictions settle early, others only in the last layer."
        ),
        asked.settling_layer,
        "lensgrid",
    ),
    Step(
        "ablation",
        Message("Ablation"),
        Message(
            "Attention weights show where information may flow, not what it is used for. **Ablation** measures the effect: set the "
            "output of a head to zero, and compare the loss of the text. If the loss rises, the head helped to predict it."
        ),
        asked.ablation_effect,
        "ablation",
        ablated,
    ),
    Step(
        "training",
        Message("Training"),
        Message(
            "GPT-2 is a **causal language model**: it is trained to predict the next token. It is not a masked language model: "
            "BERT is one, and fills gaps with a view of both sides. WikiText-2, a common text for fine-tuning, has two million "
            "words in 13 MB, not 240 GB; GPT-2 itself was trained on 40 GB of web pages."
        ),
        asked.training_target,
        "tokenstrip",
        text=TABLE,
    ),
    Step(
        "perplexity",
        Message("Perplexity"),
        Message(
            "The **loss** of a text is the mean of −ln p over its tokens, in nats per token. **Perplexity** is exp(loss): the number "
            "of equally likely tokens with the same loss. It depends on the tokenizer and on how the text is split, so compare it "
            "only under the same tokenizer and protocol. The Evaluate tab measures it."
        ),
        asked.perplexity_of_loss,
        "tokenstrip",
    ),
    Step(
        "sampling",
        Message("Sampling"),
        Message(
            "To write, the model draws one token after another. **Temperature** divides the logits: below 1 the probabilities get "
            "sharper, above 1 flatter, and 0 always takes the top prediction. **Top-k** and **top-p** keep only the most probable "
            "tokens. The same seed gives the same text."
        ),
        asked.temperature_ratio,
        "predictions",
        at_end,
        "The moon is",
        "generate",
    ),
    Step(
        "finetuning",
        Message("Fine-tuning"),
        Message(
            "**Fine-tuning** continues the training on a text of your own: the same task, the same loss. Either all weights change, "
            "or with **LoRA** only small matrices beside the frozen weights. On two CPU cores, 35 seconds of it took the test "
            "perplexity of the built-in model from 128.4 to 120.5. Choose a fine-tuned model under Compare with to see what changed."
        ),
        asked.lora_parameters,
        "predictions",
        at_end,
        RIVER,
    ),
    Step(
        "limits",
        Message("Limits"),
        Message(
            "GPT-2 continues text; it was not trained to follow instructions. In its paper, the largest model reached 5 BLEU from "
            "English to French, somewhat worse than a word-by-word dictionary, and its summaries were barely better than three "
            "random sentences of the article. Smaller models do less."
        ),
        asked.translation,
        "predictions",
        at_end,
        TRANSLATION,
        "generate",
        fixed=True,
    ),
)


def step_at(number: Any) -> Step:
    """A step by its number from 0. Raises: LabError for one that the course does not have."""
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(COURSE):
        raise LabError("step {number} does not exist; use 0 to {last}", number=repr(number)[:40], last=len(COURSE) - 1)
    return COURSE[number]

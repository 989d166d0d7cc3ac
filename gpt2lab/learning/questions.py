"""The questions of the course: each a function (lab, exploration, place) → Question, computed from the model."""

from collections.abc import Sequence
from typing import Any

import torch

from gpt2lab.errors import LabError, Message
from gpt2lab.inspection.ablation import ablate
from gpt2lab.inspection.exploration import Exploration
from gpt2lab.inspection.lens import entry_name, log_probabilities
from gpt2lab.inspection.surprisal import surprisal_of_ids
from gpt2lab.learning.question import Question
from gpt2lab.model.lab import Lab
from gpt2lab.results import perplexity_of
from gpt2lab.training.config import TrainConfig

Place = dict[str, Any]  # position, layer, head, off: what is selected in Explore
CHOICES = 4
SAME = 0.0005  # nats per token: a loss that changes by less stays the same to three digits
CONTINUATIONS = (" La maison est blanche.", " The house is white.", " Je voudrais du pain.")


def token_count(lab: Lab, found: Exploration, place: Place) -> Question:
    """Number of tokens of the text."""
    n = len(found.seen.tokens) + found.seen.left_out
    return Question(
        Message("Into how many tokens does this model split the text?"),
        n,
        Message(
            "The text has {characters:,} characters and is {n:,} tokens, out of a vocabulary of {vocabulary:,}.",
            characters=len(found.text),
            n=n,
            vocabulary=lab.model.config.vocab_size,
        ),
    )


def top_token(lab: Lab, found: Exploration, place: Place) -> Question:
    """The most probable next token."""
    (_, first, p), (_, second, q) = found.lens.top_predictions(-1, place["position"])[:2]
    return Question(
        Message(
            "Which token does the model give the highest probability after the last token, “{token}”?",
            token=found.seen.tokens[place["position"]],
        ),
        first,
        Message(
            "“{first}” has the highest probability, {p:.3f}; “{second}” follows with {q:.3f}.",
            first=first,
            p=p,
            second=second,
            q=q,
        ),
    )


def largest_weight(lab: Lab, found: Exploration, place: Place) -> Question:
    """The token that a head attends to most."""
    seen, position, layer, head = found.seen, place["position"], place["layer"], place["head"]
    weights = seen.attention(layer, head, rows=slice(position, position + 1))[0, : position + 1]
    order = weights.argsort(descending=True).tolist()
    best = order[0]
    scaled = float(seen.q[layer, head, position] @ seen.k[layer, head, best]) * seen.scaling[layer]
    return Question(
        Message(
            "Layer {layer}, head {head}, at token {position}, “{token}”: which token gets the largest weight?",
            layer=layer,
            head=head,
            position=position,
            token=seen.tokens[position],
        ),
        str(best),
        Message(
            "“{token}” at {at}: its scaled product q·k is {scaled:.2f}, which softmax turns into a weight of {weight:.3f}.",
            token=seen.tokens[best],
            at=best,
            scaled=scaled,
            weight=float(weights[best]),
        ),
        tuple(_at(found, at) for at in sorted(order[:CHOICES])),
    )


def previous_token_head(lab: Lab, found: Exploration, place: Place) -> Question:
    """The head that attends most to the token before."""
    layer, head, score = scores(found).top("previous_token", 1)[0]
    return Question(
        Message("Which of these heads attends most to the token just before? Colour the heads by “previous token”."),
        f"{layer}.{head}",
        Message(
            "Layer {layer}, head {head}: {score:.1%} of its attention in this text goes to the token before.",
            layer=layer,
            head=head,
            score=score,
        ),
        _heads(found, "previous_token"),
    )


def induction_head(lab: Lab, found: Exploration, place: Place) -> Question:
    """The head with the highest induction score."""
    layer, head, score = scores(found).top("induction", 1)[0]
    return Question(
        Message("Which of these heads has the highest induction score?"),
        f"{layer}.{head}",
        Message(
            "Layer {layer}, head {head}: with random tokens shown twice, {score:.1%} of its attention goes to what "
            "followed the first time.",
            layer=layer,
            head=head,
            score=score,
        ),
        _heads(found, "induction"),
    )


def settling_layer(lab: Lab, found: Exploration, place: Place) -> Question:
    """The first layer from which on the lens shows the final prediction."""
    position = place["position"]
    entry = int(found.lens.settled[position])
    _, final, p = found.lens.top_predictions(-1, position)[0]
    names = [entry_name(i) for i in range(len(found.lens.top))]
    return Question(
        Message(
            "The final prediction after token {position}, “{token}”, is “{final}”. From where on is it the top prediction?",
            position=position,
            token=found.seen.tokens[position],
            final=final,
        ),
        str(entry),
        Message(
            "“{final}” is the top prediction from “{entry}” on; after the last layer its probability is {p:.3f}.",
            final=final,
            entry=names[entry],
            p=p,
        ),
        tuple((names[i], str(i)) for i in sorted(spread(range(len(names)), entry))),
    )


def ablation_effect(lab: Lab, found: Exploration, place: Place) -> Question:
    """What ablating a head does to the loss of the text."""
    [(layer, head)] = place["off"]
    result = ablate(lab, found.seen, [(layer, head)])
    before, after = result.before.loss, result.after.loss
    return Question(
        Message(
            "Head {head} of layer {layer} is ablated. What happens to the loss of this text?", layer=layer, head=head
        ),
        "same" if abs(after - before) < SAME else "higher" if after > before else "lower",
        Message(
            "Without head {head} of layer {layer}, the loss goes from {before:.3f} to {after:.3f} nats per token.",
            layer=layer,
            head=head,
            before=before,
            after=after,
        ),
        (
            (Message("It rises"), "higher"),
            (Message("It falls"), "lower"),
            (Message("It stays the same to three digits"), "same"),
        ),
    )


def training_target(lab: Lab, found: Exploration, place: Place) -> Question:
    """The token that training makes more probable at a position: the next one."""
    position, tokens = place["position"], found.seen.tokens
    p = float(found.lens.probability[-1, position])
    near = [at for at in range(position - 1, position + 3) if 0 <= at < len(tokens)]
    return Question(
        Message(
            "Trained on this text, which token does the model learn to predict at token {position}, “{token}”?",
            position=position,
            token=tokens[position],
        ),
        str(position + 1),
        Message(
            "The next token, “{token}”: the model gives it a probability of {p:.4f}, so the loss there is {nll:.2f} nats.",
            token=tokens[position + 1],
            p=p,
            nll=-float(found.lens.probability[-1, position].double().log()),
        ),
        tuple(_at(found, at) for at in near),
    )


def perplexity_of_loss(lab: Lab, found: Exploration, place: Place) -> Question:
    """exp of the mean loss."""
    loss = -float(found.lens.probability[-1, :-1].double().log().mean())
    return Question(
        Message("The mean loss of this text is {loss:.4f} nats per token. What is its perplexity?", loss=loss),
        perplexity_of(loss),
        Message(
            "Perplexity is exp(loss): exp({loss:.4f}) = {perplexity:,.2f}.", loss=loss, perplexity=perplexity_of(loss)
        ),
        tolerance=0.02,
    )


@torch.no_grad()
def temperature_ratio(lab: Lab, found: Exploration, place: Place) -> Question:
    """How temperature 0.5 changes the ratio of two probabilities."""
    logs = log_probabilities(lab, found.seen.residual[-1, place["position"]])
    (first, word, p), (second, other, _) = found.lens.top_predictions(-1, place["position"])[:2]
    ratio = float((logs[first] - logs[second]).exp())
    return Question(
        Message(
            "“{word}” is {ratio:.2f} times as probable as “{other}”. How many times is it at temperature 0.5?",
            word=word,
            ratio=ratio,
            other=other,
        ),
        ratio**2,
        Message(
            "Temperature 0.5 doubles the logits, which squares the ratio: {squared:.2f}; “{word}” rises from {p:.3f} to "
            "{sharper:.3f}.",
            squared=ratio**2,
            word=word,
            p=p,
            sharper=float((2 * logs).softmax(-1)[first]),
        ),
        tolerance=0.03,
    )


def lora_parameters(lab: Lab, found: Exploration, place: Place) -> Question:
    """How many numbers LoRA trains."""
    c, rank, total = lab.model.config, TrainConfig().lora_rank, lab.model.num_parameters()
    trained = rank * 4 * c.n_embd * c.n_layer
    counts = {trained, c.vocab_size * c.n_embd, 4 * c.n_embd**2 * c.n_layer, total}
    return Question(
        Message("How many numbers does LoRA of rank {rank} train in this model?", rank=rank),
        str(trained),
        Message(
            "Two matrices beside each layer's query, key and value weights: {rank} · 4 · {width:,} · {layers} = {trained:,}, "
            "{share:.2%} of all {total:,}.",
            rank=rank,
            width=c.n_embd,
            layers=c.n_layer,
            trained=trained,
            share=trained / total,
            total=total,
        ),
        tuple((Message("{count:,}", count=count), str(count)) for count in sorted(counts)),
    )


def translation(lab: Lab, found: Exploration, place: Place) -> Question:
    """Which continuation of the translation prompt is the most probable."""
    prompt = found.seen.ids
    costs = [_cost(lab, prompt, text) for text in CONTINUATIONS]
    best = min(range(len(costs)), key=costs.__getitem__)
    return Question(
        Message("Which of these continuations does the model give the highest probability?"),
        str(best),
        Message(
            "Its log probability is {best:.1f} nats; that of the right translation, “{right}”, is {cost:.1f}.",
            best=-costs[best],
            right=CONTINUATIONS[0].strip(),
            cost=-costs[0],
        ),
        tuple(
            (Message("{text}", text=text.strip()), str(i)) for i, text in sorted(enumerate(CONTINUATIONS), reverse=True)
        ),
    )


def scores(found: Exploration) -> Any:
    """The head scores of a text. Raises: LabError for a text of one token, of which nothing is predicted."""
    if found.scores is None:
        raise LabError("the text is a single token, and nothing predicts it; give at least two")
    return found.scores


def spread(ranked: Sequence, right: Any, count: int = CHOICES) -> list:
    """Up to `count` entries of a sequence, the right one among them, the others spread over all of it."""
    others = [entry for entry in ranked if entry != right]
    n = min(count - 1, len(others))
    return [right, *(others[(2 * i + 1) * len(others) // (2 * n)] for i in range(n))]


def _heads(found: Exploration, score: str) -> tuple[tuple[Message, str], ...]:
    """The highest head of a score and some others that are lower, in the model's order."""
    ranked = scores(found).top(score, found.seen.n_layers * found.seen.n_heads)
    lower = [each for each in ranked if each[2] < ranked[0][2]]
    places = sorted(place[:2] for place in spread([ranked[0], *lower], ranked[0]))
    return tuple((Message("Layer {layer}, head {head}", layer=i, head=j), f"{i}.{j}") for i, j in places)


def _at(found: Exploration, at: int) -> tuple[Message, str]:
    return Message("“{token}” at {at}", token=found.seen.tokens[at], at=at), str(at)


def _cost(lab: Lab, prompt: torch.Tensor, text: str) -> float:
    """Nats of a text after a prompt (T,)."""
    ids = torch.cat([prompt.to(lab.device), lab.encode(text)])
    return float(surprisal_of_ids(lab, ids).nll[len(prompt) :].double().sum())

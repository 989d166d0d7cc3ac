"""The app's public functions: endpoints over HTTP and, with `gpt2lab app --mcp`, tools for language models.

Docstrings are in the form that gradio reads, since they become the descriptions of the tools: one line a parameter.
All values come from strangers. Types and ranges are checked here or in the package, and the size of every answer is
bounded.
"""

from dataclasses import asdict
from typing import Any

import gradio as gr

from gpt2lab.app.api_runs import RunsApi, short
from gpt2lab.app.events import user_errors
from gpt2lab.app.explore import checked
from gpt2lab.app.results import ResultCache
from gpt2lab.data import hub
from gpt2lab.data.sources import DATA
from gpt2lab.data.text import Article, articles_of, load_text
from gpt2lab.errors import LabError, choice, whole_number
from gpt2lab.evaluation import perplexity as perplexities
from gpt2lab.evaluation.scorer import score
from gpt2lab.generation.generate import Generation, TextStream
from gpt2lab.inspection import ablation, attention, heads, lens
from gpt2lab.inspection.surprisal import surprisal as token_surprisal
from gpt2lab.inspection.trace import trace
from gpt2lab.model.lab import Lab
from gpt2lab.results import finite

MAX_TOKENS = 100_000  # that a model reads for one answer
MAX_VALUES = 200_000  # of one answer: a few megabytes of JSON
MAX_TEXTS = 16
MAX_TOP = 100
MAX_NEW_TOKENS = 512
AT_ONCE = 4  # calls of one endpoint; models run one at a time, the others wait


def build_api(results: ResultCache, training_allowed: bool) -> None:
    """Make the functions of `Api` and `RunsApi` endpoints of the page that is being built."""
    api, runs = Api(results), RunsApi(results.store, training_allowed)
    for function in (
        api.perplexity,
        api.surprisal,
        api.attention,
        api.head_scores,
        api.logit_lens,
        api.generate,
        api.ablate,
        runs.estimate,
        runs.start_run,
        runs.run_status,
    ):
        limit = 1 if function in (runs.estimate, runs.start_run) else AT_ONCE
        gr.api(user_errors(function), api_name=function.__name__, concurrency_limit=limit)


class Api:
    """Analyses of the models that the page offers; every answer is what JSON can hold.

    A model is "builtin", a downloaded model of the hub by its name, such as "gpt2", or the id of a run that left one.
    """

    def __init__(self, results: ResultCache) -> None:
        self._results, self._store = results, results.store

    def perplexity(
        self,
        model: str = "builtin",
        data: str = "sample",
        split: str = "test",
        protocol: str = "sliding",
        context: int | None = None,
        stride: int | None = None,
        quick: int | None = None,
        seed: int = 0,
        precision: str = "fp32",
        text: str | None = None,
    ) -> dict:
        """Measure the perplexity of a GPT-2 on a data set, or on a text, by a named protocol.

        Parameters:
            model: "builtin", "gpt2" or another downloaded model, or the id of a run.
            data: "sample", "repeated", or "wikitext-2" or "wikitext-2-v1" if it is downloaded.
            split: "train", "validation", "test" or "all".
            protocol: "sliding" (windows over the joined text), "lm-eval" (page by page) or "blocks" (of equal length).
            context: tokens in a window; null: as many as the model reads.
            stride: tokens between two windows of "sliding"; null: the context, so that windows are disjoint.
            quick: score only this number of articles, drawn with the seed; null: all of them.
            seed: of the drawn articles.
            precision: "fp32", or "bf16", which is faster on processors with bf16 units.
            text: a text to score in place of data, up to 20,000 characters.

        Returns:
            An object with perplexity (exp of nats per token), nll (nats, of all scored tokens), interval (95 %, or null), n_scored and n_tokens (tokens), n_words, n_bytes, word_perplexity, byte_perplexity, bits_per_byte, windows, the protocol as described, and cautions.
        """
        lab = self._store.lab(model)
        articles = self._articles(data, split, text)
        options: dict[str, Any] = {"context": context, "stride": stride, "quick": quick, "seed": seed}
        tokenized = perplexities.read(lab, articles, protocol, **options)
        n_read = int((tokenized.windows[:, 2] - tokenized.windows[:, 0]).sum())
        if n_read > MAX_TOKENS:
            raise LabError(
                "the windows have {count:,} tokens; the limit is {limit:,}: set quick to a number of articles, or "
                "raise the stride",
                count=n_read,
                limit=MAX_TOKENS,
            )
        scored = _last(self._store.locked_steps(score.steps(lab, tokenized, precision)))
        return {"model": lab.name, "data": "text" if text is not None else data} | perplexities.measured(
            scored
        ).record()

    def surprisal(self, text: str, model: str = "builtin", top: int = 10) -> dict:
        """Return how little a GPT-2 expected each token of a text.

        Parameters:
            text: up to 20,000 characters.
            model: "builtin", "gpt2" or another downloaded model, or the id of a run.
            top: top predictions to return for what follows the text, 1 to 100.

        Returns:
            An object with tokens and ids (T each), surprisal (T objects with nll in nats, bits, rank from 1, entropy in nats of the prediction; null for the first token), loss (nats per token), ranks (tokens by bucket of ranks), and next (top predictions with probabilities).
        """
        checked(text), whole_number("top", top, 1, MAX_TOP)

        def compute(lab: Lab) -> Any:
            return token_surprisal(lab, text, top=top)

        found = self._results.result(f"surprisal {top}", model, text, compute)
        following = [_prediction(*one) for one in found.top_predictions(-1)]
        return _answer(model, found.tokens, found.ids, found.record() | {"loss": found.loss, "next": following})

    def attention(self, text: str, model: str = "builtin", layer: int | None = None, head: int | None = None) -> dict:
        """Return attention weights: how much each token of a text reads each earlier one, in each head.

        Parameters:
            text: at least one token, and no more than the model's context.
            model: "builtin", "gpt2" or another downloaded model, or the id of a run.
            layer: from 0; null: all layers, of a short text.
            head: from 0, of the layer; null: all heads.

        Returns:
            An object with tokens and ids (T each), layers and heads (their numbers), and weights (layers, heads, T, T): row i holds the weights, from 0 to 1, with which token i reads tokens 0 to i; they sum to 1, and are 0 for later tokens.
        """
        checked(text)
        seen = self._results.result("trace", model, text, lambda lab: trace(lab, text))
        found = attention.Attention(seen, layer, head)
        _check_size(len(found.layers) * len(found.heads) * len(seen.tokens) ** 2)
        return _answer(model, seen.tokens, seen.ids, found.record())

    def head_scores(self, texts: list[str] | None = None, model: str = "builtin", seed: int = 0) -> dict:
        """Score every attention head of a GPT-2 by what it is known to do.

        Parameters:
            texts: up to 16 texts of at least 2 tokens, over which the scores are means; null: random tokens, shown twice.
            model: "builtin", "gpt2" or another downloaded model, or the id of a run.
            seed: of the random tokens, on which induction is always measured.

        Returns:
            An object with heads: lists (layers, heads) of previous_token, duplicate_token, induction and first_token (from 0 to 1), entropy (nats) and distance (tokens).
        """
        if texts is not None and not (isinstance(texts, list) and 1 <= len(texts) <= MAX_TEXTS):
            raise LabError(
                "texts must be a list of 1 to {limit} texts, or null; got {value}", limit=MAX_TEXTS, value=short(texts)
            )
        joined = "\0".join(map(checked, texts or ()))
        checked(joined or " "), whole_number("seed", seed, 0, 2**63 - 1)

        def compute(lab: Lab) -> Any:
            return heads.head_scores(lab, texts, seed=seed)

        kind = f"heads {seed} {None if texts is None else len(texts)}"
        return finite({"model": model} | self._results.result(kind, model, joined, compute).record())

    def logit_lens(self, text: str, model: str = "builtin", top: int = 5, target: str | None = None) -> dict:
        """Return what a GPT-2 would predict after each token if it stopped after each layer.

        Parameters:
            text: at least one token, and no more than the model's context.
            model: "builtin", "gpt2" or another downloaded model, or the id of a run.
            top: top predictions to return, 1 to 100.
            target: a token to follow through the layers, as its text or as "#" and its id; null: the last layer's top prediction.

        Returns:
            An object with tokens and ids (T each), lens_embedding (T) and lens (layers, T): objects with top (predictions with probabilities), target (id), its rank from 1 and its probability, entropy (nats), and divergence from the last layer's prediction (nats).
        """
        checked(text), whole_number("top", top, 1, MAX_TOP)
        if target is not None and not isinstance(target, str):
            raise LabError("target must be the text of a token, or null; got {value}", value=short(target))

        def compute(lab: Lab) -> lens.Lens:
            n_cells = len(lab.encode_prompt(text)) * (lab.model.config.n_layer + 1)
            _check_size(n_cells * (top + 5))
            return lens.logit_lens(lab, text, top=top, target=target)

        found = self._results.result(f"lens {top} {target}", model, text, compute)
        return _answer(model, found.trace.tokens, found.trace.ids, found.record())

    def generate(
        self,
        prompt: str,
        model: str = "builtin",
        max_new_tokens: int = 60,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        stop: list[str] | None = None,
        alternatives: int = 10,
        precision: str = "fp32",
    ) -> dict:
        """Let a GPT-2 continue a prompt, and return every token with its probability and its alternatives.

        Parameters:
            prompt: shorter than the model's context; "" lets the model begin by itself.
            model: "builtin", "gpt2" or another downloaded model, or the id of a run.
            max_new_tokens: 1 to 512; the text may end earlier.
            temperature: 0 always takes the most probable token, 1 is the model's own distribution; up to 100.
            top_k: draw among the k most probable tokens; null: all.
            top_p: draw among the fewest tokens whose probabilities reach p, above 0 to 1.
            min_p: draw among tokens with at least this share of the top prediction's probability, 0 to 1.
            repetition_penalty: above 1 makes tokens that were there before less probable; 1 is none.
            seed: the same seed gives the same text on the same machine.
            stop: up to 16 strings at which the text ends; null: none.
            alternatives: top predictions to return for each token, 0 to 100.
            precision: "fp32", "bf16" or "int8"; the last two are faster and change probabilities slightly.

        Returns:
            An object with prompt, text, finish (why it ended), seed, precision and steps: for each token its text and id, and probability, rank from 1, entropy (nats) and alternatives of the model's own distribution.
        """
        if prompt != "":
            checked(prompt)
        whole_number("max_new_tokens", max_new_tokens, 1, MAX_NEW_TOKENS)
        whole_number("alternatives", alternatives, 0, MAX_TOP)
        stream = TextStream(
            self._store.lab(model),
            prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop=[] if stop is None else stop,
            alternatives=alternatives,
            precision=precision,
        )
        _last(self._store.locked_steps(iter(stream)))
        return finite({"model": model} | _record(stream.generation))

    def ablate(
        self,
        text: str,
        model: str = "builtin",
        heads: list[list[int]] | None = None,
        mlps: list[int] | None = None,
        mean: bool = False,
    ) -> dict:
        """Measure the loss of a text with some attention heads and MLPs of a GPT-2 ablated.

        Parameters:
            text: at least 2 tokens, and no more than the model's context.
            model: "builtin", "gpt2" or another downloaded model, or the id of a run.
            heads: pairs [layer, head] of the heads that are ablated, both from 0; null: none.
            mlps: layers whose MLP is ablated, from 0; null: none.
            mean: whether they write their mean over the text, instead of nothing.

        Returns:
            An object with ablate: loss and loss_ablated (nats per token), and top and top_ablated, the top predictions after the text with probabilities.
        """
        checked(text)
        pairs, layers = _pairs(heads), _list("mlps", mlps)
        if not isinstance(mean, bool):
            raise LabError("mean must be true or false; got {value}", value=short(mean))
        found = self._store.with_model(model, lambda lab: ablation.ablate(lab, text, pairs, mlps=layers, mean=mean))
        return _answer(model, found.before.tokens, found.before.ids, found.record())

    def _articles(self, data: str, split: str, text: str | None) -> tuple[Article, ...]:
        """Return the articles of an offered data set, or of a text. Raises: LabError for another, or a bad text."""
        if text is not None:
            return articles_of(checked(text), "text")
        hub.require_downloaded(choice("data", data, DATA))
        return load_text(data).split(split)


def _answer(model: str, tokens: tuple[str, ...], ids: Any, record: dict) -> dict:
    return finite({"model": model, "tokens": list(tokens), "ids": ids.tolist(), **record})


def _record(generation: Generation) -> dict:
    values = asdict(generation)
    for step in values["steps"]:
        del step["top_logprobs"]
    return values


def _prediction(id: int, token: str, probability: float) -> dict:
    return {"token": token, "id": id, "probability": probability}


def _last(steps: Any) -> Any:
    """Run a generator to its end; return what it returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def _check_size(n_values: int) -> None:
    if n_values > MAX_VALUES:
        raise LabError(
            "the answer would have {count:,} numbers; the limit is {limit:,}: shorten the text, or ask for one layer and "
            "head, or for fewer top predictions",
            count=n_values,
            limit=MAX_VALUES,
        )


def _pairs(heads: Any) -> list[tuple[int, int]]:
    """Return (layer, head) of each pair. Raises: LabError for what is no list of pairs."""
    pairs = _list("heads", heads)
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise LabError("heads must be a list of [layer, head]; got {value}", value=short(heads))
    return [(layer, head) for layer, head in pairs]


def _list(name: str, values: Any) -> list:
    if values is not None and not isinstance(values, list):
        raise LabError("{name} must be a list, or null; got {value}", name=name, value=short(values))
    return values or []

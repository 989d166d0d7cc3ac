import random
from dataclasses import replace
from math import exp

import numpy as np
import pytest
import torch

from gpt2lab.data.text import load_text
from gpt2lab.errors import LabError
from gpt2lab.generation.generate import generate
from gpt2lab.generation.measures import distinct, longest_copy, measure, perplexity_under, training_ids


@pytest.mark.parametrize(
    ("ids", "n", "expected"),
    [
        ([1, 2, 1, 2], 1, 0.5),
        ([1, 2, 1, 2], 2, 2 / 3),
        ([1, 2, 3], 2, 1.0),
        ([5] * 10, 3, 1 / 8),
        ([1], 2, None),
        ([], 1, None),
    ],
)
def test_distinct_n_grams(ids, n, expected):
    assert distinct(ids, n) == (expected if expected is None else pytest.approx(expected))


def first_longest(ids, training):
    """(start, length) of the first of the longest sequences of `ids` in `training`, by trying each."""
    best = (0, 0)
    for start in range(len(ids)):
        for end in range(start + 1, len(ids) + 1):
            part = ids[start:end]
            if len(part) > best[1] and any(training[i : i + len(part)] == part for i in range(len(training))):
                best = (start, len(part))
    return best


def test_longest_copy_equals_a_search_for_every_sequence():
    for seed in range(60):
        draw = random.Random(seed)
        vocabulary = draw.choice([1, 2, 3, 8])
        ids = [draw.randrange(vocabulary) for _ in range(draw.randrange(14))]
        training = [draw.randrange(vocabulary) for _ in range(draw.randrange(20))]
        if seed % 3 == 0 and len(training) > 4:
            ids[3:3] = training[1:5]
        assert longest_copy(ids, np.array(training, dtype=np.int32)) == first_longest(ids, training), seed
    assert longest_copy([2], np.array([1, 3])) == (0, 0)


def test_longest_copy_in_the_middle_of_a_long_text():
    training = np.random.default_rng(0).integers(0, 60_000, 100_000, dtype=np.int32)  # also ids of surrogates
    ids = training[40_000:40_200].tolist()
    assert longest_copy(ids, training) == (0, 200)
    ids[120] = 60_001
    assert longest_copy(ids, training) == (0, 120)


@pytest.mark.parametrize("prompt", ["The moon", ""])
def test_perplexity_under_the_writer_is_that_of_the_steps(tiny_lab, prompt):
    found = generate(tiny_lab, prompt, max_new_tokens=20, seed=1)
    assert perplexity_under(tiny_lab, tiny_lab, found) == pytest.approx(exp(-found.log_probability / 20), rel=1e-4)


def test_perplexity_past_the_context_reads_half_of_it_or_more(tiny_lab):
    found = generate(tiny_lab, "The moon", max_new_tokens=150, seed=1, window=40)
    ids = tiny_lab.encode("The moon").tolist()
    first = len(ids)
    ids += [step.id for step in found.steps]
    nll, at = [], first
    while at < len(ids):
        begin = max(0, at - 32)
        end = min(len(ids), begin + 65)
        with torch.no_grad():
            logs = tiny_lab.model(torch.tensor([ids[begin : end - 1]])).logits[0].log_softmax(-1)
        nll += [-float(logs[i - begin - 1, ids[i]]) for i in range(at, end)]
        at = end
    assert len(nll) == 150
    assert perplexity_under(tiny_lab, tiny_lab, found) == pytest.approx(exp(sum(nll) / 150), rel=1e-4)


def test_model_with_another_tokenizer_reads_the_text_in_its_own_tokens(tiny_lab):
    from gpt2lab.model.lab import load_model

    other = load_model("builtin", device="cpu")
    found = generate(other, "The moon", max_new_tokens=10, temperature=0)
    row = tiny_lab.encode("The moon").tolist(), tiny_lab.encode(found.text).tolist()
    with torch.no_grad():
        logs = tiny_lab.model(torch.tensor([[*row[0], *row[1]]])).logits[0, :-1].log_softmax(-1)
    nll = [-float(logs[len(row[0]) - 1 + i, id]) for i, id in enumerate(row[1])]
    assert perplexity_under(tiny_lab, other, found) == pytest.approx(exp(sum(nll) / len(nll)), rel=1e-4)


def test_measures_of_a_text(tiny_lab, random_lab):
    other = replace(random_lab(seed=5), name="other")
    found = generate(tiny_lab, "The moon", max_new_tokens=12, seed=2)
    ids = [step.id for step in found.steps]
    training = np.array([7, *ids[3:9], 7])
    measured = measure(tiny_lab, found, labs=[tiny_lab, other], training=training)
    assert measured.tokens == 12
    assert measured.distinct == tuple(distinct(ids, n) for n in (1, 2, 3))
    assert measured.repeated == 1 - distinct(ids, 4)
    assert measured.copied >= 6 and tiny_lab.tokenizer.decode(ids[3:9]) in measured.copy
    assert list(measured.perplexity) == [tiny_lab.name, "other"]
    assert measured.perplexity["other"] == perplexity_under(other, tiny_lab, found)


def test_measures_of_too_little_are_none(tiny_lab):
    found = replace(generate(tiny_lab, "The moon", max_new_tokens=1), steps=())
    measured = measure(tiny_lab, found, labs=[tiny_lab])
    assert (measured.distinct, measured.repeated, measured.copied) == ((None, None, None), None, None)
    assert measured.perplexity == {tiny_lab.name: None}


def test_training_ids_are_those_of_the_training_split(tiny_lab):
    ids = training_ids(tiny_lab, "sample")
    start = tiny_lab.tokenizer.decode(ids[:40].tolist())
    assert load_text("sample").train[0].rows[0].strip() in start
    with pytest.raises(LabError, match="nowhere"):
        training_ids(tiny_lab, "/nowhere")

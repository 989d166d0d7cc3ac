import json
from dataclasses import replace

import pytest
from transformers import GPT2Tokenizer

from gpt2lab.data.text import Article
from gpt2lab.errors import LabError
from gpt2lab.evaluation import scorer
from gpt2lab.evaluation.breakdown import breakdown
from gpt2lab.evaluation.comparison import compare
from gpt2lab.evaluation.evaluate import evaluate
from gpt2lab.evaluation.perplexity import perplexity, read
from gpt2lab.evaluation.scorer import score
from gpt2lab.figures.evaluation import meaning_lines, results_csv

PROTOCOLS = ["sliding", "lm-eval", "blocks"]
ARTICLES = tuple(
    Article(f"Moon {i}", ("", f" = Moon {i} = \n", "", f" The moon goes around the earth {'again and ' * i}. \n"))
    for i in range(6)
)


@pytest.fixture(scope="module")
def labs(random_lab):
    return [replace(random_lab(seed), name=name) for seed, name in ((0, "one"), (1, "two"))]


@pytest.fixture
def no_forward(monkeypatch):
    """Running a model fails the test."""
    monkeypatch.setattr(scorer, "token_nll", lambda *args, **kwargs: pytest.fail("a model was run"))


def test_results_are_those_of_each_model_and_protocol_alone(labs):
    evaluation = evaluate(labs, ARTICLES, context=16, stride=4)
    assert (evaluation.models, evaluation.protocols) == (["one", "two"], PROTOCOLS)
    assert list(evaluation.results) == [
        (
            lab.name,
            perplexity(lab, ARTICLES, protocol=protocol, context=16, stride=4 if protocol == "sliding" else None),
        )
        for protocol in PROTOCOLS
        for lab in labs
    ]


def test_one_model_needs_no_list_and_has_nothing_to_compare(labs):
    evaluation = evaluate(labs[0], ARTICLES, "lm-eval")
    assert [name for name, _ in evaluation.results] == ["one"]
    assert evaluation.comparisons == ()


@pytest.mark.parametrize(
    ("protocols", "found"),
    [
        ("all", PROTOCOLS),
        (["blocks", "sliding"], ["blocks", "sliding"]),
        ("blocks,sliding", ["blocks", "sliding"]),
        (["lm-eval", "lm-eval"], ["lm-eval"]),
    ],
)
def test_protocols_come_in_the_order_asked_each_once(labs, protocols, found):
    assert evaluate(labs[0], ARTICLES, protocols).protocols == found


def test_second_model_is_compared_with_the_first_by_each_protocol(labs):
    one, two = (score(lab, read(lab, ARTICLES, "lm-eval")) for lab in labs)
    comparisons = {comparison.protocol: comparison for comparison in evaluate(labs, ARTICLES).comparisons}
    assert list(comparisons) == PROTOCOLS
    assert comparisons["lm-eval"] == compare(one, two)


@pytest.mark.parametrize("by", ["document", "position", "frequency", "part"])
def test_shares_are_the_breakdown_of_each_model(labs, by):
    evaluation = evaluate(labs, ARTICLES, "blocks,lm-eval")
    expected = {lab.name: breakdown(score(lab, read(lab, ARTICLES, "lm-eval")), by) for lab in labs}
    assert evaluation.shares(by, "lm-eval") == expected


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"protocols": "sliding,magic"}, "protocol 'magic' is unknown; use sliding, lm-eval, blocks, all"),
        ({"protocols": []}, "no protocol is named; use sliding, lm-eval, blocks or all"),
        ({"protocols": "blocks", "stride": 4}, "stride 4 is of sliding windows"),
        ({"context": 65}, "context 65 is out of range"),
        ({"quick": 0}, "quick 0 is out of range"),
        ({"articles": ARTICLES[:1], "protocols": "blocks"}, "a block of 64; give more text"),
        ({"articles": (Article("", ("",)),)}, "the text has only 0 of the 2 tokens"),
        ({"protocols": None}, "protocols 'None' are no names"),
    ],
)
def test_what_cannot_be_read_is_refused_before_any_model_runs(labs, no_forward, asked, message):
    with pytest.raises(LabError, match=message):
        evaluate(labs, **{"articles": ARTICLES} | asked)


@pytest.mark.parametrize("which", [[], [0, 0], [0, 1, 0]])
def test_no_model_one_twice_or_three_are_refused(labs, no_forward, which):
    with pytest.raises(LabError, match="give one, or two different ones"):
        evaluate([labs[i] for i in which], ARTICLES)


def test_protocol_that_the_text_is_too_short_for_is_left_out_and_said(labs):
    evaluation = evaluate(labs, ARTICLES[:1])
    assert evaluation.protocols == ["sliding", "lm-eval"]
    ((protocol, why),) = evaluation.refused
    assert (protocol, evaluation.verdicts[-1]) == ("blocks", ("blocks", f"not scored: {why}"))
    assert "no 1,000 rows of it a block of 64; give more text" in why
    assert evaluation.record()["verdicts"][-1] == f"blocks: not scored: {why}"


@pytest.mark.parametrize("labs", ["builtin", None, ["builtin"], [None]])
def test_what_is_no_model_is_refused(labs):
    with pytest.raises(LabError, match=r"the model is a \w+; give load_model\(name\)"):
        evaluate(labs, ARTICLES)


def test_views_of_what_was_not_scored_are_refused_with_what_was(labs):
    evaluation = evaluate(labs[0], ARTICLES, "lm-eval")
    with pytest.raises(LabError, match="nothing was scored by protocol 'sliding'; there is lm-eval"):
        evaluation.shares("part", "sliding")
    with pytest.raises(LabError, match="breakdown 'colour' is unknown"):
        evaluation.shares("colour", "lm-eval")


def test_progress_names_what_is_done_and_reaches_the_end_of_each(labs):
    seen = {}
    evaluation = evaluate(
        labs, ARTICLES, on_progress=lambda what, *progress: seen.setdefault(what, []).append(progress)
    )
    assert list(seen) == [f"{lab.name}, {protocol}" for protocol in PROTOCOLS for lab in labs]
    ends = [progress[-1] for progress in seen.values()]
    assert ends == [(result.windows, result.windows) for _, result in evaluation.results]


def test_steps_broken_off_keep_what_was_scored(labs, monkeypatch):
    steps = evaluate.steps(labs[0], ARTICLES, "lm-eval")
    for _, done, total in steps:
        if done == total:
            break
    steps.close()
    monkeypatch.setattr(scorer, "token_nll", lambda *args, **kwargs: pytest.fail("a model was run"))
    assert evaluate(labs[0], ARTICLES, "lm-eval").models == ["one"]


def test_two_models_of_different_contexts_read_windows_of_the_smaller(random_lab):
    short, long = replace(random_lab(n_positions=16), name="short"), replace(random_lab(1), name="long")
    evaluation = evaluate([long, short], ARTICLES)
    assert {result.context for _, result in evaluation.results} == {16}
    assert len(evaluation.comparisons) == 3


@pytest.fixture(scope="module")
def other_tokens(random_lab):
    """A model whose tokenizer makes a token of every byte."""
    lab = random_lab(2)
    vocabulary = {token: i for token, i in lab.tokenizer.get_vocab().items() if len(token) == 1}
    vocabulary |= {lab.tokenizer.eos_token: lab.tokenizer.eos_token_id}
    return replace(lab, tokenizer=GPT2Tokenizer(vocab=vocabulary, merges=[]), name="bytes")


def test_protocol_that_cannot_tell_across_tokenizers_says_why_and_the_others_do(labs, other_tokens):
    evaluation = evaluate([labs[0], other_tokens], ARTICLES * 10, context=16, stride=8)
    compared = {comparison.protocol: comparison.unit for comparison in evaluation.comparisons}
    assert compared == {"sliding": "bits per byte", "lm-eval": "bits per byte"}
    verdicts = dict(evaluation.verdicts)
    assert verdicts["lm-eval"] == str(evaluation.comparisons[1])
    assert verdicts["blocks"].startswith("not compared: their tokenizers differ")


def test_record_is_all_that_json_has_of_two_models(labs):
    evaluation = evaluate(labs, ARTICLES, "lm-eval,sliding")
    found = json.loads(json.dumps(evaluation.record("part"), allow_nan=False))
    assert [line["protocol"] for line in found["results"]] == ["lm-eval", "sliding"]
    assert found["compare"] == "two"
    assert [line["nll"] for line in found["compare_results"]] == [
        r.nll for name, r in evaluation.results if name == "two"
    ]
    assert [line["verdict"] for line in found["comparisons"]] == [c.verdict for c in evaluation.comparisons]
    parts = evaluation.shares("part", "sliding")["one"]
    assert [part["loss"] for part in found["results"][1]["breakdown"]["part"]] == [share.loss for share in parts]


def test_pieces_are_every_document_of_every_model(labs):
    evaluation = evaluate(labs, ARTICLES[:2] * 2, "sliding")
    pieces = evaluation.pieces("sliding")
    assert [(model, title) for model, title, _ in pieces] == [
        (name, f"Moon {i % 2} {i + 1}") for name in ("one", "two") for i in range(4)
    ]
    assert "".join(text for _, _, its in pieces[:4] for text, _ in its) == evaluation.scored[0].tokenized.text


@pytest.mark.filterwarnings("ignore:bf16 is slow")
def test_both_models_are_scored_in_the_precision_asked_for(labs):
    found = evaluate(labs, ARTICLES, "sliding", context=16, precision="bf16")
    assert [result.precision for _, result in found.results] == ["bf16", "bf16"]
    assert len(found.comparisons) == 1
    assert b"bf16" in results_csv(found, "text")
    assert sum("scored in bf16" in line for line in meaning_lines(found.results)) == 2
    with pytest.raises(LabError, match="precision 'half' is unknown; use fp32, bf16"):
        evaluate(labs, ARTICLES, precision="half")

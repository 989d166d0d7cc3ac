"""The course: every answer against an oracle that transformers computes, wrong and hostile answers, any text."""

import copy
from math import exp, inf, nan

import peft
import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2LMHeadModel

from gpt2lab.errors import LabError
from gpt2lab.inspection.exploration import exploration
from gpt2lab.inspection.heads import induction_scores, random_tokens_twice
from gpt2lab.learning.course import COURSE, step_at
from gpt2lab.learning.questions import CONTINUATIONS, spread
from gpt2lab.model.lab import load_model

TEXT = "The moon goes around the earth, and the moon goes around the sea."
PRINTABLE = (
    "The moon is a small world that goes around the earth,"  # the token that follows is not a part of a character
)
BY_NAME = {step.name: step for step in COURSE}


@pytest.fixture(scope="module")
def eager(tiny_lab):
    """The same model with attention that transformers itself writes out."""
    config = copy.deepcopy(tiny_lab.model.config)
    config._attn_implementation = "eager"
    model = GPT2LMHeadModel(config).eval()
    model.load_state_dict(tiny_lab.model.state_dict())
    return model


@pytest.fixture(scope="module")
def oracle(tiny_lab, eager):
    """A function: step, its text, what is selected → the answer, by means that the package does not use."""

    @torch.no_grad()
    def answer(name, text, place):
        ids = torch.tensor(tiny_lab.tokenizer(text)["input_ids"])[None]
        found = eager(ids, labels=ids, output_attentions=True, output_hidden_states=True)
        last = found.logits[0, -1]
        position, layer, head = (place[key] for key in ("position", "layer", "head"))
        match name:
            case "tokens":
                return ids.shape[1]
            case "prediction":
                return tiny_lab.tokenizer.convert_ids_to_tokens(int(last.argmax())).replace("Ġ", " ")
            case "attention":
                return str(int(found.attentions[layer][0, head, position].argmax()))
            case "heads":
                return _head(torch.stack([a[0].diagonal(-1, -2, -1).mean(-1) for a in found.attentions]))
            case "induction":
                return _head(_induction(tiny_lab, eager))
            case "lens":
                model = eager.transformer
                states = [*found.hidden_states[:-1], None]
                tops = [
                    int((found.logits[0] if x is None else eager.lm_head(model.ln_f(x))[0])[position].argmax())
                    for x in states
                ]
                return str(max((i + 1 for i, top in enumerate(tops) if top != tops[-1]), default=0))
            case "ablation":
                without = copy.deepcopy(eager)
                width = eager.config.n_embd // eager.config.n_head
                without.transformer.h[layer].attn.c_proj.weight[head * width : (head + 1) * width] = 0
                change = float(without(ids, labels=ids).loss - found.loss)
                return "same" if abs(change) < 0.0005 else "higher" if change > 0 else "lower"
            case "training":
                return str(position + 1)
            case "perplexity":
                return exp(float(found.loss))
            case "sampling":
                p = (last / 0.5).softmax(-1).topk(2).values
                return float(p[0] / p[1])
            case "finetuning":
                config = peft.LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=["c_attn"], fan_in_fan_out=True)
                return str(peft.get_peft_model(copy.deepcopy(eager), config).get_nb_trainable_parameters()[0])
            case "limits":
                costs = [_cost(tiny_lab, eager, text, continuation) for continuation in CONTINUATIONS]
                return str(costs.index(min(costs)))

    return answer


def _head(scores):
    layer, head = divmod(int(scores.argmax()), scores.shape[1])
    return f"{layer}.{head}"


def _induction(lab, eager):
    scores = []
    for ids in random_tokens_twice(lab, 0):
        n = len(ids) // 2
        weights = torch.stack(eager(ids[None], output_attentions=True).attentions)[:, 0]  # (L, H, 2n, 2n)
        scores.append(torch.stack([weights[..., i, i - n + 1] for i in range(n, 2 * n)]).mean(0))
    return torch.stack(scores).mean(0)


def _cost(lab, eager, prompt, continuation):
    """Nats of a continuation after the part of a prompt that fits beside it."""
    before, after = (lab.tokenizer(text)["input_ids"] for text in (prompt, continuation))
    ids = torch.tensor(before + after)[None]
    logs = eager(ids).logits[0, len(before) - 1 : -1].log_softmax(-1)
    return float(F.nll_loss(logs, torch.tensor(after), reduction="sum"))


def test_the_course_has_twelve_steps_of_different_names_and_titles():
    assert len(COURSE) == len(BY_NAME) == len({step.title for step in COURSE}) == 12


@pytest.mark.parametrize("name", BY_NAME)
def test_answer_is_the_one_that_transformers_computes(tiny_lab, oracle, name):
    step = BY_NAME[name]
    text = {"limits": "sea = mer", "prediction": PRINTABLE}.get(name, TEXT)  # the translation's own text is too long
    found = exploration(tiny_lab, text)
    wanted = oracle(name, text, step.place(found))
    question = step.question(tiny_lab, found)
    assert question.kind == ("choice" if question.choices else "token" if isinstance(wanted, str) else "number")
    right, explanation = step.check(tiny_lab, wanted, found)
    assert right, (question, wanted)
    assert explanation == question.explanation
    for wrong in _wrong(question, wanted):
        assert not step.check(tiny_lab, wrong, found)[0], wrong


def _wrong(question, wanted):
    if question.kind == "choice":
        values = [value for _, value in question.choices]
        assert wanted in values
        assert len(set(values)) == len(values)
        return [value for value in values if value != wanted]
    return ["no such token"] if question.kind == "token" else [wanted * 1.06 + 0.5, wanted / 2 - 1, 0]


HOSTILE = [None, "", nan, inf, -inf, [], ["1"], {}, True, b"1", object(), "x" * 10**7, 10**400, "\ud83c" * 200]


@pytest.mark.parametrize("name", BY_NAME)
def test_hostile_answer_gets_one_short_line(tiny_lab, name):
    step = BY_NAME[name]
    found = step.explored(tiny_lab, TEXT)
    for answer in [*HOSTILE, *(["nonsense"] if step.choices(tiny_lab, found) else [])]:
        with pytest.raises(LabError) as caught:
            step.check(tiny_lab, answer, found)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600


def test_token_is_accepted_as_typed_and_as_shown(tiny_lab):
    step = BY_NAME["prediction"]
    found = step.explored(tiny_lab, TEXT)
    shown = step.question(tiny_lab, found).answer
    typed = shown.replace("·", " ")
    for answer in {shown, typed, typed.strip() or typed, f" {typed}"}:
        assert step.check(tiny_lab, answer, found)[0], answer


@pytest.mark.parametrize(
    "text", ["moon moon", "aa" * 3, "the the the the", "The 🌙 is <b>round</b> & {old} `%s`.", " \n \n", TEXT * 9]
)
def test_every_step_takes_any_text_of_two_tokens(random_lab, text):
    lab = random_lab(3)
    for step in COURSE:
        found = step.explored(lab, text)
        question = step.question(lab, found)
        assert question.is_right(question.answer)
        assert "{" not in question.line.replace("{old}", "")


def test_text_of_one_token_is_refused_in_a_line(tiny_lab):
    for step in COURSE:
        if not step.fixed:
            with pytest.raises(LabError, match="the text is a single token, and nothing predicts it"):
                step.question(tiny_lab, step.explored(tiny_lab, "a"))


def test_the_built_in_model_answers_every_step_with_its_own_text():
    builtin_lab = load_model("builtin")
    induction = induction_scores(builtin_lab)  # depends on no text
    for step in COURSE:
        found = exploration(builtin_lab, step.text, induction=induction)
        question = step.question(builtin_lab, found)
        assert step.check(builtin_lab, question.answer, found) == (True, question.explanation)


@pytest.mark.parametrize("number", [-1, 12, "0", None, nan, 1.0, True, [0], 10**30])
def test_step_that_does_not_exist_is_refused(number):
    with pytest.raises(LabError, match=r"^step .{1,40} does not exist; use 0 to 11$"):
        step_at(number)


@pytest.mark.parametrize(("n", "count"), [(1, 4), (2, 4), (3, 2), (9, 4), (100, 4)])
def test_spread_holds_the_right_one_and_no_entry_twice(n, count):
    for right in (0, n - 1):
        chosen = spread(range(n), right, count)
        assert right in chosen
        assert len(set(chosen)) == len(chosen) == min(n, count)

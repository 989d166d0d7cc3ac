import itertools
import math

import pytest
import torch

from gpt2lab.errors import LabError
from gpt2lab.sampling import Sampling, _draw, collect, generate, generate_steps, text_of

SHAPES = [{}, {"n_layer": 1, "n_head": 2, "n_embd": 16, "seed": 1}, {"n_layer": 3, "n_positions": 48, "seed": 2}]
PROBABILITIES = (0.5, 0.2, 0.15, 0.1, 0.05)
DRAWS = 4000
CHI_SQUARE_999 = {1: 10.83, 2: 13.82, 4: 18.47}  # degrees of freedom -> 99.9 % point, from printed tables
BAD_VALUES = [
    ("temperature", -0.1),
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("temperature", 1000),
    ("temperature", True),
    ("temperature", "1"),
    ("temperature", None),
    ("top_p", 0),
    ("top_p", 1.01),
    ("top_p", -0.5),
    ("top_p", math.nan),
    ("top_p", -math.inf),
    ("top_p", False),
    ("top_p", "0.9"),
    ("top_k", 0),
    ("top_k", -1),
    ("top_k", 301),
    ("top_k", 2.0),
    ("top_k", True),
    ("top_k", "5"),
    ("seed", -1),
    ("seed", 2**63),
    ("seed", 1.5),
    ("seed", False),
    ("seed", "0"),
    ("max_new_tokens", 0),
    ("max_new_tokens", -1),
    ("max_new_tokens", 10**9),
    ("max_new_tokens", 1.5),
    ("max_new_tokens", True),
    ("max_new_tokens", "5"),
    ("max_new_tokens", math.nan),
    ("alternatives", -1),
    ("alternatives", 10**6),
    ("alternatives", True),
    ("alternatives", "5"),
]


def ids_of(generation):
    return [step.id for step in generation.steps]


def draw(lab, probabilities, **sampling):
    """One step drawn from fixed probabilities of the first token ids."""
    options = Sampling(**sampling)
    logits = torch.tensor([probabilities]).log()
    return _draw(lab, torch.tensor([[0]]), logits, options, options.warpers(), torch.Generator().manual_seed(0), 0)


def end_at_call(lab, call):
    """From its given call on, the LM head has `<|endoftext|>` as its certain favourite."""
    calls, end = itertools.count(1), lab.tokenizer.eos_token_id

    def favour(module, args, output):
        if next(calls) >= call:
            output[..., end] += 1000.0
        return output

    lab.model.lm_head.register_forward_hook(favour)
    return lab


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("prompt", ["The moon", "x", "earth, and the sea\n"])
def test_greedy_text_equals_transformers_generate(random_lab, shape, prompt):
    lab = random_lab(**shape)
    ids = lab.encode(prompt)
    output = lab.model.generate(ids[None], max_new_tokens=20, do_sample=False, pad_token_id=0)[0, len(ids) :].tolist()
    ours = generate(lab, prompt, max_new_tokens=20, temperature=0)
    assert ids_of(ours) == output
    assert ours.text == lab.tokenizer.decode(output, skip_special_tokens=True)
    assert all(step.rank == 1 and step.sampled_probability == 1 and step.removed == 0 for step in ours.steps)


def test_greedy_choice_is_that_of_the_logits_where_their_probabilities_round_to_one_number(tiny_lab):
    logits = torch.full((1, 300), -5.0)
    logits[0, 5] = 0.25
    logits[0, 9] = torch.nextafter(logits[0, 5], torch.tensor(1.0))
    options = Sampling(temperature=0)
    step = _draw(tiny_lab, torch.tensor([[0]]), logits, options, options.warpers(), None, 0)
    assert step.id == logits.argmax() == 9


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.6])
@pytest.mark.parametrize("top_p", [0.05, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("top_k", [None, 1, 20])
def test_nucleus_equals_brute_force_over_the_vocabulary(temperature, top_p, top_k):
    logits = 3 * torch.randn(1, 300, generator=torch.Generator().manual_seed(7))
    drawn_from = (
        Sampling(temperature=temperature, top_p=top_p, top_k=top_k).warpers()(None, logits.clone()).softmax(-1)[0]
    )
    weights = {i: math.exp(logit / temperature) for i, logit in enumerate(logits[0].tolist())}
    favourites = sorted(weights, key=weights.get, reverse=True)[:top_k]
    total, reached, nucleus = sum(weights[i] for i in favourites), 0.0, []
    for i in favourites:
        if reached >= top_p * total:
            break
        nucleus.append(i)
        reached += weights[i]
    expected = torch.zeros(300)
    for i in nucleus:
        expected[i] = weights[i] / reached
    assert drawn_from.nonzero().flatten().tolist() == sorted(nucleus)
    torch.testing.assert_close(drawn_from, expected)


def test_the_model_s_own_distribution_needs_no_warper():
    assert list(Sampling().warpers()) == list(Sampling(temperature=0).warpers()) == []


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({}, PROBABILITIES),
        ({"temperature": 2}, [math.sqrt(p) for p in PROBABILITIES]),
        ({"top_k": 3}, PROBABILITIES[:3]),
        ({"top_p": 0.6}, PROBABILITIES[:2]),
    ],
)
def test_draws_are_as_frequent_as_the_exact_softmax_says(tiny_lab, sampling, expected):
    options, generator = Sampling(**sampling), torch.Generator().manual_seed(1)
    warpers, logits, prefix = options.warpers(), torch.tensor([PROBABILITIES]).log(), torch.tensor([[0]])
    counts = [0] * len(PROBABILITIES)
    for _ in range(DRAWS):
        counts[_draw(tiny_lab, prefix, logits, options, warpers, generator, 0).id] += 1
    wanted = [DRAWS * p / sum(expected) for p in expected]
    assert sum(counts[len(expected) :]) == 0
    chi_square = sum((n - w) ** 2 / w for n, w in zip(counts, wanted))
    assert 0 < chi_square < CHI_SQUARE_999[len(expected) - 1]


def test_same_seed_gives_the_same_text_and_another_seed_another(tiny_lab):
    first, again, other = (generate(tiny_lab, "The moon", max_new_tokens=20, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first.seed == 3
    assert ids_of(first) != ids_of(other)


def test_generation_leaves_the_global_random_state_alone(tiny_lab):
    before = torch.random.get_rng_state()
    generate(tiny_lab, "The moon", max_new_tokens=5, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"seed": 5}, {"seed": 5, "temperature": 1.5, "top_p": 0.9}])
def test_each_step_states_the_probabilities_of_a_forward_pass_from_scratch(tiny_lab, sampling):
    generation = generate(tiny_lab, "The moon", max_new_tokens=12, alternatives=4, **sampling)
    prefix = tiny_lab.encode("The moon").tolist()
    assert len(generation.steps) == 12
    for step in generation.steps:
        with torch.no_grad():
            own = tiny_lab.model(torch.tensor([prefix])).logits[0, -1].double().softmax(-1)
        favourites = own.sort(descending=True)
        assert step.probability == pytest.approx(own[step.id].item(), rel=1e-4)
        assert step.rank == 1 + int((own > own[step.id]).sum())
        assert step.entropy == pytest.approx(-(own * own.log()).sum().item(), rel=1e-4)
        assert [alternative.id for alternative in step.alternatives] == favourites.indices[:4].tolist()
        assert [alternative.probability for alternative in step.alternatives] == pytest.approx(
            favourites.values[:4].tolist(), rel=1e-4
        )
        assert all(
            alternative.token == tiny_lab.tokenizer.decode([alternative.id]) for alternative in step.alternatives
        )
        prefix.append(step.id)


@pytest.mark.parametrize(
    ("sampling", "removed", "kept"),
    [
        ({}, 0, 1),
        ({"top_k": 2}, 0.3, 0.7),
        ({"top_p": 0.6}, 0.3, 0.7),
        ({"top_p": 0.2}, 0.5, 0.5),
        ({"top_k": 4, "top_p": 0.5}, 0.5, 0.5),
        ({"temperature": 0.5, "top_k": 1}, 1 - 0.25 / 0.325, 0.25 / 0.325),
        ({"temperature": 0.5}, 0, 1),
    ],
)
def test_removed_mass_is_one_less_what_the_sampler_kept(tiny_lab, sampling, removed, kept):
    step = draw(tiny_lab, PROBABILITIES, **sampling)
    power = 1 / sampling.get("temperature", 1)
    tempered = PROBABILITIES[step.id] ** power / sum(p**power for p in PROBABILITIES)
    assert step.removed == pytest.approx(removed, abs=1e-6)
    assert step.sampled_probability == pytest.approx(tempered / kept, rel=1e-5)
    assert step.probability == pytest.approx(PROBABILITIES[step.id], rel=1e-5)


@pytest.mark.parametrize("temperature", [1e-9, 1e-30, 1e-40, 1e-320])
def test_temperature_next_to_zero_is_greedy(tiny_lab, temperature):
    greedy, cold = (generate(tiny_lab, "The moon", max_new_tokens=5, temperature=t) for t in (0, temperature))
    assert ids_of(cold) == ids_of(greedy)


def test_text_ends_at_end_of_text_and_does_not_hold_it(random_lab):
    lab = end_at_call(random_lab(), 3)
    generation = generate(lab, "The moon", max_new_tokens=20, seed=0)
    assert (len(generation.steps), generation.finish) == (3, "end of text")
    assert generation.steps[-1].token == "<|endoftext|>"
    assert generation.text == lab.tokenizer.decode(ids_of(generation)[:2])


def test_end_of_text_as_the_last_token_asked_for_is_the_finish(random_lab):
    assert generate(end_at_call(random_lab(), 3), "The moon", max_new_tokens=3).finish == "end of text"


def test_text_of_asked_length_finishes_with_length(tiny_lab):
    generation = generate(tiny_lab, "The moon", max_new_tokens=7, temperature=0)
    assert (len(generation.steps), generation.finish, generation.prompt) == (7, "length", "The moon")


@pytest.mark.parametrize(("length", "count"), [(63, 1), (60, 4)])
def test_text_ends_where_the_context_is_full(tiny_lab, length, count):
    generation = generate(tiny_lab, "x" * length, max_new_tokens=20, temperature=0)
    assert (len(generation.steps), generation.finish) == (count, "context")


def test_text_that_just_fits_the_context_finishes_with_length(tiny_lab):
    assert generate(tiny_lab, "x" * 60, max_new_tokens=4, temperature=0).finish == "length"


def test_steps_collected_before_the_end_are_a_stopped_generation(tiny_lab):
    whole = generate(tiny_lab, "The moon", max_new_tokens=9, seed=2)
    stream = generate_steps(tiny_lab, "The moon", max_new_tokens=9, sampling=Sampling(seed=2))
    part = collect(tiny_lab, "The moon", tuple(itertools.islice(stream, 4)), max_new_tokens=9, seed=2)
    assert (part.steps, part.finish) == (whole.steps[:4], "stopped")
    assert part.text == tiny_lab.tokenizer.decode(ids_of(whole)[:4])
    assert collect(tiny_lab, "The moon", (), max_new_tokens=9, seed=2).text == ""


def test_text_of_joins_the_parts_of_a_character(tiny_lab):
    steps = [draw(tiny_lab, [0.0] * i + [1.0]) for i in tiny_lab.encode("a🌙").tolist()]
    assert [step.token for step in steps] == ["a", "\ufffd", "\ufffd", "\ufffd", "\ufffd"]
    assert text_of(tiny_lab, steps) == "a🌙"
    assert text_of(tiny_lab, steps[:3]).endswith("\ufffd")


def test_steps_leave_gradients_on_for_whoever_takes_them(tiny_lab):
    for _ in generate_steps(tiny_lab, "The moon", max_new_tokens=3):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_two_streams_taken_in_turns_do_not_disturb_each_other(tiny_lab):
    alone = [generate(tiny_lab, prompt, max_new_tokens=6, seed=1).steps for prompt in ("The moon", "sea")]
    streams = [generate_steps(tiny_lab, p, max_new_tokens=6, sampling=Sampling(seed=1)) for p in ("The moon", "sea")]
    assert list(zip(*streams)) == list(zip(*alone))


def test_a_sampling_is_the_same_as_its_fields(tiny_lab):
    options = {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "seed": 6}
    assert generate(tiny_lab, "sea", sampling=Sampling(**options)) == generate(tiny_lab, "sea", **options)


@pytest.mark.parametrize(("field", "value"), BAD_VALUES)
def test_bad_value_is_refused_by_its_field_and_value(tiny_lab, field, value):
    with pytest.raises(LabError, match=rf"^{field} ") as caught:
        generate(tiny_lab, "The moon", **{field: value})
    shown = f"{value:,}" if field == "top_k" and value == 301 else str(value)
    assert shown in str(caught.value)


@pytest.mark.parametrize(("prompt", "message"), [("", "prompt is empty"), ("x" * 64, "64 tokens; .* 64 less 1")])
def test_prompt_that_leaves_no_room_is_refused_before_the_first_step(tiny_lab, prompt, message):
    with pytest.raises(LabError, match=message):
        generate_steps(tiny_lab, prompt)

import itertools
import math
import warnings
from dataclasses import replace
from functools import partial

import pytest
import torch

from gpt2lab.data.tokens import token_text
from gpt2lab.errors import LabError
from gpt2lab.generation.generate import TextStream, beam_search, best_of, generate, generate_batch, text_of
from gpt2lab.generation.sampling import Sampling, step_of
from gpt2lab.model import precision

SHAPES = [{}, {"n_layer": 1, "n_head": 2, "n_embd": 16, "seed": 1}, {"n_layer": 3, "n_positions": 48, "seed": 2}]
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
    ("min_p", -0.1),
    ("min_p", 1.5),
    ("min_p", math.nan),
    ("min_p", "0"),
    ("repetition_penalty", 0),
    ("repetition_penalty", -1),
    ("repetition_penalty", 1000),
    ("repetition_penalty", math.nan),
    ("window", 0),
    ("window", 64),
    ("window", 1.5),
    ("window", True),
    ("stop", ""),
    ("stop", [""]),
    ("stop", [1]),
    ("stop", ["x"] * 17),
    ("stop", 5),
    ("precision", "fp16"),
    ("precision", None),
]


def ids_of(generation):
    return [step.id for step in generation.steps]


def end_at_call(lab, call):
    """From its given call on, the LM head has `<|endoftext|>` as its certain top prediction."""
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
        top_predictions = own.sort(descending=True)
        assert step.probability == pytest.approx(own[step.id].item(), rel=1e-4)
        assert step.rank == 1 + int((own > own[step.id]).sum())
        assert step.entropy == pytest.approx(-(own * own.log()).sum().item(), rel=1e-4)
        assert [alternative.id for alternative in step.alternatives] == top_predictions.indices[:4].tolist()
        assert [alternative.probability for alternative in step.alternatives] == pytest.approx(
            top_predictions.values[:4].tolist(), rel=1e-4
        )
        assert all(
            alternative.token == token_text(tiny_lab.tokenizer, alternative.id) for alternative in step.alternatives
        )
        prefix.append(step.id)


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
    stream = TextStream(tiny_lab, "The moon", max_new_tokens=9, seed=2)
    assert stream.generation.text == ""
    assert [step for (step,) in itertools.islice(stream, 4)] == [*whole.steps[:4]]
    part = stream.generation
    assert (part.steps, part.finish) == (whole.steps[:4], "stopped")
    assert part.text == tiny_lab.tokenizer.decode(ids_of(whole)[:4])
    assert [step for (step,) in stream] == [*whole.steps[4:]]  # a second loop continues
    assert stream.generation == whole


def test_text_of_joins_the_parts_of_a_character(tiny_lab):
    spell = partial(token_text, tiny_lab.tokenizer)
    steps = [step_of(torch.zeros(1, 300), i, alternatives=0, spell=spell) for i in tiny_lab.encode("a🌙").tolist()]
    assert [step.token for step in steps] == ["a", "⟨F0⟩", "⟨9F⟩", "⟨8C⟩", "⟨99⟩"]
    assert text_of(tiny_lab, steps) == "a🌙"
    assert text_of(tiny_lab, steps[:3]).endswith("\ufffd")


def test_steps_leave_gradients_on_for_whoever_takes_them(tiny_lab):
    for _ in TextStream(tiny_lab, "The moon", max_new_tokens=3):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_two_streams_taken_in_turns_do_not_disturb_each_other(tiny_lab):
    alone = [generate(tiny_lab, prompt, max_new_tokens=6, seed=1).steps for prompt in ("The moon", "sea")]
    streams = [TextStream(tiny_lab, p, max_new_tokens=6, sampling=Sampling(seed=1)) for p in ("The moon", "sea")]
    assert [(one, other) for (one,), (other,) in zip(*streams)] == list(zip(*alone))


def test_a_sampling_is_the_same_as_its_fields(tiny_lab):
    options = {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "seed": 6}
    assert generate(tiny_lab, "sea", sampling=Sampling(**options)) == generate(tiny_lab, "sea", **options)


@pytest.mark.parametrize(("field", "value"), BAD_VALUES)
def test_bad_value_is_refused_by_its_field_and_value(tiny_lab, field, value):
    with pytest.raises(LabError, match=rf"(?i)^{field} ") as caught:
        generate(tiny_lab, "The moon", **{field: value})
    shown = f"{value:,}" if field == "top_k" and value == 301 else str(value)
    assert field == "stop" or shown in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "message"), [("x" * 64, "64 tokens; .* 64 less 1"), ("\ud800", "surrogate"), (None, "None")]
)
def test_prompt_that_leaves_no_room_is_refused_before_the_first_step(tiny_lab, prompt, message):
    with pytest.raises(LabError, match=message):
        TextStream(tiny_lab, prompt)


# ---- more ways to draw ----------------------------------------------------------------------------------------------


def test_penalised_greedy_text_equals_transformers_generate(random_lab):
    lab = random_lab(seed=3)
    ids = lab.encode("The moon")
    options = {"max_new_tokens": 20, "do_sample": False, "repetition_penalty": 1.5, "pad_token_id": 0}
    output = lab.model.generate(ids[None], **options)[0, len(ids) :].tolist()
    found = generate(lab, "The moon", max_new_tokens=20, temperature=0, repetition_penalty=1.5)
    assert ids_of(found) == output != ids_of(generate(lab, "The moon", max_new_tokens=20, temperature=0))


@pytest.mark.parametrize(
    "sampling",
    [{}, {"temperature": 0.6}, {"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.3}, {"repetition_penalty": 3.0}],
)
def test_alternatives_state_what_the_sampler_would_have_drawn_them_with(tiny_lab, sampling):
    stream = TextStream(tiny_lab, "The moon", alternatives=100, **sampling)
    (step,) = next(iter(stream))
    with torch.no_grad():
        logits = tiny_lab.model(tiny_lab.encode("The moon")[None]).logits[:, -1]
    scores = stream.sampling.penalised(tiny_lab.encode("The moon")[None], logits)
    assert torch.equal(scores, logits) == ("repetition_penalty" not in sampling)
    drawn_from = stream.sampling.warpers()(None, scores.clone()).softmax(-1)[0]
    for each in step.alternatives:
        assert each.sampled_probability == pytest.approx(float(drawn_from[each.id]), rel=1e-4, abs=1e-7)
    own = next(each for each in step.alternatives if each.id == step.id) if step.rank <= 100 else step
    assert (own.probability, own.sampled_probability) == (step.probability, step.sampled_probability)


def test_alternatives_of_a_greedy_step_are_certain_or_impossible(tiny_lab):
    step = generate(tiny_lab, "The moon", max_new_tokens=1, temperature=0).steps[0]
    assert [each.sampled_probability for each in step.alternatives] == [1.0] + [0.0] * 9


# ---- batches, branches, beams ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2}])
def test_a_continuation_is_the_same_in_a_batch_or_alone(random_lab, sampling):
    lab = random_lab(seed=2)
    batch = generate_batch(lab, "The moon", 5, max_new_tokens=15, seed=3, **sampling)
    for i, found in enumerate(batch):
        alone = generate(lab, "The moon", max_new_tokens=15, seed=3 + i, **sampling)
        assert (ids_of(found), found.text, found.finish, found.seed) == (ids_of(alone), alone.text, alone.finish, 3 + i)
        for ours, theirs in zip(found.steps, alone.steps):
            assert ours.probability == pytest.approx(theirs.probability, rel=1e-4)
    assert len({found.text for found in batch}) > 1


def test_continuations_of_a_batch_end_each_for_itself(random_lab):
    lab = random_lab(seed=2)
    stop = generate(lab, "The moon", max_new_tokens=15, seed=4).text[3:5]
    batch = generate_batch(lab, "The moon", 3, max_new_tokens=15, seed=3, stop=stop)
    assert batch[1].finish == "stop string"
    for i, found in enumerate(batch):
        alone = generate(lab, "The moon", max_new_tokens=15, seed=3 + i, stop=stop)
        assert (ids_of(found), found.text, found.finish) == (ids_of(alone), alone.text, alone.finish)


def test_best_of_several_is_the_most_probable_per_token(random_lab):
    lab = random_lab(seed=2)
    batch = generate_batch(lab, "The moon", 6, max_new_tokens=12, seed=3)
    with torch.no_grad():
        means = [
            -float(
                lab.model(
                    ids, labels=torch.where(torch.arange(len(ids[0])) < len(ids[0]) - len(one.steps), -100, ids)
                ).loss
            )
            for one in batch
            for ids in [torch.tensor([lab.encode("The moon").tolist() + ids_of(one)])]
        ]
    assert best_of(batch) is batch[means.index(max(means))]


def test_wrong_rows_of_a_batch_are_refused_before_the_first(tiny_lab):
    with pytest.raises(LabError, match=r"^count 0"):
        TextStream(tiny_lab, "x", count=0)


@pytest.mark.parametrize("count", [0, 65, 1.5, True])
def test_bad_count_of_a_batch_is_refused(tiny_lab, count):
    with pytest.raises(LabError, match=r"^count .* 1 to 64"):
        generate_batch(tiny_lab, "x", count)


def test_seeds_of_a_batch_end_with_the_largest(tiny_lab):
    with pytest.raises(LabError, match=r"seed .* out of range"):
        generate_batch(tiny_lab, "x", 2, seed=2**63 - 1)
    assert generate_batch(tiny_lab, "x", 2, seed=2**63 - 2, max_new_tokens=1)[1].seed == 2**63 - 1


def test_log_probability_is_that_of_a_forward_pass(tiny_lab):
    found = generate(tiny_lab, "The moon", max_new_tokens=8, seed=1)
    ids = torch.tensor([tiny_lab.encode("The moon").tolist() + ids_of(found)])
    with torch.no_grad():
        logs = tiny_lab.model(ids).logits[0, :-1].log_softmax(-1)
    expected = sum(float(logs[-8 + i, id]) for i, id in enumerate(ids_of(found)))
    assert found.log_probability == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"seed": 7}])
def test_a_branch_is_a_fresh_generation_from_the_same_prefix(tiny_lab, sampling):
    first = generate(tiny_lab, "The moon", max_new_tokens=10, **sampling)
    other = next(each for each in first.steps[4].alternatives if each.id != first.steps[4].id)
    kept = (*first.steps[:4], first.steps[4].with_token(other.id))
    branch = generate(tiny_lab, "The moon", after=kept, max_new_tokens=6, **sampling)
    assert branch.steps[:5] == kept
    assert (kept[4].token, kept[4].probability) == (other.token, other.probability)
    prefix = torch.tensor([tiny_lab.encode("The moon").tolist() + [step.id for step in kept]])
    with torch.no_grad():
        own = tiny_lab.model(prefix).logits[0, -1].softmax(-1)
    assert branch.steps[5].probability == pytest.approx(float(own[branch.steps[5].id]), rel=1e-4)
    assert (len(branch.steps), branch.finish) == (11, "length")
    if sampling == {"temperature": 0}:
        output = tiny_lab.model.generate(prefix, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, -6:]
        assert ids_of(branch)[5:] == output.tolist()


@pytest.mark.parametrize("end", ["end of text", "stop string"])
def test_steps_that_end_the_text_are_gone_on_from_no_further(tiny_lab, end):
    first = generate(tiny_lab, "The moon", max_new_tokens=6, seed=1)
    if end == "end of text":
        last = replace(first.steps[3], token="<|endoftext|>", id=tiny_lab.tokenizer.eos_token_id)
        found = generate(tiny_lab, "The moon", after=(*first.steps[:3], last))
        assert (len(found.steps), found.finish) == (4, end)
    else:
        stop = text_of(tiny_lab, first.steps[:4])[-2:]
        found = generate(tiny_lab, "The moon", after=first.steps[:4], stop=stop)
        assert (found.steps, found.finish) == (first.steps[:4], end)


def test_a_branch_s_text_is_all_of_it_and_a_stop_string_across_its_beginning_is_seen(tiny_lab):
    whole = generate(tiny_lab, "The moon", max_new_tokens=12, seed=7)
    sampling = {"temperature": 0}
    branch = generate(tiny_lab, "The moon", after=whole.steps[:5], max_new_tokens=7, **sampling)
    assert branch.text == tiny_lab.tokenizer.decode(ids_of(branch))
    before = len(text_of(tiny_lab, whole.steps[:5]))
    stop = branch.text[before - 1 : before + 1]
    if stop in branch.text[:before]:
        pytest.fail("choose another seed: the stop string stands before")
    found = generate(tiny_lab, "The moon", after=whole.steps[:5], max_new_tokens=7, stop=stop, **sampling)
    assert (found.finish, found.text) == ("stop string", branch.text[: branch.text.index(stop)])


def test_the_first_of_two_stop_strings_ends_the_text(tiny_lab):
    whole = generate(tiny_lab, "The moon", max_new_tokens=20, seed=5)
    step = next(i for i, one in enumerate(whole.steps) if len(one.token.strip()) >= 2 and i > 1)
    token = whole.steps[step].token.strip()
    first = token[:2]
    found = generate(tiny_lab, "The moon", max_new_tokens=20, seed=5, stop=[f"{token}", first])
    assert found.text == whole.text[: min(whole.text.find(each) for each in (token, first))]


def test_instead_takes_alternatives_alone_and_gives_their_rank(tiny_lab):
    step = generate(tiny_lab, "The moon", max_new_tokens=1, temperature=0).steps[0]
    assert [step.with_token(each.id).rank for each in step.alternatives] == list(range(1, 11))
    assert step.with_token(step.id) == step
    with pytest.raises(LabError, match="not among this step"):
        step.with_token(next(id for id in range(300) if id not in {each.id for each in step.alternatives}))


@pytest.mark.parametrize("beams", [2, 4])
def test_beam_search_is_transformers_own_and_each_step_is_reported(random_lab, beams):
    lab = random_lab(seed=4)
    ids = lab.encode("The moon")
    options = {"num_beams": beams, "do_sample": False, "length_penalty": 0.0, "pad_token_id": 0}
    output = lab.model.generate(ids[None], max_new_tokens=8, **options)[0, len(ids) :].tolist()
    found = beam_search(lab, "The moon", beams=beams, max_new_tokens=8)
    assert ids_of(found) == output
    greedy = generate(lab, "The moon", max_new_tokens=8, temperature=0)
    assert found.log_probability >= greedy.log_probability - 1e-4
    with torch.no_grad():
        own = lab.model(ids[None]).logits[0, -1].softmax(-1)
    assert found.steps[0].probability == pytest.approx(float(own[output[0]]), rel=1e-4)


def test_beam_search_ends_at_a_stop_string_and_where_the_context_is_full(random_lab):
    lab = random_lab(seed=4)
    whole = beam_search(lab, "The moon", beams=3, max_new_tokens=8)
    stop = whole.text[3:5]
    found = beam_search(lab, "The moon", beams=3, max_new_tokens=8, stop=stop)
    assert (found.finish, found.text) == ("stop string", whole.text[: whole.text.index(stop)])
    full = beam_search(lab, "x" * 61, beams=3, max_new_tokens=8)
    assert (len(full.steps), full.finish) == (3, "context")


def test_beam_search_takes_no_options_that_it_would_ignore(tiny_lab):
    with pytest.raises(TypeError):
        beam_search(tiny_lab, "x", repetition_penalty=2)


@pytest.mark.parametrize("beams", [1, 0, 65, "4"])
def test_bad_number_of_beams_is_refused(tiny_lab, beams):
    with pytest.raises(LabError, match=r"^beams .* 2 to 64"):
        beam_search(tiny_lab, "x", beams=beams)


# ---- where a text begins and ends -----------------------------------------------------------------------------------


def test_empty_prompt_begins_from_end_of_text(tiny_lab):
    found = generate(tiny_lab, "", max_new_tokens=5, temperature=0)
    start = torch.tensor([[tiny_lab.tokenizer.eos_token_id]])
    output = tiny_lab.model.generate(start, max_new_tokens=5, do_sample=False, pad_token_id=0)[0, 1:].tolist()
    assert (found.prompt, ids_of(found)) == ("", output)


@pytest.mark.parametrize("place", [0, 3, 9])
def test_text_ends_before_a_stop_string(tiny_lab, place):
    whole = generate(tiny_lab, "The moon", max_new_tokens=20, seed=5)
    stop = whole.text[place : place + 3]
    found = generate(tiny_lab, "The moon", max_new_tokens=20, seed=5, stop=["not there", stop])
    assert found.finish == "stop string"
    assert found.text == whole.text[: whole.text.index(stop)]
    assert found.steps == whole.steps[: len(found.steps)]
    assert stop in text_of(tiny_lab, found.steps) and stop not in text_of(tiny_lab, found.steps[:-1])


@pytest.mark.parametrize(("window", "prompt"), [(1, "The moon"), (20, "The moon"), (63, "The moon"), (10, "x" * 100)])
def test_past_the_context_the_text_equals_one_that_reads_the_same_window(tiny_lab, window, prompt):
    found = generate(tiny_lab, prompt, max_new_tokens=150, temperature=0, window=window)
    ids, read, shifts = tiny_lab.encode(prompt).tolist(), 0, []
    for i in range(150):  # reads everything again at every step
        read = read + 1 if read else len(ids)
        if read > 64:
            read = window
            shifts.append(i)
        with torch.no_grad():
            ids.append(int(tiny_lab.model(torch.tensor([ids[-read:]])).logits[0, -1].argmax()))
    assert ids_of(found) == ids[-150:]
    assert [i for i, step in enumerate(found.steps) if step.window_shifted] == shifts != []
    assert found.finish == "length"


@pytest.mark.parametrize("place", [5, 58, 59, 60, 70, 94, 120])
def test_going_on_past_a_seam_reads_what_was_read_there(tiny_lab, place):
    options = {"temperature": 0, "repetition_penalty": 1.2, "window": 30}
    whole = generate(tiny_lab, "The moon", max_new_tokens=130, **options)
    assert sum(step.window_shifted for step in whole.steps) >= 2
    again = generate(tiny_lab, "The moon", after=whole.steps[:place], max_new_tokens=130 - place, **options)
    assert ids_of(again) == ids_of(whole)
    assert [step.window_shifted for step in again.steps] == [step.window_shifted for step in whole.steps]
    for ours, theirs in zip(again.steps, whole.steps):
        assert ours.probability == pytest.approx(theirs.probability, rel=1e-3)


def test_prompt_and_branch_that_fill_the_context_are_refused(tiny_lab):
    first = generate(tiny_lab, "x" * 60, max_new_tokens=4, temperature=0)
    full = generate(tiny_lab, "x" * 60, after=first.steps)
    assert (full.steps, full.finish) == (first.steps, "context")
    with pytest.raises(LabError, match="do not fit the context of 64; shorten it, or give a window"):
        generate(tiny_lab, "x" * 60, after=(*first.steps, first.steps[0]))
    assert len(generate(tiny_lab, "x" * 60, after=first.steps, window=30, max_new_tokens=2).steps) == 6
    with pytest.raises(LabError, match="the limit is 1,000,000"):
        generate(tiny_lab, "x" * 1_000_001, window=30)


@pytest.mark.filterwarnings("ignore:bf16 is slow")
def test_generation_says_its_precision_and_bf16_is_near_fp32(tiny_lab):
    exact, near = (
        generate(tiny_lab, "The moon", max_new_tokens=5, temperature=0, precision=name) for name in ("fp32", "bf16")
    )
    assert (exact.precision, near.precision) == ("fp32", "bf16")
    assert near.steps[0].probability != exact.steps[0].probability
    assert near.steps[0].probability == pytest.approx(exact.steps[0].probability, rel=0.1)


@pytest.mark.parametrize("fast", [True, False])
def test_slow_bf16_is_allowed_with_a_warning(tiny_lab, monkeypatch, fast):
    monkeypatch.setattr(precision, "has_fast_bf16", lambda device: fast)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        generate(tiny_lab, "The moon", max_new_tokens=3, precision="bf16")
    assert [str(one.message) for one in seen] == ["bf16 is slow here: the processor has no bf16 units. Use fp32."] * (
        not fast
    )

import copy
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import GPT2Tokenizer

from gpt2lab.errors import LabError
from gpt2lab.inspection.surprisal import surprisal_of_ids
from gpt2lab.model import lab as model
from gpt2lab.model import precision
from gpt2lab.model.lab import Lab, load_model, random_model, token_nll, weights_digest
from gpt2lab.model.precision import autocast, train_attention_in_fp32
from gpt2lab.training.history import read_history
from gpt2lab.training.observation import PROBE

DAMAGE = {
    "weights cut short": lambda folder: cut_short(folder / "model.safetensors"),
    "empty weights": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "heads that do not divide the width": lambda folder: configure(folder, n_head=5),
    "a width that is no number": lambda folder: configure(folder, n_embd="wide"),
    "an unknown activation": lambda folder: configure(folder, activation_function="nonsense"),
    "a vocabulary of another size": lambda folder: configure(folder, vocab_size=999),
    "half a tokenizer": lambda folder: (folder / "tokenizer.json").write_text("{"),
}


@pytest.fixture
def copied(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "copied")


def configure(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-1000])


def random_ids(rows, length, seed=0):
    return torch.randint(300, (rows, length), generator=torch.Generator().manual_seed(seed))


def written_out_nll(gpt2, ids, first):
    """-log of the softmax of all logits, at each token, in float64."""
    with torch.no_grad():
        logits = gpt2(ids).logits.double()
    log_sums = logits.exp().sum(-1).log()
    return torch.tensor(
        [
            [log_sums[b, t - 1] - logits[b, t - 1, ids[b, t]] for t in range(first, ids.shape[1])]
            for b in range(len(ids))
        ]
    )


@pytest.mark.parametrize("at_once", [1, 3 * 300 * 4, 1 << 25])
@pytest.mark.parametrize("first", [1, 2, 17, 23])
def test_token_nll_equals_a_written_out_cross_entropy(tiny_lab, monkeypatch, first, at_once):
    monkeypatch.setattr(model, "LOGITS_AT_ONCE", at_once)
    ids = random_ids(3, 24)
    nll = token_nll(tiny_lab.model, ids, first=first)
    assert (nll.shape, nll.dtype) == ((3, 24 - first), torch.float32)
    torch.testing.assert_close(nll.double(), written_out_nll(tiny_lab.model, ids, first), atol=1e-5, rtol=1e-5)


def test_token_nll_sums_to_the_loss_of_transformers(tiny_lab):
    ids = random_ids(2, 64)
    with torch.no_grad():
        loss = tiny_lab.model(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(token_nll(tiny_lab.model, ids).mean(), loss)


def test_token_nll_holds_no_more_logits_than_allowed(tiny_lab, monkeypatch):
    monkeypatch.setattr(model, "LOGITS_AT_ONCE", 2 * 300 * 5)
    sizes = []
    hook = tiny_lab.model.lm_head.register_forward_hook(lambda module, args, output: sizes.append(output.numel()))
    token_nll(tiny_lab.model, random_ids(2, 24))
    hook.remove()
    assert sizes == [3000, 3000, 3000, 3000, 1800]


@pytest.mark.parametrize(("length", "first"), [(1, 1), (5, 5)])
def test_token_nll_of_nothing_to_score_is_empty(tiny_lab, length, first):
    assert token_nll(tiny_lab.model, random_ids(2, length), first=first).shape == (2, 0)


@pytest.mark.parametrize("training", [False, True])
def test_token_nll_keeps_no_graph_and_leaves_the_mode(random_gpt2, training):
    gpt2 = random_gpt2().train(training)
    assert not token_nll(gpt2, random_ids(1, 8)).requires_grad
    assert all(module.training is training for module in gpt2.modules())


def test_folder_is_loaded_whole_as_a_float32_sdpa_model_in_eval_mode(tiny_lab, random_gpt2, tiny_folder):
    original = random_gpt2().state_dict()
    loaded = tiny_lab.model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in original.items())
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}
    assert tiny_lab.model.config._attn_implementation == "sdpa"
    assert not tiny_lab.model.training
    assert (tiny_lab.name, tiny_lab.device, tiny_lab.context) == (str(tiny_folder), torch.device("cpu"), 64)


def test_half_precision_weights_are_loaded_as_float32(random_gpt2, copied):
    random_gpt2().half().save_pretrained(copied)
    assert {tensor.dtype for tensor in load_file(copied / "model.safetensors").values()} == {torch.float16}
    loaded = load_model(str(copied), device="cpu").model
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(loaded.transformer.wte.weight, random_gpt2().half().float().transformer.wte.weight)


def test_shape_states_the_model_in_a_line(tiny_lab):
    assert tiny_lab.shape == "0.0 M parameters, 2 layers × 4 heads, width 32, 300 tokens, context 64"


def test_tokenizer_larger_than_the_model_is_refused_with_both_sizes(random_gpt2, copied):
    random_gpt2(vocab_size=200, bos_token_id=0, eos_token_id=0).save_pretrained(copied)
    with pytest.raises(
        LabError, match=r"has 300 tokens, as 'Č' with id 200, but the model only 200; save the tokenizer"
    ):
        load_model(str(copied))


def test_tokenizer_without_a_vocabulary_is_refused(copied):
    GPT2Tokenizer(vocab={}, merges=[]).save_pretrained(copied)
    with pytest.raises(LabError, match="tokenizer"):
        load_model(str(copied))


@pytest.mark.parametrize("name", ["transformer.h.1.attn.c_attn.bias", "transformer.wpe.weight"])
def test_weights_that_lack_a_tensor_are_refused_by_its_name(copied, name):
    tensors = load_file(copied / "model.safetensors")
    del tensors[name]
    save_file(tensors, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LabError, match=rf"lack {name} \(1 in all\)"):
        load_model(str(copied))


@pytest.mark.parametrize("n_layer", [1, 3])
def test_weights_of_more_layers_than_are_configured_are_refused_with_both_numbers(random_gpt2, copied, n_layer):
    random_gpt2(n_layer=n_layer + 9).save_pretrained(copied)
    configure(copied, n_layer=n_layer)
    with pytest.raises(LabError, match=rf"have {n_layer + 9} layers, but config\.json says {n_layer}; save the model"):
        load_model(str(copied))


def test_tensors_left_over_that_are_no_layers_do_no_harm(copied, tiny_lab):
    tensors = load_file(copied / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    masks = {f"h.{i}.attn.{name}": torch.ones(1) for i in range(2) for name in ("bias", "masked_bias")}
    save_file(
        bare | masks | {"h.1.extra.weight": torch.ones(1)}, copied / "model.safetensors", metadata={"format": "pt"}
    )
    ids = random_ids(1, 8)
    assert torch.equal(token_nll(load_model(str(copied)).model, ids), token_nll(tiny_lab.model, ids))


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoint_is_refused_by_name_in_one_line(copied, damage):
    DAMAGE[damage](copied)
    with pytest.raises(LabError, match=rf"{copied}.* cannot be loaded as GPT-2: \S") as caught:
        load_model(str(copied))
    assert "\n" not in str(caught.value)


def test_device_that_torch_does_not_know_is_refused_by_name(tiny_folder):
    with pytest.raises(LabError, match="nonsense"):
        load_model(str(tiny_folder), device="nonsense")


def test_encode_adds_nothing_and_decodes_to_the_text(tiny_lab):
    text = " The moon\n\né 🌙 "
    ids = tiny_lab.encode(text)
    assert (ids.ndim, ids.dtype) == (1, torch.int64)
    assert tiny_lab.tokenizer.decode(ids) == text
    assert tiny_lab.encode("").shape == (0,)


def test_encode_prompt_allows_the_context_less_the_room_and_no_more(tiny_lab):
    assert len(tiny_lab.encode_prompt("x" * 64)) == 64
    assert len(tiny_lab.encode_prompt("x" * 60, room=4)) == 60
    with pytest.raises(LabError, match=r"65 tokens; .* reads at most 64: shorten it"):
        tiny_lab.encode_prompt("x" * 65)
    with pytest.raises(LabError, match=r"61 tokens; .* reads at most 64 less 4 to generate"):
        tiny_lab.encode_prompt("x" * 61, room=4)


def test_longest_token_is_counted_in_bytes(tiny_lab, random_gpt2):
    with_moons = copy.deepcopy(tiny_lab.tokenizer)
    with_moons.add_tokens(["🌙" * 50])
    assert 8 <= tiny_lab.longest_token < 30
    assert Lab(random_gpt2(), with_moons, "moons").longest_token == 200


def test_prompt_of_more_bytes_than_the_context_can_hold_is_not_tokenised(random_lab):
    lab = random_lab()
    most = lab.context * lab.longest_token
    counted = Mock(side_effect=lab.tokenizer, get_vocab=lab.tokenizer.get_vocab)
    watched = Lab(lab.model, counted, "random")
    with pytest.raises(
        LabError, match=rf"{most + 1:,} bytes, more than 64 tokens can be; random reads at most 64: short"
    ):
        watched.encode_prompt("x" * (most + 1))
    assert counted.call_count == 0
    with pytest.raises(LabError, match=rf"has {most:,} tokens; random reads at most 64 less 4 to generate"):
        watched.encode_prompt("x" * most, room=4)


def test_device_is_where_the_model_is(random_lab):
    lab = random_lab()
    assert lab.device == torch.device("cpu")
    lab.model.to("meta")
    assert lab.device == torch.device("meta")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", r"the prompt is empty; type at least one character"),
        ("moon \ud83c", r"lone surrogate\) at position 5; remove it"),
        (None, r"of type NoneType; give a string"),
        (["moon"], r"of type list; give a string"),
        (b"moon", r"of type bytes; give a string"),
    ],
)
def test_prompt_that_is_no_text_is_refused_with_what_it_is(tiny_lab, prompt, message):
    with pytest.raises(LabError, match=message):
        tiny_lab.encode_prompt(prompt)


def test_builtin_model_is_there_with_8192_tokens_and_a_context_of_512():
    lab = load_model("builtin", device="cpu")
    assert len(lab.tokenizer) == lab.model.config.vocab_size == 8192
    assert lab.context == 512
    assert lab.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("padding", [0, 5])
def test_attention_in_fp32_is_that_of_sdpa_and_stays_in_fp32_within_autocast(random_gpt2, monkeypatch, padding):
    seen = {}

    def gradient(gpt2, used, name):
        projection = gpt2.transformer.h[0].attn.c_proj
        hook = projection.register_forward_pre_hook(lambda module, args: seen.update({name: args[0].dtype}))
        mask = torch.arange(24) < 24 - padding
        with autocast(used, gpt2.device):
            logits = gpt2(ids, attention_mask=mask.expand(3, -1).long()).logits.float()
        hook.remove()
        gpt2.zero_grad()
        F.cross_entropy(logits[:, : 23 - padding].flatten(0, 1), ids[:, 1 : 24 - padding].flatten()).backward()
        return gpt2.transformer.h[0].attn.c_attn.weight.grad.clone()

    ids, gpt2 = random_ids(3, 24), random_gpt2()
    expected, rounded = gradient(gpt2, "fp32", "fp32"), gradient(gpt2, "bf16", "sdpa")
    train_attention_in_fp32(gpt2)
    assert torch.allclose(gradient(gpt2, "fp32", "fp32"), expected, atol=1e-7)
    error = (gradient(gpt2, "bf16", "short rows") - expected).norm()
    assert error < 1.2 * (rounded - expected).norm()
    monkeypatch.setattr(precision, "SHORT", 24)
    assert torch.equal(gradient(gpt2, "bf16", "long rows"), rounded)
    assert seen == {
        "fp32": torch.float32,
        "sdpa": torch.bfloat16,
        "short rows": torch.float32,
        "long rows": torch.bfloat16,
    }


def test_history_of_the_builtin_model_ends_with_the_model_itself():
    lab, found = load_model("builtin", device="cpu"), read_history("builtin")
    ids = torch.from_numpy(found.ids)
    assert torch.equal(ids, lab.encode(PROBE)) and len(found.steps) >= 20
    assert (found.n_layers, found.n_heads) == (len(lab.model.transformer.h), lab.model.config.n_head)
    first, last, own = found.surprisal[0], found.surprisal[-1], surprisal_of_ids(lab, ids).nll.numpy()
    assert np.nanmean(first) > np.nanmean(last) + 1
    assert abs(np.nanmean(last) - np.nanmean(own)) < 0.3  # the last step's weights, or their average
    assert 1000 < found.change_step("previous_token") <= found.change_step("induction") < 3000


def test_models_loaded_at_the_same_time_are_whole(tiny_folder):
    with ThreadPoolExecutor(4) as pool:
        labs = list(pool.map(load_model, [str(tiny_folder)] * 8))
    for lab in labs:
        assert lab.model.lm_head.weight is lab.model.transformer.wte.weight
        assert torch.equal(lab.model.lm_head.weight, labs[0].model.lm_head.weight)


def test_random_model_has_the_shape_of_the_named_one_and_weights_that_follow_from_the_seed(tiny_folder, tiny_lab):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, again, other = (random_model(str(tiny_folder), seed, device="cpu") for seed in (3, 3, 4))
    assert torch.equal(torch.rand(3), expected)  # the random numbers of the caller are left alone
    assert first.shape == tiny_lab.shape
    assert not first.model.training
    assert first.model.config._attn_implementation == "sdpa"
    digests = [weights_digest(lab.model) for lab in (first, again, other, tiny_lab)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_random_model_needs_no_weights_but_a_tokenizer(copied):
    (copied / "model.safetensors").write_bytes(b"no weights")
    random_model(str(copied))
    (copied / "model.safetensors").unlink()
    assert random_model(str(copied)).context == 64
    for file in copied.glob("*token*"):
        file.unlink()
    with pytest.raises(LabError, match=r"has no tokenizer \(tokenizer\.json"):
        random_model(str(copied))


def test_digest_of_weights_changes_with_any_of_them(random_gpt2):
    gpt2 = random_gpt2()
    before = weights_digest(gpt2)
    assert weights_digest(copy.deepcopy(gpt2)) == before
    for name, weight in gpt2.named_parameters():
        with torch.no_grad():
            kept = weight.view(-1)[-1].clone()
            weight.view(-1)[-1] += 1e-3
            assert weights_digest(gpt2) != before, name
            weight.view(-1)[-1] = kept
    assert weights_digest(gpt2) == before

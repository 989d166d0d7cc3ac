import copy
import gc
import threading
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from gpt2lab.data.blocks import pack, token_ids
from gpt2lab.data.text import load_text, read_articles
from gpt2lab.errors import LabError
from gpt2lab.generation.decoding import Decoder, ShardedDecoder, decoder, has_vnni, int8_layers, linears, packed
from gpt2lab.model.lab import load_model
from gpt2lab.model.precision import Bf16Head, bf16_copy

SHAPES = [
    {},
    {"n_layer": 3, "n_head": 2, "n_embd": 24, "n_positions": 40},
    {"n_inner": 20, "activation_function": "relu"},
    {"scale_attn_weights": False},
    {"scale_attn_by_inverse_layer_idx": True, "n_layer": 3},
    {"tie_word_embeddings": False},
    {"layer_norm_epsilon": 0.1},
]
T = 12
HAS_INT8 = torch.backends.quantized.engine in ("fbgemm", "onednn", "x86")
x86 = pytest.mark.skipif(not HAS_INT8, reason="no int8 kernels")


@pytest.fixture
def model():
    """A function: what differs from the smallest shape → a model with seeded random weights."""

    def make(**changes):
        shape = {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 64, "vocab_size": 300} | changes
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(**shape)).eval()

    return make


def ids_of(batch, length, seed=0):
    return torch.randint(300, (batch, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def stepwise(decoder, ids, first):
    """(B, T - first + 1, V): the logits after the first tokens, and after each that follows."""
    rows = [decoder.read(ids[:, :first])]
    rows += [decoder.read(ids[:, i : i + 1]) for i in range(first, ids.shape[1])]
    return torch.stack(rows, 1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("first", [1, 5, T])
@pytest.mark.parametrize("batch", [1, 3])
def test_logits_equal_those_of_the_model_s_own_forward_pass(model, shape, first, batch):
    one, ids = model(**shape), ids_of(batch, T)
    with torch.no_grad():
        expected = one(ids).logits[:, first - 1 :]
    for reader in (decoder(one, batch, T), ShardedDecoder(one)):
        torch.testing.assert_close(stepwise(reader, ids, first), expected, atol=1e-5, rtol=1e-4)
        assert reader.length == T
    assert isinstance(decoder(one, batch, T), Decoder)


def test_bf16_model_gives_float32_logits_near_its_own(model):
    one, ids = model().bfloat16(), ids_of(1, T)
    with torch.no_grad():
        expected = one(ids).logits[:, 3:].float()
    found = stepwise(Decoder(one, 1, T), ids, 4)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.05)


def test_hooks_of_the_model_s_modules_run(model):
    one = model()
    hook = one.transformer.h[1].attn.c_proj.register_forward_hook(lambda module, args, output: 0 * output)
    ids = ids_of(1, T)
    with torch.no_grad():
        expected = one(ids).logits[:, 3:]
    torch.testing.assert_close(stepwise(Decoder(one, 1, T), ids, 4), expected, atol=1e-5, rtol=1e-4)
    hook.remove()


def test_only_the_first_tokens_may_be_many_and_no_more_than_positions(model):
    reader = Decoder(model(), 1, 20)
    reader.read(ids_of(1, 3))
    with pytest.raises(ValueError, match="2 tokens at once after 3"):
        reader.read(ids_of(1, 2))
    with pytest.raises(ValueError, match="room for 65 tokens; the model has 64 positions"):
        Decoder(model(), 1, 65)


# ---- int8 -----------------------------------------------------------------------------------------------------------


@x86
@pytest.mark.parametrize("rows", [1, 4])
def test_packed_layer_multiplies_by_rounded_weights(model, rows):
    for linear in (*linears(model().transformer.h[0]), model().lm_head):
        weight = linear.weight.detach() if isinstance(linear, torch.nn.Linear) else linear.weight.detach().t()
        scale = weight.abs().amax(1, keepdim=True) / 127
        rounded = (weight / scale).round().clamp(-128, 127) * scale
        x = torch.randn(rows, weight.shape[1], generator=torch.Generator().manual_seed(1))
        bias = None if linear.bias is None else linear.bias.detach()
        expected, found = F.linear(x, rounded, bias), packed(linear)(x)
        step = float(x.max() - x.min()) / (255 if has_vnni() else 127)  # x has 8 bits too, or 7
        bound = step * rounded.abs().sum(1) + 1e-5
        assert bool(((found - expected).abs() <= bound).all())
        assert float((found - expected).abs().max()) > 0


@x86
def test_int8_reads_the_first_tokens_at_full_precision_and_is_off_a_little_after(model):
    one, ids = model(), ids_of(1, T)
    exact, near = (stepwise(Decoder(one, 1, T, precision=name), ids, 6) for name in ("fp32", "int8"))
    assert torch.equal(exact[:, 0], near[:, 0])
    error = (exact - near)[:, 1:].abs().max()
    assert 0 < float(error) < 0.05 * float(exact.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("text", ["sample", "WikiText-2"])
def test_lower_precision_changes_the_loss_little(text, request):
    if text == "sample":
        articles = load_text("sample").split("test")
    else:
        articles = read_articles(request.getfixturevalue("shared_data") / "wikitext-2-raw/wiki.test.raw")[:3]
    lab = load_model("builtin", device="cpu")
    blocks = pack(token_ids(lab.tokenizer, articles), 128)
    ids = torch.stack([torch.as_tensor(blocks[i]["input_ids"]) for i in range(6)])
    logits = {
        name: torch.cat(
            [stepwise(Decoder(lab.model, len(rows), 128, precision=name), rows, 1)[:, :-1] for rows in parts]
        )
        for name, parts in {"fp32": [ids], "bf16": [ids], "int8": ids.split(1)}.items()  # int8 scales a batch as one
        if name != "int8" or HAS_INT8
    }
    logits = {name: found.flatten(0, 1) for name, found in logits.items()}
    nll = {name: float(F.cross_entropy(found, ids[:, 1:].flatten())) for name, found in logits.items()}
    best, second = logits["fp32"].topk(2).values.unbind(-1)
    clear = best - second > 0.5
    assert clear.float().mean() > 0.3
    for precision, limit in {"bf16": 0.004, **({"int8": 0.01} if HAS_INT8 else {})}.items():
        assert 0 < abs(nll[precision] - nll["fp32"]) < limit, precision
        same = logits[precision].argmax(-1) == logits["fp32"].argmax(-1)
        assert bool(same[clear].all()), precision
        assert 1 - 5 * limit < float(same.float().mean()) < 1, precision


@x86
def test_int8_layers_are_made_once_and_again_when_weights_change(model):
    one = model()
    first = int8_layers(one)
    assert int8_layers(one) is first
    assert len(first) == 4 * 2 + 1
    with torch.no_grad():
        one.lm_head.weight.mul_(2)
    again = int8_layers(one)
    assert again is not first
    x = torch.ones(1, 32)
    torch.testing.assert_close(again[one.lm_head](x), 2 * first[one.lm_head](x), rtol=0.05, atol=0.05)


@x86
def test_int8_layers_leave_warnings_and_the_model_as_they_are(model):
    one = model()
    before = {name: weight.clone() for name, weight in one.state_dict().items()}
    filters = list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        threads = [threading.Thread(target=int8_layers, args=(one,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        int8_layers(one)
    assert warnings.filters == filters
    assert all(torch.equal(before[name], weight) for name, weight in one.state_dict().items())


# ---- bf16 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [*SHAPES[:2], {"tie_word_embeddings": False}])
@pytest.mark.parametrize("first", [1, 5])
@pytest.mark.parametrize("batch", [1, 3])
def test_bf16_logits_are_those_of_autocast(model, shape, first, batch):
    one, ids = model(**shape, initializer_range=0.1), ids_of(batch, T)
    with torch.no_grad():
        exact = one(ids).logits[:, first - 1 :]
        with torch.autocast("cpu", torch.bfloat16):
            expected = one(ids).logits[:, first - 1 :].float()
    found = stepwise(Decoder(one, batch, T, precision="bf16"), ids, first)
    assert found.dtype == torch.float32
    assert 0 < (found - exact).abs().max() < 2 * (expected - exact).abs().max() < 0.05 * exact.abs().max()


def test_bf16_logits_far_from_zero_are_not_rounded_to_its_steps():
    torch.manual_seed(0)
    weight, x = torch.randn(300, 64) / 8 - 10, torch.rand(5, 64)  # logits near -320, where bf16 has steps of 2
    error = Bf16Head(weight)(x) - F.linear(x, weight)
    assert 0 < float(error.abs().max()) < 0.05


def test_bf16_copy_is_made_once_and_again_when_weights_change(model):
    one, ids = model(), ids_of(1, T)
    first = bf16_copy(one)
    assert bf16_copy(one) is first
    assert first.transformer.wte.weight is one.transformer.wte.weight
    with torch.no_grad():
        one.transformer.h[1].mlp.c_fc.weight.mul_(3)
        expected = one(ids).logits[:, -1]
    again = bf16_copy(one)
    assert again is not first
    torch.testing.assert_close(Decoder(one, 1, T, precision="bf16").read(ids), expected, atol=0.02, rtol=0.02)


def test_copies_of_lower_precision_leave_the_model_as_it_is_and_are_freed_with_it(model):
    one = model()
    before = copy.deepcopy(one.state_dict())
    held = [weakref.ref(bf16_copy(one)), weakref.ref(one)]
    assert all(torch.equal(before[name], weight) for name, weight in one.state_dict().items())
    assert all(weight.dtype == torch.float32 for weight in one.parameters())
    del one
    gc.collect()
    assert [each() for each in held] == [None, None]


def test_unknown_precision_is_refused_with_the_known_ones(model):
    with pytest.raises(LabError, match="precision 'fp16' is unknown; use fp32, bf16, int8"):
        Decoder(model(), 1, 4, precision="fp16")


def test_int8_where_torch_has_no_kernels_is_refused(model, monkeypatch):
    monkeypatch.setattr(type(torch.backends.quantized), "engine", "qnnpack", raising=False)
    with pytest.raises(LabError, match="int8 runs on x86 processors; the model is on cpu, torch's engine is qnnpack"):
        Decoder(model(), 1, 4, precision="int8")

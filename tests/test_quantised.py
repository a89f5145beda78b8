"""A base in 8 or 4 bits: rounding in closed form and against torchao's, gradient, bytes, files."""

import pytest
import torch
from context_ranks import cases
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import audio_stream, conditioning, debug_model, present, video_stream
from pretend_gpu import GPU, pretend_gpu
from torch.testing import assert_close

from finetune.lora import LoraConfig, base_parameters, inject
from pretrain.model.checkpoint import open_weights, write_model
from pretrain.model.embedders import TokenConv
from pretrain.model.flavors import build_model, flavor
from pretrain.model.quantised import (
    NF4_VALUES,
    QUANTISATIONS,
    QuantisedConv,
    QuantisedLinear,
    held_bytes,
    load_base,
    pack,
    quantise_base,
    unpack,
)

WORST = {"int8": 0.5 / 127, "nf4": (NF4_VALUES[1] - NF4_VALUES[0]) / 2}  # of a row's or block's absmax


@pytest.mark.parametrize("kind", QUANTISATIONS)
@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**6), rows=st.integers(1, 9), blocks=st.integers(1, 3), spread=st.floats(1e-6, 1e6)
)
def test_the_error_is_half_a_step_at_most(kind, seed, rows, blocks, spread):
    weight = torch.randn(rows, 64 * blocks, generator=torch.Generator().manual_seed(seed)) * spread
    error = (unpack(*pack(weight, kind), kind, torch.float32) - weight).abs()
    if kind == "fp8":  # 3 bits of mantissa; below 2^-6 of the scale steps are equal
        scale = weight.abs().amax(1, keepdim=True) / 448
        worst = torch.maximum(weight.abs() * 2**-4, scale * 2**-10)
    else:
        per = 64 if kind == "nf4" else 64 * blocks
        worst = WORST[kind] * weight.unflatten(1, (-1, per)).abs().amax(2).repeat_interleave(per, 1)
    assert bool((error <= worst * 1.0001).all())


@pytest.mark.parametrize("kind", QUANTISATIONS)
def test_what_can_be_held_is_held_exactly_and_zeros_stay(kind):
    values = {
        "int8": torch.arange(-127, 129).clamp_max(127).float() / 127,
        "fp8": torch.tensor([1.0, 0.5, -1.75 / 448, 0.0] * 16),
        "nf4": torch.tensor(NF4_VALUES * 8),
    }[kind]
    weight = torch.stack([values * 3, torch.zeros_like(values)])
    assert_close(unpack(*pack(weight, kind), kind, torch.float32), weight, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", QUANTISATIONS)
def test_a_map_and_its_gradient_are_those_of_the_rounded_weight(kind):
    torch.manual_seed(0)
    plain = torch.nn.Linear(64, 12)
    layer = QuantisedLinear(plain, kind)
    with torch.no_grad():
        plain.weight.copy_(layer.weight)
    saved: list[torch.Tensor] = []
    answers = []
    for module in (plain, layer):
        x = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (saved.append(t), t)[1], lambda t: t):
            saved.clear()
            y = module(x)
        y.square().sum().backward()
        answers.append((y, present(x.grad)))
    assert_close(answers[1], answers[0], rtol=1e-5, atol=1e-5)
    assert {tensor.dtype for tensor in saved} <= {torch.int8, torch.int32, torch.float32}
    assert sum(tensor.numel() for tensor in saved if tensor.dtype == torch.float32) <= 3 * 5 * 12


@pytest.mark.parametrize("name", ["debug", "debug_dual_tower", "debug_unified"])
@pytest.mark.parametrize("kind", QUANTISATIONS)
def test_a_model_answers_as_one_of_the_rounded_weights(kind, name):
    model, rounded = (quantise_base(debug_model(name=name), kind).float() for _ in range(2))
    plain = dict(debug_model(name=name).named_parameters())
    for key, module in list(rounded.named_modules()):
        if isinstance(module, (QuantisedLinear, QuantisedConv)):
            weight = plain[f"{key}.weight"].detach()
            held = unpack(module.packed, module.scales, kind, torch.float32).view_as(weight)
            assert 0 < float((held - weight).norm() / weight.norm()) < 0.15
            rounded.set_submodule(key, _plain(module, held))
    with torch.no_grad():
        for case in ("joint", "padded, one apart, first frame"):
            for found, expected in zip(model(*cases()[case]), rounded(*cases()[case]), strict=True):
                assert_close(found, expected, rtol=1e-4, atol=1e-5)


def _plain(module: QuantisedLinear | QuantisedConv, weight: torch.Tensor) -> torch.nn.Module:
    if isinstance(module, QuantisedConv):
        layer: torch.nn.Module = TokenConv(
            *weight.shape[1::-1], weight.shape[2], bias=module.bias is not None
        )
    else:
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight = torch.nn.Parameter(weight)
    if module.bias is not None:
        layer.bias = module.bias
    return layer


def test_half_of_the_bytes_of_bf16():
    with torch.device("meta"):
        bf16 = build_model(flavor("nava_6b")).to(torch.bfloat16)
        bf16.time.float()
        for kind, most in (("int8", 0.55), ("fp8", 0.55), ("nf4", 0.31)):
            model = quantise_base(build_model(flavor("nava_6b")), kind)
            assert held_bytes(model) <= most * held_bytes(bf16)


@pytest.mark.parametrize("kind", QUANTISATIONS)
def test_loading_quantises_as_quantising_what_was_loaded(kind, tmp_path):
    plain = debug_model(seed=4)
    write_model(tmp_path, "debug", flavor("debug"), {"model": plain.state_dict()}, {})
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in build_model(flavor("debug")).state_dict().items()}
        model = inject(build_model(flavor("debug")), LoraConfig(rank=2, base=kind))
    model.to_empty(device="cpu")
    load_base(base_parameters(model), open_weights(tmp_path, "model", shapes), kind)
    found, expected = base_parameters(model), quantise_base(plain, kind).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_only_the_adapter_is_trained_and_it_stays_fp32():
    model = inject(debug_model(), LoraConfig(rank=2, base="int8"))
    velocity = model(video_stream(), audio_stream(), conditioning())
    (present(velocity.video).square().mean() + present(velocity.audio).square().mean()).backward()
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    assert trained and all(".default." in name for name in trained)
    assert {name for name, value in model.named_parameters() if value.grad is not None} == trained
    assert {model.get_parameter(name).dtype for name in trained} == {torch.float32}


@pytest.mark.parametrize("kind", QUANTISATIONS)
def test_a_quantised_forward_pass_waits_for_nothing_on_a_gpu(kind):
    model, given_case = quantise_base(debug_model(), kind), cases()["joint"]
    with torch.no_grad():
        want = model(*given_case)
    with pretend_gpu() as gpu, torch.no_grad():
        gpu.put(model)
        found = model(*(part.to(GPU) for part in given_case))
        places = gpu.places()
        assert places == ({} if kind != "nf4" else {"send pretrain/model/quantised.py _nf4_values": 1})
        for answer, expected in zip(found, want, strict=True):
            # rounded to bf16 in another order through the blocks
            assert_close(answer.cpu().on_host, expected, rtol=2e-2, atol=5e-2)


def test_what_cannot_be_is_refused():
    model = quantise_base(debug_model(), "int8")
    with pytest.raises(ValueError, match="quantised already"):
        quantise_base(model, "fp8")
    with pytest.raises(ValueError, match="expected int8, fp8, nf4, got 'int3'"):
        quantise_base(debug_model(), "int3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"lora.base: unknown 'int4'"):
        LoraConfig(base="int4")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", QUANTISATIONS)
def test_values_are_torchaos(kind):
    pytest.importorskip("torchao", reason="pip install torchao==0.18.0")
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    torch.manual_seed(0)
    layer = torch.nn.Linear(128, 64, bias=False)
    mine = unpack(*pack(layer.weight, kind), kind, torch.float32)
    if kind == "nf4":
        from torchao.quantization.quantize_.workflows.nf4.nf4_tensor import to_nf4

        # theirs also quantises the scales, to 8 bits
        theirs = to_nf4(layer.weight.detach(), 64, 64).get_original_weight()
        assert float((theirs - mine).norm() / mine.norm()) < 0.01
        return
    config = Int8WeightOnlyConfig(version=2) if kind == "int8" else Float8WeightOnlyConfig()
    quantize_(layer, config)
    theirs = layer.weight.dequantize()
    step = layer.weight.detach().dequantize().abs().amax(1, keepdim=True) / 127
    assert bool(
        ((theirs - mine).abs() <= (1.01 * step if kind == "int8" else 0.07 * mine.abs() + step)).all()
    )

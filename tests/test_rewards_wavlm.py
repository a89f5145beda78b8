"""WavLM-ECAPA: the backbone is the original WavLM, the head is what its definition says, the file is loaded
whole or not at all."""

import importlib.util
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rewards.timbre.ecapa import AttentiveStatistics, EcapaTdnn, Res2, SqueezeExcite
from rewards.timbre.similarity import TimbreSimilarity
from rewards.timbre.wavlm_ecapa import (
    IGNORED,
    PUBLISHED_SHA256,
    WavlmEcapa,
    WavlmEcapaArgs,
    WavlmEcapaEncoder,
    load_net,
    to_ours,
)
from rewards.types import Clip

SMALL = WavlmEcapaArgs(
    hidden=16,
    layers=3,
    heads=4,
    feed_forward=24,
    conv_channels=(8, 8),
    conv_kernels=(10, 3),
    conv_strides=(5, 64),
    position_kernel=16,
    position_groups=4,
    buckets=32,
    max_distance=20,
    ecapa_channels=16,
    pooled=24,
    bottleneck=5,
    embedding=7,
)


def randomise(module: nn.Module, seed: int) -> None:
    """Every parameter and statistic away from its neutral start, so that none can be left out unseen."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if value.dtype.is_floating_point:
            noise = torch.randn(value.shape, generator=generator) * 0.4
            value.copy_(
                noise.abs() + 0.5 if "running_var" in name or name.endswith("original0") else value + noise
            )


def original_wavlm() -> Any:
    """The original WavLM class, which the audiobox_aesthetics wheel carries; without the package's own
    imports."""
    spec = importlib.util.find_spec("audiobox_aesthetics")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("audiobox_aesthetics is not installed (pip install --no-deps audiobox_aesthetics)")
    file = Path(spec.submodule_search_locations[0]) / "model/wavlm.py"
    file_spec = importlib.util.spec_from_file_location("original_wavlm", file)
    assert file_spec and file_spec.loader
    module = importlib.util.module_from_spec(file_spec)
    file_spec.loader.exec_module(module)
    layers = [*zip(SMALL.conv_channels, SMALL.conv_kernels, SMALL.conv_strides, strict=True)]
    config = {
        "extractor_mode": "layer_norm",
        "encoder_layers": SMALL.layers,
        "encoder_embed_dim": SMALL.hidden,
        "encoder_ffn_embed_dim": SMALL.feed_forward,
        "encoder_attention_heads": SMALL.heads,
        "layer_norm_first": True,
        "conv_feature_layers": str(layers),
        "conv_bias": False,
        "conv_pos": SMALL.position_kernel,
        "conv_pos_groups": SMALL.position_groups,
        "relative_position_embedding": True,
        "num_buckets": SMALL.buckets,
        "max_distance": SMALL.max_distance,
        "gru_rel_pos": True,
        "normalize": True,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an older way to write weight norm
        return module.WavLM(module.WavLMConfig(config)).eval()


def original_states(wavlm: Any, waveform: torch.Tensor) -> list[torch.Tensor]:
    """Inputs of all layers and the output, [1, T, D] each, as s3prl collects them."""
    found: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, given: found.append(given[0].transpose(0, 1)))
        for layer in wavlm.encoder.layers
    ]
    with torch.no_grad():
        output = wavlm.extract_features(nn.functional.layer_norm(waveform, waveform.shape[1:]))[0]
    for hook in hooks:
        hook.remove()
    return [*found, output]


ORIGINAL_NAMES = (  # of transformers' parts, in the order they are replaced
    ("feature_projection.layer_norm.", "layer_norm."),
    ("feature_projection.projection.", "post_extract_proj."),
    (".attention.gru_rel_pos_linear.", ".self_attn.grep_linear."),
    (".attention.gru_rel_pos_const", ".self_attn.grep_a"),
    (".attention.rel_attn_embed.", ".self_attn.relative_attention_bias."),
    (".attention.", ".self_attn."),
    (".feed_forward.intermediate_dense.", ".fc1."),
    (".feed_forward.output_dense.", ".fc2."),
    (".conv.weight", ".0.weight"),
    ("pos_conv_embed.conv.parametrizations.weight.original0", "pos_conv.0.weight_g"),
    ("pos_conv_embed.conv.bias", "pos_conv.0.bias"),
    ("pos_conv_embed.conv.parametrizations.weight.original1", "pos_conv.0.weight_v"),
)


def original_name(name: str) -> str:
    for ours, theirs in ORIGINAL_NAMES:
        name = name.replace(ours, theirs)
    if name.startswith("encoder.layers.") and ".layer_norm." in name:
        return name.replace(".layer_norm.", ".self_attn_layer_norm.")
    return name.replace(".layer_norm.", ".2.1.") if name.startswith("feature_extractor.") else name


def published_form(net: WavlmEcapa) -> dict[str, torch.Tensor]:
    """A file's content as the published one has it: the original's names, and tensors that only training
    needs."""
    original = {
        "feature_extract.model.mask_emb": torch.ones(16),
        "loss_calculator.projection.weight": torch.ones(3, 2),
    }
    for name, value in net.state_dict().items():
        part, _, inner = name.partition(".")
        original[
            f"feature_extract.model.{original_name(inner)}"
            if part == "backbone"
            else name.removeprefix("head.")
        ] = value
    return original


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    net = WavlmEcapa(SMALL)
    randomise(net, 2)
    path = tmp_path_factory.mktemp("weights") / "small.pth"
    torch.save({"model": published_form(net), "epoch": 3}, path)
    return path


@pytest.mark.parametrize("length", [3_200, 40_000])  # 9 and 124 steps: within and beyond the nearest buckets
def test_features_are_the_original_wavlms(file, length):
    net, wavlm = load_net(file, SMALL), original_wavlm()
    prefix = "feature_extract.model."
    published = torch.load(file, weights_only=True)["model"]
    wavlm.load_state_dict(
        {name.removeprefix(prefix): value for name, value in published.items() if name.startswith(prefix)}
    )
    waveform = torch.randn(1, length, generator=torch.Generator().manual_seed(length)) * 0.1 + 0.02
    states = original_states(wavlm, waveform)
    assert len(states) == SMALL.layers + 1
    weights = np.exp(net.feature_weight.numpy()) / np.exp(net.feature_weight.numpy()).sum()
    expected = (
        np.tensordot(weights, np.stack([state.numpy() for state in states]), axes=1).transpose(0, 2, 1) + 1e-6
    )
    with torch.no_grad():
        np.testing.assert_allclose(net.features(waveform).numpy(), expected, atol=2e-5)


def test_the_published_file_has_as_many_tensors_as_the_network_wants():
    with torch.device("meta"):
        net = WavlmEcapa(WavlmEcapaArgs())
    assert (
        len(net.state_dict()) == 711 - 2
    )  # the file's 711, without the training speakers and the pretraining mask
    head = {
        name.removeprefix("head."): list(value.shape)
        for name, value in net.state_dict().items()
        if name.startswith("head.")
    }
    assert head["layer1.conv.weight"] == [512, 1024, 5] and head["linear.weight"] == [256, 3072]
    assert head["layer3.Res2Conv1dReluBn.convs.6.weight"] == [64, 64, 3] and head[
        "pooling.linear1.weight"
    ] == [128, 1536, 1]


def test_every_ignored_tensor_has_a_reason_and_no_other_is_dropped():
    named = {
        "loss_calculator.projection.weight",
        "feature_extract.model.mask_emb",
        "feature_extract.model.final_proj.weight",
    }
    assert to_ours(dict.fromkeys(named, torch.ones(1))) == {}
    assert all(IGNORED.values())
    assert set(
        to_ours({"surprise": torch.ones(1), "feature_extract.model.encoder.layers.0.odd": torch.ones(1)})
    ) == {
        "head.surprise",
        "backbone.encoder.layers.0.odd",
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state.pop("pooling.linear2.bias"), "1 missing (head.pooling.linear2.bias)"),
        (lambda state: state.update(extra=torch.ones(1)), "1 unknown (head.extra)"),
        (lambda state: state.update({"feature_weight": torch.zeros(5)}), "feature_weight [5] not [4]"),
    ],
)
def test_another_file_is_refused_in_one_line(file, tmp_path, change, reason):
    content = torch.load(file, weights_only=True)
    change(content["model"])
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError) as error:
        WavlmEcapaEncoder(tmp_path / "other.pth", args=SMALL)
    assert reason in str(error.value) and "\n" not in str(error.value) and "other.pth" in str(error.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"not torch", "not a readable"), ({"weights": 1}, "no dict 'model'"), ([1], "holds a list")],
)
def test_what_is_no_such_file_is_refused_in_one_line(tmp_path, content, reason):
    path = tmp_path / "file.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=reason) as error:
        load_net(path, SMALL)
    assert "\n" not in str(error.value)


def test_batches_and_neighbours_do_not_matter_and_nothing_is_embedded_twice(file, monkeypatch):
    rng = np.random.default_rng(0)
    sounds = [(rng.standard_normal(length) * 0.1).astype(np.float32) for length in (4000, 5000, 4000, 4000)]
    encoder = WavlmEcapaEncoder(file, args=SMALL)
    together = encoder.embed(sounds)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
    for i, sound in enumerate(sounds):
        np.testing.assert_allclose(
            WavlmEcapaEncoder(file, args=SMALL).embed([sound])[0], together[i], atol=1e-5
        )
    monkeypatch.setattr(encoder._net, "forward", lambda _: pytest.fail("embedded again"))
    np.testing.assert_array_equal(encoder.embed(sounds[::-1]), together[::-1])


def test_loudness_and_offset_do_not_matter(file):
    encoder = WavlmEcapaEncoder(file, args=SMALL)
    sound = np.random.default_rng(1).standard_normal(6000).astype(np.float32) * 0.3
    np.testing.assert_allclose(
        encoder.embed([sound]), encoder.embed([sound * 0.5 + 0.1]), atol=2e-3
    )  # layer norm's eps


def test_only_the_published_file_may_be_called_sim(file):
    encoder = WavlmEcapaEncoder(file, args=SMALL)
    assert TimbreSimilarity(encoder).name == "sim_wavlm_ecapa"
    with pytest.raises(ValueError, match="not the published"):
        TimbreSimilarity(encoder, name="sim")
    with pytest.raises(ValueError, match="sha256"):
        WavlmEcapaEncoder(file, PUBLISHED_SHA256, args=SMALL)
    encoder.is_seed_tts = True
    assert TimbreSimilarity(encoder, name="sim").name == "sim"


def test_a_clip_is_scored_end_to_end(file):
    encoder = WavlmEcapaEncoder(file, args=SMALL)
    rng = np.random.default_rng(3)
    mono, reference = ((rng.standard_normal(8000) * 0.1).astype(np.float32) for _ in range(2))
    side = (rng.standard_normal(8000) * 0.1).astype(np.float32)
    clips = [
        Clip(sound, 16_000, references=(reference,))
        for sound in (mono, np.stack([mono + side, mono - side]), np.zeros(8000, np.float32))
    ]
    first, stereo, silent = TimbreSimilarity(encoder).score(clips)
    expected = float(encoder.embed([mono])[0] @ encoder.embed([reference])[0])
    assert first.value == pytest.approx(expected, abs=1e-6) and stereo.value == pytest.approx(
        expected, abs=1e-3
    )
    assert math.isnan(silent.value) and silent.reason == "silent"


def test_attentive_statistics_by_loops():
    pool = AttentiveStatistics(3, 2).eval()
    randomise(pool, 5)
    signal = np.random.default_rng(5).standard_normal((2, 3, 6))
    part = {name: value.double().numpy() for name, value in pool.state_dict().items()}
    for item in range(2):
        scores = np.zeros((3, 6))
        for step in range(6):
            inner = np.tanh(part["linear1.weight"][:, :, 0] @ signal[item, :, step] + part["linear1.bias"])
            scores[:, step] = part["linear2.weight"][:, :, 0] @ inner + part["linear2.bias"]
        answer = pool(torch.tensor(signal, dtype=torch.float32))[item].detach().numpy()
        for channel in range(3):
            weights = np.exp(scores[channel]) / np.exp(scores[channel]).sum()
            mean = sum(weight * value for weight, value in zip(weights, signal[item, channel], strict=True))
            spread = sum(
                weight * (value - mean) ** 2
                for weight, value in zip(weights, signal[item, channel], strict=True)
            )
            assert answer[channel] == pytest.approx(mean, abs=1e-5) and answer[3 + channel] == pytest.approx(
                math.sqrt(spread), abs=1e-4
            )
    constant = pool(torch.full((1, 3, 6), 2.0))[0].detach()
    torch.testing.assert_close(constant, torch.tensor([2.0] * 3 + [math.sqrt(1e-9)] * 3), atol=1e-3, rtol=0)


def test_res2_and_gate_by_explicit_parts():
    block, gate = Res2(16, dilation=3).eval(), SqueezeExcite(4, 3)
    randomise(block, 6)
    randomise(gate, 7)
    signal = torch.randn(1, 16, 20, generator=torch.Generator().manual_seed(1)).double()
    state = block.double().state_dict()
    expected, before = torch.zeros_like(signal), torch.zeros(1, 2, 20, dtype=torch.float64)
    for part in range(7):
        given = nn.functional.pad(signal[:, 2 * part : 2 * part + 2] + before, (3, 3))
        conv, norm = (
            {name.split(".")[2]: state[name] for name in state if name.startswith(f"{kind}.{part}.")}
            for kind in ("convs", "bns")
        )
        value = torch.stack(
            [conv["weight"][:, :, tap] @ given[0, :, 3 * tap : 3 * tap + 20] for tap in range(3)]
        ).sum(dim=0)
        value = (value + conv["bias"][:, None]).clamp(min=0)
        scale = (norm["weight"] / torch.sqrt(norm["running_var"] + 1e-5))[:, None]
        before = ((value - norm["running_mean"][:, None]) * scale + norm["bias"][:, None])[None]
        expected[:, 2 * part : 2 * part + 2] = before
    expected[:, 14:] = signal[:, 14:]
    torch.testing.assert_close(block(signal), expected)

    means = signal[:, :4].float().mean(dim=2)[0]
    inner = (gate.linear1.weight @ means + gate.linear1.bias).clamp(min=0)
    factors = 1 / (1 + torch.exp(-(gate.linear2.weight @ inner + gate.linear2.bias)))
    torch.testing.assert_close(gate(signal[:, :4].float()), signal[:, :4].float() * factors[None, :, None])


def test_the_head_joins_three_blocks_of_growing_reach():
    head = EcapaTdnn(5, 16, 24, 5, 7).eval()
    randomise(head, 8)
    convs = [
        [part.dilation for part in block.modules() if isinstance(part, nn.Conv1d)]
        for block in (head.layer2, head.layer3, head.layer4)
    ]
    assert convs == [[(1,), *[(dilation,)] * 7, (1,)] for dilation in (2, 3, 4)]
    features = torch.randn(1, 5, 30, generator=torch.Generator().manual_seed(2))
    normal = (features - features.mean(dim=2, keepdim=True)) / torch.sqrt(
        features.var(dim=2, unbiased=False, keepdim=True) + 1e-5
    )
    one = head.layer1.bn(torch.relu(head.layer1.conv(normal)))
    two = head.layer2(one)
    three = head.layer3(two)
    joined = torch.relu(head.conv(torch.cat([two, three, head.layer4(three)], dim=1)))
    expected = head.linear(head.bn(head.pooling(joined)))
    torch.testing.assert_close(head(features), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        head(features * 3 + 2), expected, atol=1e-2, rtol=1e-2
    )  # each channel is normalised over time

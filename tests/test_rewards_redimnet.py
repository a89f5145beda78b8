"""ReDimNet: front end and network against slow derivations in numpy; files are loaded whole or refused."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from rewards.timbre.redimnet import ReDimNet, ReDimNetEncoder, load_net, read_config
from rewards.timbre.redimnet_layers import FrequencyGate, Residual2d
from rewards.timbre.redimnet_mel import log_mel, mel_filters, mel_window
from rewards.timbre.similarity import TimbreSimilarity
from rewards.types import Clip

CONFIG: dict[str, Any] = {
    "F": 4,
    "C": 4,
    "block_1d_type": "att",
    "block_2d_type": "convnext_like",
    "group_divisor": 2,
    "out_channels": None,
    "embed_dim": 5,
    "stages_setup": [(1, 1, 1, [(3, 3)], None), (2, 1, 1, [(3, 3)], 2)],
    "hop_length": 160,
    "num_classes": None,
    "spec_params": {"do_spec_aug": False, "freq_mask_width": (0, 6)},
}


def random_net(config: dict[str, Any], seed: int = 0) -> ReDimNet:
    """Every parameter and statistic away from its neutral start."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = ReDimNet(read_config(config, "file")).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, value in net.state_dict().items():
        if value.dtype.is_floating_point:
            noise = torch.randn(value.shape, generator=generator) * 0.3
            value.copy_(noise.abs() + 0.5 if "running_var" in name else value + noise)
    return net


def content(changed: dict[str, torch.Tensor] | None = None) -> dict[str, Any]:
    spec = {
        "spec.torchfbank.1.flipped_filter": torch.tensor([[[-0.97, 1.0]]]),
        "spec.torchfbank.2.spectrogram.window": mel_window(),
        "spec.torchfbank.2.mel_scale.fb": mel_filters(CONFIG["F"]).T.contiguous(),
    }
    return {
        "model_config": CONFIG,
        "state_dict": {**random_net(CONFIG).state_dict(), **spec, **(changed or {})},
    }


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "small.pt"
    torch.save(content(), path)
    return path


def test_front_end_by_its_definition():
    samples = np.random.default_rng(0).standard_normal(1000) * 0.1
    sharp = np.array(
        [samples[i] - 0.97 * samples[abs(i - 1)] for i in range(1000)]
    )  # before the first: the second, mirrored
    window = [0.54 - 0.46 * math.cos(2 * math.pi * i / 400) for i in range(400)]
    mirrored = np.concatenate([sharp[256:0:-1], sharp, sharp[-2:-258:-1]])

    def mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    edges = [700 * (10 ** ((mel(20) + i * (mel(7600) - mel(20)) / 9) / 2595) - 1) for i in range(10)]
    expected = np.zeros((8, 1000 // 160 + 1))
    for step in range(expected.shape[1]):
        piece = mirrored[step * 160 + 56 : step * 160 + 456] * window  # the 400 in the middle of 512
        for band in range(8):
            energy = 0.0
            for k in range(257):
                low, middle, high = edges[band : band + 3]
                hertz = k * 16_000 / 512
                height = max(0.0, min((hertz - low) / (middle - low), (high - hertz) / (high - middle)))
                if height:
                    energy += (
                        height
                        * abs(sum(piece * np.exp(-2j * math.pi * k * (np.arange(400) + 56) / 512))) ** 2
                    )
            expected[band, step] = math.log(energy + 1e-6)
    expected -= expected.mean(axis=1, keepdims=True)
    ours = log_mel(torch.tensor(samples, dtype=torch.float32)[None], 8, 160)[0].numpy()
    np.testing.assert_allclose(ours, expected, atol=2e-3)


def test_filters_are_another_librarys():
    from transformers.audio_utils import mel_filter_bank

    expected = mel_filter_bank(257, 72, 20.0, 7600.0, 16_000, norm=None, mel_scale="htk")
    np.testing.assert_allclose(mel_filters(72).T.numpy(), expected, atol=1e-5)


def gelu(values: np.ndarray) -> np.ndarray:
    return 0.5 * values * (1 + np.vectorize(math.erf)(values / math.sqrt(2)))


def norm(values: np.ndarray, axis: int, eps: float = 1e-6) -> np.ndarray:
    return (values - values.mean(axis=axis, keepdims=True)) / np.sqrt(
        values.var(axis=axis, keepdims=True) + eps
    )


class Slow:
    """The network's parts in numpy, one example, [C, F, T] or [D, T], straight from the definition."""

    def __init__(self, net: ReDimNet) -> None:
        self.state = {name: value.double().numpy() for name, value in net.state_dict().items()}

    def conv(self, name: str, values: np.ndarray, groups: int = 1, stride: int = 1) -> np.ndarray:
        """Length-keeping convolution over the last axis, or two; over frequencies without padding when they
        are joined."""
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        flat = values.ndim == 2
        weight, values = (weight[:, :, None], values[:, None]) if flat else (weight, values)
        _, per_group, height, width = weight.shape
        up = 0 if stride > 1 or height == 1 else height // 2
        padded = np.pad(values, ((0, 0), (up, up), (width // 2, width // 2)))
        rows, steps = (padded.shape[1] - height) // stride + 1, padded.shape[2] - width + 1
        out = np.zeros((len(weight), rows, steps))
        for channel in range(len(weight)):
            first = channel // (len(weight) // groups) * per_group
            for row in range(rows):
                for step in range(steps):
                    seen = padded[
                        first : first + per_group, row * stride : row * stride + height, step : step + width
                    ]
                    out[channel, row, step] = (weight[channel] * seen).sum() + bias[channel]
        return out[:, 0] if flat else out

    def scaled(self, name: str, values: np.ndarray) -> np.ndarray:
        shape = (-1,) + (1,) * (values.ndim - 1)
        return values * self.state[f"{name}.weight"].reshape(shape) + self.state[f"{name}.bias"].reshape(
            shape
        )

    def batch_norm(self, name: str, values: np.ndarray) -> np.ndarray:
        shape = (-1,) + (1,) * (values.ndim - 1)
        mean, var = (
            self.state[f"{name}.running_mean"].reshape(shape),
            self.state[f"{name}.running_var"].reshape(shape),
        )
        return self.scaled(name, (values - mean) / np.sqrt(var + 1e-5))

    def linear(self, name: str, values: np.ndarray) -> np.ndarray:
        return values @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def mixed(self, name: str, signals: list[np.ndarray]) -> np.ndarray:
        weights = np.exp(self.state[f"{name}.w"][0])
        return (weights / weights.sum(axis=0) * np.stack(signals)).sum(axis=0)

    def picture_block(self, name: str, picture: np.ndarray, groups: int) -> np.ndarray:
        inner = gelu(self.batch_norm(f"{name}.norm", self.conv(f"{name}.dwconvs.0", picture, groups)))
        return picture + self.conv(f"{name}.pwconv1", inner)

    def time_block(self, name: str, signal: np.ndarray) -> np.ndarray:
        inner = self.scaled(f"{name}.red_dim_conv.1", norm(self.conv(f"{name}.red_dim_conv.0", signal), 0))
        position = self.conv(f"{name}.tcm.0.conv", inner, groups=len(inner))
        steps = (inner + self.scaled(f"{name}.tcm.0.norm", norm(position, 0))).T
        layer = f"{name}.tcm.1"
        query, key, value = (self.linear(f"{layer}.attention.{kind}_proj", steps) for kind in "qkv")
        size = steps.shape[1] // 4
        heads = []
        for start in range(0, 4 * size, size):
            scores = np.exp(query[:, start : start + size] @ key[:, start : start + size].T / math.sqrt(size))
            heads.append(scores / scores.sum(axis=1, keepdims=True) @ value[:, start : start + size])
        steps = steps + self.linear(f"{layer}.attention.out_proj", np.concatenate(heads, axis=1))
        steps = self.scaled(f"{layer}.layer_norm", norm(steps, 1).T).T
        wide = self.linear(f"{layer}.feed_forward.intermediate_dense", steps)
        wide = 0.5 * wide * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
        steps = steps + self.linear(f"{layer}.feed_forward.output_dense", wide)
        return signal + self.conv(
            f"{name}.exp_dim_conv", self.scaled(f"{layer}.final_layer_norm", norm(steps, 1).T)
        )

    def pool(self, signal: np.ndarray) -> np.ndarray:
        scores = np.exp(self.conv("pool.linear2", np.tanh(self.conv("pool.linear1", signal))))
        weights = scores / scores.sum(axis=1, keepdims=True)
        mean = (weights * signal).sum(axis=1)
        return np.concatenate([mean, np.sqrt((weights * (signal - mean[:, None]) ** 2).sum(axis=1))])


def to_signal(picture: np.ndarray) -> np.ndarray:
    return np.stack([picture[c, f] for f in range(picture.shape[1]) for c in range(picture.shape[0])])


def to_picture(signal: np.ndarray, channels: int) -> np.ndarray:
    return np.stack([signal[c::channels] for c in range(channels)])


def test_network_by_its_definition():
    net = random_net(CONFIG)
    waveform = torch.randn(1, 1600, generator=torch.Generator().manual_seed(4)) * 0.1
    slow, mel = Slow(net), log_mel(waveform, 4, 160).double().numpy()
    stem = to_signal(slow.scaled("backbone.stem.1", norm(slow.conv("backbone.stem.0", mel), 0)))
    first = slow.conv("backbone.stage0.2", to_picture(stem, 4))
    first = to_signal(slow.picture_block("backbone.stage0.3.conv_block", first, groups=2))
    joined = slow.conv(
        "backbone.stage1.2", to_picture(slow.mixed("backbone.stage1.0", [stem, first]), 4), stride=2
    )
    assert joined.shape[:2] == (8, 2)
    second = to_signal(slow.picture_block("backbone.stage1.3.conv_block", joined, groups=4))
    second = slow.time_block("backbone.stage1.5", second)
    pooled = slow.pool(slow.mixed("backbone.fin_wght1d", [stem, first, second]))
    expected = slow.linear("linear", slow.batch_norm("bn", pooled))
    with torch.no_grad():
        np.testing.assert_allclose(net(waveform)[0].numpy(), expected, atol=1e-4)


def test_gate_and_residual_block():
    gate, block = FrequencyGate(3, 32), Residual2d(4, 3, groups=2, gate=True).eval()
    picture = torch.randn(1, 4, 3, 5, generator=torch.Generator().manual_seed(1))
    means = picture[0].mean(dim=(0, 2))
    factors = torch.sigmoid(
        gate.exitation.weight @ torch.relu(gate.squeeze.weight @ means + gate.squeeze.bias)
        + gate.exitation.bias
    )
    torch.testing.assert_close(gate(picture), picture * factors[None, None, :, None])
    with torch.no_grad():
        block.bn2.weight.zero_()  # then nothing but the input is left
    torch.testing.assert_close(block(picture), picture.relu())
    assert isinstance(Residual2d(4, 3, groups=0, gate=False).conv1pw, torch.nn.Identity)


def test_the_default_file_is_model_m_by_the_published_names():
    with torch.device("meta"):
        shapes = {
            name: list(value.shape) for name, value in ReDimNet(read_config({}, "file")).state_dict().items()
        }
    assert shapes["backbone.stem.0.weight"] == [16, 1, 3, 3] and shapes["backbone.fin_wght1d.w"] == [
        1,
        7,
        1152,
        1,
    ]
    assert shapes["backbone.stage0.0.w"] == [1, 1, 1, 1] and shapes["backbone.stage5.0.w"] == [1, 6, 1152, 1]
    assert shapes["backbone.stage5.3.conv_block.dwconvs.0.weight"] == [128, 4, 3, 3]
    assert shapes["backbone.stage5.8.tcm.1.attention.k_proj.weight"] == [288, 288]
    assert shapes["backbone.stage5.8.tcm.0.conv.weight"] == [288, 1, 59]
    assert shapes["pool.linear1.weight"] == [128, 1152, 1] and shapes["linear.weight"] == [192, 2304]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"window": 3}, "model_config.window: unknown"),
        ({"pooling_func": "MHASTP"}, "pooling_func: 'MHASTP'; only 'ASTP'"),
        ({"tf_optimized_arch": True}, "tf_optimized_arch: True"),
        ({"spec_params": {"norm_signal": True}}, "spec_params.norm_signal: True"),
        ({"spec_params": {"n_foo": 1}}, "spec_params.n_foo: unknown"),
        ({"block_1d_type": "gru"}, "block_1d_type: 'gru'; supported are fc, conv, att"),
        ({"stages_setup": [(3, 1, 1, [(3, 3)], None)]}, "stage 0 joins 3 of 4"),
    ],
)
def test_options_that_are_not_supported_are_refused(tmp_path, config, reason):
    torch.save({"model_config": CONFIG | config, "state_dict": {}}, tmp_path / "a.pt")
    with pytest.raises(ValueError) as error:
        load_net(tmp_path / "a.pt")
    assert reason in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (content({"linear.weight": torch.ones(5, 7)}), r"linear.weight \[5, 7\] not \[5, 32\]"),
        (content({"odd": torch.ones(1)}), "1 unknown"),
        (content({"spec.torchfbank.2.mel_scale.fb": torch.ones(257, 4)}), "not the front end"),
        (content({"spec.torchfbank.1.flipped_filter": torch.tensor([[[-0.9, 1.0]]])}), "not the front end"),
        ({"model": {}}, "no model_config and no state_dict"),
    ],
)
def test_another_file_is_refused(tmp_path, changed, reason):
    torch.save(changed, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=reason):
        ReDimNetEncoder(tmp_path / "a.pt")


def test_training_head_is_left_out_and_every_weight_counts(tmp_path, file):
    torch.save(content({"cls_head.2.weight": torch.ones(9, 5)}), tmp_path / "a.pt")
    waveform = torch.randn(1, 5000, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(load_net(tmp_path / "a.pt")(waveform), load_net(file)(waveform))
    net, before = load_net(file), load_net(file)(waveform)
    for name, value in net.named_parameters():
        if (
            name != "backbone.stage0.0.w" and not name.endswith("k_proj.bias") and name != "pool.linear2.bias"
        ):  # softmax takes these out
            kept = value.clone()
            value.add_(torch.linspace(0.5, 1.5, value.numel()).reshape(value.shape))
            assert not torch.allclose(net(waveform), before, atol=1e-6), name
            value.copy_(kept)


def test_batches_do_not_matter_and_only_the_first_30_seconds_count(file):
    rng = np.random.default_rng(0)
    sounds = [(rng.standard_normal(length) * 0.1).astype(np.float32) for length in (4000, 5000, 4000)]
    together = ReDimNetEncoder(file).embed(sounds)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
    for i, sound in enumerate(sounds):
        np.testing.assert_allclose(ReDimNetEncoder(file).embed([sound])[0], together[i], atol=1e-5)
    long = (rng.standard_normal(31 * 16_000) * 0.1).astype(np.float32)
    other = np.concatenate([long[: 30 * 16_000], long[: 3 * 16_000]])
    first, second = ReDimNetEncoder(file).embed([long, other])
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_a_clip_that_cannot_be_embedded_has_no_score(file):
    sound = (np.random.default_rng(1).standard_normal(8000) * 0.1).astype(np.float32)
    scorer = TimbreSimilarity(ReDimNetEncoder(file))
    same, short, silent = scorer.score(
        [Clip(one, 16_000, references=(sound,)) for one in (sound, sound[:100], np.zeros_like(sound))]
    )
    assert scorer.name == "sim_redimnet" and same.value == pytest.approx(1.0, abs=1e-5)
    assert math.isnan(short.value) and "0.2 s are needed" in short.reason
    assert math.isnan(silent.value) and silent.reason == "silent"

"""ECAPA-TDNN (Desplanques et al. 2020), the small form of the WavLM speaker verifier: features over time to
one voice.

Parameter names are those of the published file, so that it loads by name.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

MIN_VARIANCE = 1e-9


class ConvReluNorm(nn.Module):
    """Convolution, ReLU, batch norm, in this order; length is kept. [B, C, T] -> [B, C', T]."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, out_channels, kernel, padding=kernel // 2)
        self.bn = nn.BatchNorm1d(out_channels)

    def forward(self, signal: Tensor) -> Tensor:
        return self.bn(functional.relu(self.conv(signal)))


class Res2(nn.Module):
    """Channels in `scale` groups, convolved one after another, each after adding the previous result.

    The last group passes unchanged.
    """

    def __init__(self, channels: int, dilation: int, scale: int = 8) -> None:
        super().__init__()
        self.width = channels // scale
        convs = [
            nn.Conv1d(self.width, self.width, 3, padding=dilation, dilation=dilation)
            for _ in range(scale - 1)
        ]
        self.convs = nn.ModuleList(convs)
        self.bns = nn.ModuleList([nn.BatchNorm1d(self.width) for _ in convs])

    def forward(self, signal: Tensor) -> Tensor:
        *parts, last = signal.split(self.width, dim=1)
        done: list[Tensor] = []
        for part, conv, norm in zip(parts, self.convs, self.bns, strict=True):
            done.append(norm(functional.relu(conv(done[-1] + part if done else part))))
        return torch.cat([*done, last], dim=1)


class SqueezeExcite(nn.Module):
    """Each channel times a gate in 0..1 that is computed from all channels' means over time."""

    def __init__(self, channels: int, bottleneck: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, bottleneck)
        self.linear2 = nn.Linear(bottleneck, channels)

    def forward(self, signal: Tensor) -> Tensor:
        gate = torch.sigmoid(self.linear2(functional.relu(self.linear1(signal.mean(dim=2)))))
        return signal * gate[:, :, None]


class ResidualBlock(nn.Module):
    """1x1, Res2, 1x1, squeeze and excite, plus the input."""

    def __init__(self, channels: int, dilation: int, bottleneck: int) -> None:
        super().__init__()
        self.Conv1dReluBn1 = ConvReluNorm(channels, channels)
        self.Res2Conv1dReluBn = Res2(channels, dilation)
        self.Conv1dReluBn2 = ConvReluNorm(channels, channels)
        self.SE_Connect = SqueezeExcite(channels, bottleneck)

    def forward(self, signal: Tensor) -> Tensor:
        return signal + self.SE_Connect(self.Conv1dReluBn2(self.Res2Conv1dReluBn(self.Conv1dReluBn1(signal))))


class AttentiveStatistics(nn.Module):
    """Attention-weighted mean and standard deviation over time, per channel: [B, C, T] -> [B, 2 C].

    With `context`, the attention also sees each channel's plain mean and deviation.
    """

    def __init__(
        self, channels: int, bottleneck: int, min_variance: float = MIN_VARIANCE, context: bool = False
    ) -> None:
        super().__init__()
        self.linear1 = nn.Conv1d(channels * (3 if context else 1), bottleneck, 1)
        self.linear2 = nn.Conv1d(bottleneck, channels, 1)
        self.min_variance, self.context = min_variance, context

    def forward(self, signal: Tensor) -> Tensor:
        seen = signal
        if self.context:
            deviation = torch.sqrt(signal.var(dim=2, keepdim=True) + self.min_variance)
            seen = torch.cat(
                [part.expand_as(signal) for part in (signal, signal.mean(dim=2, keepdim=True), deviation)],
                dim=1,
            )
        weights = torch.softmax(self.linear2(torch.tanh(self.linear1(seen))), dim=2)
        mean = (weights * signal).sum(dim=2)
        variance = (weights * signal.square()).sum(dim=2) - mean.square()
        return torch.cat([mean, variance.clamp(min=self.min_variance).sqrt()], dim=1)


class EcapaTdnn(nn.Module):
    """Features [B, F, T], each normalised over its own time -> voice [B, D], not yet of unit length."""

    def __init__(self, features: int, channels: int, pooled: int, bottleneck: int, embedding: int) -> None:
        super().__init__()
        self.layer1 = ConvReluNorm(features, channels, kernel=5)
        self.layer2 = ResidualBlock(channels, 2, bottleneck)
        self.layer3 = ResidualBlock(channels, 3, bottleneck)
        self.layer4 = ResidualBlock(channels, 4, bottleneck)
        self.conv = nn.Conv1d(3 * channels, pooled, 1)
        self.pooling = AttentiveStatistics(pooled, bottleneck)
        self.bn = nn.BatchNorm1d(2 * pooled)
        self.linear = nn.Linear(2 * pooled, embedding)

    def forward(self, features: Tensor) -> Tensor:
        first = self.layer1(functional.instance_norm(features))
        second = self.layer2(first)
        third = self.layer3(second)
        fourth = self.layer4(third)
        joined = functional.relu(self.conv(torch.cat([second, third, fourth], dim=1)))
        return self.linear(self.bn(self.pooling(joined)))

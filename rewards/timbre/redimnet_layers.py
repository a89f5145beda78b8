"""ReDimNet's layers (Yakovlev et al. 2024), which reshape between [B, C, F, T] and [B, F * C, T].

Parameter names are those of the published files, so that they load by name. Source: IDRnD/ReDimNet (MIT).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

EPS = 1e-6
HEADS = 4
POSITION_KERNEL = 59
BLOCKS_1D = ("fc", "conv", "att", "conv+att")
BLOCKS_2D = ("convnext_like", "convnext_like_relu", "basic_resnet", "basic_resnet_fwse")


class ToSignal(nn.Module):
    """[B, C, F, T] -> [B, F * C, T]; the channels of a frequency are adjacent."""

    def forward(self, picture: Tensor) -> Tensor:
        return picture.transpose(1, 2).flatten(1, 2)


class ToPicture(nn.Module):
    """[B, F * C, T] -> [B, C, F, T]."""

    def __init__(self, frequencies: int, channels: int) -> None:
        super().__init__()
        self.sizes = (frequencies, channels)

    def forward(self, signal: Tensor) -> Tensor:
        return signal.unflatten(1, self.sizes).transpose(1, 2)


class WeightedSum(nn.Module):
    """Softmax-weighted sum of signals [B, D, T], with separate weights for every channel of `channels`."""

    def __init__(self, count: int, channels: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, count, channels, 1))

    def forward(self, signals: Sequence[Tensor]) -> Tensor:
        return (torch.softmax(self.w, dim=1) * torch.stack(list(signals), dim=1)).sum(dim=1)


class ChannelNorm(nn.Module):
    """Layer norm over dimension 1, whatever follows."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, values: Tensor) -> Tensor:
        return functional.layer_norm(
            values.movedim(1, -1), self.weight.shape, self.weight, self.bias, EPS
        ).movedim(-1, 1)


class ConvNext(nn.Module):
    """Grouped convolutions side by side, batch norm, activation, 1x1, plus the input. `groups` as in torch;
    length is kept."""

    def __init__(
        self, channels: int, kernels: Sequence[int], dims: int, groups: int, activation: nn.Module
    ) -> None:
        super().__init__()
        conv, norm = (nn.Conv1d, nn.BatchNorm1d) if dims == 1 else (nn.Conv2d, nn.BatchNorm2d)
        self.dwconvs = nn.ModuleList(
            [conv(channels, channels, kernel, padding=kernel // 2, groups=groups) for kernel in kernels]
        )
        self.norm = norm(channels * len(kernels))
        self.act = activation
        self.pwconv1 = conv(channels * len(kernels), channels, 1)

    def forward(self, values: Tensor) -> Tensor:
        return values + self.pwconv1(
            self.act(self.norm(torch.cat([conv(values) for conv in self.dwconvs], dim=1)))
        )


class FrequencyGate(nn.Module):
    """Each frequency times a gate in 0..1 that is computed from all frequencies' means."""

    def __init__(self, frequencies: int, bottleneck: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(frequencies, bottleneck)
        self.exitation = nn.Linear(bottleneck, frequencies)  # as the files spell it

    def forward(self, picture: Tensor) -> Tensor:
        gate = torch.sigmoid(self.exitation(functional.relu(self.squeeze(picture.mean(dim=(1, 3))))))
        return picture * gate[:, None, :, None]


class Residual2d(nn.Module):
    """Two 3x3 convolutions, the second one gated, plus the input.

    With groups, each is grouped and followed by a 1x1 convolution.
    """

    def __init__(self, channels: int, frequencies: int, groups: int, gate: bool) -> None:
        super().__init__()
        pointwise = (lambda: nn.Conv2d(channels, channels, 1)) if groups > 0 else nn.Identity
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False, groups=max(1, groups))
        self.conv1pw = pointwise()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False, groups=max(1, groups))
        self.conv2pw = pointwise()
        self.bn2 = nn.BatchNorm2d(channels)
        self.se = FrequencyGate(frequencies, min(64, max(channels, 32))) if gate else nn.Identity()

    def forward(self, picture: Tensor) -> Tensor:
        inner = self.bn1(functional.relu(self.conv1pw(self.conv1(picture))))
        return functional.relu(self.se(self.bn2(self.conv2pw(self.conv2(inner)))) + picture)


class Block2d(nn.Module):
    """One of BLOCKS_2D. `groups` 0: the convolutions are not grouped."""

    def __init__(self, kind: str, channels: int, frequencies: int, groups: int) -> None:
        super().__init__()
        if kind.startswith("basic_resnet"):
            self.conv_block = Residual2d(channels, frequencies, groups, gate=kind.endswith("fwse"))
        else:
            activation = nn.ReLU() if kind.endswith("relu") else nn.GELU()
            self.conv_block = ConvNext(channels, [3], 2, max(1, groups), activation)

    def forward(self, picture: Tensor) -> Tensor:
        return self.conv_block(picture)


class SelfAttention(nn.Module):
    """Scaled dot-product attention of HEADS heads over [B, T, D]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.v_proj, self.out_proj = nn.Linear(channels, channels), nn.Linear(channels, channels)

    def forward(self, steps: Tensor) -> Tensor:
        query, key, value = (
            part(steps).unflatten(2, (HEADS, -1)).transpose(1, 2)
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(
            functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        )


class EncoderFeedForward(nn.Module):
    """Linear, GELU (tanh form), Linear."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.intermediate_dense, self.output_dense = nn.Linear(channels, inner), nn.Linear(inner, channels)

    def forward(self, steps: Tensor) -> Tensor:
        return self.output_dense(functional.gelu(self.intermediate_dense(steps), approximate="tanh"))


class EncoderLayer(nn.Module):
    """Attention and feed-forward, each added and then normalised: [B, D, T] -> [B, D, T]."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.attention = SelfAttention(channels)
        self.layer_norm = nn.LayerNorm(channels, eps=EPS)
        self.feed_forward = EncoderFeedForward(channels, inner)
        self.final_layer_norm = nn.LayerNorm(channels, eps=EPS)

    def forward(self, signal: Tensor) -> Tensor:
        steps = signal.transpose(1, 2)
        steps = self.layer_norm(steps + self.attention(steps))
        return self.final_layer_norm(steps + self.feed_forward(steps)).transpose(1, 2)


class PositionConv(nn.Module):
    """A long convolution of each channel with itself, normalised, plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(
            channels, channels, POSITION_KERNEL, padding=POSITION_KERNEL // 2, groups=channels
        )
        self.norm = ChannelNorm(channels)

    def forward(self, signal: Tensor) -> Tensor:
        return signal + self.norm(self.conv(signal))


class TimeContext(nn.Module):
    """Bottleneck with one of BLOCKS_1D over time, plus the input: [B, D, T] -> [B, D, T]."""

    def __init__(self, kind: str, channels: int, inner: int) -> None:
        super().__init__()
        self.red_dim_conv = nn.Sequential(nn.Conv1d(channels, inner, 1), ChannelNorm(inner))
        self.tcm = _time_block(kind, inner)
        self.exp_dim_conv = nn.Conv1d(inner, channels, 1)

    def forward(self, signal: Tensor) -> Tensor:
        return signal + self.exp_dim_conv(self.tcm(self.red_dim_conv(signal)))


def _time_block(kind: str, channels: int) -> nn.Sequential:
    def convs(*kernels: Sequence[int]) -> list[nn.Module]:
        return [ConvNext(channels, each, 1, channels, nn.GELU()) for each in kernels]

    if kind == "fc":
        return nn.Sequential(
            nn.Conv1d(channels, 2 * channels, 1),
            ChannelNorm(2 * channels),
            nn.GELU(),
            nn.Conv1d(2 * channels, channels, 1),
        )
    if kind == "conv":
        return nn.Sequential(*convs(*[(7, 15, 31)] * 4))
    if kind == "att":
        return nn.Sequential(PositionConv(channels), EncoderLayer(channels, 2 * channels))
    return nn.Sequential(*convs((7,), (19,), (31,), (59,)), EncoderLayer(channels, channels))

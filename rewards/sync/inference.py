"""A SyncNet for inference: fixed-size passes over many clips, batch norms folded into convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rewards.sync.syncnet import SyncNet
from rewards.sync.windows import WINDOW_FRAMES

WINDOWS_PER_PASS = 64  # for sound and small crops; activations of a pass stay in the cache of a core
PIXELS_PER_PASS, MIN_WINDOWS_PER_PASS = 2**16, 4

TensorFunction = Callable[[Tensor], Tensor]


class Embedder:
    """Embeds crops and sound windows with the weights of `net` at construction, in eval mode.

    Everything runs channels last in `dtype`; bfloat16 is about twice as fast where the processor has it and
    costs two digits. A window's embedding does not depend on what else is in the call, up to the rounding of
    `dtype`.
    """

    def __init__(self, net: SyncNet, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        self.args = net.args
        self.dtype, self.device = dtype, torch.device(device)
        with torch.inference_mode():
            self._lips = self._steps(net.netcnnlip, net.netfclip, reverse=net.args.channel_order == "bgr")
            self._sound = self._steps(net.netcnnaud, net.netfcaud)

    @torch.inference_mode()
    def lips(self, crops: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Embeddings float32 [T - 4, D] of each uint8 [T, S, S, 3] RGB; crops may differ in T.

        Raises ValueError for fewer than 5 frames or a size the network was not made for.
        """
        size = self.args.image_size
        for frames in crops:
            if frames.dtype != np.uint8 or len(frames) < WINDOW_FRAMES or frames.shape[1:] != (size, size, 3):
                raise ValueError(
                    f"lips wants uint8 [T >= {WINDOW_FRAMES}, {size}, {size}, 3], got {frames.dtype} "
                    f"{list(frames.shape)}"
                )
        if not crops:
            return []
        frames = torch.from_numpy(np.concatenate(crops))
        ends = np.cumsum([len(clip) for clip in crops])
        starts = torch.cat(
            [
                torch.arange(end - len(clip), end - WINDOW_FRAMES + 1)
                for clip, end in zip(crops, ends, strict=True)
            ]
        )
        per_pass = max(MIN_WINDOWS_PER_PASS, PIXELS_PER_PASS // size**2)
        passes = [_through(self._lips, self._stacked(frames, some)) for some in starts.split(per_pass)]
        return _divided(passes, [len(clip) - WINDOW_FRAMES + 1 for clip in crops])

    @torch.inference_mode()
    def sound(self, windows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Embeddings float32 [n, D] of each clip's windows [n, 1, 13, 20] of MFCC columns."""
        if not windows:
            return []
        scaled = torch.from_numpy(np.concatenate(windows)).to(self.device) * self.args.sound_scale
        # channels last; concatenate keeps the order of its parts
        every = scaled.to(self.dtype)[:, 0, :, :, None].contiguous()
        passes = [_through(self._sound, some.permute(0, 3, 1, 2)) for some in every.split(WINDOWS_PER_PASS)]
        return _divided(passes, [len(some) for some in windows])

    def _stacked(self, frames: Tensor, starts: Tensor) -> Tensor:
        """The windows at `starts`: [m, 5 * 3, S, S], channels last, colours of a frame adjacent."""
        first = starts[0]
        scaled = frames[first : starts[-1] + WINDOW_FRAMES].to(self.device).float()
        scaled = ((scaled - self.args.pixel_mean) * self.args.pixel_scale).to(self.dtype)
        places = (starts - first).to(self.device)
        return (
            torch.stack([scaled[places + time] for time in range(WINDOW_FRAMES)], dim=3)
            .flatten(3)
            .permute(0, 3, 1, 2)
        )

    def _steps(
        self, tower: nn.Sequential, head: nn.Sequential, reverse: bool = False
    ) -> list[TensorFunction]:
        layers = [layer for layer in (*tower, *head) if not isinstance(layer, nn.ReLU)]
        steps: list[TensorFunction] = []
        for layer, after in pairwise([*layers, None]):
            if isinstance(layer, (nn.Conv2d, nn.Conv3d, nn.Linear)):
                norm = after if isinstance(after, (nn.BatchNorm1d, nn.BatchNorm2d)) else None
                weight, bias = folded(layer, norm)
                # [O, 3, frames, H, W] to frames times colours, as `_stacked` has them
                if isinstance(layer, nn.Conv3d):
                    weight = (
                        (weight.flip(1) if reverse and layer.in_channels == 3 else weight)
                        .transpose(1, 2)
                        .flatten(1, 2)
                    )
                last = layer is tower[-3]
                steps.append(
                    _step(
                        layer,
                        weight.to(self.device, self.dtype),
                        bias.to(self.device, self.dtype),
                        norm is not None,
                        last,
                    )
                )
            elif isinstance(layer, nn.MaxPool2d) and layer.kernel_size != (1, 1):
                steps.append(layer)
        return steps


def folded(layer: nn.Module, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Weight and bias, float64, equivalent to `layer` followed by its batch norm in eval mode."""
    assert isinstance(layer, (nn.Conv2d, nn.Conv3d, nn.Linear)) and layer.bias is not None
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    if norm is None:
        return weight, bias
    assert (
        isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d))
        and norm.running_mean is not None
        and norm.running_var is not None
    )
    gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    bias = (bias - norm.running_mean.double()) * gain + norm.bias.double()
    return weight * gain.view(-1, *[1] * (weight.ndim - 1)), bias.detach()


def _step(layer: nn.Module, weight: Tensor, bias: Tensor, activate: bool, last: bool) -> TensorFunction:
    if isinstance(layer, nn.Linear):
        return lambda x: F.linear(x, weight, bias).relu_() if activate else F.linear(x, weight, bias)
    assert isinstance(layer, (nn.Conv2d, nn.Conv3d))
    if last:  # the kernel covers its whole input: one matrix product
        flat = weight.permute(0, 2, 3, 1).flatten(1).contiguous()
        return lambda x: F.linear(x.permute(0, 2, 3, 1).flatten(1), flat, bias).relu_()
    weight = weight.contiguous(memory_format=torch.channels_last)
    stride, padding = layer.stride[-2:], tuple(int(side) for side in layer.padding[-2:])
    return lambda x: F.conv2d(x, weight, bias, stride, padding).relu_()


def _through(steps: Sequence[TensorFunction], x: Tensor) -> Tensor:
    for step in steps:
        x = step(x)
    return x


def _divided(passes: Sequence[Tensor], sizes: Sequence[int]) -> list[np.ndarray]:
    return [part.numpy() for part in torch.cat(list(passes)).float().cpu().split(list(sizes))]

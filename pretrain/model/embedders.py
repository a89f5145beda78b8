"""From latents, text states and sigmas to embeddings."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.model.args import ModelArgs


class VideoEmbedder(nn.Conv3d):
    """Patches of 1 x p x p latents become tokens: [B, 48, F, H, W] -> [B, F * H/p * W/p, width]."""

    def __init__(self, args: ModelArgs) -> None:
        patch = (1, args.patch_size, args.patch_size)
        super().__init__(args.video_channels, args.width, kernel_size=patch, stride=patch)

    def forward(self, latents: Tensor) -> Tensor:
        batch, channels, frames, rows, columns = latents.shape
        patch = self.kernel_size[1]
        if rows % patch or columns % patch:
            raise ValueError(f"latent size {rows}x{columns} does not split into {patch}x{patch} patches")
        cells = latents.reshape(batch, channels, frames, rows // patch, patch, columns // patch, patch)
        cells = cells.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)  # a matmul: Conv3d is slow on CPU
        return F.linear(cells.to(self.weight.dtype), self.weight.flatten(1), self.bias)


class TokenConv(nn.Conv1d):
    """Length-preserving convolution of [B, L, channels] as a matmul over windows: Conv1d is slow on CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(token_windows(x, self.kernel_size[0]), self.weight.flatten(1), self.bias)


def token_windows(x: Tensor, kernel: int) -> Tensor:
    """[B, L, channels] -> [B, L, channels * kernel], zeros beyond the ends."""
    half = kernel // 2
    return F.pad(x, (0, 0, half, half)).unfold(1, kernel, 1).flatten(2)


class GatedConvMLP(nn.Module):
    """w2(silu(w1 x) * w3 x) with bias-free convolutions along time; x [B, L, width]."""

    def __init__(self, width: int, hidden: int, kernel: int) -> None:
        super().__init__()
        self.w1, self.w3 = (TokenConv(width, hidden, kernel, bias=False) for _ in range(2))
        self.w2 = TokenConv(hidden, width, kernel, bias=False)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        hidden = F.silu(self.w1(x)) * self.w3(x)
        return self.w2(hidden if keep is None else hidden * keep)


class AudioEmbedder(nn.Module):
    """Conv -> SiLU -> gated conv MLP: [B, 128, L] -> [B, L, width]; padding is zeroed before convolving."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.conv = TokenConv(args.audio_channels, args.width, args.audio_embed_kernel)
        self.mlp = GatedConvMLP(args.width, args.audio_embed_hidden, args.audio_embed_kernel)

    def forward(self, latents: Tensor, valid: Tensor | None = None) -> Tensor:
        x = latents.to(self.conv.weight.dtype).transpose(1, 2)
        if valid is None:
            return self.mlp(F.silu(self.conv(x)))
        keep = valid[..., None].to(x.dtype)
        return self.mlp(F.silu(self.conv(x * keep)) * keep, keep)


class TextEmbedder(nn.Sequential):
    """Frozen encoder states [B, S, text_width] -> context [B, S, width]."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__(
            nn.Linear(args.text_width, args.width), nn.GELU("tanh"), nn.Linear(args.width, args.width)
        )

    def forward(self, states: Tensor) -> Tensor:
        return super().forward(states.to(next(self.parameters()).dtype))


def sinusoid(sigmas: Tensor, num_frequencies: int) -> Tensor:
    """[...] sigmas in [0, 1] -> [..., num_frequencies], cosines then sines of 1000 * sigma, in fp64."""
    half = num_frequencies // 2
    frequencies = torch.exp(
        torch.arange(half, dtype=torch.float64, device=sigmas.device) * (-math.log(10000.0) / half)
    )
    angles = 1000.0 * sigmas.double()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1).float()

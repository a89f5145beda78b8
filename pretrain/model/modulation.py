"""The time path: sigmas (noise levels) -> the shifts, scales and gates of every block and head.

All of it lives in one module so that it can be kept in fp32 (its own FSDP unit) under a bf16 model,
and is computed once per sigma group (a latent frame, or a whole stream), never per token.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.model.args import ModelArgs
from pretrain.model.embedders import sinusoid


class StreamModulation(NamedTuple):
    """One stream's modulation; G sigma groups divide the stream's tokens evenly."""

    # per alignment block [6, B, G, 1, width]: shift1 scale1 gate1 shift2 scale2 gate2
    alignment: tuple[Tensor, ...]
    fusion: tuple[Tensor, ...]  # per fusion block [6, B, G, 1, width]
    head: Tensor | None  # [2, B, G, 1, width]: shift, scale; None where the stream has no head


class TimePath(nn.Module):
    """Per-stream sigmas -> StreamModulation; tables are initialised randn / sqrt(width)."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        width, self.num_frequencies = args.width, args.time_frequencies
        self.embedding = nn.Sequential(
            nn.Linear(args.time_frequencies, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.projection = nn.Linear(width, 6 * width)
        tables = {
            "alignment_video": (args.num_alignment_blocks, 6),
            "alignment_audio": (args.num_alignment_blocks, 6),
            "fusion": (args.num_fusion_blocks, 6),
            "head_video": (1, 2),
            "head_audio": (1, 2),
        }
        self.tables = nn.ParameterDict(
            {name: nn.Parameter(torch.empty(*shape, width)) for name, shape in tables.items() if shape[0]}
        )

    def forward(
        self, video_sigma: Tensor | None, audio_sigma: Tensor | None, context_sigma: Tensor | None = None
    ) -> tuple[StreamModulation | None, ...]:
        """Sigmas [B, G] of the present streams -> modulation of (video, audio, context), fp32."""
        return (
            self._modulate(video_sigma, "video"),
            self._modulate(audio_sigma, "audio"),
            self._modulate(context_sigma, "context"),
        )

    def _modulate(self, sigma: Tensor | None, stream: str) -> StreamModulation | None:
        if sigma is None:
            return None
        embedding = self.embedding(sinusoid(sigma, self.num_frequencies))  # [B, G, width]
        projection = self.projection(F.silu(embedding)).unflatten(-1, (6, -1))  # [B, G, 6, width]
        projection = projection.permute(2, 0, 1, 3).unsqueeze(3)
        return StreamModulation(
            alignment=tuple(projection + rows for rows in self._rows(f"alignment_{stream}")),
            fusion=tuple(projection + rows for rows in self._rows("fusion")),
            head=next((embedding[None, :, :, None] + rows for rows in self._rows(f"head_{stream}")), None),
        )

    def _rows(self, name: str) -> list[Tensor]:
        """A table's entries [6 or 2, 1, 1, 1, width], one per block; none without such blocks."""
        return [table[:, None, None, None] for table in self.tables[name]] if name in self.tables else []


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift, in fp32; x [B, N, width], shift, scale [B, G, 1, width], G | N."""
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=eps)
    groups = normed.unflatten(1, (shift.shape[1], -1))
    return torch.addcmul(shift, groups, 1 + scale).flatten(1, 2)


def gated_add(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """x + gate * update; x and update [B, N, width], gate [B, G, 1, width]."""
    shape = (gate.shape[1], -1)
    return torch.addcmul(
        x.unflatten(1, shape), update.unflatten(1, shape).to(x.dtype), gate.to(x.dtype)
    ).flatten(1, 2)

"""Joint self-attention over [video; audio] and cross-attention to the external context.

Context never enters self-attention. Which token may see which is decided once per forward, in `AttentionPlan`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.model.args import ModelArgs
from pretrain.model.rope import rotate

CPU_MATMUL_LIMIT = 1 << 16  # scores per head up to which plain matmuls beat the CPU's flash kernel (3x, forward + backward, 54 tokens)


def scaled_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for q [B, heads, N, d] and k, v [B, heads, S, d]; mask [B, 1, N or 1, S] bool, True = may attend."""
    if q.device.type != "cpu" or q.shape[2] * k.shape[2] > CPU_MATMUL_LIMIT:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = torch.bmm(q.flatten(0, 1) * q.shape[-1] ** -0.5, k.flatten(0, 1).transpose(1, 2)).unflatten(0, q.shape[:2])
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.bmm(scores.softmax(dim=-1).flatten(0, 1), v.flatten(0, 1)).unflatten(0, q.shape[:2])


@dataclass(frozen=True)
class AttentionPlan:
    """How the joint sequence attends: in one call, in one call per modality, or in one call under a mask."""

    num_video: int
    num_audio: int
    apart: bool  # True: no sample joins its modalities, so two calls and no mask
    mask: Tensor | None  # [B, 1, N, N] bool, True = may attend; None = everything valid and joined

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, heads, N, d] each -> [B, heads, N, d]."""
        if not self.apart:
            return scaled_attention(q, k, v, self.mask)
        sizes = (self.num_video, self.num_audio)
        parts = zip(q.split(sizes, dim=2), k.split(sizes, dim=2), v.split(sizes, dim=2), strict=True)
        return torch.cat([scaled_attention(*part, mask=None) for part in parts], dim=2)


def plan_attention(valid: Tensor | None, joined: Tensor, num_video: int, num_audio: int) -> AttentionPlan:
    """Plan for samples with `joined` [B] and, where lengths are mixed, `valid` [B, N] tokens; padding is attended to by nobody."""
    both = num_video > 0 and num_audio > 0
    all_joined = not both or bool(joined.all())
    if valid is None and (all_joined or not bool(joined.any())):
        return AttentionPlan(num_video, num_audio, apart=not all_joined, mask=None)
    is_audio = torch.arange(num_video + num_audio, device=joined.device) >= num_video
    mask = joined[:, None, None] | (is_audio[:, None] == is_audio)
    if valid is not None:
        own = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)  # a padded query sees itself: softmax stays finite
        mask = (mask & valid[:, None, :]) | own
    return AttentionPlan(num_video, num_audio, apart=False, mask=mask[:, None])


class WidthNorm(nn.RMSNorm):
    """RMSNorm; on CPU spelled out, because the composite kernel's backward there takes three times as long."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square() / x.shape[-1]
        return (x * torch.rsqrt(square + self.eps).to(x.dtype)) * self.weight.to(x.dtype)


class Projections(nn.Module):
    """q, k, v, o of one attention, with RMSNorm of q and k over the whole width (not per head)."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.head_dim = args.head_dim
        self.q, self.k, self.v, self.o = (nn.Linear(args.width, args.width) for _ in range(4))
        self.norm_q, self.norm_k = (WidthNorm(args.width, eps=args.eps) for _ in range(2))

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))

    def rotated_qkv(self, x: Tensor, turns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, N, width] and complex turns [N, 1, d // 2] -> q, k (turned) and v, each [B, N, heads, d]."""
        q, k = self.heads(self.norm_q(self.q(x))), self.heads(self.norm_k(self.k(x)))
        return rotate(q, turns), rotate(k, turns), self.heads(self.v(x))

    def cross(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """Attend from x [B, N, width] to context [B, S, width] under mask [B, 1, 1, S]."""
        q, k = self.heads(self.norm_q(self.q(x))), self.heads(self.norm_k(self.k(context)))
        v = self.heads(self.v(context))
        out = scaled_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask)
        return self.o(out.transpose(1, 2).flatten(2))

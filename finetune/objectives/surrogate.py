"""PPO's clipped surrogate on log-ratios (Schulman et al. 2017), for grpo and awm."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_loss(log_ratio: Tensor, advantage: Tensor, clip_range: float, max_advantage: float) -> Tensor:
    """max(-A r, -A clip(r, 1 - c, 1 + c)) with clamped A; log_ratio and advantage broadcast."""
    ratio, limited = torch.exp(log_ratio), advantage.clamp(-max_advantage, max_advantage)
    return torch.maximum(-limited * ratio, -limited * ratio.clamp(1 - clip_range, 1 + clip_range))


def clipped(log_ratio: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """Bool: the clip holds this step's gradient back."""
    # expm1: small clip ranges leave few digits of exp(x) - 1 in fp32
    moved = torch.expm1(log_ratio)
    return ((moved > clip_range) & (advantage > 0)) | ((moved < -clip_range) & (advantage < 0))

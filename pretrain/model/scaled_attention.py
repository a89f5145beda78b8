"""softmax(q k^T / sqrt(d)) v, by the kernel that is fastest for the device, the precision and the size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Up to which size plain matmuls beat the CPU's flash kernel, forward + backward. Measured on AVX512-BF16, 2
# cores, torch 2.13: bf16 1.3 to 1.8 times as fast from 640 to 4400 tokens (6 times at 54), so there only the
# memory of the scores is a limit (their rounding costs 0.5 % of the output where flash has 0.2 %,
# tests/test_kernels.py); fp32 1.2 times as fast at 640 tokens, the same at 1280, slower from 1760 on.
CPU_BF16_SCORES = 1 << 28  # over batch and heads: 512 MiB
CPU_FP32_SCORES = 1 << 19  # per head
CPU_BF16_SOFTMAX_KEYS = 128


def scaled_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """q [B, heads, N, d] to k, v [B, heads, S, d]; mask [B, 1, N or 1, S] bool, True = may attend."""
    # inductor fails on the strides of matmuls' scores where lengths are symbols
    if q.device.type != "cpu" or torch.compiler.is_compiling() or not _matmuls_are_faster(q, k):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    keys = k.flatten(0, 1).transpose(1, 2)
    scores = torch.baddbmm(
        q.new_zeros(1), q.flatten(0, 1), keys, beta=0, alpha=q.shape[-1] ** -0.5
    ).unflatten(0, q.shape[:2])
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return torch.bmm(_softmax(scores).flatten(0, 1), v.flatten(0, 1)).unflatten(0, q.shape[:2])


def _softmax(scores: Tensor) -> Tensor:
    """Softmax over the last dimension; few keys in fp32: the CPU's bf16 kernel takes 3x as long (28 keys)."""
    if scores.dtype is torch.bfloat16 and scores.shape[-1] < CPU_BF16_SOFTMAX_KEYS:
        return scores.softmax(dim=-1, dtype=torch.float32).to(scores.dtype)
    return scores.softmax(dim=-1)


def _matmuls_are_faster(q: Tensor, k: Tensor) -> bool:
    scores = q.shape[2] * k.shape[2]
    if q.dtype is torch.bfloat16:
        return q.shape[0] * q.shape[1] * scores <= CPU_BF16_SCORES
    return scores <= CPU_FP32_SCORES

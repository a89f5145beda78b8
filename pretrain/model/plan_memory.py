"""Memory per GPU at the peak of a training, LoRA or generation step, by part, from sizes alone."""

from __future__ import annotations

from dataclasses import replace

from pretrain.model.args import ModelArgs
from pretrain.model.flops import ClipShape
from pretrain.model.plan_sampling import generating, rolling_out
from pretrain.model.plan_setup import Setup
from pretrain.model.plan_training import training

RUNTIME_BYTES = 3 * 2**30  # CUDA context, libraries, NCCL's buffers
FRAGMENTATION = 0.05  # of everything allocated within a step


def memory_parts(args: ModelArgs, clip: ClipShape, setup: Setup) -> dict[str, float]:
    """Bytes per GPU at the peak of a step, computed in bf16, by part; they sum to what is needed."""
    ways = {"generate": generating, "rollout": rolling_out}
    parts = ways.get(setup.work, training)(args, clip, setup)
    if setup.on_cpu:
        return parts
    passing = sum(size for name, size in parts.items() if name not in STATES)
    return {**parts, "allowance": RUNTIME_BYTES + FRAGMENTATION * passing}


STATES = ("parameters", "adapters", "gradients", "optimizer", "ema")  # what stays from step to step


def largest_local_batch(args: ModelArgs, clip: ClipShape, setup: Setup, limit_bytes: float) -> int:
    """Clips of the largest micro-batch that fits; 0 = not even one. Memory grows with the batch."""
    if _total(args, clip, setup, 1) > limit_bytes:
        return 0
    low, high = 1, 2
    while _total(args, clip, setup, high) <= limit_bytes:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _total(args, clip, setup, middle) <= limit_bytes else (low, middle)
    return low


def _total(args: ModelArgs, clip: ClipShape, setup: Setup, batch: int) -> float:
    return sum(memory_parts(args, clip, replace(setup, local_batch=batch)).values())

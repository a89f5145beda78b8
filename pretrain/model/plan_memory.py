"""Memory per GPU at the peak of a training, LoRA or generation step, by part, from sizes alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from pretrain.model.args import ModelArgs
from pretrain.model.flops import ClipShape
from pretrain.model.plan_sampling import generating, rolling_out
from pretrain.model.plan_setup import Setup
from pretrain.model.plan_training import training

RUNTIME_BYTES = 3 * 2**30  # CUDA context, libraries, NCCL's buffers
FRAGMENTATION = 0.05  # of everything allocated within a step


def memory_parts(args: ModelArgs, clip: ClipShape, setup: Setup) -> dict[str, float]:
    """Bytes per GPU at the peak of a step, computed in bf16, by part; they sum to what the model needs."""
    ways = {"generate": generating, "rollout": rolling_out}
    parts = ways.get(setup.work, training)(args, clip, setup)
    if setup.on_cpu:
        return parts
    return {**parts, "allowance": allowance(parts)}


STATES = ("parameters", "adapters", "gradients", "optimizer", "ema")  # what stays from step to step


def allowance(parts: Mapping[str, float]) -> float:
    """Bytes that a GPU's libraries and its allocator take beside `parts`."""
    passing = sum(size for name, size in parts.items() if name not in STATES)
    return RUNTIME_BYTES + FRAGMENTATION * passing


# bytes per GPU by part: `memory_parts`, or that with what is beside the model
Memory = Callable[[ModelArgs, ClipShape, Setup], Mapping[str, float]]


def largest_local_batch(
    args: ModelArgs, clip: ClipShape, setup: Setup, limit_bytes: float, memory: Memory = memory_parts
) -> int:
    """Clips of the largest micro-batch that fits; 0 = not even one. Memory grows with the batch."""

    def fits(batch: int) -> bool:
        return sum(memory(args, clip, replace(setup, local_batch=batch)).values()) <= limit_bytes

    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low

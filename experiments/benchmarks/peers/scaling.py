"""How the time of a training step grows with the number of tokens, and how far the count of FLOPs explains
it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from experiments.benchmarks.harness import repeated, summary
from experiments.benchmarks.peers.contestants import ours, training_step
from experiments.benchmarks.peers.shapes import SHAPES

CPU_FRAMES, GPU_FRAMES = (1, 2, 4, 8, 16), (5, 10, 19, 37, 61)
_REPEATS = 3


def scaling(device: torch.device) -> list[dict[str, Any]]:
    """Seconds, tokens/s and FLOP/s at growing clip lengths: of `small_video` (64 tokens a latent frame), on a
    GPU of `full_block` (880)."""
    base, lengths = (
        (SHAPES["small_video"], CPU_FRAMES) if device.type == "cpu" else (SHAPES["full_block"], GPU_FRAMES)
    )
    rows = []
    for frames in lengths:
        shape = replace(base, frames=frames)
        torch.manual_seed(0)
        step = training_step(*ours(shape, torch.bfloat16, device))
        seconds = repeated(step, _REPEATS, device)
        rows.append(
            {
                "tokens": shape.tokens,
                "seconds": summary(seconds),
                "tokens_per_s": round(shape.tokens / min(seconds), 1),
                "gflop": round(shape.training_flops() / 1e9, 2),
                "gflops": round(shape.training_flops() / min(seconds) / 1e9, 1),
            }
        )
        print(
            f"{shape.tokens:>7,} tokens  {min(seconds):8.3f} s  {rows[-1]['gflops']:>9,.0f} GFLOP/s",
            flush=True,
        )
    return rows

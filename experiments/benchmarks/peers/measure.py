"""Ours against its peer at one shape and precision: training and generation steps, tokens per second, share
of the peak matmul throughput."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from experiments.benchmarks.harness import peak_matmul_flops, race, ratio, summary
from experiments.benchmarks.peers.contestants import generation_step, ltx2, ours, training_step, wan
from experiments.benchmarks.peers.shapes import Shape


def compare(
    shape: Shape,
    dtype: torch.dtype,
    device: torch.device,
    budget_s: float,
    compiled: bool = False,
    matmul_sides: Sequence[int] = (),
) -> dict[str, Any]:
    """JSON of one shape: both contestants' seconds, our tokens/s and share of the peak of this moment
    (`matmul_sides` as of `peak_matmul_flops`), and the ratios."""
    torch.manual_seed(0)
    peer = ltx2 if shape.audio else wan
    our_model, our_forward = ours(shape, dtype, device, compiled)
    their_model, their_forward = peer(shape, dtype, device, compiled)
    before = peak_matmul_flops(dtype, device, sides=matmul_sides)
    training = race(
        training_step(our_model, our_forward), training_step(their_model, their_forward), budget_s, device
    )
    peak = max(before, peak_matmul_flops(dtype, device, sides=matmul_sides))
    generation = race(generation_step(our_forward), generation_step(their_forward), budget_s / 3, device)
    median = statistics.median(training[0])
    found = {
        "peer": "LTX2VideoTransformer3DModel" if shape.audio else "WanTransformer3DModel",
        "dtype": str(dtype).removeprefix("torch."),
        "compiled": compiled,
        "threads": torch.get_num_threads(),
        "tokens": shape.tokens,
        "parameters": {"ours": _count(our_model), "peer": _count(their_model)},
        "training": {
            "ours_s": summary(training[0]),
            "peer_s": summary(training[1]),
            "times_as_fast": ratio(*training),
        },
        "generation": {
            "ours_s": summary(generation[0]),
            "peer_s": summary(generation[1]),
            "times_as_fast": ratio(*generation),
        },
        "tokens_per_s": round(shape.tokens / median, 1),
        "training_gflop": round(shape.training_flops() / 1e9, 2),
        "ceiling_gflops": round(peak / 1e9, 1),
        "share_of_ceiling": round(shape.training_flops() / median / peak, 3),
    }
    if device.type == "cuda":
        found["peak_memory_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
    del our_model, our_forward, their_model, their_forward
    gc.collect()
    return found


def _count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())

"""Where the time of one training step of the mini goes: `python -m experiments.benchmarks.profile_step --out
FILE`.

Runs the model as a rank sees it (bf16 weights, fp32 time path, one thread) on random clips of the demo's
size, and writes JSON: seconds per step, model FLOPs, the share of the matmul ceiling measured in the same
process, and the operators that cost most.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from experiments.benchmarks.harness import facts
from experiments.doctor import peak_matmul_gflops
from pretrain.files import write_json
from pretrain.model.flavors import flavor
from pretrain.model.flops import ClipShape, block_flops
from pretrain.model.transformer import NavaTransformer
from pretrain.objective import ObjectiveConfig, corrupt, velocity_loss
from pretrain.sampling import lower_precision
from pretrain.types import AVBatch, CleanStream, Conditioning, Task

CLIPS, LATENT_FRAMES, AUDIO_TOKENS, CONTEXT_TOKENS = 16, 7, 26, 24
STEPS, TOP = 7, 15


def random_batch(task: Task) -> AVBatch:
    """Clips of the demo's size."""
    everywhere = torch.ones(CLIPS, dtype=torch.bool)
    conditioning = Conditioning(
        torch.randn(CLIPS, CONTEXT_TOKENS, flavor("mini").text_width),
        everywhere[:, None].expand(-1, CONTEXT_TOKENS),
        torch.randn(CLIPS, 1, 192),
        torch.full((CLIPS, 1), 12),
        everywhere,
        everywhere,
    )
    video = CleanStream(torch.randn(CLIPS, 48, LATENT_FRAMES, 4, 4), torch.full((CLIPS,), LATENT_FRAMES), 6.0)
    audio = CleanStream(torch.randn(CLIPS, 128, AUDIO_TOKENS), torch.full((CLIPS,), AUDIO_TOKENS), 25.0)
    return AVBatch(
        task, video, audio, conditioning, torch.arange(CLIPS), torch.zeros(CLIPS, dtype=torch.int64), 6.0
    )


def training_step(model: NavaTransformer, batch: AVBatch, objective: ObjectiveConfig) -> None:
    """Corrupt, forward, backward; no optimizer."""
    corrupted = corrupt(batch, objective, 0)
    sums = velocity_loss(model(corrupted.video, corrupted.audio, corrupted.conditioning), corrupted)
    sums.loss(sums.video_count, sums.audio_count, objective.audio_weight).backward()
    model.zero_grad()


def profile_task(task: Task) -> dict[str, Any]:
    """Seconds, share of the ceiling and the costliest operators of one step."""
    torch.manual_seed(0)
    args = flavor("mini")
    model = NavaTransformer(args)
    model.init_weights()
    lower_precision(model, torch.bfloat16)
    batch, objective = random_batch(task), ObjectiveConfig()
    training_step(model, batch, objective)
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        training_step(model, batch, objective)
        seconds.append(time.perf_counter() - start)
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        training_step(model, batch, objective)
    operators = sorted(recorded.key_averages(), key=lambda item: -item.self_cpu_time_total)
    total = sum(item.self_cpu_time_total for item in operators)
    video_tokens = 0 if task is Task.T2A else LATENT_FRAMES * 4
    flops = (
        3
        * CLIPS
        * block_flops(args, ClipShape(video=video_tokens, audio=AUDIO_TOKENS, context=CONTEXT_TOKENS))
    )
    ceiling = peak_matmul_gflops(torch.bfloat16)
    median = statistics.median(seconds)
    return {
        "clips": CLIPS,
        "tokens": CLIPS * (video_tokens + AUDIO_TOKENS),
        "seconds": {
            "median": round(median, 4),
            "low": round(min(seconds), 4),
            "high": round(max(seconds), 4),
            "n": STEPS,
        },
        "block_gflop": round(flops / 1e9, 1),
        "ceiling_gflops": round(ceiling, 1),
        "share_of_ceiling": round(flops / 1e9 / median / ceiling, 3),
        "operators": {item.key: round(item.self_cpu_time_total / total, 4) for item in operators[:TOP]},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    found = {str(task): profile_task(task) for task in (Task.T2AV, Task.T2A)}
    write_json(out, {**facts(), **found}, indent=1)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()

"""Where the time of one training step of the mini goes: `python -m experiments.benchmarks.profile_step --out
FILE`.

Runs the model as a rank sees it (bf16 weights, fp32 time path, one thread) on random clips of the demo's
size, and writes JSON: seconds per step, model FLOPs, the share of the peak matmul throughput measured in the
same process, and the operators that cost most.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from experiments.benchmarks.harness import CPU, facts, make_parser, parse, printed, repeated, summary, write
from experiments.benchmarks.random_model import latent_sizes, random_batch, random_clip, random_model
from experiments.doctor import peak_matmul_gflops
from pretrain.model.flavors import flavor
from pretrain.model.flops import block_flops
from pretrain.model.plan import clip_shape
from pretrain.objective import ObjectiveConfig, corrupt, velocity_loss
from pretrain.types import Task

SIZE = {"frames": 25, "height": 64, "width": 64}
CLIPS, CONTEXT_TOKENS = 16, 24
STEPS, TOP = 7, 15
COLUMNS = {"s": "seconds.median", "block GFLOP": "block_gflop", "of the peak": "share_of_ceiling"}


def profile_task(task: Task) -> dict[str, Any]:
    """Seconds, share of the peak and the costliest operators of corrupting, forward and backward; no
    optimizer."""
    torch.manual_seed(0)
    args, objective = flavor("mini"), ObjectiveConfig()
    shape = clip_shape(args, **SIZE, context_tokens=CONTEXT_TOKENS)
    model = random_model(args, torch.bfloat16, CPU)
    batch = random_batch(random_clip(args, shape, latent_sizes(**SIZE)), CLIPS, task, CPU)
    if task is Task.T2A:
        shape = replace(shape, video=0)

    def step() -> None:
        corrupted = corrupt(batch, objective, 0)
        sums = velocity_loss(model(corrupted.video, corrupted.audio, corrupted.conditioning), corrupted)
        sums.loss(sums.video_count, sums.audio_count, objective.audio_weight).backward()
        model.zero_grad()

    seconds = summary(repeated(step, STEPS))
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        step()
    operators = sorted(recorded.key_averages(), key=lambda item: -item.self_cpu_time_total)
    total = sum(item.self_cpu_time_total for item in operators)
    gflop, peak_gflops = 3 * CLIPS * block_flops(args, shape) / 1e9, peak_matmul_gflops(torch.bfloat16)
    return {
        "clips": CLIPS,
        "tokens": CLIPS * (shape.video + shape.audio),
        "seconds": seconds,
        "block_gflop": round(gflop, 1),
        "ceiling_gflops": round(peak_gflops, 1),
        "share_of_ceiling": round(gflop / seconds["median"] / peak_gflops, 3),
        "operators": {item.key: round(item.self_cpu_time_total / total, 4) for item in operators[:TOP]},
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.set_defaults(threads=1)
    options = parse(parser)
    rows = ((str(task), profile_task(task)) for task in (Task.T2AV, Task.T2A))
    write({**facts(), **dict(printed(rows, COLUMNS))}, options.out)


if __name__ == "__main__":
    main()

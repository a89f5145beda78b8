"""How fast the sync reward is, and how near its networks come to the processor: `python -m
experiments.benchmarks.sync_speed`.

Scores clips in memory, all at once and one by one, with random weights, and sets the operations of the layer
table against the rate of a large square matmul of the same type, measured before and after in the same
process. Other load on the machine spoils both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.benchmarks.harness import facts
from experiments.doctor import peak_matmul_gflops
from pretrain.files import write_json
from rewards.sync.crops import MouthBoxes
from rewards.sync.inference import Embedder
from rewards.sync.layers import MINI, PUBLISHED, SyncNetArgs, window_flops
from rewards.sync.scorer import SyncReward
from rewards.sync.syncnet import SyncNet
from rewards.sync.windows import FPS, SAMPLES_PER_FRAME, SyncInput, input_windows
from rewards.types import Clip

SIDE, BOX = 64, (16, 16, 48, 48)
NETWORKS = {"mini": (MINI, 32), "published": (PUBLISHED, 2)}  # clips in a batch
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def random_clip(seconds: float, seed: int) -> Clip:
    """Noise in picture and sound; a network's time does not depend on what it sees."""
    random = np.random.default_rng(seed)
    num = round(seconds * FPS)
    sound = (0.1 * random.standard_normal(num * SAMPLES_PER_FRAME)).astype(np.float32)
    return Clip(
        sound,
        16_000,
        random.integers(0, 256, (num, SIDE, SIDE, 3), dtype=np.uint8),
        fps=FPS,
        mouth_boxes=(BOX,),
    )


def timed(work: Callable[[], object], repeats: int) -> dict[str, float]:
    """Median, lowest and highest seconds of `repeats` calls after one that does not count."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return {"median": statistics.median(seconds), "low": min(seconds), "high": max(seconds)}


def measure(
    args: SyncNetArgs, num_clips: int, seconds: float, dtype: torch.dtype, repeats: int
) -> dict[str, Any]:
    """Clips a second of the whole reward, and the networks alone against the ceiling of `dtype`."""
    torch.manual_seed(0)
    net, crops = SyncNet(args).eval(), MouthBoxes(size=args.image_size)
    reward, embedder = SyncReward(net, crops, dtype=dtype), Embedder(net, dtype)
    clips = [random_clip(seconds, seed) for seed in range(num_clips)]
    inputs = [
        input_windows(SyncInput(crops.crops(clip)[0].pixels, np.asarray(clip.waveform)), args.log_floor)
        for clip in clips
    ]
    pictures, sounds = [item[0] for item in inputs], [item[1] for item in inputs]
    if unscored := [score.reason for score in reward.score(clips) if score.reason]:
        raise ValueError(f"clips of {seconds} s cannot be scored: {unscored[0]}")
    before = peak_matmul_gflops(dtype)
    networks = timed(lambda: (embedder.lips(pictures), embedder.sound(sounds)), repeats)
    batched = timed(lambda: reward.score(clips), repeats)
    single = timed(lambda: [reward.score([clip]) for clip in clips], repeats)
    ceiling = max(before, peak_matmul_gflops(dtype))
    gflop = len(sounds[0]) * sum(window_flops(args).values()) / 1e9
    rate = gflop * num_clips / networks["median"]
    return {
        "clips": num_clips,
        "windows_per_clip": len(sounds[0]),
        "gflop_per_clip": round(gflop, 3),
        "clips_per_s": {
            "batched": round(num_clips / batched["median"], 2),
            "one_by_one": round(num_clips / single["median"], 2),
        },
        "networks_gflops": round(rate, 1),
        "ceiling_gflops": {"before": round(before, 1), "highest": round(ceiling, 1)},
        "networks_share_of_ceiling": round(rate / ceiling, 3),
        "reward_share_of_ceiling": round(gflop * num_clips / batched["median"] / ceiling, 3),
        "seconds": {
            name: {key: round(value, 4) for key, value in times.items()}
            for name, times in (("networks", networks), ("batched", batched), ("one_by_one", single))
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument(
        "--clips", type=int, help="in a batch; 32 for mini and 2 for published where not given"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a clip")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found: dict[str, Any] = {**facts(), "clip_seconds": options.seconds, "repeats": options.repeats}
    for network in options.networks:
        args, usual = NETWORKS[network]
        for dtype in options.dtypes:
            figures = measure(args, options.clips or usual, options.seconds, DTYPES[dtype], options.repeats)
            found[f"{network}_{dtype}"] = figures
            speed, ceiling = figures["clips_per_s"], figures["ceiling_gflops"]["highest"]
            print(f"{network} {dtype}, {figures['gflop_per_clip']} GFLOP a clip of {options.seconds} s:")
            print(
                f"  {speed['batched']} clips/s in batches of {figures['clips']}, {speed['one_by_one']} one "
                "by one"
            )
            share, whole = figures["networks_share_of_ceiling"], figures["reward_share_of_ceiling"]
            print(
                f"  networks {figures['networks_gflops']} of {ceiling} GFLOP/s ({share:.0%}), with crops, "
                f"MFCC and statistics {whole:.0%}"
            )
    if options.out:
        write_json(options.out, found, indent=1)
        print(f"wrote {options.out}")


if __name__ == "__main__":
    main()

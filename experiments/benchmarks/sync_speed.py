"""How fast the sync reward is, and how near its networks come to the processor: `python -m
experiments.benchmarks.sync_speed`.

Scores clips in memory, all at once and one by one, with random weights, and sets the operations of the layer
table against the rate of a large square matmul of the same type, measured before and after in the same
process. Other load on the machine spoils both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from experiments.benchmarks.harness import Row, facts, make_parser, parse, printed, repeated, summary, write
from experiments.doctor import peak_matmul_gflops
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
COLUMNS = {
    "clips/s batched": "clips_per_s.batched",
    "one by one": "clips_per_s.one_by_one",
    "networks GFLOP/s": "networks_gflops",
    "of the peak": "networks_share_of_ceiling",
    "reward of the peak": "reward_share_of_ceiling",
}


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


def measure(
    args: SyncNetArgs, num_clips: int, seconds: float, dtype: torch.dtype, repeats: int
) -> dict[str, Any]:
    """Clips a second of the whole reward, and the networks alone against the peak of `dtype`."""
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
    networks = summary(repeated(lambda: (embedder.lips(pictures), embedder.sound(sounds)), repeats))
    batched = summary(repeated(lambda: reward.score(clips), repeats))
    single = summary(repeated(lambda: [reward.score([clip]) for clip in clips], repeats))
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
        "seconds": {"networks": networks, "batched": batched, "one_by_one": single},
    }


def measure_all(
    networks: Sequence[str], dtypes: Sequence[str], num_clips: int | None, seconds: float, repeats: int
) -> Iterator[Row]:
    """Every network in every type; without `num_clips` a network's usual batch."""
    for network in networks:
        args, usual = NETWORKS[network]
        for dtype in dtypes:
            yield f"{network}_{dtype}", measure(args, num_clips or usual, seconds, DTYPES[dtype], repeats)


def main() -> None:
    parser = make_parser(__doc__, out_required=False, repeats=5)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument(
        "--clips", type=int, help="in a batch; 32 for mini and 2 for published where not given"
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a clip")
    options = parse(parser)
    found: dict[str, Any] = {**facts(), "clip_seconds": options.seconds, "repeats": options.repeats}
    rows = measure_all(options.networks, options.dtypes, options.clips, options.seconds, options.repeats)
    found |= printed(rows, COLUMNS)
    write(found, options.out)


if __name__ == "__main__":
    main()

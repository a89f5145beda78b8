"""Samples a second that the loader reads from disk: `python -m experiments.benchmarks.loader_speed --to
loader_speed.json`.

A set of full-size latents (video 48 x 37 x 44 x 80 in bf16, audio 128 x 151, text 512 x 4096) is written once
below --folder, larger than what is held in memory, and read with and without prefetching, beside a step that
takes --step-s of other work. The files are most likely in the page cache: what is measured is reading,
checksums, casting and collating. `--drop` asks the kernel to forget them first (cold).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarks.harness import facts
from pretrain.data.encoding.writer import LatentWriter
from pretrain.data.stream.loader import Slice, StageLoader
from pretrain.data.stream.sample import Sample
from pretrain.data.stream.sample_set import open_set
from pretrain.files import write_json
from pretrain.progress import track
from pretrain.schedule import StageConfig

SHAPES = {"video": (48, 37, 44, 80), "audio": (128, 151), "text": (512, 4096)}
SET = "full_size"


def write_set(folder: Path, count: int, shard_bytes: int) -> Path:
    """`count` samples of noise."""
    generator = torch.Generator().manual_seed(0)
    with LatentWriter(folder / SET, "noise", "bfloat16", shard_bytes) as writer:
        for index in track(range(count), count, "samples written"):
            video, audio, text = (torch.randn(*shape, generator=generator) for shape in SHAPES.values())
            writer.add(
                Sample(
                    f"noise-{index}",
                    video,
                    audio,
                    6.0,
                    text,
                    torch.tensor([1]),
                    torch.randn(1, 192, generator=generator),
                )
            )
    return folder / SET


def measure(
    folder: Path, batch: int, batches: int, prefetch: int, step_s: float, cold: bool
) -> dict[str, Any]:
    """Seconds of a first and of `batches` micro-batches, and what of them a step waited for."""
    if cold:
        _forget(folder)
    stage = StageConfig(tasks={"T2AV": 1.0}, sets={SET: 1.0}, audio_sets={})
    source = open_set(folder, in_memory_bytes=0, shuffle_shards=2)
    stream = iter(StageLoader(stage, {SET: source}, 0, batch, Slice(0, 1, batch), prefetch))
    start = time.perf_counter()
    next(stream)
    first_s, waited_s = time.perf_counter() - start, 0.0
    start = time.perf_counter()
    for _ in range(batches):
        before = time.perf_counter()
        next(islice(stream, 1))
        waited_s += time.perf_counter() - before
        time.sleep(step_s)
    total_s = time.perf_counter() - start
    stream.close()  # type: ignore[attr-defined]
    return {
        "prefetch": prefetch,
        "step_s": step_s,
        "cold": cold,
        "first_batch_s": round(first_s, 3),
        "samples_per_s": round(batch * batches / total_s, 2),
        "waited_s_per_sample": round(waited_s / (batch * batches), 4),
    }


def _forget(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the set is written; default a temporary folder"
    )
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--step-s", type=float, default=0.2)
    parser.add_argument("--drop", action="store_true")
    parser.add_argument("--to", type=Path, default=Path("loader_speed.json"))
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        folder = write_set(Path(scratch), given.samples, 256 * 2**20)
        num_bytes = sum(path.stat().st_size for path in folder.iterdir())
        runs = [
            measure(folder, given.batch, given.batches, prefetch, step_s, given.drop)
            for step_s in (0.0, given.step_s)
            for prefetch in (0, 2)
        ]
    content = {
        **facts(),
        "shapes": SHAPES,
        "mb_per_sample": round(num_bytes / given.samples / 1e6, 2),
        "batch": given.batch,
        "runs": runs,
    }
    write_json(given.to, content, indent=1)
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()

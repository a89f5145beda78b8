"""Samples a second that the loader reads from disk: `python -m experiments.benchmarks.loader_speed --to
loader_speed.json`.

A set of full-size latents (video 48 x 37 x 44 x 80 in bf16, audio 128 x 151, text 512 x 4096) is written once
below --folder, larger than what is held in memory, and read with and without prefetching, beside a step that
takes --step-s of other work. The files are most likely in the page cache: what is measured is reading,
checksums, casting and collating. `--drop` asks the kernel to forget them first (cold).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarks.harness import Row, facts, make_parser, parse, printed, write
from pretrain.data.encoding.writer import LatentWriter
from pretrain.data.stream.loader import Slice, StageLoader
from pretrain.data.stream.sample import Sample
from pretrain.data.stream.sample_set import open_set
from pretrain.progress import track
from pretrain.schedule import StageConfig
from pretrain.types import SPEAKER_DIM

SHAPES = {"video": (48, 37, 44, 80), "audio": (128, 151), "text": (512, 4096)}
SET = "full_size"
COLUMNS = {
    "first batch s": "first_batch_s",
    "samples/s": "samples_per_s",
    "waited s a sample": "waited_s_per_sample",
}


def write_set(folder: Path, count: int, shard_bytes: int) -> Path:
    """`count` samples of noise."""
    generator = torch.Generator().manual_seed(0)
    with LatentWriter(folder / SET, "noise", "bfloat16", shard_bytes) as writer:
        for index in track(range(count), count, "samples written"):
            video, audio, text = (torch.randn(*shape, generator=generator) for shape in SHAPES.values())
            speaker = torch.randn(1, SPEAKER_DIM, generator=generator)
            writer.add(Sample(f"noise-{index}", video, audio, 6.0, text, torch.tensor([1]), speaker))
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


def measure_all(
    folder: Path, batch: int, batches: int, steps_s: tuple[float, ...], cold: bool
) -> Iterator[Row]:
    """With and without prefetching beside every step."""
    for step_s in steps_s:
        for prefetch in (0, 2):
            yield (
                f"prefetch {prefetch}, step {step_s} s",
                measure(folder, batch, batches, prefetch, step_s, cold),
            )


def main() -> None:
    parser = make_parser(__doc__, out_required=False)
    parser.add_argument("--to", type=Path, dest="out", help="the same as --out")
    parser.add_argument("--folder", type=Path, help="where the set is written; default a temporary folder")
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--step-s", type=float, default=0.2)
    parser.add_argument("--drop", action="store_true")
    parser.set_defaults(out=Path("loader_speed.json"))
    given = parse(parser)
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        folder = write_set(Path(scratch), given.samples, 256 * 2**20)
        num_bytes = sum(path.stat().st_size for path in folder.iterdir())
        rows = measure_all(folder, given.batch, given.batches, (0.0, given.step_s), given.drop)
        runs = [figures for _, figures in printed(rows, COLUMNS)]
    mb_per_sample = round(num_bytes / given.samples / 1e6, 2)
    sizes = {"shapes": SHAPES, "mb_per_sample": mb_per_sample, "batch": given.batch}
    write({**facts(), **sizes, "runs": runs}, given.out)


if __name__ == "__main__":
    main()

"""Curation past memory, measured.

    python -m experiments.benchmarks.curation --out docs/benchmarks/curation.json

First, choices in parts beside the dense greedy one on --small clips, over --seeds seeds: the share of its
value, with a 95 % interval over seeds, and that of random choices. Then --records synthetic records, with
manifest rows and features as large as real ones, through all of `nava curate` but the reading of clips: peak
memory of all its processes together, sampled every 20 ms (RSS; pages of mapped files count in each process
that maps them), time, value, and the share of the best choice's value that is certain. Features are mixtures
of clusters with unequal sizes, seen through a random projection.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from experiments.benchmarks.harness import facts, make_parser, parse, write
from pretrain.data.curate import CurateConfig, choose, choose_rows, facility_location, quality_of
from pretrain.data.curation.looks import Looked
from pretrain.data.curation.parts import PartLimits, choose_in_parts
from pretrain.data.curation.worth import ROWS, embed
from pretrain.data.features import similarities
from pretrain.data.manifest import ManifestRow, read_manifest, write_manifest

FEATURES = (384, 384)  # of picture and sound, as `pretrain.data.features` has them
LATENT = 24
CLIPS_PER_CLUSTER = 40
SMALL_PARTS = PartLimits(clips=500, cells=1_000_000)  # 8 parts of 4,000: as tight as 25 of 100,000


def synthetic(count: int, seed: int, folder: Path | None = None) -> list[np.ndarray]:
    """Feature groups [count, d], as mapped files in `folder` where it is given."""
    rng = np.random.default_rng(seed)
    clusters = max(20, count // CLIPS_PER_CLUSTER)
    centres = 2 * rng.standard_normal((clusters, LATENT))
    labels = rng.choice(clusters, count, p=rng.dirichlet(np.full(clusters, 0.5)))
    seen = [rng.standard_normal((LATENT, width)) / np.sqrt(LATENT) for width in FEATURES]
    groups: list[np.ndarray] = [
        np.lib.format.open_memmap(folder / f"group{number}.npy", "w+", np.float32, (count, width))
        if folder
        else np.empty((count, width), np.float32)
        for number, width in enumerate(FEATURES)
    ]
    for first in range(0, count, ROWS):
        some = labels[first : first + ROWS]
        low = centres[some] + 0.7 * rng.standard_normal((len(some), LATENT))
        for group, projection in zip(groups, seen, strict=True):
            group[first : first + len(some)] = low @ projection
    return groups


def synthetic_rows(count: int, seed: int) -> Iterator[ManifestRow]:
    rng = np.random.default_rng(seed)
    for number in range(count):
        spans = int(rng.integers(1, 4))
        times = tuple(float(span) for span in range(spans))
        text = "A face talks. " + " ".join("<S>some words of a clip<E>" for _ in range(spans))
        quality = {"snr_db": round(float(rng.uniform(20, 60)), 2), "clipped": bool(rng.random() < 0.05)}
        yield ManifestRow(
            f"clip{number:07d}",
            Path(f"clips/{number // 1000:05d}/clip{number:07d}.mp4"),
            24.0,
            4.0,
            1280,
            704,
            text,
            times,
            tuple(time + 0.8 for time in times),
            quality,
            {"words": ["some words of a clip"] * spans, "speakers": ["speaker000"] * spans},
        )


def beside_dense(count: int, budgets: Sequence[int], seeds: int) -> list[dict[str, Any]]:
    """The value of choices in parts over that of the dense greedy one."""
    found: dict[int, list[tuple[float, float]]] = {budget: [] for budget in budgets}
    for seed in range(seeds):
        groups, rng = synthetic(count, seed), np.random.default_rng(seed)
        weights = rng.uniform(0.4, 1.0, count)
        dense = similarities(groups) * weights[None]
        with tempfile.TemporaryDirectory() as folder:
            worth = embed(groups, weights, Path(folder, "vectors.npy"), seed)
            for budget in budgets:
                best = facility_location(dense, choose(dense, budget))
                ours = choose_in_parts(worth, budget, seed, 1, SMALL_PARTS).indices
                random = rng.choice(count, budget, replace=False).tolist()
                values = facility_location(dense, ours) / best, facility_location(dense, random) / best
                found[budget].append(values)
    return [_shares(budget, np.array(pairs)) for budget, pairs in found.items()]


def _shares(budget: int, pairs: np.ndarray) -> dict[str, Any]:
    parted, random = pairs.T
    half = 1.96 * parted.std(ddof=1) / np.sqrt(len(parted)) if len(parted) > 1 else 0.0
    return {
        "budget": budget,
        "share_of_dense": round(float(parted.mean()), 4),
        "interval_95": [round(float(parted.mean() + sign * half), 4) for sign in (-1, 1)],
        "least": round(float(parted.min()), 4),
        "random": round(float(random.mean()), 4),
    }


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """GiB of this process and all below it, at their greatest sum; without what was there before."""
    found, ended, me = {"gib": 0.0}, threading.Event(), psutil.Process()

    def watch() -> None:
        while not ended.wait(0.02):
            found["gib"] = max(found["gib"], _rss(me) / 2**30)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def _rss(process: psutil.Process) -> int:
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_info().rss
        except psutil.Error:
            continue
    return total


def at_scale(count: int, budget: int, nproc: int, seed: int = 0) -> dict[str, Any]:
    """All of `nava curate` after the clips were looked at: manifest, vectors, choice, report, rows."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_manifest(folder / "manifest.jsonl", synthetic_rows(count, seed))
        groups = synthetic(count, seed, folder)
        config, begun_s = CurateConfig(budget=budget, seed=seed), time.monotonic()
        with peak_memory() as peak:
            rows, rejected = read_manifest(folder / "manifest.jsonl")
            looked = Looked(rows, groups, rejected)
            report, chosen = choose_rows(config, looked, folder, nproc)
            write_manifest(folder / "curated.jsonl", [rows[index] for index in chosen])
        quality = float(np.mean([quality_of(row.quality) for row in rows]))
    return {
        "records": count,
        "budget": budget,
        "processes": nproc,
        "peak_gib": round(peak["gib"], 3),
        "dense_kernel_gib": round(4 * count**2 / 2**30, 1),
        "seconds": round(time.monotonic() - begun_s, 1),
        "value": round(report["curated"]["facility_location"], 1),
        "value_95": report["facility_location_95"],
        "value_of_random": round(report["random"]["facility_location"], 1),
        "at_least_of_best": report["at_least_of_best"],
        "quality": round(report["curated"]["quality"], 4),
        "quality_of_all": round(quality, 4),
        "parts": report["parts"],
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--budgets", type=int, nargs="+", default=[1000, 5000, 20_000])
    parser.add_argument("--small", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--nproc", type=int, default=2)
    given = parse(parser)
    beside = beside_dense(given.small, (50, 400, 1000), given.seeds)
    for one in beside:
        print(json.dumps({"clips": given.small, **one}), flush=True)
    large = []
    for budget in given.budgets:
        large.append(at_scale(given.records, budget, given.nproc))
        print(json.dumps(large[-1]), flush=True)
    small = {"clips": given.small, "seeds": given.seeds, "limits": vars(SMALL_PARTS), "choices": beside}
    write({**facts("submodlib-py"), "beside_dense": small, "at_scale": large}, given.out)


if __name__ == "__main__":
    main()

"""Stage `syncnet`: train two small sync networks, a reward and a judge, and test both on unseen clips.

The reward's network is also trained on codec round trips, because generated clips resemble them. The judge's
is not: other words, another seed and real clips only make it independent of what alignment optimises.
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.job import StageJob
from experiments.runs.tracker import SpoolTracker
from experiments.scoring.samples import SourceClip, codec_samples, real_samples
from experiments.scoring.statistics import bootstrap_ratio
from pretrain.codecs.load import load_codecs
from pretrain.files import write_json
from pretrain.storage import move_aside
from rewards.base import Unscorable
from rewards.sync.crops import MouthBoxes
from rewards.sync.inference import Embedder
from rewards.sync.layers import MINI
from rewards.sync.separation import embedded, measures, moved_cuts
from rewards.sync.syncnet import save_syncnet
from rewards.sync.train import SyncTrainConfig, train_syncnet
from rewards.sync.windows import SyncInput, to_25_fps

SETS = {"reward": "talk_a", "judge": "talk_b"}
TEST_SET = "talk_test"
CUTS = {"2s": 45, "1s": 21}  # windows of a clip of 49 or 25 frames at 24 fps
CODEC_CLIPS = 8  # a round trip of four seconds takes some 20 MB
LOGGED = ("true_over_moved", "offset_within_1", "reward_at_0")
LOSS_STEPS = 10  # a reported loss is the mean over so many steps

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SyncFitConfig:
    """How both networks are trained. Raises ValueError for a share outside 0..1 and fewer than 1 process."""

    seed: int = 0
    codec_share: float = 0.5  # of the reward's clips that go through the codec
    train: SyncTrainConfig = field(default_factory=SyncTrainConfig)
    processes: int = 2  # single-threaded; 2 train both networks at the same time

    def __post_init__(self) -> None:
        if not 0 <= self.codec_share <= 1 or self.processes < 1:
            raise ValueError(
                f"codec_share {self.codec_share}, processes {self.processes}: use a share in 0..1 and at "
                "least 1 process"
            )


@dataclass(frozen=True, eq=False)
class _Fit:
    """One training job: its training data, test data and output."""

    role: str
    seed: int
    train: SyncTrainConfig
    clips: list[SyncInput]
    tests: dict[str, list[SyncInput]]
    provenance: dict[str, Any]
    out: Path


def run(job: StageJob, tracker: SpoolTracker) -> None:
    layout = job.layout
    report = fit_sync(job.recipe.syncnet, layout.corpus, layout.codec, layout.syncnet)
    for role in SETS:
        found = report[role]["real"]["2s"]
        tracker.log_metrics({f"{role}/{name}": found[name]["mean"] for name in LOGGED}, 0)
        tracker.log_model(layout.syncnet / role, f"syncnet-{role}", {})
    tracker.log_artifact(str(layout.syncnet / "report.json"))


def fit_sync(config: SyncFitConfig, corpus: Path, codec: Path, out: Path) -> dict[str, Any]:
    """Writes `out`/reward, `out`/judge and `out`/report.json, and returns the report.

    Of each network and each of real and codec clips of talk_test: how often the true sound beats one moved by
    5 to 10 frames, how often the offset is found within a frame, the rank correlation, and the mean reward by
    distance, all with 95 % intervals over clips, on cuts of 2 seconds and of 1. Raises FileNotFoundError or
    ValueError in one line for a corpus or codec that does not fit.
    """
    start = time.perf_counter()
    jobs = _jobs(config, corpus, codec, out)
    log.info("syncnet: clips read in %.1f s", time.perf_counter() - start)
    report: dict[str, Any] = dict(zip(SETS, _run(jobs, config.processes), strict=True))
    for role, found in report.items():
        _log_result(role, found)
    report["seconds"] = round(time.perf_counter() - start, 1)
    write_json(out / "report.json", report, indent=1, allow_nan=False)
    return report


def sync_inputs(samples: Sequence[SourceClip]) -> list[SyncInput]:
    """Mouth crops at 25 fps and sound of one-speaker clips.

    Raises ValueError for a clip without mouth box or sound.
    """
    source, inputs = MouthBoxes(MINI.image_size), []
    for sample in samples:
        try:
            crops = to_25_fps(source.crops(sample.clip)[0].pixels, sample.clip.fps)
        except Unscorable as error:
            raise ValueError(f"{sample.data_id}: {error}; run `nava corpus` again") from None
        if sample.clip.waveform is None:
            raise ValueError(f"{sample.data_id}: no sound; run `nava corpus` again")
        inputs.append(SyncInput(crops, np.asarray(sample.clip.waveform, np.float32)))
    return inputs


def separation(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], num_windows: int, seed: int = 0
) -> dict[str, Any]:
    """All measures of `rewards.sync.separation` as `{mean, low, high, n}`, from (lips, sound) embeddings.

    n counts clips, which are resampled. Raises ValueError for clips that are too short for a cut.
    """
    by_clip = [measures(moved_cuts(v, a, num_windows)) for v, a in pairs]
    answer: dict[str, Any] = {"cuts": sum(measured["spearman"].number for measured in by_clip)}
    for name in by_clip[0]:
        counts = [measured[name] for measured in by_clip]
        interval = bootstrap_ratio(
            [count.total for count in counts], [count.number for count in counts], seed
        )
        answer[name] = interval.as_json()
    return answer


def _jobs(config: SyncFitConfig, corpus: Path, codec: Path, out: Path) -> list[_Fit]:
    talking = {name: _talking(corpus / f"{name}.jsonl") for name in (*SETS.values(), TEST_SET)}
    codecs = load_codecs(codec)
    count = round(config.codec_share * len(talking[SETS["reward"]]))
    trips = [*talking[SETS["reward"]][:count], *talking[TEST_SET]]
    from_codec = [
        clip
        for i in range(0, len(trips), CODEC_CLIPS)
        for clip in sync_inputs(codec_samples(trips[i : i + CODEC_CLIPS], codecs))
    ]
    tests = {"real": sync_inputs(talking[TEST_SET]), "codec": from_codec[count:]}
    jobs = []
    for number, (role, name) in enumerate(SETS.items()):
        through = count if role == "reward" else 0
        clips = from_codec[:through] + sync_inputs(talking[name][through:])
        digest = hashlib.sha256((corpus / f"{name}.jsonl").read_bytes()).hexdigest()
        provenance = {
            "role": role,
            "set": name,
            "clips": len(clips),
            "codec_clips": through,
            "codec_id": codecs.codec_id,
        }
        provenance |= {"manifest_sha256": digest, "seed": config.seed + number, "train": asdict(config.train)}
        jobs.append(_Fit(role, config.seed + number, config.train, clips, tests, provenance, out))
    return jobs


def _talking(manifest: Path) -> list[SourceClip]:
    samples = real_samples(manifest, sys.maxsize).get("talk", [])
    if not samples:
        raise ValueError(f"{manifest}: no talking clips; run `nava corpus` again")
    return samples


def _run(jobs: list[_Fit], processes: int) -> list[dict[str, Any]]:
    if processes == 1:
        return [_fit(job) for job in jobs]
    # spawn, because a fork of a process with torch's threads can deadlock
    with multiprocessing.get_context("spawn").Pool(min(processes, len(jobs))) as pool:
        return pool.map(_fit, jobs, chunksize=1)


def _fit(job: _Fit) -> dict[str, Any]:
    """Train, save and test one network on one thread, so that weights do not depend on the thread count."""
    start, threads = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        losses: list[float] = []
        net = train_syncnet(
            job.train,
            job.clips,
            seed=job.seed,
            progress=lambda step, loss: _progress(job, step, loss, losses, start),
        )
        trained = time.perf_counter()
        net.provenance.update(job.provenance)
        move_aside(job.out / job.role)
        save_syncnet(net, job.out / job.role)
        embedder = Embedder(net)
        pairs = {source: embedded(embedder, clips) for source, clips in job.tests.items()}
        found = {
            source: {length: separation(some, num) for length, num in CUTS.items()}
            for source, some in pairs.items()
        }
    finally:
        torch.set_num_threads(threads)
    means = [round(float(np.mean(losses[i : i + LOSS_STEPS])), 4) for i in range(0, len(losses), LOSS_STEPS)]
    seconds = {"training": round(trained - start, 1), "measuring": round(time.perf_counter() - trained, 1)}
    return {"trained_on": job.provenance, "losses": means, "seconds": seconds, **found}


def _progress(job: _Fit, step: int, loss: float, losses: list[float], start: float) -> None:
    losses.append(loss)
    steps = job.train.steps
    if step * 10 // steps > (step - 1) * 10 // steps:
        spent = time.perf_counter() - start
        left = spent / step * (steps - step)
        print(
            f"sync {job.role}: step {step}/{steps} loss {loss:.3f}, about {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )


def _log_result(role: str, found: dict[str, Any]) -> None:
    for source in ("real", "codec"):
        for length in CUTS:
            numbers = found[source][length]
            log.info(
                "syncnet: %s on %s %s cuts: true over moved %.3f, offset within a frame %.3f, reward %.2f "
                "(n=%d clips)",
                role,
                source,
                length,
                *(numbers[name]["mean"] for name in ("true_over_moved", "offset_within_1", "reward_at_0")),
                numbers["reward_at_0"]["n"],
            )

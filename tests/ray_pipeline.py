"""How near overlapping rounds come to the ideal pipeline: `python tests/ray_pipeline.py [METRICS.JSONL] --out
FILE`.

Real Ray actors on this machine sleep as long as the stages of a measured alignment took (its metrics.jsonl;
the demo's without one). A worker is as fast as the process that was measured. A round's rollout and scoring
are cut into equal tasks, each longer or shorter by a drawn factor (the log knows sums only), the update into
equal parts, one for every rank that trains. Scoring held-out prompts is left out.

The ideal is a bound that no schedule of these tasks can beat. With V(r) the earliest time at which version r
can be published,

    V(0) = 0        V(r + 1) = update(r) + max(V(r), max over q <= r of V(max(q - staleness, 0)) + work(q..r))

since no rollout of rounds q..r starts before the version of round q is there, and update r follows those
before it and all of that work. work(q..r), with `load(times, n)` the least in which n workers do tasks uncut,
is the greatest of: load of all rollouts and the shortest score after them; the shortest rollout and load of
all scores after it; the longest rollout and score of one task.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sleeping_cluster import SleepingCluster, sleeping_cluster

from experiments.benchmarks.harness import facts
from experiments.scoring.statistics import bootstrap_ratio
from orchestration.round import Unit, play_rounds
from pretrain.files import write_json
from pretrain.jsonl import FieldError, scan
from pretrain.progress import track

WANTED_SHARE = 0.85
STALENESSES = (0, 1)
CLIP_BYTES = (
    8 * 4 * (48 * 7 * 4 * 4 + 128 * 26)
)  # of a task: 8 clips of the mini, latents of video and audio in fp32


@dataclass(frozen=True)
class Stages:
    """Seconds of one round in one process."""

    rollout: float
    score: float
    update: float


# `nava demo`'s alignment: rounds of nft, 192 clips each, on two cores of an AMD EPYC.
MEASURED = (
    Stages(5.324, 7.931, 7.844),
    Stages(5.248, 7.671, 7.595),
    Stages(5.063, 7.940, 7.634),
    Stages(4.966, 7.857, 8.199),
    Stages(5.310, 7.625, 7.631),
    Stages(5.180, 7.600, 7.760),
    Stages(5.599, 8.113, 8.029),
    Stages(5.328, 8.195, 9.452),
    Stages(5.600, 7.865, 8.386),
    Stages(5.381, 7.759, 8.195),
    Stages(5.213, 7.660, 8.022),
    Stages(5.371, 7.813, 8.102),
    Stages(5.479, 8.211, 8.115),
)


@dataclass(frozen=True)
class Settings:
    rollout_workers: int = 8
    reward_workers: int = 4
    trainer_ranks: int = 4
    tasks: int = 24  # of a round: prompts, each with all of its clips
    in_flight: int = 1
    max_unscored: int = 8
    spread: float = 0.2  # standard deviation of a task's time over its mean
    rounds: int = 6
    repeats: int = 6
    scale: float = 1.0  # of every time

    def __post_init__(self) -> None:
        counts = (
            "rollout_workers",
            "reward_workers",
            "trainer_ranks",
            "tasks",
            "in_flight",
            "max_unscored",
            "rounds",
            "repeats",
        )
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")
        if self.scale <= 0 or self.spread < 0:
            raise ValueError(
                f"scale is {self.scale} and spread is {self.spread}; give a scale above 0 and a spread of "
                "at least 0"
            )


@dataclass(frozen=True)
class Round:
    """Seconds of each task, and of the update on every rank."""

    rollout: tuple[float, ...]
    score: tuple[float, ...]
    update: float


def stages_of(path: Path) -> tuple[Stages, ...]:
    """Rounds of a run's metrics.jsonl that were rolled out and scored. Raises ValueError where there is none
    or a row is damaged."""
    found = []
    for _, row in scan(path):
        if isinstance(row, FieldError):
            raise ValueError(row.at(path))
        rollout, score, advantage, update = (
            row.get(f"seconds/{name}", 0.0) for name in ("rollout", "score", "advantage", "update")
        )
        if row.get("clips") and min(rollout, score, update) > 0:
            found.append(Stages(rollout, score, advantage + update))
    if not found:
        raise ValueError(
            f"{path}: no row has clips and the seconds of rollout, score and update; give the metrics.jsonl "
            "of an alignment"
        )
    return tuple(found)


def drawn(stages: Sequence[Stages], settings: Settings, repeat: int) -> list[Round]:
    """The rounds of a repeat; the tasks of a round take together what the round took."""
    random = np.random.default_rng((repeat, 0))
    sigma = math.sqrt(math.log1p(settings.spread**2))
    first = repeat * settings.rounds  # so that repeats go through all that was measured

    def cut(whole: float) -> tuple[float, ...]:
        factors = random.lognormal(0.0, sigma, settings.tasks)
        return tuple((whole * settings.scale * factors / factors.sum()).tolist())

    chosen = [stages[(first + index) % len(stages)] for index in range(settings.rounds)]
    return [
        Round(cut(one.rollout), cut(one.score), one.update * settings.scale / settings.trainer_ranks)
        for one in chosen
    ]


def least_load(times: Sequence[float], workers: int) -> float:
    """No `workers` do tasks of these seconds in less: all work shared evenly, the longest task, the shortest
    that one worker must get."""
    most = math.ceil(len(times) / workers)
    return max(sum(times) / workers, max(times), sum(sorted(times)[:most]))


def ideal_seconds(
    rounds: Sequence[Round], staleness: int, rollout_workers: int, reward_workers: int
) -> float:
    """The bound at the head of this file, of all rounds."""
    published = [0.0]
    for last, round in enumerate(rounds):
        soonest = published[last]
        for first in range(last + 1):
            tasks = [
                task for one in rounds[first : last + 1] for task in zip(one.rollout, one.score, strict=True)
            ]
            made, scored = zip(*tasks, strict=True)
            work = max(
                least_load(made, rollout_workers) + min(scored),
                min(made) + least_load(scored, reward_workers),
                max(one + other for one, other in tasks),
            )
            soonest = max(soonest, published[max(first - staleness, 0)] + work)
        published.append(soonest + round.update)
    return published[-1]


def measured_seconds(
    cluster: SleepingCluster, rounds: Sequence[Round], staleness: int, settings: Settings
) -> float:
    """Wall time of the rounds on the sleeping cluster."""

    def tasks(index: int, version: int) -> list[tuple[float, float]]:
        return list(zip(rounds[index].rollout, rounds[index].score, strict=True))

    def learn(index: int, units: Sequence[Unit[tuple[float, float], Any]]) -> list[Any]:
        return cluster.train(rounds[index].update)

    pipeline = cluster.pipeline(settings.max_unscored, settings.in_flight)
    start = time.perf_counter()
    play_rounds(0, len(rounds), staleness, pipeline, tasks, learn, lambda version: None)
    return time.perf_counter() - start


def measure(stages: Sequence[Stages], settings: Settings) -> dict[str, Any]:
    """`{staleness N: {share: {mean, low, high, n}, seconds_per_round, ideal_seconds_per_round}}`; n counts
    repeats."""
    seconds: dict[int, list[tuple[float, float]]] = {staleness: [] for staleness in STALENESSES}
    todo = [(repeat, staleness) for repeat in range(settings.repeats) for staleness in STALENESSES]
    workers = (settings.rollout_workers, settings.reward_workers)
    with sleeping_cluster(*workers, settings.trainer_ranks, CLIP_BYTES) as cluster:
        for repeat, staleness in track(todo, len(todo), "runs of the sleeping cluster"):
            rounds = drawn(stages, settings, repeat)
            ideal = ideal_seconds(rounds, staleness, *workers)
            seconds[staleness].append((ideal, measured_seconds(cluster, rounds, staleness, settings)))
    found = {}
    for staleness, runs in seconds.items():
        ideals, walls = zip(*runs, strict=True)
        count = settings.rounds * len(runs)
        found[f"staleness {staleness}"] = {
            "share": bootstrap_ratio(ideals, walls).as_json(),
            "least_share": round(min(ideal / wall for ideal, wall in runs), 4),
            "seconds_per_round": round(sum(walls) / count, 3),
            "ideal_seconds_per_round": round(sum(ideals) / count, 3),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("metrics", type=Path, nargs="?", help="metrics.jsonl of an alignment")
    for name, value in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--out", type=Path, help="JSON")
    options = vars(parser.parse_args())
    path, out = options.pop("metrics"), options.pop("out")
    try:
        settings = Settings(**options)
        stages = stages_of(path) if path else MEASURED
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    found = {
        **facts("ray"),
        "load_before": round(
            os.getloadavg()[0], 1
        ),  # processes that want a core: what else runs here disturbs the times
        "times": f"{len(stages)} rounds of {'a given run' if path else 'the demo'}",
        "mean_stage_seconds": {
            name: round(float(np.mean([getattr(one, name) for one in stages])), 3)
            for name in asdict(stages[0])
        },
        "settings": asdict(settings),
        "wanted_share": WANTED_SHARE,
        **measure(stages, settings),
    }
    for staleness in STALENESSES:
        row = found[f"staleness {staleness}"]
        share, spent = (
            row["share"],
            f"{row['seconds_per_round']:.2f} s a round, ideal {row['ideal_seconds_per_round']:.2f} s",
        )
        interval = (
            f"{share['mean']:.1%} of the ideal (95 %: {share['low']:.1%} to {share['high']:.1%}, "
            f"{share['n']} runs)"
        )
        print(f"staleness {staleness}: {interval}, least {row['least_share']:.1%}; {spent}")
    if out:
        write_json(out, found, indent=1)
    if any(found[f"staleness {staleness}"]["share"]["low"] < WANTED_SHARE for staleness in STALENESSES):
        raise SystemExit(f"below {WANTED_SHARE:.0%} of the ideal")


if __name__ == "__main__":
    main()

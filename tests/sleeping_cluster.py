"""A cluster that only sleeps: real Ray actors that take the time of the work they stand for, to measure what
a schedule loses."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from orchestration.round import Pipeline, WorkerPool

OBJECT_STORE_BYTES = 200_000_000


@dataclass(frozen=True)
class SleepingCluster:
    """Actors of each kind. A task is (seconds of the rollout, seconds of the score); its clip has
    `clip_bytes`."""

    rollout: Sequence[Any]
    reward: Sequence[Any]
    trainers: Sequence[Any]
    clip_bytes: int

    def pipeline(self, max_unscored: int, in_flight: int = 1) -> Pipeline[tuple[float, float], Any]:
        """Clips go from worker to worker through the object store."""
        import ray

        def roll_out(worker: Any, task: tuple[float, float]) -> Any:
            return worker.work.remote(task[0], self.clip_bytes)

        def score(worker: Any, given: tuple[tuple[float, float], Any]) -> Any:
            (_, seconds), clip = given
            return worker.work.remote(seconds, 0, clip)

        def wait(futures: Sequence[Any]) -> Sequence[Any]:
            return ray.wait(list(futures), num_returns=1, fetch_local=False)[0]

        scorers = {"rewards": WorkerPool("rewards", self.reward, score, in_flight)}
        return Pipeline(
            WorkerPool("rollout", self.rollout, roll_out, in_flight), scorers, wait, ray.get, max_unscored
        )

    def train(self, seconds: float) -> list[Any]:
        """A future of every rank."""
        return [worker.work.remote(seconds, 0) for worker in self.trainers]


@contextmanager
def sleeping_cluster(rollout: int, reward: int, trainers: int, clip_bytes: int) -> Iterator[SleepingCluster]:
    """An embedded Ray with that many workers of each kind, started; nothing of it is left afterwards.

    Raises RuntimeError where this process has a Ray already.
    """
    import ray

    class Sleeper:  # defined here, Ray sends it by value: its workers cannot import the tests
        """Takes `seconds` for a task and returns `answer_bytes` zero bytes; a clip comes in resolved, as a
        scorer has it."""

        def work(self, seconds: float, answer_bytes: int, clip: object = None) -> bytes:
            time.sleep(seconds)
            return bytes(answer_bytes)

    if ray.is_initialized():
        raise RuntimeError("this process has a Ray already; leave it first (ray.shutdown)")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    counts = (rollout, reward, trainers)
    with tempfile.TemporaryDirectory(prefix="ray_", ignore_cleanup_errors=True) as folder:
        try:
            ray.init(
                address="local",
                num_cpus=sum(counts),
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=folder,
            )
            made: Any = ray.remote(Sleeper).options(num_cpus=0)
            actors = tuple([made.remote() for _ in range(count)] for count in counts)
            ray.get([actor.work.remote(0.0, 0) for kind in actors for actor in kind])
            yield SleepingCluster(actors[0], actors[1], actors[2], clip_bytes)
        finally:
            ray.shutdown()

"""A cluster that only sleeps: real Ray actors that take the time of the work they stand for, to measure what a schedule loses."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from orchestration.round import Pipeline, Pool

OBJECT_STORE_BYTES = 200_000_000


class _Sleeper:
    """Takes `seconds` for a task and answers with that many zero bytes; a clip comes in resolved, as a scorer has it."""

    def work(self, seconds: float, answer_bytes: int, clip: object = None) -> bytes:
        time.sleep(seconds)
        return bytes(answer_bytes)


class SleepingCluster:
    """Context manager: an embedded Ray with sleeping workers that take no cores; all of it is gone afterwards.

    A task is (seconds of the rollout, seconds of the score). Clips of `clip_bytes` go from worker to worker by the object store.
    Raises RuntimeError where this process has a Ray already.
    """

    def __init__(self, rollout: int, reward: int, trainers: int, clip_bytes: int, temporary: Path | None = None) -> None:
        self.counts, self.clip_bytes, self.temporary = (rollout, reward, trainers), clip_bytes, temporary

    def __enter__(self) -> SleepingCluster:
        import ray

        if ray.is_initialized():
            raise RuntimeError("this process has a Ray already; leave it first (ray.shutdown)")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        where: dict[str, Any] = {"_temp_dir": str(self.temporary)} if self.temporary else {}
        ray.init(
            address="local", num_cpus=sum(self.counts), include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False, logging_level=logging.ERROR, **where,
        )  # fmt: skip
        made: Any = ray.remote(_Sleeper).options(num_cpus=0)
        self.rollout, self.reward, self.trainers = ([made.remote() for _ in range(count)] for count in self.counts)
        everyone = [*self.rollout, *self.reward, *self.trainers]
        ray.get([worker.work.remote(0.0, 0) for worker in everyone])  # started, before any clock does
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        import ray

        ray.shutdown()

    def pipeline(self, max_unscored: int, in_flight: int = 1) -> Pipeline[tuple[float, float], Any]:
        import ray

        def roll_out(worker: Any, task: tuple[float, float]) -> Any:
            return worker.work.remote(task[0], self.clip_bytes)

        def score(worker: Any, given: tuple[tuple[float, float], Any]) -> Any:
            (_, seconds), clip = given
            return worker.work.remote(seconds, 0, clip)

        def wait(futures: Sequence[Any]) -> Sequence[Any]:
            return ray.wait(list(futures), num_returns=1, fetch_local=False)[0]

        scorers = {"rewards": Pool("rewards", self.reward, score, in_flight)}
        return Pipeline(Pool("rollout", self.rollout, roll_out, in_flight), scorers, wait, ray.get, max_unscored)

    def train(self, seconds: float) -> list[Any]:
        """A future of every rank."""
        return [worker.work.remote(seconds, 0) for worker in self.trainers]

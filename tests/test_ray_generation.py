"""A generation on Ray: workers take batches when free, lost ones are replaced, clips are the same."""

from __future__ import annotations

import heapq
import random
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from generation_world import QUICK, files_in, mixed_rows, write_model_and_codec, write_prompts
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.config import RayConfig, Workers
from orchestration.generation import MOST_LOST, Hands, LostWorkerError, on_ray
from pretrain.generate import generate

ENOUGH = 0.9  # of ideal


@dataclass
class Clock:
    """Workers whose tasks take the seconds that they are told, in simulated time; some are lost after it."""

    seconds: dict[int, float]
    lost: set[tuple[int, int]] = field(default_factory=set)  # (worker, task)
    now: float = 0.0
    hired: int = 0
    running: list[tuple[float, int, int]] = field(default_factory=list)  # (end, worker, task)

    def hire(self) -> int:
        self.hired += 1
        return self.hired

    def start(self, worker: int, task: int) -> tuple[int, int]:
        heapq.heappush(self.running, (self.now + self.seconds[task], worker, task))
        return worker, task

    def wait(self, futures: Any) -> list[tuple[int, int]]:
        self.now, worker, task = heapq.heappop(self.running)
        assert (worker, task) in futures
        return [(worker, task)]

    def result(self, future: tuple[int, int]) -> int:
        if future in self.lost:
            raise LostWorkerError("killed")
        return future[1]

    def hands(self) -> Hands[int, tuple[int, int], int]:
        return Hands(self.hire, self.start, self.wait, self.result)


@given(
    seconds=st.lists(st.floats(0.1, 10.0), min_size=1, max_size=40),
    count=st.integers(1, 6),
    lost=st.sets(st.tuples(st.integers(1, 3), st.integers(0, 39)), max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_every_task_is_done_once_whatever_is_lost(seconds, count, lost):
    clock = Clock(dict(enumerate(seconds)), lost)
    hands = clock.hands()
    assert sorted(hands.work(range(len(seconds)), count)) == list(range(len(seconds)))
    assert len(hands.workers) == count
    longest = max(seconds) * (1 + len(lost))
    assert clock.now <= sum(seconds) * (1 + len(lost)) / count + longest + 1e-9


def test_workers_that_are_always_lost_end_it():
    clock = Clock({0: 1.0}, {(worker, 0) for worker in range(1, 100)})
    with pytest.raises(OSError, match=f"{MOST_LOST} workers were lost without a batch made in between"):
        list(clock.hands().work([0], 1))


def test_sixteen_workers_lose_under_a_tenth_to_waiting():
    draw = random.Random(0)
    seconds = {task: draw.uniform(0.5, 1.5) for task in range(16 * 12)}
    clock = Clock(seconds)
    list(clock.hands().work(list(seconds), 16))
    assert sum(seconds.values()) / 16 / clock.now > ENOUGH


@pytest.mark.slow
def test_sixteen_sleeping_actors_reach_nine_tenths_of_ideal():
    import ray
    from sleeping_cluster import sleeping_cluster

    draw = random.Random(1)
    seconds = {task: draw.uniform(0.5, 1.5) for task in range(16 * 16)}
    with sleeping_cluster(16, 0, 0, 0) as cluster:
        hands: Hands[Any, Any, Any] = Hands(
            hire=lambda: pytest.fail("nothing is lost"),
            start=lambda worker, task: worker.work.remote(seconds[task], 0),
            wait=lambda futures: ray.wait(list(futures), num_returns=1)[0],
            result=ray.get,
            workers=list(cluster.rollout),
        )
        started = time.perf_counter()
        done = sum(1 for _ in hands.work(list(seconds), 16))
        share = sum(seconds.values()) / 16 / (time.perf_counter() - started)
    print(f"16 sleeping actors: {100 * share:.1f} % of ideal over {done} tasks")
    assert done == len(seconds) and share > ENOUGH


@pytest.mark.slow
def test_actors_make_the_very_clips_of_one_process(tmp_path):
    world = write_model_and_codec(tmp_path / "world")
    prompts = write_prompts(world / "p.jsonl", mixed_rows(7))
    config = RayConfig(rollout=Workers(workers=2, num_cpus=1))
    generate(QUICK, world / "model", world / "codec", prompts, tmp_path / "whole")
    generate(QUICK, world / "model", world / "codec", prompts, tmp_path / "ray", spread=on_ray(config))
    assert files_in(tmp_path / "ray") == files_in(tmp_path / "whole")
    (world / "model" / "ema.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        generate(QUICK, world / "model", world / "codec", prompts, tmp_path / "none", spread=on_ray(config))
    assert not (tmp_path / "none").exists()

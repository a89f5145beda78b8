"""A cluster in which tasks end in any order, fail, and waiting is interrupted; it holds a pipeline against
what it promises."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestration.round import Pipeline, Unit, WorkerPool

ROLLOUT, TRAINER = "rollout", "trainer"


class Interrupted(BaseException):
    """A signal that arrives while the driver waits."""


@dataclass(frozen=True, order=True)
class Task:
    round: int
    place: int
    birth: int  # counts what was ever begun, so that a round begun again has other tasks


@dataclass(eq=False)
class Future:
    pool: str
    worker: str
    task: Task | None
    clip: Future | None = None
    error: Exception | None = None
    done: bool = False
    told: bool = False  # wait has said that it is done
    asked: bool = False


@dataclass
class World:
    """`failing` holds (pool, round, place) that raise; `interruptions` is the share of waits that a signal
    ends."""

    seed: int
    pools: dict[str, int] = field(default_factory=lambda: {ROLLOUT: 2, "sync": 2})  # workers of each
    in_flight: int = 1
    max_unscored: int = 2
    interruptions: float = 0.0
    failing: set[tuple[str, int, int]] = field(default_factory=set)
    last: str = ""  # tasks of this pool end only when no other one runs

    def __post_init__(self) -> None:
        self.draw, self.births, self.waits = random.Random(self.seed), 0, 0
        self.alive: dict[
            int, list[Task]
        ] = {}  # round -> its tasks; begun, not finished, without a known error
        self.begun: set[int] = set()
        self.futures: list[Future] = []
        self.started: Counter[tuple[str, Task]] = Counter()
        pools = {name: self._pool(name, count) for name, count in self.pools.items()}
        self.scorers = [name for name in pools if name != ROLLOUT]
        self.pipeline: Pipeline[Task, Future] = Pipeline(
            pools[ROLLOUT],
            {name: pools[name] for name in self.scorers},
            self.wait,
            self.result,
            self.max_unscored,
        )

    def _pool(self, name: str, count: int) -> WorkerPool[str, Any, Future]:
        workers = [f"{name} {index}" for index in range(count)]
        return WorkerPool(name, workers, lambda worker, task: self.start(name, worker, task), self.in_flight)

    def tasks(self, round: int, count: int) -> list[Task]:
        self.births += 1
        self.alive[round] = [Task(round, place, self.births) for place in range(count)]
        self.begun.add(round)
        return self.alive[round]

    def begin(self, round: int, count: int) -> None:
        self.pipeline.begin(round, self.tasks(round, count))

    def finish(self, round: int) -> list[Unit[Task, Future]] | None:
        """What the pipeline answers, held against the tasks; None where it raised an error of this round, as
        it had to."""
        tasks = self.alive.get(round)
        try:
            units = self.pipeline.finish(round)
        except ValueError as error:
            assert any(
                one.error is error and one.asked and one.task and one.task.round == round
                for one in self.futures
            )
            assert round not in self.alive, "an error that was not asked for"
            self.begun.discard(round)
            self._nobody_idles()
            return None
        assert tasks is not None, "a round with an error ended well"
        assert [unit.task for unit in units] == tasks
        for unit in units:
            assert unit.scores == {name: (name, unit.task, unit.clip) for name in self.scorers}
            assert all(self.started[name, unit.task] == 1 for name in self.pools)
        self.begun.discard(round)
        del self.alive[round]
        self._nobody_idles()
        return units

    def drop(self) -> None:
        self.pipeline.drop()
        self.alive.clear()
        self.begun.clear()

    def start(self, name: str, worker: str, given: Any) -> Future:
        task, clip = (given, None) if name == ROLLOUT else given
        assert task in self.alive.get(task.round, ()), "a task of a round that is over"
        if clip is None:
            assert self.unscored() < self.max_unscored, "back-pressure"
            assert task == min(self._waiting(ROLLOUT)), "an earlier task waits"
        else:
            assert clip.told and clip.pool == ROLLOUT and clip.task == task
            assert task == min(self._waiting(name)), "an earlier clip waits"
        self.started[name, task] += 1
        error = ValueError(f"{name} {task}") if (name, task.round, task.place) in self.failing else None
        self.futures.append(Future(name, worker, task, clip, error or (clip.error if clip else None)))
        assert self.load(worker) <= self.in_flight
        return self.futures[-1]

    def trainers(self, count: int) -> list[Future]:
        """Futures of an update, one for every rank."""
        self.futures += [Future(TRAINER, f"{TRAINER} {rank}", None) for rank in range(count)]
        return self.futures[-count:]

    def wait(self, futures: Sequence[Future]) -> Sequence[Future]:
        """Some of those that are done, or none."""
        self.waits += 1
        assert self.waits < 5000, "it does not end"
        assert futures and len(set(futures)) == len(futures), "waiting for nothing, or twice for one"
        self._nobody_idles()
        if self.draw.random() < self.interruptions:
            raise Interrupted
        for future in futures:
            held = future.pool == self.last and any(one.pool != self.last for one in futures)
            future.done = future.done or (self.draw.random() < 0.3 and not held)
        done = [future for future in futures if future.done]
        told = self.draw.sample(done, self.draw.randint(0, len(done)))
        for future in told:
            future.told = True
        return told

    def result(self, future: Future) -> Any:
        assert future.told and future.pool in self.scorers, "a clip was fetched, or what is not done"
        assert future.task in self.alive.get(future.task.round, ()) and not future.asked  # type: ignore[union-attr]
        future.asked = True
        if future.error is not None:
            self.alive.pop(future.task.round)  # type: ignore[union-attr]
            raise future.error
        return future.pool, future.task, future.clip

    def load(self, worker: str) -> int:
        return sum(one.worker == worker and not one.told for one in self.futures)

    def _known(self) -> dict[int, list[Task]]:
        """Tasks of living rounds that are rolled out, by the number of pools that scored them."""
        living = {task for tasks in self.alive.values() for task in tasks}
        mine = [one for one in self.futures if one.told and one.task in living]
        answered = Counter(one.task for one in mine if one.asked)
        known: dict[int, list[Task]] = {}
        for one in mine:
            if one.pool == ROLLOUT and one.task is not None:
                known.setdefault(answered[one.task], []).append(one.task)
        return known

    def unscored(self) -> int:
        return sum(len(tasks) for scored, tasks in self._known().items() if scored < len(self.scorers))

    def _waiting(self, name: str) -> list[Task]:
        if name == ROLLOUT:
            able = [task for tasks in self.alive.values() for task in tasks]
        else:
            able = [task for tasks in self._known().values() for task in tasks]
        return [task for task in able if not self.started[name, task]]

    def _nobody_idles(self) -> None:
        """No worker has room for work that it could do."""
        for name, count in self.pools.items():
            room = any(self.load(f"{name} {index}") < self.in_flight for index in range(count))
            held_back = name == ROLLOUT and self.unscored() >= self.max_unscored
            assert not (room and self._waiting(name) and not held_back), f"{name} idles"

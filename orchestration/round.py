"""Schedule of rounds over plain callables: roll out, score, learn, publish, overlapping up to `staleness`.

    pipeline.begin(round, tasks)      units = pipeline.finish(round)      pipeline.attend(learn(round, units))
    publish(round + 1)

Independent of Ray, tensors and rewards: a worker is whatever `start` takes, a future whatever `wait` and
`result` take. One thread; work moves on only while `finish` or `attend` waits. The futures handle lost
workers, so only final errors arrive here.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

WorkerT = TypeVar("WorkerT")
TaskT = TypeVar("TaskT")
FutureT = TypeVar("FutureT", bound=Hashable)


@dataclass(frozen=True)
class WorkerPool(Generic[WorkerT, TaskT, FutureT]):
    """Workers of one kind; `start` submits a task without blocking. At most `in_flight` tasks per worker."""

    name: str
    workers: Sequence[WorkerT]
    start: Callable[[WorkerT, TaskT], FutureT]
    in_flight: int = 1

    def __post_init__(self) -> None:
        if not self.workers or self.in_flight < 1:
            raise ValueError(
                f"pool {self.name}: {len(self.workers)} workers with {self.in_flight} tasks each; give it "
                "at least one worker and one task"
            )


@dataclass(frozen=True)
class Unit(Generic[TaskT, FutureT]):
    """A task, a reference to its clip, and the result of each scorer pool."""

    task: TaskT
    clip: FutureT
    scores: dict[str, Any]


@dataclass(eq=False)
class _Round(Generic[TaskT, FutureT]):
    number: int
    tasks: Sequence[TaskT]
    clips: dict[int, FutureT] = field(default_factory=dict)
    scores: dict[int, dict[str, Any]] = field(default_factory=dict)
    unscored: int = 0  # rolled out, but not yet scored by every pool
    scored: int = 0  # by every pool
    error: Exception | None = None


@dataclass(eq=False)
class _Line:
    """Queue of a pool (earliest round first) and the number of tasks per worker."""

    name: str
    pool: WorkerPool[Any, Any, Any]
    queue: list[tuple[int, int]] = field(default_factory=list)  # heap of (round, place)
    load: list[int] = field(default_factory=list)

    def free_worker(self) -> int | None:
        least = min(range(len(self.load)), key=self.load.__getitem__)
        return least if self.load[least] < self.pool.in_flight else None

    def forget(self, number: int) -> None:
        self.queue = [entry for entry in self.queue if entry[0] != number]
        heapq.heapify(self.queue)


@dataclass(frozen=True)
class _Running:
    line: _Line
    worker: int
    of: _Round[Any, Any]
    place: int


class Pipeline(Generic[TaskT, FutureT]):
    """Rollout tasks go to any free worker, their clips to every scorer pool as `start(worker, (task, clip))`.

    wait: takes futures, returns finished ones, possibly none on a timeout; it is called again until there is
    one. result: value of a scorer's future, or raises. Clips are never fetched, so a rollout's error must
    surface in its scorers. max_unscored: no rollout starts while that many clips lack scores; rollouts in
    flight still finish, so at most max_unscored - 1 clips and one per rollout in flight wait. Raises
    ValueError without scorers, for `max_unscored` < 1, and for a round that is begun twice or never.
    """

    def __init__(
        self,
        rollout: WorkerPool[Any, TaskT, FutureT],
        scorers: Mapping[str, WorkerPool[Any, tuple[TaskT, FutureT], FutureT]],
        wait: Callable[[Sequence[FutureT]], Sequence[FutureT]],
        result: Callable[[FutureT], Any],
        max_unscored: int,
    ) -> None:
        if not scorers or max_unscored < 1:
            raise ValueError(
                f"{len(scorers)} pools of scorers, max_unscored {max_unscored}: a pipeline needs at least 1 "
                "of both"
            )
        self.wait, self.result, self.max_unscored = wait, result, max_unscored
        self._rollout = _Line("", rollout, load=[0] * len(rollout.workers))
        self._scorers = [_Line(name, pool, load=[0] * len(pool.workers)) for name, pool in scorers.items()]
        self._rounds: dict[int, _Round[TaskT, FutureT]] = {}
        self._running: dict[FutureT, _Running] = {}

    @property
    def begun(self) -> tuple[int, ...]:
        """Rounds that were begun and are not finished."""
        return tuple(sorted(self._rounds))

    def begin(self, round: int, tasks: Sequence[TaskT]) -> None:
        """Queue the rollouts of a round; lower rounds have priority."""
        if round in self._rounds:
            raise ValueError(f"round {round} is begun already; finish it or drop all")
        self._rounds[round] = _Round(round, tuple(tasks))
        for place in range(len(tasks)):
            heapq.heappush(self._rollout.queue, (round, place))
        self._start_what_can()

    def finish(self, round: int) -> list[Unit[TaskT, FutureT]]:
        """Wait for the round; returns its units in the order of its tasks.

        Raises the first error of the round, which is then dropped.
        """
        if round not in self._rounds:
            raise ValueError(f"round {round} is not begun; begun are {list(self.begun)}")
        mine = self._rounds[round]
        while mine.error is None and mine.scored < len(mine.tasks):
            self._step(())
        del self._rounds[round]
        if mine.error is not None:
            raise mine.error
        return [Unit(task, mine.clips[place], mine.scores[place]) for place, task in enumerate(mine.tasks)]

    def attend(self, futures: Sequence[FutureT]) -> None:
        """Wait until all of these futures are done, successfully or not; begun rounds proceed meanwhile."""
        left = dict.fromkeys(futures)
        while left:
            for done in self._step(tuple(left)):
                left.pop(done, None)

    def drop(self) -> None:
        """Drop all rounds.

        Running tasks keep their workers busy until they end; their results are ignored.
        """
        self._rounds.clear()
        for line in (self._rollout, *self._scorers):
            line.queue.clear()

    def _step(self, others: Sequence[FutureT]) -> Sequence[FutureT]:
        """Submit tasks, wait for a future, process finished ones."""
        self._start_what_can()
        done = self.wait([*self._running, *others])
        for future in done:
            if future in self._running:
                self._take(future)
        self._start_what_can()
        return done

    def _start_what_can(self) -> None:
        # scorers first: finished clips free places below `max_unscored` for the next rollouts
        for line in self._scorers:
            while self._start_next(line):
                pass
        while sum(part.unscored for part in self._rounds.values()) < self.max_unscored and self._start_next(
            self._rollout
        ):
            pass

    def _start_next(self, line: _Line) -> bool:
        worker = line.free_worker()
        if worker is None or not line.queue:
            return False
        number, place = line.queue[0]
        part = self._rounds[number]
        task = part.tasks[place]
        future = line.pool.start(
            line.pool.workers[worker], task if line is self._rollout else (task, part.clips[place])
        )
        heapq.heappop(line.queue)  # popped only after `start` succeeded: if it raises, no task is lost
        line.load[worker] += 1
        self._running[future] = _Running(line, worker, part, place)
        return True

    def _take(self, future: FutureT) -> None:
        run = self._running[future]
        part, place = run.of, run.place
        # `is`: after `drop` the same round number may have been begun again, with other tasks
        if self._rounds.get(part.number) is part and part.error is None:
            if run.line is self._rollout:
                part.clips[place], part.scores[place] = future, {}
                part.unscored += 1
                for line in self._scorers:
                    heapq.heappush(line.queue, (part.number, place))
            else:
                self._take_score(run, future)
        del self._running[future]
        run.line.load[run.worker] -= 1

    def _take_score(self, run: _Running, future: FutureT) -> None:
        part, scores = run.of, run.of.scores[run.place]
        try:
            answer = self.result(future)
        except Exception as error:
            part.error = error
            part.unscored = 0
            for line in (self._rollout, *self._scorers):
                line.forget(part.number)
            return
        scores[run.line.name] = answer
        if len(scores) == len(self._scorers):
            part.unscored -= 1
            part.scored += 1


def play_rounds(
    first: int,
    end: int,
    staleness: int,
    pipeline: Pipeline[TaskT, FutureT],
    tasks: Callable[[int, int], Sequence[TaskT]],
    learn: Callable[[int, Sequence[Unit[TaskT, FutureT]]], Sequence[FutureT]],
    publish: Callable[[int], None],
) -> None:
    """Run rounds `first` to `end` (exclusive); version `first` and the `staleness` before it are published.

    Round r is rolled out by version max(r - staleness, 0) exactly: `tasks(round, version)` is called as soon
    as that version is published. `learn` starts the update and returns its futures; `publish(version)`
    processes their results and raises their errors. After an exception call `pipeline.drop()` before
    continuing from the last version.
    """
    ahead = first
    for current in range(first, end):
        while ahead < min(current + staleness + 1, end):
            pipeline.begin(ahead, tasks(ahead, max(ahead - staleness, 0)))
            ahead += 1
        pipeline.attend(learn(current, pipeline.finish(current)))
        publish(current + 1)

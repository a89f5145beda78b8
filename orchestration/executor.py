"""Executor of an alignment on Ray: trainer ranks, rollout workers and reward workers run concurrently."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.align_run import AlignRun
from finetune.checkpoint import newest
from finetune.executor import HELD_OUT_KEY, SAMPLES, RestoredFromCheckpoint, RoundScores
from finetune.objectives.base import RolloutPlan
from finetune.progress import AlignProgress
from finetune.prompts import PromptSet, prompts_of_round
from finetune.types import Advantage
from orchestration.cluster import Group
from orchestration.futures import Futures
from orchestration.ranks import RankGroup
from orchestration.round import Pipeline, Unit, WorkerPool
from orchestration.tasks import ClipTask, ScoreGatherer, clip_tasks, held_out_tasks
from orchestration.versions import Ledger, Versions, name


@dataclass(frozen=True)
class Workforce:
    """The workers of a run.

    rollout: tasks -> clips; scorers: pools of (task, clip) -> scores; writer: a worker that writes sample
    clips; ready: futures that fail if a worker could not be built.
    """

    build: Callable[[], Group]
    # called with the function that returns a task's weights
    rollout: Callable[[Callable[[ClipTask], Any]], WorkerPool[Any, ClipTask, Any]]
    scorers: Mapping[str, WorkerPool[Any, tuple[ClipTask, Any], Any]]
    writer: Any
    ready: Sequence[Any]


class RayExecutor:
    """finetune.executor.Executor on the driver, which holds references, scores and progress, but no clips.

    Round r of a phase that began with round f is rolled out by version max(r - staleness, f), exactly. Any
    call except `load` raises RestoredFromCheckpoint after a loss of ranks; all raise OSError after too many.
    """

    def __init__(
        self,
        run: AlignRun,
        prompts: PromptSet,
        world_size: int,
        staleness: int,
        workforce: Workforce,
        futures: Futures,
        max_unscored: int,
        max_restarts: int,
    ) -> None:
        self.run, self.config, self.prompts = run, run.config, prompts
        # ranks of a context group learn from the same clips, made once
        self.context, self.staleness = run.config.parallel.context, staleness
        self.world_size, self.groups = world_size, world_size // self.context
        self.objectives = run.config.objectives()
        self.futures, self.writer = futures, workforce.writer
        self.versions, self.ledger = Versions(run.out, futures.put), Ledger(run.out)
        self.gatherer = ScoreGatherer(run.config)
        rollout = workforce.rollout(lambda task: self.versions.references[task.version])
        self.pipeline: Pipeline[ClipTask, Any] = Pipeline(
            rollout, workforce.scorers, futures.wait, futures.result, max_unscored
        )
        self.ranks = RankGroup(
            run.out, world_size, workforce.build, futures, self.pipeline.attend, max_restarts
        )
        self.written: list[Path] = []
        self.first = self.rounds = 0  # the phase's first round; finished rounds
        self.units: Sequence[Unit[ClipTask, Any]] = ()
        self.learned: list[int] = []

    def load(self) -> AlignProgress:
        while True:
            self.pipeline.drop()
            self.versions.forget()
            try:
                return self._load()
            except RestoredFromCheckpoint:
                continue

    def save(self, progress: AlignProgress) -> None:
        self.ranks.do("save", progress)
        self.versions.retain(newest(self.run.out) - self.staleness)

    def begin_phase(self, place: int) -> None:
        self.pipeline.drop()
        self.ranks.do("begin_phase", place)
        self._publish_weights(place, self.rounds)

    def collect(self, place: int, index: int, first: int) -> tuple[RoundScores | None, dict[str, float]]:
        """Start the rounds that staleness allows; their rollouts continue while this round is scored."""
        start = time.perf_counter()
        self.futures.check()
        self.first, self.learned, self.units = first, [], ()
        plan = self.objectives[place].rollout()
        self._begin(place, plan, index)
        begun = time.perf_counter()
        scores = self._finished(index) if plan else None
        return scores, {"rollout": begun - start, "score": time.perf_counter() - begun}

    def learn(self, place: int, index: int, advantage: Advantage | None) -> Mapping[str, float]:
        on_policy = self._version(index) == index
        clips = [
            [unit.clip for unit in self.units if unit.task.rank == rank // self.context]
            for rank in range(self.world_size)
        ]
        answers = self.ranks.call("learn", [[place, index, advantage, on_policy, *mine] for mine in clips])
        self.learned = [sample for _, samples in answers[:: self.context] for sample in samples]
        return answers[0][0]

    def update_old(self, decay: float) -> None:
        self.ranks.do("update_old", decay)

    def publish(self, place: int, rounds: int) -> None:
        """Add the round to the ledger and start the next ones, which overlap held-out scoring and saving."""
        objective = self.objectives[place]
        plan = objective.rollout()
        version = name(self._version(rounds - 1), plan.role) if plan else ""
        self.ledger.add(rounds, objective.name, version, self.learned, self.gatherer.restarts())
        self.rounds, self.units = rounds, ()
        self._publish_weights(place, rounds)
        self._begin(place, plan, rounds)

    def score_held_out(self, rounds: int) -> RoundScores | None:
        if not self.prompts.held_out:
            return None
        version = self.versions.key(f"held-out-{rounds}")
        number = _number(rounds) - 1  # held-out scorings have the even numbers between rounds
        self.versions.references[version] = self.futures.put(self.ranks.do("averaged")[0])
        key = (self.config.seed, HELD_OUT_KEY)
        tasks = held_out_tasks(self.prompts.held_out, self.groups, self.config, key, version)
        self.pipeline.begin(number, list(tasks))
        units = self.pipeline.finish(number)
        self.written = self._write(units, rounds)
        del self.versions.references[version]
        return self.gatherer.gathered(units)

    def keep_best(self) -> None:
        self.ranks.do("keep_best")

    def take_written(self) -> list[Path]:
        written, self.written = self.written, []
        return written

    def export(self, progress: AlignProgress) -> str:
        return self.ranks.do("export", progress)[0]

    def close(self) -> None:
        """Nothing to do: the processes end with their connection to Ray."""

    def _load(self) -> AlignProgress:
        progress = self.ranks.do("load")[0]
        self.ledger.cut(progress.rounds)
        self.rounds = progress.rounds
        if 0 <= progress.phase < len(self.objectives):
            self._publish_weights(progress.phase, progress.rounds)
        return progress

    def _publish_weights(self, place: int, rounds: int) -> None:
        if plan := self.objectives[place].rollout():
            self.versions.publish(rounds, plan.role, self.ranks.do("weights", plan.role)[0])

    def _begin(self, place: int, plan: RolloutPlan | None, current: int) -> None:
        """Begin round `current` and those ahead whose weights are published."""
        if plan is None:
            return
        begun, end = self.pipeline.begun, self.first + self.objectives[place].phase.rounds
        for index in range(current, min(current + self.staleness + 1, end)):
            if _number(index) not in begun:
                version = self._version(index)
                self.versions.reference(version, plan.role)
                rows = prompts_of_round(self.prompts, self.config, plan.prompts, index)
                key, known_by = (self.config.seed, index), self.versions.key(name(version, plan.role))
                tasks = clip_tasks(rows, self.groups, plan, key, known_by)
                self.pipeline.begin(_number(index), list(tasks))

    def _finished(self, index: int) -> RoundScores:
        self.futures.stoppable = True
        try:
            self.units = self.pipeline.finish(_number(index))
        finally:
            self.futures.stoppable = False
        return self.gatherer.gathered(self.units)

    def _version(self, index: int) -> int:
        return max(index - self.staleness, self.first)

    def _write(self, units: Sequence[Unit[ClipTask, Any]], rounds: int) -> list[Path]:
        """Write the first held-out prompts of the first rank."""
        folder, left = self.run.out / SAMPLES / f"round-{rounds}", self.config.samples
        futures = []
        for unit in units:
            if unit.task.rank == 0 and left > 0:
                number = min(left, unit.task.end - unit.task.start)
                futures.append(self.writer.write.remote(unit.task, unit.clip, number, folder))
                left -= number
        self.pipeline.attend(futures)
        return [path for future in futures for path in self.futures.result(future)]


def _number(index: int) -> int:
    """Number of a round in the pipeline; even numbers are the held-out scorings between rounds."""
    return 2 * index + 1

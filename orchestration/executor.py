"""The hands of an alignment on Ray: ranks that learn, workers that roll out and score meanwhile; the loop
stays the one of finetune."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.align_run import AlignRun
from finetune.checkpoint import Progress, newest
from finetune.hands import Said, WentBack
from finetune.local_hands import SAMPLES
from finetune.prompts import PromptSet, prompts_of_round
from finetune.recipe import GsbDpoPhase, Phase
from finetune.types import Advantage
from orchestration.cluster import Group
from orchestration.futures import Futures
from orchestration.ranks import Ranks
from orchestration.round import Pipeline, Pool, Unit
from orchestration.tasks import Answers, ClipTask, clip_tasks
from orchestration.versions import Ledger, Versions, name

Units = Sequence[Unit[ClipTask, Any]]


@dataclass(frozen=True)
class Workforce:
    """Who does the work. rollout: tasks to clips; scorers: pools of (task, clip) to answers; writer: a worker
    that writes clips; ready: futures that tell whether each worker could be built."""

    build: Callable[[], Group]
    rollout: Callable[[Callable[[ClipTask], Any]], Pool[Any, ClipTask, Any]]  # asks for the weights of a task
    scorers: Mapping[str, Pool[Any, tuple[ClipTask, Any], Any]]
    writer: Any
    ready: Sequence[Any]


class RayHands:
    """finetune.hands.Hands of a driver that sees references, scores and progress, never a clip.

    Round r of a phase that began with round f is rolled out by version max(r - staleness, f), exactly. Any
    call but `load` raises WentBack where ranks were lost and stand anew; all raise OSError where that
    happened too often.
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
        self.run, self.config, self.prompts, self.world_size, self.staleness = (
            run,
            run.config,
            prompts,
            world_size,
            staleness,
        )
        self.futures, self.writer = futures, workforce.writer
        self.versions, self.ledger, self.answers = (
            Versions(run.out, futures.put),
            Ledger(run.out),
            Answers(run.config),
        )
        rollout = workforce.rollout(lambda task: self.versions.references[task.version])
        self.pipeline: Pipeline[ClipTask, Any] = Pipeline(
            rollout, workforce.scorers, futures.wait, futures.result, max_unscored
        )
        self.ranks = Ranks(run.out, workforce.build, futures, self.pipeline.attend, max_restarts)
        self.written: list[Path] = []
        self.first = self.rounds = 0  # the phase's first round; those that are done
        self.units: Units = ()
        self.learned: list[int] = []

    def load(self) -> Progress:
        while True:
            self.pipeline.drop()
            self.versions.forget()
            try:
                return self._load()
            except WentBack:
                continue

    def save(self, progress: Progress) -> None:
        self.ranks("save", progress)
        self.versions.retain(newest(self.run.out) - self.staleness)

    def begin_phase(self, phase: Phase) -> None:
        self.pipeline.drop()
        self.ranks("begin_phase", self._place(phase))
        self._publish(phase, self.rounds)

    def roll_out(self, name: str, phase: Phase, index: int, first: int) -> int:
        """The round's number stands for its clips. Rounds ahead are begun, as far as staleness lets them."""
        self.futures.check()
        self.first, self.learned = first, []
        if not isinstance(phase, GsbDpoPhase):
            self._begin(phase, index)
        return index

    def score(self, clips: int) -> Said:
        self.futures.stoppable = True
        try:
            self.units = self.pipeline.finish(_number(clips))
        finally:
            self.futures.stoppable = False
        return self.answers.said(self.units)

    def learn(
        self, name: str, phase: Phase, clips: int, advantage: Advantage | None, index: int
    ) -> Mapping[str, float]:
        place = self._place(phase)
        if advantage is None:
            answers = self.ranks("learn_pairs", place, index)
        else:
            fresh = self._version(index) == index
            mine = [
                [unit.clip for unit in self.units if unit.task.rank == rank]
                for rank in range(self.world_size)
            ]
            answers = self.ranks.each("learn", [[place, advantage, index, fresh, *made] for made in mine])
        self.learned = [sample for _, samples in answers for sample in samples]
        return answers[0][0]

    def update_old(self, decay: float) -> None:
        self.ranks("update_old", decay)

    def publish(self, phase: Phase, rounds: int) -> None:
        """The round is in the ledger, and the next ones go on while the prompts set aside are scored and a
        checkpoint is written."""
        given = isinstance(phase, GsbDpoPhase)
        version = "" if given else name(self._version(rounds - 1), phase.rolls_out_with)
        self.ledger.add(
            rounds, self.config.phases[self._place(phase)][0], version, self.learned, self.answers.restarts()
        )
        self.rounds, self.units = rounds, ()
        if not given:
            self._publish(phase, rounds)
            self._begin(phase, rounds)

    def score_aside(self, rounds: int) -> Said | None:
        if not self.prompts.aside:
            return None
        version, number = (
            self.versions.key(f"aside-{rounds}"),
            _number(rounds) - 1,
        )  # before the rounds that it is scored between
        self.versions.references[version] = self.futures.put(self.ranks("averaged")[0])
        key = (self.config.seed, "aside")
        tasks = list(
            clip_tasks(
                self.prompts.aside,
                self.world_size,
                1,
                self.config,
                0,
                key,
                "default",
                version,
                stochastic=False,
            )
        )
        self.pipeline.begin(number, tasks)
        units = self.pipeline.finish(number)
        self.written = self._write(units, rounds)
        del self.versions.references[version]
        return self.answers.said(units)

    def keep_best(self) -> None:
        self.ranks("keep_best")

    def take_written(self) -> list[Path]:
        written, self.written = self.written, []
        return written

    def export(self, progress: Progress) -> str:
        return self.ranks("export", progress)[0]

    def close(self) -> None:
        """Nothing is left behind: the processes end with their connection to Ray."""

    def _load(self) -> Progress:
        progress = self.ranks("load")[0]
        self.ledger.cut(progress.rounds)
        self.rounds = progress.rounds
        if 0 <= progress.phase < len(self.config.phases):
            self._publish(self.config.phases[progress.phase][1], progress.rounds)
        return progress

    def _publish(self, phase: Phase, rounds: int) -> None:
        if not isinstance(phase, GsbDpoPhase):
            self.versions.publish(
                rounds, phase.rolls_out_with, self.ranks("weights", phase.rolls_out_with)[0]
            )

    def _begin(self, phase: Phase, current: int) -> None:
        """Round `current` and those ahead whose weights are published."""
        begun = self.pipeline.begun
        for index in range(current, min(current + self.staleness + 1, self.first + phase.rounds)):
            if _number(index) not in begun:
                role, version = phase.rolls_out_with, self._version(index)
                self.versions.reference(version, role)
                rows = prompts_of_round(self.prompts, self.config, phase.prompts_per_round, index)
                key, place = (self.config.seed, index), self._place(phase)
                known_by = self.versions.key(name(version, role))
                whole = clip_tasks(
                    rows, self.world_size, phase.clips_per_prompt, self.config, place, key, role, known_by
                )
                self.pipeline.begin(_number(index), list(whole))

    def _version(self, index: int) -> int:
        return max(index - self.staleness, self.first)

    def _place(self, phase: Phase) -> int:
        return next(
            place for place, (_, one) in enumerate(self.config.phases) if one is phase or one == phase
        )

    def _write(self, units: Units, rounds: int) -> list[Path]:
        """The first prompts set aside that the first rank would have."""
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
    """Of a round in the pipeline; what is even lies between rounds."""
    return 2 * index + 1

"""Messages between driver and workers: clip tasks, clips, scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetune.executor import RoundScores
from finetune.objectives.base import RolloutPlan
from finetune.prompts import share, shares_by_kind
from finetune.recipe import AlignConfig
from finetune.scores import Scores, means, summed
from finetune.types import Key, Rollout
from orchestration.round import Unit
from pretrain.prompt import PromptRow


@dataclass(frozen=True)
class ClipTask:
    """Clips `start` to `end` of a rank's share, one of that rank's own batches.

    Deterministic: repeating a task gives the same clips.
    """

    plan: RolloutPlan
    key: Key  # prefix of every draw
    rank: int  # that learns from it; where ranks share clips, their context group
    rows: tuple[PromptRow, ...]  # the rank's share, of one kind
    start: int
    end: int
    version: str  # of the weights
    held_out: bool = False  # the judges measure too

    @property
    def prompts(self) -> list[PromptRow]:
        """A row for each clip."""
        return [self.rows[place // self.plan.clips_per_prompt] for place in range(self.start, self.end)]


@dataclass(frozen=True)
class Origin:
    """Process that did the work, and its seconds.

    A new process of the same worker means that it was restarted.
    """

    worker: str
    process: int
    seconds: float


@dataclass(frozen=True)
class TaskClips:
    """The clips of a task."""

    rollout: Rollout
    version: str
    origin: Origin


@dataclass(frozen=True)
class TaskScores:
    """A pool's scores of the clips of a task."""

    scores: Scores
    groups: Tensor  # [n] int64
    sample_ids: Tensor  # [n] int64, ids of the scored clips
    version: str
    origins: tuple[Origin, Origin]  # of the clips and of the scores


def clip_tasks(
    rows: Sequence[PromptRow], world_size: int, plan: RolloutPlan, key: Key, version: str
) -> Iterator[ClipTask]:
    """Tasks of these prompts in the order of the learning ranks, with the ranks' own batches."""
    for rank in range(world_size):
        mine = tuple(share(rows, rank, world_size))
        total = len(mine) * plan.clips_per_prompt
        for start in range(0, total, plan.batch):
            yield ClipTask(plan, key, rank, mine, start, min(start + plan.batch, total), version)


def held_out_tasks(
    rows: Sequence[PromptRow], world_size: int, config: AlignConfig, key: Key, version: str
) -> Iterator[ClipTask]:
    """Tasks of held-out prompts of any kinds, in the order of the learning ranks."""
    plan = config.held_out_plan()
    for rank in range(world_size):
        for part in shares_by_kind(rows, config, rank, world_size):
            # no rank waits for these passes: workers hold whole policies, so nothing is filled up
            for start in range(0, part.count, plan.batch):
                end = min(start + plan.batch, part.count)
                yield ClipTask(plan, key, rank, part.own, start, end, version, held_out=True)


class ScoreGatherer:
    """Merges scores of tasks and tracks worker processes."""

    def __init__(self, config: AlignConfig) -> None:
        self.config = config
        self._processes: dict[str, int] = {}  # worker -> its process
        self._restarts = 0

    def gathered(self, units: Sequence[Unit[ClipTask, Any]]) -> RoundScores:
        """Scores of all clips in order. Raises ValueError if pools scored different clips."""
        whole: list[Scores] = []
        groups: list[torch.Tensor] = []
        seconds = {"rollout": 0.0, "score": 0.0}
        for unit in units:
            answers: list[TaskScores] = list(unit.scores.values())
            first = answers[0]
            if (
                any(not torch.equal(answer.sample_ids, first.sample_ids) for answer in answers)
                or first.version != unit.task.version
            ):
                raise ValueError(
                    f"task {unit.task.start} to {unit.task.end} of {unit.task.key}: its scores are of other "
                    "clips"
                )
            whole.append(_merged([answer.scores for answer in answers]))
            groups.append(first.groups)
            for kind, origins in (
                ("rollout", [first.origins[0]]),
                ("score", [answer.origins[1] for answer in answers]),
            ):
                seconds[kind] += sum(origin.seconds for origin in origins)
                self._note(origins)
        names = self.config.rubric.routes()
        values = {name: torch.cat([scores.values[name].double() for scores in whole]) for name in names}
        judges = {
            name: torch.cat([scores.judges[name].double() for scores in whole]) for name in whole[0].judges
        }
        reasons = {name: why for scores in reversed(whole) for name, why in scores.reasons.items()}
        work = {f"work_seconds/{kind}": value for kind, value in seconds.items()}
        return RoundScores(
            torch.cat(groups),
            values,
            {**means([summed(scores) for scores in whole]), **work},
            reasons,
            judges,
        )

    def restarts(self) -> int:
        """Workers that were replaced since the last call."""
        found, self._restarts = self._restarts, 0
        return found

    def _note(self, origins: Sequence[Origin]) -> None:
        for origin in origins:
            self._restarts += self._processes.get(origin.worker, origin.process) != origin.process
            self._processes[origin.worker] = origin.process


def _merged(parts: Sequence[Scores]) -> Scores:
    fields = ("values", "parts", "guardrails", "reasons", "judges")
    return Scores(
        *({key: value for part in parts for key, value in getattr(part, field).items()} for field in fields)
    )

"""How long jobs take, by what was measured."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestration.generation_service.job import VideoJob

NEW = 0.3  # weight of the newest batch
MOST_KINDS = 256


@dataclass
class Pace:
    """Seconds for a unit of cost (a token and a step), by kind; of kinds not seen, by all others.

    A batch's whole time counts: loading an adapter, encoding, sampling, decoding and writing. Nothing is
    guessed: before the first batch there is no estimate.
    """

    of_kind: dict[str, float] = field(default_factory=dict)
    overall: float = math.nan

    def note(self, kind: str, cost: float, seconds: float) -> None:
        """A batch of one kind took so long; cost: of its clips together."""
        measured = seconds / max(cost, 1.0)
        self.overall = _mixed(self.overall, measured)
        self.of_kind[kind] = _mixed(self.of_kind.pop(kind, math.nan), measured)
        while len(self.of_kind) > MOST_KINDS:
            self.of_kind.pop(next(iter(self.of_kind)))

    def seconds(self, jobs: Sequence[VideoJob]) -> float:
        """Of one worker for all of them, in batches such as those measured; NaN where nothing was."""
        return sum(self.of_kind.get(job.kind, self.overall) * job.cost for job in jobs)


def ahead_of(job: VideoJob, waiting: Sequence[VideoJob]) -> list[VideoJob]:
    """Of `waiting`, in the order of acceptance, those that come before a job where tokens take turns."""
    own = sum(one.owner == job.owner and one.number < job.number for one in waiting)
    turns, ahead = Counter[str](), []
    for one in waiting:
        turn = turns[one.owner]
        turns[one.owner] += 1
        if one.number != job.number and (turn < own or (turn == own and one.number < job.number)):
            ahead.append(one)
    return ahead


def estimate(
    job: VideoJob,
    ahead: Sequence[VideoJob],
    behind: Sequence[VideoJob],
    running_s: float,
    pace: Pace,
    workers: int,
    batch: int,
) -> float | None:
    """Seconds until a job is made, or None where nothing was measured yet.

    running_s: that busy workers still need, together; behind: jobs after it, some of which join its batch.
    """
    mates = [one for one in behind if one.kind == job.kind and one.number != job.number][: batch - 1]
    seconds = (running_s + pace.seconds(ahead)) / max(1, workers) + pace.seconds([job, *mates])
    return seconds if math.isfinite(seconds) else None


def _mixed(old: float, new: float) -> float:
    return new if math.isnan(old) else (1 - NEW) * old + NEW * new

"""One round of alignment over plain callables: nothing here knows ranks, files or rewards.

    clips = roll_out(round)         judged = judge(clips, score(clips))         metrics = learn(judged, round)         publish(round)

Learning is the only part that changes the policy, so whatever is raised before it leaves the state of the round before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Clips = TypeVar("Clips")
Said = TypeVar("Said")
Judged = TypeVar("Judged")
Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Parts(Generic[Clips, Said, Judged]):
    """The parts of a round. `judge` also answers what it wants logged."""

    roll_out: Callable[[int], Clips]
    score: Callable[[Clips], Said]
    judge: Callable[[Clips, Said], tuple[Judged, Metrics]]
    learn: Callable[[Judged, int], Metrics]
    publish: Callable[[int], Metrics]
    log: Callable[[dict[str, Any], int], None]


def play(index: int, parts: Parts[Clips, Said, Judged]) -> dict[str, Any]:
    """Round `index` (from 0); logs and returns its row with the seconds of each part. Raises what a part raises."""
    seconds: dict[str, float] = {}

    def timed(name: str, part: Callable[..., Any], *arguments: Any) -> Any:
        start = time.perf_counter()
        answer = part(*arguments)
        seconds[f"seconds/{name}"] = time.perf_counter() - start
        return answer

    clips = timed("rollout", parts.roll_out, index)
    said = timed("score", parts.score, clips)
    judged, found = timed("advantage", parts.judge, clips, said)
    learned = timed("update", parts.learn, judged, index)
    published = timed("publish", parts.publish, index)
    row = {**found, **learned, **published, **seconds, "seconds_per_step": sum(seconds.values())}
    parts.log(row, index + 1)
    return row

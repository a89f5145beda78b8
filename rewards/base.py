"""The interface of every reward, and how clips that cannot be scored are handled.

A clip that cannot be scored is NaN with a reason; a broken scorer raises. Never a silent 0.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar, runtime_checkable

from rewards.types import Clip, Score

PreparedT = TypeVar("PreparedT")


class Unscorable(Exception):
    """This clip (not the scorer) is at fault; the message becomes the score's reason."""


class Reward(Protocol):
    """Scores clips in batches; the answer of a clip does not depend on the others in its batch."""

    name: str

    def score(self, clips: Sequence[Clip]) -> list[Score]: ...


@runtime_checkable
class Interruptible(Protocol):
    """A reward, or a part of one, that may wait for a server."""

    def interrupt(self) -> None:
        """Wait no longer, now and later; called by signal handlers."""
        ...


def unscored(reason: str) -> Score:
    """NaN with its reason."""
    return Score(value=math.nan, reason=reason)


def score_prepared(
    clips: Sequence[Clip],
    prepare: Callable[[Clip], PreparedT],
    score: Callable[[list[PreparedT]], Sequence[Score]],
) -> list[Score]:
    """Score the clips that `prepare` accepts as one batch; the others get NaN.

    `prepare` runs on each clip and may raise Unscorable; the result has the order of `clips`.
    """
    start = time.perf_counter()
    prepared: list[PreparedT] = []
    answers: list[Score | None] = []
    for clip in clips:
        try:
            prepared.append(prepare(clip))
            answers.append(None)
        except Unscorable as error:
            answers.append(unscored(str(error)))
    scored = iter(score(prepared) if prepared else ())
    filled = [next(scored) if answer is None else answer for answer in answers]
    share = (time.perf_counter() - start) / max(1, len(clips))
    return [dataclasses.replace(answer, seconds=share) for answer in filled]

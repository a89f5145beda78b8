"""Batches of different callers: a clip that breaks a reward does not cost the others their scores."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from orchestration.futures import short_line
from orchestration.service.schema import ServedReward
from rewards.types import Clip, Score

MAX_LOST = 2  # of one batch; after that the reward itself is taken to be broken


DIED = "its process died"


class RewardFailed(Exception):
    """The reward, not the clip, is at fault; the message is one line. `again`: asking again may help."""

    def __init__(self, reason: str, again: bool = False) -> None:
        super().__init__(reason)
        self.again = again


class TryAgain(str):
    """Why a reward failed, where asking again may help."""


class Died(Exception):
    """The process that holds a reward is gone."""


@dataclass(frozen=True)
class SharedClip:
    """A clip that lies in shared memory: what is sent between processes is its reference."""

    name: str
    ref: Any


class ScoringBackend(Protocol):
    """What the web application asks: one clip, one reward. Raises RewardFailed."""

    served: Mapping[str, ServedReward]

    async def share(self, clip: Clip) -> Clip | SharedClip:
        """What `score` takes: a large clip is put into shared memory, once for all rewards."""
        ...

    async def score(self, reward: str, clip: Clip | SharedClip) -> Score: ...

    async def health(self) -> str:
        """ "" or what is wrong."""
        ...


class Holder(Protocol):
    """A reward in a process of its own."""

    async def ready(self) -> None:
        """Waits until the reward is loaded. Raises RewardFailed if it cannot be, Died if its process died."""
        ...

    async def score(self, clips: Sequence[Clip | SharedClip]) -> list[Score]:
        """Raises what the reward raises, or Died."""
        ...

    async def replace(self) -> None:
        """Ends the process and starts another."""
        ...


async def score_apart(
    clips: Sequence[Clip | SharedClip], holder: Holder, seconds: float, reward: str = ""
) -> list[Score | str]:
    """A score, or why the reward failed, for each clip in order; what it raises names reward and clip.

    The batch is scored as one. Where that fails, each clip is scored alone, so that only those at fault have
    an error; after MAX_LOST processes that died or hung the rest is given up.
    """
    answers, _ = await _attempt(clips, holder, seconds, reward)
    # A process may also have been killed by others, for its memory say, before this clip came.
    if not answers or not isinstance(answers[0], str) or (len(clips) == 1 and answers[0] != DIED):
        return answers
    alone: list[Score | str] = []
    num_lost = 0
    for clip in clips:
        if num_lost >= MAX_LOST:
            lost = f"not scored: the reward's process was lost {num_lost} times in this batch; try again"
            alone.append(TryAgain(lost))
            continue
        (answer,), lost = await _attempt([clip], holder, seconds, reward)
        num_lost += lost
        alone.append(answer)
    return alone


async def _attempt(
    clips: Sequence[Clip | SharedClip], holder: Holder, seconds: float, reward: str
) -> tuple[list[Score | str], bool]:
    """(scores or one error for all, whether the process was lost)."""
    where = " ".join(filter(None, ("reward", reward, "failed on", clips[0].name or "the clip")))
    try:
        await holder.ready()
        scores = await asyncio.wait_for(holder.score(clips), seconds)
    except TimeoutError:
        await holder.replace()
        return [f"no answer after {seconds:g} s"] * len(clips), True
    except Died:
        await holder.replace()
        return [DIED] * len(clips), True
    except Exception as error:  # whatever a reward raises
        return [f"{where}: {short_line(error)}"] * len(clips), False
    if (
        not isinstance(scores, list)
        or len(scores) != len(clips)
        or not all(isinstance(score, Score) for score in scores)
    ):
        return [f"{where}: answered something else than {len(clips)} scores"] * len(clips), False
    return list(scores), False

"""A reward in its own Ray actor: leaks, hangs and crashes stay there, and killing it ends them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from orchestration.futures import is_lost, own_error, short_line
from orchestration.service.scoring import Died, RewardFailed, SharedClip
from rewards.types import Clip, Score

LOAD_SECONDS = 600.0  # published weights are gigabytes


class RewardActor:
    """Builds its reward on `load`, so that a failure is an error and not a dead actor."""

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        self.name, self.options = name, options
        self._stack = ExitStack()
        self._reward: Any = None

    def load(self) -> None:
        from rewards.catalog import open_rewards

        if self._reward is None:
            options = {self.name: self.options} if self.options else {}
            (self._reward,) = self._stack.enter_context(open_rewards([self.name], options))

    def score(self, clips: Sequence[Clip | SharedClip]) -> list[Score]:
        return self._reward.score(
            [ray.get(clip.ref) if isinstance(clip, SharedClip) else clip for clip in clips]
        )


class RayHolder:
    """scoring.Holder of one reward of the catalog."""

    def __init__(self, name: str, options: Mapping[str, Any], num_cpus: float, num_gpus: float) -> None:
        self._make = lambda: (
            ray.remote(RewardActor).options(num_cpus=num_cpus, num_gpus=num_gpus).remote(name, dict(options))
        )
        self._actor: Any = self._make()
        self._loaded = False

    async def ready(self) -> None:
        if self._loaded:
            return
        try:
            await asyncio.wait_for(self._actor.load.remote(), LOAD_SECONDS)
        except TimeoutError:
            raise Died from None
        except Exception as error:
            if isinstance(translated := _translated(error), Died):
                raise translated from None
            raise RewardFailed(f"cannot be loaded: {short_line(translated)}") from None
        self._loaded = True

    async def score(self, clips: Sequence[Clip | SharedClip]) -> list[Score]:
        try:
            return await self._actor.score.remote(list(clips))
        except Exception as error:
            raise _translated(error) from None

    async def replace(self) -> None:
        ray.kill(self._actor)
        self._actor, self._loaded = self._make(), False


def _translated(error: Exception) -> Exception:
    """Ray's errors carry the reward's own inside, or say that its process is gone."""
    if is_lost(error):
        return Died(short_line(error))
    if isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        kind = type(error.cause).__name__
        return RewardFailed(f"{kind}: {short_line(error.cause)}")
    if isinstance(error, RayError):
        return RewardFailed(short_line(own_error(error)), again=True)
    return error

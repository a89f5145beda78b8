"""The model in a Ray actor of its own: what leaks, hangs or dies stays there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

from orchestration.futures import is_lost, own_error, short_line
from orchestration.generation_service.making import BatchMaking, MadeBatch, MakeTask, ServedModel

LOAD_SECONDS = 3600.0  # published weights are tens of gigabytes
CALL_SECONDS = 5.0


class WorkerLost(Exception):
    """The process is gone or unusable; the message says what is known."""


class MakingWorker(Protocol):
    """What the dispatcher asks of a worker: one batch at a time."""

    async def ready(self) -> None:
        """The model is loaded. Raises WorkerLost, or ValueError in one line where it cannot be."""
        ...

    async def make(self, tasks: Sequence[MakeTask]) -> MadeBatch:
        """Raises WorkerLost."""
        ...

    async def progress(self) -> float:
        """0 to 1, of the batch that is being made."""
        ...

    async def drop(self) -> None:
        """Give up that batch, soon."""
        ...

    async def replace(self) -> None:
        """End the process; another starts in its place."""
        ...


class GenerationActor:
    """Three threads: one makes, the others say how far it is and tell it to stop."""

    def __init__(self, served: ServedModel, niceness: int, threads: int) -> None:
        with suppress(OSError):
            os.nice(niceness)  # answers come before frames
        self._threads = threads
        self._making = BatchMaking(served)

    def load(self) -> str:
        """ "" or why the model cannot be loaded."""
        self._set_threads()
        try:
            self._making.load()
        except (ValueError, FileNotFoundError) as error:
            return short_line(error)
        return ""

    def make(self, tasks: Sequence[MakeTask]) -> MadeBatch:
        self._set_threads()
        return self._making.make(tasks)

    def _set_threads(self) -> None:
        """Of the thread that calls, whichever of the actor's it is."""
        import torch

        torch.set_num_threads(self._threads)

    def progress(self) -> float:
        return self._making.progress()

    def drop(self) -> None:
        self._making.drop()


class RayMakingWorker:
    """A MakingWorker whose actor ends with the process that made it."""

    def __init__(self, served: ServedModel, *, cpus: float, gpus: float, niceness: int, threads: int) -> None:
        self._given = (served, niceness, threads)
        self._options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "max_concurrency": 3}
        self._actor: Any = self._made()
        self._loaded = False

    def _made(self) -> Any:
        import ray

        return ray.remote(GenerationActor).options(**self._options).remote(*self._given)

    async def ready(self) -> None:
        if self._loaded:
            return
        if reason := await self._ask(self._actor.load, LOAD_SECONDS):
            raise ValueError(reason)
        self._loaded = True

    async def make(self, tasks: Sequence[MakeTask]) -> MadeBatch:
        return await self._ask(self._actor.make, None, list(tasks))

    async def progress(self) -> float:
        return await self._ask(self._actor.progress, CALL_SECONDS)

    async def drop(self) -> None:
        await self._ask(self._actor.drop, CALL_SECONDS)

    async def replace(self) -> None:
        import ray

        ray.kill(self._actor)
        self._actor, self._loaded = self._made(), False

    async def _ask(self, method: Any, seconds: float | None, *arguments: Any) -> Any:
        from ray.exceptions import RayError, RayTaskError

        try:
            async with asyncio.timeout(seconds):
                return await method.remote(*arguments)
        except TimeoutError:
            raise WorkerLost(f"no answer after {seconds:g} s") from None
        except RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            raise WorkerLost(f"{type(cause).__name__}: {short_line(cause)}") from None
        except RayError as error:
            raise WorkerLost(_why(error)) from None


def _why(error: Exception) -> str:
    from ray.exceptions import OutOfMemoryError

    if isinstance(error, OutOfMemoryError):
        return "Ray ended its process, as the machine had too little memory left"
    return "its process died" if is_lost(error) else str(own_error(error))

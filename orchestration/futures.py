"""Waiting for Ray futures: errors in one line, interruption by signals, early failure of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from finetune.executor import Stopped
from pretrain.config import one_line

_POLL_S = 0.5  # interval at which signals are checked
_DEATH_NOTICE_S = 15.0  # Ray learns of a rank's death after other ranks fail because of it

short_line = partial(one_line, limit=300)


class LostRank(Exception):
    """A trainer rank died."""


class Futures:
    """`stop_requested` may be set by a signal handler; it takes effect where `stoppable`."""

    def __init__(self) -> None:
        self.stop_requested = self.stoppable = False
        self._watched: dict[Any, Any] = {}  # a rank's future -> its result

    def check(self) -> None:
        """Raises Stopped after a signal."""
        if self.stop_requested:
            raise Stopped

    def put(self, value: Any) -> Any:
        import ray

        return ray.put(value)

    def wait(self, futures: Sequence[Any]) -> Sequence[Any]:
        """The finished futures, possibly none; returns at least every poll interval.

        Raises Stopped after a signal if stoppable, and errors of watched ranks.
        """
        import ray

        if self.stoppable:
            self.check()
        pending = list(futures)
        # wait in short intervals: a blocking ray.wait would not return to Python for signal handlers
        done, _ = ray.wait(pending, num_returns=1, timeout=_POLL_S, fetch_local=False)
        if done:  # collect everything that is ready, not only the first
            done, _ = ray.wait(pending, num_returns=len(pending), timeout=0, fetch_local=False)
        for future in done:
            if future in self._watched:
                self._watched[future] = self._answer_of_rank(future)
        return done

    def watch(self, futures: Sequence[Any]) -> None:
        """Make `wait` raise as soon as one of these ranks' futures fails, as the others would block forever.

        LostRank if a rank died, else the rank's own error.
        """
        self._watched = dict.fromkeys(futures)

    def watched(self) -> list[Any]:
        """Results of the watched futures in order; clears the list."""
        answers = list(self._watched.values())
        self._watched = {}
        return answers

    def result(self, future: Any) -> Any:
        """A worker's result. Raises the worker's own error, or OSError if it was lost too often."""
        import ray
        from ray.exceptions import RayError

        try:
            return ray.get(future)
        except RayError as error:
            raise own_error(error) from None

    def _answer_of_rank(self, future: Any) -> Any:
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            return ray.get(future)
        except RayTaskError as error:  # before the other clauses: it also derives from its cause's class
            if self._another_died():
                raise LostRank(short_line(error.cause)) from None
            raise own_error(error) from None
        except RayError as error:
            raise (LostRank(short_line(error)) if is_lost(error) else own_error(error)) from None

    def _another_died(self) -> bool:
        import ray
        from ray.exceptions import RayError

        done, _ = ray.wait(
            list(self._watched), num_returns=len(self._watched), timeout=_DEATH_NOTICE_S, fetch_local=False
        )
        for future in done:
            try:
                ray.get(future)
            except RayError as error:
                if is_lost(error):
                    return True
        return False


def is_lost(error: BaseException) -> bool:
    """A process is gone that was asked for something, by itself, for want of memory or with its machine."""
    from ray.exceptions import RayTaskError

    return isinstance(error, _gone()) and not isinstance(error, RayTaskError)


def _gone() -> tuple[type[Exception], ...]:
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError

    return RayActorError, WorkerCrashedError, OutOfMemoryError, NodeDiedError


def own_error(error: Any) -> Exception:
    """The remote exception as if raised locally; OSError in one line for failures of Ray itself."""
    from ray.exceptions import (
        ActorUnschedulableError,
        ObjectLostError,
        RayError,
        RayTaskError,
        RuntimeEnvSetupError,
    )

    cause = error.cause if isinstance(error, RayTaskError) else error
    if not isinstance(cause, RayError):
        return (
            cause
            if isinstance(cause, (ValueError, OSError))
            else ValueError(f"{type(cause).__name__}: {short_line(cause)}")
        )
    if isinstance(cause, _gone()):
        return OSError(f"a worker was lost more often than max_restarts allows: {short_line(cause)}")
    if isinstance(cause, (RuntimeEnvSetupError, ActorUnschedulableError)):
        return OSError(
            f"Ray cannot start a process, look at its runtime_env and what it reserves: {short_line(cause)}"
        )
    if isinstance(cause, ObjectLostError):
        return OSError(f"Ray lost what a worker had made: {short_line(cause)}")
    return OSError(f"Ray failed ({type(cause).__name__}): {short_line(cause)}")

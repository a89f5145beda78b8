"""Ray's futures as the pipeline wants them, with errors in one line; waiting ends on signals and where ranks
fail."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from finetune.executor import Stopped
from pretrain.config import one_line as whole_line

_POLL_S = 0.5  # how soon a signal is noticed
_DEATH_NOTICE_S = 15.0  # a rank may fail for another's death before Ray knows of that one

one_line = partial(whole_line, limit=300)


class LostRank(Exception):
    """A rank that trains is gone."""


class Futures:
    """`stop_requested` may be set from a signal handler; it is noticed where `stoppable`."""

    def __init__(self) -> None:
        self.stop_requested = self.stoppable = False
        self._watched: dict[Any, Any] = {}  # a rank's future -> its answer, once there

    def check(self) -> None:
        """Raises Stopped after a signal."""
        if self.stop_requested:
            raise Stopped

    def put(self, value: Any) -> Any:
        import ray

        return ray.put(value)

    def wait(self, futures: Sequence[Any]) -> Sequence[Any]:
        """Those that are done; none after a while, or where there are none. Raises Stopped after a signal
        where that is welcome, and what `watch` says."""
        import ray

        if self.stoppable:
            self.check()
        asked = list(futures)
        done, _ = ray.wait(asked, num_returns=1, timeout=_POLL_S, fetch_local=False)
        if done:
            done, _ = ray.wait(asked, num_returns=len(asked), timeout=0, fetch_local=False)
        for future in done:
            if future in self._watched:
                self._watched[future] = self._answer_of_rank(future)
        return done

    def watch(self, futures: Sequence[Any]) -> None:
        """Ranks' futures: `wait` raises as soon as one of them fails, for the others then wait for it in
        vain. LostRank where one is gone, else the rank's own error."""
        self._watched = dict.fromkeys(futures)

    def watched(self) -> list[Any]:
        """What the watched ones answered, in the order given; they are forgotten."""
        answers = list(self._watched.values())
        self._watched = {}
        return answers

    def result(self, future: Any) -> Any:
        """A worker's answer. Raises its own error, or OSError where it was lost too often."""
        import ray
        from ray.exceptions import RayError

        try:
            return ray.get(future)
        except RayError as error:
            raise _own(error) from None

    def _answer_of_rank(self, future: Any) -> Any:
        import ray
        from ray.exceptions import RayActorError, RayError, RayTaskError

        try:
            return ray.get(future)
        except RayTaskError as error:  # before the others: it is also of its cause's class
            if self._another_died():
                raise LostRank(one_line(error.cause)) from None
            raise _own(error) from None
        except RayActorError as error:
            raise LostRank(one_line(error)) from None
        except RayError as error:
            raise _own(error) from None

    def _another_died(self) -> bool:
        import ray
        from ray.exceptions import RayActorError, RayError, RayTaskError

        done, _ = ray.wait(
            list(self._watched), num_returns=len(self._watched), timeout=_DEATH_NOTICE_S, fetch_local=False
        )
        for future in done:
            try:
                ray.get(future)
            except RayError as error:
                if isinstance(error, RayActorError) and not isinstance(error, RayTaskError):
                    return True
        return False


def _own(error: Any) -> Exception:
    """What was raised over there, as it would have been here; OSError for what Ray itself could not do."""
    from ray.exceptions import (
        ActorUnschedulableError,
        RayActorError,
        RayError,
        RayTaskError,
        RuntimeEnvSetupError,
    )

    cause = error.cause if isinstance(error, RayTaskError) else error
    if not isinstance(cause, RayError):
        return (
            cause
            if isinstance(cause, (ValueError, OSError))
            else ValueError(f"{type(cause).__name__}: {one_line(cause)}")
        )
    if isinstance(cause, RayActorError):
        return OSError(f"a worker was lost more often than max_restarts allows: {one_line(cause)}")
    if isinstance(cause, (RuntimeEnvSetupError, ActorUnschedulableError)):
        return OSError(
            f"Ray cannot start a process, look at its runtime_env and what it reserves: {one_line(cause)}"
        )
    return OSError(f"Ray lost what a worker had made: {one_line(cause)}")

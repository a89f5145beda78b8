"""Waiting for a server that has answered before, so that its restart does not end hours of work."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from rewards.http import MAX_WAIT_S, NoAnswer, Unending

T = TypeVar("T")
PATIENCE_S = 600.0
MAX_BACKOFF_S = 20.0  # so that a server that is back is found soon
TOLD_AFTER_S = 3.0
_SLICE_S = 0.25  # of a pause, after which it is asked whether to go on
_TELLING = threading.Lock()  # of the module: a Patience can be pickled


@dataclass
class Patience:
    """Asks one server again where it gave no answer; for use from many threads.

    A server that never answered gets `num_tries` tries, so a mistyped address is told at once. One that has
    answered is asked, in growing pauses, until `seconds` after a request's first failure; then the others get
    `num_tries` as well, until it answers again. stderr has a line when an outage is longer than the usual
    tries, and one when the server is back. `where` and `peer` are those of the messages. Raises ValueError
    for a wrong `seconds`.
    """

    seconds: float
    num_tries: int
    backoff_s: float  # after the first failure, doubled by each further one; a longer Retry-After wins
    where: str
    peer: str
    answered: bool = False
    given_up: bool = False
    away_since: float | None = None  # of an outage that was told, time.monotonic()
    interrupted: bool = False  # no pauses any more; set by a signal handler

    def __post_init__(self) -> None:
        self.seconds, self.backoff_s = float(self.seconds), float(self.backoff_s)
        if not 0 <= self.seconds < math.inf:
            raise ValueError(f"patience_s {self.seconds:g}: a number of seconds, 0 or more")

    def call(self, once: Callable[[], T], stopped: Callable[[], bool] = lambda: False) -> T:
        """What `once` returns; it is called again where it raises NoAnswer, unless `stopped`.

        Raises ConnectionError in one line.
        """
        done, first_failure = 0, 0.0
        while True:
            try:
                answer = once()
            except NoAnswer as error:
                now, done = time.monotonic(), done + 1
                first_failure = first_failure or now
                left = first_failure + self._patience() - now
                over = done >= self.num_tries
                if isinstance(error, Unending) or self._ends(stopped) or (over and left <= 0):
                    self.given_up = self.given_up or (over and self.answered)
                    raise self._failure(error, done, now - first_failure) from None
                if left > 0 and (over or now - first_failure >= TOLD_AFTER_S):
                    self._tell_away(error, first_failure, left)
                _pause(self._pause_s(error, done, left if over else math.inf), lambda: self._ends(stopped))
            else:
                self._tell_back()
                return answer

    def _ends(self, stopped: Callable[[], bool]) -> bool:
        return self.interrupted or stopped()

    def _patience(self) -> float:
        return self.seconds if self.answered and not self.given_up else 0.0

    def _pause_s(self, error: NoAnswer, done: int, left: float) -> float:
        backoff = min(MAX_BACKOFF_S, self.backoff_s * 2 ** min(done - 1, 30))
        return min(MAX_WAIT_S, max(error.wait_s, backoff), left)

    def _failure(self, error: NoAnswer, done: int, seconds: float) -> ConnectionError:
        tries = f"{done} tries" + (f" in {seconds:.0f} s" if seconds >= 10 else "")
        return ConnectionError(f"{self.where}: {error.reason}, {tries}; check that the {self.peer} is up")

    def _tell_away(self, error: NoAnswer, since: float, left: float) -> None:
        with _TELLING:
            if self.away_since is not None:
                return
            self.away_since = since
        print(
            f"{self.where}: {error.reason}; the {self.peer} is asked again for up to {left:.0f} s",
            file=sys.stderr,
            flush=True,
        )

    def _tell_back(self) -> None:
        self.answered, self.given_up = True, False
        with _TELLING:
            since, self.away_since = self.away_since, None
        if since is not None:
            print(
                f"{self.where}: the {self.peer} answers again, after {time.monotonic() - since:.0f} s",
                file=sys.stderr,
                flush=True,
            )


@dataclass
class PatientBatch:
    """Requests of many threads that are of no use any more once it has `ended`."""

    patience: Patience
    ended: bool = False

    def call(self, once: Callable[[], T]) -> T:
        """`Patience.call` until then."""
        return self.patience.call(once, lambda: self.ended)


def _pause(seconds: float, stopped: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not stopped():
        time.sleep(min(left, _SLICE_S))

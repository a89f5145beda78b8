"""How long checkpoints took, by part, since the last log row."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torchtitan.tools.logging import logger


@dataclass
class CheckpointParts:
    """Sums over a window; a part that no checkpoint had is not in the row."""

    stopped_s: float = 0.0  # training stood still: all that follows but writing behind its back
    wait_s: float = 0.0  # for the state before to be written
    staging_s: float = 0.0  # copying to the host, of asynchronous ones
    write_s: float = 0.0  # also behind training's back, in the window in which it ended

    def row(self) -> dict[str, float]:
        """Fields of a log row."""
        return {f"time/checkpoint_{name}": value for name, value in vars(self).items() if value}


@dataclass
class _Saving:
    result: Any = None


@dataclass
class CheckpointTimes:
    """Measured around torchtitan's manager; a write that ends in its thread is counted there."""

    parts: CheckpointParts = field(default_factory=CheckpointParts)
    lock: threading.Lock = field(default_factory=threading.Lock)
    saves: int = 0

    def take(self) -> CheckpointParts:
        """The sums since the last call."""
        with self.lock:
            parts, self.parts = self.parts, CheckpointParts()
        return parts

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Around a whole `save`, which returns at once where none is due."""
        begin, before = time.perf_counter(), self.saves
        yield
        if self.saves > before:
            self._add(stopped_s=time.perf_counter() - begin)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._add(wait_s=time.perf_counter() - begin)

    @contextmanager
    def saving(self, asynchronous: bool) -> Iterator[_Saving]:
        """Around DCP's save; its result is given to what this yields."""
        begin, saving, self.saves = time.perf_counter(), _Saving(), self.saves + 1
        yield saving
        staged = time.perf_counter()
        if not asynchronous:
            return self._written(staged - begin)
        self._add(staging_s=staged - begin)
        logger.info(f"checkpoint staged in {staged - begin:.2f} s")
        done = getattr(saving.result, "upload_completion", saving.result)
        if isinstance(done, Future):
            done.add_done_callback(
                lambda future: None if future.exception() else self._written(time.perf_counter() - staged)
            )

    def _written(self, seconds: float) -> None:
        self._add(write_s=seconds)
        logger.info(f"checkpoint written in {seconds:.2f} s")

    def _add(self, **seconds: float) -> None:
        with self.lock:
            for name, value in seconds.items():
                setattr(self.parts, name, getattr(self.parts, name) + value)

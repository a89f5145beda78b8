"""torchtitan's profiler and memory snapshots around chosen steps of chosen ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torchtitan.config import Profiling
from torchtitan.tools.logging import logger
from torchtitan.tools.profiling import maybe_enable_memory_snapshot, maybe_enable_profiling
from torchtitan.tools.utils import device_module

from pretrain.recipe import MonitorConfig


class StepProfiler:
    """Call `before` and `after` with each step. Writes out/profile_traces/iteration_LAST/rankN_trace.json
    and, on a
    GPU, out/memory_snapshot/iteration_LAST/rankN_memory_snapshot.pickle for each (first, last) of
    `MonitorConfig.profile`; a run that resumes between them has a trace of what is left."""

    def __init__(self, config: MonitorConfig, out: Path, rank: int) -> None:
        self.warmup, self.out = config.profile_warmup, out
        self.spans = config.spans() if config.profiles(rank) else []
        self.opened: ExitStack | None = None
        self.parts: list[Any] = []

    def before(self, step: int) -> None:
        """Opens the profile that begins, a step before its warmup, as torchtitan's schedule counts from
        there."""
        if self.opened or not self.spans:
            return
        first, last = self.spans[0]
        if step > last:
            self.spans.pop(0)
            return self.before(step)
        if step >= first - self.warmup - 1:
            self._open(first, last, step - 1)

    def after(self, step: int) -> None:
        """Ends the step in the profile; with its last one the files are written."""
        if self.opened is None:
            return
        for part in self.parts:
            part.step()
        if step == self.spans[0][1]:
            self.parts[0].on_trace_ready = None  # where the next period begins at once, it has begun
            self.close()
            self.spans.pop(0)

    def close(self) -> None:
        """End a profile that is open; a trace that has begun is written as far as it came."""
        if self.opened:
            self.opened.close()
        self.opened, self.parts = None, []

    def _open(self, first: int, last: int, steps_done: int) -> None:
        # of torchtitan's period of `last` steps the last ones are recorded, and the period begins at step 1
        active = last - first + 1
        config = Profiling(
            enable_profiling=True,
            profile_freq=last,
            profiler_active=active,
            profiler_warmup=min(self.warmup, last - active),
            enable_memory_snapshot=torch.cuda.is_available(),
        )
        where = {"global_step": steps_done, "base_folder": str(self.out)}
        with _without_gpu(), ExitStack() as opened:
            self.parts = [opened.enter_context(maybe_enable_profiling(config, **where))]
            if config.enable_memory_snapshot:
                opened.callback(device_module.memory._record_memory_history, None)
                self.parts.append(opened.enter_context(maybe_enable_memory_snapshot(config, **where)))
            self.opened = opened.pop_all()
        logger.info(f"profiling steps {first} to {last} from step {steps_done + 1} on")


@contextmanager
def _without_gpu() -> Iterator[None]:
    """torchtitan names the activity of a GPU, which is None where there is none, and which torch refuses."""
    profile = torch.profiler.profile

    def of_what_is_there(*, activities: list[Any], **options: Any) -> Any:
        return profile(activities=[activity for activity in activities if activity is not None], **options)

    with mock.patch.object(torch.profiler, "profile", of_what_is_there):
        yield

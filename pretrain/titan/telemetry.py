"""How fast and how full the ranks are: one gathered row per logging window, from numbers that the host has.

Nothing here asks the device: times are those of the host, FLOPs follow from shapes, memory is what the
allocator has counted. Ranks exchange them over gloo, so no device waits either.
"""

from __future__ import annotations

import resource
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
import torch.distributed as dist
from torchtitan.components.metrics import (
    DeviceMemoryMonitor,
    MetricsProcessor,
    build_device_memory_monitor,
)
from torchtitan.tools.logging import logger

from pretrain.titan.window import StepResult

_FALLBACK = ("A100", 312e12)  # what torchtitan takes for a device that it does not know


@dataclass
class RankTimes:
    """A rank's sums over a window: seconds by part, FLOPs, and peaks of memory in GiB."""

    step: float = 0.0  # whole steps, without checkpoints and validation
    data: float = 0.0  # waited for the loader
    prepare: float = 0.0  # noised on the host and sent to the device
    checkpoint: float = 0.0  # training stood still for one
    flops: float = 0.0
    active_gib: float = 0.0  # of the device's allocator
    reserved_gib: float = 0.0
    resident_gib: float = 0.0  # of the process, since it began


class Slowest(NamedTuple):
    """The rank that spent most on a part, with its seconds a step and the median over the ranks."""

    rank: int
    seconds: float
    median: float


class Telemetry:
    """Rows of speed, memory and stragglers; all ranks call `row`. `processor` is torchtitan's."""

    def __init__(self, processor: MetricsProcessor, device: torch.device, peak_tflops: float) -> None:
        self.processor, self.device = processor, device
        self.peak_flops = peak_tflops * 1e12 or known_peak(
            device.type, processor.device_memory_monitor.device_name, processor.gpu_peak_flops
        )
        self.memory = MemoryPeaks(device, processor.device_memory_monitor)
        # of the default group where that is on the host anyway, or pretended
        here = dist.get_backend() in ("gloo", "fake")
        self.group = None if here else dist.new_group(backend="gloo")

    def waited(self) -> float:
        """Seconds in which the loader was waited for since the last call."""
        times = self.processor.data_loading_times
        seconds = sum(times)
        times.clear()
        return seconds

    def row(self, steps: Sequence[StepResult], seconds: float, checkpoint_s: float) -> dict[str, float]:
        """steps: of this rank since the last row; seconds: from their begin to their end, equal on all
        ranks up to waiting; checkpoint_s: of them in which training stood still for checkpoints."""
        mine = RankTimes(
            step=sum(step.seconds for step in steps),
            data=sum(step.data_s for step in steps),
            prepare=sum(step.prepare_s for step in steps),
            checkpoint=checkpoint_s,
            flops=sum(step.flops for step in steps),
            **self.memory.take(),
        )
        ranks = gathered(mine, self.group)
        row = self._speed(ranks, len(steps), seconds)
        if len(ranks) > 1 and dist.get_rank() == 0:
            found = {
                part: slowest(ranks, part, len(steps)) for part in ("data", "prepare", "step", "checkpoint")
            }
            row |= {f"time/slowest_{part}_s": one.seconds for part, one in found.items()}
            row |= {f"time/slowest_{part}_rank": one.rank for part, one in found.items()}
            logger.info(straggler_line(found, len(ranks)))
        return row

    def _speed(self, ranks: Sequence[RankTimes], num_steps: int, seconds: float) -> dict[str, float]:
        flops_per_s = sum(rank.flops for rank in ranks) / len(ranks) / seconds
        mean = {part: sum(getattr(rank, part) for rank in ranks) / len(ranks) for part in ("data", "prepare")}
        whole = sum(rank.step for rank in ranks) / len(ranks)
        row = {
            "tflops_per_s_per_rank": flops_per_s / 1e12,
            "time/data_wait_s": mean["data"] / num_steps,
            "time/data_wait_percent": 100 * mean["data"] / max(whole, 1e-9),
            "time/prepare_s": mean["prepare"] / num_steps,
        }
        row |= {"mfu_percent": 100 * flops_per_s / self.peak_flops} if self.peak_flops else {}
        for name in ("active", "reserved", "resident"):
            peak = max(getattr(rank, f"{name}_gib") for rank in ranks)
            row |= {f"memory/max_{name}_gib": peak} if peak > 0 else {}
        return row


class MemoryPeaks:
    """Peaks of this process since the last call, in GiB: of the device's allocator by torchtitan's monitor,
    and of what is resident since the process began."""

    def __init__(self, device: torch.device, monitor: DeviceMemoryMonitor | None = None) -> None:
        self.device, self.monitor = device, monitor or build_device_memory_monitor()

    def take(self) -> dict[str, float]:
        """`active_gib` and `reserved_gib` of a GPU, `resident_gib`."""
        resident = {"resident_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
        if self.device.type == "cpu":
            return resident
        stats = self.monitor.get_peak_stats()
        self.monitor.reset_peak_stats()
        return {"active_gib": stats.max_active_gib, "reserved_gib": stats.max_reserved_gib, **resident}

    def row(self) -> dict[str, float]:
        """As fields of a log row."""
        return {f"memory/max_{name}": value for name, value in self.take().items()}


def known_peak(device_type: str, name: str, flops: float) -> float:
    """torchtitan's FLOP/s of a device, 0 for a CPU and where it stands for one that torchtitan does not
    know."""
    guessed = flops == _FALLBACK[1] and _FALLBACK[0] not in name
    return 0.0 if device_type == "cpu" or guessed else flops


def gathered(mine: RankTimes, group: dist.ProcessGroup | None) -> list[RankTimes]:
    """Those of all ranks, in order. group: on the host; None = the default one."""
    names = [item.name for item in fields(RankTimes)]
    given = torch.tensor([getattr(mine, name) for name in names], dtype=torch.float64)
    found = [torch.zeros_like(given) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, given, group=group)
    return [RankTimes(**dict(zip(names, one.tolist(), strict=True))) for one in found]


def slowest(ranks: Sequence[RankTimes], part: str, num_steps: int) -> Slowest:
    """Of a part of `RankTimes`, in seconds a step."""
    values = [getattr(rank, part) / num_steps for rank in ranks]
    worst = max(range(len(values)), key=values.__getitem__)
    return Slowest(worst, values[worst], statistics.median(values))


def straggler_line(found: dict[str, Slowest], num_ranks: int) -> str:
    """One line: of each part the slowest rank, its seconds a step, and the median over the ranks."""
    parts = ", ".join(
        f"{name} rank {one.rank} {one.seconds:.4f} s (median {one.median:.4f})" for name, one in found.items()
    )
    return f"slowest of {num_ranks} ranks, a step: {parts}"

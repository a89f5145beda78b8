"""What a stage takes of its machine: processors, memory, disk and GPUs, named as MLflow names system metrics.

MLflow shows metrics called `system/...` on a page of their own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import psutil

from experiments.runs.memory import PeakMemory
from experiments.runs.spool import SpooledRun
from experiments.runs.tracker import SpoolTracker
from pretrain.config import one_line

log = logging.getLogger(__name__)
MB, GIB = 1e6, 2**30  # MLflow's megabytes are decimal
SHARE = 0.004  # of a core, at most: the memory of large processes takes long to sum up


@contextmanager
def system_metrics(tracker: SpoolTracker, period_s: float) -> Iterator[None]:
    """Log samples of this machine every `period_s` seconds, and `peak_memory_gib` at the end; 0 = nothing."""
    if not period_s:
        yield
        return
    with _Sampler(tracker, period_s):
        yield


class _Sampler:
    """A thread that samples. The step of a sample is the seconds since the run first began, so that points of
    a run that goes on come after the earlier ones. A sample that fails ends the sampling, never the run."""

    def __init__(self, tracker: SpoolTracker, period_s: float) -> None:
        self.tracker, self.period_s = tracker, period_s
        self.memory, self.gpus = PeakMemory(), gpu_reader()
        self.began_s = _began_s(tracker)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="system-metrics")

    def __enter__(self) -> None:
        self.memory.sample()
        psutil.cpu_percent()  # the next call answers for the time since this one
        self.tracker.logged(0)  # reads the points of an earlier attempt, before there are two threads
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.memory.sample()
        self._log({"peak_memory_gib": self.memory.peak_bytes / GIB})

    def _watch(self) -> None:
        wait_s = self.period_s
        try:
            while not self._done.wait(wait_s):
                begun_s = time.thread_time()
                self._log({f"system/{name}": value for name, value in self._sample().items()})
                wait_s = max(self.period_s, (time.thread_time() - begun_s) / SHARE)
        except Exception as error:
            log.warning("tracking: system metrics end here (%s)", one_line(error, 300))

    def _log(self, metrics: Mapping[str, float]) -> None:
        self.tracker.log_metrics(metrics, max(int(time.time() - self.began_s), 0))

    def _sample(self) -> dict[str, float]:
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(self.tracker.folder))
        return {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": round(memory.used / MB, 1),
            "system_memory_usage_percentage": round(memory.used / memory.total * 100, 1),
            "disk_available_megabytes": round(disk.free / MB, 1),  # where the run is spooled
            "process_tree_memory_megabytes": round(self.memory.sample() / MB, 1),
            **self.gpus(),
        }


def _began_s(tracker: SpoolTracker) -> float:
    """Seconds since 1970 of the run's first start."""
    run = SpooledRun(tracker.folder)
    events = run.events() if run.exists() else ()
    return next((event["time_ms"] / 1000 for _, event in events if event["kind"] == "start"), time.time())


def gpu_reader() -> Callable[[], dict[str, float]]:
    """Reads all GPUs of the machine by NVML; reads none without nvidia-ml-py or a driver."""
    try:
        import pynvml  # pyright: ignore[reportMissingImports]

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except Exception:  # no package, no driver, no right to it: a machine without GPUs to look at
        return dict

    def read() -> dict[str, float]:
        found: dict[str, float] = {}
        for index, handle in enumerate(handles):
            try:
                memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
                found[f"gpu_{index}_memory_usage_megabytes"] = round(int(memory.used) / MB, 1)
                found[f"gpu_{index}_memory_usage_percentage"] = round(
                    int(memory.used) / int(memory.total) * 100, 1
                )
                busy = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
                found[f"gpu_{index}_utilization_percentage"] = float(busy)
            except pynvml.NVMLError:  # a part of a GPU (MIG) has no utilization
                continue
        return found

    return read

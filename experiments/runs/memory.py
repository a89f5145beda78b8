"""Peak memory of this process and everything it started."""

from __future__ import annotations

import threading
from pathlib import Path

import psutil


class PeakMemory:
    """Context manager that samples the process tree in a thread.

    Linux: the sum of PSS, which counts a page shared by several processes once. Elsewhere: the sum of RSS,
    which counts it for each of them.
    """

    def __init__(self, period_s: float = 2.0) -> None:
        self.peak_bytes = 0
        self.kind = "sum of PSS" if Path("/proc/self/smaps_rollup").exists() else "sum of RSS"
        self._period_s = period_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self.sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.sample()

    def sample(self) -> int:
        """Bytes of the process tree."""
        me = psutil.Process()
        total = sum(self._of(process) for process in [me, *me.children(recursive=True)])
        self.peak_bytes = max(self.peak_bytes, total)
        return total

    def _of(self, process: psutil.Process) -> int:
        try:
            if self.kind == "sum of PSS":
                rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                return next(
                    int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:")
                )
            return process.memory_info().rss
        except (OSError, psutil.Error, StopIteration):  # it exited between listing and reading
            return 0

    def _watch(self) -> None:
        while not self._done.wait(self._period_s):
            self.sample()

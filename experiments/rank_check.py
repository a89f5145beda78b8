"""`nava doctor --distributed`: do all ranks answer, and how fast is their all-reduce?

Run by each rank: `python -m experiments.rank_check OPTIONS.json` under torchrun, or the command itself
under a torchrun of one's own. A rank that does not answer is named after `patience_s`, where a collective
would wait for its timeout: first by the store that all ranks meet at, then by torch's monitored barrier in
a gloo group (it has no other). The first all-reduce sets the connections up, NCCL's among them, and may take
`setup_s`; those that are timed may take `patience_s` each size.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from pretrain.config import one_line
from pretrain.files import write_json

SLOW, BROKEN = 1, 3  # exit codes
MIB = 2**20
_MISSED = re.compile(r"[Rr]anks? ([\d, ]+) failed to pass monitoredBarrier")


@dataclass(frozen=True, kw_only=True)
class RankCheck:
    """What is asked. Raises ValueError outside of the ranges."""

    patience_s: float = 10.0  # a rank that has not answered for so long is broken
    setup_s: float = 180.0  # the same for the first all-reduce, in which NCCL is set up
    sizes_mib: tuple[float, ...] = (0.0625, 1.0, 16.0, 64.0)  # of the tensor that is summed
    expect_gb_s: float = (
        0.0  # bus bandwidth of the largest size that is expected at least; 0 = none is stated
    )
    repeats: int = 5
    to: str = ""  # file of rank 0's report

    def __post_init__(self) -> None:
        if not (self.patience_s > 0 and self.setup_s > 0) or self.expect_gb_s < 0 or self.repeats < 1:
            raise ValueError(
                "doctor --distributed: patience, setup and repeats must be positive and the expectation not "
                f"negative, got {self.patience_s:g}, {self.setup_s:g}, {self.repeats} and "
                f"{self.expect_gb_s:g}"
            )
        if not self.sizes_mib or min(self.sizes_mib) <= 0:
            raise ValueError(f"doctor --distributed: sizes must be above 0 MiB, got {self.sizes_mib}")


@dataclass
class RankReport:
    """What was found; `broken` ranks with the step at which they did not answer."""

    ranks: int = 0
    backend: str = ""
    broken: list[int] = field(default_factory=list)
    at: str = ""
    hosts: list[str] = field(default_factory=list)
    first_s: float = 0.0  # of the first all-reduce, with the set-up of its connections
    # per size: mib, seconds (median), gb_s (bytes per second), bus_gb_s (x 2 (n - 1) / n, as nccl-tests
    # has it)
    all_reduce: list[dict[str, float]] = field(default_factory=list)
    expect_gb_s: float = 0.0
    wrong: dict[str, list[int]] = field(default_factory=dict)  # ranks that had wrong sums, by MiB

    @property
    def bus_gb_s(self) -> float:
        """Bus bandwidth of the largest size; infinite before one was measured."""
        return max(self.all_reduce, key=lambda row: row["mib"], default={"bus_gb_s": math.inf})["bus_gb_s"]

    @property
    def code(self) -> int:
        """Exit code: 0 all well, SLOW, or BROKEN."""
        if self.broken or self.at or self.wrong:
            return BROKEN
        return SLOW if self.bus_gb_s < self.expect_gb_s else 0

    def lines(self) -> list[str]:
        """For a person."""
        if self.at:
            who = f"rank {', '.join(map(str, self.broken))}" if self.broken else "some rank"
            return [f"broken: {who} of {self.ranks} did not answer {self.at}"]
        machines = len(set(self.hosts))
        found = [f"{self.ranks} ranks on {machines} machine{'s' * (machines > 1)} answer ({self.backend})"]
        found.append(f"first all-reduce, which sets the connections up: {self.first_s:.2f} s")
        found += [
            f"all-reduce of {row['mib']:g} MiB: {1e3 * row['seconds']:.2f} ms, {row['gb_s']:.2f} GB/s, bus "
            f"{row['bus_gb_s']:.2f} GB/s"
            for row in self.all_reduce
        ]
        found += [
            f"broken: sums of {mib} MiB came out wrong on rank {', '.join(map(str, ranks))} of {self.ranks}; "
            "check its links and its GPU's memory"
            for mib, ranks in self.wrong.items()
        ]
        if self.wrong:
            return found
        if not self.expect_gb_s:
            return [*found, "no bandwidth was expected (--expect-gb-s)"]
        verdict = "slow" if self.code else "as expected"
        return [
            *found,
            f"{verdict}: bus {self.bus_gb_s:.2f} GB/s of the {self.expect_gb_s:g} GB/s that were expected",
        ]


class _Unanswered(Exception):
    """Ranks that did not answer, and at what."""

    def __init__(self, ranks: list[int], at: str) -> None:
        super().__init__(ranks, at)
        self.ranks, self.at = ranks, at


def check_ranks(options: RankCheck, pause: Callable[[str], None] = lambda step: None) -> RankReport:
    """The check of this rank of torchrun's environment; the report of rank 0 is whole, the others have its
    verdict.

    pause: called before each step with its name, for tests of ranks that stop there.
    """
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    report = RankReport(ranks=world_size, expect_gb_s=options.expect_gb_s)
    patience = timedelta(seconds=options.patience_s)
    try:
        pause("meeting")
        store = _met(rank == 0, patience)
        report.hosts = _all_there(store, rank, world_size, options.patience_s)
        watched = partial(_Watched, _met(False, patience), rank, world_size, options, report)
        pause("joining")
        device = _device()
        report.backend = _backend(device)
        with watched("joining"):
            together = _joined(report.backend, store, rank, world_size, options)
        pause("barrier")
        _barrier(together, patience)
        pause("first")
        with watched("the first all-reduce", options.setup_s):
            report.first_s = _first(device)
        for mib in options.sizes_mib:
            pause(f"{mib:g} MiB")
            with watched(f"all-reduce of {mib:g} MiB"):
                found, wrong = _measured(mib, rank, world_size, device, options.repeats)
            report.all_reduce.append(found)
            report.wrong |= {f"{mib:g}": wrong} if wrong else {}
        _barrier(together, patience)
    except _Unanswered as found:
        report.broken, report.at = found.ranks, found.at
    return report


def _met(keeps: bool, patience: timedelta) -> Store:
    """A connection to the store that torchrun keeps, or rank 0 (`keeps`)."""
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        store = TCPStore(
            host,
            port,
            is_master=keeps and not shared,
            timeout=patience,
            wait_for_workers=False,
            multi_tenant=True,
        )
    except (dist.DistNetworkError, dist.DistStoreError, RuntimeError):
        raise _Unanswered([0], "at its address, where the ranks meet") from None
    return PrefixStore("nava_doctor", store)


def _all_there(store: Store, rank: int, world_size: int, patience_s: float) -> list[str]:
    """Host of each rank; rank 0 says who has not come, to all that wait."""
    store.set(f"here/{rank}", socket.gethostname())
    if rank == 0:
        end = time.monotonic() + patience_s
        names = [f"here/{one}" for one in range(world_size)]
        while (missing := [one for one, name in enumerate(names) if not store.check([name])]) and (
            time.monotonic() < end
        ):
            time.sleep(0.05)
        store.set("missing", json.dumps(missing))
    try:
        store.wait(["missing"], timedelta(seconds=2 * patience_s))
    except (dist.DistStoreError, RuntimeError):
        raise _Unanswered([0], "after the ranks met") from None
    if missing := json.loads(store.get("missing")):
        raise _Unanswered(missing, "when the ranks met")
    return [store.get(f"here/{one}").decode() for one in range(world_size)]


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def _backend(device: torch.device) -> str:
    """As a training has it."""
    return "gloo" if device.type == "cpu" else f"{device.type}:nccl,cpu:gloo"


def _joined(backend: str, store: Store, rank: int, world_size: int, options: RankCheck) -> dist.ProcessGroup:
    """The default group, whose own timeout is later than what `_Watched` waits; a gloo group for barriers."""
    later = timedelta(seconds=2 * max(options.patience_s, options.setup_s))
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=later)
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=options.patience_s))
    assert isinstance(group, dist.ProcessGroup)
    return group


def _barrier(group: dist.ProcessGroup, patience: timedelta) -> None:
    """torch's own, over gloo: rank 0 learns who does not come."""
    try:
        dist.monitored_barrier(group, timeout=patience, wait_all_ranks=True)
    except RuntimeError as error:
        found = _MISSED.search(str(error))
        ranks = [int(part) for part in re.findall(r"\d+", found[1])] if found else []
        raise _Unanswered(ranks, f"a barrier ({one_line(error, 200)})") from None


def _first(device: torch.device) -> float:
    """Seconds of an all-reduce that meets no connection yet: NCCL is set up in it."""
    return _timed(torch.zeros(1, device=device))


def _measured(
    mib: float, rank: int, world_size: int, device: torch.device, repeats: int
) -> tuple[dict[str, float], list[int]]:
    """Median of the sums of a tensor of `mib` MiB in fp32, and the ranks that had a wrong sum in one before
    or one after, which are not counted."""
    tensor = torch.empty(max(int(mib * MIB) // 4, 1), device=device)
    wrong = not _sums_rightly(tensor, rank, world_size)
    tensor.zero_()
    seconds = [_timed(tensor) for _ in range(repeats)]
    wrong |= not _sums_rightly(tensor, rank, world_size)
    flags = torch.zeros(world_size, device=device)
    flags[rank] = float(wrong)
    dist.all_reduce(flags)
    median = statistics.median(seconds)
    rate = 4 * tensor.numel() / median / 1e9
    bus = rate * 2 * (world_size - 1) / world_size
    return {"mib": mib, "seconds": median, "gb_s": rate, "bus_gb_s": bus}, flags.nonzero().flatten().tolist()


def _sums_rightly(tensor: torch.Tensor, rank: int, world_size: int) -> bool:
    """Whether an all-reduce of small numbers that differ from rank to rank, which fp32 adds exactly, is right
    in every place."""
    tensor.fill_(1 + rank % 7)
    dist.all_reduce(tensor)
    return bool((tensor == sum(1 + other % 7 for other in range(world_size))).all())


def _timed(tensor: torch.Tensor) -> float:
    begin = time.perf_counter()
    dist.all_reduce(tensor)
    if tensor.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


class _Watched:
    """A collective that does not end within `limit_s` (0 = the patience) ends this process with the names of
    the ranks that did not begin it within the patience; the store tells."""

    def __init__(
        self,
        store: Store,
        rank: int,
        world_size: int,
        options: RankCheck,
        report: RankReport,
        step: str,
        limit_s: float = 0.0,
    ) -> None:
        # a connection of its own: the ranks' one may be waiting
        self.store, self.rank, self.world_size, self.step = store, rank, world_size, step
        self.options, self.report = options, report
        self.limit_s = max(limit_s, options.patience_s)
        self.ended = threading.Event()

    def __enter__(self) -> None:
        try:
            self.store.set(f"{self.step}/{self.rank}", "begun")
        except RuntimeError:
            raise _Unanswered([0], f"in step {self.step!r}: it no longer keeps the ranks' store") from None
        threading.Thread(target=self._wait, daemon=True).start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        self.ended.set()
        if isinstance(error, RuntimeError):
            absent = self._absent()
            raise _Unanswered(absent, f"{self._where(absent)} ({one_line(error, 200)})") from None

    def _wait(self) -> None:
        if self.ended.wait(self.options.patience_s):
            return
        absent = self._absent()
        if not absent and self.ended.wait(self.limit_s - self.options.patience_s):
            return
        self.report.broken, self.report.at = absent, self._where(absent)
        finish(self.report, self.options, self.rank)

    def _where(self, absent: list[int]) -> str:
        return f"in step {self.step!r}" + ("" if absent else ", which all ranks began and none ended")

    def _absent(self) -> list[int]:
        """Ranks that did not begin the step; rank 0 where the store that it keeps is gone."""
        try:
            return [one for one in range(self.world_size) if not self.store.check([f"{self.step}/{one}"])]
        except RuntimeError:
            return [0]


def finish(report: RankReport, options: RankCheck, rank: int) -> None:
    """Ends the process with the report's exit code, without a farewell to ranks that may not answer. Rank
    0 writes and prints the report, another one where it is rank 0 that does not answer."""
    if rank == 0 or 0 in report.broken:
        if options.to:
            write_json(Path(options.to), dataclasses.asdict(report))
        print("\n".join(report.lines()), flush=True)
    if report.code == BROKEN or not dist.is_initialized():
        sys.stdout.flush()
        os._exit(report.code)
    dist.destroy_process_group()
    sys.exit(report.code)


def main(path: Path) -> None:
    values = json.loads(path.read_text())
    options = RankCheck(**{**values, "sizes_mib": tuple(values["sizes_mib"])})
    finish(check_ranks(options), options, int(os.environ["RANK"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

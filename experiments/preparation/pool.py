"""Sources worked on by processes, of this machine or of Ray; a file that kills its own costs one record."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Protocol, TypeVar

from experiments.preparation.keeping import RESULT, prepare_source, sha256_of
from experiments.preparation.records import RawVideo, Rejection
from experiments.preparation.services import Services, services, use
from experiments.preparation.source_work import Settings
from pretrain.files import write_json

AHEAD = 2  # items that are begun or wait for each process
# Tries of a source by itself, after it was lost among others: a process may also be killed by somebody, or by
# another one's need of memory, and none of these tells. No further try begins once they took that long.
ALONE, ALONE_S = 8, 300.0

_ItemT = TypeVar("_ItemT")
_AnswerT = TypeVar("_AnswerT")
SourceTask = tuple[RawVideo, str]  # a source and the key of its results


class SourceWorkers(Protocol):
    """Processes that work on independent items; `orchestration.preparation.RayWorkers` is another."""

    @property
    def nproc(self) -> int: ...

    def each(
        self, work: Callable[[_ItemT], _AnswerT], items: Sequence[_ItemT], /
    ) -> Iterator[tuple[int, _AnswerT]]:
        """(place of the item, answer) as they are done, without those whose process died. Raises what `work`
        raised."""
        ...

    def alone(self, work: Callable[[_ItemT], object], item: _ItemT, /) -> bool:
        """One item, in a process by itself; False where it died. Raises what `work` raised."""
        ...


@dataclass(frozen=True)
class LocalWorkers:
    """Processes of this machine; with nproc 1, `each` works in this one."""

    nproc: int

    def each(
        self, work: Callable[[_ItemT], _AnswerT], items: Sequence[_ItemT]
    ) -> Iterator[tuple[int, _AnswerT]]:
        if self.nproc == 1 or len(items) < 2:
            for place, item in enumerate(items):
                yield place, work(item)
            return
        left = list(range(len(items)))[::-1]
        while left:  # a process that dies ends its pool; what was worked on then is left out
            yield from self._by_pool(work, items, left)

    def _by_pool(
        self, work: Callable[[_ItemT], _AnswerT], items: Sequence[_ItemT], left: list[int]
    ) -> Iterator[tuple[int, _AnswerT]]:
        pool, running = _pool(min(self.nproc, len(left))), dict[Future[_AnswerT], int]()
        try:
            while left or running:
                while left and len(running) < AHEAD * self.nproc:
                    place = left.pop()
                    running[pool.submit(work, items[place])] = place
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    answer = future.result()
                    yield running.pop(future), answer
        except BrokenProcessPool:
            pass
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def alone(self, work: Callable[[_ItemT], object], item: _ItemT) -> bool:
        pool = _pool(1)
        try:
            pool.submit(work, item).result()
        except BrokenProcessPool:
            return False
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        return True


@dataclass(frozen=True)
class PoolWork:
    """What all sources of a run share. Paths are absolute: a worker may have another working folder."""

    settings: Settings
    services: Services
    folder: Path


def work_through(todo: Sequence[SourceTask], work: PoolWork, workers: SourceWorkers) -> Iterator[str]:
    """Prepares each source and yields its key as it is done, in no order.

    What was worked on when a process died is done again; what dies each time by itself becomes a record of
    that. Raises what a worker raised: OSError of writing, ConnectionError; what was done by then is kept.
    """
    do, done = partial(prepare_task, work), set[int]()
    for place, _ in workers.each(do, todo):
        done.add(place)
        yield todo[place][1]
    lost = [task for place, task in enumerate(todo) if place not in done]
    with ThreadPoolExecutor(workers.nproc) as threads:  # each waits for a process of its own
        for task, fine in zip(lost, threads.map(partial(_by_itself, workers, do), lost), strict=True):
            if not fine:
                _record_crash(task, work.folder)
            yield task[1]


def _by_itself(workers: SourceWorkers, do: Callable[[SourceTask], None], task: SourceTask) -> bool:
    begun_s = time.monotonic()
    for number in range(ALONE):
        if number and time.monotonic() - begun_s > ALONE_S:
            return False
        if workers.alone(do, task):
            return True
    return False


def prepare_task(work: PoolWork, task: SourceTask) -> None:
    """In a worker: writes the folder of the source's results."""
    source, key = task
    if multiprocessing.parent_process():  # of a pool; Ray limits its own
        _use_one_thread()
    if services() != work.services:
        use(work.services)
    try:
        prepare_source(source, work.settings, work.folder, key)
    except OSError:  # a worker whose command was killed may have finished the same source meanwhile
        if not (work.folder / key / RESULT).is_file():
            raise


def digest_of(path: Path) -> str | OSError:
    """In a worker: the file's SHA-256, or why it cannot be read."""
    try:
        return sha256_of(path)
    except OSError as error:
        return error


def _record_crash(task: SourceTask, folder: Path) -> None:
    source, key = task
    reason = "its process died while it was read (out of memory, or a fault of a decoder)"
    lost = Rejection("crash", "process", None, None, reason, source=source.name)
    content = {"source": source.name, "seconds": 0.0, "scenes": [], "words": [], "words_by": ""}
    lists = {"clips": [], "rejected": [lost.to_json()], "stage_s": {}}
    write_json(folder / key / RESULT, content | lists)


def _pool(processes: int) -> ProcessPoolExecutor:
    spawn = multiprocessing.get_context("spawn")  # forking a process that runs torch threads can hang
    return ProcessPoolExecutor(processes, spawn, initializer=_start, initargs=(os.getpid(),))


def _start(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a killed command leaves no worker
        if os.getppid() != parent:
            os._exit(3)


@cache
def _use_one_thread() -> None:
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)

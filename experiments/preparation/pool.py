"""Sources worked on by local processes; a file that kills its process costs one record."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from experiments.preparation.keeping import RESULT, prepare_source
from experiments.preparation.records import RawVideo, Rejection
from experiments.preparation.services import Services, use
from experiments.preparation.source_work import Settings
from pretrain.files import write_json

AHEAD = 2  # sources that wait for each process


@dataclass(frozen=True)
class PoolWork:
    """What all sources of a run share."""

    settings: Settings
    services: Services
    folder: Path
    nproc: int


def work_through(todo: Sequence[tuple[RawVideo, str]], work: PoolWork) -> Iterator[str]:
    """Prepares each (source, key) and yields the key of each as it is done, in no order.

    Raises what a worker raised: OSError of writing, ConnectionError; what was done by then is kept.
    """
    if work.nproc == 1 or len(todo) < 2:
        use(work.services)
        for source, key in todo:
            prepare_source(source, work.settings, work.folder, key)
            yield key
        return
    left = deque(todo)
    while left:
        suspects: list[tuple[RawVideo, str]] = []
        yield from _by_pool(left, work, suspects)
        for source, key in suspects:  # one of those that were worked on killed its process
            _alone(source, key, work)
            yield key


def _by_pool(
    left: deque[tuple[RawVideo, str]], work: PoolWork, suspects: list[tuple[RawVideo, str]]
) -> Iterator[str]:
    """Takes from `left` until it is empty, or until a process dies: then what was being done is suspect."""
    pool = _pool(work, min(work.nproc, len(left)))
    running: dict[Future[Path], tuple[RawVideo, str]] = {}
    try:
        while left or running:
            while left and len(running) < AHEAD * work.nproc:
                task = left.popleft()
                running[pool.submit(prepare_source, task[0], work.settings, work.folder, task[1])] = task
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task = running.pop(future)
                future.result()
                yield task[1]
    except BrokenProcessPool:
        suspects += [task for task in running.values()]
        suspects += [task] if task not in suspects else []  # type: ignore[possibly-unbound]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _alone(source: RawVideo, key: str, work: PoolWork) -> None:
    pool = _pool(work, 1)
    try:
        pool.submit(prepare_source, source, work.settings, work.folder, key).result()
    except BrokenProcessPool:
        reason = "its process died while it was read (out of memory, or a fault of a decoder)"
        lost = Rejection("crash", "process", None, None, reason, source=source.name)
        content = {"source": source.name, "seconds": 0.0, "scenes": [], "words": [], "words_by": ""}
        lists = {"clips": [], "rejected": [lost.to_json()], "stage_s": {}}
        write_json(work.folder / key / RESULT, content | lists)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _pool(work: PoolWork, processes: int) -> ProcessPoolExecutor:
    spawn = multiprocessing.get_context("spawn")  # forking a process that runs torch threads can hang
    return ProcessPoolExecutor(processes, spawn, initializer=_start, initargs=(work.services,))


def _start(services: Services) -> None:
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    use(services)

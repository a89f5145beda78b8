"""Independent items in processes that end with this one; numbers do not depend on how many there are."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

_ItemT = TypeVar("_ItemT")
_AnswerT = TypeVar("_AnswerT")
AHEAD = 2


def each_in_processes(
    work: Callable[[_ItemT], _AnswerT], items: Sequence[_ItemT], nproc: int
) -> Iterator[tuple[int, _AnswerT]]:
    """(place of the item, answer) as they are done; with one process in this one. Raises what `work` raised,
    OSError where a process was killed."""
    if nproc == 1 or len(items) < 2:
        for place, item in enumerate(items):
            with one_thread():
                answer = work(item)
            yield place, answer
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(nproc, len(items)), spawn, _begin, (os.getpid(),)) as pool:
        left, running = list(enumerate(items))[::-1], dict[Future[_AnswerT], int]()
        try:
            while left or running:
                while left and len(running) < AHEAD * nproc:
                    place, item = left.pop()
                    running[pool.submit(work, item)] = place
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        except BrokenProcessPool:
            raise OSError(
                "a process was killed, perhaps for memory; give a smaller --nproc and run again"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Matrix products by one thread: sums in another order would be other numbers."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def _begin(parent: int) -> None:
    import torch
    from threadpoolctl import threadpool_limits

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(3)
    torch.set_num_threads(1)
    threadpool_limits(1)

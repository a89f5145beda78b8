"""Work that is done ahead of its use, by one thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any, TypeVar

Item = TypeVar("Item")
_POLL_S = 0.1
_END = object()


def prefetched(items: Iterator[Item], depth: int) -> Generator[Item, None, None]:
    """The same items, up to `depth` of them made in advance by a thread; 0 = none, and no thread.

    An error of `items` is raised here, as it is, in its turn. Closing this iterator ends the thread and closes `items`.
    """
    if depth == 0:
        yield from items
        return
    made: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()
    thread = threading.Thread(target=_make, args=(items, made, stop), name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stop.set()
        thread.join()


def _make(items: Iterator[Item], made: queue.Queue[tuple[Any, BaseException | None]], stop: threading.Event) -> None:
    try:
        for item in items:
            if not _put(made, (item, None), stop):
                break
        else:
            _put(made, (_END, None), stop)
    except BaseException as error:  # whoever uses the items shall see it
        _put(made, (None, error), stop)
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()


def _put(made: queue.Queue[tuple[Any, BaseException | None]], entry: tuple[Any, BaseException | None], stop: threading.Event) -> bool:
    """Waits for room; False where nobody wants more."""
    while not stop.is_set():
        try:
            made.put(entry, timeout=_POLL_S)
            return True
        except queue.Full:
            continue
    return False

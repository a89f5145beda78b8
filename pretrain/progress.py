"""Progress with time left: a rich bar on a terminal, one line per tenth elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def track(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Passes the items on and shows on stderr how far it is. `what` is a short noun phrase such as "clips written"."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track as rich_track

        yield from rich_track(items, description=what, total=total, console=Console(stderr=True))
        return
    started, told = time.monotonic(), 0
    for done, item in enumerate(items, start=1):
        yield item
        tenth = 10 * done // max(total, 1)
        if tenth > told:
            told, spent = tenth, time.monotonic() - started
            print(f"{what}: {done}/{total}, {spent:.0f} s, about {spent / done * (total - done):.0f} s left", file=sys.stderr, flush=True)

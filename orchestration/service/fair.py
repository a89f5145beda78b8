"""Slots and memory that several callers share fairly; slots as a max-min fair scheduler does."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple


class Caller(NamedTuple):
    """Whose request it is: slots are shared first between tokens, then between the addresses of a token."""

    token: str = ""
    address: str = ""


ANYONE = Caller()


class FairSlots:
    """At most `slots` holders, and `guests` more that only tokens without a slot may have.

    A free slot goes to the waiting token that holds the fewest, then to its address that holds the fewest,
    then to who has waited longest: a token with many requests delays another one's by none of its own queue.
    Guests keep a token that has asked for nothing yet from waiting for what others already hold.
    """

    def __init__(self, slots: int, guests: int = 0) -> None:
        self.slots, self.guests = slots, guests
        self.held, self.waiting = 0, 0
        self._of_token, self._of_caller = Counter[str](), Counter[Caller]()
        self._queues: OrderedDict[Caller, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def slot(self, caller: Caller) -> AsyncIterator[None]:
        """Waits for a slot and gives it back at the end."""
        await self._take(caller)
        try:
            yield
        finally:
            self._count(caller, -1)
            self._grant()

    async def _take(self, caller: Caller) -> None:
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(caller, deque()).append(granted)
        self.waiting += 1
        self._grant()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():  # granted and cancelled at once
                self._count(caller, -1)
                self._grant()
            else:
                self._forget(caller, granted)
            raise

    def _grant(self) -> None:
        while self._queues and self.held < self.slots + self.guests:
            # min keeps the first of equals, and a caller that was served goes to the end
            caller = min(self._queues, key=lambda one: (self._of_token[one.token], self._of_caller[one]))
            if self.held >= self.slots and self._of_token[caller.token]:
                return
            granted = self._queues[caller][0]
            self._forget(caller, granted)
            if granted.cancelled():  # its task has not heard of it yet
                continue
            if caller in self._queues:
                self._queues.move_to_end(caller)
            self._count(caller, 1)
            granted.set_result(None)

    def _forget(self, caller: Caller, granted: asyncio.Future[None]) -> None:
        if granted not in self._queues.get(caller, ()):
            return
        self._queues[caller].remove(granted)
        self.waiting -= 1
        if not self._queues[caller]:
            del self._queues[caller]

    def _count(self, caller: Caller, change: int) -> None:
        self.held += change
        self._of_token[caller.token] += change
        self._of_caller[caller] += change
        if not self._of_caller[caller]:
            del self._of_caller[caller]
        if not self._of_token[caller.token]:
            del self._of_token[caller.token]


class FairBytes:
    """At most `most` bytes held, those of one token at most half of it or one request's."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0
        self._of_token = Counter[str]()
        self._freed = asyncio.Event()

    async def take(self, num_bytes: int, token: str) -> int:
        """Waits for room for `num_bytes` (at most `most`), takes it, and returns it."""
        while not self._fits(num_bytes, token):
            self._freed.clear()
            await self._freed.wait()
        self.held += num_bytes
        self._of_token[token] += num_bytes
        return num_bytes

    def give_back(self, num_bytes: int, token: str) -> None:
        """Without an await, in which a caller who leaves could end it half done."""
        self.held -= num_bytes
        self._of_token[token] -= num_bytes
        if not self._of_token[token]:
            del self._of_token[token]
        self._freed.set()

    def _fits(self, num_bytes: int, token: str) -> bool:
        of_token = max(num_bytes, self.most // 2)
        return self.held + num_bytes <= self.most and self._of_token[token] + num_bytes <= of_token

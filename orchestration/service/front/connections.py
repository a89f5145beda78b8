"""Open connections, counted in total and by address."""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter, OrderedDict
from dataclasses import dataclass, field

from orchestration.service.limits import Limits


@dataclass(eq=False)
class Connection:
    """`waiting`: for a head, so that it may be closed for a new connection."""

    address: str
    task: asyncio.Task[None] | None = None
    waiting: bool = True
    last_data: float = field(default=0.0)


class Connections:
    """Room for a new connection is made by closing the one that has waited for a head for longest: idle and
    half-open ones keep nobody out, and an honest head arrives long before its turn comes."""

    def __init__(self, limits: Limits, most: int) -> None:
        self.limits, self.most, self.open = limits, most, 0
        self._of_address = Counter[str]()
        self._waiting: dict[str, OrderedDict[Connection, None]] = {}
        self._all_waiting: OrderedDict[Connection, None] = OrderedDict()

    def admit(self, connection: Connection) -> int:
        """0, or the status of the refusal: 503 all are at work, 429 all of this address are."""
        address = connection.address
        if self._of_address[address] >= self.limits.client_connections and not self._close_oldest(address):
            return 429
        if self.open >= self.most and not self._close_oldest():
            return 503
        self.open += 1
        self._of_address[address] += 1
        self.wait(connection)
        return 0

    def wait(self, connection: Connection) -> None:
        """It waits for a head."""
        connection.waiting = True
        self._all_waiting[connection] = None
        self._waiting.setdefault(connection.address, OrderedDict())[connection] = None

    def work(self, connection: Connection) -> None:
        """A request of it is authenticated: it is no longer closed for others."""
        connection.waiting = False
        self._all_waiting.pop(connection, None)
        own = self._waiting.get(connection.address, OrderedDict())
        own.pop(connection, None)
        if not own:
            self._waiting.pop(connection.address, None)

    def leave(self, connection: Connection) -> None:
        self.work(connection)
        self.open -= 1
        self._of_address[connection.address] -= 1
        if not self._of_address[connection.address]:
            del self._of_address[connection.address]

    def _close_oldest(self, address: str | None = None) -> bool:
        waiting = self._all_waiting if address is None else self._waiting.get(address, OrderedDict())
        if not waiting:
            return False
        oldest = next(iter(waiting))
        self.work(oldest)
        if oldest.task:
            oldest.task.cancel()
        return True


def address_of(peer: object) -> str:
    """Of a socket's peer name: IPv4, or the /64 of IPv6, which one caller has for itself."""
    host = str(peer[0]) if isinstance(peer, tuple) and peer else ""
    try:
        parsed = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)

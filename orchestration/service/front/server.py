"""Accepts connections and answers their requests, each one within its limits."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from contextlib import suppress

import h11

from orchestration.service.fair import FairSlots
from orchestration.service.front.audit import Audit, Record
from orchestration.service.front.callers import Callers
from orchestration.service.front.config import ID_HEADER, FrontConfig
from orchestration.service.front.connections import Connection, Connections, address_of
from orchestration.service.front.forward import forward
from orchestration.service.front.health import Health
from orchestration.service.front.wire import CallerGone, Gone, Wire, read_head
from orchestration.service.gate_paths import HEALTH, is_work, route_of
from orchestration.service.limits import ErrorStyle, Limits, Refusal

GUESTS = 16  # tokens that have nothing at work go on beside `limits.active`
SPARE_FILES = 64


class Front:
    """One process, one thread. Memory: at most `connections` heads of `header_bytes`, and `active` + GUESTS
    bodies of which a few chunks are held at a time."""

    def __init__(self, config: FrontConfig) -> None:
        self.config, self.limits = config, config.limits
        self.callers = Callers(config.default_digest, config.tokens_path, config.limits)
        self.slots = FairSlots(config.limits.active, GUESTS)
        self.connections = Connections(config.limits, _most_connections(config.limits))
        self.audit, self.health = Audit(config.audit), Health(config)

    async def serve(self, listener: socket.socket) -> None:
        """Until cancelled. `listener` listens and does not block."""
        loop = asyncio.get_running_loop()
        tasks = set[asyncio.Task[None]]()
        try:
            while True:
                try:
                    sock, peer = await loop.sock_accept(listener)
                except OSError:  # such as no descriptors left: those that wait run out of time
                    await asyncio.sleep(0.05)
                    continue
                connection = Connection(address_of(peer))
                if status := self.connections.admit(connection):
                    _turn_away(sock, status, self.config.errors)
                else:
                    connection.task = asyncio.create_task(self._connection(sock, connection))
                    tasks.add(connection.task)
                    connection.task.add_done_callback(tasks.discard)
                await asyncio.sleep(0)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _connection(self, sock: socket.socket, connection: Connection) -> None:
        try:
            with sock:
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                wire, first = Wire(sock, h11.SERVER, self.limits.header_bytes), True
                while await self._request(wire, connection, first):
                    wire.http.start_next_cycle()
                    first = False
                    self.connections.wait(connection)
        except (Gone, CallerGone, OSError):
            pass
        finally:
            self.connections.leave(connection)

    async def _request(self, wire: Wire, connection: Connection, first: bool) -> bool:
        """Answers one request; True where another may follow."""
        record, received = Record(connection.address), wire.received
        try:
            head = await read_head(wire, self.limits, first)
            record.started = time.monotonic()
            record.of(head.method.decode(), head.target.partition(b"?")[0].decode("latin-1"))
            await self._answer(wire, head, connection, record)
        except Refusal as refusal:
            await self._refuse(wire, refusal, connection, record)
        finally:
            record.bytes_in = wire.received - received
            if record.method or record.status:
                self.audit.write(record)
        return wire.http.our_state is h11.DONE and wire.http.their_state is h11.DONE

    async def _answer(self, wire: Wire, head: h11.Request, connection: Connection, record: Record) -> None:
        route = route_of(head.target.partition(b"?")[0].decode("latin-1"))
        if route == HEALTH and head.method == b"GET":
            return await self._send(wire, *await self.health.answer(), record)
        token = self.callers.identify([value for name, value in head.headers if name == b"authorization"])
        record.token = token.name
        with self.callers.admitted(token, route, connection.address) as caller:
            self.connections.work(connection)
            if not is_work(head.method.decode(), route):
                return await forward(wire, head, self.config, caller, record)
            if self.slots.held + self.slots.waiting >= self.limits.requests:
                raise Refusal(
                    503,
                    f"{self.limits.requests} requests are being answered, which is all at once; try again",
                    "service",
                    retry_after_s=2,
                )
            async with self.slots.slot(caller):
                await forward(wire, head, self.config, caller, record)

    async def _refuse(self, wire: Wire, refusal: Refusal, connection: Connection, record: Record) -> None:
        """Answers and closes: what else the caller sends is not read."""
        if not connection.waiting:
            self.connections.wait(connection)
        if wire.http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            raise Gone
        content = refusal.content(self.config.errors)
        with suppress(h11.LocalProtocolError):
            await self._send(wire, refusal.status, refusal.headers(), content, record, close=True)
        await wire.linger()
        raise Gone

    async def _send(
        self,
        wire: Wire,
        status: int,
        headers: dict[str, str],
        content: bytes,
        record: Record,
        close: bool = False,
    ) -> None:
        record.status, record.bytes_out = status, len(content)
        if not close:  # a body that nobody asked for is not read
            close = not isinstance(wire.http.next_event(), h11.EndOfMessage)
        whole = {
            "content-type": "application/json",
            "content-length": str(len(content)),
            ID_HEADER: record.id,
            **headers,
            **({"connection": "close"} if close else {}),
        }
        events = [
            h11.Response(status_code=status, headers=list(whole.items())),
            h11.Data(data=content),
            h11.EndOfMessage(),
        ]
        try:
            async with asyncio.timeout(self.limits.answer_seconds):
                await wire.send(*events)
        except TimeoutError:
            raise Gone from None


def _turn_away(sock: socket.socket, status: int, errors: ErrorStyle) -> None:
    reason = "this address has" if status == 429 else "all callers have"
    refusal = Refusal(
        status, f"connections: {reason} too many at work; try again", "service", retry_after_s=2
    )
    content = refusal.content(errors)
    head = (
        f"HTTP/1.1 {status} \r\ncontent-type: application/json\r\nretry-after: 2\r\nconnection: close\r\n"
        f"content-length: {len(content)}\r\n\r\n"
    )
    with sock, suppress(OSError):
        sock.setblocking(False)
        sock.send(head.encode() + content)


def _most_connections(limits: Limits) -> int:
    """Each one is a descriptor, and each one that is answered another one."""
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(16, min(limits.connections, descriptors - limits.active - GUESTS - SPARE_FILES))

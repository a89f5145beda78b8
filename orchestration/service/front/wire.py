"""HTTP/1.1 over a socket by h11, with bounded buffers and times."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11

from orchestration.service.limits import Limits, Refusal

CHUNK = 16 << 10
BODY_CHUNK = 64 << 10
LINGER_SECONDS, LINGER_BYTES = 1.0, 1 << 20
MALFORMED = "request: not valid HTTP/1.1; send it by an HTTP client"


class Gone(Exception):
    """The peer closed, or took too long where nothing is to be said about it."""


class CallerGone(Exception):
    """The caller left: there is nobody to answer."""


class Wire:
    """A socket with an h11 state. Reading takes at most CHUNK (heads) or BODY_CHUNK bytes at once."""

    def __init__(self, sock: socket.socket, role: Any, header_bytes: int) -> None:
        self.sock, self.loop = sock, asyncio.get_running_loop()
        self.http = h11.Connection(role, max_incomplete_event_size=header_bytes)
        self.received = 0

    async def event(self, size: int = CHUNK) -> Any:
        """The next h11 event. Raises Gone, h11.RemoteProtocolError."""
        while (event := self.http.next_event()) is h11.NEED_DATA:
            await self.more(size)
        return event

    async def more(self, size: int = CHUNK) -> None:
        try:
            data = await self.loop.sock_recv(self.sock, size)
        except OSError:
            raise Gone from None
        if not data and self.http.their_state is h11.IDLE:
            raise Gone
        self.received += len(data)
        self.http.receive_data(data)
        await asyncio.sleep(0)  # a socket that always has data would keep the others waiting

    async def send(self, *events: Any) -> None:
        """Raises Gone."""
        data = b"".join(self.http.send(event) or b"" for event in events)
        try:
            await self.loop.sock_sendall(self.sock, data)
        except OSError:
            raise Gone from None
        await asyncio.sleep(0)

    async def linger(self) -> None:
        """Reads on for a moment, so that the last answer is not lost with what the peer is still sending."""
        left = LINGER_BYTES
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                self.sock.shutdown(socket.SHUT_WR)
                while left > 0 and (data := await self.loop.sock_recv(self.sock, CHUNK)):
                    left -= len(data)
        except (OSError, TimeoutError):
            pass


async def read_head(wire: Wire, limits: Limits, first: bool) -> h11.Request:
    """Raises Refusal 400, 408, 431, or Gone: nothing was sent in time, or the peer closed."""
    started = bool(wire.http.trailing_data[0])
    try:
        if not started:
            async with asyncio.timeout(limits.header_seconds if first else limits.idle_seconds):
                await wire.more()
        async with asyncio.timeout(limits.header_seconds):
            event = await wire.event()
    except TimeoutError:
        if wire.http.trailing_data[0]:
            raise Refusal(
                408, f"headers: not complete after {limits.header_seconds:g} s; send them at once"
            ) from None
        raise Gone from None
    except h11.RemoteProtocolError as error:
        if error.error_status_hint == 431:
            raise _too_large(limits) from None
        raise Refusal(400, MALFORMED) from None
    if not isinstance(event, h11.Request):
        raise Gone
    _check_head(event, limits)
    return event


def _check_head(head: h11.Request, limits: Limits) -> None:
    names = [name for name, _ in head.headers]
    size = len(head.target) + sum(len(name) + len(value) + 4 for name, value in head.headers)
    if len(names) > limits.headers or size > limits.header_bytes:
        raise _too_large(limits)
    # two ways to tell a length is how requests are smuggled
    if b"transfer-encoding" in names and b"content-length" in names:
        raise Refusal(400, "headers: Content-Length and Transfer-Encoding; send one of them")
    if not head.target.startswith(b"/") or b"upgrade" in names:
        raise Refusal(400, MALFORMED)


def _too_large(limits: Limits) -> Refusal:
    return Refusal(
        431, f"headers: more than {limits.header_bytes} bytes or {limits.headers} lines; send fewer"
    )

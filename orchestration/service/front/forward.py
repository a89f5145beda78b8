"""A request to the web application on the loopback, and its answer back, both as they come."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import h11

from orchestration.service.fair import Caller
from orchestration.service.front.audit import Record
from orchestration.service.front.config import CALLER_HEADER, ID_HEADER, FrontConfig
from orchestration.service.front.wire import BODY_CHUNK, MALFORMED, CallerGone, Gone, Wire
from orchestration.service.limits import Limits, Refusal

HOST = "127.0.0.1"
PASSED_ON = (
    *(b"content-type", b"content-encoding", b"accept"),
    *(b"range", b"if-range", b"idempotency-key"),
)
PASSED_BACK = (
    *(b"content-type", b"content-length", b"retry-after", b"www-authenticate", b"allow"),
    *(b"content-range", b"accept-ranges", b"content-disposition", b"etag", b"idempotency-replayed"),
)
SPARE_SECONDS = 60.0  # besides what the application itself may take


def not_ready() -> Refusal:
    return Refusal(503, "service: not ready; try again", "service", retry_after_s=2)


@asynccontextmanager
async def backend(config: FrontConfig) -> AsyncIterator[Wire]:
    """A connection for one request. Raises Refusal 503."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            async with asyncio.timeout(5.0):
                await asyncio.get_running_loop().sock_connect(sock, (HOST, config.backend_port))
        except (OSError, TimeoutError):
            raise not_ready() from None
        yield Wire(sock, h11.CLIENT, config.limits.header_bytes)
    finally:
        sock.close()


async def forward(
    client: Wire, head: h11.Request, config: FrontConfig, caller: Caller, record: Record
) -> None:
    """Answers one request. Raises Refusal before the answer has begun, Gone after it, CallerGone
    where nobody waits for it."""
    limits = config.limits
    _check_length(head, limits)
    async with backend(config) as server:
        try:
            await server.send(_passed_on(head, config, caller, record))
            async with asyncio.timeout(limits.body_seconds + limits.wait_seconds + SPARE_SECONDS):
                response = await _exchange(client, server, limits)
        except TimeoutError:
            raise Refusal(504, "service: no answer in time; try again", "service", retry_after_s=5) from None
        except (Gone, h11.ProtocolError):
            raise Refusal(
                502, "service: lost while it answered; try again", "service", retry_after_s=2
            ) from None
        record.status = response.status_code
        try:
            async with asyncio.timeout(limits.answer_seconds):
                await _pass_back(client, server, response, record)
        except (TimeoutError, h11.ProtocolError):
            raise Gone from None


def _check_length(head: h11.Request, limits: Limits) -> None:
    for name, value in head.headers:
        if name == b"content-length" and int(value) > limits.body_bytes:  # digits: h11 has checked
            raise _too_large(limits)


def _too_large(limits: Limits) -> Refusal:
    return Refusal(413, f"body: more than {limits.body_bytes} bytes; make it smaller")


def _passed_on(head: h11.Request, config: FrontConfig, caller: Caller, record: Record) -> h11.Request:
    """Of the caller's headers only those that the application reads; one token instead of the caller's."""
    framing = [
        (name, value) for name, value in head.headers if name in (b"content-length", b"transfer-encoding")
    ]
    headers = [
        (b"host", HOST.encode()),
        (b"connection", b"close"),
        (b"authorization", f"Bearer {config.backend_token}".encode()),
        (CALLER_HEADER.encode(), f"{caller.token} {caller.address}".encode()),
        (ID_HEADER.encode(), record.id.encode()),
        *((name, value) for name, value in head.headers if name in PASSED_ON),
        *framing,
    ]
    return h11.Request(method=head.method, target=head.target, headers=headers)


async def _exchange(client: Wire, server: Wire, limits: Limits) -> h11.Response:
    """Sends the body and waits for the head of the answer, which may come before the body's end."""
    sending = asyncio.create_task(_send_body(client, server, limits))
    answering = asyncio.create_task(_response(server))
    watching: asyncio.Task[None] | None = None
    try:
        await asyncio.wait((sending, answering), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            with suppress(Gone):  # of the application: its answer says why
                await sending
            watching = asyncio.create_task(_until_gone(client))
            await asyncio.wait((answering, watching), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise CallerGone
        return await answering
    finally:
        tasks: list[asyncio.Task[Any]] = [task for task in (sending, answering, watching) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _response(server: Wire) -> h11.Response:
    while not isinstance(event := await server.event(BODY_CHUNK), h11.Response):
        if not isinstance(event, h11.InformationalResponse):
            raise Gone
    return event


async def _send_body(client: Wire, server: Wire, limits: Limits) -> None:
    """Raises Refusal 400, 408, 413 of the caller; Gone of the application."""
    total = 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            while True:
                if client.http.they_are_waiting_for_100_continue:
                    await _of_caller(client.send(h11.InformationalResponse(status_code=100, headers=[])))
                event = await _of_caller(client.event(BODY_CHUNK))
                if isinstance(event, h11.EndOfMessage):
                    return await server.send(h11.EndOfMessage())  # trailers go nowhere
                if not isinstance(event, h11.Data):
                    raise CallerGone
                total += len(event.data)
                if total > limits.body_bytes:
                    raise _too_large(limits)
                await server.send(h11.Data(data=event.data))
    except TimeoutError:
        raise Refusal(
            408, f"body: not complete after {limits.body_seconds:g} s; send it faster or make it smaller"
        ) from None
    except h11.RemoteProtocolError:
        raise Refusal(400, MALFORMED) from None


async def _of_caller(work):
    try:
        return await work
    except Gone:
        raise CallerGone from None


async def _until_gone(client: Wire) -> None:
    """Returns when the caller closes. What it sends already is the next request's, up to a head's size."""
    with suppress(Gone, h11.RemoteProtocolError):
        while len(client.http.trailing_data[0]) < client.http._max_incomplete_event_size:
            await client.more()
            if client.http.trailing_data[1]:
                return
        await asyncio.Event().wait()


async def _pass_back(client: Wire, server: Wire, response: h11.Response, record: Record) -> None:
    headers = [
        *((name, value) for name, value in response.headers if name in PASSED_BACK),
        (ID_HEADER.encode(), record.id.encode()),
    ]
    if client.http.their_state is not h11.DONE:  # the rest of its body is not wanted
        headers.append((b"connection", b"close"))
    await client.send(h11.Response(status_code=response.status_code, headers=headers))
    while not isinstance(event := await server.event(BODY_CHUNK), h11.EndOfMessage):
        if not isinstance(event, h11.Data):
            raise Gone
        record.bytes_out += len(event.data)
        await client.send(h11.Data(data=event.data))
    await client.send(h11.EndOfMessage())

"""The front in this process, before an application in a thread."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn

from orchestration.service.access import digest_of
from orchestration.service.front.config import FrontConfig
from orchestration.service.front.process import listening
from orchestration.service.front.server import Front
from orchestration.service.limits import ErrorStyle, Limits

TOKEN = "a-token-of-the-tests-0123456789"
INNER = "a-token-of-the-front-0123456789"
HOST = "127.0.0.1"


class Echo:
    """ASGI: answers with what it was sent, counts bodies; `/v1/score` waits for `gate` where one is set."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.pause_s, self.running, self.most = 0.0, 0, 0

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            headers = {key.decode(): value.decode("latin-1") for key, value in scope["headers"]}
            total, more = 0, True
            while more:
                message = await receive()
                total, more = total + len(message.get("body", b"")), message.get("more_body", False)
            self.seen.append({"path": scope["path"], "headers": headers, "bytes": total})
            if scope["path"] == "/v1/score":
                await asyncio.sleep(self.pause_s)
            content = json.dumps({"path": scope["path"], "bytes": total}).encode()
            start = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": start})
            await send({"type": "http.response.body", "body": content})
        finally:
            self.running -= 1


@contextmanager
def backend(app: Any) -> Iterator[int]:
    """uvicorn in a thread; its port."""
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield port
    server.should_exit = True
    thread.join()


@contextmanager
def front_of(
    port: int, limits: Limits | None = None, folder: Path | None = None, errors: ErrorStyle = "reason"
) -> Iterator[tuple[int, Front]]:
    """(port, front) of a front before the application at `port`; tokens and audit in `folder`."""
    config = FrontConfig(
        backend_port=port,
        backend_token=INNER,
        default_digest=digest_of(TOKEN).hex(),
        tokens=str(folder / "tokens.json") if folder else "",
        audit=str(folder / "audit.jsonl") if folder else "",
        limits=limits or Limits(),
        errors=errors,
    )
    made: list[Front] = []
    loop = asyncio.new_event_loop()
    with listening(HOST, 0) as listener:
        listener.setblocking(False)

        async def serve() -> None:
            made.append(Front(config))
            await made[0].serve(listener)

        task = loop.create_task(serve())
        thread = threading.Thread(target=_run, args=(loop, task))
        thread.start()
        while not made:
            time.sleep(0.005)
        try:
            yield listener.getsockname()[1], made[0]
        finally:
            loop.call_soon_threadsafe(task.cancel)
            thread.join()


def _run(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
    try:
        loop.run_until_complete(task)
    except asyncio.CancelledError:
        pass
    finally:
        loop.close()


def connect(port: int, source: str = HOST, timeout: float = 20.0) -> socket.socket:
    return socket.create_connection((HOST, port), timeout, (source, 0))


def exchange(
    port: int, content: bytes, source: str = HOST, timeout: float = 20.0
) -> tuple[int, bytes, bytes]:
    """(status, head, body) of what is answered to these bytes; status 0 where the connection just ends."""
    with connect(port, source, timeout) as sock:
        with suppress(OSError):
            sock.sendall(content)
        return read_answer(sock)


def read_answer(sock: socket.socket) -> tuple[int, bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        try:
            piece = sock.recv(65_536)
        except ConnectionError:
            piece = b""
        if not piece:
            return 0, data, b""
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
    )
    while len(body) < length and (piece := sock.recv(65_536)):
        body += piece
    return int(head.split()[1]), head, body


def request(
    path: str = "/v1/score",
    body: bytes = b"{}",
    token: str = TOKEN,
    method: str = "POST",
    headers: str = "",
) -> bytes:
    shown = f"Authorization: Bearer {token}\r\n" if token else ""
    length = f"Content-Length: {len(body)}\r\n" if method == "POST" else ""
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\n{shown}{length}{headers}\r\n"
    return head.encode() + (body if method == "POST" else b"")


def wait_for(condition: Callable[[], Any], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False

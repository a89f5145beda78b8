"""Clients of the generation service: one connection, and requests that it must refuse."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from rewards.http import form

HOST = "127.0.0.1"
BODY_BYTES, BODY_SECONDS = 1 << 20, 5.0
BAD = "this must never be accepted"


class Connection:
    """One kept connection, made again where the service closed it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def ask(
        self,
        method: str,
        path: str,
        token: str,
        body: bytes = b"",
        headers: Mapping[str, str] = MappingProxyType({}),
        pause: float = 0.0,
    ) -> tuple[int, bytes]:
        """(status, content); status 0 where there was no answer."""
        for attempt in range(2):
            fresh = self.writer is None
            try:
                if self.writer is None:
                    self.reader, self.writer = await asyncio.open_connection(HOST, self.port)
                return await asyncio.wait_for(self._exchange(method, path, token, body, headers, pause), 120)
            except (OSError, EOFError, ValueError, TimeoutError):
                await self.close()
                if fresh or attempt:
                    return 0, b""
        return 0, b""

    async def _exchange(self, method, path, token, body, headers, pause) -> tuple[int, bytes]:
        assert self.reader and self.writer
        whole = {"host": HOST, "content-length": str(len(body)), **headers}
        whole |= {"authorization": f"Bearer {token}"} if token else {}
        head = "".join(f"{name}: {value}\r\n" for name, value in whole.items())
        self.writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode())
        if pause:
            for at in range(len(body)):
                self.writer.write(body[at : at + 1])
                with contextlib.suppress(OSError):
                    await self.writer.drain()
                if self.reader._buffer:  # type: ignore[attr-defined]  # refused already
                    break
                await asyncio.sleep(pause)
        else:
            self.writer.write(body)
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
        content = await self.reader.readexactly(int(fields.get("content-length", 0)))
        if fields.get("connection") == "close":
            await self.close()
        return int(lines[0].split()[1]), content

    async def close(self) -> None:
        if self.writer:
            self.writer.close()
        self.reader = self.writer = None


def bad_requests(voice: bytes) -> list[tuple[str, tuple[int, ...], dict[str, Any]]]:
    """(name, statuses that are right, arguments of `ask`)."""
    as_json = {"content-type": "application/json"}
    good = json.dumps({"prompt": BAD}).encode()
    kind, lying = form({"prompt": f"{BAD} <S>a<E>"}, {"reference_0": voice[:60]})
    kind2, picture = form({"prompt": BAD}, {"input_reference": b"\x89PNG\r\n\x1a\n" + b"0" * 500})
    return [
        ("no token", (401,), {"body": good, "headers": as_json, "token": ""}),
        ("wrong token", (401,), {"body": good, "headers": as_json, "token": "0" * 43}),
        ("token of another scope", (403,), {"body": good, "headers": as_json, "token": "SCORE"}),
        ("no json", (422,), {"body": b"prompt=" + good, "headers": as_json}),
        ("unknown field", (422,), {"body": json.dumps({"prompt": BAD, "x": 1}).encode(), "headers": as_json}),
        ("open span", (422,), {"body": json.dumps({"prompt": f"{BAD}<S>"}).encode(), "headers": as_json}),
        (
            "too long",
            (422,),
            {"body": json.dumps({"prompt": BAD, "seconds": 3600}).encode(), "headers": as_json},
        ),
        (
            "too large",
            (422,),
            {"body": json.dumps({"prompt": BAD, "size": "9600x9600"}).encode(), "headers": as_json},
        ),
        ("oversized", (413,), {"body": good + b" " * (BODY_BYTES + 1), "headers": as_json}),
        ("slow", (408,), {"body": good + b" " * 200, "headers": as_json, "pause": BODY_SECONDS / 20}),
        ("cut voice", (422,), {"body": lying, "headers": {"content-type": kind}}),
        ("broken picture", (422,), {"body": picture, "headers": {"content-type": kind2}}),
        ("another type", (415,), {"body": good, "headers": {"content-type": "text/xml"}}),
    ]

"""Bodies while they come in: counted, timed, and uploads put on disk. What a Content-Length says is only good
for refusing early."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

import psutil

from orchestration.service.limits import Limits, Refusal
from orchestration.service.multipart import Begin, MultipartParser, boundary_of

REQUEST_PART = "request"
MAX_PARTS = 64
PREFIX = "nava_uploads_"


class Incoming(Protocol):
    """What is needed of starlette.requests.Request."""

    @property
    def headers(self) -> Mapping[str, str]: ...

    def stream(self) -> AsyncIterator[bytes]: ...


@dataclass
class Body:
    """The JSON of a request, and its uploads by the name of their part."""

    request: bytes = b""
    uploads: dict[str, Path] = field(default_factory=dict)


@contextmanager
def uploads_folder() -> Iterator[Path]:
    """Where uploads are kept while a service runs; those of services that were killed are removed first."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*_*"):
        process = left.name.removeprefix(PREFIX).partition("_")[0]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}_") as folder:
        yield Path(folder).resolve()


class Spool:
    """Uploads of all requests, in one folder, of which no more than `limits.spool_bytes` are there at
    once."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder, self.limits, self.held = folder, limits, 0

    @asynccontextmanager
    async def receive(self, incoming: Incoming) -> AsyncIterator[Body]:
        """The whole body; its uploads are gone afterwards.

        Raises Refusal 408 (too slow), 413 (too large), 415 (another type), 422 (malformed, cut off) or 503
        (no room).
        """
        kind = incoming.headers.get("content-type", "").partition(";")[0].strip().lower()
        if incoming.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise Refusal(415, "content-encoding: compressed bodies are not taken; send it as it is")
        if kind not in ("application/json", "multipart/form-data"):
            raise Refusal(415, "content-type: send application/json, or multipart/form-data with uploads")
        as_json = kind == "application/json"
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            writer = _Writer(Path(folder), self)
            try:
                await self._read(incoming, as_json, writer)
                yield writer.body
            finally:
                writer.close()
                self.held -= writer.held

    async def _read(self, incoming: Incoming, as_json: bool, writer: _Writer) -> None:
        content_type = incoming.headers.get("content-type", "")
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                if as_json:
                    async for chunk in _counted(incoming, self.limits.json_bytes):
                        writer.write(chunk)
                    return
                parser = MultipartParser(boundary_of(content_type), MAX_PARTS)
                async for chunk in _counted(incoming, self.limits.body_bytes):
                    for event in parser.feed(chunk):
                        writer.begin(event.name) if isinstance(event, Begin) else writer.write(event.content)
                parser.finish()
                writer.close()
        except TimeoutError:
            raise Refusal(
                408,
                f"body: not complete after {self.limits.body_seconds:g} s; send it faster or make it smaller",
            ) from None


class _Writer:
    """Parts to memory (the JSON) or disk (the rest)."""

    def __init__(self, folder: Path, spool: Spool) -> None:
        self.folder, self.spool, self.body = folder, spool, Body()
        self.held, self._seen = 0, set[str]()
        self._file: IO[bytes] | None = None

    def begin(self, name: str) -> None:
        self.close()
        if name in self._seen:
            raise Refusal(422, f"{name}: two parts of this name; give each one its own")
        self._seen.add(name)
        if name != REQUEST_PART:
            # the client's names never become paths
            self.body.uploads[name] = self.folder / str(len(self.body.uploads))
            self._file = self.body.uploads[name].open("wb")

    def write(self, content: bytes) -> None:
        if self._file is None:
            self.body.request += content
            if len(self.body.request) > self.spool.limits.json_bytes:
                raise Refusal(
                    413,
                    f"{REQUEST_PART}: more than {self.spool.limits.json_bytes} bytes of JSON; make it "
                    "shorter",
                )
            return
        if self.spool.held + len(content) > self.spool.limits.spool_bytes:
            raise Refusal(
                503, "uploads: no room for more of them at the moment; try again", "service", retry_after_s=5
            )
        self.held += len(content)
        self.spool.held += len(content)
        try:
            self._file.write(content)
        except OSError:
            raise Refusal(
                503, "uploads: the service's disk is full; try again later", "service", retry_after_s=60
            ) from None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


async def _counted(incoming: Incoming, limit: int) -> AsyncIterator[bytes]:
    too_large = f"body: more than {limit} bytes; make it smaller"
    length = incoming.headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > 18 or int(length) > limit:
        raise Refusal(413, too_large)
    total = 0
    async for chunk in incoming.stream():
        total += len(chunk)
        if total > limit:
            raise Refusal(413, too_large)
        yield chunk

"""Files over HTTP so that two clips differ in nothing but their content, and headers of every answer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from experiments.voting.body import RefusedError

PIECE = 262_144  # bytes
_RANGE = re.compile(r"bytes=(\d{1,15})?-(\d{1,15})?")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-Robots-Tag": "noindex, nofollow",
}


class SameHeaders:
    """Puts HEADERS on every answer; none says when a file was written or what it hashes to."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                hidden = {b"etag", b"last-modified", *(name.lower().encode() for name in HEADERS)}
                kept = [(name, value) for name, value in message["headers"] if name.lower() not in hidden]
                ours = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": kept + ours}
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


def media_answer(request: Request, path: Path, media_type: str) -> Response:
    """The file, or the one range that is asked for (RFC 9110, 14). Raises RefusedError for another range."""
    try:
        size = path.stat().st_size
    except OSError:
        raise RefusedError(404, "gone", "this clip is not there") from None
    first, last, status = 0, size - 1, 200
    headers = {"Accept-Ranges": "bytes"}
    if asked := request.headers.get("range"):
        match = _RANGE.fullmatch(asked.strip())
        if match and (match[1] or match[2]):
            first = int(match[1]) if match[1] else max(0, size - int(match[2]))
            last = min(size - 1, int(match[2])) if match[1] and match[2] else size - 1
            if first > last:
                headers["Content-Range"] = f"bytes */{size}"
                return Response(status_code=416, headers=headers)
            status = 206
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    headers["Content-Length"] = str(last - first + 1)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    pieces = _pieces(path, first, last - first + 1)
    return StreamingResponse(pieces, status_code=status, headers=headers, media_type=media_type)


def _pieces(path: Path, first: int, count: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(first)
        while count > 0 and (piece := file.read(min(PIECE, count))):
            count -= len(piece)
            yield piece

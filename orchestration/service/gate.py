"""Before anything is read: who may ask, and how many at once. ASGI around the web application."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from orchestration.service.access import digest_of
from orchestration.service.gate_paths import HEALTH, is_work, route_of
from orchestration.service.limits import ErrorStyle, Limits, Refusal
from orchestration.service.metrics import RequestMetrics

AsgiMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[AsgiMessage]]
Send = Callable[[AsgiMessage], Awaitable[None]]
App = Callable[[AsgiMessage, Receive, Send], Awaitable[None]]
LOG = logging.getLogger(__name__)
INTERNAL = Refusal(500, "internal error; it is in the service's log", "service")


class RequestGate:
    """ASGI middleware: refuses with 401 and 503, turns errors into one line, counts requests."""

    def __init__(
        self,
        app: App,
        token_digest: bytes,
        limits: Limits,
        metrics: RequestMetrics,
        errors: ErrorStyle = "reason",
    ) -> None:
        self.app, self.token_digest, self.limits, self.metrics = app, token_digest, limits, metrics
        self.errors: ErrorStyle = errors
        self.running = 0

    async def __call__(self, scope: AsgiMessage, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # a websocket
            return await send({"type": "websocket.close", "code": 1008})
        answer, started = _Answer(send, self.errors), time.monotonic()
        route = route_of(scope["path"])
        try:
            self._check(scope)
            await self._pass_on(scope, receive, answer)
        except Refusal as refusal:
            await answer.refuse(refusal)
        except asyncio.CancelledError:  # the caller is gone
            answer.status = answer.status or 499
            raise
        except Exception:
            LOG.exception("%s", route or "another path")
            await answer.refuse(INTERNAL)
        finally:
            self.metrics.answered(
                scope["method"], route or "other", answer.status or 499, time.monotonic() - started
            )

    def _check(self, scope: AsgiMessage) -> None:
        if scope["path"] != HEALTH and not hmac.compare_digest(_presented(scope), self.token_digest):
            raise Refusal(401, "token: missing or wrong; send Authorization: Bearer TOKEN")

    async def _pass_on(self, scope: AsgiMessage, receive: Receive, answer: _Answer) -> None:
        if not is_work(scope["method"], route_of(scope["path"])):
            return await self.app(scope, receive, answer)
        if self.running >= self.limits.requests:
            raise Refusal(
                503,
                f"{self.running} requests are being answered, which is all at once; try again",
                "service",
                retry_after_s=2,
            )
        self.running += 1
        self.metrics.running.set(self.running)
        try:
            await self.app(scope, receive, answer)
        finally:
            self.running -= 1
            self.metrics.running.set(self.running)


class _Answer:
    """`send`, knowing whether an answer has begun."""

    def __init__(self, send: Send, errors: ErrorStyle) -> None:
        self.send, self.errors, self.status = send, errors, 0

    async def __call__(self, message: AsgiMessage) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self.send(message)

    async def refuse(self, refusal: Refusal) -> None:
        if self.status:
            return
        content = refusal.content(self.errors)
        headers = {
            "content-type": "application/json",
            "content-length": str(len(content)),
            **refusal.headers(),
        }
        encoded = [(key.encode(), value.encode()) for key, value in headers.items()]
        await self({"type": "http.response.start", "status": refusal.status, "headers": encoded})
        await self({"type": "http.response.body", "body": content})


def _presented(scope: AsgiMessage) -> bytes:
    """Digest of the token sent; of nothing for none, several or another scheme."""
    found = [value for key, value in scope["headers"] if key.lower() == b"authorization"]
    scheme, _, token = found[0].partition(b" ") if len(found) == 1 else (b"", b"", b"")
    return digest_of(token.strip()) if scheme.lower() == b"bearer" and token.strip() else b""

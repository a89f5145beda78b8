"""The answer of /healthz, which anyone may ask for: the application is asked at most once a second."""

from __future__ import annotations

import asyncio
import time

import h11

from orchestration.service.front.config import FrontConfig
from orchestration.service.front.forward import HOST, backend, not_ready
from orchestration.service.front.wire import Gone
from orchestration.service.gate_paths import HEALTH
from orchestration.service.limits import Refusal

FRESH_S, PATIENCE_S, MAX_BYTES = 1.0, 10.0, 1 << 16
Reply = tuple[int, dict[str, str], bytes]  # status, headers, content


class Health:
    def __init__(self, config: FrontConfig) -> None:
        self.config = config
        self._asking: asyncio.Task[Reply] | None = None
        self._asked = 0.0

    async def answer(self) -> Reply:
        done = self._asking is not None and self._asking.done()
        if self._asking is None or (done and time.monotonic() - self._asked > FRESH_S):
            self._asking = asyncio.create_task(self._ask())
        return await asyncio.shield(self._asking)

    async def _ask(self) -> Reply:
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self._response()
        except (Gone, h11.ProtocolError, TimeoutError, Refusal):
            down = not_ready()
            return down.status, down.headers(), down.content(self.config.errors)
        finally:
            self._asked = time.monotonic()

    async def _response(self) -> Reply:
        async with backend(self.config) as server:
            headers = [("host", HOST), ("connection", "close")]
            await server.send(h11.Request(method="GET", target=HEALTH, headers=headers), h11.EndOfMessage())
            status, content = 0, b""
            while not isinstance(event := await server.event(), h11.EndOfMessage):
                if isinstance(event, h11.Response):
                    status = event.status_code
                elif isinstance(event, h11.Data) and len(content) < MAX_BYTES:
                    content += event.data
                elif not isinstance(event, h11.InformationalResponse):
                    raise Gone
            return status, {"retry-after": "5"} if status == 503 else {}, content

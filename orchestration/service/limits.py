"""What a request may cost, and how one that may not go on is refused."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Literal

Fault = Literal["request", "clip", "service"]
ErrorStyle = Literal["reason", "openai"]  # of the JSON of a refusal: ours, or that of OpenAI's API
MIB, GIB = 1 << 20, 1 << 30
_KINDS = {  # status -> type and code of OpenAI's errors
    401: ("authentication_error", "invalid_api_key"),
    403: ("permission_error", "insufficient_scope"),
    404: ("not_found_error", "not_found"),
    408: ("invalid_request_error", "timeout"),
    409: ("conflict_error", "conflict"),
    410: ("not_found_error", "expired"),
    413: ("invalid_request_error", "too_large"),
    415: ("invalid_request_error", "unsupported_media_type"),
    429: ("rate_limit_error", "rate_limit_exceeded"),
}
_FIELD = re.compile(r"([a-z][a-z0-9_]*(\[\d+\]|\.[a-z0-9_]+)*): ")


class Refusal(Exception):
    """An HTTP error: status, one line, whose fault it is, and seconds to wait before trying again.

    `clip`: this clip cannot be scored; `request`: the request is invalid; `service`: try again.
    """

    def __init__(
        self, status: int, reason: str, fault: Fault = "request", retry_after_s: int = 0, code: str = ""
    ) -> None:
        super().__init__(reason)
        self.status, self.reason, self.fault, self.retry_after_s, self.code = (
            status,
            " ".join(reason.split()),
            fault,
            retry_after_s,
            code,
        )

    def content(self, style: ErrorStyle = "reason") -> bytes:
        """The response's JSON: {"reason", "fault"}, or {"error": {"message", "type", "code", "param"}}."""
        if style == "reason":
            return json.dumps({"reason": self.reason, "fault": self.fault}).encode()
        other = (
            ("server_error", "unavailable") if self.status >= 500 else ("invalid_request_error", "invalid")
        )
        kind, code = _KINDS.get(self.status, other)
        named = _FIELD.match(self.reason) if 400 <= self.status < 429 and self.status != 401 else None
        error = {"message": self.reason, "type": kind, "code": self.code or code}
        return json.dumps({"error": {**error, "param": named[1] if named else None}}).encode()

    def headers(self) -> dict[str, str]:
        return {
            **({"retry-after": str(self.retry_after_s)} if self.retry_after_s else {}),
            **({"www-authenticate": "Bearer"} if self.status == 401 else {}),
        }


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bytes, seconds and counts. Raises ValueError for what is not positive."""

    connections: int = 2048  # at once; of those that wait for a head the oldest is closed for a new one
    client_connections: int = 1024  # of one address (IPv6: of a /64)
    client_requests: int = 768  # of one address at once; further ones get 429
    header_bytes: int = 16 << 10
    headers: int = 64
    header_seconds: float = 10.0  # to send a head
    idle_seconds: float = 15.0  # between two requests of a connection
    answer_seconds: float = 60.0  # to read an answer
    active: int = 64  # score requests passed on at once; the others wait in turns of their tokens
    requests: int = 1024  # at once; further ones get 503
    body_bytes: int = 64 * MIB
    json_bytes: int = MIB
    body_seconds: float = 30.0  # to send a body
    spool_bytes: int = 4 * GIB  # uploads on disk at once, over all requests
    file_bytes: int = GIB  # a file given by its path
    clip_seconds: float = 60.0  # of picture or of any sound
    frames: int = 2000
    pixels: int = 1920 * 1088  # of a frame
    decoded_bytes: int = 512 * MIB  # of one request's frames and samples
    held_bytes: int = 4 * GIB  # decoded clips at once, over all requests
    decode_seconds: float = 30.0
    decoders: int = 2
    reward_seconds: float = 60.0  # a batch may run
    wait_seconds: float = 300.0  # a clip may wait for a reward, the queue included

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(
                    f"limits.{field.name}: expected more than 0, got {getattr(self, field.name)}"
                )
        if self.held_bytes < self.decoded_bytes:
            raise ValueError(
                f"limits.held_bytes: {self.held_bytes} is less than one clip's {self.decoded_bytes} "
                "(decoded_bytes); raise it"
            )

"""multipart/form-data as it comes in, chunk by chunk: strict, bounded, and never more in memory than one
chunk and a delimiter.

Format: RFC 7578 over RFC 2046. No preamble, no nested parts, no transfer encodings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from orchestration.service.limits import Refusal

MAX_HEADER_BYTES = 4096
_BOUNDARY = re.compile(
    r"""multipart/form-data\s*;\s*boundary=(?:"([^"\r\n]{1,70})"|([^\s";,]{1,70}))\s*$""", re.I
)
_NAME = re.compile(r"""(?:^|;)\s*name\s*=\s*"([^"\r\n]*)\"""", re.I)
_PART_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class Begin:
    """A part of this name follows."""

    name: str


@dataclass(frozen=True)
class Data:
    """Some bytes of the part that was begun last."""

    content: bytes


Event = Begin | Data


def boundary_of(content_type: str) -> bytes:
    """The boundary. Raises Refusal 415 where there is none."""
    match = _BOUNDARY.match(content_type.strip())
    if not match:
        raise Refusal(
            415, "multipart/form-data without a usable boundary; let your HTTP client make the header"
        )
    return (match[1] or match[2]).encode("latin-1", "replace")


class MultipartParser:
    """`feed` chunks, `finish` at the end; both raise Refusal 422 for what is malformed or cut off."""

    def __init__(self, boundary: bytes, max_parts: int) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._buffer = bytearray(b"\r\n")  # the first delimiter has no line before it
        self._state = "start"
        self._parts, self._max_parts = 0, max_parts

    def feed(self, chunk: bytes) -> list[Event]:
        self._buffer += chunk
        events: list[Event] = []
        while self._step(events):
            pass
        return events

    def finish(self) -> None:
        if self._state != "done":
            raise Refusal(422, "multipart body: ends before its last boundary; send all of it")

    def _step(self, events: list[Event]) -> bool:
        """One transition; False where more bytes are needed."""
        if self._state in ("start", "data"):
            return self._to_delimiter(events)
        if self._state == "delimiter":
            return self._after_delimiter()
        if self._state == "headers":
            return self._headers(events)
        self._buffer.clear()  # an epilogue says nothing
        return False

    def _to_delimiter(self, events: list[Event]) -> bool:
        at = self._buffer.find(self._delimiter)
        if self._state == "start" and (at > 0 or (at < 0 and len(self._buffer) >= len(self._delimiter))):
            raise Refusal(422, "multipart body: does not begin with its boundary")
        end = at if at >= 0 else len(self._buffer) - len(self._delimiter) + 1
        if self._state == "data" and end > 0:
            events.append(Data(bytes(self._buffer[:end])))
            del self._buffer[:end]
        if at < 0:
            return False
        del self._buffer[: len(self._delimiter)]
        self._state = "delimiter"
        return True

    def _after_delimiter(self) -> bool:
        if len(self._buffer) < 2:
            return False
        ending = bytes(self._buffer[:2])
        if ending not in (b"--", b"\r\n"):
            raise Refusal(422, "multipart body: a boundary is followed by something else than a line's end")
        del self._buffer[:2]
        self._state = "done" if ending == b"--" else "headers"
        return True

    def _headers(self, events: list[Event]) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if (end if end >= 0 else len(self._buffer)) > MAX_HEADER_BYTES:
            raise Refusal(422, f"multipart body: a part's headers are longer than {MAX_HEADER_BYTES} bytes")
        if end < 0:
            return False
        events.append(Begin(_part_name(bytes(self._buffer[:end]))))
        del self._buffer[: end + 4]
        self._parts += 1
        if self._parts > self._max_parts:
            raise Refusal(422, f"multipart body: more than {self._max_parts} parts")
        self._state = "data"
        return True


def _part_name(headers: bytes) -> str:
    for line in headers.decode("latin-1").split("\r\n"):
        key, _, value = line.partition(":")
        if key.strip().lower() == "content-transfer-encoding" and value.strip().lower() not in (
            "binary",
            "8bit",
            "7bit",
        ):
            raise Refusal(
                422,
                f"multipart body: transfer encoding {value.strip()[:40]!r} is not taken; send bytes as they "
                "are",
            )
        if key.strip().lower() == "content-disposition":
            match = _NAME.search(value)
            if match and _PART_NAME.fullmatch(match[1]):
                return match[1]
    raise Refusal(422, "multipart body: a part without a name of letters, digits, '_', '.' or '-'")

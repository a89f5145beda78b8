"""multipart/form-data as it comes in, chunk by chunk: what python-multipart finds, held to names and limits.

Format: RFC 7578 over RFC 2046. No preamble, no nested parts, no transfer encodings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import python_multipart
from python_multipart.exceptions import FormParserError

from orchestration.service.limits import Refusal

MAX_HEADER_BYTES = 4096  # of one line
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
        self._parser = python_multipart.MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_begin": self._begin_header,
                "on_header_field": self._add_to_key,
                "on_header_value": self._add_to_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._add_data,
                "on_end": self._end,
            },
            max_header_size=MAX_HEADER_BYTES,
        )
        self._events: list[Event] = []
        self._name, self._key, self._value = "", b"", b""
        self._parts, self._max_parts, self._whole = 0, max_parts, False

    def feed(self, chunk: bytes) -> list[Event]:
        self._events = []
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise Refusal(422, f"multipart body: {error}; is its boundary the header's?") from None
        return self._events

    def finish(self) -> None:
        if not self._whole:
            raise Refusal(422, "multipart body: ends before its last boundary; send all of it")

    def _begin_part(self) -> None:
        self._name = ""

    def _begin_header(self) -> None:
        self._key = self._value = b""

    def _add_to_key(self, data: bytes, start: int, end: int) -> None:
        self._key += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        key, value = self._key.lower(), self._value.strip().decode("latin-1")
        if key == b"content-transfer-encoding" and value.lower() not in ("binary", "8bit", "7bit"):
            raise Refusal(
                422, f"multipart body: transfer encoding {value[:40]!r} is not taken; send bytes as they are"
            )
        if key == b"content-disposition" and (match := _NAME.search(value)):
            self._name = match[1]

    def _end_headers(self) -> None:
        if not _PART_NAME.fullmatch(self._name):
            raise Refusal(422, "multipart body: a part without a name of letters, digits, '_', '.' or '-'")
        self._parts += 1
        if self._parts > self._max_parts:
            raise Refusal(422, f"multipart body: more than {self._max_parts} parts")
        self._events.append(Begin(self._name))

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._events.append(Data(data[start:end]))

    def _end(self) -> None:
        self._whole = True

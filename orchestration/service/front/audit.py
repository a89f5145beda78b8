"""One JSON line per request: who asked for what, when, how much and how it ended; no content, no token."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from secrets import token_hex
from time import monotonic

from orchestration.service.gate_paths import route_of

FILE_BYTES, FILES = 64 << 20, 4  # of the audit on disk, whatever is sent to the service
METHODS = ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH")


@dataclass
class Record:
    """A request while it is answered. Path and method are from fixed sets: a caller's text is no content of
    ours."""

    client: str
    id: str = field(default_factory=lambda: token_hex(8))
    token: str = ""
    method: str = ""
    path: str = ""
    status: int = 0  # 0 = the caller left before an answer
    bytes_in: int = 0
    bytes_out: int = 0
    started: float = field(default_factory=monotonic)

    def of(self, method: str, path: str) -> None:
        self.method = method if method in METHODS else "other"
        self.path = route_of(path) or "other"  # ids are no content of ours either

    def line(self) -> str:
        return json.dumps(
            {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "id": self.id,
                "client": self.client,
                "token": self.token,
                "method": self.method,
                "path": self.path,
                "status": self.status,
                "bytes_in": self.bytes_in,
                "bytes_out": self.bytes_out,
                "seconds": round(monotonic() - self.started, 4),
            }
        )


class Audit:
    """Appends to files of bounded size, readable by their owner only. A full disk loses lines, no request."""

    def __init__(self, path: str) -> None:
        self._handler = _open(path) if path else None

    def write(self, record: Record) -> None:
        if self._handler:
            self._handler.emit(logging.makeLogRecord({"msg": record.line()}))


class _Handler(RotatingFileHandler):
    def _open(self):
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.fchmod(descriptor, 0o600)
        return os.fdopen(descriptor, "a", encoding="ascii")

    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing: the request is answered all the same."""


def _open(path: str) -> _Handler:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return _Handler(path, maxBytes=FILE_BYTES, backupCount=FILES - 1)

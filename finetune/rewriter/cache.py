"""Rewrites that passed, one JSON line each: a killed run goes on from here, and equal requests are made once.

Lines are appended whole; one torn by a kill or a full disk is skipped when read, and several runs may append
at once.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def request_key(messages: Sequence[Mapping[str, str]], settings: Mapping[str, Any]) -> str:
    """SHA-256 of all that is sent: prompt and template (they make the messages), model and sampling."""
    return hashlib.sha256(json.dumps([list(messages), settings], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Kept:
    """A rewrite that passed, and at which try."""

    text: str
    tries: int


class RewriteCache:
    """Rewrites by `request_key`, kept in `path` (None: in memory only). Safe to use from many threads.

    Raises OSError naming the file where it cannot be read or written.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.kept, self.lock = path, _read(path) if path else {}, threading.Lock()
        self.file = -1
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            if (size := os.fstat(self.file).st_size) and os.pread(self.file, 1, size - 1) != b"\n":
                self._append(b"\n")

    def get(self, key: str) -> Kept | None:
        return self.kept.get(key)

    def put(self, key: str, kept: Kept) -> None:
        with self.lock:
            self.kept[key] = kept
            if self.file >= 0:
                self._append(
                    json.dumps({"key": key, "text": kept.text, "tries": kept.tries}).encode() + b"\n"
                )

    def close(self) -> None:
        with self.lock:
            if self.file >= 0:
                os.close(self.file)
                self.file = -1

    def _append(self, line: bytes) -> None:
        try:
            written = os.write(self.file, line)
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or errno.EIO), str(self.path)) from error
        if written != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))


def _read(path: Path) -> dict[str, Kept]:
    found: dict[str, Kept] = {}
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                match row:
                    case {"key": str(key), "text": str(text), "tries": int(tries)}:
                        found[key] = Kept(text, tries)
    return found

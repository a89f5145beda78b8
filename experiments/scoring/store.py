"""The scores file: one whole line per clip, kept over interruptions, never mixed from two ways of scoring."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from experiments.scoring.clips import ClipFile
from pretrain.files import locked, replacing, sha256_of

StoredRow = dict[str, Any]
_START = b'{"clip": '  # of every row


class ScoreStore:
    """Context manager over one scores.jsonl; a second process that opens the same file gets a ValueError.

    `config_id` names the rewards and their settings; `settings` is what it was made from, for the message
    when they differ.
    """

    def __init__(self, path: Path, config_id: str, settings: Mapping[str, Any]) -> None:
        self.path, self.config_id, self.settings = path, config_id, settings
        self.rows: dict[str, StoredRow] = {}

    def __enter__(self) -> ScoreStore:
        taken = f"{self.path}: another process scores into it; wait for it, or give another --out"
        with ExitStack() as stack:
            stack.enter_context(locked(self.path.with_name(f".{self.path.name}.lock"), taken))
            self._read()
            self._held = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def kept(self, files: Sequence[ClipFile]) -> dict[str, StoredRow]:
        """Rows whose clip, prompt and attached files are what they were when they were scored.

        Rows marked `again` failed for a reason that may have passed and are not kept.
        """
        known = ((file, self.rows.get(file.name)) for file in files)
        return {file.name: row for file, row in known if row and not row.get("again") and _same(file, row)}

    def append(self, rows: Sequence[StoredRow]) -> None:
        """Adds whole lines and waits until they are on disk; a later row of a clip counts, not an earlier
        one."""
        with self.path.open("ab") as file:
            file.write(b"".join(_line(row) for row in rows))
            file.flush()
            os.fsync(file.fileno())
        self.rows |= {row["clip"]: row for row in rows}

    def replace(self, rows: Iterable[StoredRow]) -> None:
        """The file holds exactly these rows, in this order."""
        self.rows = {row["clip"]: row for row in rows}
        with replacing(self.path) as temporary:
            temporary.write_bytes(b"".join(_line(row) for row in self.rows.values()))

    def _read(self) -> None:
        if self.path.is_dir():
            raise IsADirectoryError(f"{self.path}: a folder; give --out a file")
        if not self.path.is_file():
            return
        *lines, torn = self.path.read_bytes().split(b"\n")
        if not lines and torn[: len(_START)] != _START[: len(torn)]:
            raise ValueError(f"{self.path}:1: not a row of `nava score`; give another --out")
        for number, line in enumerate(lines, start=1):
            row = _parsed(line, f"{self.path}:{number}")
            if row["config"] != self.config_id:
                differs = _difference(row, self.settings)
                raise ValueError(
                    f"{self.path}: scored with other rewards or settings ({differs}); give another --out, "
                    "or remove it"
                )
            self.rows[row["clip"]] = row
        if torn:  # a kill in the middle of a write
            self.replace(self.rows.values())


def config_id(settings: Mapping[str, Any]) -> str:
    """Short name of a way of scoring; equal for equal settings in any order of keys."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]


def identity(file: ClipFile) -> dict[str, Any]:
    """Identity of the clip that a row was made from; {} where the clip's file cannot be read."""
    try:
        stat = file.path.stat()
        digest = sha256_of(file.path)
    except OSError:
        return {}
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": digest, "request": _request(file)}


def _same(file: ClipFile, row: StoredRow) -> bool:
    if not file.path.is_file() or row.get("request") != _request(file):
        return False
    stat = file.path.stat()
    if (stat.st_size, stat.st_mtime_ns) == (row.get("size"), row.get("mtime_ns")):
        return True
    return stat.st_size == row.get("size") and identity(file).get("sha256", "") == row.get("sha256")


def _request(file: ClipFile) -> str:
    """Digest of everything but the clip's own content that its scores depend on."""
    fields = {key: value for key, value in vars(file).items() if key not in ("path", "name")}
    return config_id({**fields, "attached": [_stat(path) for path in file.attached()]})


def _stat(path: Path) -> tuple[int, int] | None:
    """Size and time of change; None for a file that is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _parsed(line: bytes, where: str) -> StoredRow:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error}); remove the line or the file") from None
    if not isinstance(row, dict) or not {"clip", "config", "scores"} <= row.keys():
        raise ValueError(f"{where}: not a row of `nava score`; give another --out")
    return row


def _line(row: StoredRow) -> bytes:
    text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # a file's name that is not UTF-8
        return json.dumps(row, allow_nan=False).encode() + b"\n"


def _difference(row: StoredRow, settings: Mapping[str, Any]) -> str:
    before, after = set(row["scores"]), set(settings.get("rewards", {}))
    changes = [f"without {name}" for name in sorted(after - before)] + [
        f"with {name}" for name in sorted(before - after)
    ]
    return ", ".join(changes) or f"settings {row['config']}, asked for {config_id(settings)}"

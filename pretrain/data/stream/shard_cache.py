"""Local copies of remote shards: whole, checked on arrival, and the least recently used leave when the space
is needed.

Copies are named by their content, so the processes of a machine share them and a set that was encoded again
is never mixed up with its older self. A checksum is computed while a shard is new here, never when a process
starts.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from pretrain.files import replacing
from pretrain.storage import is_remote, local_file

DEFAULT_GB = 200.0
_FOLDER = "shards"


class ShardCache:
    """A folder of at most `max_bytes`, by default below NAVA_CACHE or the temporary folder. A single larger
    shard is still held."""

    def __init__(self, folder: Path | None = None, max_bytes: int = int(DEFAULT_GB * 2**30)) -> None:
        self.folder = (
            folder
            or Path(os.environ.get("NAVA_CACHE") or Path(tempfile.gettempdir()) / "nava-cache") / _FOLDER
        )
        self.max_bytes = max_bytes

    def fetch(self, path: Path, sha256: str, num_bytes: int) -> Path:
        """The file itself if local, else its copy here. Raises FileNotFoundError, OSError, or ValueError
        where the content is another."""
        if not is_remote(path):
            return path
        copy = self.folder / f"{sha256}{path.suffix}"
        if not self._used(copy, num_bytes):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = self.folder / f".{sha256}.lock"  # one download per machine, however many processes want it
            with FileLock(lock):
                if not self._used(copy, num_bytes):  # another process may have brought it meanwhile
                    self._make_room(num_bytes)
                    with local_file(path, sha256) as arrived, replacing(copy) as temporary:
                        shutil.move(arrived, temporary)
            lock.unlink(missing_ok=True)
        return copy

    def _used(self, copy: Path, num_bytes: int) -> bool:
        """Whether it is here; it is then the most recently used."""
        with suppress(FileNotFoundError):
            if copy.stat().st_size == num_bytes:
                os.utime(copy)
                return True
        return False

    def _make_room(self, num_bytes: int) -> None:
        """A process that still has a removed shard mapped keeps its bytes until it closes it."""
        found: list[tuple[float, int, Path]] = []
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):
                if not path.name.startswith("."):
                    found.append((path.stat().st_mtime, path.stat().st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total + num_bytes <= self.max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size

"""External weight files: existence, digest and licence notice."""

from __future__ import annotations

import hashlib
import logging
import sys
from functools import cache
from pathlib import Path

LOGGER = logging.getLogger(__name__)
_TOLD: set[str] = set()


def checked(path: Path, sha256: str = "", *, what: str, licence: str, source: str) -> Path:
    """Check that `path` exists with this digest; print digest and licence to stderr once per process.

    `what` names the weights in messages, `source` where to get them. Without `sha256` any file passes. Raises
    FileNotFoundError for a missing file, ValueError for another digest.
    """
    path = Path(path)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(
            f"{what}: {path}: {found}; get it from {source} ({licence}) and name the file"
        )
    stat = path.stat()
    digest = _digest(path.resolve(), stat.st_size, stat.st_mtime_ns)
    if sha256 and digest != sha256.lower():
        raise ValueError(
            f"{what}: {path}: sha256 is {digest}, not {sha256.lower()}; get it again from {source}"
        )
    line = f"{what}: {path}, sha256 {digest}, licence {licence}"
    LOGGER.info(line)
    if line not in _TOLD:
        _TOLD.add(line)
        print(line, file=sys.stderr)
    return path


@cache
def _digest(path: Path, size: int, changed_ns: int) -> str:
    """Cached by what changes with the content: files of gigabytes are read once."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

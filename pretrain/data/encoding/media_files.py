"""The files that a manifest's rows name, as they are now: by size and time of change, none is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pretrain.data.manifest import ManifestRow
from pretrain.progress import track
from pretrain.storage import is_remote, object_info

_REQUESTS = 32  # at a time, where files are in a store
# what stores call an object's checksum, version or time of change
_TAGS = (
    "ETag",
    "etag",
    "md5Hash",
    "content_md5",
    "last_modified",
    "LastModified",
    "updated",
    "mtime",
    "created",
)
_MISSING = "missing"


def stamp_of(path: Path) -> str:
    """What changes with a file's content, without reading it: size and time of change, or a store's ETag;
    "missing" where it is not there. Raises OSError in one line where a store does not answer."""
    if is_remote(path):
        about = object_info(path)
        tag = next((about[name] for name in _TAGS if about.get(name)), "") if about else ""
        return f"{about.get('size')} {tag}" if about else _MISSING
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return _MISSING
    return f"{found.st_size} {found.st_mtime_ns}"


def files_of(rows: Iterable[ManifestRow], folder: Path) -> list[Path]:
    """Every file that encoding reads for the rows, in their order: clips, sounds and stills, and recordings
    of reference voices, whose paths are relative to `folder`, that of the manifest."""
    found: list[Path] = []
    for row in rows:
        found.append(row.data_path)
        paths = row.meta.get("reference_paths")
        found += [folder / path for path in paths if isinstance(path, str)] if isinstance(paths, list) else []
    return found


def media_digest(files: Sequence[Path]) -> str:
    """SHA-256 of the size and time of change of each file in turn (`stamp_of`); one that is missing counts as
    such. 100,000 files of a local disk take a second. Raises OSError where a store does not answer."""
    digest = hashlib.sha256()
    if any(map(is_remote, files)):
        with ThreadPoolExecutor(_REQUESTS) as pool:
            stamps = pool.map(stamp_of, files)
            for stamp in track(stamps, len(files), "clips: files looked at"):
                digest.update(f"{stamp}\n".encode())
    else:
        for file in files:
            digest.update(f"{stamp_of(file)}\n".encode())
    return digest.hexdigest()

"""Files and folders for their owner alone."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path


def write_private(path: Path, content: bytes) -> None:
    """Writes the file whole or not at all (mode 0600): a full disk leaves the old one, or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


def private_folder(path: Path) -> Path:
    """The folder, made if missing, mode 0700. Raises ValueError where it is somebody else's or a link."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700, parents=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise ValueError(
            f"{path}: not a folder of this user; remove it, or set RAY_TMPDIR to a folder of yours"
        )
    path.chmod(0o700)
    return path


def tighten(path: Path) -> bool:
    """Takes group and others off the file's mode; True where they had access. Raises ValueError where it is
    somebody else's."""
    status = path.stat()
    if not stat.S_IMODE(status.st_mode) & 0o077:
        return False
    if status.st_uid != os.getuid():
        raise ValueError(
            f"{path}: a secret that others can read (mode {status.st_mode & 0o777:o}); chmod 600 it"
        )
    path.chmod(0o600)
    return True

"""Names in a folder that nobody else has, for what must make room."""

from __future__ import annotations

import errno
import itertools
import shlex
import shutil
import time
from contextlib import suppress
from pathlib import Path

from pretrain.terminal import shown

TRASH = ".trash"  # of an output folder: what had to make room
OUT = Path("out")  # whose trash `nava trash` works on by default


def claimed(folder: Path, name: str) -> Path:
    """A new empty folder `folder`/NAME-TIME, or NAME-TIME~2 and so on: nobody else's. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        where = folder / (stamped(name) + (f"~{number}" if number > 1 else ""))
        with suppress(FileExistsError):
            where.mkdir()
            return where
    raise AssertionError("there is always a number")


def said_moved(path: Path, where: Path) -> None:
    """Say in one line where something went, and what deletes it there."""
    advice = f" (`{command}` deletes what lies there)" if (command := _emptied_by(where.parent)) else ""
    print(f"{shown(str(path))}: moved to {shown(str(where))}{advice}", flush=True)


def _emptied_by(trash: Path) -> str:
    """The command that empties a trash folder, "" where it is none of `nava trash`."""
    if trash.name != TRASH:
        return ""
    out = str(trash.parent)
    if "://" not in out and Path(out).absolute() == OUT.absolute():
        return "nava trash empty"
    return f"nava trash empty --out {shlex.quote(shown(out))}"


def stamped(name: str) -> str:
    """A name with the time of day, UTC."""
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"


def moved_into(path: Path, where: Path) -> Path:
    """`path` in the place of the empty folder `where`."""
    try:
        if path.is_dir() and not path.is_symlink():
            return path.rename(where)  # a folder takes the place of an empty one
    except OSError as error:
        if error.errno != errno.EXDEV:
            where.rmdir()
            raise
    where.rmdir()
    shutil.move(path, where)
    return where

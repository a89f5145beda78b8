"""`nava trash`: trainings, rollouts, latents and clips that had to make room, until they are deleted."""

from __future__ import annotations

import calendar
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pretrain import storage
from pretrain.storage_errors import named_errors
from pretrain.trash import OUT, TRASH

_AGE = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_MOVED = re.compile(r".*-(\d{8}-\d{6})(?:~\d+)?")  # the time in a name of `pretrain.storage.move_aside`


@dataclass(frozen=True)
class Moved:
    """A file or folder in the trash: bytes on disk, and when it was moved there (seconds since the epoch)."""

    path: Path
    size: int
    moved_at: float


Out = Annotated[str, tyro.conf.arg(metavar="OUT", help="the folder or URL whose .trash is meant")]


def list_trash(out: Out = str(OUT)) -> None:
    """What was moved to OUT/.trash, the oldest first: size, when (UTC), and where it lies.

    What a command replaces elsewhere, such as a set of `nava prepare`, goes to .trash in the folder where it
    lies: --out names that one. To get something back, move its folder to where it was.
    """
    found = in_trash(storage.place(out) / TRASH)
    for moved in found:
        moment = time.strftime("%Y-%m-%d %H:%M", time.gmtime(moved.moved_at))
        print(f"{_readable(moved.size):>9}  {moment}  {moved.path}")
    print(f"{_readable(sum(moved.size for moved in found)):>9}  in all")


def empty_trash(
    out: Out = str(OUT),
    older_than: Annotated[
        str, tyro.conf.arg(metavar="AGE", help="only what was moved longer ago, such as 12h, 30d or 2w")
    ] = "",
    with_registered: Annotated[
        bool, tyro.conf.arg(help="also models that a registered version names and that lie nowhere else")
    ] = False,
) -> None:
    """Delete what was moved to OUT/.trash for good, and say how much that was.

    Refused where a model in it is a registered version (`models:/NAME@best`) and lies nowhere else, by the
    runs of this OUT: MLflow keeps only the path of models over 256 MiB. A command that moves something names
    the OUT whose trash it went to. What has no time in its name was not moved there by a command, and stays.
    """
    limit = time.time() - (age_s(older_than) if older_than else 0)
    there = in_trash(storage.place(out) / TRASH)
    found = [
        one for one in there if _MOVED.fullmatch(one.path.name) and (not older_than or one.moved_at < limit)
    ]
    if not with_registered:
        _check_registered([moved.path for moved in found if not storage.is_remote(moved.path)], Path(out))
    for moved in found:
        if storage.is_remote(moved.path):
            storage.remove_folder(moved.path)
        elif moved.path.is_dir() and not moved.path.is_symlink():
            shutil.rmtree(moved.path)
        else:
            moved.path.unlink()
        print(f"{_readable(moved.size):>9}  deleted {moved.path}")
    print(f"{_readable(sum(moved.size for moved in found)):>9}  in all")


def _check_registered(found: list[Path], out: Path) -> None:
    """Raises ValueError where a registered version would be lost."""
    from experiments.layout import Layout
    from experiments.runs.only_copies import only_copies

    if lost := list(only_copies(found, Layout(out=out).tracking)):
        more = f" (and {len(lost) - 1} more)" if lost[1:] else ""
        raise ValueError(
            f"{lost[0][0]}: the only copy of a registered version of {lost[0][1]}{more}; move it out of the "
            "trash, or give --with-registered to delete it too (nothing was deleted)"
        )


def in_trash(trash: Path) -> list[Moved]:
    """Everything in a trash folder, also in an object store, the oldest first. Raises OSError."""
    found = [Moved(path, _size(path), _moved_at(path)) for path in storage.list_folder(trash)]
    return sorted(found, key=lambda moved: (moved.moved_at, moved.path))


def age_s(text: str) -> float:
    """Seconds of an age. Raises ValueError."""
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"--older-than {text}: expected a number and s, m, h, d or w, such as 30d")
    return float(match[1]) * _SECONDS[match[2]]


def _moved_at(path: Path) -> float:
    match = _MOVED.fullmatch(path.name)
    if match is None:
        return time.time() if storage.is_remote(path) else path.lstat().st_mtime
    return float(calendar.timegm(time.strptime(match[1], "%Y%m%d-%H%M%S")))


def _size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; links count themselves. Raises OSError."""
    if storage.is_remote(path):
        with named_errors(path):
            return sum(found.stat().st_size for found in path.rglob("*") if found.is_file())
    if path.is_dir() and not path.is_symlink():
        return sum(map(_size, path.iterdir()))
    return path.lstat().st_size


def _readable(size: int) -> str:
    units = ("B", "KB", "MB", "GB", "TB")
    exponent = min(len(units) - 1, max(0, (len(str(size)) - 1) // 3))
    return f"{size} B" if not exponent else f"{size / 1000**exponent:.1f} {units[exponent]}"

"""Output folders and files that a command replaces as a whole: its own, and nobody else's.

A folder is replaced where it is absent, empty, or marked by the same command and without a file that the
command did not make. What was there is moved to the trash and comes back where the exchange fails. Links and
`..` are resolved first, so a linked folder stays linked.
"""

from __future__ import annotations

import errno
import filecmp
import json
import os
import platform
import re
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from pretrain.files import TEMPORARY, is_running, replacing, write_json
from pretrain.storage import TRASH, move_aside, trash_of
from pretrain.trash import claimed, said_moved

MARKER = ".nava-output.json"
_PARTIAL = re.compile(r"\.nava-(\d+)-[0-9a-f]{8}\.partial")
_OTHER = "give another folder, or move that one away"


def resolved_folder(out: Path) -> Path:
    """Where a folder really is: absolute, without links and `..`, also of folders that are not there."""
    return Path(os.path.realpath(out))


def check_owned(out: Path, command: str) -> Path:
    """The real place of an output folder. Raises ValueError where `command` may not replace it."""
    folder = resolved_folder(out)
    if found := problem(folder, command):
        raise ValueError(f"{out}: {found}; {_OTHER}")
    return folder


def problem(folder: Path, command: str) -> str:
    """Why a resolved folder is not one that `command` may replace, "" if it may."""
    if not os.path.lexists(folder):
        return ""
    if folder.is_symlink() or not folder.is_dir():
        return "is not a folder"
    names = _entries(folder)
    if not names:
        return ""
    marked = read_marker(folder)
    if marked is None or marked.get("unfinished"):
        return f"not empty and not marked as made by `nava {command}`"
    if marked.get("command") != command:
        return f"made by `nava {marked.get('command')}`, not by `nava {command}`"
    files = marked.get("files")
    foreign = sorted(names - {MARKER, *(map(str, files) if isinstance(files, list) else ())})
    foreign = [name for name in foreign if not TEMPORARY.fullmatch(name.rpartition("/")[2])]
    return f"holds {foreign[0]!r}, which `nava {command}` did not make" if foreign else ""


@contextmanager
def owned_folder(out: Path, command: str) -> Iterator[Path]:
    """A new folder beside `out` to write into; in the end it is marked and takes the place of `out`.

    Where `out` is no longer one that `command` may replace, the new folder is kept beside it under a name
    that the error tells. Any other failure leaves `out` as it was and nothing else. Raises ValueError before
    and after, OSError where folders cannot be made or moved.
    """
    target = check_owned(out, command)
    target.parent.mkdir(parents=True, exist_ok=True)
    _clear_up(target, command)
    fresh = target.parent / f".nava-{os.getpid()}-{secrets.token_hex(4)}.partial"
    fresh.mkdir()
    begun = {"command": command, "unfinished": True, "of": target.name, "machine": platform.node()}
    try:
        write_json(fresh / MARKER, begun)
        yield fresh
        files = sorted(_entries(fresh) - {MARKER})
        write_json(fresh / MARKER, {"command": command, "files": files}, indent=0)
        _exchange(fresh, target, out, command)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """As `pretrain.files.replacing`; a file of other content that is there, which may be anybody's, goes to
    the trash first, and stderr says where. Raises OSError where it cannot be written or moved."""
    with replacing(path) as temporary:
        yield temporary
        if os.path.lexists(path) and not (path.is_file() and filecmp.cmp(path, temporary, shallow=False)):
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            with redirect_stdout(sys.stderr):  # stdout may be JSON
                move_aside(path)


def add_to_marker(folder: Path, names: Iterable[str]) -> None:
    """Say of further files (relative names) that the command that made the folder has written them."""
    if (marked := read_marker(folder)) and isinstance(files := marked.get("files"), list):
        write_json(folder / MARKER, {**marked, "files": sorted({*files, *names})}, indent=0)


def _exchange(fresh: Path, target: Path, out: Path, command: str) -> None:
    """Put `fresh` in the place of `target`, whose content is looked at again once nobody finds it by name."""
    if resolved_folder(out) != target:
        _keep(fresh, target, f"{out}: leads elsewhere than when the work began")
    if found := problem(target, command):
        _keep(fresh, target, f"{out}: {found}")
    aside = _moved(target) if target.is_dir() and any(target.iterdir()) else None
    try:
        if aside and (found := problem(aside, command)):
            _keep(fresh, target, f"{out}: {found}")
        try:
            fresh.rename(target)  # over nothing or an empty folder; anything else is refused by the system
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            _keep(fresh, target, f"{out}: something else was put there in the meantime")
    except BaseException:
        if aside:
            _put_back(aside, target)
        raise
    if aside:
        said_moved(target, aside)


def _moved(target: Path) -> Path:
    """`target` in its trash, of the same disk."""
    for trash in (trash_of(target), target.parent / TRASH):
        aside = claimed(trash, target.name)
        try:
            return target.rename(aside)  # over the empty folder that was just made for it
        except OSError as error:
            aside.rmdir()
            if error.errno != errno.EXDEV or trash == target.parent / TRASH:
                raise
    raise AssertionError("the last place returns or raises")


def _put_back(aside: Path, target: Path) -> None:
    try:
        aside.rename(target)
    except OSError:  # something is there again
        said_moved(target, aside)


def _keep(fresh: Path, target: Path, why: str) -> None:
    """Raises ValueError that says where the finished folder lies."""
    kept = claimed(target.parent, target.name)
    fresh.rename(kept)
    raise ValueError(f"{why}; it was left as it is, and what was made lies in {kept}")


def _entries(folder: Path) -> set[str]:
    """Files, links and empty folders below a folder, by their relative names."""
    found: set[str] = set()
    for where, folders, files in os.walk(folder):
        base = Path(where)
        names = [*files, *(name for name in folders if (base / name).is_symlink())]
        if not names and not folders and base != folder:
            names = ["."]
        found |= {(base / name).relative_to(folder).as_posix() for name in names}
    return found


def read_marker(folder: Path) -> dict[str, Any] | None:
    """The folder's marker, None where it has none that can be read."""
    try:
        content = json.loads((folder / MARKER).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _clear_up(target: Path, command: str) -> None:
    """Move what killed processes of this machine and command left of `target` to the trash."""
    for path in target.parent.iterdir():
        match = _PARTIAL.fullmatch(path.name)
        if match is None or path.is_symlink() or not path.is_dir() or is_running(int(match[1])):
            continue
        marked = read_marker(path) or {}
        wanted = {"command": command, "unfinished": True, "of": target.name, "machine": platform.node()}
        if marked == wanted:
            with suppress(OSError):
                said_moved(path, path.rename(claimed(trash_of(target), f"{target.name}-unfinished")))

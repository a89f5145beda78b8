"""Files and models of a run as they were when they were logged, which may be long before they are sent.

They are kept in the run's spool folder until then. What could not be kept, and what is sent once more to
another store, is held against what was noted of it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pretrain.files import sha256_of

MAX_COPIED_BYTES = 256 << 20  # of a model whose files MLflow gets; of a larger one it gets the path
KEPT = "files"  # in a run's spool folder, each in a folder of its own
# small, and written in place or appended to, which a hard link would follow; others are renamed into place
TEXTS = frozenset({".csv", ".html", ".json", ".jsonl", ".log", ".md", ".txt", ".yaml", ".yml"})
MAX_TEXT_BYTES = 64 << 20
MAX_HASHED_BYTES = 1 << 20  # tells the same content written again, as by `dvc checkout`, from another one
log = logging.getLogger(__name__)


def keep(path: Path, run: Path, temporary: bool = False, limit: int | None = None) -> dict[str, Any]:
    """Keep a file or folder in a run's spool folder; returns what its event says of it.

    path, relative: where it is, also relative to the run's folder, for a checkout that moves. noted: its size
    and time. kept: what was kept, relative to the run's folder, until `release` removes it: hard links, and
    copies of texts. It is absent where links are impossible or the files have more bytes than `limit`.
    temporary: `path` is removed with the run, so what is kept, copied where need be, takes its place.
    """
    wanted = temporary or limit is None or _size(path) <= limit
    kept = _kept(path, run, temporary) if wanted else None
    place = str((kept if kept and temporary else path).resolve())
    about: dict[str, Any] = {"path": place, "relative": os.path.relpath(place, run.resolve())}
    if temporary:
        return about
    if kept:
        about["kept"] = kept.relative_to(run).as_posix()
    noted = _noted(kept or path)
    return about | ({"noted": noted} if noted else {})


def _kept(path: Path, run: Path, may_copy: bool) -> Path | None:
    def link(source: str, target: str) -> None:
        # of a symbolic link, as DVC makes them, the file
        real = os.path.realpath(source) if Path(source).is_symlink() else source
        if Path(source).suffix.lower() in TEXTS and Path(real).stat().st_size <= MAX_TEXT_BYTES:
            shutil.copy2(real, target)
            return
        try:
            os.link(real, target)
        except OSError:
            if not may_copy:
                raise
            shutil.copy2(real, target)

    kept = run / KEPT / uuid.uuid4().hex[:8] / path.name
    try:
        is_folder = path.is_dir()
        if not path.exists() or (is_folder and run.resolve().is_relative_to(path.resolve())):
            return None  # nothing there, or a folder that would be copied into itself
        kept.parent.mkdir(parents=True)
        if is_folder:
            shutil.copytree(path, kept, copy_function=link)
        else:
            link(str(path), str(kept))
    except OSError as error:
        shutil.rmtree(kept.parent, ignore_errors=True)
        if may_copy:
            log.warning("tracking: %s is not kept (%s)", path, error)
        return None
    return kept


def _files(path: Path) -> list[Path]:
    """All files at or below a path, in order."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [path] if path.is_file() else []


def _stated(files: Sequence[Path]) -> dict[str, Any]:
    found = [file.stat() for file in files]
    return {
        "files": len(found),
        "bytes": sum(stat.st_size for stat in found),
        "newest_ns": max((stat.st_mtime_ns for stat in found), default=0),
    }


def _size(path: Path) -> int:
    try:
        return _stated(_files(path))["bytes"]
    except OSError:
        return 0


def _noted(path: Path) -> dict[str, Any]:
    """Number, bytes and newest time of the files at or below `path`, and a digest of small ones; empty where
    there are none."""
    try:
        files = _files(path)
        noted = _stated(files)
        if noted["bytes"] <= MAX_HASHED_BYTES:
            lines = (f"{file.relative_to(path)} {sha256_of(file)}\n" for file in files)
            noted["sha256"] = hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
    except OSError:
        return {}
    return noted if files else {}


def located(event: Mapping[str, Any], run: Path) -> dict[str, Any]:
    """An event with where its files are now: `path` as logged or moved with its checkout, and `content`, what
    was kept of it or that path."""
    moved = run / event["relative"] if "relative" in event else None
    place = moved.resolve() if moved is not None and moved.exists() else Path(event["path"])
    kept = (run / event["kept"]).resolve() if event.get("kept") else place
    return {**event, "path": str(place), "content": str(kept if kept.exists() else place)}


def changed(event: Mapping[str, Any]) -> str:
    """Why the `content` of a located event is not what was logged, in one line; "" where it is, where there
    is none, and where an earlier version noted nothing of it."""
    before, now = event.get("noted", {}), _noted(Path(event["content"]))
    if not before or not now:
        return ""
    if (now["files"], now["bytes"]) != (before["files"], before["bytes"]):
        return (
            f"{event['path']}: {now['bytes']:,} bytes in {now['files']} files, where {before['bytes']:,} in "
            f"{before['files']} were logged"
        )
    if now["newest_ns"] == before["newest_ns"] or now.get("sha256", "") == before.get("sha256"):
        return ""
    return f"{event['path']}: written again since it was logged"


def release(event: Mapping[str, Any], run: Path) -> None:
    """Remove what was kept for an event, which has been sent."""
    parts = Path(event.get("kept", "")).parts
    if len(parts) == 3 and parts[0] == KEPT and ".." not in parts:
        shutil.rmtree(run / KEPT / parts[1], ignore_errors=True)


def release_all(events: Iterable[Mapping[str, Any]], run: Path) -> None:
    """Remove what kills have left of a run that is sent whole: all that is the place of no file."""
    if not (run / KEPT).is_dir():
        return
    needed = {Path(event["path"]).parent.name for event in events if "path" in event}
    for folder in (run / KEPT).iterdir():
        if folder.name not in needed:
            shutil.rmtree(folder, ignore_errors=True)

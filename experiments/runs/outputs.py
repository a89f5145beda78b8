"""What runs made, file by file, so that content on disk leads to the run that made it, whenever that was."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.layout import Layout
from experiments.runs.origin import spool_of
from experiments.runs.provenance import md5_of
from experiments.runs.tracker import SpoolTracker
from pretrain.files import write_json

OUTPUT = "output.json"  # in a run's spool folder: path, md5, checkpoint id
FILES = "output_files.json"  # beside it: path below the output -> md5
CHECKPOINT_TAG = "nava.checkpoint_id"
OUTPUT_MD5 = "nava.output_md5"  # tag of a run
EMPTY = hashlib.md5(usedforsecurity=False).hexdigest()  # files without content have no maker

Files = Mapping[str, str]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Made:
    """An output of a run. md5: as DVC computes it, "" if unknown; checkpoint: of a model, else ""."""

    key: str
    path: str
    md5: str
    checkpoint: str
    read_files: Callable[[], Files]

    def below(self, path: Path, root: Path) -> str | None:
        """Where `path` lies in this output ("" = it is the output); None if elsewhere."""
        here = (root / self.path).resolve()
        if path == here:
            return ""
        return path.relative_to(here).as_posix() if path.is_relative_to(here) else None


def files_of(path: Path, since_s: float = 0.0) -> dict[str, str]:
    """md5 of every file at or below `path`, by its path below; {"": md5} for a file.

    since_s: only files written since then (seconds since 1970). Raises FileNotFoundError if it is missing.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.is_file():
        return {"": md5_of(path)}
    files = (file for file in sorted(path.rglob("*")) if file.is_file() and "__pycache__" not in file.parts)
    return {
        file.relative_to(path).as_posix(): md5_of(file) for file in files if file.stat().st_mtime >= since_s
    }


def digest_of(files: Files) -> str:
    """md5 of a file or folder as DVC computes it, from those of its files; "" without any."""
    if "" in files:
        return files[""]
    if not files:
        return ""
    entries = [{"md5": md5, "relpath": path} for path, md5 in sorted(files.items())]
    return (
        hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"
    )


def part(files: Files, below: str) -> dict[str, str]:
    """The files at or below a path of an output, by their paths below it."""
    if not below:
        return dict(files)
    if below in files:
        return {"": files[below]}
    return {path[len(below) + 1 :]: md5 for path, md5 in files.items() if path.startswith(f"{below}/")}


def keep_output(tracker: SpoolTracker, path: str, files: Files) -> str:
    """Keep what a run made in its spool folder; returns the md5 of all of it."""
    md5 = digest_of(files)
    header = {"path": path, "md5": md5, "checkpoint": tracker.tags.get(CHECKPOINT_TAG, "")}
    try:
        write_json(tracker.folder / FILES, files, indent=None)
        write_json(tracker.folder / OUTPUT, header, indent=None)
    except OSError as error:  # as for all of the spool, tracking fails no training
        log.warning("tracking: %s", error)
    return md5


class KnownOutputs:
    """Outputs of the runs known in a repository, newest first: the records of its stages, which DVC moves,
    and its spool. Paths are relative to `root`."""

    def __init__(self, layout: Layout, root: Path) -> None:
        self.root = root
        found = {made.key: made for made in (*_recorded(layout), *_spooled(spool_of(layout, root)))}
        self.made: Sequence[Made] = sorted(found.values(), key=lambda made: made.key, reverse=True)

    def maker_of(self, path: Path) -> str:
        """Key of the newest run that made what lies at `path`, "" if none is known.

        A run that wrote to this very place comes first; then one whose output, or a file of it, is the same.
        """
        files, place = files_of(path), path.resolve()
        for made in self.made:
            below = made.below(place, self.root)
            if below is not None and self._has(made, below, files):
                return made.key
        return self._elsewhere(files)

    def maker_of_digest(self, path: str, md5: str) -> str:
        """The same for a path of which only the md5 is known."""
        place = (self.root / path).resolve()
        for made in self.made:
            below = made.below(place, self.root)
            if below is None:
                continue
            if md5 == (digest_of(part(made.read_files(), below)) if below else made.md5):
                return made.key
        return next((made.key for made in self.made if made.md5 == md5), "") if md5 != EMPTY else ""

    def with_checkpoint(self, checkpoint: str, path: Path | None = None) -> Made | None:
        """The newest run that made a model of this id, preferring one that wrote to `path`."""
        found = [made for made in self.made if made.checkpoint == checkpoint and checkpoint]
        place = path.resolve() if path else None
        here = (made for made in found if place and made.below(place, self.root) is not None)
        return next(here, found[0] if found else None)

    def last_at(self, path: Path) -> Made | None:
        """The newest run that wrote to this place, whatever lies there."""
        place = path.resolve()
        return next((made for made in self.made if made.below(place, self.root) is not None), None)

    def _has(self, made: Made, below: str, files: Files) -> bool:
        if known := made.read_files():
            return part(known, below) == files
        # of a run that kept no list of files, only the whole is known
        output = self.root / made.path
        return bool(made.md5) and output.exists() and made.md5 == digest_of(files_of(output))

    def _elsewhere(self, files: Files) -> str:
        md5 = digest_of(files)
        if not md5 or md5 == EMPTY:
            return ""
        whole = (made.key for made in self.made if made.md5 == md5)
        single = (made.key for made in self.made if "" in files and md5 in made.read_files().values())
        return next(whole, "") or next(single, "")


def records_by_key(layout: Layout) -> dict[str, dict[str, Any]]:
    """The records of the last good runs of stages, by run key."""
    found = (_read(path) for path in (sorted(layout.runs.glob("*.json")) if layout.runs.is_dir() else ()))
    return {record["key"]: record for record in found if "key" in record and "output" in record}


def _recorded(layout: Layout) -> Iterator[Made]:
    for record in records_by_key(layout).values():
        files: Files = record.get("files") or {}
        yield Made(
            record["key"],
            record["output"],
            record.get("output_md5", ""),
            record.get("checkpoint", ""),
            lambda listed=files: listed,
        )


def _spooled(spool: Path) -> Iterator[Made]:
    for path in spool.glob(f"*/{OUTPUT}"):
        header = _read(path)
        if "path" in header:
            listed = path.with_name(FILES)
            yield Made(
                path.parent.name,
                header["path"],
                header.get("md5", ""),
                header.get("checkpoint", ""),
                lambda file=listed: _read(file),
            )


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where it is damaged or gone, as one lost record must not hide the others."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}

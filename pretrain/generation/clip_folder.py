"""The folder, or the prefix of an object store, that clips are written into one by one.

Its marker (`pretrain.owned`) says what it is made with. A clip is there when its row is, which is written
last: PARTS/rows/NAME.json, with the sizes of its files. index.jsonl has the rows in the order of the prompts;
it is written again and again while clips are made, and at the end, when the marker lists all files and PARTS
goes. Of files that others put there none is ever touched.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pretrain.files import TEMPORARY, read_json, write_json
from pretrain.generation.request import (
    difference,
    is_other_decoder,
    not_kept,
    request_id,
    same_as,
)
from pretrain.jsonl import FieldError, scan
from pretrain.owned import MARKER, check_owned, read_marker, resolved_folder
from pretrain.storage import (
    is_file,
    is_remote,
    list_folder,
    local_file,
    move_aside,
    remove_file,
    remove_folder,
    writing,
)
from pretrain.storage_errors import named_errors

COMMAND = "generate"  # whose folders these are
PARTS, INDEX = ".nava-parts", "index.jsonl"
FolderState = Literal["new", "unfinished", "finished", "replaced"]
_OTHER = "give another folder, or move that one away"


@dataclass
class ClipFolder:
    """`place`: a folder or URL; request: what it is made with; names: of all its clips, in order."""

    place: Path
    request: Mapping[str, Any]
    names: Sequence[str]
    state: FolderState = "new"
    why: str = ""  # what differs, of a folder that is replaced
    not_kept: str = ""  # what an earlier version, which began the folder, did not keep of its request
    threads: int = 0  # that its clips are made with, 0 = not known
    _rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, place: Path, request: Mapping[str, Any], names: Sequence[str], aside: bool = False
    ) -> ClipFolder:
        """Look at what is there. aside: an unfinished folder of another request makes room too.

        A folder of an earlier version goes on with what that kept of its request; one that has latents alone
        goes on with another decoder. Raises ValueError in one line where the place is not ours, or was begun
        with something else.
        """
        request = json.loads(json.dumps(request))
        place = place if is_remote(place) else resolved_folder(place)
        folder = cls(place, request, names)
        marked = _marker(place)
        if marked is None or marked.get("command") != COMMAND or "made_with" not in marked:
            folder._check_free(marked)
            folder.state = "replaced" if marked and marked.get("command") == COMMAND else "new"
            folder.why = "made by an earlier version" if folder.state == "replaced" else ""
        elif same_as(marked["made_with"], request):
            folder.not_kept = not_kept(marked["made_with"], request)
            folder.request = marked["made_with"]  # of clips that are there no more is said than is known
            folder.threads = int(marked.get("threads") or 0)
            complete = not marked.get("unfinished") and len(folder.done()) == len(names)
            folder.state = "finished" if complete else "unfinished"
        elif (
            marked.get("unfinished") and is_other_decoder(marked["made_with"], request) and not folder.done()
        ):
            folder.state, folder.threads = "unfinished", int(marked.get("threads") or 0)
        else:
            folder.why = f"made with {difference(marked['made_with'], request)}"
            folder.state = "replaced"
            if marked.get("unfinished") and not aside:
                raise ValueError(
                    f"{place}: unfinished, and {folder.why}; ask for the same to go on, give another folder, "
                    "or --move-aside"
                )
            if not marked.get("unfinished"):
                folder._clear_parts()
                folder._check_free(marked)
        return folder

    def begin(self, threads: int) -> None:
        """Make the folder ours, before the first clip; one that is replaced goes to the trash first."""
        if self.state == "replaced":
            print(f"{self.place}: {self.why}", flush=True)
            move_aside(self.place)
        self.threads = self.threads or threads
        self._rows = self.done() if self.state == "unfinished" else {}
        if not is_remote(self.place):
            (self.place / PARTS / "rows").mkdir(parents=True, exist_ok=True)
        self._mark({"unfinished": True})
        self.state = "unfinished"

    def done(self) -> dict[str, dict[str, Any]]:
        """The index rows of clips that are there whole, by name, in the order of the prompts."""
        found: dict[str, dict[str, Any]] = {}
        wanted, there = set(self.names), self._files()
        for row in self._indexed():
            if row.get("data_id") in wanted and all(name in there for name in files_of(row)):
                found[row["data_id"]] = row
        for path in list_folder(self.place / PARTS / "rows"):
            if path.suffix != ".json" or path.name.removesuffix(".json") not in wanted:
                continue
            kept = _read(path)
            sizes = kept.get("bytes")
            if isinstance(sizes, dict) and all(there.get(name) == size for name, size in sizes.items()):
                found[kept["row"]["data_id"]] = kept["row"]
        self._rows = {name: found[name] for name in self.names if name in found}
        return dict(self._rows)

    def row_of(self, name: str) -> dict[str, Any] | None:
        """The row of a clip that was added to a folder which is being filled, by any process."""
        path = self.place / PARTS / "rows" / f"{name}.json"
        return _read(path)["row"] if is_file(path) else None

    @property
    def is_ours(self) -> bool:
        """The place was begun with this very request: what lies there is not another's."""
        return (_marker(self.place) or {}).get("id") == request_id(self.request)

    def add(self, row: Mapping[str, Any], files: Iterable[str]) -> None:
        """Note a clip whose files are there: its row, on disk when this returns.

        Raises OSError where another command has taken the folder.
        """
        if not self.is_ours:
            raise OSError(f"{self.place}: another command has taken the folder; give each its own")
        sizes = {name: size_of(self.place / name) for name in files}
        where = self.place / PARTS / "rows" / f"{row['data_id']}.json"
        write_json(where, {"row": row, "bytes": sizes}, through=writing, indent=None, ensure_ascii=False)
        if not is_remote(self.place):
            for path in (*(self.place / name for name in sizes), where, where.parent, self.place):
                _sync(path)
        self._rows[str(row["data_id"])] = dict(row)

    def took(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows that other processes have added."""
        self._rows |= {str(row["data_id"]): dict(row) for row in rows}

    def write_index(self) -> None:
        """index.jsonl of the clips that are there so far."""
        lines = [
            json.dumps(self._rows[name], ensure_ascii=False) for name in self.names if name in self._rows
        ]
        with writing(self.place / INDEX) as path:
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def finish(self) -> None:
        """The whole index, the list of files; nothing of the work is left."""
        self._rows = self.done()
        self.write_index()
        self._clear_temporary()
        files = sorted({INDEX, *(name for row in self._rows.values() for name in files_of(row))})
        self._mark({"files": files}, indent=0)
        self._clear_parts()

    def abandon(self) -> None:
        """Take away a folder that has no clip, where nothing can be gone on with."""
        if self.state != "unfinished" or self._rows or is_remote(self.place):
            return
        self._clear_parts()
        self._clear_temporary()
        for name in (INDEX, MARKER):
            (self.place / name).unlink(missing_ok=True)
        with suppress(OSError):  # something of somebody's is in it
            self.place.rmdir()

    def parts(self, *names: str) -> Path:
        """Where files of the work lie."""
        return self.place.joinpath(PARTS, *names)

    def _mark(self, more: Mapping[str, Any], indent: int | None = 2) -> None:
        said = {"made_with": self.request, "id": request_id(self.request), "threads": self.threads}
        write_json(self.place / MARKER, {"command": COMMAND, **more, **said}, through=writing, indent=indent)

    def _check_free(self, marked: Mapping[str, Any] | None) -> None:
        """Raises ValueError where the place is not this command's to fill or replace."""
        if not is_remote(self.place):
            check_owned(self.place, COMMAND)
        elif list_folder(self.place) and (marked or {}).get("command") != COMMAND:
            raise ValueError(f"{self.place}: not empty and not marked as made by `nava {COMMAND}`; {_OTHER}")

    def _files(self) -> dict[str, int]:
        """Name -> bytes of the files there."""
        if is_remote(self.place):
            return _sizes_in_store(self.place)
        if not self.place.is_dir():
            return {}
        with os.scandir(self.place) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}

    def _indexed(self) -> list[dict[str, Any]]:
        index = self.place / INDEX
        if not is_file(index):
            return []
        with suppress(ValueError), local_file(index) as path:  # an empty one has no row
            return [row for _, row in scan(path) if not isinstance(row, FieldError)]
        return []

    def _clear_parts(self) -> None:
        if not is_remote(self.place) and (parts := self.place / PARTS).is_dir() and not parts.is_symlink():
            shutil.rmtree(parts)
        elif is_remote(self.place) and list_folder(self.place / PARTS):
            remove_folder(self.place / PARTS)

    def _clear_temporary(self) -> None:
        """Temporary files of killed processes; this command holds the folder alone."""
        for path in [] if is_remote(self.place) else list(self.place.iterdir()):
            if TEMPORARY.fullmatch(path.name):
                remove_file(path)


def files_of(row: Mapping[str, Any]) -> list[str]:
    """Names of the files of an index row."""
    return [row[key] for key in ("video", "audio", "latents") if row.get(key)]


def size_of(path: Path) -> int:
    """In bytes."""
    return path.stat().st_size


def _marker(place: Path) -> dict[str, Any] | None:
    if not is_remote(place):
        return read_marker(place)
    if not is_file(place / MARKER):
        return None
    with suppress(ValueError):
        return _read(place / MARKER)
    return {}


def _read(path: Path) -> dict[str, Any]:
    with local_file(path) as local:
        return read_json(local, "remove it")


def _sizes_in_store(place: Any) -> dict[str, int]:
    with named_errors(place):
        try:
            listed = place.fs.ls(place.path, detail=True)
        except FileNotFoundError:
            return {}
    files = (entry for entry in listed if entry["type"] == "file")
    return {entry["name"].rsplit("/", 1)[-1]: int(entry["size"]) for entry in files}


def _sync(path: Path) -> None:
    """To the disk, so that a loss of power takes nothing that was said to be there."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
